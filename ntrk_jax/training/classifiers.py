r"""Two small classifiers of unlike build, as pure functions logits(params, image), and their loss.

A classifier that serves as a reward is asked about Tweedie means, which early in a run are blurred and off the
data: the loss adds noise of a random level to its inputs, so that the gradient is useful there too.
A softmax does not see a constant added to all logits, but a reward that is one logit does; both functions return
logits of mean zero, which takes that freedom away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.core import algebra_dtype
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["ClassifierLoss", "init_patches", "init_perceptron", "patches", "perceptron"]


def _dense(key: Key, fan_in: int, fan_out: int) -> dict[str, Array]:
    kernel = jax.random.normal(key, (fan_in, fan_out)) * math.sqrt(2.0 / fan_in)
    return {"kernel": kernel, "bias": jnp.zeros((fan_out,))}


def _apply(layer: dict[str, Array], x: Array) -> Array:
    out = x.astype(layer["kernel"].dtype) @ layer["kernel"]
    return out + jnp.broadcast_to(layer["bias"], out.shape)


def _centred(logits: Array) -> Array:
    return logits - jnp.mean(logits)


def init_perceptron(key: Key, size: int, num_classes: int = 10, width: int = 256) -> PyTree:
    """Random parameters of `perceptron` for inputs of `size` entries."""
    widths = (size, width, width, num_classes)
    return [_dense(k, a, b) for k, a, b in zip(jax.random.split(key, 3), widths[:-1], widths[1:], strict=True)]


def perceptron(params: PyTree, x: Sample) -> Array:
    """Logits of mean zero of one sample of any shape, through two hidden layers: [*shape] -> [num_classes]."""
    h = x.reshape(-1)
    for layer in params[:-1]:
        h = jax.nn.gelu(_apply(layer, h))
    return _centred(_apply(params[-1], h))


def init_patches(key: Key, shape: tuple[int, int, int], num_classes: int = 10, channels: int = 24) -> PyTree:
    """Random parameters of `patches` for images of a shape with even sides."""
    height, across, depth = shape
    keys = jax.random.split(key, 4)
    return {
        "patch": _dense(keys[0], 9 * depth, channels),
        "pool": _dense(keys[1], 4 * channels, 2 * channels),
        "mix": _dense(keys[2], height * across // 4 * 2 * channels, 64),
        "out": _dense(keys[3], 64, num_classes),
    }


def patches(params: PyTree, x: Sample) -> Array:
    """Logits of mean zero of one image, by convolution: [H, W, C] -> [num_classes].

    A 3 x 3 convolution, then a 2 x 2 one of stride 2, written as products with shifted and regrouped copies, then two
    dense layers.
    """
    height, across, _ = x.shape
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    shifts = [padded[i : i + height, j : j + across] for i in range(3) for j in range(3)]
    h = jax.nn.gelu(_apply(params["patch"], jnp.concatenate(shifts, axis=-1)))
    h = h.reshape(height // 2, 2, across // 2, 2, -1).transpose(0, 2, 1, 3, 4).reshape(height * across // 4, -1)
    h = jax.nn.gelu(_apply(params["pool"], h))
    h = jax.nn.gelu(_apply(params["mix"], h.reshape(-1)))
    return _centred(_apply(params["out"], h))


@pytree
class ClassifierLoss:
    """Cross-entropy at a noisy input: loss(key, params, (sample, label)) -> [].

        level ~ U[0, noise],   loss = -log softmax(apply(params, x + level z))[label]

    Attributes:
        apply: (params, x [*shape]) -> logits [num_classes]. Static.
        noise: the largest noise level, in units of the data.

    Cost: one forward pass.
    """

    apply: Callable[[Any, Sample], Array] = static()
    noise: Scalar = 0.6

    def __call__(self, key: Key, params: PyTree, sample: tuple[Sample, Array]) -> Array:
        """The loss of one labelled sample at one random noise."""
        x, label = sample
        level_key, noise_key = jax.random.split(key)
        dtype = algebra_dtype(x)
        level = self.noise * jax.random.uniform(level_key, (), dtype)
        logits = self.apply(params, x.astype(dtype) + level * jax.random.normal(noise_key, x.shape, dtype))
        return -jax.nn.log_softmax(logits)[label]
