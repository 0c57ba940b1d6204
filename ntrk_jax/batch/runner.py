"""Draw what a plan asks for and a store does not hold yet: agree on it, draw, write, sum up."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ntrk_jax.batch import origin
from ntrk_jax.batch.draw import Drawn, draw_one
from ntrk_jax.batch.guard import Guard
from ntrk_jax.batch.pipeline import Writer, counter, draw_pending
from ntrk_jax.batch.plan import Group, Plan, grouped
from ntrk_jax.batch.shard import Program, Rules, make_mesh
from ntrk_jax.batch.store import FORMAT, Store, StoreError, locked, opened
from ntrk_jax.core import Status

__all__ = ["Report", "preview", "run"]


class Report(NamedTuple):
    """What a run did, and what its store holds.

    total: rows of the store. drawn: rows of this run, by all processes.
    num_flagged: rows of the store with a status bit; flagged: how many with which.
    mean_reward, reward_error: over the rows whose reward is finite (NaN without any), with its standard error.
    damaged: chunks that were there, but not with their checksum, and were drawn again. failures: what host callbacks
    said, by sample. notes: what else a person should know.
    """

    total: int
    drawn: int
    seconds: float
    mean_reward: float
    reward_error: float
    num_flagged: int
    flagged: dict[str, int]
    damaged: list[int]
    failures: list[str]
    notes: list[str]

    @property
    def samples_per_second(self) -> float:
        """Of this run, compilation left out."""
        return self.drawn / self.seconds if self.seconds > 0 else float("nan")


def preview(plan: Plan, *, devices: Any = None, mesh: Mesh | None = None, axes: str = "auto",
            rules: Rules | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """What a run would compile, without drawing or writing anything: one entry a program.

    Returns:
        For each program its units, its chunks, the memory on one device in bytes, the cost of a chunk as the compiler
        counts it (a loop once: the first look and one step), and the collectives it holds.

    Example:
        >>> import ntrk_jax as nk
        >>> sampler = nk.Single(nk.Look(lambda x, t: 0.5 * x), nk.kernels.DDIM())
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
        >>> preview(nk.batch.make_plan(sampler, steps, (2,), 8, chunk=4), devices=1)[0]["collectives"]
        []
    """
    mesh = mesh or make_mesh(devices, axes)
    shown = []
    for group, chunks in _split(plan):
        program = Program(plan, group, mesh, rules)
        shown.append({
            "units": [plan.units[u].name for u in group.units], "chunks": len(chunks), "devices": program.lanes,
            "rounds": -(-len(chunks) // program.lanes), "memory": program.memory, "cost": program.cost,
            "collectives": program.collectives,
        })  # fmt: skip
    return shown


def run(
    plan: Plan, store: str | os.PathLike, *, devices: Any = None, mesh: Mesh | None = None, axes: str = "auto",
    rules: Rules | None = None, on_error: str = "stop", retries: int = 0, time_limit: float | None = None,
    verify: bool = True, redraw: bool = False, progress: Callable[[int, int], None] | None = None,
) -> Report:  # fmt: skip
    """Draw the samples of a plan that a store does not hold yet, and add them to it.

    Args:
        plan: see `make_plan` and `Plan`. store: a folder, made if need be; see `store`.
        devices, axes: as in `make_mesh`; or a `mesh`, whose first axis the samples are split over.
        rules: (path, leaf) -> PartitionSpec of the sampler's leaves, for models that do not fit on one device;
            replicated if None.
        on_error: what to do when a host callback (`rewards.External`) raises or takes more than `time_limit` seconds,
            `retries` times again: "stop", or "skip", which keeps the sample with NaN as its reward and CALLBACK_FAILED.
        verify: whether to read what is there and compare it with its checksums.
        redraw: whether to draw the chunks again in which a sample has CALLBACK_FAILED.
        progress: called as progress(rows done, rows in all) by the writing thread, of the rows of this process.

    Several processes: call `jax.distributed.initialize` first, and then this in every process with the same plan
        and store, a folder that all of them see. Each writes the chunks of its own devices.
    Resuming: the same call. A run that was killed at any moment ends with the same store as one that was not.
    Memory: that of the program (`preview`) and two rounds of samples.

    Raises:
        StoreError: if the store cannot be used or written. RewardError: if a callback failed and on_error is "stop".
            Both leave what was written as it is. ValueError: for options that do not exist.

    Example:
        >>> import tempfile, ntrk_jax as nk
        >>> sampler = nk.Single(nk.Look(lambda x, t: 0.5 * x, lambda x0: x0.sum()), nk.kernels.DDIM())
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
        >>> plan = nk.batch.make_plan(sampler, steps, (2,), num=10, chunk=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = nk.batch.run(plan, f"{folder}/samples.zarr", devices=1)
        >>> report.total, report.drawn, report.flagged
        (10, 10, {})
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be stop or skip, got {on_error!r}.")
    guard, mesh = Guard(retries, time_limit), mesh or make_mesh(devices, axes)
    guarded = replace(plan, units=tuple(u._replace(sampler=guard.around(u.sampler)) for u in plan.units))
    parts = _split(guarded)
    attributes = {"format": FORMAT, **plan.record(), "versions": origin.versions(), "git_commit": origin.commits()}
    with _joined(Path(store), plan, _row_shapes(guarded), attributes, verify, redraw) as (
        opened_store,
        pending,
        damaged,
    ):
        notes = origin.notes(opened_store, attributes)
        writer = Writer(plan, opened_store, guard, on_error, counter(plan, mesh, parts, pending, progress))
        seconds = draw_pending(guarded, parts, mesh, rules, pending, writer)
        _all_agree(writer.error)
        return _report(plan, opened_store, writer, seconds, sum(map(plan.size, pending)), damaged, notes)


def _split(plan: Plan) -> list[tuple[Group, list[int]]]:
    """The programs of a plan and the chunks that each draws."""
    groups = grouped(plan.units)
    owner = np.zeros(len(plan.units), int)
    for number, group in enumerate(groups):
        owner[group.units] = number
    chunks: list[list[int]] = [[] for _ in groups]
    for chunk in range(plan.num_chunks):
        rows = plan.rows(chunk)
        first, last = rows[0] // plan.num, rows[-1] // plan.num
        own = set(owner[first : last + 1].tolist())
        if len(own) > 1:
            names = f"{plan.units[first].name!r} and {plan.units[last].name!r}"
            raise ValueError(
                f"units {names} need different programs, so num must be a multiple of chunk, got {plan.num} and "
                f"{plan.chunk}; give a chunk that divides num, such as {math.gcd(plan.num, plan.chunk)}."
            )
        chunks[own.pop()].append(chunk)
    return list(zip(groups, chunks, strict=True))


def _row_shapes(plan: Plan) -> Drawn:
    """Shapes and dtypes of all rows, without drawing."""

    def shapes(unit: Any) -> Drawn:
        key = jax.random.key(0)
        return jax.eval_shape(lambda: draw_one(unit.sampler, key, 0, unit.steps, plan.shape, dtype=plan.dtype)[0])

    def key_of(row: Drawn) -> list:
        return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(row)]

    rows = [(plan.units[g.units[0]], shapes(plan.units[g.units[0]])) for g in grouped(plan.units)]
    for unit, row in rows[1:]:
        if key_of(row) != key_of(rows[0][1]):
            raise ValueError(f"units {rows[0][0].name!r} and {unit.name!r} draw samples of different shapes or dtypes.")
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((plan.total, *a.shape), a.dtype), rows[0][1])


@contextmanager
def _joined(
    path: Path, plan: Plan, outputs: Drawn, attributes: dict[str, Any], verify: bool, redraw: bool
) -> Iterator[tuple]:
    """The store for this process, the chunks to draw, and those found damaged; all processes agree on them.

    The first process makes, checks and locks the store, and tells the others what is missing in it.
    """
    first, many = jax.process_index() == 0, jax.process_count() > 1
    missing, damaged, refused, store = [], [], None, None
    with ExitStack() as stack:
        if first:
            try:
                store = stack.enter_context(opened(path, plan, outputs, attributes))
                missing, damaged = store.pending(verify, redraw)
            except StoreError as error:
                refused = error
        if many:
            from jax.experimental import multihost_utils

            state = np.zeros(plan.num_chunks + 1, np.int32)
            state[missing], state[-1] = 1, refused is not None
            state = np.asarray(multihost_utils.broadcast_one_to_all(state))
            missing = np.flatnonzero(state[:-1]).tolist()
            if state[-1] and refused is None:
                refused = StoreError(f"{path}: the first process cannot use the store, and says why.")
        if refused is not None:
            raise refused
        if store is None:
            stack.enter_context(locked(path.absolute(), jax.process_index()))
            store = Store(path.absolute(), plan)
        yield store, missing, damaged


def _all_agree(error: BaseException | None) -> None:
    """Wait for the other processes; raise this one's error, or say that another had one."""
    failed = np.array([error is not None])
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = np.asarray(multihost_utils.process_allgather(failed)).ravel()
    if error is not None:
        raise error
    if failed.any():
        raise StoreError(f"process {int(np.argmax(failed))} stopped, and says why; run the same command again.")


def _report(
    plan: Plan, store: Store, writer: Writer, seconds: float, drawn: int, damaged: list[int], notes: list[str]
) -> Report:
    try:
        reward, status = store.read("reward").astype(np.float64), store.read("status")
    except ValueError as error:  # a checksum, where nothing was verified
        raise StoreError(
            f"{store.path} is damaged ({error}); run again with verification, which draws it anew."
        ) from None
    finite = reward[np.isfinite(reward)]
    error = finite.std(ddof=1) / np.sqrt(finite.size) if finite.size > 1 else float("nan")
    bits = {name: bit for name, bit in vars(Status).items() if name.isupper()}
    flagged = {name: int(np.count_nonzero(status & bit)) for name, bit in bits.items()}
    mean = float(finite.mean()) if finite.size else float("nan")
    flagged = {name: count for name, count in flagged.items() if count}
    marked = int(np.count_nonzero(status))
    return Report(plan.total, drawn, seconds, mean, float(error), marked, flagged, damaged, writer.failures, notes)
