"""Best-of-N: independent paths, of which the one with the highest true reward is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntrk_jax.core import Evals, Info, Sampler, State, Status, Step
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
        """Refuse an empty population, and a look without a reward to choose by."""
        if self.num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {self.num_particles}.")
        look = getattr(self.sampler, "look", None)
        if look is not None and look.reward is None and look.value is None:
            raise ValueError("BestOfN chooses by reward; give the sampler's Look a reward.")

    def init(self, key: Key, x: Array, first: Step) -> State:
        """N looks at N initial noises."""
        if x.shape[0] != self.num_particles:
            raise ValueError(
                f"x must have shape [num_particles={self.num_particles}, *shape], got {x.shape}; "
                f"pass {self.num_particles} initial noises."
            )
        keys = jax.random.split(key, self.num_particles)
        states = jax.vmap(self.sampler.init, (0, 0, None))(keys, x, first)
        evals = Evals(*(jnp.sum(n, 0) for n in states.evals))
        return State(states.look, jnp.zeros_like(states.look.value), evals, _any_bits(states.status))

    def step(self, key: Key, state: State, step: Step) -> tuple[State, Info]:
        """N independent steps; at sigma = 0 the weights choose."""
        num = self.num_particles
        keys = jax.random.split(key, num)
        spread = state._replace(
            evals=jax.tree.map(lambda n: jnp.zeros((num,), n.dtype), state.evals),
            status=jnp.zeros((num,), jnp.int32),
        )
        moved, info = jax.vmap(self.sampler.step, (0, 0, None))(keys, spread, step)
        spent = jax.tree.map(lambda n: jnp.sum(n, 0), info.evals)
        status = _any_bits(info.status)
        weights = jnp.where(step.sigma_s == 0, _choose(moved.look.value), jnp.zeros_like(moved.look.value))
        state = State(moved.look, weights, state.evals + spent, state.status | status)
        ess = jnp.where(step.sigma_s == 0, 1.0, float(num)).astype(weights.dtype)
        return state, Info(jnp.max(moved.look.value), ess, jnp.zeros((), weights.dtype), status, spent)


def _choose(values: Array) -> Array:
    finite = jnp.where(jnp.isfinite(values), values, -jnp.inf)
    best = jnp.arange(values.shape[0]) == jnp.argmax(finite)
    return jnp.where(best, 0.0, -jnp.inf).astype(values.dtype)


def _any_bits(status: Array) -> Array:
    bits = [jnp.where(jnp.any((status & b) > 0), jnp.int32(b), jnp.int32(0)) for b in _BITS]
    return bits[0] | bits[1] | bits[2] | bits[3]


_BITS = (Status.NONFINITE_REWARD, Status.NONFINITE_GRAD, Status.NONFINITE_SAMPLE, Status.DEAD_WEIGHTS)


def draw(key: Key, state: State) -> State:
    """One member of a population, drawn in proportion to its weight; the state of a single sample.

    For `BestOfN` it is the best particle. Works on the final state of any population sampler.
    """
    if state.log_weights.ndim != 1:
        raise ValueError(f"draw needs a population with log_weights [num_particles], got {state.log_weights.shape}.")
    index = jax.random.categorical(key, state.log_weights)
    look = jax.tree.map(lambda a: a[index], state.look)
    return state._replace(look=look, log_weights=state.log_weights[index])
