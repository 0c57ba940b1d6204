"""The shape vocabulary.

Functions and methods act on one sample; `jax.vmap` makes batches. `[*shape]` is the shape of one sample
(`[d]` for a vector, `[H, W, C]` for an image, `[T, H, W, C]` for a video, `[L, C]` for tokens), `N` the number
of its entries, `[]` a scalar, `[num_steps]` one entry a row of the grid.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax

__all__ = ["Array", "Key", "PyTree", "Sample", "Scalar"]

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
"""A typed key, `jax.random.key(seed)`."""
Sample: TypeAlias = jax.Array
"""One sample, [*shape]."""
Scalar: TypeAlias = Any
"""A Python number or a [] array."""
PyTree: TypeAlias = Any
