r"""Weights of samples along a tilt p_a = p exp(a r) / Z_a, on the host in float64: all that they need is the rewards.

With weights w = exp(h r), samples of p_a are samples of p_(a + h), of which the share (sum w)^2 / (num sum w^2) is
effective.
"""

from __future__ import annotations

import numpy as np

__all__ = ["centred", "effective_share", "ess_step", "pooled_weights", "skewness"]


def effective_share(log_weights: np.ndarray) -> float:
    """The share (sum w)^2 / (num sum w^2) of num samples of weights w = exp(log_weights), in (0, 1].

    Example:
        >>> import numpy as np
        >>> effective_share(np.log([1.0, 1.0, 1e-30, 1e-30]))
        0.5
    """
    w = np.exp(log_weights - log_weights.max())
    return float(w.sum() ** 2 / (w**2).sum() / w.size)


def ess_step(rewards: np.ndarray, share: float, longest: float = 1.0) -> float:
    """The largest h up to `longest` for which weights exp(h r) keep the share of the effective sample size.

    Args:
        rewards: [num], on the host. share: between 0 and 1.

    Example:
        >>> import numpy as np
        >>> r = np.random.default_rng(0).normal(size=20_000)  # of a normal r the share is exp(-h^2)
        >>> round(ess_step(r, np.exp(-0.25)), 1)
        0.5
    """
    if effective_share(longest * rewards) >= share:
        return longest
    low, high = 0.0, longest
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective_share(middle * rewards) >= share else (low, middle)
    return max(low, 1e-6 * longest)


def centred(log_weights: np.ndarray, method: str) -> np.ndarray:
    """Log-weights l [num] less the constant that the method wants: their mean, or log mean exp(l)."""
    if method == "explicit":
        return log_weights - log_weights.mean()
    top = log_weights.max()
    return log_weights - top - np.log(np.mean(np.exp(log_weights - top)))


def skewness(x: np.ndarray) -> float:
    """The third standardised moment of x [num]; 0 where all are equal.

    Example:
        >>> import numpy as np
        >>> round(skewness(np.append(np.zeros(999), -100.0)), 1), skewness(np.ones(3))
        (-31.6, 0.0)
    """
    off = x - x.mean()
    spread = off.std()
    return float(np.mean((off / spread) ** 3)) if spread > 0 else 0.0


def pooled_weights(rewards: np.ndarray, at: np.ndarray, a: float) -> np.ndarray:
    """Weights [keep, num], summing to one, that make the sets of earlier rounds samples of p_a.

    A set drawn at a_j is weighed by exp((a - a_j) r) to a total in proportion to its effective size; NaN marks no set.
    """
    out = np.zeros_like(rewards)
    for j in np.flatnonzero(np.isfinite(at)):
        w = np.exp((a - at[j]) * (rewards[j] - rewards[j].max()))
        out[j] = w / w.sum() * (w.sum() ** 2 / (w**2).sum())
    return out / out.sum()
