"""Metrics: distances between samples and laws, nearest real data, and how typical a noise is."""

from ntrk_jax.metrics.distance import mmd, mode_mass, mode_total_variation, sliced_wasserstein, two_sample_floor
from ntrk_jax.metrics.image import nearest_distance, nearest_index
from ntrk_jax.metrics.typicality import typicality

__all__ = [
    "mmd", "mode_mass", "mode_total_variation", "nearest_distance", "nearest_index", "sliced_wasserstein",
    "two_sample_floor", "typicality",
]  # fmt: skip
