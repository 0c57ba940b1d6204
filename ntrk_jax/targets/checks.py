"""What a mixture must be: one function a rule, each with the message a person reads."""

from __future__ import annotations

import numpy as np

__all__ = ["check_positive", "check_shapes", "check_values"]


def check_shapes(weights: tuple, means: tuple, covs: tuple) -> None:
    """Refuse shapes that do not fit."""
    fits = len(weights) == 1 and len(means) == 2 and weights[0] > 0 and means == (weights[0], means[-1])
    if not (fits and means[1] > 0 and covs == (*means, means[1])):
        raise ValueError(
            "a mixture needs weights [K], means [K, d] and covs [K, d, d] with K and d at least 1, got shapes "
            f"{weights}, {means} and {covs}."
        )


def check_values(weights: np.ndarray, means: np.ndarray, covs: np.ndarray) -> None:
    """Refuse weights that are not normalised, asymmetric covariances and what is not finite."""
    if not (np.all(np.isfinite(means)) and np.all(np.isfinite(covs))):
        raise ValueError("means and covs must be finite, got NaN or infinite entries.")
    if not (np.all(weights >= 0) and abs(weights.sum() - 1.0) <= 1e-5):
        raise ValueError(
            f"weights must be normalised: not negative and summing to one, got a sum of {weights.sum():.6g} and a "
            f"minimum of {weights.min():.3g}; divide them by their sum."
        )
    gap = np.abs(covs - np.swapaxes(covs, 1, 2)).max((1, 2))
    if not np.all(gap <= 1e-5 * np.abs(covs).max((1, 2))):
        raise ValueError(f"covs must be symmetric, got entries that differ by {gap.max():.3g}; use (S + S') / 2.")


def check_positive(eigenvalues: np.ndarray) -> None:
    """Refuse covariances that are not positive definite; eigenvalues [K, d]."""
    lowest = eigenvalues.min(-1)
    k = int(np.argmin(lowest))
    if not lowest[k] > 0:
        raise ValueError(
            f"covs must be positive definite, got a smallest eigenvalue {lowest[k]:.3g} in component {k}; add a small "
            "multiple of the identity."
        )
