"""Closeness of samples to a set of real data: the distance of each to its nearest neighbour there."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntrk_jax.core import root
from ntrk_jax.metrics.distance import widest
from ntrk_jax.typing import Array

__all__ = ["nearest_distance", "nearest_index"]


def nearest_distance(x: Array, reference: Array) -> Array:
    """The Euclidean distance from each sample to its nearest neighbour in a reference set, [n].

    Args:
        x: [n, *shape]. reference: [m, *shape].

    Cost: O(n m N) time, O(m N) memory. Differences are taken before squaring, so that a sample of the reference set
        is at distance exactly 0.

    Raises:
        ValueError: if the shapes of the samples differ or a set is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> nearest_distance(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [9.0, 9.0]])).tolist()
        [5.0]
    """
    return _nearest(x, reference)[0]


def nearest_index(x: Array, reference: Array) -> Array:
    """The index in a reference set of the nearest neighbour of each sample, [n] int32.

    Args:
        x: [n, *shape]. reference: [m, *shape].

    Raises:
        ValueError: if the shapes of the samples differ or a set is empty.
    """
    return _nearest(x, reference)[1]


def _nearest(x: Array, reference: Array) -> tuple[Array, Array]:
    x, reference = jnp.asarray(x), jnp.asarray(reference)
    if min(x.size, reference.size) < 1 or x.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"samples and reference must be [n, *shape] and [m, *shape], got {x.shape} and {reference.shape}."
        )
    dtype = widest(x, reference)
    points, rows = (jnp.asarray(a.reshape(a.shape[0], -1), dtype) for a in (x, reference))

    def one(point: Array) -> tuple[Array, Array]:
        squares = jnp.sum((rows - point[None]) ** 2, axis=-1)
        return root(jnp.min(squares)), jnp.argmin(squares).astype(jnp.int32)

    return jax.lax.map(one, points, batch_size=max(1, min(64, 2**24 // rows.size)))
