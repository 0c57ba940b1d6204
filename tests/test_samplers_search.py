"""Search: SVDD, CoDe, beams, pruning. Identities, closed forms, what is chosen and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import EXACT, Near, Shrink, schedule, steps

import ntrk_jax as nk
from ntrk_jax.samplers import SVDD, Beam, Blocks, Pruned, Widening

SHAPE = (3,)
NUM = 6
KERNEL = nk.kernels.DDIM()
STILL = nk.kernels.FlowODE()


RUN = jax.jit(jax.vmap(nk.run, in_axes=(None, 0, 0, None)), compiler_options=EXACT)
ONE = jax.jit(nk.run)


def look(reward=None, **kwargs):
    return nk.Look(Shrink(), Near() if reward is None else reward, **kwargs)


def single(**kwargs):
    return nk.Single(look(**kwargs), KERNEL)


def keys(num=NUM):
    return jax.random.split(jax.random.key(1), num)


def noise(*lead):
    return jax.random.normal(jax.random.key(0), (*lead, *SHAPE))


def test_svdd_with_one_candidate_is_the_single_sampler():
    x = noise(NUM)
    rule = nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.1)
    one = RUN(SVDD(look(grad=True), KERNEL, rule, num_particles=1), keys(), x, steps())
    other = RUN(nk.Single(look(grad=True), KERNEL, rule), keys(), x, steps())
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_svdd_at_a_temperature_is_that_of_the_reward_divided_by_it():
    x, reward = noise(NUM), Near()
    warm = RUN(SVDD(look(), KERNEL, temperature=4.0), keys(), x, steps())[0]
    scaled = RUN(SVDD(look(lambda x0: 0.25 * reward(x0)), KERNEL), keys(), x, steps())[0]
    np.testing.assert_allclose(warm.look.x, scaled.look.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(warm.log_weights, scaled.log_weights, rtol=1e-5, atol=1e-6)
    assert np.min(np.abs(warm.log_weights)) > 1e-3, "what was chosen carries a weight"
    large = SVDD(look(lambda x0: 1e5 * reward(x0)), KERNEL, temperature=1e-36)  # the quotient is no number
    frozen = RUN(large, keys(), x, steps())[0]
    assert np.all(frozen.status == nk.Status.DEAD_WEIGHTS)
    assert np.all(np.isfinite(frozen.log_weights))


def test_code_with_blocks_of_one_row_is_svdd_argmax():
    x = noise(NUM)
    code = RUN(Beam(single(), Blocks(1)), keys(), jnp.repeat(x[:, None], 4, axis=1), steps())[0]
    best = RUN(SVDD(look(), KERNEL, choice="argmax"), keys(), x, steps())[0]
    np.testing.assert_array_equal(code.look.x, np.repeat(best.look.x[:, None], 4, axis=1))


def test_one_block_and_pruning_nothing_are_best_of_n_and_chunks_change_nothing():
    x = noise(NUM, 4)
    best = RUN(nk.BestOfN(single(), 4), keys(), x, steps())[0]
    for plan, chunk in ((Blocks(steps().num_steps), None), (Pruned((0.5,), (4,)), 2)):
        same = RUN(Beam(single(), plan, 4, chunk), keys(), x, steps())[0]
        for a, b in ((same.look.x, best.look.x), (same.log_weights, best.log_weights), (same.evals, best.evals)):
            np.testing.assert_array_equal(a, b)


def test_a_block_ends_with_copies_of_the_best():
    record = jax.jit(lambda s, x: nk.run(s, jax.random.key(1), x, steps(), lambda state, _: state.look)[1])
    for keep in (1, 2):
        seen = record(Beam(single(), Blocks(2, jnp.int32(keep)), 4), noise(4))  # keep is data: one program
        assert np.unique(seen.value[0]).size == 4
        values = np.asarray(seen.value[1])
        assert np.unique(values[:keep]).size == keep
        assert np.min(values[:keep]) >= np.max(values[keep:])  # living paths first, and the best of all
    assert record._cache_size() == 1


def test_children_of_a_beam_come_from_those_that_live():
    """With a kernel that adds a hundredth of noise, children lie next to their parents."""

    @nk.pytree
    class Near1:
        def __call__(self, look, step):
            return nk.Gaussian(look.x, jnp.where(step.sigma_s > 0, 0.01, 0.0))

    x = jnp.array([[0.0] * 3, [10.0] * 3, [20.0] * 3, [30.0] * 3])
    sampler = Beam(nk.Single(nk.Look(lambda x, t: x, jnp.sum), Near1()), Blocks(1, 2), 4)
    state, _ = ONE(sampler, jax.random.key(0), x, steps())
    near = np.round(np.asarray(state.look.x[:, 0]) / 10.0)
    assert sorted(near) == [3.0, 3.0, 3.0, 3.0]  # 30, 20 -> two children of each -> two of 30 -> ...
    assert np.unique(state.look.value).size >= 2


def test_widths_follow_the_plans_and_what_is_pruned_costs_nothing():
    grid = nk.grid(schedule(), nk.grids.uniform(20))
    counted = jax.jit(lambda s, k, x: nk.run(s, k, x, grid)[1])

    def trace(plan):
        out = counted(Beam(single(), plan, 10, 1), jax.random.key(1), noise(10))
        return list(np.asarray(out.ess, int)), list(np.asarray(out.evals.model, int))

    widths, spent = trace(Pruned((0.9, 0.7, 0.45), (4, 2, 1)))  # 20 steps: after rows 2, 6 and 11
    assert widths == [10] + [4] * 4 + [2] * 5 + [1] * 10
    assert spent == [10] * 2 + [4] * 4 + [2] * 5 + [1] * 8 + [0]
    widths, spent = trace(Widening(0.5, 0.4, 3))  # searches when passing 1/2, 1/4, 1/8, 1/16
    assert widths == [10] * 9 + [4] * 5 + [2] * 3 + [1] * 3
    assert spent == [10] * 10 + [4] * 4 + [10] + [2] * 2 + [6] + [3] + [0]
    widths, _ = trace(Widening(0.5, 0.4, 3, keep=3))  # the last three are never given up
    assert widths == [10] * 9 + [4] * 5 + [3] * 5 + [1]


def test_pruning_keeps_the_best_by_a_noise_aware_reward():
    """A learned value that only sees the first coordinate of x decides, the reward does not."""
    value = nk.values.Learned(lambda sign, x, t: sign * x[0], jnp.float32(1.0))
    record = jax.jit(lambda s, x: nk.run(s, jax.random.key(0), x, steps(), lambda state, _: state.look.x[:, 0])[1])

    def pruned(sign, survivors):
        parts = look(value=nk.replace(value, params=jnp.float32(sign)))
        return record(Beam(nk.Single(parts, STILL), Pruned((0.7,), (jnp.int32(survivors),)), 8, 1), noise(8))[1]

    everyone = np.sort(pruned(1.0, 8))
    np.testing.assert_array_equal(np.sort(pruned(1.0, 2)[:2]), everyone[-2:])
    np.testing.assert_array_equal(np.sort(pruned(-1.0, 2)[:2]), everyone[:2])


def gaussian_log_z(centre, grid):
    """log E[exp(-(x - centre)^2)] of the discretised base sampler on a Gaussian, by its two moments."""
    mean, var = 0.0, 1.0
    for i in range(grid.num_steps):
        step = jax.tree.map(lambda a, i=i: a[i], grid)
        at = [KERNEL(nk.Lookahead(x, Shrink()(x, step.t)), step) for x in (jnp.zeros(1), jnp.ones(1))]
        start, slope, std = float(at[0].mean[0]), float(at[1].mean[0] - at[0].mean[0]), float(at[0].std)
        mean, var = start + slope * mean, slope**2 * var + std**2
    return -0.5 * np.log1p(2 * var) - (mean - centre) ** 2 / (1 + 2 * var)


def test_weights_of_svdd_paths_give_the_normaliser_for_any_number_of_candidates():
    reward = Near(jnp.float32(1.8))
    grid = nk.grid(schedule(), nk.grids.uniform(6))
    num = 8000
    x = jax.random.normal(jax.random.key(0), (num, 1))
    sampler = SVDD(look(reward, grad=True), KERNEL, nk.guidance.DPS(0.5), num_particles=3)
    state, _ = RUN(sampler, keys(num), x, grid)
    exact = gaussian_log_z(1.8, grid)
    weights = np.exp(np.asarray(state.log_weights + state.look.value) - exact)
    assert abs(weights.mean() - 1.0) < 4 * weights.std() / np.sqrt(num)
    assert weights.std() / np.sqrt(num) < 0.01
    unweighted = np.exp(np.asarray(state.look.value) - exact)
    assert unweighted.mean() > 1.2  # negative control: the choice tilts


def test_candidates_of_one_parent_share_its_rule_and_are_counted_so():
    calls, rewards = nk.models.Counter(), nk.models.Counter()
    counted = nk.Look(nk.models.Counted(Shrink(), calls), nk.models.Counted(Near(), rewards))
    state, _ = ONE(SVDD(counted, KERNEL, nk.guidance.MPGD(0.1), num_particles=3), jax.random.key(0), noise(), steps())
    rows = steps().num_steps
    looks = 1 + 3 * (rows - 1)
    assert [int(n) for n in state.evals] == [looks, 0, looks + 1 + rows, rows]
    assert [int(n) for n in state.evals] == [calls.forward, calls.vjp, rewards.forward, rewards.vjp]


def test_svdd_tends_to_the_tilted_law_and_argmax_does_not():
    mixture = nk.targets.GaussianMixture(
        jnp.array([0.7, 0.3]), jnp.array([[-1.5], [1.5]]), jnp.array([[[0.3]], [[0.1]]])
    )
    reward = nk.rewards.Linear(jnp.array([0.8], jnp.float32))
    exact = nk.targets.tilt(mixture, reward).mixture
    value = nk.values.Exact(mixture, schedule(), reward)
    num = 800
    x, grid = jax.random.normal(jax.random.key(0), (num, 1)), nk.grid(schedule(), nk.grids.uniform(25))

    def gap(choice, candidates):
        """W1 between the sorted draws and as many exact quantiles."""
        parts = look(reward, value=value)
        parts = nk.replace(parts, model=nk.models.Exact(mixture, schedule()))
        state, _ = RUN(SVDD(parts, KERNEL, choice=choice, num_particles=candidates), keys(num), x, grid)
        quantiles = np.sort(np.asarray(exact.sample(jax.random.key(9), 50 * num))[:, 0])[25::50]
        return np.mean(np.abs(np.sort(np.asarray(state.look.x)[:, 0]) - quantiles))

    one, many = gap("categorical", 1), gap("categorical", 24)
    assert many < 0.2 * one
    assert many < 0.3
    assert gap("argmax", 24) > 5 * many


@nk.pytree
class Holes:
    """A reward that is NaN, or infinite, in a half space."""

    hole: float

    def __call__(self, x0):
        return jnp.where(x0[0] > 0.0, self.hole, x0[0])


@pytest.mark.parametrize("name", ["svdd", "svdd_argmax", "ttsnap"])
def test_candidates_without_a_finite_reward_are_not_chosen_but_flagged(name):
    x = noise(8) if nk.methods.CATALOGUE[name].population else noise()
    options = {"kernel": STILL} if name == "ttsnap" else {}  # a path alone must not stray
    for hole in (np.nan, np.inf):
        reward = Holes(jnp.float32(hole))
        sampler = nk.methods.CATALOGUE[name].build(shrink, reward, SHAPE, num_particles=8, **options)
        state, _ = ONE(sampler, jax.random.key(2), x, steps())
        chosen = nk.draw(jax.random.key(0), state) if state.log_weights.ndim else state
        assert np.isfinite(chosen.look.value)
        assert chosen.look.x[0] <= 0.0
        assert int(state.status) == nk.Status.NONFINITE_REWARD


def shrink(x, t):
    return 0.9 * x


def hopeless(x0):
    return jnp.sum(x0) * jnp.nan


def test_where_every_candidate_is_bad_the_first_goes_on():
    bad = nk.Look(Shrink(), hopeless)
    x = noise()
    plain, _ = ONE(nk.Single(bad, KERNEL), jax.random.key(0), x, steps().rows(0, 2))
    state, trace = ONE(SVDD(bad, KERNEL), jax.random.key(0), x, steps().rows(0, 2))
    assert np.all(np.isnan(trace.value))
    np.testing.assert_allclose(state.look.x, plain.look.x, rtol=1e-5)
    assert float(state.log_weights) == 0.0


def test_rewards_that_live_on_the_host_are_enough():
    reward = nk.rewards.External(lambda x: float(x.sum()))
    for name in ("svdd", "dsearch"):
        x = noise(4) if nk.methods.CATALOGUE[name].population else noise()
        state, _ = ONE(nk.methods.CATALOGUE[name].build(Shrink(), reward, SHAPE), jax.random.key(0), x, steps())
        assert np.all(np.isfinite(state.look.value))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nk.methods.svdd(Shrink(), Near(), kernel=STILL), "search needs a stochastic kernel, and FlowODE"),
        (lambda: nk.methods.svdd(Shrink(), Near(), kernel=nk.kernels.DDIM(0.0)), "DDIM draws no noise"),
        (lambda: nk.methods.code(Shrink(), Near(), kernel=STILL), "search needs a stochastic kernel"),
        (lambda: nk.methods.dsearch(Shrink(), Near(), kernel=STILL), "search needs a stochastic kernel"),
        (lambda: SVDD(nk.Look(Shrink()), KERNEL), "give the Look a reward"),
        (lambda: SVDD(look(), KERNEL, nk.guidance.DPS()), "reads the reward's gradient"),
        (lambda: SVDD(look(), KERNEL, choice="best"), "categorical, argmax"),
        (lambda: SVDD(look(), KERNEL, temperature=0.0), "must be positive, got 0.0"),
        (lambda: SVDD(look(), KERNEL, num_particles=0), "at least 1"),
        (lambda: Beam(single(), Blocks(), 4, 3), "chunk must divide num_particles=4"),
        (lambda: Beam(single(), Blocks(), 0), "num_particles must be at least 1 .*got 0"),
        (lambda: nk.methods.code(Shrink(), Near(), keep=2), "CoDe keeps one path; use beam"),
        (lambda: nk.methods.beam(Shrink(), Near(), num_particles=4, keep=6), "below num_particles=4, got 6"),
        (lambda: nk.methods.ttsnap(Shrink(), Near(), times=(0.45, 0.7, 0.9)), "times must fall"),
        (lambda: nk.methods.ttsnap(Shrink(), Near(), fractions=(1.4, 0.5, 0.5)), r"fractions must lie in \(0, 1\]"),
        (lambda: Blocks(0), "size must be at least 1"),
        (lambda: Widening(share=0.0), "share must lie in"),
        (lambda: Pruned((0.5, 0.2), (3,)), "one number of survivors for each time"),
        (lambda: nk.run(Beam(single(), Blocks(), 4), jax.random.key(0), jnp.ones((2, 3)), steps()), "4 initial noises"),
        (
            lambda: nk.methods.svdd(Shrink(), nk.rewards.External(np.sum), guidance=nk.guidance.DPS()),
            "gives values only",
        ),
    ],
)
def test_refusals_say_what_to_do(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_siblings_are_keys_of_their_own_and_the_first_is_the_key():
    key = jax.random.key(7)
    many = nk.samplers.population.siblings(key, 64)
    assert np.array_equal(jax.random.key_data(many)[0], jax.random.key_data(key))
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(many))}) == 64
    draws = jax.vmap(lambda k: jax.random.normal(k, (2000,)))(many)
    assert np.max(np.abs(np.corrcoef(draws) - np.eye(64))) < 5.5 / np.sqrt(2000)


@pytest.mark.parametrize("name", ["svdd", "svdd_argmax", "code", "dsearch", "ttsnap", "rbf"])
def test_double_precision_runs_through(name):
    """Traced only: dtypes meet, and what comes out is float64 with int32 counts."""
    with jax.enable_x64(True):
        entry = nk.methods.CATALOGUE[name]
        grid = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
        rows = nk.samplers.rollouts(4) if entry.tree else grid
        sampler = entry.build(lambda x, t: 0.5 * x, jnp.sum, SHAPE, **({"grid": grid} if entry.tree else {}))
        x = jnp.ones((4, *SHAPE) if entry.population else SHAPE)
        state, _ = jax.eval_shape(lambda key, x: nk.run(sampler, key, x, rows), jax.random.key(0), x)
        assert state.look.x.dtype == state.look.value.dtype == state.log_weights.dtype == jnp.float64
        assert state.evals.model.dtype == jnp.int32
