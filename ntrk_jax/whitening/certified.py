r"""A whitening whose output passes the typicality battery, and not only each set of `TypicalSet`.

Structured inputs leave `TypicalSet` on the edges of its sets, which shows in statistics that gather many of them.
Starting from its output w, with `noise` keyed white noise, d the distance of the input from typical and all
moves growing continuously with d from nothing:

1. the values of w move towards those of `noise` in the order of w, which makes their histogram a typical one;
2. `polish` brings every statistic within a limit, by the shortest moves it can find;
3. what still fails the battery is mixed with fresh noise, sqrt(1 - c) w + sqrt(c) noise, and polished again, with
   the smallest share c on a short ladder that passes; the last rung is the noise itself.

Here d = clip((largest |z| of the battery on the input - 5) / 3, 0, 1), so an input that passes the battery and lies in
the sets is returned as it is.
"""

from __future__ import annotations

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

_RUNGS = ((1.0, 0.0), (1.0, 0.2), (1.0, 0.2), (0.65, 0.2), (0.65, 0.2), (0.3, 0.2), (0.3, 0.2), (0.0, 0.2), (0.0, 0.1))
_KEEP = 0.85
_WORTH = 0.15
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


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
        >>> import jax
        >>> W = Certified((16, 16, 3))
        >>> stripes = jax.numpy.zeros((16, 16, 3)).at[::4].set(1.0)
        >>> bool(W.detailed(stripes).largest < 5)
        True
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
        return self._certify(direction(g, key), jnp.asarray(g).dtype)

    def detailed_project(self, z: Array, key: Key | None = None) -> Certificate:
        """`W.project(z)` together with its certificate."""
        self.sets.check(z)
        return self._certify(noise_input(z, key), jnp.asarray(z).dtype)

    def _certify(self, given: Prepared, dtype: Any) -> Certificate:
        limit = jnp.asarray(self.limit, given.values.dtype)
        values_key, fresh_key = jax.random.split(given.key)
        far = jnp.clip((_largest(given.values) - limit) / 3.0, 0.0, 1.0)
        swept = self.sets.finish(given)
        x = swept.noise
        x = self._soften(swept.noise, given.values, far, values_key)
        x, share = self._mix(x, fresh_key, limit)
        same = jnp.all(x == given.values)
        x = x.astype(dtype)
        wide = x.astype(given.values.dtype)
        moved = jnp.where(same, swept.violation, self.sets.violation(wide))
        return Certificate(x, _largest(wide), share, moved, swept.sweeps, swept.status)

    def _soften(self, w: Array, aim: Array, far: Array, key: Key) -> Array:
        """Polish w, as strictly as keeps most of its cosine to `aim` [*shape]."""
        limit = jnp.asarray(self.limit, w.dtype)
        histogram = jax.random.normal(key, w.shape, w.dtype)
        had = _cosine(w, aim)
        kept = jnp.where(had > _WORTH, _KEEP * had, -1.0)
        top = jnp.max(jnp.abs(aim))
        unit = aim / jnp.where(top > 0, top, jnp.ones_like(top))
        unit = unit * jax.lax.rsqrt(jnp.mean(unit * unit) + 1e-30)
        depths, pulls = (jnp.asarray(c, w.dtype) for c in zip(*_RUNGS, strict=True))
        start_anew = (far > 0) | (_largest(w) > limit)

        def go_on(carry: tuple[Array, Array]) -> Array:
            x, rung = carry
            return start_anew & ((rung == 0) | ((rung < len(_RUNGS)) & (_cosine(x, aim) < kept)))

        def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, rung = carry
            bound = limit - 0.15 - far * depths[rung] * (limit - 2.15)
            x = self._polish(x + pulls[rung] * (unit - _cosine(x, aim) * x), bound, jnp.array(True))
            regular = jnp.abs(scores.ks_score(x.reshape(-1)))
            weight = jnp.clip(2.0 * (regular - limit + 0.7), 0.0, 1.0)
            x = jnp.where(weight > 0, x + weight * (match_ranks(x, histogram) - x), x)
            return self._polish(x, bound, weight > 0), rung + 1

        return jax.lax.while_loop(go_on, body, (w, jnp.zeros((), jnp.int32)))[0]

    def _polish(self, x: Array, limit: Array, active: Array) -> Array:
        full = x if x.ndim > 1 else x[:, None]
        return polish(full, limit, self.max_steps, active).reshape(x.shape)

    def _mix(self, x: Array, key: Key, limit: Array) -> tuple[Array, Array]:
        """Climb the ladder of shares of fresh noise until the battery passes: (point, share)."""
        fresh = jax.random.normal(key, x.shape, x.dtype)
        shares = jnp.asarray(_SHARES, x.dtype)

        def go_on(carry: tuple[Array, Array, Array, Array]) -> Array:
            return (carry[1] > limit) & (carry[2] < len(_SHARES))

        def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            _, _, rung, _ = carry
            share = shares[rung]
            mixed = jnp.sqrt(1.0 - share) * x + jnp.sqrt(share) * fresh
            mixed = jnp.where(jnp.isfinite(mixed), mixed, fresh)
            mixed = self._polish(match_ranks(mixed, fresh), limit - 0.5, jnp.array(True))
            return mixed, _largest(mixed), rung + 1, share

        start = (x, _largest(x), jnp.zeros((), jnp.int32), jnp.zeros((), x.dtype))
        end = jax.lax.while_loop(go_on, body, start)
        return end[0], end[3]
