r"""Small moves that take a nearly typical array to where the battery calls it typical.

The smooth statistics z_k(x) are standard normal for white noise, with gradients of norm about 1 (sqrt(2) for quadratic
ones), so a score too high by e is mended by a move of length about e, against |x| = sqrt(N). Polyak's step on

    P(x) = sum_k max(|z_k(x)| - limit, 0)^2 / 2,    x <- x - 2 P(x) grad P(x) / |grad P(x)|^2,

is Newton's for a single linear statistic and converges within a few steps for the many here. Where nothing exceeds the
limit nothing moves, so the map is continuous. Beside the battery's own statistics P holds the empirical characteristic
function, the correlations between channels one by one, of magnitudes too, and the Fourier amplitudes, none of which
may be too large, nor the largest too small.

Kolmogorov-Smirnov is met exactly: the distance is at most D where the i-th of n sorted numbers lies between
Phi^-1(i/n - D) and Phi^-1((i - 1)/n + D), and clipping the sorted numbers is the nearest such point.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.typing import Array
from ntrk_jax.varying import vary
from ntrk_jax.whitening.battery import num_frequencies, smooth
from ntrk_jax.whitening.scores import ks_interval, peak_amplitudes
from ntrk_jax.whitening.sorting import sort_with_places

__all__ = ["clip_ranks", "polish"]


def _penalty(x: Array, limit: Array) -> tuple[Array, Array]:
    """(P, the largest excess) of x [*space, C]."""
    z = smooth(x)
    low, high = peak_amplitudes(limit, num_frequencies(x.shape))
    over = jnp.maximum(jnp.abs(jnp.concatenate(z[:-1])) - limit, 0.0)
    above, below = jnp.maximum(z.amplitude - high, 0.0), jnp.maximum(low - jnp.max(z.amplitude), 0.0)
    value = 0.5 * jnp.sum(over * over) + 0.25 * jnp.sum(above * above) + 0.5 * below * below
    return value, jnp.maximum(jnp.maximum(jnp.max(over), jnp.max(above)), below)


def polish(x: Array, limit: Array, max_steps: Array) -> Array:
    """Move x [*space, C] until no statistic exceeds the limit [] by more than 0.05."""
    longest = float(0.4 * np.sqrt(x.size))

    def go_on(carry: tuple[Array, Array, Array]) -> Array:
        return carry[1] & (carry[2] < max_steps)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        here, _, count = carry
        (value, worst), slope = jax.value_and_grad(_penalty, has_aux=True)(here, limit)
        step = 2.0 * value / jnp.maximum(jnp.sum(slope * slope), 1e-12) * slope
        length = jnp.sqrt(jnp.sum(step * step))
        step = step * jnp.minimum(1.0, longest / jnp.maximum(length, 1e-12))
        more = (worst > 0.05) & jnp.all(jnp.isfinite(step))
        return jnp.where(more, here - step, here), more, count + 1

    return jax.lax.while_loop(go_on, body, vary((x, jnp.array(True), jnp.zeros((), jnp.int32)), (x, limit)))[0]


def clip_ranks(x: Array, limit: Array) -> Array:
    """The point nearest to x [*shape] whose Kolmogorov-Smirnov score is at most limit []."""
    if x.size < 8:
        return x
    flat = x.reshape(-1)
    places = jax.lax.iota(jnp.int32, flat.shape[0])
    values, places = sort_with_places(flat, places, axis=0)
    lower, upper = ks_interval(limit, flat.shape[0])
    return flat.at[places].set(jnp.clip(values, lower, upper), unique_indices=True).reshape(x.shape)
