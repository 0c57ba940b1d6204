r"""Parametrisations, both ways, through one currency: the Tweedie mean x0 = E[x_0 | x_t].

With x_t = alpha x_0 + sigma z and a prime for the time derivative along the schedule:

| kind | prediction | x0 from it |
|---|---|---|
| `x0` | x0 | itself |
| `eps` | (x - alpha x0) / sigma | (x - sigma eps) / alpha |
| `score` | (alpha x0 - x) / sigma^2 | (x + sigma^2 score) / alpha |
| `v` | alpha eps - sigma x0 | (alpha x - sigma v) / (alpha^2 + sigma^2) |
| `velocity` | alpha' x0 + sigma' eps | (sigma u - sigma' x) / (alpha' sigma - alpha sigma') |

`eps` and `score` carry no information on x0 where alpha = 0: there, alpha is read as 1e-3, which keeps x0 finite.
"""

from __future__ import annotations

import jax.numpy as jnp

from ntrk_jax.core import Lookahead, Step
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["KINDS", "eps", "from_x0", "score", "to_x0"]

KINDS = ("x0", "eps", "score", "v", "velocity")

_LOWEST_ALPHA = 1e-3


def _check(kind: str, rates: tuple | None) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind == "velocity" and rates is None:
        raise ValueError("kind 'velocity' needs rates=(alpha', sigma'); use schedules.rates(schedule, t).")


def to_x0(
    kind: str, prediction: Sample, x: Sample, alpha: Scalar, sigma: Scalar, rates: tuple[Array, Array] | None = None
) -> Sample:
    """The Tweedie mean [*shape] from a network's prediction [*shape] at x [*shape].

    Args:
        kind: one of `KINDS`.
        prediction, x: [*shape]. alpha, sigma: []. rates: (alpha', sigma'), needed by `velocity` alone.

    Raises:
        ValueError: if the kind is unknown, or `velocity` has no rates.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(to_x0("eps", jnp.array([1.0]), jnp.array([1.4]), 0.8, 0.6)[0]), 6)
        1.0
    """
    _check(kind, rates)
    if kind == "x0":
        return prediction
    if kind == "eps":
        return (x - sigma * prediction) / jnp.maximum(alpha, _LOWEST_ALPHA)
    if kind == "score":
        return (x + sigma**2 * prediction) / jnp.maximum(alpha, _LOWEST_ALPHA)
    if kind == "v":
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)
    assert rates is not None
    d_alpha, d_sigma = rates
    return (sigma * prediction - d_sigma * x) / (d_alpha * sigma - alpha * d_sigma)


def from_x0(
    kind: str, x0: Sample, x: Sample, alpha: Scalar, sigma: Scalar, rates: tuple[Array, Array] | None = None
) -> Sample:
    """The prediction of a given kind that corresponds to a Tweedie mean; the inverse of `to_x0`.

    Raises:
        ValueError: if the kind is unknown, or `velocity` has no rates.
    """
    _check(kind, rates)
    if kind == "x0":
        return x0
    noise = (x - alpha * x0) / sigma
    if kind == "eps":
        return noise
    if kind == "score":
        return -noise / sigma
    if kind == "v":
        return alpha * noise - sigma * x0
    assert rates is not None
    return rates[0] * x0 + rates[1] * noise


def eps(look: Lookahead, step: Step) -> Sample:
    """The predicted noise (x - alpha_t x0) / sigma_t at a look."""
    return (look.x - step.alpha_t * look.x0) / step.sigma_t


def score(look: Lookahead, step: Step) -> Sample:
    """The score of the noised law at a look, (alpha_t x0 - x) / sigma_t^2."""
    return (step.alpha_t * look.x0 - look.x) / jnp.square(step.sigma_t)
