r"""Diffusion Tree Sampling and Search: paths that branch, and rewards that are carried back to where they branched.

The grid is cut into `num_levels` segments of equally many rows. A node is an x at the start of a segment, an edge the
segment below it. A path selects a node to expand (`tree_policy`), follows the kernel from there to x_0, adds a node at
the end of each segment, asks for the reward of its x_0 and carries it up to the root:

    select ... expand --segment--> node --segment--> ... --segment--> leaf, r(x_0) ... back up, select ...

One step of the run is a full path's worth of model calls, num_rows of them, whatever the tree does: a path that
started low ends early, and the calls it did not need go to the next one, which may end in the next step. Hence every
tree of a batch spends the same at the same time, and `num` rows of `rollouts` cost num * num_rows NFE exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_count
from ntrk_jax.core import Evals, Guidance, Info, Kernel, Lookahead, Status, Step, Stream, algebra_dtype
from ntrk_jax.look import Look
from ntrk_jax.move import move
from ntrk_jax.samplers import tree_policy as policy
from ntrk_jax.samplers.single import refuse_missing_grad, refuse_no_noise
from ntrk_jax.samplers.tree_draw import leaf_look, sample_tree
from ntrk_jax.samplers.tree_policy import Tree
from ntrk_jax.tree import REGISTRY, is_concrete, pytree, replace, static
from ntrk_jax.typing import Array, Key, Sample, Scalar
from ntrk_jax.varying import vary

__all__ = ["DTS", "TreeState"]

REGISTRY["Step"] = Step  # so that the printed form of a sampler which holds a grid reads back


class TreeState(NamedTuple):
    """The state of a tree: as `State`, and the tree itself.

    look: DTS: at the latest leaf, and after the last row of a run at one drawn by the tree policy; DTS*: at the best.
    log_weights: [], log Z: the log of the mean weight exp(r / beta) of the paths that started at pure noise, whose
    mean is Z whatever the rule of growth. The root's own value over beta is another estimate, biased low.
    """

    look: Lookahead
    log_weights: Array
    evals: Evals
    status: Array
    tree: Tree


@pytree
class DTS:
    """Diffusion Tree Sampling; with `exploration`, Diffusion Tree Search (DTS*).

    Each child of a node stands for the law below it: v = beta log mean_c exp(v_c / beta) of true rewards, so that
    drawing children in proportion to exp(v_c / beta) draws from p(x_0) exp(r(x_0) / beta) as the tree grows.

    Attributes:
        look: the model and the reward. The reward is asked at clean samples only and needs no gradient.
        kernel: a stochastic base kernel.
        grid: the rows of the denoising grid.
        guidance: a rule with an exact density as the proposal of every edge, or None; its log-ratio is weighed in.
        temperature: beta.
        tempering: while the tree grows, children are drawn at `tempering` times the temperature; 1 is the paper's rule.
        widening, power: a node visited N times has at most widening * N^power children before the descent goes on.
        exploration: None draws children by the tree policy (DTS); a number, in reward units, takes the child of highest
            upper confidence bound (DTS*).
        num_levels: how many segments the grid is cut into; paths branch at the start of each, and at the root on x_T.
        num_rollouts: how many rows of `rollouts` the tree has room for. Further rows cost and do nothing.

    Shapes: x [*shape], the first of the initial noises (the others are drawn from N(0, sigma_T^2 I)). In the state,
        look.x [*shape], log_weights [] (log Z), and a tree of 1 + num_rollouts (num_levels + 1) nodes.
    Cost per step: num_rows model calls. One reward where a path ends: between one and num_levels a step. Under `vmap`
        the model is called on whole batches and the rewards are asked tree by tree, only where a path ended.
        Selection and backup compare all nodes: O(capacity num_levels) a path. What differs from tree to tree under
        `vmap` must be a leaf of the reward (`rewards.Neural`), not something that its function closes over.
    Density: the law of a draw from the tree (`sample_tree`) approaches that of the kernel's paths weighted by
        exp(r / temperature) as rollouts grow. Values are low, as a child that was lucky is visited more often than one
        that was not; the more so the smaller `tempering`. log_weights does not depend on them.
    Departs from the paper: a step counts model calls, not rollouts; paths are chosen with a softmax flattened by
        `tempering`: with 1 the error of the mode masses does not fall with the budget; log Z comes from the paths that
        started at noise; expanding an old node asks the model there once more; a leaf is visited again at most 32 times
        in a row; DTS* returns its best leaf, not a greedy descent.
    Status: `NONFINITE_REWARD` where a leaf's reward was not finite; it counts as -inf.
        `TREE_FULL` where there is no room.
    References: Jain, Sareen, Pedramfar, Ravanbakhsh 2025, arXiv:2506.20701, Algorithm 1.

    Raises:
        ValueError: without a reward, on a deterministic kernel, with a rule whose density is not exact, or if the
            number of rows is not num_levels times two or more.
    """

    look: Look
    kernel: Kernel
    grid: Step
    guidance: Guidance | None = None
    temperature: Scalar = 1.0
    tempering: Scalar = 8.0
    widening: Scalar = 2.0
    power: Scalar = 0.8
    exploration: Scalar | None = None
    num_levels: int = static(default=5)
    num_rollouts: int = static(default=100)

    over_rollouts = True

    def __post_init__(self) -> None:
        """Refuse what can never branch or be weighed."""
        if self.look.reward is None and self.look.value is None:
            raise ValueError("DTS weighs its paths by the reward of their ends; give Look a reward.")
        if not getattr(self.kernel, "stochastic", True):
            raise ValueError(
                f"DTS branches through the kernel's noise, and {type(self.kernel).__name__} has none; "
                "use a stochastic kernel such as DDIM(eta=1.0) or FlowSDE()."
            )
        refuse_missing_grad(self.look, self.guidance)
        refuse_no_noise(self.kernel, self.guidance)
        if self.guidance is not None and not self.guidance.exact:
            raise ValueError(f"DTS weighs its proposals, and {type(self.guidance).__name__} has no exact density.")
        _check_numbers(self)

    @property
    def num_rows(self) -> int:
        """The rows of the grid: the model calls of a full path."""
        return self.grid.num_steps

    def init(self, key: Key, x: Sample, first: Step) -> TreeState:
        """A tree of one initial noise; nothing is asked yet, and the look is at that noise."""
        dtype = algebra_dtype(x)
        capacity = 1 + self.num_rollouts * (self.num_levels + 1)
        tree = policy.empty(x, capacity, self.temperature, dtype)
        look = leaf_look(tree, tree.tip)
        return TreeState(look, jnp.zeros((), dtype), _zero(), jnp.int32(0), tree)

    def step(self, key: Key, state: TreeState, step: Step) -> tuple[TreeState, Info]:
        """num_rows model calls, and in the last row a draw from the tree (DTS only)."""

        def full(key: Key, state: TreeState) -> TreeState:
            return state._replace(status=state.status | Status.TREE_FULL)

        def draw(key: Key, state: TreeState) -> Lookahead:
            return jax.tree.map(lambda a: a[0], sample_tree(key, state, 1))

        like = (key, state, step)
        state = vary(state, like)
        after = jax.lax.cond(jnp.asarray(step.alpha_t) < self.num_rollouts, self._grow, full, key, state)
        if self.exploration is None:
            key_draw = jax.random.fold_in(key, Stream.LOOK)
            last = jnp.asarray(step.sigma_s) == 0
            after = after._replace(
                look=jax.lax.cond(last, draw, lambda _, state: state.look, key_draw, vary(after, like))
            )
        spent = Evals(*(a - b for a, b in zip(after.evals, state.evals, strict=True)))
        zero = jnp.zeros_like(after.log_weights)
        return after, Info(after.look.value, zero + 1.0, zero, after.status, spent)

    def _grow(self, key: Key, state: TreeState) -> TreeState:
        def body(i: Array, state: TreeState) -> TreeState:
            return self._segment(jax.random.fold_in(key, i), state)

        state = jax.lax.fori_loop(0, self.num_levels, body, vary(state, (key, state)))
        return state._replace(log_weights=policy.log_z(state.tree))

    def _segment(self, key: Key, state: TreeState) -> TreeState:
        """Select a node if the last path has ended, follow the kernel for a segment, back up if it ends at x_0."""
        key_select, key_noise, key_path = jax.random.split(key, 3)
        tree, last = state.tree, self.num_levels + 1
        rule = policy.Growth(self.tempering, self.widening, self.power, self.exploration)
        node, visits = policy.select(key_select, tree, tree.tip < 0, rule, last)
        dtype = tree.value.dtype
        noise = jax.random.normal(key_noise, state.look.x.shape, dtype) * jnp.asarray(self.grid.sigma_t[0], dtype)
        at_root = node == 0
        tree = policy.add(tree._replace(visits=visits), at_root, node, noise.astype(tree.x.dtype), jnp.zeros((), dtype))
        node = jnp.where(at_root, tree.size - 1, node)
        x, log_ratio, evals, status = self._follow(key_path, tree.x[node], tree.level[node] - 1)
        tree = policy.add(tree, jnp.bool_(True), node, x, log_ratio)
        end = tree.size - 1
        done = tree.level[end] == last
        value, asked = _reward_where(self.look, done, x)
        tree = policy.backup(tree._replace(tip=jnp.where(done, -1, end)), end, value, done)
        evals = state.evals + evals + Evals(reward=done.astype(jnp.int32))
        return state._replace(
            look=self._keep(state.look, tree, end, done), evals=evals, tree=tree, status=state.status | status | asked
        )

    def _keep(self, look: Lookahead, tree: Tree, leaf: Array, done: Array) -> Lookahead:
        """The look at the latest leaf, or at the best (DTS*)."""
        new = leaf_look(tree, leaf)
        better = done if self.exploration is None else done & (new.value >= look.value)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, look)

    def _follow(self, key: Key, x: Sample, segment: Array) -> tuple[Sample, Array, Evals, Array]:
        """The kernel over the rows of a segment: look and move at each, ending without a look."""
        ask = self.look if self.guidance is not None else replace(self.look, reward=None, value=None, grad=False)
        num = self.num_rows // self.num_levels

        def body(i: Array, carry: tuple[Sample, Array, Evals, Array]) -> tuple[Sample, Array, Evals, Array]:
            x, log_ratio, extra, status = carry
            row = jax.tree.map(lambda a: jnp.asarray(a)[segment * num + i], self.grid)
            key_row = jax.random.fold_in(key, i)
            seen, _, flags = ask(jax.random.fold_in(key_row, Stream.LOOK), x, row.t)
            moved, more = move(key_row, seen, row, self.kernel, self.guidance, ask)
            return moved.x, log_ratio + moved.log_ratio, extra + more, status | flags | moved.status

        start = vary((x, jnp.zeros((), algebra_dtype(x)), _zero(), jnp.int32(0)), (key, x))
        x, log_ratio, extra, status = jax.lax.fori_loop(0, num, body, start)
        return x, log_ratio, extra + Evals(*(num * n for n in ask.evals)), status


def _zero() -> Evals:
    return Evals(*(jnp.int32(0) for _ in Evals._fields))


@jax.custom_batching.sequential_vmap
def _reward_where(look: Look, here: Array, x: Sample) -> tuple[Array, Array]:
    """The true reward at x and its status where a path ended there; under vmap, asked of those samples alone."""

    def ask(x: Sample) -> tuple[Array, Array]:
        seen, _, status = look.final(x)
        return vary((seen.value, status), (here, x))

    def skip(x: Sample) -> tuple[Array, Array]:
        return vary((jnp.zeros((), algebra_dtype(x)), jnp.int32(0)), (here, x))

    return jax.lax.cond(here, ask, skip, x)


def _check_numbers(sampler: DTS) -> None:
    levels, grid = sampler.num_levels, sampler.grid
    if not isinstance(grid, Step) or len(jnp.shape(grid.t)) != 1:
        raise TypeError("DTS needs the rows of a grid; pass grid=nk.grid(schedule, times).")
    object.__setattr__(sampler, "grid", Step(*grid))  # of one kind, however it was made
    if levels < 1 or grid.num_steps % levels or grid.num_steps < 2 * levels:
        raise ValueError(
            f"the grid must have num_levels={levels} times the same number of rows, two or more, got {grid.num_steps} "
            "rows; the last row has no noise to branch on. Change num_levels or the grid."
        )
    if is_concrete(grid.sigma_s) and np.asarray(grid.sigma_s)[-1] != 0:
        raise ValueError("the grid must end at time 0, where the reward is asked; pass all its rows.")
    require_count(num_rollouts=sampler.num_rollouts)
    positive = {
        "temperature": sampler.temperature,
        "widening": sampler.widening,
        "tempering": sampler.tempering,
        "power": sampler.power,
    }
    for name, value in positive.items():
        if is_concrete(value) and not np.all((np.asarray(value) > 0) & np.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value}.")
    if is_concrete(sampler.exploration) and not np.all(np.asarray(sampler.exploration) >= 0):
        raise ValueError(f"exploration must not be negative, got {sampler.exploration}.")
