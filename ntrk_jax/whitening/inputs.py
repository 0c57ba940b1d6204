r"""What every whitening operator does before it projects.

A direction g of any scale becomes g sqrt(N) / |g|, computed as (g / m) / rms(g / m) with m = max |g|, so that
neither 1e-30 nor 1e30 over- or underflows; bfloat16 is lifted to float32 first. A zero direction carries no
information and becomes fresh noise; an input with a non-finite entry is replaced by plain noise and flagged.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ntrk_jax.core import algebra_dtype, over_largest
from ntrk_jax.typing import Array, Key

__all__ = ["NONFINITE_INPUT", "Prepared", "direction", "noise_input", "require_floating"]

NONFINITE_INPUT = 1
"""Status bit: the input had a non-finite entry and was replaced by plain noise."""

_DEFAULT_SEED = 20260618


class Prepared(NamedTuple):
    """A finite input in at least float32: values [*shape], keyed noise [*shape], a spare key, status bits []."""

    values: Array
    noise: Array
    key: Key
    status: Array


def require_floating(x: Array) -> None:
    """Raise TypeError for numbers that are not real floating-point ones: the answer has their dtype."""
    dtype = jnp.asarray(x).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"whitening needs an array of a floating dtype, got {dtype}; pass x.astype(jnp.float32).")


def _open(x: Array, key: Key | None) -> Prepared:
    """Lift the dtype, draw the noise, replace a non-finite input."""
    require_floating(x)
    key = jax.random.key(_DEFAULT_SEED) if key is None else key
    noise_key, spare = jax.random.split(key)
    x = jnp.asarray(x)
    x = x.astype(algebra_dtype(x))
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    finite = jnp.all(jnp.isfinite(x))
    status = jnp.where(finite, 0, NONFINITE_INPUT).astype(jnp.int32)
    return Prepared(jnp.where(finite, x, noise), noise, spare, status)


@jax.jit
def direction(g: Array, key: Key | None) -> Prepared:
    """A direction of any scale, [*shape] -> values with norm sqrt(N); zeros and denormals become fresh noise."""
    opened = _open(g, key)
    scaled = over_largest(opened.values)
    some = jnp.max(jnp.abs(scaled)) > 0
    unit = scaled * jax.lax.rsqrt(jnp.mean(scaled * scaled) + jnp.where(some, 0.0, 1.0).astype(scaled.dtype))
    return opened._replace(values=jnp.where(some, unit, opened.noise))


@jax.jit
def noise_input(z: Array, key: Key | None) -> Prepared:
    """A noise, perhaps biased, [*shape]: taken as it is, or scaled as a whole where its largest entry is beyond 1e15.

    Down to 1e15, or up to 1e-15, whose squares neither over- nor underflow; scaling keeps the direction.
    """
    opened = _open(z, key)
    top = jnp.max(jnp.abs(opened.values))
    within, some = jnp.clip(top, 1e-15, 1e15), top > 0
    scale = jnp.where(some & (within != top), within / jnp.where(some, top, 1.0), 1.0).astype(top.dtype)
    return opened._replace(values=opened.values * scale)
