r"""Gaussian reverse kernels that reach x_s from the Tweedie mean and the predicted noise.

With eps = (x_t - alpha_t x0) / sigma_t every kernel here is

    x_s ~ N(alpha_s x0 + sqrt(sigma_s^2 - std^2) eps, std^2 I),

which keeps the law of x_s for an exact x0 up to the error of replacing x_0 by its mean. They differ in std. The
correlation of the noise before and after is c = sqrt(1 - std^2 / sigma_s^2); that of the forward process itself is
c = alpha_t sigma_s / (alpha_s sigma_t). Works for every schedule, diffusion and flow alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntrk_jax import tweedie
from ntrk_jax.core import Gaussian, Lookahead, Step, root
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Scalar

__all__ = ["DDIM", "DDPM", "Correlated", "forward_correlation"]


def forward_correlation(step: Step) -> Array:
    """The correlation [] of the noise in x_t and in x_s under the forward process."""
    return step.alpha_t * step.sigma_s / (step.alpha_s * step.sigma_t)


def _require_range(name: str, value: Scalar, low: float, high: float) -> None:
    if value is None or isinstance(value, str):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if is_concrete(value) and not bool(np.all((np.asarray(value) >= low) & (np.asarray(value) <= high))):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}.")


@pytree
class DDIM:
    """The DDIM family: eta = 0 is the deterministic sampler, eta = 1 is DDPM's ancestral kernel.

        std = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)

    Attributes:
        eta: how much of the forward process's posterior noise is drawn afresh, in [0, 1].

    Shapes: look.x, look.x0 [*shape] -> Gaussian([*shape], []).
    Cost per step: none.
    Departs from the paper: written for any (alpha, sigma), not for variance-preserving schedules alone.
    References: Song, Meng, Ermon 2020, arXiv:2010.02502, Eq. 12 and 16.
    """

    eta: Scalar = 1.0

    def __post_init__(self) -> None:
        """Refuse an eta outside [0, 1]."""
        _require_range("DDIM eta", self.eta, 0.0, 1.0)

    @property
    def stochastic(self) -> bool:
        """False where eta is known to be 0."""
        return not (is_concrete(self.eta) and bool(np.all(np.asarray(self.eta) == 0)))

    def __call__(self, look: Lookahead, step: Step) -> Gaussian:
        """N(mean, std^2 I) of x_s."""
        c = forward_correlation(step)
        std = self.eta * step.sigma_s * root(jnp.maximum((1.0 - c) * (1.0 + c), 0.0))
        kept = root((1.0 - self.eta) * (1.0 + self.eta) + jnp.square(self.eta * c))  # no cancellation at eta = 1
        return Gaussian(step.alpha_s * look.x0 + kept * step.sigma_s * tweedie.eps(look, step), std)


@pytree
class DDPM:
    """The posterior q(x_s | x_t, x_0) of the forward process with x_0 replaced by its mean.

    With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2 (the variance of x_t given x_s),

        mean = (a sigma_s^2 x_t + alpha_s v x0) / sigma_t^2,     std^2 = sigma_s^2 v / sigma_t^2.

    Shapes: look.x, look.x0 [*shape] -> Gaussian([*shape], []).
    Cost per step: none.
    Departs from the paper: written for any (alpha, sigma); the smaller of its two variances is used.
    References: Ho, Jain, Abbeel 2020, arXiv:2006.11239, Eq. 6 and 7.
    """

    def __call__(self, look: Lookahead, step: Step) -> Gaussian:
        """N(mean, std^2 I) of x_s."""
        a = step.alpha_t / step.alpha_s
        below = jnp.square(step.sigma_t)
        forward = jnp.maximum(below - jnp.square(a * step.sigma_s), 0.0)
        mean = (a * jnp.square(step.sigma_s) / below) * look.x + (step.alpha_s * forward / below) * look.x0
        return Gaussian(mean, step.sigma_s * jnp.sqrt(forward / below))


@pytree
class Correlated:
    """The kernel with a chosen correlation between the noise before and after a step; one-step GLASS.

        std = sigma_s sqrt(1 - correlation^2),   mean = alpha_s x0 + correlation sigma_s eps

    correlation 1 is deterministic DDIM, alpha_t sigma_s / (alpha_s sigma_t) is DDPM, 0 forgets the noise. It makes
    any flow model that was trained for an ODE stochastic.

    Attributes:
        correlation: in [-1, 1], a number or a function of the grid's row (a pytree or a plain function).

    Shapes: look.x, look.x0 [*shape] -> Gaussian([*shape], []).
    Cost per step: none.
    Departs from the paper: one inner step, where the inner flow needs no integration.
    References: Holderrieth et al. 2025, arXiv:2509.25170.
    """

    correlation: Scalar | Callable[[Step], Array] = 0.9

    def __post_init__(self) -> None:
        """Refuse a correlation outside [-1, 1]."""
        _require_range("Correlated correlation", self.correlation, -1.0, 1.0)

    @property
    def stochastic(self) -> bool:
        """False where the correlation is known to be 1 or -1."""
        return not (is_concrete(self.correlation) and bool(np.all(np.abs(np.asarray(self.correlation)) == 1)))

    def __call__(self, look: Lookahead, step: Step) -> Gaussian:
        """N(mean, std^2 I) of x_s."""
        c: Any = self.correlation(step) if callable(self.correlation) else self.correlation
        std = step.sigma_s * root(jnp.maximum((1.0 - c) * (1.0 + c), 0.0))
        return Gaussian(step.alpha_s * look.x0 + c * step.sigma_s * tweedie.eps(look, step), std)
