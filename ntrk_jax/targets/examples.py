r"""Ready-made problems: the two mixtures of the DAS experiments and skewed ones of any dimension.

| name | law | reward | mean reward of the tilt | log Z |
|---|---|---|---|---|
| `das9` | nine modes on {-4, 0, 4}^2, covariance 0.3 I | -x^2/100 - y^2 | -0.2907 | -1.4397 |
| `das8` | eight modes at radius 4, covariance 0.3 I | -x^2 - (y - 1)^2/10 | -1.3400 | -2.9678 |

Both are after Kim et al., "Test-time Alignment of Diffusion Models without Reward Over-optimization", 2025,
arXiv:2501.05803; the numbers are those of the closed forms at temperature 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ntrk_jax.arguments import require_count
from ntrk_jax.rewards import Linear, Quadratic
from ntrk_jax.targets.mixture import GaussianMixture

__all__ = ["Problem", "das8", "das9", "skewed"]


class Problem(NamedTuple):
    """A law and a reward whose tilt is known in closed form."""

    mixture: Any
    reward: Any


def das9() -> Problem:
    """Nine modes on the grid {-4, 0, 4}^2 and r = -x^2/100 - y^2, which keeps the row y = 0.

    Example:
        >>> from ntrk_jax import targets
        >>> tilted = targets.tilt(*targets.das9())
        >>> round(float(tilted.log_normalizer), 4)
        -1.4397
    """
    means = np.stack(np.meshgrid([-4.0, 0.0, 4.0], [-4.0, 0.0, 4.0], indexing="ij"), -1).reshape(9, 2)
    return Problem(_round(means), Quadratic(np.diag([0.02, 2.0]), np.zeros(2)))


def das8() -> Problem:
    """Eight modes on a circle of radius 4 and r = -x^2 - (y - 1)^2/10, which keeps two opposite modes.

    Example:
        >>> from ntrk_jax import targets
        >>> tilted = targets.tilt(*targets.das8())
        >>> round(float(targets.expected_reward(tilted.mixture, targets.das8().reward)), 3)
        -1.34
    """
    angle = np.pi / 4 * np.arange(8)
    means = 4.0 * np.stack([np.cos(angle), np.sin(angle)], -1)
    return Problem(_round(means), Quadratic(np.diag([2.0, 0.2]), np.array([0.0, 0.2]), -0.1))


def skewed(dim: int, num_components: int = 3, seed: int = 0) -> Problem:
    """A mixture with unequal weights and full, unequal covariances, and a linear reward that tilts it visibly.

    No symmetry is left, so a flipped sign, a transposed matrix or swapped weights change every number. The
    components lie about three to four of their own standard deviations apart, whatever the dimension; the reward is
    scaled so that the tilt at temperature 1 moves its mean by 1.25 standard deviations of the base law.

    Args:
        dim: d. num_components: K. seed: of the host's generator; the same seed gives the same problem.

    Raises:
        ValueError: if dim or num_components is below 1.

    Example:
        >>> from ntrk_jax import targets
        >>> targets.skewed(16).mixture.means.shape
        (3, 16)
    """
    require_count(dim=dim, num_components=num_components)
    rng = np.random.default_rng([seed, dim, num_components])
    weights = np.arange(1.0, num_components + 1) / (num_components * (num_components + 1) / 2)
    turns = np.linalg.qr(rng.standard_normal((num_components, dim, dim)))[0]
    widths = np.exp(rng.uniform(np.log(0.3), np.log(1.2), (num_components, 1, dim)))
    roots = turns * widths
    covs = roots @ np.swapaxes(roots, 1, 2)
    means = rng.standard_normal((num_components, dim))
    means *= 2.0 / np.linalg.norm(means, axis=1, keepdims=True)
    mixture = GaussianMixture(weights, means, covs)
    return Problem(mixture, Linear(_visible(rng.standard_normal(dim), weights, means, covs)))


def _round(means: np.ndarray) -> GaussianMixture:
    num = means.shape[0]
    return GaussianMixture(np.full(num, 1.0 / num), means, np.tile(0.3 * np.eye(2), (num, 1, 1)))


def _visible(a: np.ndarray, weights: np.ndarray, means: np.ndarray, covs: np.ndarray) -> np.ndarray:
    """The multiple of a whose tilt moves a.x by 1.25 of its standard deviations under the base law (bisection)."""
    centres, variances = means @ a, np.einsum("i,kij,j->k", a, covs, a)
    mean = weights @ centres
    std = np.sqrt(weights @ (variances + (centres - mean) ** 2))
    low, high = 0.0, 16.0 / std
    for _ in range(60):
        scale = 0.5 * (low + high)
        logs = np.log(weights) + scale * centres + 0.5 * scale**2 * variances
        tilted = np.exp(logs - logs.max())
        moved = tilted @ (centres + scale * variances) / tilted.sum() - mean
        low, high = (scale, high) if moved < 1.25 * std else (low, scale)
    return a * 0.5 * (low + high)
