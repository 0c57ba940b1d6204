r"""Ready-made problems after published experiments: an inverse problem, two wells, a ring, a cliff and a field.

| name | law | reward | value |
|---|---|---|---|
| `cardoso` | 25 modes in d = 8, 80, 800, random weights | log-likelihood of 1, 2 or 4 numbers | closed form |
| `double_well` | two modes in the plane, weights 0.2 and 0.8 | quartic, two wells | quadrature |
| `ring` | N(0, I) in the plane | a ring of radius 2 | quadrature |
| `two_modes` | two equal modes in the plane | linear | closed form |
| `step` | the skewed mixture in the plane | a cliff of height 4 that a fifth of the law escapes | closed form |
| `field32` | a 32 x 32 power-law Gaussian field | linear and smooth | closed form |

Rewards are in units of the temperature: all targets are p exp(r) / Z.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ntrk_jax.rewards import DoubleWell, HalfSpace, Linear, LinearGaussian, Ring
from ntrk_jax.targets.examples import Problem, skewed
from ntrk_jax.targets.fields import PowerLawField
from ntrk_jax.targets.low_rank import LowRankMixture
from ntrk_jax.targets.mixture import GaussianMixture
from ntrk_jax.targets.tiltable import Tiltable

__all__ = ["cardoso", "double_well", "field32", "ring", "step", "two_modes"]


def cardoso(dim: int = 8, observed: int = 1, instance: int = 0) -> Problem:
    """The 25-mode inverse problem: modes at (8i, 8j, 8i, 8j, ...), i and j in -2 ... 2, seen through a random matrix.

    Weights are squares of normal draws; H = U diag(s) V with U and V random rotations and s uniform on [0, 1], sorted;
    the noise's standard deviation is a uniform draw times the largest s; y is the observation of a draw of the law.

    Args:
        dim: d, even. observed: the numbers seen. instance: of the random problem; each has its own weights, H and y.

    Departs from the paper: the random numbers are numpy's, one generator a triple (instance, dim, observed).

    Raises:
        ValueError: if dim is not even, or observed is not between 1 and dim.

    References:
        Cardoso, El Idrissi, Le Corff, Moulines, "Monte Carlo guided Diffusion for Bayesian linear inverse problems",
        2023, arXiv:2308.07983, Section 4.

    Example:
        >>> from ntrk_jax import targets
        >>> problem = cardoso(80, observed=2)
        >>> problem.mixture.means.shape, problem.reward.operator.shape
        ((25, 80), (2, 80))
    """
    if dim < 2 or dim % 2 or not 1 <= observed <= dim:
        raise ValueError(f"dim must be even and observed between 1 and dim, got {dim} and {observed}.")
    rng = np.random.default_rng([instance, dim, observed])
    pairs = 8.0 * np.stack(np.meshgrid(np.arange(-2, 3), np.arange(-2, 3), indexing="ij"), -1).reshape(25, 2)
    means = np.tile(pairs, (1, dim // 2))
    weights = rng.standard_normal(25) ** 2
    weights /= weights.sum()
    left = np.linalg.qr(rng.standard_normal((observed, observed)))[0]
    right = np.linalg.qr(rng.standard_normal((dim, observed)))[0].T
    scales = np.sort(rng.uniform(size=observed))
    operator = (left * scales) @ right
    noise_std = rng.uniform() * scales.max()
    truth = means[rng.choice(25, p=weights)] + rng.standard_normal(dim)
    seen = operator @ truth + noise_std * rng.standard_normal(observed)
    return Problem(LowRankMixture(weights, means), LinearGaussian(operator, seen, noise_std))


def double_well() -> Problem:
    """Two modes and a quartic reward with two wells at the same places, at the published inverse temperature 3.

    Departs from the paper: the weights are the unequal ones of its quadratic experiment, so that no symmetry is left.

    References:
        Dandapanthula and Boffi 2026, arXiv:2606.02884.

    Example:
        >>> from ntrk_jax import targets
        >>> [round(float(w), 2) for w in targets.tilt(*targets.double_well()).mixture.weights]
        [0.2, 0.8]
    """
    means, covs = np.array([[-2.5, 0.0], [2.5, 0.0]]), np.tile(0.5 * np.eye(2), (2, 1, 1))
    return Problem(Tiltable(GaussianMixture(np.array([0.2, 0.8]), means, covs)), DoubleWell(3.0))


def two_modes(b: Sequence[float] = (0.0, 4.0)) -> Problem:
    """Two equal modes at (-2, 0) and (2, 0) with covariance I / 2, and the linear reward b.x.

    The tilt at temperature 1 moves both modes by b / 2 and makes their odds exp(4 b_1). With the published b = (0, 4)
    the reward is independent of the mode axis, so that weights, and every covariance of the tilt with x_0, are
    constant; b = (0.5, 4), with weights 0.119 and 0.881, is the harder question.

    Args:
        b: two finite numbers.

    Raises:
        ValueError: if b is anything else.

    References:
        Pachebat, Conforti, Durmus, Janati, "Iterative Tilting for Diffusion Fine-Tuning", 2025, arXiv:2512.03234.

    Example:
        >>> from ntrk_jax import targets
        >>> tilted = targets.tilt(*targets.two_modes((0.5, 4.0))).mixture
        >>> [round(float(w), 3) for w in tilted.weights], tilted.means.tolist()
        ([0.119, 0.881], [[-1.75, 2.0], [2.25, 2.0]])
    """
    slope = np.asarray(b, np.float64)
    if slope.shape != (2,) or not np.all(np.isfinite(slope)):
        raise ValueError(f"b must be two finite numbers, got {b}.")
    means, covs = np.array([[-2.0, 0.0], [2.0, 0.0]]), np.tile(0.5 * np.eye(2), (2, 1, 1))
    return Problem(GaussianMixture(np.array([0.5, 0.5]), means, covs), Linear(slope))


def ring() -> Problem:
    """A standard normal in the plane, tilted towards a ring of radius 2.

    Example:
        >>> from ntrk_jax import targets
        >>> problem = targets.ring()
        >>> bool(targets.expected_reward(*problem) < -3.0)
        True
    """
    normal = GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    return Problem(Tiltable(normal), Ring(radius=2.0, width=0.3))


def step() -> Problem:
    """The skewed mixture in the plane, four fifths of which pay a penalty of 4; the reward has no gradient.

    Example:
        >>> from ntrk_jax import targets
        >>> problem = targets.step()
        >>> round(float(targets.expected_reward(*problem)), 2)  # -4 times the mass below
        -3.2
    """
    return Problem(Tiltable(skewed(2).mixture), HalfSpace(np.array([0.6, 0.8]), threshold=1.736, penalty=4.0))


def field32() -> Problem:
    """A 32 x 32 power-law field and a smooth bump as linear reward, which moves it by 2.5 standard deviations.

    Example:
        >>> from ntrk_jax import targets
        >>> problem = targets.field32()
        >>> round(float(targets.expected_reward(targets.tilt(*problem).mixture, problem.reward)), 2)
        6.25
    """
    field = PowerLawField((32, 32), exponent=2.0)
    line = np.linspace(-1.0, 1.0, 32)
    bump = np.exp(-4.0 * (line[:, None] ** 2 + (line[None, :] - 0.3) ** 2))
    std = np.sqrt(2.0 * float(field.tilt(Linear(bump)).log_normalizer))  # log Z is half the variance of a centred law
    return Problem(field, Linear(2.5 * bump / std))
