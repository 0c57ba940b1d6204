"""Who draws what: a mesh of devices, each of which draws one chunk at a time.

    device d of a round draws the rows of chunk c_d, with the program that a single device would run

The program is compiled once, ahead of time, for one chunk a device, so a path is the same to the last bit for any
number of devices and processes. The log-weights of populations agree to rounding, as the compiler may fuse the program
of another number of devices differently, and so would a choice that hangs on their last bit. With replicated parameters
the program goes through `jax.shard_map` and holds no collective: populations live on one device. Parameters sharded by
`rules` are gathered by collectives that the compiler puts where they are needed (as in FSDP); the samples then agree to
rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ntrk_jax.batch.draw import Drawn, draw_one
from ntrk_jax.batch.plan import Group, Plan

__all__ = ["COLLECTIVES", "Program", "Rules", "make_mesh"]

Rules = Callable[[str, Any], PartitionSpec | None]
"""(path of a leaf of the sampler such as ".look.model.variables['w']", leaf) -> its PartitionSpec, or None."""

COLLECTIVES = r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
"""Matches the collectives in the text of a compiled program."""

_AXES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def make_mesh(devices: int | Sequence[Any] | None = None, axes: str = "auto") -> Mesh:
    """A mesh with one axis, "data".

    Args:
        devices: how many of the visible devices, or which; all of them (of all processes) if None.
        axes: "auto" or "explicit", the type of the axis.

    Raises:
        ValueError: if there are fewer devices, or the type has no such name.

    Example:
        >>> from ntrk_jax.batch import make_mesh
        >>> make_mesh(1).shape["data"]
        1
    """
    if axes not in _AXES:
        raise ValueError(f"axes must be auto or explicit, got {axes!r}.")
    visible = jax.devices()
    if isinstance(devices, int):
        if not 1 <= devices <= len(visible):
            raise ValueError(f"devices must be between 1 and the {len(visible)} visible ones, got {devices}.")
        devices = visible[:devices]
    chosen = list(visible if devices is None else devices)
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(_AXES[axes],), devices=chosen)


class Program:
    """The compiled program of a group of units: chunks in, samples out.

    Attributes:
        compiled: the executable; `compiled.as_text()`, `memory_analysis()` and `cost_analysis()` are JAX's own.
        outputs: the shapes and dtypes of all devices' samples together, a `Drawn`.
    """

    def __init__(self, plan: Plan, group: Group, mesh: Mesh, rules: Rules | None = None) -> None:
        """Compile for one chunk a device of the first axis of the mesh."""
        self.plan, self.mesh, self.axis = plan, mesh, mesh.axis_names[0]
        self.lanes = mesh.shape[self.axis]
        self.table, self.row_of = group.varying(), {unit: k for k, unit in enumerate(group.units)}
        self.unit_keys = plan.keys()
        self.split = NamedSharding(mesh, PartitionSpec(self.axis))
        with jax.set_mesh(mesh):
            self.common = self._place(group, rules)
            function = self._sharded(self._draw(group), rules)
            traced = jax.jit(function).trace(self.common, *self._rows([0] * self.lanes))
            self.outputs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), traced.out_info)
            self.compiled = traced.lower().compile()

    def __call__(self, chunks: Sequence[int]) -> Drawn:
        """Start drawing one chunk a device, and copying to the host; returns at once."""
        out = self.compiled(self.common, *self._rows(chunks))
        for leaf in jax.tree.leaves(out):
            for shard in leaf.addressable_shards:
                if shard.replica_id == 0:
                    shard.data.copy_to_host_async()
        return out

    @property
    def collectives(self) -> list[str]:
        """The kinds of collectives in the compiled program."""
        return sorted(set(re.findall(COLLECTIVES, self.compiled.as_text() or "")))

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on one device, as the compiler counts them."""
        found = self.compiled.memory_analysis()
        names = ("argument", "output", "temp", "generated_code")
        return {name: int(getattr(found, f"{name}_size_in_bytes", 0)) for name in names}

    @property
    def cost(self) -> dict[str, float]:
        """Operations and bytes moved for one chunk, where the compiler counts them; loops may count once."""
        found = self.compiled.cost_analysis() or {}
        return {name: float(found[name]) for name in ("flops", "bytes accessed") if name in found}

    def local(self, out: Drawn) -> dict[int, Drawn]:
        """Lane -> its samples on the host, for the lanes of this process; waits until they are there."""
        found: dict[int, list] = {}
        for leaf in jax.tree.leaves(out):
            for shard in leaf.addressable_shards:
                if shard.replica_id == 0:
                    lane = (shard.index[0].start or 0) // self.plan.chunk
                    found.setdefault(lane, []).append(np.asarray(shard.data))
        tree = jax.tree.structure(out)
        return {lane: jax.tree.unflatten(tree, leaves) for lane, leaves in found.items()}

    def _draw(self, group: Group) -> Callable:
        """The program of one device: (common leaves, varying leaves, keys, indices) -> samples."""
        plan, tree = self.plan, group.tree

        def draw(common: list, varying: dict[int, Any], keys: Any, indices: Any) -> Drawn:
            def one(own: dict[int, Any], key: Any, index: Any) -> Drawn:
                leaves = [own.get(k, leaf) for k, leaf in enumerate(common)]
                sampler, steps = jax.tree.unflatten(tree, leaves)
                return draw_one(sampler, jax.random.wrap_key_data(key), index, steps, plan.shape, dtype=plan.dtype)[0]

            return jax.vmap(one)(varying, keys, indices)

        return draw

    def _sharded(self, draw: Callable, rules: Rules | None) -> Callable:
        spec = PartitionSpec(self.axis)
        if rules is None:
            specs = (PartitionSpec(), spec, spec, spec)
            return jax.shard_map(draw, mesh=self.mesh, in_specs=specs, out_specs=spec, check_vma=False)
        if AxisType.Explicit in self.mesh.axis_types:
            draw = jax.sharding.auto_axes(draw, axes=self.mesh.axis_names, out_sharding=spec)

        def constrained(*args: Any) -> Drawn:
            return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, self.split), draw(*args))

        return constrained if AxisType.Explicit not in self.mesh.axis_types else draw

    def _place(self, group: Group, rules: Rules | None) -> list:
        """The shared leaves on the devices: replicated, or as the rules say."""

        def put(path: str, leaf: Any) -> Any:
            if not hasattr(leaf, "dtype"):
                return leaf  # a Python number, or None where the rows bring their own
            spec = None if rules is None else rules(path, leaf)
            sharding = NamedSharding(self.mesh, spec or PartitionSpec())
            return jax.device_put(leaf, sharding) if jax.process_count() == 1 else _spread(np.asarray(leaf), sharding)

        return [put(path, leaf) for path, leaf in zip(group.paths, group.common, strict=True)]

    def _rows(self, chunks: Sequence[int]) -> tuple:
        """The varying leaves, the keys and the numbers of the rows of all lanes."""
        rows = np.concatenate([self.plan.rows(c) for c in chunks])
        units, index = rows // self.plan.num, (rows % self.plan.num).astype(np.uint32)
        own = np.array([self.row_of.get(u, 0) for u in units])
        varying = {k: table[own] for k, table in self.table.items()}
        return jax.tree.map(lambda a: _spread(a, self.split), (varying, self.unit_keys[units], index))


def _spread(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, of which each puts its part on its devices."""
    array = np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))  # float32 for float64, unless that is enabled
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
