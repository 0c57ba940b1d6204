"""Paths of a model that is being trained: what the fine-tuning losses share.

The sampler is the house's own, `Single` over a grid; a model with other weights is the same pytree with other leaves.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import Gaussian, Info, Kernel, Lookahead, Sampler, State, Step
from ntrk_jax.look import Look
from ntrk_jax.models import FlaxDenoiser
from ntrk_jax.move import in_algebra
from ntrk_jax.run import run
from ntrk_jax.samplers import Single
from ntrk_jax.tree import is_concrete, pytree, replace
from ntrk_jax.typing import Array, Key, PyTree, Sample

__all__ = ["Rematerialised", "base_gaussian", "require_noise", "walk", "with_params"]


@pytree
class Rematerialised:
    """A sampler whose steps are computed again in the backward pass, so that only their states are kept.

    Attributes:
        sampler: any sampler.

    Cost: one more forward pass in a gradient; memory of one step instead of num_steps of them.
    """

    sampler: Sampler

    def init(self, key: Key, x: Sample, first: Step) -> State:
        """As the sampler's."""
        return self.sampler.init(key, x, first)

    def step(self, key: Key, state: State, step: Step) -> tuple[State, Info]:
        """The sampler's step, remembered by its arguments alone."""
        return jax.checkpoint(lambda sampler, *args: sampler.step(*args))(self.sampler, key, state, step)


def with_params(model: FlaxDenoiser, params: PyTree, *, frozen: bool = False) -> FlaxDenoiser:
    """A denoiser with `variables` given other weights, through which no gradient goes if they are frozen."""
    return replace(model, variables=jax.lax.stop_gradient(params) if frozen else params)


def walk(model: FlaxDenoiser, kernel: Kernel, key: Key, x: Sample, steps: Step) -> Array:
    """A path of the kernel from x [*shape], with both ends and without a gradient, [num_steps + 1, *shape]."""
    path = run(Single(Look(model), kernel), key, x, steps, record=lambda state, info: state.look.x)[1]
    return jax.lax.stop_gradient(jnp.concatenate([x[None], path]))


def base_gaussian(model: FlaxDenoiser, kernel: Kernel, x: Sample, step: Step) -> Gaussian:
    """The kernel's N(mean, std^2 I) at x [*shape] on one row."""
    look, row = in_algebra(Lookahead(x, model(x, step.t)), step)
    return kernel(look, row)


def require_noise(name: str, kernel: Any, steps: Step) -> None:
    """Raise ValueError if the kernel draws no noise in a row before the last, or the grid has no row that could."""
    if not getattr(kernel, "stochastic", True):
        raise ValueError(
            f"{name} needs a stochastic kernel such as DDIM(eta=1.0) or FlowSDE(), got {type(kernel).__name__}, whose "
            "steps have no density."
        )
    if steps.num_steps < 2:
        raise ValueError(
            f"{name} needs at least two rows, of which the last one draws no noise, got {steps.num_steps}."
        )
    silent = _silent(kernel, steps.rows(0, steps.num_steps - 1))
    if silent.size:
        raise ValueError(
            f"{name} needs noise in every row but the last, whose steps have a density; {type(kernel).__name__} draws "
            f"none in row {silent[0]}, at t = {float(steps.t[silent[0]]):.3g}."
        )


def _silent(kernel: Any, steps: Step) -> np.ndarray:
    """The rows in which the kernel is known to draw no noise; none for one that takes samples of a certain shape."""
    still = jnp.zeros((1,), steps.t.dtype)
    try:
        std = jax.vmap(lambda row: jnp.asarray(kernel(*in_algebra(Lookahead(still, still), row)).std))(steps)
    except Exception:
        return np.zeros(0, int)
    known = is_concrete(std)
    return np.flatnonzero(np.all(np.asarray(std).reshape(steps.num_steps, -1) == 0, 1)) if known else np.zeros(0, int)
