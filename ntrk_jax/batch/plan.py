"""What is to be drawn: units of samples, each sample with a name that fixes it.

A unit is a sampler (a condition, a strength, a digit, ...) and how to name its samples; sample i of it uses

    fold_in(fold_in(key(plan.seed), crc32(unit.name)), i)     or     fold_in(key(unit.seed), i)

where the unit has a seed of its own. The position of the unit, the chunk, the device, the process and the time never
enter. All samples of all units form one table of rows, units one after the other; a chunk is a run of consecutive rows,
which one device draws at a time and which is stored as one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax import naming
from ntrk_jax.arguments import require_count
from ntrk_jax.core import Step
from ntrk_jax.grids import check_schedule
from ntrk_jax.tree import describe, is_key

__all__ = ["Group", "Plan", "Unit", "grouped", "make_plan"]

_LARGEST_VARYING = 1 << 20  # entries; larger leaves are never copied for every row


class Unit(NamedTuple):
    """A named sampler on a grid.

    seed: None, or the seed of a family of its own: `ntrk sample --seed` of it draws the same samples.
    """

    name: str
    sampler: Any
    steps: Step
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that determines the contents of a store.

    Attributes:
        units: what is drawn, with distinct names. shape: of one sample.
        num: samples a unit. seed: names all of them.
        chunk: samples that one device draws at a time, at most all; part of the plan, because the last bits of a
            sample may depend on the size of the batch it is computed in.
        dtype: of the latents, float32 unless given.
        settings: anything that JSON can hold, for instance the file the plan was read from; kept with the results.

    Raises:
        ValueError: if two units share a name, a count is not positive, a setting is nothing that JSON can hold, or a
            grid is not of its sampler's schedule.
    """

    units: tuple[Unit, ...]
    shape: tuple[int, ...]
    num: int
    seed: int = 0
    chunk: int = 256
    dtype: Any = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        require_count(units=len(self.units), num=self.num, chunk=self.chunk)
        object.__setattr__(self, "settings", _as_json(self.settings))
        if self.total >= 2**31:
            raise ValueError(f"a plan holds at most 2^31 - 1 samples, got {self.total}; split it into several.")
        for seed in (self.seed, *(unit.seed for unit in self.units if unit.seed is not None)):
            if not 0 <= seed < 2**32:
                raise ValueError(f"seeds must be between 0 and 2^32 - 1, got {seed}.")
        for unit in self.units:
            check_schedule(unit.sampler, unit.steps)
        for name, value in (("num", self.num), ("seed", self.seed), ("chunk", min(self.chunk, self.total))):
            object.__setattr__(self, name, int(value))
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        names = [unit.name for unit in self.units]
        tags = {_tag(name): name for name in names}
        if len(tags) < len(names):
            twice = next(name for k, name in enumerate(names) if tags[_tag(name)] != name or name in names[:k])
            raise ValueError(f"units need distinct names, got {twice!r} twice, or another name with the same hash.")

    @property
    def total(self) -> int:
        """The number of rows."""
        return len(self.units) * self.num

    @property
    def num_chunks(self) -> int:
        """The number of chunks, the last of which may be shorter."""
        return -(-self.total // self.chunk)

    def rows(self, chunk: int) -> np.ndarray:
        """The rows of a chunk, [chunk]; those behind the end are filled with the last row."""
        first = chunk * self.chunk
        return np.minimum(np.arange(first, first + self.chunk), self.total - 1)

    def size(self, chunk: int) -> int:
        """How many of them are samples."""
        return min(self.chunk, self.total - chunk * self.chunk)

    def name(self, row: int) -> str:
        """A sample in words."""
        return f"sample {row % self.num} of unit {self.units[row // self.num].name!r}"

    def keys(self) -> np.ndarray:
        """The key of each unit as data, [units, words]."""
        own = [unit.seed is not None for unit in self.units]
        seeds = np.array([self.seed if u.seed is None else u.seed for u in self.units], np.uint32)
        tags = np.array([_tag(u.name) for u in self.units], np.uint32)
        base = jax.vmap(jax.random.key)(seeds)
        folded = jax.random.key_data(jax.vmap(jax.random.fold_in)(jax.random.clone(base), tags))
        return np.where(np.array(own)[:, None], np.asarray(jax.random.key_data(base)), np.asarray(folded))

    def record(self) -> dict[str, Any]:
        """What a store keeps of the plan, as JSON; two plans that draw other samples have other records."""
        groups, units = grouped(self.units), []
        for number, unit in enumerate(self.units):
            group = next(g for g in groups if number in g.units)
            entry: dict[str, Any] = {"name": unit.name, "rows": [number * self.num, (number + 1) * self.num]}
            if unit.seed is not None:
                entry["seed"] = unit.seed
            if number == group.units[0]:
                printed = _printed(unit.sampler)
                entry |= {"sampler": printed, "steps": describe(unit.steps), "leaves": group.digest}
                entry |= _code(unit.sampler, printed)
            else:
                entry |= {"like": self.units[group.units[0]].name, "with": group.differences(number)}
            units.append(entry)
        dtype = None if self.dtype is None else jnp.dtype(self.dtype).name
        plan = {"num": self.num, "seed": self.seed, "chunk": self.chunk, "shape": list(self.shape), "dtype": dtype}
        generator = str(jax.random.key_impl(jax.random.key(0)))
        partitionable = getattr(jax.config, "jax_threefry_partitionable", True)
        if (generator, partitionable) != ("threefry2x32", True):
            plan |= {"keys": generator, "partitionable": partitionable}
        return {"plan": dict(self.settings) | plan, "sampler": units[0]["sampler"], "units": units}


def make_plan(
    sampler: Any, steps: Step, shape: Sequence[int], num: int, *, seed: int = 0, chunk: int = 256, dtype: Any = None,
    conditions: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None,
) -> Plan:  # fmt: skip
    """A plan for one sampler, or for one sampler a condition.

    Args:
        sampler: any sampler; with `conditions`, a function condition -> sampler. The samplers of two conditions may
            share arrays (a network's weights): those are held once.
        steps: the rows of a grid. shape: of one sample. num: samples (of each condition).
        seed: without conditions, sample i uses fold_in(key(seed), i); with them, the rule above.
        chunk: samples that one device draws at a time. dtype: of the latents.
        conditions: name -> condition. settings: kept with the results.

    Example:
        >>> import ntrk_jax as nk
        >>> from ntrk_jax.batch import make_plan
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
        >>> def sampler(cond):
        ...     return nk.Single(nk.Look(lambda x, t: 0.5 * x), nk.kernels.DDIM(eta=cond))
        >>> plan = make_plan(sampler, steps, (2,), 100, conditions={"calm": 0.1, "wild": 1.0}, chunk=64)
        >>> plan.total, plan.num_chunks
        (200, 4)
    """
    if conditions is None:
        units = (Unit("all", sampler, steps, seed),)
    else:
        units = tuple(Unit(str(name), sampler(cond), steps) for name, cond in conditions.items())
    return Plan(units, tuple(shape), num, seed, chunk, dtype, dict(settings or {}))


class Group:
    """Units that one compiled program draws: they differ in the values of small leaves alone.

    common: the leaves that all share, with None for those that differ; varying: position -> [units, ...].
    """

    def __init__(self, number: int, leaves: list, paths: list[str], tree: Any, num_fixed: int) -> None:
        """The group of one unit; its last `num_fixed` leaves (the grid) must be shared by all."""
        self.units, self.table, self.paths, self.tree, self.num_fixed = [number], [leaves], paths, tree, num_fixed

    def admits(self, leaves: list, tree: Any) -> bool:
        """Whether a unit can be drawn by the same program."""
        if tree != self.tree:
            return False
        free = len(leaves) - self.num_fixed
        return all(
            _same(a, b) or (k < free and _aval(a) == _aval(b) and not is_key(a) and np.size(a) <= _LARGEST_VARYING)
            for k, (a, b) in enumerate(zip(self.table[0], leaves, strict=True))
        )

    @functools.cached_property
    def positions(self) -> list[int]:
        """The leaves that differ."""
        first = self.table[0]
        return [k for k in range(len(first)) if not all(_same(first[k], leaves[k]) for leaves in self.table[1:])]

    @property
    def common(self) -> list:
        """The shared leaves, with None for those that differ."""
        varying = set(self.positions)
        return [None if k in varying else leaf for k, leaf in enumerate(self.table[0])]

    def varying(self) -> dict[int, np.ndarray]:
        """Position -> the leaves of all units on the host, [units, ...]."""
        return {k: np.stack([_host(leaves[k]) for leaves in self.table]) for k in self.positions}

    @property
    def digest(self) -> str:
        """A name for the contents of the leaves of the first unit."""
        parts = [f"{_aval(leaf)}{hashlib.sha256(_host(leaf).tobytes()).hexdigest()}" for leaf in self.table[0]]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    def differences(self, number: int) -> dict[str, str]:
        """The leaves of a unit that differ from those of the group's first, by their path."""
        leaves = self.table[self.units.index(number)]
        return {self.paths[k]: describe(leaves[k]) for k in self.positions if not _same(leaves[k], self.table[0][k])}


def grouped(units: Sequence[Unit]) -> list[Group]:
    """The programs that the units need, in the order of their first units."""
    groups: list[Group] = []
    for number, unit in enumerate(units):
        flat, tree = jax.tree_util.tree_flatten_with_path((unit.sampler, unit.steps))
        leaves = [leaf for _, leaf in flat]
        found = next((g for g in groups if g.admits(leaves, tree)), None)
        if found is None:
            paths = [re.sub(r"^\[0\]", "", jax.tree_util.keystr(path)) for path, _ in flat]
            groups.append(Group(number, leaves, paths, tree, len(jax.tree.leaves(unit.steps))))
        else:
            found.units.append(number)
            found.table.append(leaves)
    return groups


def _printed(sampler: Any) -> str:
    """The sampler's repr, without the addresses of objects that have none of their own."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(sampler))


def _code(sampler: Any, printed: str) -> dict[str, str]:
    """A digest of the code in work that a sampler so printed holds, where there is any."""
    with naming.in_full():
        text = _printed(sampler)
    return {} if text == printed else {"code": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _aval(leaf: Any) -> tuple:
    return np.shape(leaf), str(leaf.dtype if hasattr(leaf, "dtype") else type(leaf).__name__)


def _same(a: Any, b: Any) -> bool:
    return a is b or (_aval(a) == _aval(b) and _host(a).tobytes() == _host(b).tobytes())


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are read back from a file."""
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings must be what JSON can hold: {error}.") from None


def _tag(name: str) -> int:
    return zlib.crc32(name.encode())
