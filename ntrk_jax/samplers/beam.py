r"""Beams: a population whose living paths are pruned to the best by value, and copied.

On each row a plan says how many paths are rolled and how many of them are kept:

    w living paths --copy--> n rolled paths --look--> values --keep--> the k best, living

| plan | rolled | kept |
|---|---|---|
| `Blocks` (CoDe, beam search) | all slots | the best few at the end of each block of rows, else all |
| `Widening` (DSearch) | w, and several children of each on search rows | a share of w on search rows |
| `Pruned` (TTSnap) | w | fewer at given times |

Arrays have a fixed number of slots; living paths come first. Slots are rolled in chunks, in a loop as long as the plan
asks for, so that what is not rolled is not computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_called, require_count
from ntrk_jax.core import Evals, Info, Lookahead, Sampler, Step
from ntrk_jax.samplers.population import any_bits, roll, start, streams, total
from ntrk_jax.samplers.svdd import refuse_copies
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Key, Scalar
from ntrk_jax.varying import vary

__all__ = ["Beam", "Blocks", "Plan", "Pruned", "Widening"]

_SAME_TIME = 1e-5  # times closer than this are one


class Beams(NamedTuple):
    """A population of slots, the first `width` of them alive; `row` counts the rows done."""

    look: Lookahead
    log_weights: Array
    evals: Evals
    status: Array
    row: Array
    width: Array


@runtime_checkable
class Plan(Protocol):
    """(row [], step, width [], num slots) -> how many paths are rolled and how many kept, int32 [] each.

    `copies` says whether it rolls several children of one path.
    """

    @property
    def copies(self) -> bool: ...

    def __call__(self, row: Array, step: Step, width: Array, num: int) -> tuple[Array, Array]: ...


@pytree
class Beam:
    """A population that is pruned to its best paths and grown from them, as a plan says.

    Attributes:
        sampler: what rolls one path: `Single` or `SVDD`.
        plan: how many paths are rolled and kept in each row: `Blocks`, `Widening`, `Pruned`.
        num_particles: the slots, and the initial noises. Static.
        chunk: how many slots are rolled at once, a divisor of num_particles. A row costs the plan's number of paths
            rounded up to whole chunks; None rolls all slots in every row. Results do not depend on it. Static.

    Shapes: x [num_particles, *shape]. `state.log_weights` [num_particles] is 0 for living paths and -inf for the other
        slots; at sigma = 0 it is 0 for the best path alone (`nk.draw(key, state)` returns it). Slots that are
        not alive repeat living ones.
    Cost per step: a look for each rolled slot. `state.evals` counts what was executed.
    Status: the flags of all rolled slots; a path whose value is not finite ranks last, and is kept if all are so.
    Density: not a tilted law for any temperature.
    """

    sampler: Sampler
    plan: Plan
    num_particles: int = static(default=4)
    chunk: int | None = static(default=None)

    def __post_init__(self) -> None:
        """Refuse slots that do not fill chunks, and copies that could not differ."""
        num, chunk = self.num_particles, self.chunk
        require_count(num_particles=num)
        if chunk is not None and (chunk < 1 or num % chunk):
            raise ValueError(f"chunk must divide num_particles={num}, got {chunk}.")
        require_called("plan", self.plan, "Blocks()")
        look, kernel = getattr(self.sampler, "look", None), getattr(self.sampler, "kernel", None)
        if look is not None:
            refuse_copies(look, kernel if self.plan.copies else None)

    def init(self, key: Key, x: Array, first: Step) -> Beams:
        """Looks at as many initial noises as there are slots, all alive."""
        state = start(self.sampler, key, x, first, self.num_particles)
        weights = jnp.zeros_like(state.look.value)
        width = jnp.int32(self.num_particles)
        return Beams(state.look, weights, state.evals.as_arrays(), state.status, jnp.int32(0), width)

    def step(self, key: Key, state: Beams, step: Step) -> tuple[Beams, Info]:
        """Copy, roll, keep the best; at sigma = 0 keep all and let the weights choose."""
        num = self.num_particles
        slots = jnp.arange(num, dtype=jnp.int32)
        last = step.sigma_s == 0
        rolled, kept = self.plan(state.row, step, state.width, num)
        rolled = jnp.clip(jnp.where(last, state.width, rolled), 1, num)
        kept = jnp.clip(jnp.where(last, rolled, kept), 1, rolled)
        parents = jax.tree.map(lambda a: a[slots % state.width], state.look)
        look, spent, status = self._roll(key, parents, step, rolled)
        rank = jnp.argsort(jnp.where((slots < rolled) & jnp.isfinite(look.value), -look.value, jnp.inf))
        order = jnp.where(kept < rolled, rank.astype(jnp.int32), slots)
        look = jax.tree.map(lambda a: a[order], look)
        alive = jnp.where(last, slots == rank[0].astype(jnp.int32), slots < kept)
        weights = jnp.where(alive, 0.0, -jnp.inf).astype(state.log_weights.dtype)
        after = Beams(look, weights, state.evals + spent, state.status | status, state.row + 1, kept)
        best = jnp.max(jnp.where(slots < kept, look.value, -jnp.inf))
        ess = jnp.where(last, 1, kept).astype(weights.dtype)
        return after, Info(best, ess, jnp.zeros((), weights.dtype), status, spent)

    def _roll(self, key: Key, look: Lookahead, step: Step, rolled: Array) -> tuple[Lookahead, Evals, Array]:
        """One step of the first `rolled` slots, chunk by chunk; the evaluations executed and the joint flags."""
        keys, z = streams(self.sampler, key, look, self.num_particles)

        def chunk_of(keys: Array, look: Lookahead, z: Array | None) -> tuple[Lookahead, Evals, Array]:
            moved, info = jax.vmap(lambda key, seen, noise: roll(self.sampler, key, seen, noise, step))(keys, look, z)
            return moved.look, total(info.evals), any_bits(info.status)

        size = self.chunk
        if size is None or size == self.num_particles:
            return chunk_of(keys, look, z)
        data, impl = jax.random.key_data(keys), jax.random.key_impl(keys)

        def body(carry: tuple) -> tuple:
            at, look, spent, status = carry
            own, part, noise = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, at, size), (data, look, z))
            moved, more, flags = chunk_of(jax.random.wrap_key_data(own, impl=impl), part, noise)
            put = jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, at, 0), look, moved)
            return at + size, put, spent + more, status | flags

        carry = vary((jnp.int32(0), look, Evals().as_arrays(), jnp.int32(0)), (key, look, step, rolled))
        return jax.lax.while_loop(lambda carry: carry[0] < rolled, body, carry)[1:]


@pytree
class Blocks:
    """Roll all slots independently for a block of rows, then copy the best few to all of them.

    Attributes:
        size: rows of a block. 1 is a choice in every row; num_steps or more is best-of-N.
        keep: how many paths survive a block: 1 is CoDe, more a beam of that width.

    Both are data: another size compiles nothing.

    References: Singh et al. 2025 (CoDe), arXiv:2502.00968. Its variant that starts from a noised reference needs no
        other sampler: start at alpha x_ref + sigma z, on a grid whose first time is below 1.
    """

    size: Scalar = 5
    keep: Scalar = 1
    copies = True

    def __post_init__(self) -> None:
        """Refuse empty blocks and beams."""
        _at_least_one(size=self.size, keep=self.keep)

    def __call__(self, row: Array, step: Step, width: Array, num: int) -> tuple[Array, Array]:
        """All slots; the best few at a block's end."""
        full = jnp.int32(num)
        ends = (row + 1) % jnp.asarray(self.size, jnp.int32) == 0
        return full, jnp.where(ends, jnp.asarray(self.keep, jnp.int32), full)


@pytree
class Widening:
    """Fewer beams, each with more children: searches at geometrically spaced times, a share of the beams kept by each.

    A row that passes one of the times spacing, spacing^2, spacing^3, ... is a search row: every living path has
    `children` children (fewer where the slots do not hold them) and the best share * width of all are kept. On other
    rows each living path moves once.

    Attributes:
        spacing: in (0, 1); the times lie closer towards data, where values are sharp.
        share: of the living paths that a search keeps, in (0, 1].
        children: of each living path on a search row. keep: the paths that are never given up.

    All are data.

    Departs from the paper: one geometric rule for searching and for dropping, in time and not in rows; the value given
        is the only heuristic.
    References: Li et al. 2025 (DSearch), arXiv:2503.02039.
    """

    spacing: Scalar = 0.5
    share: Scalar = 0.5
    children: Scalar = 4
    keep: Scalar = 1
    copies = True

    def __post_init__(self) -> None:
        """Refuse shares outside (0, 1] and empty beams."""
        _at_least_one(children=self.children, keep=self.keep)
        for name, value, top in (("spacing", self.spacing, 0.999), ("share", self.share, 1.0)):
            if is_concrete(value) and not np.all((np.asarray(value) > 0) & (np.asarray(value) <= top)):
                raise ValueError(f"Widening {name} must lie in (0, {top}], got {value}.")

    def __call__(self, row: Array, step: Step, width: Array, num: int) -> tuple[Array, Array]:
        """More paths than beams on a search row, and fewer beams after it."""
        searches = self.searched(step.s) > self.searched(step.t)
        wide = jnp.minimum(width * jnp.asarray(self.children, jnp.int32), num)
        share = width.astype(jnp.float32) * jnp.asarray(self.share, jnp.float32)
        fewer = jnp.maximum(jnp.ceil(share - _SAME_TIME).astype(jnp.int32), jnp.asarray(self.keep, jnp.int32))
        return jnp.where(searches, wide, width), jnp.where(searches, fewer, width)

    def searched(self, time: Scalar) -> Array:
        """How many of the search times lie at or above a time."""
        time = jnp.maximum(jnp.asarray(time, jnp.float32), 1e-6)
        return jnp.floor(jnp.log(time) / jnp.log(jnp.asarray(self.spacing, jnp.float32)) + _SAME_TIME)


@pytree
class Pruned:
    """Fewer paths at given times; no copies.

    Attributes:
        times: [J], decreasing; a row that reaches or passes times[j] keeps survivors[j] paths.
        survivors: [J] counts.

    Both are data.

    References: Yu et al. 2025 (TTSnap), arXiv:2511.22242.
    """

    times: Any = (0.9, 0.7, 0.45)
    survivors: Any = (2, 1, 1)
    copies = False

    def __post_init__(self) -> None:
        """Refuse lists of different lengths."""
        if np.shape(self.times) != np.shape(self.survivors) or np.ndim(self.times) != 1:
            raise ValueError(
                f"Pruned needs one number of survivors for each time, got shapes {np.shape(self.survivors)} and "
                f"{np.shape(self.times)}."
            )

    def __call__(self, row: Array, step: Step, width: Array, num: int) -> tuple[Array, Array]:
        """The living paths; those that survive the times passed."""
        times = jnp.stack([jnp.asarray(t, jnp.float32) for t in self.times])
        survivors = jnp.stack([jnp.asarray(n, jnp.int32) for n in self.survivors])
        passed = times >= jnp.asarray(step.s, jnp.float32) - _SAME_TIME
        return width, jnp.minimum(width, jnp.min(jnp.where(passed, survivors, num)))


def _at_least_one(**counts: Any) -> None:
    for name, value in counts.items():
        if is_concrete(value) and not np.all(np.asarray(value) >= 1):
            raise ValueError(f"{name} must be at least 1, got {value}.")
