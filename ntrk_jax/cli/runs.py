"""Samples by number: sample i of a seed is the same, whatever else is drawn with it.

Sample i uses fold_in(key(seed), i) alone. Chunks of a fixed size are one compiled program; the last chunk is filled
up, never compiled anew; between chunks the host reports progress.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.batch.draw import Drawn, draw_one

__all__ = ["Drawn", "draw_one", "draw_samples"]


def draw_samples(
    sampler: Any, seed: int, steps: Any, shape: tuple[int, ...], num: int, *, start: int = 0, batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Drawn:  # fmt: skip
    """Samples start .. start + num of a seed, as arrays on the host.

    Args:
        sampler: any sampler of the catalogue.
        seed: names the family. steps: the rows of a grid. shape: of one sample.
        num: how many samples. start: the number of the first one.
        batch: samples a chunk; memory grows with it, the samples do not depend on it.
        progress: called with the number of samples done after each chunk.
    """
    size = min(batch, num)
    key, parts = jax.random.key(seed), []
    for first in range(0, num, size):
        out = _chunk(sampler, key, jnp.uint32(start + first), steps, shape, size)
        parts.append(jax.tree.map(np.asarray, out))
        if progress is not None:
            progress(min(first + size, num))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:num], *parts)


@partial(jax.jit, static_argnames=("shape", "size"))
def _chunk(sampler: Any, key: jax.Array, first: jax.Array, steps: Any, shape: tuple[int, ...], size: int) -> Drawn:
    indices = first + jnp.arange(size, dtype=jnp.uint32)
    return jax.vmap(lambda i: draw_one(sampler, key, i, steps, shape)[0])(indices)
