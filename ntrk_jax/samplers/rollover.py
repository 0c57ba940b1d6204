r"""Rollover budget forcing (RBF): one path, whose model calls go where they are needed.

At each noise level candidates are drawn one at a time from the last accepted point. The first that improves on the
best value so far is accepted and the path moves on; if the level's quota runs out, its best candidate is. What a level
did not use rolls over to the next, and the last level spends what is left. With a budget of B calls over levels
0 ... T - 1, level 0 being pure noise, level p ends at the latest after

    B (initial + (1 - initial) p / (T - 1))   calls,   p < T - 1.

The path is run over rollouts and not over rows: each spends T calls, wherever on its path the sample is. So
all samples of a batch spend exactly the budget, and none waits for another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import Evals, Guidance, Info, Kernel, Lookahead, Status, Step, Stream, algebra_dtype
from ntrk_jax.look import Look
from ntrk_jax.move import move
from ntrk_jax.samplers.single import refuse_missing_grad, refuse_no_noise
from ntrk_jax.samplers.svdd import refuse_copies
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Key, Sample, Scalar
from ntrk_jax.values import PlugIn
from ntrk_jax.varying import vary

__all__ = ["RBF", "Rising"]

_BAD = Status.NONFINITE_REWARD | Status.NONFINITE_SAMPLE


class Chain(NamedTuple):
    """look: the clean estimate of the best candidate at the present level, x = x0. parent: the last accepted point.

    here: the best candidate at the present level, meaningless while `empty`. record: the best value so far, [].
    level: 0 ... T - 1.
    """

    look: Lookahead
    log_weights: Array
    evals: Evals
    status: Array
    parent: Lookahead
    here: Lookahead
    record: Array
    level: Array
    empty: Array


@pytree
class Rising:
    """RBF's diffusion for `kernels.FlowSDE`, g(t) = scale t^2: much noise early, where there is much to choose."""

    scale: Scalar = 3.0

    def __call__(self, t: Scalar) -> Array:
        """The diffusion at time t."""
        return self.scale * jnp.square(t)


@pytree
class RBF:
    """One sample that searches its way down the noise levels with a budget of model calls.

    Run it over rollouts: `nk.run(rbf, key, x, nk.samplers.rollouts(num))` spends num * grid.num_steps model calls.

    Attributes:
        look: what is asked of the model and the reward, at each candidate.
        kernel: the base reverse kernel; it must be stochastic.
        grid: the levels, the rows of `nk.grid(schedule, times)`.
        guidance: a rule that tilts the kernel, or None.
        initial: the share of the budget spent on the choice of the initial noise, in [0, 1).

    Shapes: x [*shape], the first initial noise; the others are drawn at the grid's first sigma. `state.look` is the
        clean estimate of the best candidate of the deepest level reached, x = x0 [*shape], with its true reward;
        `state.record` [] the best value along the path, which never falls. `state.log_weights` is 0.
    Cost: one look a candidate, grid.num_steps of them a rollout, and what the rule declares; with a value that is not
        the plug-in also one reward each. The budget is data: another compiles nothing but the loop around it.
    Status: the flags of all candidates; one whose value is not finite is accepted only if all of its level are so.
    Density: not a tilted law for any temperature.
    Departs from the paper: one chain, not two; quotas are shares of the budget; a sample is never ahead of or behind
        its batch in calls, only in levels.
    References: Kim et al. 2025, arXiv:2503.19385, Algorithm 1.

    Raises:
        ValueError: at construction for a kernel without noise, a look without reward, a share outside [0, 1), or a
            rule that reads a gradient the look does not take.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> grid = nk.grid(nk.schedules.VPCosine(), nk.grids.circle(5))
        >>> rbf = nk.samplers.RBF(nk.Look(lambda x, t: 0.5 * x, jnp.sum), nk.kernels.DDIM(), grid)
        >>> state, trace = nk.run(rbf, jax.random.key(0), jnp.ones(3), nk.samplers.rollouts(8))
        >>> state.look.x.shape, int(state.evals.model), int(state.level)
        ((3,), 40, 4)
    """

    look: Look
    kernel: Kernel
    grid: Step
    guidance: Guidance | None = None
    initial: Scalar = 0.1

    population = False  # num_particles are calls: x is one sample
    over_rollouts = True

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        if not isinstance(self.grid, Step):
            raise TypeError("RBF needs the rows of a grid; pass grid=nk.grid(schedule, times).")
        object.__setattr__(self, "grid", Step(*self.grid))  # of one kind, however it was made
        refuse_copies(self.look, self.kernel)
        refuse_missing_grad(self.look, self.guidance)
        refuse_no_noise(self.kernel, self.guidance)
        if is_concrete(self.initial) and not np.all((np.asarray(self.initial) >= 0) & (np.asarray(self.initial) < 1)):
            raise ValueError(f"RBF initial must lie in [0, 1), got {self.initial}; it is a share of the budget.")

    @property
    def num_particles(self) -> int:
        """The model calls of a rollout."""
        return self.grid.num_steps

    def init(self, key: Key, x: Sample, first: Step) -> Chain:
        """Nothing is asked yet."""
        dtype = algebra_dtype(x)
        low, zero = jnp.full((), -jnp.inf, dtype), jnp.zeros((), dtype)
        grad = jnp.zeros(x.shape, dtype) if self.look.grad else None
        blank = Lookahead(x, x.astype(dtype), low, grad)
        return Chain(
            blank, zero, Evals().as_arrays(), jnp.int32(0), blank, blank, low, jnp.int32(0), jnp.ones((), bool)
        )

    def step(self, key: Key, state: Chain, step: Step) -> tuple[Chain, Info]:
        """As many candidates as the grid has rows, one after another."""
        num = self.grid.num_steps
        done, budget = (jnp.asarray(n, jnp.float32) * num for n in (step.alpha_t, step.alpha_t + step.sigma_t))

        def body(state: Chain, index: Array) -> tuple[Chain, None]:
            return self._draw(jax.random.fold_in(key, index), state, done + index.astype(jnp.float32), budget), None

        before = state._replace(evals=Evals().as_arrays(), status=jnp.int32(0))
        after, _ = jax.lax.scan(body, vary(before, (key, state, step)), jnp.arange(num))
        spent, status = after.evals, after.status
        after = after._replace(evals=state.evals + spent, status=state.status | status)
        zero = jnp.zeros_like(state.log_weights)
        return after, Info(after.look.value, zero + 1.0, zero, status, spent)

    def _draw(self, key: Key, state: Chain, done: Array, budget: Array) -> Chain:
        """Draw a candidate, look at it, accept it or the best one if it is time."""
        seen, final, evals, status = self._candidate(key, state, done)
        better = state.empty | (seen.value > state.here.value)
        here, look = _where(better, (seen, final), (state.here, state.look))
        levels = self.grid.num_steps - 1
        initial = jnp.asarray(self.initial, jnp.float32)
        share = initial + (1.0 - initial) * state.level.astype(jnp.float32) / max(levels, 1)
        improves = (state.level > 0) & (seen.value > state.record)
        on = (state.level < levels) & (improves | (done + 1.0 >= jnp.floor(budget * share + 1e-3)))
        return Chain(
            look,
            state.log_weights,
            state.evals + evals,
            state.status | status,
            _where(on, here, state.parent),
            here,
            jnp.maximum(state.record, seen.value),
            state.level + on.astype(jnp.int32),
            on,
        )

    def _candidate(self, key: Key, state: Chain, done: Array) -> tuple[Lookahead, Lookahead, Evals, Array]:
        """A point at the present level: its look, its clean estimate with the true reward, the cost, the flags."""
        level, starts = state.level, state.level == 0
        row = jax.tree.map(lambda a: a[jnp.maximum(level - 1, 0)], self.grid)
        moved, rule_evals = move(key, state.parent, row, self.kernel, self.guidance, self.look)
        given = state.parent.x
        dtype = algebra_dtype(given)
        noise = jax.random.normal(jax.random.fold_in(key, Stream.INIT), given.shape, dtype)
        noise = jnp.asarray(self.grid.sigma_t[0], dtype) * noise
        first = jnp.where(done == 0, given, noise.astype(given.dtype))
        x = jnp.where(starts, first, moved.x)
        seen, evals, status = self.look(jax.random.fold_in(key, Stream.LOOK), x, self.grid.t[level])
        status, evals = status | jnp.where(starts, 0, moved.status), evals + rule_evals
        clean = seen.x0.astype(given.dtype)
        final = seen._replace(x=clean)
        if not (self.look.value is None or isinstance(self.look.value, PlugIn)):
            final, more, flags = self.look.final(clean)
            status, evals = status | flags, evals + more
        ok = (status & _BAD) == 0
        seen, final = (a._replace(value=jnp.where(ok, a.value, -jnp.inf)) for a in (seen, final))
        return seen, final, evals, status


def _where(condition: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
