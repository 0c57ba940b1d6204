r"""SVDD: one path; every row draws several candidates and goes on with one of them, chosen by its value.

    x_s^m ~ q(. | x_t),   m = 1 ... M,       w_m = exp(v(x_s^m) / temperature) p(x_s^m | x_t) / q(x_s^m | x_t)

`categorical` goes on with candidate m with probability w_m / sum w, `argmax` with the one of the highest value.
A categorical choice has a law that importance weights can undo, exactly for every M: averaged over the candidates and
the choice i, mean(w) exp(-v(x_s^i) / temperature) f(x_s^i) is the expectation of f under the base kernel.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count
from ntrk_jax.core import Evals, Guidance, Info, Kernel, Lookahead, State, Status, Step, Stream, algebra_dtype
from ntrk_jax.look import Look
from ntrk_jax.move import aim, draw_from, move
from ntrk_jax.samplers.population import any_bits, hopeful, siblings, total
from ntrk_jax.samplers.single import Single
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, Sample, Scalar
from ntrk_jax.varying import vary

__all__ = ["SVDD", "refuse_copies"]

CHOICES = ("categorical", "argmax")


@pytree
class SVDD:
    """One sample whose every move is the chosen one of several candidates.

    Attributes:
        look: what is asked of the model and the reward, at each candidate.
        kernel: the base reverse kernel; it must be stochastic.
        guidance: a rule that tilts it, or None.
        temperature: beta of the categorical choice, in reward units; argmax does not read it.
        choice: "categorical" (the paper) or "argmax" (its code). Static.
        num_particles: M, the candidates of a row. Static.

    Shapes: x [*shape]. `state.log_weights` [] is as in `Single`: with it, `state.log_weights + state.look.value /
        temperature` is the log importance weight of the path for the tilted law, whose mean is Z for every M (0
        for argmax and for a rule without an exact density, which have no such weight).
    Cost per step: M looks at once, and the rule once, as all candidates have one parent. On the last row, where all
        coincide, one reward: 1 + M (num_steps - 1) NFE.
    Density: the tilted law as M and the steps grow, for an exact value and a categorical choice; argmax has no limit.
    Status: the flags of all candidates; one whose reward or x0 is not finite is chosen only if all are so (the first);
        a reward of -inf counts as the lowest other one until the end, so that one of 0 and -inf steers nothing
        (argmax takes what is forbidden last).
    Departs from the paper: a guided candidate's weight holds its density ratio, and the path carries its own weight.
    References: Li et al. 2024, arXiv:2408.08252, Algorithm 1.

    Raises:
        ValueError: at construction for a kernel without noise, a look without reward, a temperature that is not
            positive, no candidates, or a rule that reads a gradient the look does not take.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> svdd = nk.samplers.SVDD(nk.Look(lambda x, t: 0.5 * x, jnp.sum), nk.kernels.DDIM(), num_particles=8)
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(10))
        >>> state, trace = nk.run(svdd, jax.random.key(0), jnp.ones(3), steps)
        >>> state.look.x.shape, int(state.evals.model)
        ((3,), 73)
    """

    look: Look
    kernel: Kernel
    guidance: Guidance | None = None
    temperature: Scalar = 1.0
    choice: str = static(default="categorical")
    num_particles: int = static(default=4)

    population = False  # candidates of a row: x is one sample

    def __post_init__(self) -> None:
        """Refuse what cannot be chosen from."""
        _ = self.single
        refuse_copies(self.look, self.kernel)
        if self.choice not in CHOICES:
            raise ValueError(f"SVDD choice must be one of {', '.join(CHOICES)}, got {self.choice!r}.")
        require_count(num_particles=self.num_particles)
        if is_concrete(self.temperature) and not np.all(np.asarray(self.temperature) > 0):
            raise ValueError(f"SVDD temperature must be positive, got {self.temperature}; 0 is choice='argmax'.")

    @property
    def single(self) -> Single:
        """The sampler that SVDD is with one candidate."""
        return Single(self.look, self.kernel, self.guidance)

    def init(self, key: Key, x: Sample, first: Step) -> State:
        """The look at the initial noise."""
        return self.single.init(key, x, first)

    def step(self, key: Key, state: State, step: Step) -> tuple[State, Info]:
        """Draw candidates, look at each, go on with one."""
        if self.num_particles == 1:
            return self.single.step(key, state, step)
        like = (key, state.look, step)
        last, choose = (lambda *args, f=f: vary(f(*args), like) for f in (self._last, self._choose))
        out = jax.lax.cond(jnp.asarray(step.sigma_s) == 0, last, choose, key, state.look, step)
        seen, log_ratio, evals, status = out
        after = State(seen, state.log_weights + log_ratio, state.evals + evals, state.status | status)
        return after, Info(seen.value, jnp.ones_like(log_ratio), log_ratio, status, evals)

    def _last(self, key: Key, look: Lookahead, step: Step) -> tuple[Lookahead, Array, Evals, Array]:
        """The only candidate of a row without noise."""
        moved, rule_evals = move(key, look, step, self.kernel, self.guidance, self.look)
        seen, evals, status = self.look.final(moved.x)
        return seen, self._weight(moved.log_ratio), evals + rule_evals, status | moved.status

    def _choose(self, key: Key, look: Lookahead, step: Step) -> tuple[Lookahead, Array, Evals, Array]:
        num = self.num_particles
        aimed = aim(key, look, step, self.kernel, self.guidance, self.look)

        def candidate(key: Key, z: Array) -> tuple[Any, ...]:
            moved = draw_from(key, aimed, look.x, z)
            seen, evals, status = self.look(jax.random.fold_in(key, Stream.LOOK), moved.x, step.s)
            return seen, moved.log_ratio, evals, status | moved.status

        z = jax.random.normal(key, (num, *look.x.shape), algebra_dtype(look.x))
        seen, ratio, evals, status = jax.vmap(candidate)(siblings(key, num), z)
        value = hopeful(seen, step.sigma_s)
        usable = jnp.isfinite(value) & ((status & Status.NONFINITE_SAMPLE) == 0)
        if self.choice == "argmax":
            value = jnp.where(jnp.isneginf(seen.value), jnp.finfo(value.dtype).min, value)  # no weight to keep exact
            index, weight = jnp.argmax(jnp.where(usable, value, -jnp.inf)), jnp.zeros_like(ratio[0])
        else:
            level = value / jnp.asarray(self.temperature, value.dtype)
            known, usable = usable, usable & jnp.isfinite(level)
            index, mean = _draw(jax.random.fold_in(key, Stream.SELECT), jnp.where(usable, ratio + level, -jnp.inf))
            weight = jnp.where(jnp.any(usable), mean - level[index], jnp.zeros_like(mean))
            lost = jnp.any(known) & ~jnp.any(usable)  # at a temperature so low that no level is a number
            status |= jnp.where(lost, jnp.int32(Status.DEAD_WEIGHTS), jnp.int32(0))
        spent = total(evals) + aimed.tilt.evals
        return jax.tree.map(lambda a: a[index], seen), self._weight(weight), spent, any_bits(status)

    def _weight(self, log_ratio: Array) -> Array:
        exact = self.choice == "categorical" and (self.guidance is None or self.guidance.exact)
        return log_ratio if exact else jnp.zeros_like(log_ratio)


def _draw(key: Key, log_weights: Array) -> tuple[Array, Array]:
    """An index in proportion to its weight, by one uniform number, and log mean exp of the weights."""
    top = jnp.max(log_weights)
    weights = jnp.exp(log_weights - top)
    ladder = jnp.cumsum(weights)
    index = jnp.argmax(ladder > ladder[-1] * jax.random.uniform(key, (), ladder.dtype))
    return index, top + jnp.log(ladder[-1] / log_weights.size)


def refuse_copies(look: Any, kernel: Any) -> None:
    """Raise ValueError where several candidates could not differ, or could not be told apart."""
    if not getattr(kernel, "stochastic", True):
        raise ValueError(
            f"search needs a stochastic kernel, and {type(kernel).__name__} draws no noise: all candidates would be "
            "the same; use DDIM(eta=1.0), FlowSDE() or Correlated(...)."
        )
    if look.reward is None and look.value is None:
        raise ValueError("search chooses by value; give the Look a reward.")
