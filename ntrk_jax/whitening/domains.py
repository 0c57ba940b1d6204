r"""Orthogonal domains in which white noise must look white, and the order in which their entries are tiled.

- value: no transform; tiles are blocks of neighbouring pixels of one channel. Shows concentration in space, outliers.
- spectrum: the Hartley transform over space, the real form of the DFT and its own inverse; tiles are rings of
  frequencies. Shows smoothness and waves.
- walsh: Walsh-Hadamard over the power of two in each axis, DCT over the odd factor; incoherent with both others. Shows
  blocks and edges.
- channels: DCT across the channels, tiled as value. Shows channels that agree.

Each transform takes and returns [*shape], is orthogonal, and works for every shape.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import jax.scipy.fft
import numpy as np

from ntrk_jax.typing import Array

__all__ = [
    "DOMAINS", "blocks_order", "domain_names", "forward", "hartley", "has_channels", "inverse", "order", "radius",
    "rings_order", "spatial_axes", "tile_size", "walsh",
]  # fmt: skip

DOMAINS = ("value", "spectrum", "walsh", "channels")


def has_channels(shape: tuple[int, ...]) -> bool:
    """Whether the last axis is a channel axis with more than one channel."""
    return len(shape) > 1 and shape[-1] > 1


def spatial_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """All axes but the last, which holds channels; of a vector, its only axis."""
    return tuple(range(len(shape) - 1)) if len(shape) > 1 else tuple(range(len(shape)))


def domain_names(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The domains that say something about this shape."""
    n = int(np.prod(shape, dtype=np.int64))
    if n < 4:
        return ("value",)
    return DOMAINS if has_channels(shape) else DOMAINS[:3]


def tile_size(n: int) -> int:
    """How many neighbours make a tile: about sqrt(N), at most 64."""
    return int(min(64, max(4, 2 ** round(np.log2(max(n, 1)) / 2))))


def hartley(x: Array, axes: tuple[int, ...]) -> Array:
    """The orthonormal Hartley transform Re F - Im F over some axes; its own inverse."""
    f = jnp.fft.fftn(x, axes=axes, norm="ortho")
    return jnp.real(f) - jnp.imag(f)


@lru_cache(maxsize=16)
def _hadamard(n: int) -> np.ndarray:
    h = np.ones((1, 1))
    while h.shape[0] < n:
        h = np.block([[h, h], [h, -h]])
    return (h / np.sqrt(n)).astype(np.float32)


def _along(x: Array, axis: int, backward: bool) -> Array:
    """Walsh-Hadamard over the power of two in one axis and the DCT (or its inverse) over the odd factor."""
    n = x.shape[axis]
    power = n & -n
    y = jnp.moveaxis(x, axis, -1)
    shape = y.shape
    if power < n:
        dct = jax.scipy.fft.idct if backward else jax.scipy.fft.dct
        y = dct(y.reshape(*shape[:-1], power, n // power), norm="ortho").astype(x.dtype)
    done = y.size // n
    while power > 1:
        size = min(64, power)
        power //= size
        matrix = jnp.asarray(_hadamard(size), x.dtype)
        y = jnp.einsum("ij,bjk->bik", matrix, y.reshape(done, size, -1), precision="highest")
        done *= size
    return jnp.moveaxis(y.reshape(shape), -1, axis)


def walsh(x: Array, axes: tuple[int, ...], backward: bool = False) -> Array:
    """Walsh-Hadamard (power of two) times DCT (odd factor) along each axis, orthonormal."""
    for axis in axes:
        x = _along(x, axis, backward)
    return x


def forward(name: str, x: Array) -> Array:
    """Transform x [*shape] into a domain, [*shape]."""
    if name == "spectrum":
        return hartley(x, spatial_axes(x.shape))
    if name == "walsh":
        return walsh(x, spatial_axes(x.shape))
    if name == "channels":
        return jax.scipy.fft.dct(x, norm="ortho").astype(x.dtype)
    return x


def inverse(name: str, y: Array) -> Array:
    """Back from a domain, [*shape] -> [*shape]."""
    if name == "walsh":
        return walsh(y, spatial_axes(y.shape), backward=True)
    if name == "channels":
        return jax.scipy.fft.idct(y, norm="ortho").astype(y.dtype)
    return forward(name, y)


def _split(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """(spatial sides, number of channels)."""
    return (shape[:-1], shape[-1]) if len(shape) > 1 else (shape, 1)


@lru_cache(maxsize=64)
def blocks_order(shape: tuple[int, ...], size: int) -> np.ndarray:
    """Flat places of the entries, channel by channel and block by block, [N] int32; a tile is `size` in a row."""
    space, channels = _split(shape)
    sides = [1] * len(space)
    for _ in range(int(np.log2(size)) * max(1, len(space))):
        roomy = [a for a in range(len(space)) if 2 * sides[a] <= space[a]]
        if not roomy or int(np.prod(sides)) * 2 > size:
            break
        axis = min(roomy, key=lambda a: (sides[a], -a))
        sides[axis] *= 2
    where = np.indices((*space, channels)).reshape(len(space) + 1, -1)
    blocks = [where[a] // sides[a] for a in range(len(space))]
    inner = [where[a] % sides[a] for a in range(len(space))]
    return np.lexsort((*inner[::-1], *blocks[::-1], where[-1])).astype(np.int32)


def radius(space: tuple[int, ...]) -> np.ndarray:
    """The frequency of each Fourier coefficient in cycles per sample, [*space]."""
    freqs = np.meshgrid(*[np.fft.fftfreq(n) for n in space], indexing="ij")
    return np.sqrt(sum(f * f for f in freqs))


@lru_cache(maxsize=64)
def rings_order(shape: tuple[int, ...]) -> np.ndarray:
    """Flat places of the spectrum's entries, channel by channel from low to high frequency, [N] int32."""
    space, channels = _split(shape)
    ring = np.round(radius(space)[..., None] + np.zeros(channels), 9)
    channel = np.broadcast_to(np.arange(channels), ring.shape)
    return np.lexsort((ring.ravel(), channel.ravel())).astype(np.int32)


def order(name: str, shape: tuple[int, ...], size: int) -> np.ndarray:
    """The tiling order of a domain, [N] int32."""
    return rings_order(shape) if name == "spectrum" else blocks_order(shape, size)
