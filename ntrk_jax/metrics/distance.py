r"""Distances between samples, and between samples and a law.

The sliced Wasserstein distance averages one-dimensional ones over directions u on the unit sphere,

    SW_p(x, y)^p = E_u W_p(u.x, u.y)^p,    W_p(a, b)^p = integral over q in (0, 1) of |A^-1(q) - B^-1(q)|^p,

with A^-1 and B^-1 the empirical quantile functions; for samples of unequal number the integral is taken exactly over
the union of their steps. Two finite samples of the *same* law lie a positive distance apart: `two_sample_floor` says
how far, and no sampler can be expected below it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count
from ntrk_jax.core import algebra_dtype, fused, root
from ntrk_jax.tree import is_concrete
from ntrk_jax.typing import Array, Key, Scalar

__all__ = ["mmd", "mode_mass", "mode_total_variation", "sliced_wasserstein", "two_sample_floor"]

_FEW = 32
"""Up to how many entries `mmd` takes differences; a product of matrices is faster for more."""


def sliced_wasserstein(key: Key, x: Array, y: Array, *, num_projections: int = 128, order: float = 2.0) -> Array:
    """The sliced Wasserstein distance between two sets of samples, [].

    Args:
        key: of the directions; use the same key to compare distances.
        x, y: [n, *shape] and [m, *shape], flattened to vectors; n and m may differ.
        num_projections: the number of directions. order: p, at least 1 and finite.

    Cost: O(num_projections (d (n + m) + n log n + m log m)).

    Raises:
        ValueError: if the samples are empty or of different shapes, or the order is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.arange(4.0).reshape(4, 1)
        >>> round(float(sliced_wasserstein(jax.random.key(0), x, x + 2.0)), 5)
        2.0
    """
    x, y = _pair(x, y)
    require_count(num_projections=num_projections)
    if not 1 <= order < np.inf:
        raise ValueError(f"order must be at least 1 and finite, got {order}.")
    return _sliced(key, x, y, num_projections, float(order))


@partial(fused, static_argnums=(3, 4))
def _sliced(key: Key, x: Array, y: Array, num_projections: int, order: float) -> Array:
    directions = jax.random.normal(key, (num_projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    left, right, widths = _coupling(x.shape[0], y.shape[0])

    def along(direction: Array) -> Array:
        a = jnp.sort(jnp.matmul(x, direction, precision="highest"))[left]
        b = jnp.sort(jnp.matmul(y, direction, precision="highest"))[right]
        return _power_mean(jnp.abs(a - b), jnp.asarray(widths, x.dtype), order)

    return _power_mean(jax.lax.map(along, directions), jnp.full((num_projections,), 1.0 / num_projections), order)


def _power_mean(values: Array, weights: Array, order: float) -> Array:
    """(sum_i w_i v_i^order)^(1 / order) for v >= 0, at any scale and order."""
    top = jax.lax.stop_gradient(jnp.max(values))
    top = jnp.where((top > 0) & jnp.isfinite(top), top, jnp.ones_like(top))
    mean = jnp.sum(weights.astype(values.dtype) * (values / top) ** order)
    equal = mean == 0  # the derivative at 0 is 0 and not infinite
    return jnp.where(equal, 0.0, top * jnp.where(equal, 1.0, mean) ** (1.0 / order))


def mmd(x: Array, y: Array, *, bandwidth: Scalar | None = None) -> Array:
    """The maximum mean discrepancy between two sets of samples, squared and unbiased (it may be negative), [].

    The kernel is the mean of three Gaussian kernels whose widths are half, one and two times `bandwidth`.

    Args:
        x, y: [n, *shape] and [m, *shape], at least two of each, flattened to vectors.
        bandwidth: [], positive, in the units of the samples; None takes the root mean square distance between the
            pooled samples, divided by sqrt(2). Give one to compare several samples with each other.

    Cost: O((n + m)^2 d) time, O(256 (n + m)) memory.

    Raises:
        ValueError: if there are fewer than two samples, the shapes differ or the bandwidth is not positive.

    References:
        Gretton et al., "A Kernel Two-Sample Test", 2012, JMLR 13, Eq. 3.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(4.0).reshape(4, 1)
        >>> bool(mmd(x, x + 9.0) > 0.5)
        True
    """
    x, y = _pair(x, y)
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"mmd needs at least two samples of each kind, got {n} and {m}.")
    if is_concrete(bandwidth) and bandwidth is not None and not np.all(np.asarray(bandwidth) > 0):
        raise ValueError(f"bandwidth must be positive, got {bandwidth}.")
    return _mmd(x, y, bandwidth)


@fused
def _mmd(x: Array, y: Array, bandwidth: Scalar | None) -> Array:
    n, m, pooled = x.shape[0], y.shape[0], jnp.concatenate([x, y])
    if bandwidth is None:
        spread = root(jnp.sum(jnp.var(pooled, axis=0)))
        bandwidth = jnp.where(spread == 0, jnp.ones_like(spread), spread)
    x, y = x - jnp.mean(pooled, axis=0)[None], y - jnp.mean(pooled, axis=0)[None]
    scales = jnp.asarray([0.5, 1.0, 2.0], x.dtype) * jnp.asarray(bandwidth, x.dtype)

    def total(a: Array, b: Array) -> Array:
        def row(one: Array) -> Array:
            if b.shape[1] <= _FEW:  # |a|^2 + |b|^2 - 2 ab loses the digits of what lies far out
                square = jnp.sum(jnp.square(b - one[None]), -1)
            else:
                cross = jnp.matmul(b, one, precision="highest")
                square = jnp.maximum(jnp.sum(b**2, -1) + jnp.sum(one**2) - 2.0 * cross, 0.0)
            return jnp.sum(jnp.exp(-0.5 * square[:, None] / scales[None] ** 2)) / 3.0

        return jnp.sum(jax.lax.map(row, a, batch_size=256))

    within = (total(x, x) - n) / (n * (n - 1)) + (total(y, y) - m) / (m * (m - 1))
    return within - 2.0 * total(x, y) / (n * m)


def mode_mass(x: Array, mixture: Any) -> Array:
    """How much of a set of samples belongs to each component of a mixture, [K], summing to one.

    Each sample is shared among the components in the proportions of the law, so that the expected mass of exact
    samples is the weight of the component also where components overlap.

    Args:
        x: [n, *shape]. mixture: a `targets.GaussianMixture`.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntrk_jax import targets
        >>> two = targets.GaussianMixture(jnp.array([0.5, 0.5]), jnp.array([[-9.0], [9.0]]), jnp.ones((2, 1, 1)))
        >>> mode_mass(jnp.array([[9.0], [8.0], [9.5], [-9.0]]), two).tolist()
        [0.25, 0.75]
    """
    shares = jax.vmap(lambda one: jnp.exp(mixture.condition(one, 1.0, 0.0).log_weights))(jnp.asarray(x))
    return jnp.mean(shares, axis=0)


def mode_total_variation(x: Array, mixture: Any) -> Array:
    """The total variation distance between the mode masses of samples and the weights of a mixture, in [0, 1].

    Args:
        x: [n, *shape]. mixture: a `targets.GaussianMixture`.
    """
    mass = mode_mass(x, mixture)
    return 0.5 * jnp.sum(jnp.abs(mass - mixture.weights.astype(mass.dtype)))


def two_sample_floor(
    key: Key, target: Any, num: int, *, num_repeats: int = 4, num_projections: int = 128, order: float = 2.0
) -> Array:
    """The mean sliced Wasserstein distance between two independent exact samples of `num` each, [].

    Args:
        key: of the draws and directions.
        target: a law with `sample(key, num)`.
        num: the number of samples on either side, as in the comparison the floor is for.
        num_repeats: pairs averaged, at least one. num_projections, order: as in `sliced_wasserstein`.

    Raises:
        ValueError: if there is nothing to average, or as `sliced_wasserstein`.
    """
    require_count(num=num, num_repeats=num_repeats)

    def once(one: Key) -> Array:
        first, second, directions = jax.random.split(one, 3)
        pair = target.sample(first, num), target.sample(second, num)
        return sliced_wasserstein(directions, *pair, num_projections=num_projections, order=order)

    return jnp.mean(jax.lax.map(once, jax.random.split(key, num_repeats)))


def _pair(x: Array, y: Array) -> tuple[Array, Array]:
    """Two sets of samples as [n, d] and [m, d] in one dtype."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if min(x.ndim, y.ndim) < 1 or min(x.size, y.size) < 1 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"two sets of samples must be [n, *shape] and [m, *shape] with n, m >= 1, got {x.shape} and {y.shape}."
        )
    dtype = widest(x, y)
    return tuple(jnp.asarray(a.reshape(a.shape[0], -1), dtype) for a in (x, y))  # type: ignore[return-value]


def widest(x: Array, y: Array) -> Any:
    """The dtype that two sets of samples are compared in: at least float32, the widest for whole numbers."""
    return jnp.promote_types(*(_kind(a) for a in (x, y)))


def _kind(x: Array) -> Any:
    return algebra_dtype(x) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)


def _coupling(n: int, m: int) -> tuple[Any, Any, np.ndarray]:
    """Which order statistics meet on each interval of the union of the steps i/n and j/m, and its width."""
    if n == m:
        return np.arange(n), np.arange(n), np.full(n, 1.0 / n)
    ends = np.union1d(np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)
