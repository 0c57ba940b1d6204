"""Reading a tree: draws by its policy, and the exact law of such a draw. No model and no reward calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.core import Lookahead, Step
from ntrk_jax.samplers.tree_policy import Tree, log_weights
from ntrk_jax.typing import Array, Key
from ntrk_jax.varying import vary

__all__ = ["leaf_log_probs", "rollouts", "sample_tree"]


def rollouts(num: int) -> Step:
    """The rows over which a tree is run, one for each full path's worth of model calls.

    They carry no noise levels: alpha counts the rollouts done, sigma those to go, and t = sigma / (alpha + sigma) runs
    from 1 to 0.

    Raises:
        ValueError: if num is below 1.

    Example:
        >>> rollouts(4).t.tolist()
        [1.0, 0.75, 0.5, 0.25]
    """
    if num < 1:
        raise ValueError(f"rollouts needs at least one, got {num}.")
    done = jnp.arange(num + 1, dtype=jnp.float32)
    left = num - done
    t = left / num
    return Step(t[:-1], t[1:], done[:-1], left[:-1], done[1:], left[1:])


def leaf_log_probs(state: Any) -> Array:
    """The log-probability of each node to be drawn as a sample by the tree policy, [capacity]; -inf but for leaves.

    `jnp.sum(jnp.exp(leaf_log_probs(state)) * f)` is the tree's expectation of any f of its leaves `state.tree.x`,
    without the noise of drawing them.

    Args:
        state: the final state of a `DTS` run.

    Cost: O(capacity) a level; no model and no reward call.
    """
    tree: Tree = jax.tree.map(jnp.asarray, state.tree)
    num = tree.value.shape[0]
    finished = (tree.visits > 0) & (tree.level > 0)
    above = jnp.where(finished, tree.parent, num)
    weights = log_weights(tree)
    top = jax.ops.segment_max(weights, above, num)
    alive = (top > -jnp.inf)[tree.parent]
    weights = jnp.where(alive, weights, jnp.zeros_like(weights))
    top = jnp.where(top > -jnp.inf, top, jnp.zeros_like(top))
    total = jnp.log(jax.ops.segment_sum(jnp.exp(weights - top[tree.parent]), above, num)) + top
    total = jnp.where(total > -jnp.inf, total, jnp.zeros_like(total))
    own = jnp.where(finished, weights - total[tree.parent], -jnp.inf)

    def up(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        log_probs, node = carry
        step = jnp.where(node > 0, own[node], jnp.zeros_like(own))
        return log_probs + step, jnp.where(node > 0, tree.parent[node], 0)

    log_probs, _ = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1] > 0), up, vary((own, jnp.where(finished, tree.parent, 0)), tree)
    )
    return jnp.where(finished & (tree.num_children == 0), log_probs, -jnp.inf)


def sample_tree(key: Key, state: Any, num: int) -> Lookahead:
    """Draws from a built tree by its policy: clean samples with their true rewards, and no model call.

    Args:
        key: one typed key. state: the final state of a `DTS` run. num: the number of draws, static.

    Returns:
        Lookahead(x [num, *shape], x0 [num, *shape], value [num]). Draws may coincide: the tree has finitely many
        leaves.

    Cost: O(capacity) a level and O(num log capacity); no model and no reward call.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> grid = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
        >>> sampler = nk.methods.dts(lambda x, t: 0.5 * x, lambda x0: x0.sum(), (2,), grid=grid, num_rollouts=8)
        >>> state, _ = nk.run(sampler, jax.random.key(0), jnp.ones(2), rollouts(8))
        >>> sample_tree(jax.random.key(1), state, 5).x.shape, int(state.evals.model)
        ((5, 2), 32)
    """
    tree: Tree = jax.tree.map(jnp.asarray, state.tree)
    probs = jnp.exp(leaf_log_probs(state))
    cumulative = jnp.cumsum(probs)
    points = (1.0 - jax.random.uniform(key, (num,), cumulative.dtype)) * cumulative[-1]  # in (0, total]
    index = jnp.arange(probs.shape[0], dtype=jnp.int32)
    after = jax.lax.cummin(jnp.where(probs > 0, index, index[-1]), reverse=True)  # rounding may land beside a leaf
    last = jnp.max(jnp.where(probs > 0, index, 0))
    found = jnp.minimum(jnp.searchsorted(cumulative, points), index[-1])
    return leaf_look(tree, jnp.minimum(after[found], last))


def leaf_look(tree: Tree, index: Array) -> Lookahead:
    """The looks at some leaves; a reward that was not finite reads -inf."""
    x = tree.x[index]
    return Lookahead(x, x.astype(tree.value.dtype), tree.value[index])
