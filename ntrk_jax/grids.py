"""Grids: a schedule and decreasing times -> the rows of coefficients that a run scans over.

A grid is a `Step` of [num_steps] arrays made before the loop: it can be printed, sliced (`grid.rows`) and
resumed. The functions below make the times; `grid` turns them into rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count, require_schedule
from ntrk_jax.core import Step
from ntrk_jax.schedules import EDM, FIRST_TIME, Schedule
from ntrk_jax.tree import is_concrete
from ntrk_jax.typing import Array, Scalar

__all__ = [
    "Grid", "Part", "as_known", "check_schedule", "circle", "grid",
    "karras", "noisiest", "refuse_blind", "shifted", "trailing", "uniform", "usual",
]  # fmt: skip

_NOISE, _NOTHING = ("eps", "score"), 1e-3
"""What says nothing of x0 where alpha is below this."""


class Grid(Step):
    """A grid whose last row, and no other, leads to sigma = 0: a run over it needs no branch in its loop.

    Take rows of it with `rows`. To JAX a `Grid`, a `Part` and a `Step` are pytrees of three kinds; `Step(*grid)` is the
    same rows as the plain kind, to be joined or compared with others.
    """

    __slots__ = ()
    printed_as = "Step"

    def rows(self, start: int, stop: int | None = None) -> Step:
        """The grid's rows start..stop, itself a grid."""
        kept = range(self.num_steps)[start:stop]
        return (Grid if kept and kept[-1] == self.num_steps - 1 else Part)(*(a[start:stop] for a in self))


class Part(Step):
    """Rows of a `Grid` without its last: none of them leads to sigma = 0."""

    __slots__ = ()
    printed_as = "Step"


def grid(schedule: Schedule, times: Array) -> Step:
    """The rows of a grid: row i moves from times[i] to times[i + 1].

    Args:
        schedule: t -> (alpha, sigma).
        times: [num_steps + 1], decreasing within [0, 1], the last one 0.

    Returns:
        The rows, [num_steps] each, as a `Grid` if their values can be read and sigma is 0 at time 0 alone. Made inside
        `jax.jit` it is a plain `Step`, over which a run asks at every row whether it is the last (some 10 us on a GPU):
        better made outside and handed in.

    Raises:
        ValueError: if the times are not one decreasing array in [0, 1] that ends at 0.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4)).t.tolist()
        [1.0, 0.75, 0.5, 0.25]
    """
    require_schedule(schedule)
    times = jnp.asarray(times)
    if not jnp.issubdtype(times.dtype, jnp.floating):
        times = times.astype(jnp.result_type(float))
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"times must be an array [num_steps + 1] with at least two entries, got shape {times.shape}.")
    if is_concrete(times):
        values = np.asarray(times)
        if not (np.all(np.diff(values) < 0) and values[-1] == 0 and values[0] <= 1):
            raise ValueError(
                "times must decrease strictly from at most 1 to exactly 0 (1 is noise, 0 is data), "
                f"got {values[0]} ... {values[-1]}; use nk.grids.uniform(num_steps) or sort them."
            )
    alpha, sigma = schedule(times)
    alpha, sigma = jnp.asarray(alpha, times.dtype), jnp.asarray(sigma, times.dtype)
    rows = Step(times[:-1], times[1:], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    return Grid(*rows) if is_concrete(sigma) and _ends_alone(np.asarray(sigma[1:])) else rows


def _ends_alone(sigma_s: Any) -> Any:
    """Whether the last row and no other leads to sigma = 0, []."""
    return (sigma_s[-1] == 0) & (sigma_s[:-1] > 0).all()


def as_known(steps: Step) -> tuple[Step, Any]:
    """A grid as the kind that it is: one that was sliced by other means than `rows` may be no more than a `Step`.

    The loop that knows its last row also looks where the next row starts, which must be where the last one led.

    Returns:
        The grid, and whether it is no `Grid` though it says so where that cannot be read yet, under `jax.jit`, [].
    """
    if not isinstance(steps, (Grid, Part)):
        return steps, False
    needed = steps.t, steps.s, steps.sigma_s
    known = all(map(is_concrete, needed))
    t, s, sigma = map(np.asarray, needed) if known else needed
    right = (_ends_alone(sigma) if isinstance(steps, Grid) else (sigma > 0).all()) & (t[1:] == s[:-1]).all()
    return (steps if right else Step(*steps), False) if known else (steps, ~right)


def _count(num_steps: int) -> int:
    require_count(num_steps=num_steps)
    return num_steps


def uniform(num_steps: int, start: Scalar = 1.0) -> Array:
    """Equally spaced times from start to 0, [num_steps + 1]."""
    return start * jnp.linspace(1.0, 0.0, _count(num_steps) + 1)


def circle(num_steps: int) -> Array:
    """Times sqrt(1 - (k/n)^2), dense near noise, where search decides most (Kim et al. 2025, arXiv:2503.19385)."""
    k = jnp.arange(_count(num_steps) + 1) / num_steps
    return jnp.sqrt((1.0 - k) * (1.0 + k))


def karras(
    schedule: Schedule, num_steps: int, sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0, rho: Scalar = 7.0
) -> Array:
    """Times whose noise-to-signal ratios are those of Karras et al. 2022 (arXiv:2206.00364, Eq. 5), then 0.

    The ratios run from sigma_max down to sigma_min, (hi + i/(n-1) (lo - hi))^rho with hi = sigma_max^(1/rho), both kept
    within what the schedule reaches at times from 1e-5 to 1.
    """
    ramp = jnp.linspace(0.0, 1.0, _count(num_steps)) if num_steps > 1 else jnp.zeros((1,))
    ends = [sigma / alpha for alpha, sigma in (schedule(1.0), schedule(FIRST_TIME))]
    high, low = jnp.minimum(sigma_max, ends[0]) ** (1.0 / rho), jnp.maximum(sigma_min, ends[1]) ** (1.0 / rho)
    ratios = (high + ramp * (low - high)) ** rho
    times = jnp.minimum(schedule.time_of(ratios), 1.0)
    return jnp.concatenate([times, jnp.zeros((1,), times.dtype)])


def shifted(num_steps: int, shift: Scalar = 3.0) -> Array:
    """Uniform times moved towards noise, shift t / (1 + (shift - 1) t) (Esser et al. 2024, arXiv:2403.03206)."""
    t = uniform(num_steps)
    return shift * t / (1.0 + (shift - 1.0) * t)


def trailing(num_steps: int, num_train_steps: int = 1000) -> Array:
    """The training steps n, n - n/k, ... of a discrete model as times in (0, 1], then 0.

    "Trailing" spacing always contains the last training step (Lin et al. 2023, arXiv:2305.08891, Table 2).

    Raises:
        ValueError: if there are more sampling than training steps.
    """
    if _count(num_steps) > num_train_steps:
        raise ValueError(f"num_steps must be at most num_train_steps={num_train_steps}, got {num_steps}.")
    steps = np.round(np.arange(num_train_steps, 0, -num_train_steps / num_steps))[:num_steps]
    return jnp.asarray(np.append(steps / num_train_steps, 0.0), jnp.result_type(float))


def check_schedule(part: Any, steps: Step, tolerance: float = 1e-3) -> Array:
    """Refuse a grid whose (alpha, sigma) are not those that a model, a value or a whole sampler was made for.

    Every part that carries a schedule is asked for the coefficients of the grid's first, middle and last row; a
    `models.Reschedule` answers for the model inside it, and a sampler that holds a grid of its own is compared with
    that one.

    Args:
        part: a sampler, or any part of one.
        steps: the rows of a grid.
        tolerance: of alpha and sigma, relative to sqrt(alpha^2 + sigma^2).

    Returns:
        Whether a schedule disagrees whose values cannot be read yet, under `jax.jit`, []; `run` sets
        `Status.WRONG_GRID` there.

    Raises:
        ValueError: if a schedule whose values can be read disagrees with the grid.

    Example:
        >>> import ntrk_jax as nk
        >>> model = nk.models.FlaxDenoiser(lambda w, x, t: w * x, "x0", 1.0, nk.schedules.VPCosine())
        >>> check_schedule(model, nk.grid(nk.schedules.VPLinear(), nk.grids.uniform(4)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: FlaxDenoiser was made for schedules.VPCosine(), but at t = 0.5 the grid has alpha = 0.28118, ...
    """
    steps = part.grid if isinstance(getattr(part, "grid", None), Step) else steps
    rows = np.array(sorted({0, steps.num_steps // 2, steps.num_steps - 1}))
    t, alpha, sigma = (
        np.asarray(a)[rows] if is_concrete(a) else a[rows] for a in (steps.t, steps.alpha_t, steps.sigma_t)
    )
    wrong = jnp.zeros((), bool)
    for name, schedule in _schedules(part):
        own = schedule(jnp.asarray(t))
        readable = all(is_concrete(a) for a in (*own, alpha, sigma))
        xp = np if readable else jnp
        own_alpha, own_sigma = (xp.broadcast_to(xp.asarray(a), t.shape) for a in own)
        off = xp.hypot(own_alpha - alpha, own_sigma - sigma) / xp.hypot(alpha, sigma)
        if not readable:
            wrong = wrong | (jnp.max(off) > tolerance)
        elif off.max() > tolerance:
            worst = int(off.argmax())
            raise ValueError(
                f"{name} was made for {schedule!r}, but at t = {t[worst]:g} the grid has alpha = {alpha[worst]:.5g}, "
                f"sigma = {sigma[worst]:.5g} and not {own_alpha[worst]:.5g}, {own_sigma[worst]:.5g}; make the grid "
                "from the same schedule, or wrap the model in nk.models.Reschedule(model, trained_on, sampled_on)."
            )
    return wrong


def refuse_blind(part: Any, steps: Step) -> Array:
    """Refuse a grid that starts where alpha = 0 for a network that predicts eps or the score.

    There they say nothing of x0, which shows their errors 1 / alpha times as large.

    Args:
        part: a sampler, or any part of one. steps: the rows of a grid.

    Returns:
        Whether that is so where it cannot be read yet, under `jax.jit`, [].

    Raises:
        ValueError: if it is, and can be read.
    """
    steps = part.grid if isinstance(getattr(part, "grid", None), Step) else steps
    kinds, wrong = sorted(set(_kinds(part)) & set(_NOISE)), jnp.zeros((), bool)
    if kinds and is_concrete(steps.alpha_t):
        if np.asarray(steps.alpha_t)[0] < _NOTHING:
            raise ValueError(
                f"a network that predicts {kinds[0]} says nothing of x0 where alpha = 0; start the grid at less noise, "
                "such as nk.grids.uniform(num_steps, start=0.98), or train one that predicts v."
            )
    elif kinds:
        wrong = steps.alpha_t[0] < _NOTHING
    return wrong


def usual(model: Any, schedule: Schedule, num_steps: int) -> Step:
    """The rows of a uniform grid from pure noise, or from where `noisiest` says; on `EDM` those of `karras`."""
    if isinstance(schedule, EDM):  # equal steps of its noise level are nearly all spent far from the data
        return grid(schedule, karras(schedule, num_steps))
    return grid(schedule, uniform(num_steps, start=noisiest(model, schedule)))


def noisiest(model: Any, schedule: Schedule) -> float:
    """When a model is first asked: at 1, or at 0.98 a network of eps or the score whose schedule ends at alpha = 0."""
    with jax.ensure_compile_time_eval():
        least = schedule(jnp.ones(()))[0]
    nothing = not is_concrete(least) or float(least) < _NOTHING
    return 0.98 if nothing and set(_kinds(model)) & set(_NOISE) else 1.0


def _kinds(part: Any) -> Iterator[str]:
    """What the networks among a part and the parts inside it predict, where they may be asked at any noise."""
    if hasattr(part, "sampled_on"):
        with jax.ensure_compile_time_eval():
            least = part.trained_on(jnp.ones(()))[0]
        if not is_concrete(least) or float(least) >= _NOTHING:
            return
    if isinstance(part, (tuple, list)):
        for item in part:
            yield from _kinds(item)
    if not dataclasses.is_dataclass(part):
        return
    kind = getattr(part, "kind", None)
    if isinstance(kind, str) and hasattr(part, "schedule"):
        yield kind
    for field in dataclasses.fields(part):
        yield from _kinds(getattr(part, field.name))


def _schedules(part: Any) -> Iterator[tuple[str, Any]]:
    """The schedules that a part and the parts inside it carry, with the names of their owners."""
    if isinstance(part, (tuple, list)):
        for item in part:
            yield from _schedules(item)
    if not dataclasses.is_dataclass(part) or hasattr(part, "time_of"):
        return
    other_axis = hasattr(part, "sampled_on")
    schedule = part.sampled_on if other_axis else getattr(part, "schedule", None)  # type: ignore[attr-defined]
    if hasattr(schedule, "time_of"):
        yield type(part).__name__, schedule
    for field in dataclasses.fields(part):
        if not other_axis:
            yield from _schedules(getattr(part, field.name))
