r"""Small, smooth moves that take a nearly typical array to where a battery of statistics calls it typical.

The statistics z_k(x) are smooth and standard normal for white noise, with gradients of norm about 1 (sqrt(2) for
quadratic ones), so a score too high by e is mended by a move of length about e, against |x| = sqrt(N). Polyak's step on

    P(x) = sum_k max(|z_k(x)| - limit, 0)^2 / 2,    x <- x - 2 P(x) grad P(x) / |grad P(x)|^2,

is Newton's for a single linear statistic and converges within a few steps for the many here. Where nothing exceeds the
limit nothing moves, so the map is continuous. The statistics are those of the battery without Kolmogorov-Smirnov,
and more of the same kind: longer and diagonal lags, larger tiles, the empirical characteristic function, magnitudes
across channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.typing import Array
from ntrk_jax.whitening import scores

__all__ = ["match_ranks", "polish", "statistics"]

LAGS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
TILES = (2, 4, 8, 16, 32)
FREQUENCY = 0.7
NUM_HARMONICS = 4


def _characteristic(flat: Array) -> Array:
    """Scores of mean cos(w x) and mean sin(w x), whose means and variances for a normal x are known."""
    n = flat.shape[0]
    cos, sin = jnp.cos(FREQUENCY * flat), jnp.sin(FREQUENCY * flat)
    c, s = cos, sin
    out = []
    for k in range(1, NUM_HARMONICS + 1):
        w = FREQUENCY * k
        spread_cos = np.sqrt(0.5 * (1 + np.exp(-2 * w * w)) - np.exp(-w * w))
        spread_sin = np.sqrt(0.5 * (1 - np.exp(-2 * w * w)))
        out.append((jnp.mean(c) - float(np.exp(-w * w / 2))) * float(np.sqrt(n) / spread_cos))
        out.append(jnp.mean(s) * float(np.sqrt(n) / spread_sin))
        c, s = c * cos - s * sin, s * cos + c * sin
    return jnp.stack(out)


def statistics(x: Array) -> Array:
    """Smooth scores of x [*space, C], each N(0, 1) for white noise, [num_statistics]."""
    flat = x.reshape(-1)
    n = flat.shape[0]
    magnitude = jnp.abs(x) - scores.MEAN_ABS
    spectrum, peak = scores.spectrum_scores(x)
    mean = jnp.mean(flat) * float(np.sqrt(n))
    pairs = scores.pair_scores(x), scores.pair_scores(magnitude)
    parts = [
        jnp.stack([mean, scores.chi2_score(jnp.sum(flat * flat), n), *scores.shape_scores(flat), peak]),
        _characteristic(flat),
        scores.autocorrelation_scores(x, LAGS),
        scores.autocorrelation_scores(magnitude, LAGS),
        spectrum,
        scores.tile_scores(x, TILES),
    ]
    for z in pairs:
        num = z.shape[0]
        parts += [z, scores.chi2_score(jnp.sum(z * z), num)[None]] if num else []
    return jnp.concatenate([p.reshape(-1) for p in parts])


def _penalty(x: Array, limit: Array) -> tuple[Array, Array]:
    excess = jnp.maximum(jnp.abs(statistics(x)) - limit, 0.0)
    return 0.5 * jnp.sum(excess * excess), jnp.max(excess)


def polish(x: Array, limit: Array, max_steps: int) -> Array:
    """Move x [*space, C] until no statistic exceeds the limit [] by more than 0.05."""
    top = float(4.0 * np.sqrt(x.size))

    def go_on(carry: tuple[Array, Array, Array]) -> Array:
        return carry[1] & (carry[2] < max_steps)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        here, _, count = carry
        (value, worst), slope = jax.value_and_grad(_penalty, has_aux=True)(here, limit)
        squared = jnp.sum(slope * slope)
        step = 2.0 * value / jnp.maximum(squared, 1e-12) * slope
        length = jnp.sqrt(jnp.sum(step * step))
        step = step * jnp.minimum(1.0, 0.1 * top / jnp.maximum(length, 1e-12))
        more = (worst > 0.05) & jnp.all(jnp.isfinite(step))
        return jnp.where(more, here - step, here), more, count + 1

    return jax.lax.while_loop(go_on, body, (x, jnp.array(True), jnp.zeros((), jnp.int32)))[0]


def match_ranks(x: Array, noise: Array) -> Array:
    """The values of noise in the order of x, both [*shape]."""
    places = jax.lax.iota(jnp.int32, x.size)
    _, places = jax.lax.sort((x.reshape(-1), places), dimension=0, num_keys=1, is_stable=False)
    values = jnp.sort(noise.reshape(-1))
    return jnp.zeros_like(values).at[places].set(values, unique_indices=True).reshape(x.shape)
