r"""A small network for a scalar function of (x_t, t), with smooth gradients in x.

The input is scaled to unit size at every noise level, y = x / sqrt(alpha^2 scale^2 + sigma^2), and the answer is

    u(x, t) = b(t).y + w.h_n,    h_0 = silu(A [y, f(t)]),    h_k = h_(k-1) + silu((1 + s_k(t)) A_k h_(k-1) + c_k(t)),

with f(t) sines and cosines. There is no normalisation of h, so u may grow linearly in x, as the logarithm of a ratio of
densities does. The last layer starts at zero: an untrained network answers 0 everywhere, and so does its gradient.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from ntrk_jax.core import algebra_dtype
from ntrk_jax.schedules import Schedule
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["ValueMLP"]

_FREQUENCIES = 8
_TOP_FREQUENCY = 16.0


@pytree
class ValueMLP:
    """A residual perceptron (params, x [*shape], t []) -> [], as a pure function of its parameters.

    Attributes:
        shape: of one sample. Static.
        schedule: t -> (alpha, sigma), the one that noised the samples.
        scale: the root mean square entry of a clean sample, [].
        width, depth: of the hidden layers, and how many residual ones. Static.

    Shapes: `init(key)` -> params; x [*shape], t [] -> [].
    Cost: about 2 width (d + depth width) floating-point operations a sample; its gradient in x as much again.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntrk_jax import schedules
        >>> net = ValueMLP((2,), schedules.VPCosine(), width=8)
        >>> float(net(net.init(jax.random.key(0)), jnp.ones(2), 0.5))
        0.0
    """

    shape: tuple[int, ...] = static()
    schedule: Schedule
    scale: Scalar = 1.0
    width: int = static(default=128)
    depth: int = static(default=2)

    def init(self, key: Key) -> PyTree:
        """Random parameters, float32."""
        size, times = math.prod(self.shape), 2 * _FREQUENCIES
        enter, *inner = jax.random.split(key, self.depth + 1)
        zeros = jnp.zeros
        return {
            "enter": _dense(enter, size + times, self.width),
            "inner": [_dense(k, self.width, self.width) for k in inner],
            "modulate": [zeros((times, 2 * self.width)) for _ in inner],
            "linear": zeros((times, size)),
            "out": zeros((self.width,)),
        }

    def __call__(self, params: PyTree, x: Sample, t: Scalar) -> Array:
        """u(x, t), [], in at least float32."""
        if x.shape != tuple(self.shape):
            raise ValueError(f"this network acts on one sample of shape {tuple(self.shape)}, got {x.shape}.")
        dtype = algebra_dtype(x)
        alpha, sigma = (jnp.asarray(c, dtype) for c in self.schedule(jnp.asarray(t, dtype)))
        y = x.reshape(-1).astype(dtype) / jnp.hypot(alpha * jnp.asarray(self.scale, dtype), sigma)
        angles = jnp.asarray(t, dtype) * jnp.geomspace(1.0, _TOP_FREQUENCY, _FREQUENCIES, dtype=dtype)
        f = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
        p = jax.tree.map(lambda a: a.astype(dtype), params)
        h = jax.nn.silu(_apply(p["enter"], jnp.concatenate([y, f])))
        for layer, modulate in zip(p["inner"], p["modulate"], strict=True):
            scale, shift = jnp.split(f @ modulate, 2)
            h = h + jax.nn.silu((1.0 + scale) * _apply(layer, h) + shift)
        return p["out"] @ h + (f @ p["linear"]) @ y


def _dense(key: Key, fan_in: int, fan_out: int) -> dict[str, Array]:
    return {"kernel": jax.random.normal(key, (fan_in, fan_out)) / math.sqrt(fan_in), "bias": jnp.zeros((fan_out,))}


def _apply(layer: dict[str, Array], x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]
