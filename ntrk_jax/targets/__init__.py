"""Targets: laws whose noised versions, tilts and values are known in closed form."""

from ntrk_jax.targets.examples import Problem, das8, das9, skewed
from ntrk_jax.targets.fields import PowerLawField
from ntrk_jax.targets.mixture import GaussianMixture
from ntrk_jax.targets.tilted import Tilted, expected_reward, tilt, value

__all__ = [
    "GaussianMixture", "PowerLawField", "Problem", "Tilted", "das8", "das9", "expected_reward", "skewed", "tilt",
    "value",
]  # fmt: skip
