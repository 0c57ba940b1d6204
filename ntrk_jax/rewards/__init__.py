"""Rewards: scalar functions of one clean sample, [*shape] -> []."""

from ntrk_jax.rewards.analytic import Linear, Quadratic
from ntrk_jax.rewards.compose import Clipped, External, Weighted
from ntrk_jax.rewards.inverse import LinearGaussian
from ntrk_jax.rewards.neural import Neural

__all__ = ["Clipped", "External", "Linear", "LinearGaussian", "Neural", "Quadratic", "Weighted"]
