r"""A whitening whose output passes the typicality battery, and not only each set of `TypicalSet`.

Structured inputs leave `TypicalSet` on the edges of its sets, which shows in statistics that gather many of them.
Starting from its output w, with `noise` keyed white noise, d the distance of the input from typical and all
moves growing continuously with d from nothing:

1. `polish` brings every statistic within a limit (2 + 3 (1 - d), about) by the shortest moves it can find;
2. while more than 15 % of w's cosine to the input is lost, the point moves back towards the input and is polished
   again, at limits that grow from 2 to 4.85; where the histogram fails (Kolmogorov-Smirnov, which is not smooth),
   its values first move to those of `noise` in the same order;
3. what still fails the battery is mixed with the noise, sqrt(1 - c) w + sqrt(c) noise, and polished again, with the
   smallest share c on a short ladder that passes; the last rung is the noise itself.

Here d = clip((largest |z| of the battery on the input - 5) / 3, 0, 1), so an input that passes the battery and lies in
the sets is returned as it is.

The cosine that can be kept is bounded by the battery itself. Take C channels of n places that agree up to sign, as
(256, 16) does for the pattern w [n, 1] times signs [1, C]: an array with a share e of its energy along them has
correlations r = (C e - 1) / (C - 1) between channels, and the sum of squares of atanh(r) sqrt(n - 2) over the
C (C - 1) / 2 pairs must stay below the chi2 quantile of |z| = 5, which bounds e and the cosine sqrt(e).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.tree import derived, is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, Scalar
from ntrk_jax.whitening import scores
from ntrk_jax.whitening.inputs import Prepared, direction, noise_input
from ntrk_jax.whitening.polish import match_ranks, polish
from ntrk_jax.whitening.typical import TypicalSet

__all__ = ["Certificate", "Certified"]

_PULLS = ((1.0, 0.0), (1.0, 0.2), (1.0, 0.2), (0.65, 0.2), (0.65, 0.2), (0.3, 0.2), (0.3, 0.2), (0.0, 0.2), (0.0, 0.1))
_SHARES = (0.0, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_RUNGS = tuple((depth, pull, 0.0) for depth, pull in _PULLS) + tuple(
    (0.2 * (share > 0), 0.0, share) for share in _SHARES
)
"""Attempts in order: how strict the limit is (1: |z| <= 2), how far to move back to the aim, the share of noise."""
_NUM_PULLS = len(_PULLS)
_KEEP = 0.85
_WORTH = 0.15


class Certificate(NamedTuple):
    """A whitened array and what is known of it.

    noise: [*shape]. largest: the largest |z| of the battery, []. share: the share of fresh noise mixed in by the
    fallback, 0 if it was not needed, []. violation: the largest violation of the sets of `TypicalSet`, in standard
    deviations, []. sweeps: moving sweeps, []. status: bit flags, 0 for a clean run, [].
    """

    noise: Array
    largest: Array
    share: Array
    violation: Array
    sweeps: Array
    status: Array


def _largest(x: Array) -> Array:
    """The largest |z| of the battery; not-a-number counts as infinite."""
    tops = [jnp.max(jnp.abs(z), initial=0.0) for z in scores.battery(scores.with_channels(x)).values()]
    top = jnp.max(jnp.stack(tops))
    return jnp.where(jnp.isnan(top), jnp.inf, top)


def _cosine(a: Array, b: Array) -> Array:
    top = jnp.maximum(jnp.max(jnp.abs(b)), 1e-30)
    b = b / top
    return jnp.sum(a * b) * jax.lax.rsqrt(jnp.maximum(jnp.sum(a * a), 1e-30)) * jax.lax.rsqrt(jnp.sum(b * b) + 1e-30)


@pytree
class Certified:
    r"""Move an array to a noise that passes the typicality battery, keeping what it can of its direction.

    The output of `TypicalSet` is given the histogram of a keyed noise in its own order, then polished by short moves
    until every statistic is within a limit, and mixed with fresh noise only if that was not enough. An input that is
    typical already is returned as it is, and the moves grow continuously with the distance from typical.

    Attributes:
        shape: shape of one sample: [d], [H, W, C], [T, H, W, C] or [L, C]; any number of entries N >= 1.
        confidence, tolerance, max_sweeps: as in `TypicalSet`.
        limit: the largest |z| of the battery that counts as typical; 5 lets all but one white noise in 10^4 through.
        max_steps: cap on the number of polishing steps.

    Shapes: [*shape] -> [*shape], the dtype kept, computed in float32 or wider.
    Cost per step: model 0; `TypicalSet`, the battery twice and, for an input that is not typical, about ten gradients
        of its statistics.
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
        sets = TypicalSet(self.shape, self.confidence, self.tolerance, self.max_sweeps)
        object.__setattr__(self, "shape", sets.shape)
        object.__setattr__(self, "sets", sets)

    def __call__(self, g: Array, key: Key | None = None) -> Array:
        """A direction of any scale, [*shape]: normalised to norm sqrt(N), then projected."""
        return self.detailed(g, key).noise

    def project(self, z: Array, key: Key | None = None) -> Array:
        """A noise, perhaps biased, [*shape]: returned as it is where it is typical, else certified."""
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
    """Where the ladder stands: the point, its largest |z|, the next rung, the share of fresh noise."""

    x: Array
    largest: Array
    rung: Array
    share: Array


def _climb(whiten: Certified, w: Array, aim: Array, far: Array, key: Key) -> _Climb:
    """Polish w, then try the rungs until the battery passes and most of the cosine to `aim` [*shape] is kept."""
    limit = jnp.asarray(whiten.limit, w.dtype)
    fresh = jax.random.normal(key, w.shape, w.dtype)
    top = jnp.max(jnp.abs(aim))
    unit = aim / jnp.where(top > 0, top, jnp.ones_like(top))
    unit = unit * jax.lax.rsqrt(jnp.mean(unit * unit) + 1e-30)
    had = _cosine(w, unit)
    kept = jnp.where(had > _WORTH, _KEEP * had, -1.0)
    depths, pulls, shares = (jnp.asarray(c, w.dtype) for c in zip(*_RUNGS, strict=True))
    needed = far > 0

    def go_on(now: _Climb) -> Array:
        fails = now.largest > limit
        poor = (now.rung < _NUM_PULLS) & (_cosine(now.x, unit) < kept)
        return (now.rung < len(_RUNGS)) & (fails | (needed & ((now.rung == 0) | poor)))

    def body(now: _Climb) -> _Climb:
        x, share = now.x, shares[now.rung]
        x = jnp.sqrt(1.0 - share) * x + jnp.sqrt(share) * fresh
        distance = scores.ks_score(x.reshape(-1))
        weight = jnp.clip(2.0 * (jnp.abs(distance) - limit + 0.7), 0.0, 1.0) * jnp.where(distance > 0, 0.3, 1.0)
        weight = jnp.where(now.rung == 0, 0.0, jnp.where(share > 0, 1.0, weight))
        x = jnp.where(weight > 0, x + weight * (match_ranks(x, fresh) - x), x)
        x = x + pulls[now.rung] * (unit - _cosine(x, unit) * x)
        bound = limit - 0.15 - far * depths[now.rung] * (limit - 2.15)
        full = x if x.ndim > 1 else x[:, None]
        x = polish(full, bound, whiten.max_steps).reshape(x.shape)
        x = jnp.where(jnp.isfinite(x), x, fresh)
        return _Climb(x, _largest(x), now.rung + 1, share)

    return jax.lax.while_loop(go_on, body, _Climb(w, _largest(w), jnp.zeros((), jnp.int32), jnp.zeros((), w.dtype)))


@partial(jax.jit, static_argnames="dtype")
def _certify(whiten: Certified, given: Prepared, dtype: str) -> Certificate:
    limit = jnp.asarray(whiten.limit, given.values.dtype)
    far = jnp.clip((_largest(given.values) - limit) / 3.0, 0.0, 1.0)
    swept = whiten.sets.finish(given)
    end = _climb(whiten, swept.noise, given.values, far, given.key)
    out = end.x.astype(dtype)
    wide = out.astype(given.values.dtype)
    return Certificate(out, _largest(wide), end.share, whiten.sets.violation(wide), swept.sweeps, swept.status)
