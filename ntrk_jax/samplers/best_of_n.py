"""Best-of-N: independent paths, of which the one with the highest true reward is kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import require_count
from ntrk_jax.core import Info, Sampler, State, Step
from ntrk_jax.samplers.population import advance, start
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key

__all__ = ["BestOfN", "draw"]


@pytree
class BestOfN:
    """N independent runs of a sampler; the final weights choose the one with the highest reward.

    KL divergence of the result to the sampler's own law is at most log N - (N - 1)/N.

    Attributes:
        sampler: the sampler that is run N times, `Single` as a rule.
        num_particles: N.

    Shapes: x [num_particles, *shape]. At sigma = 0 `state.log_weights` [num_particles] is 0 for the best particle and
        -inf for the others (`nk.draw(key, state)` returns it); before, all are 0.
    Cost per step: N steps of the sampler. Particles run in one vmapped batch: memory grows with N.
    Status: the flags of all particles together; a particle whose reward is not finite is never chosen.
    Density: not a tilted law for any temperature.
    Departs from the paper: nothing.
    References: Stiennon et al. 2020, arXiv:2009.01325; Nakano et al. 2021, arXiv:2112.09332.
    """

    sampler: Sampler
    num_particles: int = static(default=4)

    def __post_init__(self) -> None:
        """Refuse an empty population, populations of populations, and a look without a reward to choose by."""
        require_count(num_particles=self.num_particles)
        look = getattr(self.sampler, "look", None)
        if look is not None and look.reward is None and look.value is None:
            raise ValueError("BestOfN chooses by reward; give the sampler's Look a reward.")
        several = getattr(self.sampler, "num_particles", None) and getattr(self.sampler, "population", True)
        if several or getattr(self.sampler, "over_rollouts", False):
            raise ValueError(f"BestOfN runs samplers of one path, got {type(self.sampler).__name__}.")

    def init(self, key: Key, x: Array, first: Step) -> State:
        """N looks at N initial noises."""
        state = start(self.sampler, key, x, first, self.num_particles)
        return state._replace(log_weights=jnp.zeros_like(state.look.value))

    def step(self, key: Key, state: State, step: Step) -> tuple[State, Info]:
        """N independent steps; at sigma = 0 the weights choose."""
        num = self.num_particles
        look, _, spent, status = advance(self.sampler, key, state.look, step, num)
        weights = jnp.where(step.sigma_s == 0, _choose(look.value), jnp.zeros_like(look.value))
        state = State(look, weights, state.evals + spent, state.status | status)
        ess = jnp.where(step.sigma_s == 0, 1.0, float(num)).astype(weights.dtype)
        return state, Info(jnp.max(look.value), ess, jnp.zeros((), weights.dtype), status, spent)


def _choose(values: Array) -> Array:
    finite = jnp.where(jnp.isfinite(values), values, -jnp.inf)
    best = jnp.arange(values.shape[0]) == jnp.argmax(finite)
    return jnp.where(best, 0.0, -jnp.inf).astype(values.dtype)


def draw(key: Key, state: Any) -> Any:
    """One member of a population, drawn in proportion to its weight; the state of a single sample.

    For `BestOfN` it is the best particle. Works on the final state of any population sampler.
    """
    if state.log_weights.ndim != 1 or jnp.ndim(state.status):
        raise ValueError(
            f"draw needs one population, with log_weights [num_particles], got {state.log_weights.shape} and flags "
            f"{jnp.shape(state.status)}; vmap it over a batch of populations."
        )
    index = jax.random.categorical(key, state.log_weights)
    own = {"look", "log_weights", "memory", "ancestors", "untilted"} & set(state._fields)
    return state._replace(**{name: jax.tree.map(lambda a: a[index], getattr(state, name)) for name in own})
