r"""A population whose initial noises are drawn by Markov chains from the noise law tilted by the value:

    pi(x_T) ~ N(x_T; 0, sigma_T^2 I) exp(v(x_T) / temperature).

The chains are preconditioned Crank-Nicolson Langevin, whose acceptance does not fall with the dimension. In units of
sigma_T, with g = sigma_T d v / d x and a step size h,

    u' = c u + sqrt(1 - c^2) (z + sqrt(h)/2 g / temperature),     c = (1 - h/4) / (1 + h/4),

accepted with probability min(1, exp(L(u', u) - L(u, u'))), where L(a, b) is log pi(a) q(b | a) up to what is symmetric
in a and b:

    L(a, b) = v(a) / temperature + sqrt(h)/2 (g_a / temperature) . (b - c a) / sqrt(1 - c^2)
              - h/8 |g_a / temperature|^2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import Evals, Info, Lookahead, Step
from ntrk_jax.resampling import log_mean_exp
from ntrk_jax.samplers.population import Population, any_bits, hopeful, require_particles, tilted, total
from ntrk_jax.samplers.smc import SMC
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, Scalar
from ntrk_jax.varying import vary

__all__ = ["PCNL", "WarmStart"]


@pytree
class PCNL:
    """Preconditioned Crank-Nicolson Langevin chains on the initial noise.

    Attributes:
        temperature: of the chains' target.
        step_size: h, in (0, 4); larger moves further and is refused more often.
        num_chains: how many run side by side. Static.
        num_burn: steps of each chain before the first noise is kept. Static.

    References: Cotter et al. 2013, arXiv:1202.0709; Yoon et al. 2025 (Psi-Sampler), arXiv:2506.01320, section 4.
    """

    temperature: Scalar = 1.0
    step_size: Scalar = 0.5
    num_chains: int = static(default=1)
    num_burn: int = static(default=25)

    def __post_init__(self) -> None:
        """Refuse a step size outside (0, 4] and no chains."""
        if is_concrete(self.step_size) and not bool(np.all((np.asarray(self.step_size) > 0) & (self.step_size <= 4))):
            raise ValueError(f"PCNL step_size must lie in (0, 4], got {self.step_size}.")
        if self.num_chains < 1 or self.num_burn < 0:
            raise ValueError("PCNL needs num_chains of at least 1 and num_burn of at least 0.")

    def propose(self, key: Key, seen: Lookahead, scale: Scalar) -> Array:
        """A proposal from one look, [*shape]."""
        shrink, spread = self._coefficients(seen.x0.dtype)
        z = jax.random.normal(key, seen.x0.shape, seen.x0.dtype)
        u = seen.x.astype(z.dtype) / scale
        return (scale * (shrink * u + spread * (z + self._drift(seen, scale)))).astype(seen.x.dtype)

    def log_accept(self, new: Lookahead, old: Lookahead, scale: Scalar) -> Array:
        """The log Metropolis-Hastings ratio, []."""
        return self._forth(new, old, scale) - self._forth(old, new, scale)

    def _drift(self, seen: Lookahead, scale: Scalar) -> Array:
        size = jnp.asarray(self.step_size, seen.x0.dtype)
        return 0.5 * jnp.sqrt(size) * scale * seen.grad / self.temperature

    def _coefficients(self, dtype: Any) -> tuple[Array, Array]:
        size = jnp.asarray(self.step_size, dtype)
        return (1.0 - 0.25 * size) / (1.0 + 0.25 * size), jnp.sqrt(size) / (1.0 + 0.25 * size)

    def _forth(self, a: Lookahead, b: Lookahead, scale: Scalar) -> Array:
        dtype = a.x0.dtype
        shrink, spread = self._coefficients(dtype)
        noise = (b.x.astype(dtype) - shrink * a.x.astype(dtype)) / (scale * spread)
        drift = self._drift(a, scale)
        return a.value / self.temperature + jnp.sum(drift * noise) - 0.5 * jnp.sum(jnp.square(drift))


@pytree
class WarmStart:
    """An SMC population started from Markov chains on the initial noise: the Psi-Sampler.

    Attributes:
        sampler: the population, whose Look takes gradients.
        chain: the chains. Each burns in, then every step is kept until there are num_particles noises.

    Shapes: x [num_particles, *shape], of which the first num_chains are the chains' starts. Initial log-weights are
        log psi_T - v / chain.temperature + log C, where C, the mean of exp(v / chain.temperature) at the starts,
        estimates the normaliser of the chains' target: exact where alpha_T = 0, as v is one number there.
    Cost: num_chains (1 + num_burn + ceil(num_particles / num_chains)) looks at the start; then as the sampler.
    Density: exact in the limit of long chains and many particles.
    Departs from the paper: the gradient is not clipped; weights are always carried, never replaced by an earlier row's.
    References: Yoon et al. 2025, arXiv:2506.01320, Algorithm 1.
    """

    sampler: SMC
    chain: PCNL

    def __post_init__(self) -> None:
        """Refuse a look without a gradient."""
        if not self.sampler.look.grad:
            raise ValueError("WarmStart's chains climb the value's gradient; use Look(model, reward, grad=True).")

    @property
    def num_particles(self) -> int:
        """The size of the population."""
        return self.sampler.num_particles

    @property
    def look(self) -> Any:
        """The population's look."""
        return self.sampler.look

    @property
    def kernel(self) -> Any:
        """The population's kernel."""
        return self.sampler.kernel

    def init(self, key: Key, x: Array, first: Step) -> Population:
        """Run the chains, then weigh their noises."""
        num, chains = self.num_particles, min(self.chain.num_chains, self.num_particles)
        require_particles(x, num)
        key_start, key_run = jax.random.split(key)

        def look(key: Key, x: Array) -> tuple[Lookahead, Evals, Array]:
            return self.look.at(key, x, first.t, first.sigma_t)

        seen, evals, status = jax.vmap(look)(jax.random.split(key_start, chains), x[:chains])
        kept = -(-num // chains)
        finite = jnp.where(jnp.isfinite(seen.value), seen.value, jnp.inf)
        floor = jnp.where(jnp.any(jnp.isfinite(finite)), jnp.min(finite), 0.0).astype(seen.value.dtype)

        def hoped(look: Lookahead) -> Lookahead:
            """What is forbidden by its plug-in may yet come back: it counts as the lowest value at the starts."""
            return look._replace(value=jnp.where(jnp.isneginf(look.value), floor, look.value))

        scale = jnp.asarray(first.sigma_t, seen.x0.dtype)

        def advance(carry: tuple, index: Array) -> tuple[tuple, Lookahead]:
            seen, evals, status = carry
            keys = jax.random.split(jax.random.fold_in(key_run, index), (chains, 3))
            x = jax.vmap(self.chain.propose, (0, 0, None))(keys[:, 0], seen, scale)
            new, spent, bits = jax.vmap(look)(keys[:, 1], x)
            new = hoped(new)
            ratio = jax.vmap(self.chain.log_accept, (0, 0, None))(new, seen, scale)
            coins = jax.vmap(lambda k: jax.random.uniform(k, (), ratio.dtype))(keys[:, 2])
            accept = jnp.where(jnp.isfinite(ratio), jnp.log(coins) < ratio, jnp.isfinite(new.value))
            seen = jax.tree.map(lambda a, b: jnp.where(_wide(accept, a), a, b), new, seen)
            return (seen, evals + spent, status | bits), seen

        seen = hoped(seen)
        level = log_mean_exp(seen.value / jnp.asarray(self.chain.temperature, seen.value.dtype))
        level = jnp.where(jnp.isfinite(level), level, jnp.zeros_like(level))
        burn = self.chain.num_burn
        seen, evals, status = vary((seen, evals, status), (key, x, first))
        carry, _ = jax.lax.scan(lambda c, i: (advance(c, i)[0], None), (seen, evals, status), jnp.arange(burn))
        (_, evals, status), path = jax.lax.scan(advance, carry, burn + jnp.arange(kept))
        pool = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num], path)
        return self._weigh(pool, level, total(evals), any_bits(status), first)

    def _weigh(self, look: Lookahead, level: Array, evals: Evals, status: Array, first: Step) -> Population:
        value = hopeful(look, first.sigma_t)
        memory = self.sampler.potential.init(value, first)
        untilted = level - value / jnp.asarray(self.chain.temperature, look.value.dtype)
        weights, top, untilted, dead = tilted(untilted, memory.log_psi)
        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        return Population(look, weights + top, evals, status | dead, memory, own, untilted)

    def step(self, key: Key, state: Population, step: Step) -> tuple[Population, Info]:
        """The population's own step."""
        return self.sampler.step(key, state, step)


def _wide(flags: Array, like: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (like.ndim - 1))
