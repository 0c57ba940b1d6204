r"""Two-level order-statistic sets: what the sorted rows of white noise look like.

Write N = M D numbers as M rows of D. Sort each row, then each column; Z[r, j] is the r-th smallest, over the rows,
of the j-th smallest entries. For independent uniforms the j-th smallest of D is Beta(j, D + 1 - j); its own CDF value
is uniform, and the r-th smallest of M of those is Beta(r, M + 1 - r). So *exactly*, for white noise,

    Z[r, j] = Phi^-1( B_j^-1( B ) ),   B ~ Beta(r, M + 1 - r),   B_j^-1 the quantile function of Beta(j, D + 1 - j),

and the interval that holds Z[r, j] with probability 1 - a is

    lower[r, j] = Phi^-1( B_j^-1( Beta^-1(a / 2; r, M + 1 - r) ) ),   upper[r, j] = -lower[M + 1 - r, D + 1 - j].

The tables are made on the host in float64. Numbers whose law is not normal (tile energies) enter through their own
quantile function in place of Phi^-1, which leaves the ordering and hence the set unchanged.
When rows of D do not fill N, the few numbers left over form one row of their own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.typing import Array, Scalar
from ntrk_jax.whitening.sorting import sort_with_places

__all__ = ["Bounds", "bounds", "clip_sorted", "quantile_levels", "rows_for"]


class Bounds(NamedTuple):
    """lower, upper: [M, D]; lower_rest, upper_rest: [N - M D], for the numbers that fill no row."""

    lower: Any
    upper: Any
    lower_rest: Any
    upper_rest: Any


def rows_for(n: int, wanted: int) -> tuple[int, int]:
    """(M, D) with D near `wanted` such that as few as possible of n numbers are left over.

    Example:
        >>> rows_for(4096, 64), rows_for(273, 16), rows_for(13, 16)
        ((64, 64), (21, 13), (1, 13))
    """
    if n <= wanted or n < 16:
        return 1, n
    near = range(max(2, int(wanted / 1.5)), int(wanted * 1.5) + 1)
    best = min(near, key=lambda d: (n % d, abs(np.log(d / wanted))))
    return n // best, best


@lru_cache(maxsize=64)
def quantile_levels(m: int, d: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The nested Beta levels of `lower` and `upper`, [m, d] float64 each, as (level, 1 - level of upper)."""
    from scipy.special import betaincinv

    r = np.arange(1, m + 1, dtype=np.float64)[:, None]
    j = np.arange(1, d + 1, dtype=np.float64)[None, :]
    outer = betaincinv(r, m + 1 - r, alpha / 2)
    level = betaincinv(j, d + 1 - j, outer)
    return level, level[::-1, ::-1]


@lru_cache(maxsize=64)
def bounds(n: int, wanted: int, alpha: float, chi_dof: int = 0) -> Bounds:
    """Bounds for n white numbers in rows of about `wanted`; with chi_dof > 0, for sqrt(2 chi2_dof) instead.

    sqrt(2 chi2) has a standard deviation close to 1, so that violations of both kinds are in the same units.
    """
    m, d = rows_for(n, wanted)
    rest = n - m * d

    def table(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        if columns == 0:
            return np.zeros((0,), np.float32), np.zeros((0,), np.float32)
        low, high_tail = quantile_levels(rows, columns, alpha)
        return _transform(low, high_tail, chi_dof)

    lower, upper = table(m, d)
    lower_rest, upper_rest = table(1, rest)
    return Bounds(lower, upper, lower_rest.reshape(-1), upper_rest.reshape(-1))


def _transform(low: np.ndarray, high_tail: np.ndarray, chi_dof: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.special import chdtri, gammaincinv, ndtri

    if chi_dof == 0:
        return ndtri(low).astype(np.float32), (-ndtri(high_tail)).astype(np.float32)
    lower = np.sqrt(4.0 * gammaincinv(chi_dof / 2.0, low))
    upper = np.sqrt(2.0 * chdtri(chi_dof, high_tail))
    return lower.astype(np.float32), upper.astype(np.float32)


def _sorted(y: Array, where: Array, table: Bounds) -> tuple[Array, Array, Array, Array]:
    """Row sort, then column sort, carrying the place of each number along."""
    m, d = table.lower.shape
    grid = (y[: m * d].reshape(m, d), where[: m * d].reshape(m, d))
    grid = sort_with_places(*grid, axis=1)
    if m > 1:
        grid = sort_with_places(*grid, axis=0)
    rest = (y[m * d :], where[m * d :])
    if rest[0].shape[0] > 1:
        rest = sort_with_places(*rest, axis=0)
    return grid[0], grid[1], rest[0], rest[1]


def _clip(z: Array, lower: Array, upper: Array, relax: float, beyond: Scalar) -> tuple[Array, Array]:
    """(z moved to its bounds, relax - 1 of the way and `beyond` further, to the middle at most; how far z was out).

    Going on from the bound, and not back from z, keeps all digits of the bound where z is far out.
    """
    lower, upper = lower.astype(z.dtype), upper.astype(z.dtype)
    bound = jnp.clip(z, lower, upper)
    excess = z - bound
    further = jnp.minimum(jnp.asarray(beyond, z.dtype), 0.5 * (upper - lower))
    return bound - (relax - 1.0) * excess - further * jnp.sign(excess), excess


def clip_sorted(y: Array, table: Bounds, relax: float = 1.0, beyond: Scalar = 0.0) -> tuple[Array, Array]:
    """Sort, clip, unsort: ([n] moved towards the set, the largest violation of y []).

    Args:
        y: the numbers, [n], row after row.
        table: their bounds.
        relax: how far to go, 1 to the bound itself; up to 2 (the mirror image) makes repeated sweeps faster.
        beyond: how much further, [], in the units of y.
    """
    if y.shape[0] == 1:
        moved, excess = _clip(y, table.lower[0], table.upper[0], relax, beyond)
        return moved, jnp.abs(excess[0])
    places = jax.lax.iota(jnp.int32, y.shape[0])
    z, where, rest, where_rest = _sorted(y, places, table)
    z, excess = _clip(z, table.lower, table.upper, relax, beyond)
    rest, excess_rest = _clip(rest, table.lower_rest, table.upper_rest, relax, beyond)
    moved = y.at[where.reshape(-1)].set(z.reshape(-1), unique_indices=True)
    largest = jnp.max(jnp.abs(excess))
    if rest.shape[0]:
        moved = moved.at[where_rest].set(rest, unique_indices=True)
        largest = jnp.maximum(largest, jnp.max(jnp.abs(excess_rest)))
    return moved, largest
