r"""A multimodal diffusion transformer of any size in plain JAX: prediction = net(params, x, t, text).

Latents and text are two streams of tokens. In a double block each stream has weights of its own and both attend to all
tokens together; in a single block one set of weights serves the joined tokens, with attention and perceptron side by
side (Esser et al. 2024, arXiv:2403.03206, section 4; the single blocks are those of the FLUX family). Time and
the mean of the text modulate every block, h <- h + gate * block((1 + scale) * norm(h) + shift). Places in the
latent grid enter by rotating queries and keys, one share of each head an axis (Su et al. 2021, arXiv:2104.09864).

The weights of equal blocks are stacked and the blocks are one `lax.scan`, so that compile time does not grow with
depth, and `remat` keeps only the tokens between blocks for a gradient. Made for work at real sizes with random or
own weights; it loads nobody's checkpoint.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import algebra_dtype
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["MMDiT"]

_TIME_FEATURES = 256


@dataclasses.dataclass(frozen=True)
class MMDiT:
    """A multimodal diffusion transformer for one sample: (params, x [*space, channels], t [], text) -> like x.

    Attributes:
        channels: the channels of the latents.
        patch: the side of a patch along each axis of space; (2, 2) for images, (1, 2, 2) for video.
        width: the width of a token, num_heads times a multiple of twice the number of axes.
        num_heads, double_blocks, single_blocks: as their names say. mlp_ratio: hidden over width.
        text_width: the width of the text tokens, text [L, text_width].
        remat: whether a gradient recomputes each block instead of keeping its insides.
        attention: "xla", or "cudnn" on GPUs that have it.

    Shapes: x [*space, channels], every side a multiple of its patch; the answer has the shape and dtype of x.
    Cost: about 24 width^2 + 4 width tokens floating-point operations a token and block (mlp_ratio 4).

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> net = MMDiT(channels=4, width=16, num_heads=2, double_blocks=1, single_blocks=1, text_width=3)
        >>> params = net.init(jax.random.key(0))
        >>> model = nk.models.FlaxDenoiser(net, "velocity", params, nk.schedules.RectifiedFlow(), jnp.ones((5, 3)))
        >>> model(jnp.ones((8, 8, 4)), 0.5).shape
        (8, 8, 4)
    """

    channels: int
    patch: tuple[int, ...] = (2, 2)
    width: int = 256
    num_heads: int = 4
    double_blocks: int = 2
    single_blocks: int = 4
    mlp_ratio: int = 4
    text_width: int = 64
    remat: bool = False
    attention: str = "xla"

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        axes = len(self.patch)
        if self.width % (2 * axes * self.num_heads):
            raise ValueError(
                f"width must be num_heads times a multiple of {2 * axes} for {axes} axes, "
                f"got width {self.width} and {self.num_heads} heads."
            )

    def init(self, key: Key, dtype: Any = jnp.float32) -> PyTree:
        """Random weights; the last layer starts small, so that the first prediction is about zero."""
        w, hidden = self.width, self.width * self.mlp_ratio
        count = itertools.count()

        def dense(*shape: int, scale: float = 1.0) -> Array:
            sub = jax.random.fold_in(key, next(count))
            return (jax.random.normal(sub, shape, jnp.float32) * (scale / math.sqrt(shape[-2]))).astype(dtype)

        def stream(n: int) -> dict[str, Array]:
            return {
                "modulate": dense(n, w, 6 * w, scale=0.1), "qkv": dense(n, w, 3 * w), "out": dense(n, w, w),
                "up": dense(n, w, hidden), "down": dense(n, hidden, w),
            }  # fmt: skip

        singles, size = self.single_blocks, self.channels * math.prod(self.patch)
        return {
            "enter": dense(size, w), "text": dense(self.text_width, w), "pooled": dense(self.text_width, w),
            "time": dense(_TIME_FEATURES, w), "time_out": dense(w, w),
            "double": {"latents": stream(self.double_blocks), "text": stream(self.double_blocks)},
            "single": {
                "modulate": dense(singles, w, 3 * w, scale=0.1), "enter": dense(singles, w, 3 * w + hidden),
                "out": dense(singles, w + hidden, w),
            },
            "leave": dense(w, 2 * w, scale=0.1), "out": dense(w, size, scale=0.02),
        }  # fmt: skip

    def __call__(self, params: PyTree, x: Sample, t: Scalar, text: Array) -> Sample:
        """The prediction at (x, t) given the text [L, text_width]."""
        dtype = params["enter"].dtype
        tokens, grid = self._tokens(x.astype(dtype))
        text = jnp.asarray(text).astype(dtype)
        h, c = tokens @ params["enter"], text @ params["text"]
        vector = jax.nn.silu(_time_features(t).astype(dtype) @ params["time"]) @ params["time_out"]
        pooled = jnp.mean(text, axis=0) if text.shape[0] else jnp.zeros(text.shape[1], dtype)
        vector = jax.nn.silu(vector + pooled @ params["pooled"])
        turns = self._turns(grid, text.shape[0])

        def double(both: tuple[Array, Array], p: PyTree) -> tuple[tuple[Array, Array], None]:
            return self._double(*both, p, vector, turns), None

        def single(joined: Array, p: PyTree) -> tuple[Array, None]:
            return self._single(joined, p, vector, turns), None

        if self.remat:
            double, single = jax.checkpoint(double), jax.checkpoint(single)
        (h, c), _ = jax.lax.scan(double, (h, c), params["double"])
        joined, _ = jax.lax.scan(single, jnp.concatenate([c, h]), params["single"])
        shift, scale = jnp.split(vector @ params["leave"], 2)
        out = _modulated(joined[text.shape[0] :], shift, scale) @ params["out"]
        return self._latents(out, x.shape).astype(x.dtype)

    def _double(self, h: Array, c: Array, p: PyTree, vector: Array, turns: Array) -> tuple[Array, Array]:
        streams, sides = (h, c), (p["latents"], p["text"])
        moves = [jnp.split(vector @ side["modulate"], 6) for side in sides]
        qkv = [_modulated(s, m[0], m[1]) @ side["qkv"] for s, side, m in zip(streams, sides, moves, strict=True)]
        mixed = self._attend(jnp.concatenate([qkv[1], qkv[0]]), turns)
        parts = mixed[c.shape[0] :], mixed[: c.shape[0]]
        out = []
        for stream, side, move, part in zip(streams, sides, moves, parts, strict=True):
            stream = stream + move[2][None] * (part @ side["out"])
            inner = jax.nn.gelu(_modulated(stream, move[3], move[4]) @ side["up"])
            out.append(stream + move[5][None] * (inner @ side["down"]))
        return out[0], out[1]

    def _single(self, h: Array, p: PyTree, vector: Array, turns: Array) -> Array:
        shift, scale, gate = jnp.split(vector @ p["modulate"], 3)
        inner = _modulated(h, shift, scale) @ p["enter"]
        qkv, hidden = inner[:, : 3 * self.width], inner[:, 3 * self.width :]
        return h + gate[None] * (jnp.concatenate([self._attend(qkv, turns), jax.nn.gelu(hidden)], axis=1) @ p["out"])

    def _attend(self, qkv: Array, turns: Array) -> Array:
        q, k, v = (a.reshape(qkv.shape[0], self.num_heads, -1) for a in jnp.split(qkv, 3, axis=1))
        q, k = (_rotated(_unit(a), turns).astype(qkv.dtype) for a in (q, k))
        kind: Any = self.attention
        with jax.numpy_dtype_promotion("standard"):  # jax's own attention mixes dtypes
            mixed = jax.nn.dot_product_attention(q, k, v, implementation=kind)
        return mixed.reshape(qkv.shape[0], self.width)

    def _turns(self, grid: tuple[int, ...], num_text: int) -> Array:
        """The angles by which queries and keys are turned, [num_text + tokens, head width / 2]; text stays as it is."""
        share = self.width // (2 * len(grid) * self.num_heads)
        speed = 10_000.0 ** -(np.arange(share) / share)
        place = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, len(grid), 1)
        angles = (place * speed).reshape(place.shape[0], -1)
        return jnp.asarray(np.pad(angles, ((num_text, 0), (0, 0))), jnp.float32)

    def _tokens(self, x: Array) -> tuple[Array, tuple[int, ...]]:
        """[*space, channels] -> [tokens, channels * patch], and the grid of tokens."""
        *space, channels = x.shape
        if len(space) != len(self.patch) or channels != self.channels or any(np.mod(space, self.patch)):
            raise ValueError(f"x must be [*space, {self.channels}] in patches of {self.patch}, got {x.shape}.")
        grid = tuple(n // p for n, p in zip(space, self.patch, strict=True))
        axes = len(space)
        split = x.reshape(*itertools.chain(*zip(grid, self.patch, strict=True)), channels)
        order = (*range(0, 2 * axes, 2), *range(1, 2 * axes, 2), 2 * axes)
        return split.transpose(order).reshape(math.prod(grid), -1), grid

    def _latents(self, tokens: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `_tokens`."""
        axes = len(self.patch)
        grid = tuple(n // p for n, p in zip(shape[:-1], self.patch, strict=True))
        order = (*itertools.chain(*zip(range(axes), range(axes, 2 * axes), strict=True)), 2 * axes)
        return tokens.reshape(*grid, *self.patch, self.channels).transpose(order).reshape(shape)


def _time_features(t: Scalar) -> Array:
    frequencies = jnp.geomspace(1.0, 1000.0, _TIME_FEATURES // 2, dtype=jnp.float32)
    angles = jnp.asarray(t).astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


def _modulated(h: Array, shift: Array, scale: Array) -> Array:
    """(1 + scale) * h with mean 0 and variance 1 in each token, + shift."""
    wide = h.astype(algebra_dtype(h))
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
    return wide.astype(h.dtype) * (1 + scale)[None] + shift[None]


def _unit(a: Array) -> Array:
    """Queries or keys of mean square 1 in each head."""
    wide = a.astype(algebra_dtype(a))
    return wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)


def _rotated(a: Array, turns: Array) -> Array:
    """Pairs (i, i + half) of each head turned by the angles of its token."""
    first, second = jnp.split(a, 2, axis=-1)
    cos, sin = (wave(turns)[:, None].astype(a.dtype) for wave in (jnp.cos, jnp.sin))
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
