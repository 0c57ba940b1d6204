"""The one loop: `lax.scan` of a sampler's step over the rows of a grid.

Step i uses fold_in(key, i), so a run that is interrupted after any row and resumed from its state gives
bitwise the same answer; no key is ever carried.

A step moves and then looks. Where it comes in these two halves (`Single`) and the grid knows its last row
(`grids.Grid`), the loop looks and then moves: the model is compiled once (for rows that end before the last, once more
for their end), and no row has to ask whether it is the last. Elsewhere the loop is one of whole steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_called, require_count, require_key
from ntrk_jax.core import Evals, Info, Sampler, State, Status, Step, Stream
from ntrk_jax.grids import Grid, Part, as_known, check_schedule, refuse_blind
from ntrk_jax.look import Look
from ntrk_jax.tree import is_concrete, through
from ntrk_jax.typing import Array, Key, PyTree
from ntrk_jax.varying import settled, vary, vary_as

__all__ = ["check", "resume", "run", "summary", "trajectory"]

Record = Callable[[State, Info], PyTree]


def summary(state: State, info: Info) -> Info:
    """The default record of a step: its `Info`, a few scalars."""
    return info


def trajectory(state: State, info: Info) -> tuple[Array, Info]:
    """A record that keeps every x as well; memory grows with the number of steps."""
    return state.look.x, info


def run(sampler: Sampler, key: Key, x: Array, steps: Step, record: Record = summary) -> tuple[State, PyTree]:
    """Run a sampler from noise x over a grid.

    Args:
        sampler: `Single`, `BestOfN`, ... ; a pytree, so changed strengths compile nothing new under `jax.jit`.
        key: one typed key. Step i uses fold_in(key, i).
        x: the initial noise, sigma times N(0, I) at the grid's first row: [*shape] for a single sample,
            [num_particles, *shape] for a population.
        steps: the rows of a grid, `nk.grid(schedule, times)`.
        record: what to keep of each step; `summary` by default, or any (state, info) -> pytree. A pure one may be
            asked about the look before the first row too, an answer that is dropped, and the trace be copied once.

    Returns:
        state: the final `State`; `state.look.x` is the sample, `state.look.value` its true reward,
            `state.evals` what was spent, `state.log_weights` the weights, `state.status` the flags.
        trace: the recorded pytrees stacked over [num_steps].

    Shapes: batches by `jax.vmap(run, in_axes=(None, 0, 0, None))`: a sample depends on its own key alone; over devices
        by `jax.shard_map` of that, or by sharding the inputs over a mesh of Auto axes (`batch.make_mesh`).
    Cost: one look at the start of every row and one at the end, which is free of model calls: num_steps NFE.
    Errors: TypeError or ValueError at trace time for a raw key, a wrong grid or a wrong shape; ValueError for a grid of
        another schedule than the model's, and under `jax.jit`, where that cannot be read, the flag WRONG_GRID; that too
        for a grid sliced otherwise than by `rows`, where it no longer ends or follows on. Values
        never raise inside the loop: see `check`. A batch [n, *shape] without vmap is one sample of n rows.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(10))
        >>> sampler = nk.Single(nk.Look(lambda x, t: 0.0 * x), nk.kernels.DDIM())
        >>> state, trace = nk.run(sampler, jax.random.key(0), jnp.ones(3), steps)
        >>> int(state.evals.model), state.look.x.shape
        (10, (3,))
    """
    x = jnp.asarray(x) if isinstance(x, np.ndarray) else x
    if not (hasattr(sampler, "init") and hasattr(sampler, "step")) or isinstance(sampler, type):
        raise TypeError(f"sampler must be one such as nk.Single(...), got {sampler!r}.")
    _check_inputs(key, x, steps)
    require_called("record", record, "nk.summary")
    steps, sliced = as_known(steps)
    wrong = _wrong_rows(sampler, steps) | check_schedule(sampler, steps) | refuse_blind(sampler, steps) | sliced
    flag = jnp.where(wrong, jnp.int32(Status.WRONG_GRID), jnp.int32(0))
    key_init = jax.random.fold_in(key, Stream.INIT)
    if _in_halves(sampler, steps):
        way = sampler.embark(key_init, x)._replace(status=flag)
        if not _acts(sampler, way, record):
            return _look_first(sampler, key, way, None, steps, record, 0)
    state = sampler.init(key_init, x, jax.tree.map(lambda a: a[0], steps))
    return _look_last(sampler, key, state._replace(status=state.status | flag), steps, record, 0)


def resume(
    sampler: Sampler, key: Key, state: State, steps: Step, record: Record = summary, *, start: int
) -> tuple[State, PyTree]:
    """Continue a run from a state: `steps` are the remaining rows, `start` the index of the first of them.

    `resume(sampler, key, state, steps.rows(k), start=k)` after `run(sampler, key, x, steps.rows(0, k))` gives the
    uninterrupted run's state; from another `start`, or with rows left out, it would be another run, which nothing
    tells. Raises ValueError for a state of another sampler, or a `start` that is no whole number of at least 0.
    """
    _check_key(key)
    _check_grid(steps)
    require_called("record", record, "nk.summary")
    if is_concrete(start):
        require_count(0, start=np.asarray(start).item())
    _check_state(sampler, key, state, steps)
    steps, sliced = as_known(steps)
    flag = jnp.where(sliced, jnp.int32(Status.WRONG_GRID), jnp.int32(0))
    state = state._replace(status=state.status | flag)
    if _in_halves(sampler, steps):
        way = sampler.embark(jax.random.fold_in(key, Stream.INIT), state.look.x)
        way = way._replace(log_weights=state.log_weights, evals=state.evals, status=state.status)
        if not _acts(sampler, way, record):
            return _look_first(sampler, key, way, state.look, steps, record, start)
    return _look_last(sampler, key, state, steps, record, start)


def _in_halves(sampler: Any, steps: Step) -> TypeGuard[Any]:
    """Whether a step is a move and a look that the loop may take in either order, and the last row is known."""
    known = isinstance(steps, (Grid, Part))
    return known and "depart" in vars(type(sampler)) and type(sampler.look) is Look


def _acts(sampler: Any, begin: Any, record: Record) -> bool:
    """Whether a record does more than to keep something, such as printing: then it must see each row once."""
    if record in (summary, trajectory):
        return False
    seen = jax.eval_shape(lambda way: sampler.arrive(way, sampler.look.final(way.x)), begin)
    return bool(jax.make_jaxpr(record)(*seen).effects)


def _look_last(
    sampler: Sampler, key: Key, state: State, steps: Step, record: Record, start: int
) -> tuple[State, PyTree]:
    """The loop of whole steps, each of which ends with its look."""
    indices = jnp.arange(steps.num_steps) + start

    def body(before: State, row: tuple[Array, Step]) -> tuple[State, PyTree]:
        index, step = row
        state, info = sampler.step(jax.random.fold_in(key, index), before, step)
        return vary_as(state, before), record(state, info)

    return _scan(body, state, (indices, steps))


def _look_first(
    sampler: Any, key: Key, way: Any, given: Any, steps: Step, record: Record, start: int
) -> tuple[State, PyTree]:
    """The loop of a sampler in two halves: look at x, move on; the look at the end is taken after the loop.

    The first look is `given` where a run is resumed, and then no model is asked for it.
    """
    indices = jnp.arange(steps.num_steps) + start

    def body(way: Any, row: tuple[Array, Step]) -> tuple[Any, PyTree]:
        index, step = row
        if given is None:
            looked = sampler.look.apart(way.key, way.x, step.t, step.sigma_t)
        else:
            looked = _unless(index == start, given, sampler.look, way, step)
        state, info = sampler.arrive(way, looked)
        return vary_as(sampler.depart(jax.random.fold_in(key, index), state, step), way), record(state, info)

    way, before = _scan(body, way, (indices, steps))
    if isinstance(steps, Grid):
        looked = sampler.look.final(way.x)
    else:
        looked = sampler.look.apart(way.key, way.x, steps.s[-1], steps.sigma_s[-1])
    state, info = sampler.arrive(way, looked)
    # What was recorded of the first look belongs to no row.
    trace = jax.tree.map(lambda a, b: jnp.concatenate([a[1:], jnp.asarray(b)[None]]), before, record(state, info))
    return state, trace


def _unless(known: Array, given: Any, look: Any, way: Any, step: Step) -> Any:
    """The look that is given where it is known, else a new one; only then is the model asked."""

    def ask(way: Any) -> tuple[Any, Evals, Array]:
        seen, evals, status = look(way.key, way.x, step.t)
        return seen, evals.as_arrays(), status

    like = way, given, step
    none = given, Evals().as_arrays(), jnp.int32(0)
    return jax.lax.cond(known, lambda way: vary(none, like), lambda way: vary(ask(way), like), way)


def _scan(body: Callable[[Any, Any], Any], begin: Any, rows: Any) -> Any:
    begin = settled(lambda state: body(state, jax.tree.map(lambda a: a[0], rows))[0], begin)
    return jax.lax.scan(body, begin, rows)


def check(state: State) -> None:
    """Raise on the host if any sample of a finished run has a status flag.

    Raises:
        FloatingPointError: naming the flags and how many samples carry each.
    """
    if not is_concrete(state.status):
        raise TypeError("check reads values and runs on the host; call it outside jit, on the returned state.")
    status = np.asarray(state.status)
    names = {name: bit for name, bit in vars(Status).items() if name.isupper()}
    found = {name: int(np.sum((status & bit) > 0)) for name, bit in names.items()}
    if any(found.values()):
        flags = ", ".join(f"{name} in {n} of {status.size}" for name, n in found.items() if n)
        hint = (
            "make the grid from the model's own schedule, and take rows of it with grid.rows"
            if "WRONG_GRID" in flags
            else "lower the strength or look at the reward"
        )
        raise FloatingPointError(f"the run set status flags: {flags}; {hint}.")


def _check_key(key: Any) -> None:
    require_key(key)
    if key.shape != ():
        raise ValueError(
            f"key must be one key, got shape {key.shape}; use jax.vmap(run, (None, 0, 0, None)) for batches."
        )


def _check_state(sampler: Sampler, key: Key, state: Any, steps: Step) -> None:
    """Refuse a state that another sampler has left, by what it holds: the model is traced for it, not called."""
    if not hasattr(state, "look"):
        raise TypeError(f"state must be the state that nk.run or nk.resume gave, got {type(state).__name__}.")
    meant = jax.eval_shape(sampler.init, key, state.look.x, jax.tree.map(lambda a: a[0], steps))
    held, wanted = (
        {
            jax.tree_util.keystr(path): (leaf.shape, leaf.dtype)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (jax.eval_shape(lambda state: state, state), meant)
    )
    wrong = sorted(where for where in held | wanted if held.get(where) != wanted.get(where))
    if wrong:
        raise ValueError(f"state must be one of the same sampler, got one that differs in {', '.join(wrong)}.")


def _check_grid(steps: Any) -> None:
    if not isinstance(steps, Step):
        raise TypeError(f"steps must be the rows of a grid, got {type(steps).__name__}; use nk.grid(schedule, times).")
    shapes = {jnp.shape(a) for a in steps}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or (0,) in shapes:
        raise ValueError(f"steps must hold arrays of one shape [num_steps], at least one row, got {sorted(shapes)}.")


def _wrong_rows(sampler: Any, steps: Step) -> Any:
    """Samplers that say so run over rollouts, the others of this package over a grid; one row may be either.

    Returns:
        Whether the rows are of the wrong kind where that cannot be read yet, [].
    """
    if steps.num_steps < 2:
        return False
    parts = list(through(sampler, "sampler"))
    wanted = any(getattr(part, "over_rollouts", False) for part in parts)
    own = all(type(part).__module__.startswith("ntrk_jax.") for part in parts)
    if not is_concrete(steps.alpha_t):
        done = steps.alpha_t
        counted = (done[-1] >= 1.5) & jnp.all(done == done[0] + jnp.arange(steps.num_steps, dtype=done.dtype))
        return ~counted & (steps.num_steps > 2) if wanted else counted & own
    done = np.asarray(steps.alpha_t)
    counted = done[-1] >= 1.5 and np.array_equal(done, done[0] + np.arange(steps.num_steps))
    if wanted and not counted and steps.num_steps > 2:
        raise ValueError(f"{type(parts[-1]).__name__} holds its grid and is run over nk.samplers.rollouts(num).")
    if counted and not wanted and own:
        raise ValueError(f"{type(sampler).__name__} is run over nk.grid(schedule, times), got the rows of rollouts.")
    return False


def _check_inputs(key: Any, x: Any, steps: Any) -> None:
    _check_key(key)
    _check_grid(steps)
    if not (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) and jnp.ndim(x) >= 1):
        raise TypeError("x must be a floating-point array [*shape] with at least one axis, the noise to start from.")
