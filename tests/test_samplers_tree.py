"""Diffusion Tree Sampling and Search: the tree's own identities, exact costs, and laws against independent paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import Near, Shrink

import ntrk_jax as nk
from ntrk_jax.samplers import tree_policy

NUM_ROWS, NUM_LEVELS, NUM_ROLLOUTS, NUM_TREES = 12, 3, 24, 64
SCHEDULE = nk.schedules.VPCosine()
GRID = nk.grid(SCHEDULE, nk.grids.uniform(NUM_ROWS))


@functools.lru_cache
def problem():
    """Three uneven modes in the plane and a linear reward that tilts them."""
    skewed = nk.targets.skewed(2)
    return nk.models.Exact(skewed.mixture, SCHEDULE), skewed.reward


def build(method="dts", **options):
    model, reward = problem()
    parts = {"grid": GRID, "num_levels": NUM_LEVELS, "num_rollouts": NUM_ROLLOUTS} | options
    return getattr(nk.methods, method)(model, reward, (2,), **parts)


@functools.lru_cache
def batched():
    return jax.jit(jax.vmap(nk.run, (None, 0, 0, None)))


def grow(sampler, seed=0, num=NUM_TREES, num_rollouts=NUM_ROLLOUTS):
    """Trees [num] grown side by side."""
    keys = jax.random.split(jax.random.key(seed), NUM_TREES)[:num]
    x = jax.random.normal(jax.random.key(seed + 1), (NUM_TREES, 2))[:num]
    return batched()(sampler, keys, x, nk.samplers.rollouts(num_rollouts))[0]


@functools.lru_cache
def paths(num=16384):
    """Independent paths of the same kernel: x_0 [num, 2] and exp(r(x_0)) [num]."""
    model, reward = problem()
    sampler = nk.Single(nk.Look(model, reward), nk.kernels.DDIM())
    keys = jax.random.split(jax.random.key(11), num)
    x = jax.random.normal(jax.random.key(12), (num, 2))
    run = jax.vmap(lambda k, x: nk.run(sampler, k, x, GRID, record=lambda *_: ())[0].look)
    look = jax.jit(run)(keys, x)
    return np.asarray(look.x), np.exp(np.asarray(look.value, np.float64))


@pytest.fixture(scope="module")
def narrow():
    """Trees that reuse their nodes a lot, with the published rule of growth."""
    return grow(build(widening=1.0, power=0.5, tempering=1.0))


@pytest.fixture(scope="module")
def flattened():
    """Trees of the same width, with children chosen almost evenly."""
    return grow(build(widening=1.0, power=0.5, tempering=1e6))


@pytest.fixture(scope="module")
def cold():
    """The same at a temperature below 1, by a guided proposal."""
    return grow(build(widening=1.0, power=0.5, tempering=1.0, temperature=0.5, guidance=nk.guidance.DPS(0.5)))


@functools.lru_cache
def policy():
    """Leaf probabilities of a batch of trees, jitted."""
    return jax.jit(jax.vmap(lambda state: jnp.exp(nk.samplers.leaf_log_probs(state))))


def one(states, i=0):
    return jax.tree.map(lambda a: np.asarray(a[i]), states)


def recursion(tree):
    """Values and leaf probabilities by a plain recursion over the nodes of one tree."""
    values, probs = {}, np.zeros(tree.value.shape)
    kids = {n: [c for c in range(1, tree.size) if tree.parent[c] == n] for n in range(tree.size)}

    def weight(node):
        return np.exp(value(node) / tree.temperature + tree.log_ratio[node])

    def value(node):
        if node not in values:
            below = [weight(c) for c in kids[node]]
            values[node] = tree.temperature * np.log(np.mean(below)) if below else float(tree.value[node])
        return values[node]

    def share(node, mass):
        for kid in kids[node]:
            share(kid, mass * weight(kid) / sum(map(weight, kids[node])))
        probs[node] = 0.0 if kids[node] else mass

    value(0)
    share(0, 1.0)
    return values, probs


@pytest.mark.parametrize("trees", ["narrow", "cold"])
def test_values_are_soft_means_and_the_policy_their_softmax(trees, request):
    states = request.getfixturevalue(trees)
    between = int(np.argmax(np.asarray(states.tree.tip) < 0))
    tree = one(states, between).tree
    assert tree.tip == -1, "a tree without an unfinished path"
    values, probs = recursion(tree)
    np.testing.assert_allclose(tree.value[: tree.size], [values[i] for i in range(tree.size)], atol=1e-4)
    assert probs.sum() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(policy()(states)[between], probs, atol=2e-5)
    np.testing.assert_allclose(np.sum(policy()(states), axis=1), 1.0, atol=1e-5)
    flatter = (tree.value / tree.temperature + tree.log_ratio) / 4.0
    np.testing.assert_allclose(tree_policy.grow_scores(tree, 4.0, None), flatter, rtol=1e-5)


def test_search_goes_to_the_child_of_highest_upper_confidence_bound():
    """With N = 10 above children visited 8 times and twice, and the first of them better by a little less and more."""
    even = 2.0 * (np.sqrt(np.log(10) / 2) - np.sqrt(np.log(10) / 8))
    rule = tree_policy.Growth(tempering=1.0, widening=1e-3, power=1.0, exploration=2.0)
    tree = tree_policy.empty(jnp.zeros(2), 3, 1.0, jnp.float32)
    tree = tree_policy.add(tree, jnp.bool_(True), jnp.int32(0), jnp.zeros(2), jnp.float32(0.0))
    tree = tree._replace(visits=jnp.array([10, 8, 2]))
    for share, child in ((0.95, 2), (1.05, 1)):
        valued = tree._replace(value=jnp.array([0.0, share * even, 0.0], jnp.float32))
        node, visits = tree_policy.select(jax.random.key(0), valued, jnp.bool_(True), rule, 3)
        assert int(node) == child
        np.testing.assert_array_equal(visits - tree.visits, np.eye(3, dtype=int)[0] + np.eye(3, dtype=int)[child])


def test_the_tree_widens_with_its_visits_and_ends_in_clean_samples(narrow):
    _, reward = problem()
    for i in range(3):
        tree = one(narrow, i).tree
        used = np.arange(tree.value.size) < tree.size
        counted = np.bincount(tree.parent[used][1:], minlength=tree.value.size)
        np.testing.assert_array_equal(tree.num_children, counted)
        inner = used & (tree.level <= NUM_LEVELS) & (tree.visits > 0)
        assert np.all(tree.num_children[inner] <= np.sqrt(tree.visits[inner]) + 1)
        assert tree.num_children[0] < int(narrow.evals.reward[i]), "some paths must start below the root"
        leaves = used & (tree.level == NUM_LEVELS + 1)
        np.testing.assert_allclose(jax.vmap(reward)(tree.x[leaves]), tree.value[leaves], rtol=1e-5)


def test_rollouts_cost_their_rows_and_count_every_reward(narrow):
    assert np.all(narrow.evals.model == NUM_ROLLOUTS * NUM_ROWS)
    leaves = np.sum((narrow.tree.level == NUM_LEVELS + 1), axis=1)
    np.testing.assert_array_equal(narrow.evals.reward, leaves)
    assert np.all(leaves >= NUM_ROLLOUTS)
    assert len(set(leaves.tolist())) > 1, "trees of a batch must differ for this test to mean something"


def test_a_full_tree_says_so_and_spends_nothing():
    calls, rewards = nk.models.Counter(), nk.models.Counter()
    model, reward = nk.models.Counted(Shrink(), calls), nk.models.Counted(Near(), rewards)
    sampler = nk.methods.dts(
        model, reward, (2,), grid=GRID, num_levels=3, num_rollouts=4, widening=1.0, power=0.3, tempering=1e6
    )
    state = grow(sampler, num=3, num_rollouts=6)
    assert calls.forward == int(np.sum(state.evals.model)) == 4 * NUM_ROWS * 3
    assert rewards.forward == int(np.sum(state.evals.reward)) > 12
    assert np.all(state.status == nk.Status.TREE_FULL)
    assert np.all(state.tree.size <= state.tree.value.shape[1])


def deviation(estimates, truth, truth_se):
    """How many standard errors the mean of the estimates lies from the truth."""
    return (np.mean(estimates) - truth) / np.hypot(np.std(estimates) / np.sqrt(len(estimates)), truth_se)


def test_log_z_is_unbiased_whatever_the_growth_and_the_root_is_not(narrow, flattened):
    _, weights = paths()
    truth, truth_se = weights.mean(), weights.std() / np.sqrt(len(weights))
    for states in (narrow, flattened):
        assert abs(deviation(np.exp(np.asarray(states.log_weights, np.float64)), truth, truth_se)) < 4
    root = np.exp(np.asarray(narrow.tree.value[:, 0], np.float64))
    assert deviation(root, truth, truth_se) < -4, "the published growth visits the lucky again: its root is low"
    assert abs(deviation(np.exp(np.asarray(flattened.tree.value[:, 0], np.float64)), truth, truth_se)) < 4


def test_draws_follow_the_tilted_law_of_the_kernel(flattened, narrow):
    x, weights = paths()
    exact = (weights[:, None] * x).sum(0) / weights.sum()
    spread = np.sqrt((weights[:, None] ** 2 * (x - exact) ** 2).sum(0)) / weights.sum()

    def pooled(states):
        """The mean of x_0 over all trees, each weighed by its root, and its standard error."""
        probs = np.asarray(policy()(states), np.float64)
        means = np.einsum("in,ind->id", probs, np.asarray(states.tree.x, np.float64))
        roots = np.exp(np.asarray(states.tree.value[:, 0], np.float64))[:, None]
        mean = (roots * means).sum(0) / roots.sum()
        return mean, np.sqrt((roots**2 * (means - mean) ** 2).sum(0)) / roots.sum()

    mean, error = pooled(flattened)
    assert np.all(np.abs(mean - exact) < 4 * np.hypot(error, spread))
    untilted = x.mean(0)
    assert np.any(np.abs(untilted - exact) > 4 * np.hypot(error, spread)), "the tilt must be visible"


def test_draws_from_a_tree_follow_its_policy_and_cost_nothing(narrow):
    state = one(narrow)
    probs = np.asarray(policy()(narrow)[0], np.float64)
    num = 20000
    look = nk.samplers.sample_tree(jax.random.key(3), state, num)
    where = {tuple(x): i for i, x in enumerate(state.tree.x.tolist()) if probs[i] > 0}
    counts = np.bincount([where[tuple(x)] for x in np.asarray(look.x).tolist()], minlength=probs.size)
    likely = probs > 1e-3
    error = np.sqrt(num * probs * (1 - probs))[likely]
    assert np.all(np.abs(counts - num * probs)[likely] < 5 * error)
    assert np.any(np.abs(counts - num / len(where))[likely] > 5 * error), "uniform draws must fail this"
    np.testing.assert_array_equal(look.value, state.tree.value[[where[tuple(x)] for x in np.asarray(look.x).tolist()]])
    assert any(np.array_equal(state.look.x, x) for x in state.tree.x[probs > 0])


def test_pick_draws_in_proportion_and_never_elsewhere():
    logs = jnp.array([3.0, -1.0, -jnp.inf, 0.5, 0.0, 9.0, -80.0])
    among = jnp.array([False, True, True, True, True, False, True])
    keys = jax.random.split(jax.random.key(0), 20000)
    drawn = np.asarray(jax.jit(jax.vmap(tree_policy.pick, (0, None, None)))(keys, logs, among))
    expected = np.where(among, np.exp(np.asarray(logs)), 0.0) / np.exp(np.asarray(logs)[among]).sum()
    counts = np.bincount(drawn, minlength=7)
    assert np.all(np.abs(counts - 20000 * expected) <= 4 * np.sqrt(20000 * expected * (1 - expected)))
    dead = tree_policy.pick(jax.random.key(1), jnp.full(7, -jnp.inf), among)
    assert bool(among[dead])


def test_without_widening_it_is_weighted_paths_and_best_of_n():
    flat = {"widening": 1e9, "power": 0.8}
    tree = one(grow(build(**flat))).tree
    leaves = tree.level == NUM_LEVELS + 1
    assert tree.num_children[0] == np.sum(leaves) == NUM_ROLLOUTS
    assert tree.value[0] == pytest.approx(np.log(np.mean(np.exp(tree.value[leaves]))), abs=1e-4)
    search = one(grow(build("dts_star", **flat)))
    assert search.look.value == np.max(search.tree.value[search.tree.level == NUM_LEVELS + 1])


def test_search_beats_as_many_independent_paths():
    best = np.asarray(grow(build("dts_star"), seed=4).look.value)
    rewards = np.log(paths()[1])
    best_of_n = rewards[: len(rewards) // NUM_ROLLOUTS * NUM_ROLLOUTS].reshape(-1, NUM_ROLLOUTS).max(1)
    assert deviation(best, best_of_n.mean(), best_of_n.std() / np.sqrt(len(best_of_n))) > 4


def test_a_guided_proposal_keeps_log_z():
    guided = build(guidance=nk.guidance.DPS(0.5), widening=1.0, power=0.5)
    state = grow(guided)
    _, weights = paths()
    z = np.exp(np.asarray(state.log_weights, np.float64))
    assert abs(deviation(z, weights.mean(), weights.std() / np.sqrt(len(weights)))) < 4
    assert np.all(state.evals.model_vjp == NUM_ROLLOUTS * NUM_ROWS)
    moved = np.asarray(state.tree.value[:, 1:])
    unguided = np.log(weights).mean()
    assert np.mean(moved[np.isfinite(moved)]) > unguided + 0.3, "the proposal must be guided"


def test_rewards_from_the_host_suffice_and_dead_leaves_are_never_drawn():
    model, _ = problem()
    outside = nk.rewards.External(lambda x: x[0] if x[0] > 0 else np.nan)
    sampler = nk.methods.dts(model, outside, (2,), grid=GRID, num_levels=3, num_rollouts=NUM_ROLLOUTS)
    state = one(grow(sampler, num=2))
    assert state.status == nk.Status.NONFINITE_REWARD
    drawn = nk.samplers.sample_tree(jax.random.key(0), state, 512)
    assert np.all(np.asarray(drawn.x)[:, 0] > 0)
    np.testing.assert_array_equal(drawn.value, drawn.x[:, 0])
    assert np.isfinite(state.log_weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": nk.kernels.DDIM(eta=0.0)}, "DDIM has none"),
        ({"num_levels": 5}, "num_levels=5"),
        ({"num_levels": 12}, "no noise to branch on"),
        ({"grid": GRID.rows(0, 6)}, "must end at time 0"),
        ({"grid": None, "num_levels": 2}, "rows of a grid"),
        ({"num_rollouts": 0}, "num_rollouts"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"power": -0.5}, "power must be positive"),
        ({"exploration": -1.0}, "exploration"),
        ({"guidance": nk.guidance.NTRK(nk.whitening.TypicalSet((2,)), 0.1, "mixed")}, "no exact density"),
    ],
)
def test_what_cannot_branch_or_be_weighed_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(**options)


def test_a_tree_needs_a_reward_and_rows():
    with pytest.raises(ValueError, match="give Look a reward"):
        nk.samplers.DTS(nk.Look(Shrink()), nk.kernels.DDIM(), GRID, num_levels=3)
    with pytest.raises(ValueError, match="at least one"):
        nk.samplers.rollouts(0)
