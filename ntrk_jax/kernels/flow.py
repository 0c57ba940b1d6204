r"""Kernels of flow models: the probability-flow ODE and the stochastic differential equations that share its marginals.

Along a schedule the velocity is u = alpha' x0 + sigma' eps and, for any diffusion g(t) >= 0,

    dx = [u - (g^2 / 2) score] dt + g dw     (time running from noise to data, dt < 0)

has the same marginals as dx = u dt. Over one row of the grid the velocity is integrated with x0 and eps held fixed,
which for the straight path is the Euler step itself: x_t -> alpha_s x0 + sigma_s eps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from ntrk_jax import tweedie
from ntrk_jax.core import Gaussian, Lookahead, Step, root
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Scalar

__all__ = ["FlowODE", "FlowSDE", "memoryless"]


def memoryless(step: Step) -> Array:
    """The integral of g^2 over a row for the memoryless diffusion g^2 = 2 (sigma sigma' - sigma^2 alpha'/alpha).

    This is the forward process's own noise: its integral is taken as sigma_t^2 times the change of
    log(alpha^2 / sigma^2) that would bring sigma_t / alpha_t to sigma_s / alpha_s, to first order in the row.
    """
    towards_data = (step.alpha_s - step.alpha_t) / step.alpha_s
    return 2.0 * step.sigma_t * ((step.sigma_t - step.sigma_s) + step.sigma_t * towards_data)


@pytree
class FlowODE:
    """The deterministic flow, x_s = x_t + u (s - t) with x0 and eps held fixed over the row.

    Shapes: look.x, look.x0 [*shape] -> Gaussian([*shape], 0).
    Cost per step: none. Deterministic: NTRK has no noise to tilt here, and weights need a stochastic kernel.
    Departs from the paper: exact for curved schedules too, where an Euler step is not.
    References: Lipman et al. 2023, arXiv:2210.02747; Song et al. 2021, arXiv:2011.13456, Eq. 13.
    """

    stochastic = False

    def __call__(self, look: Lookahead, step: Step) -> Gaussian:
        """A point mass at x_s."""
        mean = (
            look.x + (step.alpha_s - step.alpha_t) * look.x0 + (step.sigma_s - step.sigma_t) * tweedie.eps(look, step)
        )
        return Gaussian(mean, jnp.zeros_like(step.sigma_s))


@pytree
class FlowSDE:
    """The flow with noise, any diffusion g: the SDE that keeps the flow's marginals.

        std^2 = min(churn^2 G, sigma_s^2),   mean = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps

    with G the integral of g^2 over the row. To first order in the row this is the Euler-Maruyama step
    mean = x_t + [-u + (g^2 / 2) score] (t - s), std = g sqrt(t - s); the square root keeps the variance of x_s
    where Euler-Maruyama adds to it, and stays stable at alpha = 0, where the memoryless g is infinite.

    Attributes:
        churn: multiplies g; 0 is the flow's ODE, 1 the diffusion itself. At least 0.
        diffusion: None for the memoryless g (the forward process's own noise), or a function of t [] giving g.

    Shapes: look.x, look.x0 [*shape] -> Gaussian([*shape], []).
    Cost per step: none.
    Departs from the paper: the square root instead of its first-order expansion.
    References: Kim et al. 2025 (RBF), arXiv:2503.19385, Eq. 9; Domingo-Enrich et al. 2024, arXiv:2409.08861.
    """

    churn: Scalar = 1.0
    diffusion: Callable[[Scalar], Array] | None = None

    def __post_init__(self) -> None:
        """Refuse a negative churn."""
        if is_concrete(self.churn) and not bool(np.all(np.asarray(self.churn) >= 0)):
            raise ValueError(f"FlowSDE churn must be at least 0, got {self.churn}.")

    @property
    def stochastic(self) -> bool:
        """False where churn is known to be 0, whatever the diffusion."""
        return not (is_concrete(self.churn) and bool(np.all(np.asarray(self.churn) == 0)))

    def __call__(self, look: Lookahead, step: Step) -> Gaussian:
        """N(mean, std^2 I) of x_s."""
        row = memoryless(step) if self.diffusion is None else jnp.square(self.diffusion(step.t)) * (step.t - step.s)
        variance = jnp.minimum(jnp.square(self.churn) * row, jnp.square(step.sigma_s))
        carried = root(jnp.maximum(jnp.square(step.sigma_s) - variance, 0.0))
        none = jnp.where(step.sigma_s > 0, self.churn * root(row), 0.0)  # std where it is 0, with its derivative
        std = jnp.where(variance == 0, none.astype(variance.dtype), root(variance))
        return Gaussian(step.alpha_s * look.x0 + carried * tweedie.eps(look, step), std)
