"""Whitening operators: from a direction, or a biased noise, to a noise that looks typical."""

from ntrk_jax.whitening.certified import Certificate, Certified
from ntrk_jax.whitening.inputs import NONFINITE_INPUT
from ntrk_jax.whitening.pointwise import RankGaussian, UnitNorm
from ntrk_jax.whitening.spectral import Spectral
from ntrk_jax.whitening.typical import TypicalSet, Whitened

__all__ = [
    "NONFINITE_INPUT",
    "Certificate",
    "Certified",
    "RankGaussian",
    "Spectral",
    "TypicalSet",
    "UnitNorm",
    "Whitened",
]
