"""What varies from device to device: the bookkeeping that `jax.shard_map` asks of loops and branches.

Under it each array varies over some axes of the mesh, and what a loop carries must vary over the same ones at its start
and its end, the answers of two branches alike. Constants, such as a counter that begins at 0, vary over none. Elsewhere
nothing of this is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["settled", "vary", "vary_as"]


def vary(tree: Any, like: Any) -> Any:
    """A pytree that differs from device to device as the arrays of `like` do: what a loop or a branch begins with.

    Under `jax.shard_map` what a loop carries must vary over the same axes at its start and its end; elsewhere nothing
    is done. Weights of a model are left out of `like`: one whose answer is the same on all devices leaves x so.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    axes = frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves(like)))
    return jax.tree.map(lambda leaf: _over(leaf, axes), tree)


def settled(body: Callable[[Any], Any], start: Any) -> Any:
    """What a loop of `body` begins with, each leaf varying as it comes to vary within it; see `vary`."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return start
    leaves, tree = jax.tree.flatten(start)
    while True:
        ends = jax.make_jaxpr(lambda leaves: jax.tree.leaves(body(jax.tree.unflatten(tree, leaves))))(leaves).out_avals
        after = [_over(leaf, _varying(end)) for leaf, end in zip(leaves, ends, strict=True)]
        if [_axes(a) for a in after] == [_axes(a) for a in leaves]:
            return jax.tree.unflatten(tree, leaves)
        leaves = after


def vary_as(tree: Any, like: Any) -> Any:
    """A pytree each leaf of which varies at least as that of `like`; see `vary`."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    return jax.tree.map(lambda leaf, other: _over(leaf, _axes(other)), tree, like)


def _over(leaf: Any, axes: frozenset) -> Any:
    missing = tuple(sorted(axes - _axes(leaf)))
    return jax.lax.pcast(jnp.asarray(leaf), missing, to="varying") if missing else leaf


def _axes(leaf: Any) -> frozenset:
    return _varying(getattr(leaf, "aval", None))


def _varying(aval: Any) -> frozenset:
    return getattr(getattr(aval, "manual_axis_type", None), "varying", frozenset())
