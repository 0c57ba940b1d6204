"""Rewards: scalar functions of one clean sample, [*shape] -> []."""

from ntrk_jax.rewards.analytic import Linear, Quadratic

__all__ = ["Linear", "Quadratic"]
