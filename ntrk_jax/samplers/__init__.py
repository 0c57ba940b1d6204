"""Samplers: how looks and moves become paths and populations."""

from ntrk_jax.samplers.best_of_n import BestOfN, draw
from ntrk_jax.samplers.single import Single

__all__ = ["BestOfN", "Single", "draw"]
