"""Search: draw many, keep the best. None needs a gradient; any rule may tilt the candidates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ntrk_jax.arguments import require_temperature_of
from ntrk_jax.core import Denoiser, Guidance, Kernel, Reward, Step, Value
from ntrk_jax.kernels import DDIM, FlowSDE
from ntrk_jax.methods.entry import Entry, look_at
from ntrk_jax.models import Reschedule
from ntrk_jax.samplers import RBF, SVDD, Beam, BestOfN, Blocks, Pruned, Rising, Single, Widening
from ntrk_jax.schedules import Schedule, VPLinear
from ntrk_jax.tree import is_concrete
from ntrk_jax.typing import Scalar
from ntrk_jax.values import Smoothed

__all__ = ["beam", "best_of_n", "code", "dsearch", "rbf", "svdd", "svdd_argmax", "ttsnap"]


def best_of_n(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    num_particles: int = 4,
    kernel: Kernel | None = None,
    guidance: Guidance | None = None,
    grad: bool = False,
):
    """Best of N independent runs, of the base sampler or of a guided one."""
    look = look_at(model, reward, shape, guidance, grad=grad)
    return BestOfN(Single(look, kernel or DDIM(eta=1.0), guidance), num_particles)


def svdd(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    num_particles: int = 4,
    choice: str = "categorical",
    kernel: Kernel | None = None,
    guidance: Guidance | None = None,
    value: Value | None = None,
) -> SVDD:
    """SVDD as in its paper: each row goes on with one of M candidates, drawn by value at a temperature."""
    if choice == "categorical" and not isinstance(value, Smoothed):
        require_temperature_of(value, temperature)
    look = look_at(model, reward, shape, guidance, value)
    return SVDD(look, kernel or DDIM(eta=1.0), guidance, temperature, choice, num_particles)


def svdd_argmax(model: Denoiser, reward: Reward, shape: tuple[int, ...] = (), **parts: Any):
    """SVDD as in its published code: the best candidate of each row."""
    return svdd(model, reward, shape, choice="argmax", **parts)


def beam(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    num_particles: int = 4,
    keep: Scalar | None = None,
    size: Scalar = 1,
    kernel: Kernel | None = None,
    guidance: Guidance | None = None,
    value: Value | None = None,
) -> Beam:
    """Beam search: after each block of `size` rows the best `keep` paths are copied to all slots.

    keep: 2 unless given, 1 of two particles; with as many as particles nothing would be selected.
    """
    keep = min(2, max(1, num_particles - 1)) if keep is None else keep
    if is_concrete(keep) and np.any(np.asarray(keep) >= max(2, num_particles)):
        raise ValueError(f"keep must be below num_particles={num_particles}, got {keep}: nothing would be selected.")
    single = Single(look_at(model, reward, shape, guidance, value), kernel or DDIM(eta=1.0), guidance)
    return Beam(single, Blocks(size, keep), num_particles)


def code(model: Denoiser, reward: Reward, shape: tuple[int, ...] = (), *, size: Scalar = 2, **parts: Any):
    """CoDe: after each block of `size` rows the best path is copied to all slots."""
    if "keep" in parts:
        raise ValueError("CoDe keeps one path; use beam(keep=...) for more.")
    return beam(model, reward, shape, size=size, keep=1, **parts)


def dsearch(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    num_particles: int = 4,
    plan: Widening | None = None,
    chunk: int = 1,
    kernel: Kernel | None = None,
    guidance: Guidance | None = None,
    value: Value | None = None,
) -> Beam:
    """A beam that narrows while each of its paths gets more children, at search times that crowd towards data.

    Departs from the paper: searches, and drops, at geometric times; no look-ahead heuristic beyond the value given.
    """
    single = Single(look_at(model, reward, shape, guidance, value), kernel or DDIM(eta=1.0), guidance)
    return Beam(single, plan or Widening(), num_particles, chunk)


def ttsnap(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    num_particles: int = 4,
    times: tuple[float, ...] = (0.9, 0.7, 0.45),
    fractions: tuple[float, ...] = (0.4, 0.4, 0.5),
    chunk: int = 1,
    kernel: Kernel | None = None,
    value: Value | None = None,
) -> Beam:
    """Best-of-N that gives up the worst paths early, by a noise-aware reward.

    At times[j] the best fractions[j] of the living paths go on. The times are those of the schedule: at nine tenths
    of `EDM`, whose time is its noise level, nothing is known of x0 yet, and most paths go by chance; give (0.1, 0.05,
    0.02) or so there. value: the noise-aware reward, such as
    `values.Learned`; the plug-in by default.
    """
    if not all(0.0 < f <= 1.0 for f in fractions):
        raise ValueError(f"fractions must lie in (0, 1], got {fractions}.")
    if list(times) != sorted(times, reverse=True):
        raise ValueError(f"times must fall, as fractions[j] is of those that live at times[j], got {times}.")
    plan = Pruned(times, survivors_of(num_particles, fractions))
    look = look_at(model, reward, shape, value=value)
    return Beam(Single(look, kernel or DDIM(eta=1.0)), plan, num_particles, chunk)


def survivors_of(num: int, fractions: tuple[float, ...]) -> tuple[int, ...]:
    """How many of `num` paths live after each pruning, at least one."""
    return tuple(max(1, round(num * math.prod(fractions[: i + 1]))) for i in range(len(fractions)))


def rbf(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    grid: Step,
    initial: Scalar = 0.1,
    kernel: Kernel | None = None,
    guidance: Guidance | None = None,
    value: Value | None = None,
    trained_on: Schedule | None = None,
    sampled_on: Schedule | None = None,
) -> RBF:
    """Rollover budget forcing; run it over `samplers.rollouts(num)`, num * grid.num_steps model calls.

    trained_on: the schedule of a flow model, such as `schedules.RectifiedFlow()`; the grid is then one of `sampled_on`
    (`VPLinear()` unless given). The paper's grid is `nk.grid(VPLinear(), nk.grids.circle(10))`.
    """
    if trained_on is not None:
        model = Reschedule(model, trained_on, sampled_on or VPLinear())
    look = look_at(model, reward, shape, guidance, value)
    return RBF(look, kernel or FlowSDE(diffusion=Rising()), grid, guidance, initial)


def _svdd_nfe(num_steps: int, num_particles: int) -> int:
    return 1 + num_particles * (num_steps - 1)


def _dsearch_nfe(num_steps: int, num_particles: int) -> int:
    spent, width = num_particles, num_particles
    for row in range(num_steps - 1):
        t, s = (1.0 - i / num_steps for i in (row, row + 1))
        searches = math.floor(-math.log2(s) + 1e-5) > math.floor(-math.log2(t) + 1e-5)
        spent += min(4 * width, num_particles) if searches else width
        width = max(1, math.ceil(width / 2)) if searches else width
    return spent


def _ttsnap_nfe(num_steps: int, num_particles: int) -> int:
    living = survivors_of(num_particles, (0.4, 0.4, 0.5))
    spent, width = num_particles, num_particles
    for row in range(num_steps - 1):
        spent += width
        s = 1.0 - (row + 1) / num_steps
        width = min([width, *(n for t, n in zip((0.9, 0.7, 0.45), living, strict=True) if t >= s - 1e-5)])
    return spent


_ANY = "model, any reward"
_NOISY = "model, any reward, stochastic kernel"

ENTRIES: dict[str, Entry] = {
    "best_of_n": Entry(best_of_n, "best of N runs", _ANY, "N NFE", "no", population=True),
    "svdd": Entry(
        svdd, "SVDD, categorical (paper)", _NOISY, "M NFE", "the tilted law as M and steps grow, for an exact value",
        "temperature", low=1e-30, tries=(0.03, 0.1, 0.3, 1.0), nfe=_svdd_nfe,
    ),
    "svdd_argmax": Entry(svdd_argmax, "SVDD, argmax (code)", _NOISY, "M NFE", "no", nfe=_svdd_nfe),
    "code": Entry(code, "CoDe, blockwise best of N", _NOISY, "N NFE", "no", population=True),
    "beam": Entry(beam, "beam search", _NOISY, "N NFE", "no", population=True),
    "dsearch": Entry(
        dsearch, "narrowing beam (DSearch-like)", _NOISY, "N NFE to 1", "no", population=True, nfe=_dsearch_nfe
    ),
    "rbf": Entry(rbf, "rollover budget forcing", _NOISY, "a path's NFE a rollout", "no", tree=True),
    "ttsnap": Entry(
        ttsnap, "pruned best of N (TTSnap)", _ANY, "N NFE to 1", "no", population=True, nfe=_ttsnap_nfe
    ),
}  # fmt: skip
