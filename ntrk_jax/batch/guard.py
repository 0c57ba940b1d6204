"""Rewards that live outside JAX may fail: a guard tries again, gives up in time, and remembers for which sample.

Within the program a call that failed is a reward of NaN: it flags its sample and leaves the others alone. Whether the
run goes on is decided when the chunk arrives on the host.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ntrk_jax.core import Status
from ntrk_jax.rewards import External
from ntrk_jax.tree import replace

__all__ = ["Guard"]


class Guard:
    """Watches over the `External` rewards of samplers.

    Attributes:
        retries: further tries of a call that failed. time_limit: seconds a try may take, or None. A call that hangs
            keeps its thread until the process ends.
        failures: what was said by the calls that failed, by the contents of their sample.
    """

    def __init__(self, retries: int = 0, time_limit: float | None = None) -> None:
        """Refuse limits that leave no try."""
        if retries < 0 or (time_limit is not None and not time_limit > 0):
            raise ValueError(
                f"retries must be at least 0 and time_limit above 0 seconds, got {retries} and {time_limit}."
            )
        self.retries, self.time_limit = retries, time_limit
        self.failures: dict[bytes, str] = {}
        self._made: dict[tuple, Callable] = {}

    def around(self, sampler: Any) -> Any:
        """The sampler with every `External` reward in it guarded."""

        def is_external(node: Any) -> bool:
            return isinstance(node, External)

        def guarded(node: Any) -> Any:
            return replace(node, function=self._wrapped(node.function, node.batched)) if is_external(node) else node

        return jax.tree.map(guarded, sampler, is_leaf=is_external)

    def judge(self, x: np.ndarray, reward: np.ndarray, status: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """The flags of a chunk's samples, and what was said by the calls that failed, by row.

        CALLBACK_FAILED goes to a sample whose own reward is missing, and to one that has a reward and lost one on its
        way; a function that returns NaN by itself is no failure.
        """
        said: dict[int, str] = {}
        if not self.failures:
            return status, said
        status = status.copy()
        for row in np.flatnonzero(status & Status.NONFINITE_REWARD):
            own = self.failures.get(_digest(np.asarray(x[row], np.promote_types(x.dtype, np.float32))))
            if own or np.isfinite(reward[row]):
                said[int(row)] = own or f"on its way: {next(reversed(self.failures.values()))}"
                status[row] |= Status.CALLBACK_FAILED
        return status, said

    def _wrapped(self, function: Callable, batched: bool) -> Callable:
        made = self._made.get((function, batched))
        if made is None:
            made = self._batch(function) if batched else lambda x: self._one(function, x)
            self._made[function, batched] = made
        return made

    def _one(self, function: Callable, x: np.ndarray) -> float:
        """The reward of one sample, or NaN with a note."""
        message = ""
        for _ in range(self.retries + 1):
            try:
                return float(np.asarray(self._limited(function, x), np.float32).reshape(()))
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
        self.failures[_digest(np.asarray(x))] = message
        return float("nan")

    def _batch(self, function: Callable) -> Callable:
        """A batch at once; if that fails, sample by sample, so that one failure costs one sample."""

        def guarded(x: np.ndarray) -> np.ndarray:
            try:
                return np.asarray(self._limited(function, x), np.float32).reshape(len(x))
            except Exception:
                return np.array([self._one(lambda row: function(row[None]), row) for row in x], np.float32)

        return guarded

    def _limited(self, function: Callable, x: np.ndarray) -> Any:
        if self.time_limit is None:
            return function(x)
        box: dict[str, Any] = {}

        def work() -> None:
            try:
                box["value"] = function(x)
            except Exception as error:
                box["error"] = error

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.time_limit)
        if "error" in box:
            raise box["error"]
        if "value" not in box:
            raise TimeoutError(f"the reward took longer than {self.time_limit:g} s")
        return box["value"]


def _digest(x: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(x).tobytes(), digest_size=16).digest()
