r"""What stands for the soft value at x_t, in the units of the reward:

    V_t(x) = beta log E[exp(r(x_0) / beta) | x_t = x].

Its gradient is the drift that turns the base kernel into the tilted one. In order of how much is known:

| | V_t(x) | error |
|---|---|---|
| `PlugIn` | r(E[x_0 given x_t]) | a bias that no number of steps removes, unless r is linear and x_0 is certain |
| `Smoothed` | beta log mean exp(r(x0 + width z_i) / beta) | less of the plug-in's bias; one VJP of the model |
| `MonteCarlo` | beta log mean exp(r(x_0^i) / beta) over posterior draws | variance, and a bias of order 1 / num |
| `Learned` | v(x, t), a network | that of the network |
| `Exact` | closed form | none |

A value is called as value(key, x, t, x0, reward). `needs_x0` says whether it looks at x through the model, so that its
gradient costs a model VJP; `num_rewards` how many calls of the reward it makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count, require_scalar, require_schedule, require_temperature
from ntrk_jax.core import soft_mean
from ntrk_jax.schedules import Schedule
from ntrk_jax.tree import derived, is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = ["Exact", "Learned", "MonteCarlo", "PlugIn", "Smoothed"]


@pytree
class PlugIn:
    """The reward of the Tweedie mean, r(x0): what most guidance methods use.

    Shapes: x0 [*shape] -> [].
    Cost: one reward call; the gradient is one reward VJP and one model VJP.

    References:
        Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, arXiv:2209.14687, Eq. 11.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x0 = jnp.array([1.0, 2.0])
        >>> float(PlugIn()(jax.random.key(0), x0, 0.5, x0, jnp.sum))
        3.0
    """

    needs_x0 = True
    num_rewards = 1

    def __call__(self, key: Key, x: Sample, t: Scalar, x0: Sample, reward: Any) -> Array:
        """r(x0), []."""
        return reward(x0)


@pytree
class Smoothed:
    """The plug-in value smoothed over Gaussian draws around x0: beta log mean exp(r(x0 + width z_i) / beta).

        width = gamma sigma / h,  gamma alpha / h  or  gamma,     h = sqrt(alpha^2 + sigma^2)

    for the structure "decrease" (towards the data), "increase" or "constant". With "decrease" and gamma = 1 the width
    is that of the posterior of data N(0, I), and any rule becomes LGD-MC; TFG takes a small gamma.

    Attributes:
        schedule: t -> (alpha, sigma), the one the sampler uses.
        temperature: beta, [], positive.
        gamma: the width's factor, [], at least 0; 0 is the plug-in.
        num_samples: draws a call, static.
        structure: "decrease", "increase" or "constant".

    Shapes: x0 [*shape] -> [].
    Cost: num_samples reward calls; the gradient is as many reward VJPs and one model VJP.
    Errors: ValueError for a temperature or gamma that means nothing, no draws, or an unknown structure.
    References: Song et al. 2023 (LGD-MC), "Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation",
        ICML; Ye et al. 2024 (TFG), arXiv:2409.15761.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntrk_jax import schedules
        >>> value = Smoothed(schedules.VPCosine(), gamma=0.0, num_samples=2)
        >>> round(float(value(jax.random.key(0), jnp.zeros(2), 0.5, jnp.array([1.0, 2.0]), jnp.sum)), 6)
        3.0
    """

    schedule: Schedule
    temperature: Scalar = 1.0
    gamma: Scalar = 1.0
    num_samples: int = static(default=4)
    structure: str = static(default="decrease")
    needs_x0 = True

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        require_schedule(self.schedule)
        require_temperature(self.temperature)
        require_count(num_samples=self.num_samples)
        if is_concrete(self.gamma) and not np.all(np.asarray(self.gamma) >= 0):
            raise ValueError(f"gamma must be at least 0, got {self.gamma}.")
        if self.structure not in ("decrease", "increase", "constant"):
            raise ValueError(f"structure must be 'decrease', 'increase' or 'constant', got {self.structure!r}.")

    @property
    def num_rewards(self) -> int:
        """As many as draws."""
        return self.num_samples

    def __call__(self, key: Key, x: Sample, t: Scalar, x0: Sample, reward: Any) -> Array:
        """The estimate, []; x is not used."""
        alpha, sigma = (jnp.asarray(c, x0.dtype) for c in self.schedule(t))
        share = {"decrease": sigma, "increase": alpha, "constant": jnp.hypot(alpha, sigma)}[self.structure]
        width = jnp.asarray(self.gamma, x0.dtype) * share / jnp.hypot(alpha, sigma)
        draws = x0[None] + width * jax.random.normal(key, (self.num_samples, *x0.shape), x0.dtype)
        rewards = _rewards(reward, draws).astype(x0.dtype)
        return soft_mean(rewards, self.temperature, jnp.full_like(rewards, -float(np.log(self.num_samples))))


@pytree
class Exact:
    """The soft value itself, for a law and a reward whose tilt is known in closed form.

    Attributes:
        mixture: a `targets.GaussianMixture` or `targets.PowerLawField`.
        schedule: t -> (alpha, sigma), the one the sampler uses.
        reward: `rewards.Linear`, `rewards.Quadratic` or another with a closed form.
        temperature: beta, [], positive; that of the method too (`methods.calibrated` checks it).

    Shapes: x [*shape] -> [].
    Cost: no model and no reward call; O(K d^2) for a mixture, two Fourier transforms for a field. The tilted law of a
        quadratic reward is decomposed when the object is made, so a temperature that is swept or differentiated has to
        enter there: build the object, or `nk.replace` the field, inside the vmapped or differentiated function.

    Raises:
        TypeError: if the reward is neither linear nor quadratic.
        ValueError: if the temperature is not positive, or the tilt is not normalisable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntrk_jax import rewards, schedules, targets
        >>> normal = targets.GaussianMixture(jnp.ones(1), jnp.zeros((1, 1)), jnp.ones((1, 1, 1)))
        >>> exact = Exact(normal, schedules.VPCosine(), rewards.Linear(jnp.array([2.0])), 1.0)
        >>> round(float(exact(jax.random.key(0), jnp.array([0.3]), 1.0, None, None)), 6)  # log Z at pure noise
        2.0
    """

    mixture: Any
    schedule: Schedule
    reward: Any
    temperature: Scalar = 1.0
    function: Any = derived()
    needs_x0 = False
    num_rewards = 0

    def __post_init__(self) -> None:
        """Tabulate what does not depend on x."""
        require_schedule(self.schedule)
        object.__setattr__(self, "function", self.mixture.value_function(self.reward, self.temperature))
        if hasattr(self.mixture, "require_fine"):
            self.mixture.require_fine(self.reward, self.temperature)

    def __call__(self, key: Key, x: Sample, t: Scalar, x0: Any = None, reward: Any = None) -> Array:
        """V_t(x), []; the key, x0 and the reward are not used."""
        alpha, sigma = self.schedule(t)
        return self.function(x, alpha, sigma)


@pytree
class MonteCarlo:
    """The soft value estimated from draws of x_0 given x_t: beta log mean exp(r(x_0^i) / beta).

    The gradient in x is that of an estimate whose exponential is unbiased: draws move with x, and the part of the
    posterior that no draw can follow (which component it belongs to) enters through log-weights that are 0 in value.

    Attributes:
        target: a law with `posterior_draws(key, x, alpha, sigma, num) -> (x_0 [num, *shape], log-weights [num])`, for
            instance one of `ntrk_jax.targets`.
        schedule: t -> (alpha, sigma), the one the sampler uses.
        temperature: beta, [], positive.
        num_samples: draws a call, static.

    Shapes: x [*shape] -> [].
    Cost: num_samples reward calls, and as many VJPs for the gradient; no model call.

    Raises:
        ValueError: if the temperature is not positive or there are no draws.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntrk_jax import rewards, schedules, targets
        >>> normal = targets.GaussianMixture(jnp.ones(1), jnp.zeros((1, 1)), jnp.ones((1, 1, 1)))
        >>> value = MonteCarlo(normal, schedules.VPCosine(), num_samples=8)
        >>> value(jax.random.key(0), jnp.array([0.3]), 0.5, None, rewards.Linear(jnp.ones(1))).shape
        ()
    """

    target: Any
    schedule: Schedule
    temperature: Scalar = 1.0
    num_samples: int = static(default=16)
    needs_x0 = False

    def __post_init__(self) -> None:
        """Refuse a temperature or a number that means nothing."""
        require_schedule(self.schedule)
        require_temperature(self.temperature)
        require_count(num_samples=self.num_samples)

    @property
    def num_rewards(self) -> int:
        """As many as draws."""
        return self.num_samples

    def __call__(self, key: Key, x: Sample, t: Scalar, x0: Any, reward: Any) -> Array:
        """The estimate of V_t(x), []; x0 is not used."""
        alpha, sigma = self.schedule(t)
        draws, log_weights = self.target.posterior_draws(key, x, alpha, sigma, self.num_samples)
        rewards = _rewards(reward, draws).astype(log_weights.dtype)
        return soft_mean(rewards, self.temperature, log_weights - float(np.log(self.num_samples)))


@pytree
class Learned:
    """A network's value v(x, t), trained elsewhere to stand for the soft value.

    Attributes:
        apply: (params, x [*shape], t []) -> [], in the units of the reward. Static.
        params: the network's parameters, any pytree.

    Shapes: x [*shape] -> [].
    Cost: one call of the value network; no model and no reward call.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> value = Learned(lambda w, x, t: (1.0 - t) * (w @ x), jnp.ones(2))
        >>> float(value(jax.random.key(0), jnp.array([1.0, 2.0]), 0.5, None, None))
        1.5
    """

    apply: Callable[[Any, Sample, Scalar], Array] = static()
    params: Any = None
    needs_x0 = False
    num_rewards = 0

    def __call__(self, key: Key, x: Sample, t: Scalar, x0: Any = None, reward: Any = None) -> Array:
        """v(x, t), []; the key, x0 and the reward are not used."""
        return self.apply(self.params, x, t)


def _rewards(reward: Any, draws: Array) -> Array:
    """The rewards [num] of draws [num, *shape]."""
    return jax.vmap(lambda x0: require_scalar(reward(x0)))(draws)
