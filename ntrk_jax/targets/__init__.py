"""Targets: laws whose noised versions, tilts and values are known in closed form."""

from ntrk_jax.targets.examples import Problem, das8, das9, skewed
from ntrk_jax.targets.fields import PowerLawField
from ntrk_jax.targets.low_rank import LowRankMixture
from ntrk_jax.targets.mixture import GaussianMixture
from ntrk_jax.targets.published import cardoso, double_well, field32, ring, step, two_modes
from ntrk_jax.targets.reward_guidance import PULLED, pulled
from ntrk_jax.targets.tiltable import Tiltable
from ntrk_jax.targets.tilted import Tilted, expected_reward, tilt, value

__all__ = [
    "PULLED", "GaussianMixture", "LowRankMixture", "PowerLawField", "Problem", "Tiltable", "Tilted", "cardoso", "das8",
    "das9", "double_well", "expected_reward", "field32", "pulled", "ring", "skewed", "step", "tilt", "two_modes",
    "value",
]  # fmt: skip
