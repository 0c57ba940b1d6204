"""What the catalogue says of a method, and the phrases its rows share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ntrk_jax.core import Denoiser, Guidance, Kernel, Reward, Sampler, Value
from ntrk_jax.kernels import DDIM
from ntrk_jax.look import Look
from ntrk_jax.samplers import Single

__all__ = ["GRAD", "LAW", "ONE", "VJP", "Entry", "guided", "look_at", "one_per_step", "single"]

GRAD = "model, differentiable reward, stochastic kernel"
ONE = "1 NFE"
VJP = "1 NFE + 1 VJP, 1 reward gradient"
LAW = "the model's law as steps grow"


def one_per_step(num_steps: int, num_particles: int) -> int:
    """The NFE of a path or of a population that asks the model once a row and particle."""
    return num_steps * num_particles


def single(sampler: Any) -> Sampler:
    """The unguided sampler of the same look and kernel."""
    return Single(sampler.look, sampler.kernel)


class Entry(NamedTuple):
    """One row of the catalogue.

    build: (model, reward, shape, **options) -> sampler.
    needs: what it asks of its user. cost: evaluations per step. exact: what its law is.
    strength: the name of the option that scales the guidance, or None; low, high: its range; tries: the strengths
    among which a comparison chooses.
    off: the strength at which the method is exactly the sampler `unguided(sampler)`.
    population: whether x is [num_particles, *shape] (and `num_particles` an option). tree: whether the sampler takes
    its grid as an option `grid` and is run over `samplers.rollouts(num)`.
    nfe: (num_steps, num_particles) -> the NFE of a run at the default options; num_particles is 1 without an option of
    that name.
    """

    build: Callable[..., Sampler]
    summary: str
    needs: str
    cost: str
    exact: str
    strength: str | None = None
    off: float | None = None
    low: float = 0.0
    high: float = float("inf")
    tries: tuple[float, ...] = ()
    population: bool = False
    tree: bool = False
    unguided: Callable[[Any], Sampler] = single
    nfe: Callable[[int, int], int] = one_per_step


def look_at(
    model: Denoiser,
    reward: Reward | None,
    shape: tuple[int, ...],
    guidance: Guidance | None = None,
    value: Value | None = None,
    grad: bool = False,
) -> Look:
    """The look of a method, with a gradient if it is asked for or its rule reads one; () is any shape."""
    return Look(model, reward, grad or getattr(guidance, "needs_grad", False), value, shape or None)


def guided(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...],
    guidance: Guidance,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Single:
    """Any rule that reads a gradient, on any kernel."""
    return Single(look_at(model, reward, shape, value=value, grad=True), kernel or DDIM(eta=1.0), guidance)
