"""Targets: laws whose noised versions, tilts and values are known in closed form."""

from ntrk_jax.targets.mixture import GaussianMixture
from ntrk_jax.targets.tilted import Tilted, expected_reward, tilt, value

__all__ = ["GaussianMixture", "Tilted", "expected_reward", "tilt", "value"]
