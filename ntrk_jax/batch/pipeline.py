"""The two halves of a run: a loop that starts rounds on the devices, and a thread that writes what they drew.

    round k + 1 is computed on the devices  |  round k is fetched, judged, written and marked by the thread

Two rounds are under way at a time, which bounds the memory of results. There is nothing to donate: noises are drawn on
the device, and a round takes in a few numbers a sample.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import Mesh

from ntrk_jax.batch.draw import Drawn
from ntrk_jax.batch.guard import Guard
from ntrk_jax.batch.plan import Group, Plan
from ntrk_jax.batch.shard import Program, Rules
from ntrk_jax.batch.store import Store

__all__ = ["RewardError", "Writer", "counter", "draw_pending"]

_IN_FLIGHT = 2  # rounds that are drawn or written at the same time


class RewardError(RuntimeError):
    """A reward or a model failed for a sample, and the run was asked to stop there; one line."""


def draw_pending(
    plan: Plan,
    parts: list[tuple[Group, list[int]]],
    mesh: Mesh,
    rules: Rules | None,
    pending: list[int],
    writer: Writer,
) -> float:
    """Draw the pending chunks, round by round; the seconds it took, compilation left out."""
    wanted, compiling, began = set(pending), 0.0, time.perf_counter()
    with writer:
        for group, chunks in parts:
            own = [chunk for chunk in chunks if chunk in wanted]
            if not own or writer.error:
                continue
            start = time.perf_counter()
            program = Program(plan, group, mesh, rules)
            compiling += time.perf_counter() - start
            for first in range(0, len(own), program.lanes):
                ids = own[first : first + program.lanes]
                if not writer.ready():
                    break
                with _blame(plan, ids):
                    out = program(ids + [ids[-1]] * (program.lanes - len(ids)))
                writer.take(program, out, ids)
    return time.perf_counter() - began - compiling


class Writer:
    """The thread that waits for samples and writes them; as a context it is joined, and its error kept in `error`."""

    def __init__(self, plan: Plan, store: Store, guard: Guard, on_error: str, progress: Callable[[int], None]) -> None:
        """Prepare the thread; `with` starts and joins it."""
        self.plan, self.store, self.guard, self.on_error, self.progress = plan, store, guard, on_error, progress
        self.error: BaseException | None = None
        self.failures: list[str] = []
        self.queue: queue.Queue = queue.Queue()
        self.slots = threading.Semaphore(_IN_FLIGHT)
        self.thread = threading.Thread(target=self._work, name="ntrk-batch-writer", daemon=True)

    def __enter__(self) -> Writer:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.queue.put(None)
        self.thread.join()

    def ready(self) -> bool:
        """Wait until another round may start; whether it should."""
        self.slots.acquire()
        return self.error is None

    def take(self, program: Program, out: Drawn, chunks: list[int]) -> None:
        """Hand over a round."""
        self.queue.put((program, out, chunks))

    def _work(self) -> None:
        while (item := self.queue.get()) is not None:
            try:
                if self.error is None:
                    self._write(*item)
            except BaseException as error:
                self.error = error
            del item
            self.slots.release()

    def _write(self, program: Program, out: Drawn, chunks: list[int]) -> None:
        with _blame(self.plan, chunks):
            lanes = program.local(out)
        for lane, chunk in enumerate(chunks):
            if lane in lanes:
                self.store.write(chunk, self._judged(chunk, lanes[lane]))
                self.progress(self.plan.size(chunk))

    def _judged(self, chunk: int, drawn: Drawn) -> Drawn:
        """The chunk with the flags of its failed callbacks, if the run goes on after them."""
        status, said = self.guard.judge(drawn.x, drawn.reward, drawn.status)
        said = {row: text for row, text in said.items() if row < self.plan.size(chunk)}
        lines = [f"{self.plan.name(chunk * self.plan.chunk + row)}: {text}" for row, text in said.items()]
        if lines and self.on_error == "stop":
            raise RewardError(
                f"the reward failed for {lines[0]}; its chunk was not written, what was written before is safe. Run "
                "the same command again to retry, or ask for failures to be skipped."
            )
        self.failures += lines
        return drawn._replace(status=status)


@contextmanager
def _blame(plan: Plan, chunks: list[int]) -> Iterator[None]:
    """Say which units were being drawn when a program failed on the device."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        names = sorted({plan.units[row // plan.num].name for chunk in chunks for row in plan.rows(chunk)})
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RewardError(
            f"the program failed while drawing unit {', '.join(map(repr, names[:3]))} ({lines[-1][:200]}); what was "
            "written before is safe."
        ) from error


def counter(plan: Plan, mesh: Mesh, parts: Any, pending: list[int], report: Any) -> Callable[[int], None]:
    """Adds up the rows that this process has written, of those it is to write."""
    devices = mesh.devices.reshape(mesh.devices.shape[0], -1)[:, 0]
    mine = [d.process_index == jax.process_index() for d in devices]
    wanted, share, done = set(pending), 0, 0
    for _, chunks in parts:
        own = [chunk for chunk in chunks if chunk in wanted]
        share += sum(plan.size(chunk) for k, chunk in enumerate(own) if mine[k % len(mine)])

    def add(rows: int) -> None:
        nonlocal done
        done += rows
        if report is not None:
            report(done, share)

    return add
