r"""The confidence sets of one domain: values, tile means, tile energies, total mean and total energy.

With the entries y [N] in tiling order, M tiles of D and an interval of probability `confidence` for every statistic:

- values: the two-level order-statistic set of y as M rows of D;
- tile means: m_i sqrt(D), M standard normal numbers, a two-level set with rows of about 16;
- tile energies: sqrt(2 sum (y - m_i)^2), M numbers sqrt(2 chi2_{D-1}), likewise;
- the mean sqrt(N) m, and the energy sqrt(2 sum (y - m)^2), one interval each.

Each is met by moving y as little as possible: to the clipped order statistics, by a shift, by a scale.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.typing import Array, Scalar
from ntrk_jax.whitening import domains
from ntrk_jax.whitening.order_statistics import Bounds, bounds, clip_sorted, rows_for

__all__ = ["NUM_SETS", "Tables", "project_domain", "tables_for"]

_ROW_OF_STATISTICS = 16
NUM_SETS = 5
"""Values, tile means, tile energies, mean, energy."""


class Tables(NamedTuple):
    """What one domain needs: its tiling order [N], its inverse [N], and the bounds of its statistics.

    `tiles` and `total` hold the bounds of means and energies one behind the other, [2, ...], to be sorted together.
    """

    order: Any
    place: Any
    values: Bounds
    tiles: Bounds
    total: Bounds


@lru_cache(maxsize=64)
def tables_for(name: str, shape: tuple[int, ...], confidence: float, size: int) -> Tables:
    """The tables of a domain for a shape, made once on the host."""
    n = int(np.prod(shape, dtype=np.int64))
    alpha = float(1.0 - confidence)
    order = domains.order(name, shape, size)
    place = np.empty_like(order)
    place[order] = np.arange(n, dtype=np.int32)
    m, d = rows_for(n, size)
    return Tables(
        order,
        place,
        bounds(n, size, alpha),
        _both(m, d, alpha),
        _both(1, n, alpha),
    )


def _both(m: int, d: int, alpha: float) -> Bounds:
    """The bounds of the means and of the energies of m tiles of d, [2, ...]."""
    pair = (bounds(m, _ROW_OF_STATISTICS, alpha, dof) for dof in (0, max(d - 1, 1)))
    return Bounds(*map(np.stack, zip(*pair, strict=True)))


def _shift_and_scale(rows: Array, table: Bounds, relax: float, beyond: Scalar) -> tuple[Array, Array]:
    """Clip the means and energies of rows [m, d]: the moved rows and the largest violation."""
    d = rows.shape[1]
    root = float(np.sqrt(d))
    mean = jnp.mean(rows, axis=1)
    rest = rows - mean[:, None]
    clip = jax.vmap(lambda y, sets: clip_sorted(y, sets, relax, beyond))
    if d == 1:
        new, worst = clip(mean[None] * root, Bounds(*(a[:1] for a in table)))
        return (new[0] / root)[:, None], worst[0]
    energy = jnp.sqrt(2.0 * jnp.sum(rest * rest, axis=1))
    (new_mean, new_energy), worst = clip(jnp.stack([mean * root, energy]), table)
    tiny = jnp.asarray(1e-20, rows.dtype)
    gain = jnp.where(energy > tiny, jnp.maximum(new_energy, 0.0) / jnp.maximum(energy, tiny), 1.0)
    return (new_mean / root)[:, None] + rest * gain[:, None], jnp.max(worst)


def project_domain(y: Array, table: Tables, relax: float, beyond: Scalar = 0.0) -> tuple[Array, Array]:
    """One pass over the sets of a domain: y [*shape] -> (moved [*shape], the largest violation of y []).

    What is out goes to its bound, relax - 1 of the way and `beyond` standard deviations further.
    """
    flat = y.reshape(-1)[table.order]
    n = flat.shape[0]
    m, d = table.values.lower.shape
    moved, worst = clip_sorted(flat, table.values, relax, beyond)
    _, worst_tiles = _shift_and_scale(flat[: m * d].reshape(m, d), table.tiles, relax, beyond)
    _, worst_total = _shift_and_scale(flat[None, :], table.total, relax, beyond)
    rows, _ = _shift_and_scale(moved[: m * d].reshape(m, d), table.tiles, relax, beyond)
    moved = jnp.concatenate([rows.reshape(-1), moved[m * d :]]) if m * d < n else rows.reshape(-1)
    moved, _ = _shift_and_scale(moved[None, :], table.total, relax, beyond)
    worst = jnp.maximum(worst, jnp.maximum(worst_tiles, worst_total))
    return moved.reshape(-1)[table.place].reshape(y.shape), worst
