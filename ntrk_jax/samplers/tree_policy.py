r"""A tree of denoising paths in arrays of one size, and the ways through it.

Node 0 is the root, above pure noise; its children are initial noises x_T, the last level are clean samples x_0 with
their rewards. With children c of a node p, log-ratios l_c of base to proposal on the edge to c, and temperature beta,

    backup:     v_p = beta log mean_c exp(v_c / beta + l_c),              v = r(x_0) at a leaf,
    sampling:   c ~ softmax_c(v_c / beta + l_c)                           (drawing from a tree),
    growth:     c ~ softmax_c((v_c / beta + l_c) / tempering)             (choosing where a path goes),
    search:     c = argmax_c v_c + exploration sqrt(log N_p / N_c)        (the same, for DTS*),
    widening:   p gets another child while its children number fewer than widening N_p^power.

N counts visits. Children are found by comparing parent pointers, all nodes at once: O(capacity) a level, no lists.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntrk_jax.typing import Array, Key, Sample, Scalar
from ntrk_jax.varying import vary

__all__ = ["Growth", "Tree"]

_MAX_REVISITS = 32


class Growth(NamedTuple):
    """How a tree grows: the fields of `DTS` of these names."""

    tempering: Any
    widening: Any
    power: Any
    exploration: Any


class Tree(NamedTuple):
    """The nodes, [capacity] arrays of which the first `size` entries are used.

    x: [capacity, *shape]. value: v, in reward units, -inf for a dead or an unfinished node. log_ratio: of the edge to
    the node. visits: N; 0 for the nodes of a path that has not reached its leaf. num_children, parent, level: level 0
    is the root, 1 the initial noises. tip: the node which the present path has reached, -1 between paths.
    temperature: beta. evidence, num_first: the logsumexp of the log-weights r / beta + l of those paths that started at
    pure noise, and how many there were.
    """

    x: Array
    value: Array
    log_ratio: Array
    visits: Array
    num_children: Array
    parent: Array
    level: Array
    size: Array
    tip: Array
    temperature: Array
    evidence: Array
    num_first: Array


def empty(x: Sample, capacity: int, temperature: Scalar, dtype: Any) -> Tree:
    """A root and its first child, the initial noise x, at which a path is about to start."""
    zeros = jnp.zeros((capacity,), jnp.int32)
    tree = Tree(
        x=jnp.zeros((capacity, *x.shape), x.dtype),
        value=jnp.full((capacity,), -jnp.inf, dtype),
        log_ratio=jnp.zeros((capacity,), dtype),
        visits=zeros.at[0].set(1),
        num_children=zeros,
        parent=zeros - 1,
        level=zeros,
        size=jnp.int32(1),
        tip=jnp.int32(-1),
        temperature=jnp.asarray(temperature, dtype),
        evidence=jnp.asarray(-jnp.inf, dtype),
        num_first=jnp.int32(0),
    )
    tree = add(tree, jnp.bool_(True), jnp.int32(0), x, jnp.zeros((), dtype))
    return tree._replace(tip=jnp.int32(1))


def put(array: Array, index: Array, value: Any) -> Array:
    """The array with one entry changed; cheaper than a scatter, and in place inside a loop."""
    return jax.lax.dynamic_update_index_in_dim(array, jnp.asarray(value, array.dtype), index, 0)


def add(tree: Tree, here: Array, parent: Array, x: Sample, log_ratio: Array) -> Tree:
    """The tree with one more, unfinished node where `here` [] is true."""
    one = here.astype(jnp.int32)
    log_ratio = jnp.where(jnp.isfinite(log_ratio), log_ratio, -jnp.inf)
    return tree._replace(  # the entry after the last one is unused, and is nobody's child
        x=put(tree.x, tree.size, x),
        log_ratio=put(tree.log_ratio, tree.size, log_ratio),
        num_children=put(tree.num_children, parent, tree.num_children[parent] + one),
        parent=put(tree.parent, tree.size, jnp.where(here, parent, -1)),
        level=put(tree.level, tree.size, tree.level[parent] + 1),
        size=tree.size + one,
    )


def log_weights(tree: Tree) -> Array:
    """The log-weight v / beta + l of each node, [capacity]; -inf where it is dead."""
    return tree.value / tree.temperature + tree.log_ratio


def grow_scores(tree: Tree, tempering: Scalar, exploration: Any) -> Array:
    """What children are compared by while the tree grows, [capacity]; UCT's bonus is apart, as it moves with visits."""
    if exploration is not None:
        return tree.value
    weights = log_weights(tree)
    return weights / jnp.asarray(tempering, weights.dtype)


def choose(scores: Array, among: Array) -> Array:
    """The last index of the highest score among the nodes allowed; two plain maxima, which vectorise."""
    scores = jnp.where(among, scores, -jnp.inf)
    index = jnp.arange(scores.shape[0], dtype=jnp.int32)
    return jnp.max(jnp.where(among & (scores == jnp.max(scores)), index, -1))


def pick(key: Key, log_weights: Array, among: Array) -> Array:
    """An index drawn in proportion to exp(log_weights) [capacity] among the nodes allowed; any if all are dead.

    One uniform number is located first among the sums of sqrt(capacity) blocks, then within its block. Rounding may
    land it beside a node of weight 0: the nearest node of positive weight is taken.
    """
    num = log_weights.shape[0]
    top = jnp.max(log_weights, initial=-jnp.inf, where=among)
    alive = top > -jnp.inf
    weights = jnp.where(among, jnp.exp(log_weights - jnp.where(alive, top, jnp.zeros_like(top))), 0.0)
    side = math.isqrt(num - 1) + 1
    blocks = jnp.pad(weights, (0, side * side - num)).reshape(side, side)
    ends = jnp.cumsum(jnp.sum(blocks, axis=1))
    point = (1.0 - jax.random.uniform(key, (), weights.dtype)) * ends[-1]
    block = jnp.minimum(jnp.sum(ends < point, dtype=jnp.int32), side - 1)
    rest = point - jnp.where(block > 0, ends[block - 1], jnp.zeros_like(point))
    found = block * side + jnp.sum(jnp.cumsum(blocks[block]) < rest, dtype=jnp.int32)
    distance = jnp.abs(jnp.arange(num, dtype=jnp.int32) - found).astype(weights.dtype)
    return choose(-distance, among & ((weights > 0) | ~alive))


def select(key: Key, tree: Tree, needed: Array, rule: Growth, leaf_level: int) -> tuple[Array, Array]:
    """The node to expand, and the visits after going there; the tip and the visits as they are where not `needed`.

    A descent which ends at a leaf visits it once more and starts again, as its reward is known; after 32 of them in a
    row the leaf's parent is expanded.
    """
    dtype = tree.value.dtype
    widening, power = jnp.asarray(rule.widening, dtype), jnp.asarray(rule.power, dtype)

    def closed(carry: tuple[Array, Array]) -> Array:
        node, visits = carry
        room = widening * visits[node].astype(dtype) ** power
        return (tree.num_children[node].astype(dtype) >= room) & (tree.level[node] < leaf_level)

    def descend(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        _, visits, tries, _ = carry
        key_try, scores = jax.random.fold_in(key, tries), grow_scores(tree, rule.tempering, rule.exploration)

        def down(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            node, visits = carry
            children = tree.parent == node
            if rule.exploration is None:
                child = pick(jax.random.fold_in(key_try, tree.level[node]), scores, children)
            else:
                child = choose(scores + _bonus(visits, node, rule.exploration, dtype), children)
            return child, put(visits, node, visits[node] + 1)

        node, visits = jax.lax.while_loop(closed, down, vary((jnp.int32(0), visits), (tree, rule, key)))
        visits, tries = put(visits, node, visits[node] + 1), tries + 1
        inner = tree.level[node] < leaf_level
        node = jnp.where(inner | (tries < _MAX_REVISITS), node, tree.parent[node])
        return node, visits, tries, inner | (tries >= _MAX_REVISITS)

    start = vary((tree.tip, tree.visits, jnp.int32(0), ~needed), (tree, rule, key))
    node, visits, _, _ = jax.lax.while_loop(lambda carry: ~carry[3], descend, start)
    return node, visits


def _bonus(visits: Array, node: Array, exploration: Scalar, dtype: Any) -> Array:
    count = jnp.maximum(visits, 1).astype(dtype)
    return jnp.asarray(exploration, dtype) * jnp.sqrt(jnp.log(count[node]) / count)


def backup(tree: Tree, leaf: Array, value: Array, here: Array) -> Tree:
    """The tree with a leaf's reward carried up to the root, where `here` [] is true."""
    value = jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def only(weights: Array, node: Array, below: Array) -> Array:
        return weights[below]

    def among_siblings(weights: Array, node: Array, below: Array) -> Array:
        return _logsumexp(weights, tree.parent == node)

    def up(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        values, visits, weights, node, below, ratio, first = carry
        weights = put(weights, below, values[below] / tree.temperature + tree.log_ratio[below])
        total = jax.lax.cond(tree.num_children[node] == 1, only, among_siblings, weights, node, below)
        mean = tree.temperature * (total - jnp.log(tree.num_children[node].astype(total.dtype)))
        first = jnp.where(tree.level[node] == 1, visits[node] == 0, first)
        visits = put(visits, node, jnp.maximum(visits[node], 1))
        ratio = ratio + tree.log_ratio[node]
        return put(values, node, mean), visits, weights, tree.parent[node], node, ratio, first

    values = put(tree.value, leaf, jnp.where(here, value, tree.value[leaf]))
    visits = put(tree.visits, leaf, jnp.where(here, 1, tree.visits[leaf]))
    above = jnp.where(here, tree.parent[leaf], -1)
    start = values, visits, log_weights(tree), above, leaf, tree.log_ratio[leaf], jnp.bool_(False)
    start = vary(start, (tree, leaf, value, here))
    values, visits, _, _, _, ratio, first = jax.lax.while_loop(lambda carry: carry[3] >= 0, up, start)
    weight = jnp.where(first, value / tree.temperature + ratio, -jnp.inf)
    evidence = _logsumexp(jnp.stack([tree.evidence, weight]), jnp.ones(2, bool))
    num_first = tree.num_first + first.astype(jnp.int32)
    return tree._replace(value=values, visits=visits, evidence=evidence, num_first=num_first)


def _logsumexp(weights: Array, among: Array) -> Array:
    top = jnp.max(weights, initial=-jnp.inf, where=among)
    safe = jnp.where(top > -jnp.inf, top, jnp.zeros_like(top))
    return jnp.log(jnp.sum(jnp.exp(weights - safe), where=among)) + safe


def log_z(tree: Tree) -> Array:
    """The log of the mean weight of the paths that started at pure noise, []; 0 before the first has ended."""
    mean = tree.evidence - jnp.log(jnp.maximum(tree.num_first, 1).astype(tree.evidence.dtype))
    return jnp.where(tree.num_first > 0, mean, jnp.zeros_like(mean))
