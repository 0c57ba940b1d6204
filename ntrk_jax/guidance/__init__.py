"""Guidance rules: how a reward tilts the reverse kernel."""

from ntrk_jax.guidance.base import Ending, Sum, Unguided, Window
from ntrk_jax.guidance.covariance import MomentMatched
from ntrk_jax.guidance.dps import DPS
from ntrk_jax.guidance.freedom import FreeDoM
from ntrk_jax.guidance.limit import Limit
from ntrk_jax.guidance.mpgd import MPGD
from ntrk_jax.guidance.ntrk import NTRK, Calibrated, Steady
from ntrk_jax.guidance.tfg import TFG, Structure
from ntrk_jax.guidance.twisted import Twisted
from ntrk_jax.guidance.ugd import UGD
from ntrk_jax.guidance.velocity import FirstOrder, Reweighted

__all__ = [
    "DPS", "MPGD", "NTRK", "TFG", "UGD", "Calibrated", "Ending", "FirstOrder", "FreeDoM", "Limit", "MomentMatched",
    "Reweighted", "Steady", "Structure", "Sum", "Twisted", "Unguided", "Window",
]  # fmt: skip
