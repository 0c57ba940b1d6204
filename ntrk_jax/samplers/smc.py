r"""Sequential Monte Carlo: a weighted population that is moved, weighed and resampled.

    move    x_s ~ q(. | x_t), any affine rule on any stochastic kernel
    weigh   w <- w [p(x_s | x_t) / q(x_s | x_t)] psi_s(x_s) / psi_t(x_t)
    select  resample where asked; else the weights are carried

The last potential is exp(r / temperature), so that with more particles the weighted population tends to the law of the
base sampler tilted by the reward, whatever the proposal and the potentials in between, and mean(w) is an unbiased
estimate of Z = E[exp(r / temperature)]. FK steering, TDS, DAS and the Psi-Sampler are settings: see `methods`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import refuse_class, require_called, require_count
from ntrk_jax.core import Guidance, Info, Kernel, Resampler, Step, Stream
from ntrk_jax.look import Look
from ntrk_jax.potentials import Potential, Tempered
from ntrk_jax.resampling import Systematic, WhenESS, alive, ess
from ntrk_jax.samplers.population import Population, advance, hopeful, start, tilted
from ntrk_jax.samplers.single import Single
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key

__all__ = ["SMC"]


@pytree
class SMC:
    """A population of particles carried through a sequence of tilted targets.

    Attributes:
        look: what is asked of the model and the reward, once per particle and row.
        kernel: the base reverse kernel; it must be stochastic.
        guidance: the proposal, any rule whose density is exact, or None for the base kernel.
        potential: the targets, one of `potentials`.
        resample: a `Resampler` (of `resampling`; wrap it in `WhenESS` to keep weights that are still good), or None.
        when: rows after which to resample, a function of the grid's row such as `resampling.Spaced`, or None for all.
        num_particles: K. Static.
        chunk: how many particles are moved and looked at together, which bounds memory; None is all. Static.

    Shapes: x [num_particles, *shape]. The final state holds all particles, `log_weights` [num_particles] whose log mean
        exp is log Z (`samplers.log_z`), `ancestors` of the last row, and evaluations of all particles. Populations side
        by side are `jax.vmap(run)`, x [groups, num_particles, *shape]: they never mix. `Info.ess` is the effective
        sample size of each row before it resamples; `record=lambda state, info: (state.ancestors, info)` keeps the
        family tree. `nk.draw(key, state)` draws one particle by weight.
    Cost per step: num_particles looks and what the rule declares; weighing and resampling call nothing.
    Density: exact in the limit of many particles, for the law of the discretised base sampler.
    Status: a particle whose reward is not finite is dead (weight 0); DEAD_WEIGHTS if all of a population are. A reward
        of -inf, for what is forbidden, kills at the end alone: on the way, where the sample may yet come back, it
        counts as the lowest other one (and raises the flag NONFINITE_REWARD); a finite penalty steers too.
    Departs from the paper: weights are carried wherever nothing is resampled; resampling re-indexes the whole look;
        the last row never resamples, so that the final weights stay in the state.
    References: Del Moral, Doucet, Jasra 2006; Wu et al. 2023, arXiv:2306.17775; Singhal et al. 2025, arXiv:2501.06848;
        Kim et al. 2025, arXiv:2501.05803.

    Raises:
        ValueError: at construction for a deterministic kernel, a rule without an exact density, a look without reward.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> look = nk.Look(lambda x, t: 0.5 * x, lambda x0: -jnp.sum(x0**2))
        >>> smc = nk.SMC(look, nk.kernels.DDIM(), num_particles=8)
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(10))
        >>> state, trace = nk.run(smc, jax.random.key(0), jax.random.normal(jax.random.key(1), (8, 2)), steps)
        >>> state.log_weights.shape, trace.ess.shape, int(state.evals.model)
        ((8,), (10,), 80)
    """

    look: Look
    kernel: Kernel
    guidance: Guidance | None = None
    potential: Potential = Tempered()
    resample: Resampler | None = WhenESS(Systematic(), 0.5)
    when: Any = None
    num_particles: int = static(default=4)
    chunk: int | None = static(default=None)

    def __post_init__(self) -> None:
        """Refuse what has no weights, and what the single sampler would refuse."""
        _ = self.single
        refuse_class("potential", self.potential)
        if not hasattr(self.potential, "init"):
            raise TypeError(f"potential must be one such as potentials.Tempered(), got {self.potential!r}.")
        for name, part, example in (("resample", self.resample, "resampling.SSP()"), ("when", self.when, "Spaced()")):
            if part is not None:
                require_called(name, part, example)
        refuse_weightless(self.look, self.kernel, self.guidance)
        require_count(num_particles=self.num_particles, chunk=1 if self.chunk is None else self.chunk)

    @property
    def single(self) -> Single:
        """The sampler that moves one particle."""
        return Single(self.look, self.kernel, self.guidance)

    def init(self, key: Key, x: Array, first: Step) -> Population:
        """Looks at the initial noises, weighed by the first potential."""
        state = start(self.single, key, x, first, self.num_particles, self.chunk)
        memory = self.potential.init(hopeful(state.look, first.sigma_t), first)
        weights, top, untilted, dead = tilted(jnp.zeros_like(memory.log_psi), memory.log_psi)
        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        return Population(state.look, weights + top, state.evals, state.status | dead, memory, own, untilted)

    def step(self, key: Key, state: Population, step: Step) -> tuple[Population, Info]:
        """Move, look, weigh, resample."""
        scale = self.potential.scale(state.memory, step)
        look = state.look if scale is None or state.look.grad is None else _scaled(state.look, scale)
        seen, ratio, spent, status = advance(self.single, key, look, step, self.num_particles, self.chunk)
        untilted = state.untilted + ratio
        value = hopeful(seen, step.sigma_s)
        memory = self.potential(state.memory, value, step, untilted)
        weights, top, untilted, dead = tilted(untilted, memory.log_psi)
        (look, memory, untilted), kept, ancestors = self._select(key, weights, (seen, memory, untilted), step)
        untilted = jnp.where(kept == weights[ancestors], untilted, kept - (memory.log_psi - top))
        status = status | dead
        after = Population(
            look, kept + top, state.evals + spent, state.status | status, memory, ancestors, alive(untilted)
        )
        return after, Info(_weighted_mean(weights, value), ess(weights), jnp.mean(ratio), status, spent)

    def _select(self, key: Key, weights: Array, tree: Any, step: Step) -> tuple[Any, Array, Array]:
        own = jnp.arange(self.num_particles, dtype=jnp.int32)
        if self.resample is None:
            return tree, weights, own
        _, level, parents = self.resample(jax.random.fold_in(key, Stream.SELECT), weights, ())
        wanted = step.sigma_s > 0 if self.when is None else (step.sigma_s > 0) & self.when(step)
        parents = jnp.where(wanted, parents.astype(jnp.int32), own)
        return jax.tree.map(lambda a: a[parents], tree), jnp.where(wanted, level, weights), parents


def refuse_weightless(look: Any, kernel: Any, guidance: Any) -> None:
    """Raise ValueError where importance weights would mean nothing."""
    if not getattr(kernel, "stochastic", True):
        raise ValueError(
            f"weights and resampling need a stochastic kernel, and {type(kernel).__name__} draws no noise: copies of a "
            "particle would stay copies; use DDIM(eta=1.0), FlowSDE() or Correlated(...)."
        )
    if guidance is not None and not guidance.exact:
        raise ValueError(
            f"exact weights need a proposal with an exact density, and {type(guidance).__name__} as set has none; use "
            "NTRK(where='gradient') or DPS(convention='likelihood'), or no guidance."
        )
    if look.reward is None and look.value is None:
        raise ValueError("a population is weighed by its reward; give the Look a reward.")


def _scaled(look: Any, scale: Array) -> Any:
    shape = (-1,) + (1,) * (look.grad.ndim - 1)
    return look._replace(grad=look.grad * scale.reshape(shape).astype(look.grad.dtype))


def _weighted_mean(log_weights: Array, value: Array) -> Array:
    """The population's estimate of E[value], over living particles; their plain mean where all are dead."""
    share = jax.nn.softmax(jnp.where(jnp.any(jnp.isfinite(log_weights)), log_weights, jnp.zeros_like(log_weights)))
    return jnp.sum(jnp.where(share > 0, share * value, jnp.zeros_like(value)))
