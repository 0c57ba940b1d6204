"""Guidance of a flow's velocity without another network call and without a backward pass through the network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import require_temperature
from ntrk_jax.core import Denoiser, Guidance, Kernel, Reward
from ntrk_jax.guidance import FirstOrder, Reweighted
from ntrk_jax.kernels import FlowODE
from ntrk_jax.methods.entry import Entry, look_at
from ntrk_jax.samplers import Single
from ntrk_jax.tree import through
from ntrk_jax.typing import Scalar

__all__ = ["flow_damped", "flow_first_order", "flow_monte_carlo"]


def flow_monte_carlo(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    samples: Any = None,
    rewards: Any = None,
    num_samples: int = 4096,
    kernel: Kernel | None = None,
) -> Single:
    """Velocity guidance by stored draws of the base, reweighted by their rewards.

    samples: [B, *shape], draws of the base law; None draws num_samples from the law that an exact model carries.
    rewards: [B], of the samples; None evaluates them here, once.
    """
    if samples is None:
        samples = _drawn(model, num_samples, shape)
    rewards = jax.vmap(reward)(jnp.asarray(samples)) if rewards is None else rewards
    return _flow(model, reward, shape, Reweighted(samples, rewards, _inverse(temperature)), kernel)


def flow_first_order(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    spread: Scalar = 1.0,
    covariance: Any = None,
    kernel: Kernel | None = None,
) -> Single:
    """Velocity guidance by the posterior's covariance and the reward's own gradient.

    spread: the standard deviation of the data. covariance: (x, alpha, sigma) -> Cov(x_0 | x_t), where it is known.
    """
    return _flow(model, reward, shape, FirstOrder(_inverse(temperature), spread, 0.0, covariance), kernel)


def flow_damped(
    model: Denoiser,
    reward: Reward,
    shape: tuple[int, ...] = (),
    *,
    temperature: Scalar = 1.0,
    spread: Scalar = 1.0,
    curvature: Scalar | None = None,
    covariance: Any = None,
    kernel: Kernel | None = None,
) -> Single:
    """The same, damped by the reward's curvature, as is exact for data N(mu, spread^2 I) and r = -k/2 |x - c|^2.

    curvature: k; None reads the mean curvature of a linear or quadratic reward.
    """
    k = _curvature(reward) if curvature is None else curvature
    return _flow(model, reward, shape, FirstOrder(_inverse(temperature), spread, k, covariance), kernel)


def _inverse(temperature: Scalar) -> Scalar:
    """The strength that a temperature is; refused if not positive."""
    require_temperature(temperature)
    return 1.0 / temperature


def _flow(model: Denoiser, reward: Reward, shape: tuple[int, ...], rule: Guidance, kernel: Kernel | None) -> Single:
    return Single(look_at(model, reward, shape), kernel or FlowODE(), rule)


def _drawn(model: Any, num: int, shape: tuple[int, ...]) -> Any:
    """Draws from the law that an exact model carries, through its wrappers, [num, *shape]."""
    targets = (getattr(part, "target", None) for part in through(model, "model", "fn"))
    target = next((target for target in targets if target is not None), None)
    if target is None:
        raise ValueError(
            f"flow_monte_carlo reweights draws of the base law, and {type(model).__name__} carries none; pass "
            "samples=..., [B, *shape]: training data, or draws of the model itself."
        )
    draws = target.sample(jax.random.key(0), num)
    return draws.reshape(num, *(shape or draws.shape[1:]))


def _curvature(reward: Any) -> Any:
    """The mean of minus the second derivatives of a quadratic reward, at least 0."""
    if not hasattr(reward, "quadratic"):
        raise TypeError(
            f"flow_damped reads the curvature of a linear or quadratic reward, got {type(reward).__name__}; give "
            "curvature=k, minus the second derivative of the reward, or use flow_first_order."
        )
    p = reward.quadratic()[0]
    p = jnp.asarray(0.0 if p is None else p)
    return jnp.maximum(jnp.mean(jnp.diagonal(p)) if p.ndim else p, 0.0)


_NEEDS = "model, differentiable reward"
_COST = "1 NFE, 1 reward gradient"

ENTRIES: dict[str, Entry] = {
    "flow_monte_carlo": Entry(
        flow_monte_carlo, "velocity guidance by stored draws", "model, any reward, draws of the base", "1 NFE",
        "the tilted law as draws and steps grow", "temperature", float("inf"), low=1e-30,
    ),
    "flow_first_order": Entry(
        flow_first_order, "velocity guidance, posterior variance", _NEEDS, _COST,
        "for data N(mu, spread^2 I) and a linear reward, as steps grow", "temperature", float("inf"), low=1e-30,
    ),
    "flow_damped": Entry(
        flow_damped, "velocity guidance, damped", _NEEDS + " of known curvature", _COST,
        "for data N(mu, spread^2 I) and r = -k/2 abs(x - c)^2, as steps grow", "temperature", float("inf"), low=1e-30,
    ),
}  # fmt: skip
