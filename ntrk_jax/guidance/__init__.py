"""Guidance rules: how a reward tilts the reverse kernel."""

from ntrk_jax.guidance.base import Sum, Unguided, Window
from ntrk_jax.guidance.dps import DPS
from ntrk_jax.guidance.ntrk import NTRK, Calibrated

__all__ = ["DPS", "NTRK", "Calibrated", "Sum", "Unguided", "Window"]
