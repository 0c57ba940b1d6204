r"""Adjoint Matching: fine-tuning by a reward's gradient whose optimum is the exact tilted law.

A chain x_s = m(x_t) + std z of a base model, a reward at its end and lambda = 1 / temperature. The chain that
maximises lambda E[r] - KL(path | base path) is the base one with each kernel reweighted by exp(V_s), where V = lambda
r at the end and V_t(x) = log E[exp(V_s) | x_t = x]; if the kernel is *memoryless* (noise independent of data, as for
DDIM(1), DDPM and FlowSDE()) its ends are p exp(lambda r) / Z. Differentiating V_t under the expectation, m' the
Jacobian of the base step,

    grad V_t(x) = m'(x)^T E*[grad V_s(x_s) | x_t = x],

so the *lean adjoint* a_t = m'(x_t)^T a_s, from a = -lambda grad r at the end back along a path of the tilted chain, has
-E*[a_t | x_t] = grad V_t, and the tilted law's Tweedie mean is x0 + (sigma_t^2 / alpha_t) grad V_t. Hence the loss

    mean over rows of (gain / std)^2 |x0_theta - x0 + (sigma_t^2 / alpha_t) a_t|^2,       path and adjoint held fixed,

where gain is how far m moves with x0: both terms are the drift's, in units of the noise, and to first order in the row
the second is std a. The paths are those of the model in training; its fixed point is the tilted law's denoiser.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import Kernel, Lookahead, Reward, Step
from ntrk_jax.guidance.shift import gain, tweedie_gain
from ntrk_jax.kernels import DDIM
from ntrk_jax.models import FlaxDenoiser
from ntrk_jax.move import in_algebra
from ntrk_jax.training.paths import base_gaussian, require_noise, walk, with_params
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["AdjointMatching", "lean_adjoint"]


def lean_adjoint(
    model: FlaxDenoiser, reward: Reward, kernel: Kernel, steps: Step, path: Array, temperature: Scalar = 1.0
) -> Array:
    """The lean adjoint along a path: the end's -grad r / temperature pulled back through the base's noiseless steps.

    Args:
        model: the base. path: [num_steps + 1, *shape], both ends with it.

    Returns:
        [num_steps + 1, *shape]; minus its mean given x_t, over paths of the tilted chain, is the gradient of the value.

    Cost: one model call, one model VJP a row and one reward gradient; memory of one row.
    """
    dtype = path.dtype
    end = -jax.grad(lambda x: jnp.asarray(reward(x)).astype(dtype))(path[-1]) / jnp.asarray(temperature, dtype)

    def back(a: Array, row: tuple[Step, Sample]) -> tuple[Array, Array]:
        step, x = row
        _, pull = jax.vjp(lambda x: base_gaussian(model, kernel, x, step).mean.astype(dtype), x)
        (a,) = pull(a)
        return a, a

    _, adjoints = jax.lax.scan(back, end, (steps, path[:-1]), reverse=True)
    return jnp.concatenate([adjoints, end[None]])


@pytree
class AdjointMatching:
    """Regress the model's drift on the lean adjoint along its own paths: loss(key, params, noise) -> [].

        mean over rows of (gain / std)^2 |x0_theta - x0 + (sigma_t^2 / alpha_t) a_t|^2 / N

    Attributes:
        model: the base, a `FlaxDenoiser` or another denoiser with `variables`, which stay as they are and are where
            `params` starts.
        reward: differentiable. steps: the grid of the chain, at least two rows.
        temperature: [], positive. kernel: memoryless: `DDIM(1.0)` (the same as `DDPM()`) or `FlowSDE()`.
        num_rows: how many rows a path is trained on, drawn afresh without replacement; None takes all.
        clip: [], the largest root mean square of an adjoint; larger ones are shortened. Early in training the adjoint
            of a steep reward is long where its gradient is far from that at the tilted law.

    Optimum: the exact tilted law p exp(r / temperature) / Z, up to the chain's discretisation.
    Shapes: noise [*shape], N entries: one draw of the chain's start, sigma times N(0, I). Result [].
    Cost: a path's NFE of the model in training, the same of the base with a VJP each, num_rows calls of either for the
        regression with one model gradient, one reward gradient. Memory: a path, and one row's activations.
    Errors: ValueError for a kernel without noise, num_rows out of range, a temperature that is not positive.
    Departs from the paper: any schedule; the target is a shift of x0, which is exact for the adjoint's mean on rows of
        any size, where that of the drift is so to first order; a row from pure noise (alpha_t < 1e-3) takes
        (sigma_s^2 / alpha_s) a_s, which the limit exceeds by alpha_s Cov[x_0] a_s, a covariance that is not known here:
        no time is cut off, at an error of that order in the first row; rows drawn uniformly; `clip` in place of
        dropping the samples of the largest losses.
    References: Domingo-Enrich et al. 2024, arXiv:2409.08861, Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> path = nk.schedules.RectifiedFlow()
        >>> base = nk.models.FlaxDenoiser(lambda w, x, t: w * x, "x0", jnp.array(0.5), path)
        >>> steps = nk.grid(path, nk.grids.uniform(8))
        >>> loss = AdjointMatching(base, nk.rewards.Linear(jnp.ones(2)), steps)
        >>> bool(jax.grad(loss, argnums=1)(jax.random.key(0), jnp.array(0.5), jnp.ones(2)) != 0)
        True
    """

    model: FlaxDenoiser
    reward: Any
    steps: Step
    temperature: Scalar = 1.0
    kernel: Kernel = DDIM(1.0)
    num_rows: int | None = static(default=None)
    clip: Scalar = float("inf")

    def __post_init__(self) -> None:
        """Refuse chains without noise and numbers that mean nothing."""
        require_noise("AdjointMatching", self.kernel, self.steps)
        rows = self.steps.num_steps - 1
        if self.num_rows is not None and not 1 <= self.num_rows <= rows:
            raise ValueError(f"num_rows must be between 1 and {rows}, the rows that draw noise, got {self.num_rows}.")
        if is_concrete(self.temperature) and not np.all(np.asarray(self.temperature) > 0):
            raise ValueError(f"temperature must be positive, got {self.temperature}.")
        if not getattr(self.reward, "differentiable", True):
            raise ValueError(f"AdjointMatching needs a differentiable reward, got {type(self.reward).__name__}.")

    def __call__(self, key: Key, params: PyTree, noise: Sample) -> Array:
        """The loss of one path."""
        path_key, row_key = jax.random.split(key)
        path = walk(with_params(self.model, params, frozen=True), self.kernel, path_key, noise, self.steps)
        adjoints = lean_adjoint(self.model, self.reward, self.kernel, self.steps, path, self.temperature)
        adjoints = jax.lax.stop_gradient(_shortened(adjoints, self.clip))
        rows = self.steps.rows(0, self.steps.num_steps - 1), path[:-2], adjoints[:-2], adjoints[1:-1]
        if self.num_rows is not None:
            chosen = jax.random.permutation(row_key, self.steps.num_steps - 1)[: self.num_rows]
            rows = jax.tree.map(lambda a: a[chosen], rows)

        def add(total: Array, row: tuple[Step, Sample, Sample, Sample]) -> tuple[Array, None]:
            return total + self._row(params, *row), None

        total, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros((), adjoints.dtype), rows)
        return total / rows[1].shape[0]

    def _row(self, params: PyTree, step: Step, x: Sample, at_t: Sample, at_s: Sample) -> Array:
        """The mean square of one row, from the adjoints at its two ends."""
        look, step = in_algebra(Lookahead(x, self.model(x, step.t)), step)
        base = self.kernel(look, step)
        moved = base_gaussian(with_params(self.model, params), self.kernel, x, step).mean - base.mean
        limit = jnp.square(step.sigma_s) / step.alpha_s * at_s
        aim = jnp.where(step.alpha_t >= 1e-3, tweedie_gain(step) * at_t, limit)
        return jnp.mean(jnp.square((moved + gain(look, base, step) * aim) / base.std))


def _shortened(adjoints: Array, clip: Scalar) -> Array:
    """Adjoints [rows, *shape] of a root mean square of at most clip."""
    axes = tuple(range(1, adjoints.ndim))
    rms = jnp.sqrt(jnp.mean(jnp.square(adjoints), axis=axes, keepdims=True))
    limit = jnp.asarray(clip, adjoints.dtype)
    return adjoints * jnp.where(rms > limit, limit / jnp.where(rms > 0, rms, jnp.ones_like(rms)), jnp.ones_like(rms))
