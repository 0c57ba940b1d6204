r"""DDPO and Flow-GRPO: the policy gradient of a chain of Gaussian steps, from the rewards alone.

A path of a stochastic kernel has the log-density sum_k l_k, with l_k = log N(x_s; m_theta(x_t), std^2 I) on row k.
Paths are drawn once with the weights as they were, and several gradient steps are made on

    loss = mean over rows of max(-A rho_k, -A clip(rho_k, 1 - clip, 1 + clip)) + kl |m_theta - m_ref|^2 / (2 std^2),
    rho_k = exp(l_k^theta - l_k^old),     A = (r - mean r) / (std r + 1e-4) over a group of paths.

The gradient at the old weights is that of -E[A] by the score-function identity: no gradient of the reward is asked for.
Densities are summed over a sample's entries.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_scalar
from ntrk_jax.core import Gaussian, Kernel, Reward, Step
from ntrk_jax.kernels import DDIM, FlowSDE
from ntrk_jax.models import FlaxDenoiser
from ntrk_jax.training.paths import base_gaussian, require_noise, walk, with_params
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["PolicyGradient", "Trajectory", "advantages", "ddpo", "flow_grpo", "gather"]


class Trajectory(NamedTuple):
    """One path and what the policy gradient needs of it.

    path: [num_steps + 1, *shape], both ends with it. log_prob: [num_steps - 1], of the rows that draw noise, under the
    weights that drew it. reward: [], of the end. advantage: [], the reward within its group.
    """

    path: Array
    log_prob: Array
    reward: Array
    advantage: Array


def gather(
    key: Key, params: PyTree, model: FlaxDenoiser, reward: Reward, kernel: Kernel, steps: Step, noise: Array,
    *, group_size: int | None = None,
) -> Trajectory:  # fmt: skip
    """Draw paths with the weights as they are: the data of several steps of `PolicyGradient`.

    Args:
        params: the old weights. noise: [num, *shape], draws of the start. group_size: how many paths share a mean and a
            spread of rewards, one after the other; None makes one group of all. (One group is one prompt.)

    Returns:
        A `Trajectory` of arrays with a leading axis [num], as `training.fit` takes for its data.

    Cost: num paths of num_steps NFE, and as many model calls for the densities; num rewards.

    Raises:
        ValueError: if the kernel draws no noise, or the groups do not divide the paths.
    """
    require_noise("gather", kernel, steps)
    old = with_params(model, params, frozen=True)

    def one(key: Key, x: Sample) -> tuple[Array, Array, Array]:
        path = walk(old, kernel, key, x, steps)
        log_prob = jax.lax.map(
            lambda row: _log_prob(base_gaussian(old, kernel, row[1], row[0]), row[2]), _rows(steps, path)
        )
        return path, log_prob, jnp.asarray(require_scalar(reward(path[-1])))

    path, log_prob, rewards = jax.vmap(one)(jax.random.split(key, noise.shape[0]), noise)
    return Trajectory(path, log_prob, rewards, advantages(rewards, group_size))


def advantages(rewards: Array, group_size: int | None = None, clip: Scalar = 5.0) -> Array:
    """Rewards [num] centred and scaled within groups of `group_size` neighbours, cut to [-clip, clip], [num].

    Raises:
        ValueError: if the groups do not divide the rewards, or a group is a single path.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(a), 2) for a in advantages(jnp.array([0.0, 2.0, 10.0, 30.0]), group_size=2)]
        [-1.0, 1.0, -1.0, 1.0]
    """
    size = rewards.shape[0] if group_size is None else group_size
    if size < 2 or rewards.shape[0] % size:
        raise ValueError(f"groups must be of at least two and divide the {rewards.shape[0]} paths, got {size}.")
    groups = rewards.reshape(-1, size)
    off = groups - jnp.mean(groups, axis=1, keepdims=True)
    spread = jnp.sqrt(jnp.mean(jnp.square(off), axis=1, keepdims=True))
    return jnp.clip(off / (spread + 1e-4), -clip, clip).reshape(-1)


@pytree
class PolicyGradient:
    """The clipped policy-gradient loss of one stored path: loss(key, params, trajectory) -> [].

    Attributes:
        model: a `FlaxDenoiser` or another denoiser with `variables`, which are the reference of the `kl` term.
        steps, kernel: those the paths were gathered with.
        clip: [], how far a ratio of densities may leave 1 before it stops counting.
        kl: [], the weight of the divergence from the reference, at least 0.

    Optimum: with kl = 0 none: the tilt grows with every round, until it seeks modes. With kl > 0 about a tilt of
        temperature kl times the spread of the rewards, which moves; the term leaves out that the states move too, so
        not exactly. The first step goes along Cov(r, x0 | x_t), the derivative of the exact tilt in 1 / temperature.
    Shapes: trajectory: one sample of what `gather` returns. Result [].
    Cost: 2 (num_steps - 1) model calls, as each is made again in the backward pass, as many of the reference and
        num_steps - 1 model gradients; no reward call. Memory: one row's activations.
    Errors: ValueError for a kernel without noise, a clip or kl that is negative.
    Departs from the papers: densities are summed over entries, not averaged, so `clip` is of the order 0.1 and not
        1e-4; the last row, which draws no noise, is left out; all rows count alike.
    References: Black et al. 2023 (DDPO), arXiv:2305.13301; Liu et al. 2025 (Flow-GRPO), arXiv:2505.05470.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> path = nk.schedules.RectifiedFlow()
        >>> model = nk.models.FlaxDenoiser(lambda w, x, t: w * x, "x0", jnp.array(0.5), path)
        >>> loss, noise = ddpo(model, nk.grid(path, nk.grids.uniform(4))), jax.random.normal(jax.random.key(0), (8, 2))
        >>> data = gather(jax.random.key(1), jnp.array(0.5), model, jnp.sum, loss.kernel, loss.steps, noise)
        >>> data.path.shape, data.log_prob.shape
        ((8, 5, 2), (8, 3))
    """

    model: FlaxDenoiser
    steps: Step
    kernel: Kernel = DDIM(1.0)
    clip: Scalar = 0.1
    kl: Scalar = 0.0

    def __post_init__(self) -> None:
        """Refuse a chain without noise and negative numbers."""
        require_noise("PolicyGradient", self.kernel, self.steps)
        for name, value in (("clip", self.clip), ("kl", self.kl)):
            if is_concrete(value) and not np.all(np.asarray(value) >= 0):
                raise ValueError(f"PolicyGradient {name} must be at least 0, got {value}.")

    def __call__(self, key: Key, params: PyTree, trajectory: Trajectory) -> Array:
        """The loss of one path; the key is not used."""
        rows = (*_rows(self.steps, trajectory.path), trajectory.log_prob)

        def add(total: Array, row: tuple[Step, Sample, Sample, Array]) -> tuple[Array, None]:
            return total + self._row(params, trajectory.advantage, *row), None

        total, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros((), trajectory.log_prob.dtype), rows)
        return total / (self.steps.num_steps - 1)

    def _row(self, params: PyTree, advantage: Array, step: Step, x: Sample, x_s: Sample, old: Array) -> Array:
        now = base_gaussian(with_params(self.model, params), self.kernel, x, step)
        ratio = jnp.exp(_log_prob(now, x_s) - old)
        kept = jnp.clip(ratio, 1.0 - self.clip, 1.0 + self.clip)
        reference = base_gaussian(self.model, self.kernel, x, step)
        away = jnp.sum(jnp.square((now.mean - reference.mean) / now.std))
        return jnp.maximum(-advantage * ratio, -advantage * kept) + 0.5 * self.kl * away


def ddpo(model: FlaxDenoiser, steps: Step, *, clip: Scalar = 0.1, kl: Scalar = 0.0) -> PolicyGradient:
    """DDPO: the policy gradient of ancestral sampling, DDIM(1), without a reference."""
    return PolicyGradient(model, steps, DDIM(1.0), clip, kl)


def flow_grpo(
    model: FlaxDenoiser, steps: Step, *, clip: Scalar = 0.1, kl: Scalar = 0.04, noise: Scalar = 0.7
) -> PolicyGradient:
    """Flow-GRPO: the policy gradient of a flow's SDE with diffusion noise sqrt(sigma / alpha), kept near the base.

    On the straight path that diffusion is noise / sqrt(2) times the memoryless one.
    """
    return PolicyGradient(model, steps, FlowSDE(churn=noise / sqrt(2.0)), clip, kl)


def _rows(steps: Step, path: Array) -> tuple[Step, Array, Array]:
    """The rows that draw noise, and the samples at their two ends."""
    return steps.rows(0, steps.num_steps - 1), path[:-2], path[1:-1]


def _log_prob(gaussian: Gaussian, x: Sample) -> Array:
    """Log N(x; mean, std^2 I) up to a constant that std and the size alone decide, []."""
    away = (x.astype(gaussian.mean.dtype) - gaussian.mean) / gaussian.std
    return -0.5 * jnp.sum(jnp.square(away)) - x.size * jnp.log(gaussian.std)
