r"""Guidance of a flow's velocity that asks the network nothing more: no extra call, no backward pass through it.

Under p exp(lambda r) / Z, lambda = 1 / temperature, the Tweedie mean moves by delta, and every parametrisation with it:

    x0* = x0 + delta,     delta = Cov(x_0, exp(lambda r) | x_t) / E[exp(lambda r) | x_t],
    v*  = v + (alpha' - sigma' alpha / sigma) delta      (on the straight path alpha = 1 - t, sigma = t: v - delta / t).

| rule | delta | exact for |
|---|---|---|
| `Reweighted` | sum_i (w*_i - w_i) x_i, over stored draws x_i of the base | any law and reward, as draws grow |
| `FirstOrder` | lambda C dr/dx0 | r linear: Gaussian data, and any data to first order in lambda |
| `FirstOrder`, damped | lambda C (I + lambda k C)^-1 dr/dx0 | Gaussian data and r = -(k / 2) abs(x - c)^2 |

with w_i proportional to q(x_t | x_i) = N(x_t; alpha x_i, sigma^2 I), w*_i to w_i exp(lambda r_i), C = Cov(x_0 | x_t).
For Gaussian data N(mu, s^2 I), C = s^2 sigma^2 / (s^2 alpha^2 + sigma^2): a number, known before the run.

The damping is what the curvature of r does: N(m, C) tilted by -(lambda k / 2) |x - c|^2 has precision C^-1 + lambda k,
and so its mean moves by (I + lambda k C)^-1 C lambda k (c - m), where k (c - m) is the gradient at m. Without it the
shift overshoots wherever lambda k C is not small: at pure noise, by the factor 1 + lambda k s^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import Gaussian, Lookahead, Step, Tilt
from ntrk_jax.guidance.base import Strength, require, strength_at
from ntrk_jax.guidance.shift import ascend, gain
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = ["FirstOrder", "Reweighted"]


@pytree
class FirstOrder:
    """Shift x0 by the posterior's covariance times the reward's own gradient, damped by the reward's curvature.

        delta = lambda C (I + lambda k C)^-1 dr/dx0

    Attributes:
        strength: lambda = 1 / temperature, at least 0: a number or a function of the grid's row.
        spread: s, the standard deviation of the data, from which C = s^2 sigma^2 / (s^2 alpha^2 + sigma^2).
        curvature: k, at least 0, minus the second derivative of r; 0 leaves the damping out.
        covariance: None, or a function (x, alpha, sigma) -> [], [N] or [N, N] that knows C, such as
            `lambda x, alpha, sigma: law.posterior(x, alpha, sigma).cov()` for a `targets.GaussianMixture`.

    Shapes: look.x0, base.mean [*shape], N entries.
    Cost per step: one reward gradient (times the draws of a smoothed value), no model call and no model VJP, so
        Look(grad=False); a linear system of N unknowns where C is a matrix.
    Density: the last row, where std = 0, is shifted too and carries no ratio, so none is given.
    Errors: ValueError for a reward that has no gradient, a negative strength, spread or curvature. A gradient that is
        not finite makes no step and sets a flag.
    Departs from the paper: any schedule, any kernel, any k, any covariance (published: straight path, k = 2). C stands
        in place of the denoiser's Jacobian, which costs a backward pass; for Gaussian data they are the same.
    References: Feng et al. 2025, arXiv:2502.02150 (gradient guidance with a posterior variance);
        Dandapanthula and Boffi 2026, arXiv:2606.02884 (the damping).

    Example:
        >>> import ntrk_jax as nk
        >>> look = nk.Look(lambda x, t: 0.5 * x, nk.rewards.Quadratic(2.0, 0.0))
        >>> rule = nk.guidance.FirstOrder(3.0, curvature=2.0)
        >>> nk.Single(look, nk.kernels.FlowODE(), rule).guidance.needs_grad
        False
    """

    strength: Strength = 1.0
    spread: Scalar = 1.0
    curvature: Scalar = 0.0
    covariance: Callable[[Sample, Array, Array], Array] | None = None

    needs_grad = False
    needs_reward_grad = True
    exact = False

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        require("FirstOrder strength", self.strength, 0.0, float("inf"))
        require("FirstOrder spread", self.spread, 0.0, float("inf"))
        require("FirstOrder curvature", self.curvature, 0.0, float("inf"))

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The shift of the mean."""
        g, tilt = ascend(look, step, probe, key, 1.0, 1)
        dtype = look.x0.dtype
        strength = jnp.asarray(strength_at(self.strength, step), dtype)
        damping = strength * jnp.asarray(self.curvature, dtype)
        c = self._posterior(look, step).astype(dtype)
        if c.ndim == 2:
            system = jnp.eye(g.size, dtype=dtype) + damping * c
            delta = strength * jnp.linalg.solve(system, jnp.matmul(c, g.reshape(-1), precision="highest"))
        else:
            delta = strength * c / (1.0 + damping * c) * (g.reshape(-1) if c.ndim else g)
        return tilt._replace(mean=gain(look, base, step) * delta.reshape(g.shape))

    def _posterior(self, look: Lookahead, step: Step) -> Array:
        """Cov(x_0 | x_t), or what stands for it: [], [N] or [N, N]."""
        if self.covariance is not None:
            return jnp.asarray(self.covariance(look.x, step.alpha_t, step.sigma_t))
        data, noise = jnp.square(jnp.asarray(self.spread, look.x0.dtype)), jnp.square(step.sigma_t)
        return data * noise / (data * jnp.square(step.alpha_t) + noise)


@pytree
class Reweighted:
    """Shift x0 by what exp(r / temperature) does to the weights of stored draws: exact as their number grows.

        delta = sum_i (w*_i - w_i) x_i,   w = softmax(log q(x_t | x_i)),   w* = softmax(log q(x_t | x_i) + lambda r_i)

    The rewards are of the stored draws, evaluated once, so the reward may be anything that gives a number.

    Attributes:
        samples: x_i [B, *shape], draws of the base law (training data, or the model's own).
        rewards: r(x_i) [B], in the units of the temperature.
        strength: lambda = 1 / temperature, at least 0: a number or a function of the grid's row.

    Shapes: look.x, base.mean [*shape].
    Cost per step: O(B N) for N entries; no model call, no reward call, no gradient.
    Density: as for `FirstOrder`, none.
    Errors: ValueError if samples and rewards do not go together, or a reward is not finite.
    Departs from the paper: x_0 and noise are independent, as in a model trained without coupling; x_0 under the base is
        the model's own x0, so that only the difference of two weighted means is estimated.
        Where few draws lie within sigma_t / alpha_t of x_t / alpha_t, as always near t = 0 and soon in many dimensions,
        one weight is 1 and the shift is 0: the guidance then ends early.
    References: Feng et al. 2025, arXiv:2502.02150, the Monte Carlo estimate of the guidance.

    Example:
        >>> import jax.numpy as jnp, ntrk_jax as nk
        >>> rule = nk.guidance.Reweighted(jnp.array([[-1.0], [1.0]]), jnp.array([0.0, 2.0]))
        >>> rule.needs_grad, rule.exact
        (False, False)
    """

    samples: Any
    rewards: Any
    strength: Strength = 1.0

    needs_grad = False
    exact = False

    def __post_init__(self) -> None:
        """Refuse draws without rewards, rewards that are not finite, and a negative strength."""
        require("Reweighted strength", self.strength, 0.0, float("inf"))
        if np.ndim(self.rewards) != 1 or np.shape(self.samples)[:1] != np.shape(self.rewards):
            raise ValueError(
                "Reweighted needs one reward for each stored sample, samples [B, *shape] and rewards [B], got shapes "
                f"{np.shape(self.samples)} and {np.shape(self.rewards)}."
            )
        if is_concrete(self.rewards) and not np.all(np.isfinite(np.asarray(self.rewards))):
            raise ValueError("Reweighted needs finite rewards of its stored samples; leave out the others.")

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The shift of the mean."""
        dtype = look.x0.dtype
        draws = jnp.asarray(self.samples, dtype)
        if draws.shape[1:] != look.x.shape:
            raise ValueError(f"the stored samples must have the shape of x, {look.x.shape}, got {draws.shape[1:]}.")
        draws, x = draws.reshape(draws.shape[0], -1), look.x.reshape(-1)
        strength = jnp.asarray(strength_at(self.strength, step), dtype)
        away = (x[None] - step.alpha_t * draws) / step.sigma_t
        logs = -0.5 * jnp.sum(jnp.square(away), axis=1)
        change = jax.nn.softmax(logs + strength * jnp.asarray(self.rewards, dtype)) - jax.nn.softmax(logs)
        change = jnp.where(strength > 0, change, jnp.zeros_like(change))
        delta = jnp.matmul(change, draws, precision="highest").reshape(look.x.shape)
        return Tilt(mean=gain(look, base, step) * delta)
