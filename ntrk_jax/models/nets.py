r"""Two small networks in Flax NNX, each acting on one sample: prediction = net(x, t, cond).

A time t in [0, 1] enters through sines and cosines at geometrically spaced frequencies and a two-layer
perceptron; the resulting vector (plus a projection of `cond`, if the network has one) scales and shifts every
normalised residual block, h <- h + gate * block((1 + scale) * norm(h) + shift), the gates starting at zero
(Peebles & Xie 2023, arXiv:2212.09748, "adaLN-Zero"). The last layer starts at zero too, so that an untrained
network predicts zero.

Both return the dtype of x and compute in the dtype of their own parameters. Importing this file imports flax.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ntrk_jax.core import algebra_dtype
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["MLP", "DiT", "time_features"]


def time_features(t: Scalar, num_features: int, max_frequency: float = 64.0) -> Array:
    """Sines and cosines of a time, [] -> [num_features], at frequencies from 1 to max_frequency (radians per unit).

    Raises:
        ValueError: if num_features is odd.
    """
    if num_features % 2:
        raise ValueError(f"num_features must be even, got {num_features}.")
    t = jnp.asarray(t)
    frequencies = jnp.geomspace(1.0, max_frequency, num_features // 2, dtype=jnp.float32)
    angles = t.astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


def _normalized(h: Array) -> Array:
    """Mean 0 and variance 1 along the last axis, computed in float32 at least."""
    wide = h.astype(algebra_dtype(h))
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)).astype(h.dtype)


class _Condition(nnx.Module):
    """(t, cond) -> [width], the vector that modulates every block."""

    def __init__(self, width: int, cond_dim: int, rngs: nnx.Rngs) -> None:
        self.width = width
        self.first = nnx.Linear(width, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.project = nnx.Linear(cond_dim, width, rngs=rngs) if cond_dim else None

    def __call__(self, t: Scalar, cond: Any) -> Array:
        dtype = self.first.kernel[...].dtype
        features = time_features(t, self.width).astype(dtype)
        c = self.second(jax.nn.silu(self.first(features)))
        if self.project is not None:
            if cond is None:
                raise ValueError("this network has cond_dim > 0 and needs cond, an array [cond_dim]; got None.")
            c = c + self.project(jnp.asarray(cond).astype(dtype))
        return jax.nn.silu(c)


class _Modulated(nnx.Module):
    """A residual block's entry and exit: (1 + scale) * norm(h) + shift, and the gate on what comes back."""

    def __init__(self, width: int, cond_width: int, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros_init()
        self.modulate = nnx.Linear(cond_width, 3 * width, kernel_init=zeros, rngs=rngs)

    def __call__(self, h: Array, c: Array) -> tuple[Array, Array]:
        shift, scale, gate = jnp.split(self.modulate(c), 3)
        shape = (1,) * (h.ndim - 1) + scale.shape
        scale, shift, gate = scale.reshape(shape), shift.reshape(shape), gate.reshape(shape)
        return _normalized(h) * (1 + scale) + shift, gate


class _Feedforward(nnx.Module):
    def __init__(self, width: int, hidden: int, cond_width: int, rngs: nnx.Rngs) -> None:
        self.enter = _Modulated(width, cond_width, rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, h: Array, c: Array) -> Array:
        inner, gate = self.enter(h, c)
        return h + gate * self.down(jax.nn.gelu(self.up(inner)))


class _Attention(nnx.Module):
    def __init__(self, width: int, num_heads: int, cond_width: int, rngs: nnx.Rngs) -> None:
        self.num_heads = num_heads
        self.enter = _Modulated(width, cond_width, rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, h: Array, c: Array) -> Array:
        inner, gate = self.enter(h, c)
        tokens, width = h.shape
        q, k, v = jnp.split(self.qkv(inner).reshape(tokens, 3 * self.num_heads, width // self.num_heads), 3, axis=1)
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(tokens, width)
        return h + gate * self.out(mixed)


class MLP(nnx.Module):
    """A residual perceptron for one sample of any shape: (x [*shape], t [], cond [cond_dim] or None) -> [*shape].

    Args:
        shape: the shape of one sample.
        width: the width of the residual stream; hidden: that of the layers inside a block.
        depth: the number of blocks.
        time_width: the width of the modulating vector (even).
        cond_dim: the length of the condition, 0 for an unconditional network.
        rngs: nnx.Rngs(seed).

    Cost: about 2 depth width (2 hidden + 3 time_width) floating-point operations a sample.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> net = MLP((2,), width=16, hidden=16, depth=2, rngs=nnx.Rngs(0))
        >>> net(jnp.ones(2), 0.5).tolist()
        [0.0, 0.0]
    """

    def __init__(
        self, shape: tuple[int, ...], *, width: int = 128, hidden: int = 256, depth: int = 3,
        time_width: int = 64, cond_dim: int = 0, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        """Random weights, named by rngs."""
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        self.condition = _Condition(time_width, cond_dim, rngs)
        self.enter = nnx.Linear(size, width, rngs=rngs)
        self.blocks = nnx.List([_Feedforward(width, hidden, time_width, rngs) for _ in range(depth)])
        self.leave = _Modulated(width, time_width, rngs)
        self.out = nnx.Linear(width, size, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample:
        """The prediction at x and t, of the shape and dtype of x."""
        _check_shape(x, self.shape)
        c = self.condition(t, cond)
        h = self.enter(x.reshape(-1).astype(c.dtype))
        for block in self.blocks:
            h = block(h, c)
        h, _ = self.leave(h, c)
        return self.out(h).reshape(self.shape).astype(x.dtype)


class DiT(nnx.Module):
    """A small diffusion transformer for one image: (x [H, W, C], t [], cond [cond_dim] or None) -> [H, W, C].

    The image is cut into patches, each a token; a learned vector says where a token lies (Peebles & Xie 2023,
    arXiv:2212.09748).

    Args:
        shape: (H, W, C). patch: the side of a patch, which must divide H and W.
        width: the width of a token, a multiple of num_heads. depth: the number of attention + feedforward pairs.
        cond_dim: the length of the condition, 0 for an unconditional network. rngs: nnx.Rngs(seed).

    Raises:
        ValueError: if the patch does not divide the image or the heads do not divide the width.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, patch: int = 2, width: int = 64, depth: int = 4, num_heads: int = 4,
        cond_dim: int = 0, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        """Random weights, named by rngs."""
        height, across, channels = shape
        if height % patch or across % patch:
            raise ValueError(f"patch must divide the image sides {height} and {across}, got {patch}.")
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads={num_heads}, got {width}.")
        self.shape, self.patch = tuple(shape), patch
        tokens, size = (height // patch) * (across // patch), patch * patch * channels
        self.condition = _Condition(width, cond_dim, rngs)
        self.enter = nnx.Linear(size, width, rngs=rngs)
        self.place = nnx.Param(0.02 * jax.random.normal(rngs.params(), (tokens, width)))
        self.attention = nnx.List([_Attention(width, num_heads, width, rngs) for _ in range(depth)])
        self.feedforward = nnx.List([_Feedforward(width, 4 * width, width, rngs) for _ in range(depth)])
        self.leave = _Modulated(width, width, rngs)
        self.out = nnx.Linear(width, size, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample:
        """The prediction at x and t, of the shape and dtype of x."""
        _check_shape(x, self.shape)
        c = self.condition(t, cond)
        h = self.enter(self._cut(x.astype(c.dtype))) + self.place[...]
        for attention, feedforward in zip(self.attention, self.feedforward, strict=True):
            h = feedforward(attention(h, c), c)
        h, _ = self.leave(h, c)
        return self._join(self.out(h)).astype(x.dtype)

    def _cut(self, x: Array) -> Array:
        """[H, W, C] -> [tokens, patch * patch * C]."""
        height, across, channels = self.shape
        p = self.patch
        x = x.reshape(height // p, p, across // p, p, channels)
        return x.transpose(0, 2, 1, 3, 4).reshape(-1, p * p * channels)

    def _join(self, tokens: Array) -> Array:
        """The inverse of `_cut`."""
        height, across, channels = self.shape
        p = self.patch
        x = tokens.reshape(height // p, across // p, p, p, channels)
        return x.transpose(0, 2, 1, 3, 4).reshape(self.shape)


def _check_shape(x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"this network acts on one sample of shape {shape}, got {x.shape}; use jax.vmap for a batch.")
