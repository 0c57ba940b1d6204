r"""The stochastic sampler of Karras et al. with its noise drawn last, so that it is a Gaussian reverse kernel.

The published sampler first raises the noise level by a factor 1 + gamma, then takes a deterministic step. Starting the
same chain half a step later, each row first denoises below its target level and then draws noise up to it:

    down = sigma_s / (1 + gamma),    x_s = alpha_s x0 + down eps + noise sqrt(sigma_s^2 - down^2) z.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ntrk_jax import tweedie
from ntrk_jax.core import Gaussian, Lookahead, Step, root
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Scalar

__all__ = ["EDM"]


@pytree
class EDM:
    """The churned sampler of Karras et al. in noise-last form, first order.

        gamma(s) = gamma where low <= sigma_s / alpha_s <= high, else 0
        std      = noise sigma_s sqrt(1 - (1 + gamma)^-2),    mean = alpha_s x0 + sigma_s / (1 + gamma) eps

    Attributes:
        gamma: the noise added in one row relative to the level; the paper's min(S_churn / num_steps, sqrt(2) - 1).
        low, high: the noise-to-signal ratios between which noise is added (S_tmin, S_tmax).
        noise: the factor S_noise on the noise, slightly above 1 in the paper's settings.

    Shapes: look.x, look.x0 [*shape] -> Gaussian([*shape], []).
    Cost per step: none.
    Departs from the paper: noise last instead of first (the same chain, read half a row later); Euler, not Heun,
        because a second model call would not be a look; written for any (alpha, sigma).
    References: Karras et al. 2022, arXiv:2206.00364, Algorithm 2.
    """

    gamma: Scalar = 0.2
    low: Scalar = 0.0
    high: Scalar = float("inf")
    noise: Scalar = 1.0

    def __post_init__(self) -> None:
        """Refuse negative factors."""
        for name in ("gamma", "noise"):
            value = getattr(self, name)
            if is_concrete(value) and not np.all(np.asarray(value) >= 0):
                raise ValueError(f"EDM {name} must be at least 0, got {value}.")
        if is_concrete(self.low) and is_concrete(self.high) and not np.all(np.less_equal(self.low, self.high)):
            raise ValueError(f"EDM needs low <= high, got {self.low} and {self.high}.")

    @property
    def stochastic(self) -> bool:
        """False where gamma or the factor on the noise is known to be 0."""
        return not any(is_concrete(f) and bool(np.all(np.asarray(f) == 0)) for f in (self.gamma, self.noise))

    def __call__(self, look: Lookahead, step: Step) -> Gaussian:
        """N(mean, std^2 I) of x_s."""
        ratio = step.sigma_s / step.alpha_s
        inside = (ratio >= self.low) & (ratio <= self.high)
        kept = jnp.where(inside, 1.0 / (1.0 + jnp.asarray(self.gamma, ratio.dtype)), jnp.ones_like(ratio))
        std = self.noise * step.sigma_s * root((1.0 - kept) * (1.0 + kept))
        return Gaussian(step.alpha_s * look.x0 + kept * step.sigma_s * tweedie.eps(look, step), std)
