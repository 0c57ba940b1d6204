r"""A whitening whose output passes the typicality battery. (Being built.)"""

from __future__ import annotations

from ntrk_jax.whitening.typical import TypicalSet as Certified

__all__ = ["Certified"]
