r"""Two simple whitenings that look at one number at a time: the norm alone, and the ranks alone."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_probability
from ntrk_jax.core import root
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key
from ntrk_jax.whitening.inputs import direction, noise_input
from ntrk_jax.whitening.sorting import sort_with_places

__all__ = ["RankGaussian", "UnitNorm"]


@lru_cache(maxsize=64)
def _norm_interval(n: int, confidence: float) -> tuple[float, float]:
    """The central interval of the norm of N white numbers."""
    from scipy.special import chdtri, gammaincinv

    tail = (1.0 - confidence) / 2
    return float(np.sqrt(2.0 * gammaincinv(n / 2.0, tail))), float(np.sqrt(chdtri(n, tail)))


@pytree
class UnitNorm:
    r"""Give a direction the norm of typical noise, sqrt(N), and change nothing else.

    .. math:: W(g) = \sqrt{N}\, g / |g|

    `project(z)` scales a noise so that its norm lies in the central interval of the law of |z|, which leaves a typical
    one alone and keeps the radial law in low dimension.

    Attributes:
        confidence: probability of that interval.

    Shapes: any [*shape] -> [*shape]. Cost per step: model 0, two passes over the array.
    Density: deterministic; a zero direction becomes fresh noise. Departs from the paper: not of the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in UnitNorm()(jnp.array([3e-20, 4e-20]))]
        [0.8485, 1.1314]
    """

    confidence: float = static(default=0.9999)

    needs_key = False  # there are no ties to break; NTRK leaves a zero gradient out by itself

    def __post_init__(self) -> None:
        """Refuse a confidence that is not a probability."""
        require_probability("confidence of UnitNorm", self.confidence)

    def __call__(self, g: Array, key: Key | None = None) -> Array:
        """A direction of any scale, [*shape] -> [*shape] with norm sqrt(N)."""
        return direction(g, key).values.astype(jnp.asarray(g).dtype)

    def project(self, z: Array, key: Key | None = None) -> Array:
        """A noise [*shape], scaled to a typical norm if its own is not."""
        given = noise_input(z, key)
        norm = root(jnp.sum(given.values**2))
        low, high = _norm_interval(given.values.size, float(self.confidence))
        gain = jnp.clip(norm, low, high) / jnp.where(norm > 0, norm, jnp.ones_like(norm))
        moved = jnp.where(norm > 0, given.values * gain, given.noise)
        inside = (norm >= low) & (norm <= high)
        return jnp.where(inside, given.values, moved).astype(jnp.asarray(z).dtype)


@pytree
class RankGaussian:
    r"""Replace each number by the normal quantile of its rank.

    .. math:: W(g)_i \propto \Phi^{-1}\left((\mathrm{rank}_i - 1/2) / N\right), \qquad |W(g)| = \sqrt{N}.

    The histogram is exactly normal whatever g is; space and spectrum are not looked at. Ties are broken by a keyed
    jitter. `project` does the same, so it changes a white noise a little and, in low dimension, discards its norm.

    Shapes: any [*shape] -> [*shape]; a single number keeps its sign. Cost per step: model 0, one sort.
    Density: deterministic given the key. Departs from the paper: not of the paper.
    Derivatives: zero, as ranks do not move.

    Example:
        >>> import jax.numpy as jnp
        >>> print(RankGaussian()(jnp.array([10.0, -3.0, 0.5])).round(3))
        [ 1.225 -1.225  0.   ]
    """

    def __call__(self, g: Array, key: Key | None = None) -> Array:
        """A direction of any scale, [*shape] -> normal scores of its ranks [*shape]."""
        given = direction(g, key)
        return _scores(given.values + 1e-5 * given.noise).astype(jnp.asarray(g).dtype)

    def project(self, z: Array, key: Key | None = None) -> Array:
        """A noise [*shape] -> normal scores of its ranks [*shape]."""
        return self(z, key)


def _scores(x: Array) -> Array:
    n = x.size
    if n == 1:
        return jnp.sign(x)
    from scipy.special import ndtri

    quantiles = ndtri((np.arange(n) + 0.5) / n)
    quantiles *= np.sqrt(n / np.sum(quantiles**2))
    _, places = sort_with_places(x.reshape(-1), jax.lax.iota(jnp.int32, n), axis=0)
    scores = jnp.zeros((n,), x.dtype).at[places].set(jnp.asarray(quantiles, x.dtype), unique_indices=True)
    return scores.reshape(x.shape)
