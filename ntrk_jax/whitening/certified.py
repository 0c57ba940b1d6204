r"""A whitening whose output passes the typicality battery, near the sets of `TypicalSet`.

Structured inputs leave `TypicalSet` on the edges of its sets, which shows in statistics that gather many of them.
Starting from its output w, with d the distance of the input from typical and all moves growing continuously with d
from nothing, an attempt

1. moves back towards the input, w + h (u - cos(w, u) w) with u the input at norm sqrt(N) (not the first attempt);
2. clips the sorted numbers to the Kolmogorov-Smirnov interval (`clip_ranks`);
3. lets `polish` bring every smooth statistic within a limit by the shortest moves it can find.

Attempts follow one another, at limits that grow from 2 to 4.2 while more than a fifth of w's cosine to the input is
lost, and on to 4.85 while more than a quarter is, where they go on while more than 0.28 is: low-rank tokens come close
to the bound below by going back and forth. What still fails the battery is mixed with keyed white noise,
sqrt(1 - c) w + sqrt(c) noise, and polished again, with the smallest share c on a short ladder that passes; the last
rung is the noise itself.

Here d = clip((largest |z| of the battery on the input - 5) / 3, 0, 1), so an input that passes the battery and lies in
the sets is returned as it is. What the output meets is the battery: polishing leaves the sets again, by 0.6 standard
deviations for a ramp at (17, 23, 3), so that projecting an output once more moves it a little.

The cosine that can be kept is bounded by the battery itself. Let the input be a pattern w [n, 1] times signs v [1, C],
and let X [n, C] have channels of energy n d_c, sum d_c = C, and correlations r_ij. Its cosine to the input is at most
sqrt(v' G v) / C with G_ij = r_ij sqrt(d_i d_j), hence, by Cauchy and Schwarz and sum_{i<j} d_i d_j <= C (C - 1) / 2,

    cosine^2 <= (1 + (C - 1) sqrt(q / (n - 3/2))) / C,   q = 2 sum_{i<j} (n - 3/2) r_ij^2 / (C (C - 1)),

where the battery holds q below the quantile of |z| = 5 of a chi2 of C (C - 1) / 2 degrees of freedom over that number.
For C = 3 it is 0.69, 0.64 and 0.61 for 16x16, 32x32 and 64x64 places, where `TypicalSet` may keep more than 0.9.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count
from ntrk_jax.tree import derived, is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, Scalar
from ntrk_jax.varying import vary
from ntrk_jax.whitening import battery
from ntrk_jax.whitening.inputs import Prepared, direction, noise_input
from ntrk_jax.whitening.polish import clip_ranks, polish
from ntrk_jax.whitening.typical import TypicalSet

__all__ = ["Certificate", "Certified"]

_PULLS = (
    (1.0, 0.0, 0.85), (1.0, 0.1, 0.85), (0.65, 0.1, 0.85), (0.65, 0.1, 0.85), (0.4, 0.1, 0.82), (0.4, 0.05, 0.82),
    (0.23, 0.1, 0.8), (0.23, 0.05, 0.8), (0.23, 0.03, 0.77), (0.1, 0.05, 0.77), (0.0, 0.05, 0.75), (0.0, 0.03, 0.75),
    *((0.0, pull, 0.72) for _ in range(3) for pull in (0.2, 0.1, 0.05, 0.03)),
)  # fmt: skip
_SHARES = ((0.0, 0.0), (0.0, 0.0), (0.2, 0.1), (0.2, 0.25), (0.2, 0.5), (0.2, 0.75), (0.2, 1.0))
_RUNGS = (*((d, h, 0.0, keep) for d, h, keep in _PULLS), *((d, 0.0, share, 0.0) for d, share in _SHARES))
"""Attempts in order: how strict the limit is (1: |z| <= 2, 0: limit - 0.15), how far to move back to the aim, the share
of noise, and the part of the start's cosine below which the attempt is made though the battery passes."""
_WORTH = 0.15
"""A cosine that is kept so, or one of two standard deviations of that of noise, 2 / sqrt(N), where that is less."""


class Certificate(NamedTuple):
    """A whitened array and what is known of it.

    noise: [*shape]. largest: the largest |z| of the battery, []. share: the share of fresh noise mixed in by the
    fallback, 0 if it was not needed, []. sweeps: moving sweeps of `TypicalSet`, []. status: bit flags, 0 for a clean
    run, [].
    """

    noise: Array
    largest: Array
    share: Array
    sweeps: Array
    status: Array


def _cosine(a: Array, b: Array) -> Array:
    top = jnp.maximum(jnp.max(jnp.abs(b)), 1e-30)
    b = b / top
    return jnp.sum(a * b) * jax.lax.rsqrt(jnp.maximum(jnp.sum(a * a), 1e-30)) * jax.lax.rsqrt(jnp.sum(b * b) + 1e-30)


@pytree
class Certified:
    r"""Move an array to a noise that passes the typicality battery, keeping what it can of its direction.

    The output of `TypicalSet` is polished by short moves until every statistic is within a limit, and mixed with fresh
    noise only if that was not enough. The battery is met (`Certificate.largest` says how well), the sets only about:
    polishing may leave them. An input that meets both is returned as it is, and the moves grow continuously with the
    distance from typical; an output that has left the sets moves a little when projected again.

    Attributes:
        shape: shape of one sample: [d], [H, W, C], [T, H, W, C] or [L, C]; any number of entries N >= 1.
        confidence, tolerance, max_sweeps: as in `TypicalSet`.
        limit: the largest |z| of the battery that counts as typical; 5 lets all but one white noise in 10^3 through.
        max_steps: cap on the number of polishing steps of one attempt.

    Shapes: [*shape] -> [*shape], the dtype kept, computed in float32 or wider.
    Cost per step: model 0; `TypicalSet`, the battery twice and, for an input that is not typical, five to thirty
        gradients of its statistics; hundreds for low-rank tokens.
    Density: a deterministic map given the key.
    Departs from the paper: not of the paper, which stops at the sets of `TypicalSet`.

    Example:
        >>> W = Certified((16, 16, 3))
        >>> W.shape, W.limit
        ((16, 16, 3), 5.0)
    """

    shape: tuple[int, ...] = static()
    confidence: float = static(default=0.9999)
    tolerance: Scalar = 0.01
    max_sweeps: int = static(default=100)
    limit: Scalar = 5.0
    max_steps: int = static(default=60)
    sets: Any = derived()

    def __post_init__(self) -> None:
        """Check the fields and make the tables."""
        if is_concrete(self.limit) and not bool(np.all(np.asarray(self.limit) >= 3)):
            raise ValueError(f"Certified needs limit >= 3, got {self.limit}; white noise itself reaches 4 often.")
        require_count(max_steps=self.max_steps)
        sets = TypicalSet(self.shape, self.confidence, self.tolerance, self.max_sweeps)
        object.__setattr__(self, "shape", sets.shape)
        object.__setattr__(self, "sets", sets)

    def __call__(self, g: Array, key: Key | None = None) -> Array:
        """A direction of any scale, [*shape]: normalised to norm sqrt(N), then projected."""
        return self.detailed(g, key).noise

    def project(self, z: Array, key: Key | None = None) -> Array:
        """A noise, perhaps biased, [*shape]: returned as it is where it meets the sets and the battery, else moved."""
        return self.detailed_project(z, key).noise

    def detailed(self, g: Array, key: Key | None = None) -> Certificate:
        """`W(g)` together with its certificate."""
        self.sets.check(g)
        return _certify(self, direction(g, key), str(jnp.asarray(g).dtype))

    def detailed_project(self, z: Array, key: Key | None = None) -> Certificate:
        """`W.project(z)` together with its certificate."""
        self.sets.check(z)
        return _certify(self, noise_input(z, key), str(jnp.asarray(z).dtype))


class _Climb(NamedTuple):
    """Where the ladder stands: the point, its largest |z|, that of the input, the next rung, the share of noise."""

    x: Array
    largest: Array
    given: Array
    rung: Array
    share: Array


def _climb(whiten: Certified, start: Array, aim: Array, key: Key, dtype: str) -> _Climb:
    """Polish `start`, then try the rungs until the battery passes and most of the cosine to `aim` [*shape] is kept.

    Rung -2 looks at the aim itself and rung -1 at the start, without a move.
    """
    wide = start.dtype
    limit = jnp.asarray(whiten.limit, wide)
    fresh = jax.random.normal(key, start.shape, wide)
    top = jnp.max(jnp.abs(aim))
    unit = aim / jnp.where(top > 0, top, jnp.ones_like(top))
    unit = unit * jax.lax.rsqrt(jnp.mean(unit * unit) + 1e-30)
    depths, pulls, shares, keep = (jnp.asarray(c, wide) for c in zip(*_RUNGS, strict=True))
    had = _cosine(start, unit)
    keep = jnp.where((had > min(_WORTH, 2.0 / float(np.sqrt(aim.size)))) & (keep > 0), keep * had, -1.0)

    def far(now: _Climb) -> Array:
        return jnp.clip((now.given - limit) / 3.0, 0.0, 1.0)

    def go_on(now: _Climb) -> Array:
        poor = _cosine(now.x, unit) < keep[jnp.clip(now.rung, 0, len(_RUNGS) - 1)]
        more = (now.largest > limit) | ((far(now) > 0) & ((now.rung == 0) | poor))
        return (now.rung < 0) | ((now.rung < len(_RUNGS)) & more)

    def body(now: _Climb) -> _Climb:
        rung = jnp.maximum(now.rung, 0)
        bound = limit - 0.15 - far(now) * depths[rung] * (limit - 2.15)
        x = jnp.sqrt(1.0 - shares[rung]) * now.x + jnp.sqrt(shares[rung]) * fresh
        x = x + pulls[rung] * (unit - _cosine(x, unit) * x)
        x = clip_ranks(x, bound - 0.3 * far(now))
        x = polish(x.reshape(x.shape if x.ndim > 1 else (-1, 1)), bound, jnp.where(now.rung < 0, 0, whiten.max_steps))
        x = x.reshape(start.shape)
        x = jnp.where(jnp.isfinite(x), x, fresh)
        x = jnp.where(now.rung >= 0, x, jnp.where(now.rung == -2, aim, start))
        worst = battery.largest(battery.with_channels(x.astype(dtype).astype(wide)))
        return _Climb(x, worst, jnp.where(now.rung == -2, worst, now.given), now.rung + 1, shares[rung])

    zero = jnp.zeros((), wide)
    begin = _Climb(start, zero, zero, jnp.full((), -2, jnp.int32), zero)
    return jax.lax.while_loop(go_on, body, vary(begin, (whiten, start, aim, key)))


@partial(jax.jit, static_argnames="dtype")
def _certify(whiten: Certified, given: Prepared, dtype: str) -> Certificate:
    swept = whiten.sets.finish(given)
    end = _climb(whiten, swept.noise, given.values, given.key, dtype)
    return Certificate(end.x.astype(dtype), end.largest, end.share, swept.sweeps, swept.status)
