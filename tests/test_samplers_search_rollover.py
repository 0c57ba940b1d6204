"""Rollover budget forcing: where the calls go, what is accepted, and a flow model on another schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import Near, Shrink

import ntrk_jax as nk
from ntrk_jax.samplers import RBF, rollouts
from ntrk_jax.training.paths import Rematerialised

SHAPE = (3,)
LEVELS = 5
PATH = nk.schedules.VPLinear()
GRID = nk.grid(PATH, nk.grids.circle(LEVELS))
KERNEL = nk.kernels.FlowSDE(diffusion=nk.samplers.Rising())


def state_of(state, _):
    return state


RUN = jax.jit(jax.vmap(lambda s, k, x, rows: nk.run(s, k, x, rows, state_of), in_axes=(None, 0, 0, None)))


def keys(num):
    return jax.random.split(jax.random.key(1), num)


def noise(num):
    return jax.random.normal(jax.random.key(0), (num, *SHAPE))


def last_of_rollouts(look, num, batch=4, **options):
    """The final states, and the level after each rollout, of a batch."""
    sampler = RBF(look, KERNEL, GRID, **options)
    state, trace = RUN(sampler, keys(batch), noise(batch), rollouts(num))
    return state, np.asarray(trace.level), np.asarray(trace.record)


def test_times_of_the_circle():
    times = np.asarray(nk.grids.circle(10), np.float64)
    np.testing.assert_allclose(times**2 + (np.arange(11) / 10) ** 2, 1.0, atol=1e-6)
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert np.all(np.diff(times) < 0)


def test_diffusion_rises_with_the_square_of_time():
    assert float(nk.samplers.Rising(3.0)(0.5)) == 0.75


def test_every_sample_spends_exactly_the_budget_and_more_budget_gives_more_reward():
    means = []
    for num in (1, 6):
        state, level, record = last_of_rollouts(nk.Look(Shrink(), Near()), num, 64)
        np.testing.assert_array_equal(state.evals.model, np.full(64, num * LEVELS))
        np.testing.assert_array_equal(state.evals.reward, state.evals.model)
        assert np.all(level[:, -1] == LEVELS - 1)
        assert np.all(np.diff(record, axis=1) >= 0)  # the best value along the path never falls
        np.testing.assert_allclose(state.look.value, jax.vmap(Near())(state.look.x), rtol=1e-5)
        means.append(np.mean(state.look.value))
    assert means[1] > means[0] + 0.5


@nk.pytree
class Staged:
    """A clean estimate that depends on the level alone."""

    values: jax.Array

    def __call__(self, x, t):
        return jnp.full_like(x, self.values[jnp.argmin(jnp.abs(GRID.t - t))])


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        # 40 calls, 8 for the initial noise. An improvement at every level: one call each, and 29 for the last.
        ([0.0, 1.0, 2.0, 3.0, 4.0], [0, 3, 4, 4, 4, 4, 4, 4]),
        # None at all: 8 calls for each of the 4 levels, whose ends are calls 16, 24, 32 and 40.
        ([0.0, 0.0, 0.0, 0.0, 0.0], [0, 1, 1, 2, 3, 3, 4, 4]),
        # One at level 1: what it leaves rolls over to level 2, which has 15 calls, up to the 24th.
        ([0.0, 1.0, 1.0, 1.0, 1.0], [0, 2, 2, 2, 3, 3, 4, 4]),
    ],
)
def test_calls_go_where_nothing_improves(values, levels):
    look = nk.Look(Staged(jnp.array(values)), jnp.sum)
    _, level, _ = last_of_rollouts(look, 8, initial=0.2)
    np.testing.assert_array_equal(level, [levels] * 4)


def test_samples_move_on_at_their_own_calls_and_only_improve_within_a_level():
    sampler = RBF(nk.Look(Shrink(), Near()), KERNEL, GRID)
    _, trace = RUN(sampler, keys(64), noise(64), rollouts(6))
    assert np.unique(np.asarray(trace.level), axis=0).shape[0] > 1
    value = np.asarray(trace.look.value)
    same = (np.diff(np.asarray(trace.level), axis=1) == 0) & ~np.asarray(trace.empty)[:, :-1]
    assert np.all(np.diff(value, axis=1)[same] >= 0)
    assert np.sum(same) > 64


def test_one_rollout_is_the_base_sampler():
    """With one call a level nothing is chosen: the law is the kernel's own, and a mean and a variance tell."""
    num = 4000
    sampler = RBF(nk.Look(Gauss(), Near()), nk.kernels.DDIM(), nk.grid(PATH, nk.grids.uniform(LEVELS)))
    state, _ = RUN(sampler, keys(num), noise(num), rollouts(1))
    plain = nk.Single(nk.Look(Gauss()), nk.kernels.DDIM())
    other, _ = jax.jit(jax.vmap(nk.run, (None, 0, 0, None)))(plain, keys(num), noise(num), sampler.grid)
    a, b = np.asarray(state.look.x), np.asarray(other.look.x)
    error = np.sqrt(2.0 / num) * b.std(0)
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4 * error)
    assert np.all(np.abs(a.std(0) - b.std(0)) < 4 * error)


@nk.pytree
class Gauss:
    """The exact denoiser of N(0.2, 0.25 I) on a schedule."""

    schedule: nk.schedules.Schedule = PATH

    def __call__(self, x, t, cond=None):
        alpha, sigma = self.schedule(t)
        return 0.2 + alpha * 0.25 / (alpha * alpha * 0.25 + sigma * sigma) * (x - 0.2 * alpha)


def test_a_flow_model_is_searched_on_the_variance_preserving_path():
    flow = nk.schedules.RectifiedFlow()
    there = nk.methods.rbf(Gauss(flow), Near(), SHAPE, grid=GRID, trained_on=flow)
    here = nk.methods.rbf(Gauss(PATH), Near(), SHAPE, grid=GRID)
    a, b = (RUN(s, keys(6), noise(6), rollouts(4))[0] for s in (there, here))
    np.testing.assert_allclose(a.look.x, b.look.x, atol=2e-4)


def test_a_learned_value_guides_and_the_true_reward_is_reported():
    value = nk.values.Learned(lambda w, x, t: w * jnp.sum(x), jnp.float32(1.0))
    state, _, record = last_of_rollouts(nk.Look(Shrink(), Near(), value=value), 3)
    np.testing.assert_allclose(state.look.value, jax.vmap(Near())(state.look.x), rtol=1e-5)
    assert np.all(record[:, -1] > 0.0)  # of the learned value, where the reward is negative
    np.testing.assert_array_equal(state.evals.reward, np.full(4, 3 * LEVELS))


def test_candidates_without_a_finite_reward_are_passed_over():
    shrink = Shrink()  # as a function: its own schedule is not the grid's
    look = nk.Look(lambda x, t: shrink(x, t), lambda x0: jnp.where(x0[0] > 0.2, jnp.nan, x0[0]))
    state, _, _ = last_of_rollouts(look, 6)
    assert np.all(np.isfinite(state.look.value))
    assert np.all(np.asarray(state.status) == nk.Status.NONFINITE_REWARD)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda look: RBF(look, nk.kernels.FlowODE(), GRID), "search needs a stochastic kernel"),
        (lambda look: RBF(nk.Look(Shrink()), KERNEL, GRID), "give the Look a reward"),
        (lambda look: RBF(look, KERNEL, GRID, nk.guidance.DPS()), "reads the reward's gradient"),
        (lambda look: RBF(look, KERNEL, GRID, initial=1.0), r"initial must lie in \[0, 1\)"),
    ],
)
def test_refusals_say_what_to_do(build, message):
    with pytest.raises(ValueError, match=message):
        build(nk.Look(Shrink(), Near()))


def test_rollouts_and_grids_are_not_taken_for_each_other():
    grid = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
    path = nk.methods.base(Shrink(), Near(), (3,))
    for sampler in (
        nk.methods.rbf(Shrink(), Near(), (3,), grid=grid),
        nk.methods.dts(Shrink(), Near(), (3,), grid=grid),
    ):
        with pytest.raises(ValueError, match="is run over nk.samplers.rollouts"):
            nk.run(sampler, jax.random.key(0), jnp.ones(3), grid)
        with pytest.raises(ValueError, match="BestOfN runs samplers of one path"):
            nk.BestOfN(sampler)
    tree = nk.methods.dts(Shrink(), Near(), (3,), grid=grid, num_rollouts=6)
    for sampler in (tree, Rematerialised(tree)):  # from the start or from a later row
        for steps in (rollouts(6), rollouts(6).rows(2, 6)):
            jax.eval_shape(lambda x, s=sampler, steps=steps: nk.run(s, jax.random.key(0), x, steps), jnp.ones(3))
    with pytest.raises(ValueError, match="got the rows of rollouts"):
        nk.run(path, jax.random.key(0), jnp.ones(3), rollouts(4))
    with pytest.raises(ValueError, match="BestOfN runs samplers of one path, got SMC"):
        nk.BestOfN(nk.methods.fk(Shrink(), Near(), (3,)))
    with pytest.raises(ValueError, match="at least one row"):
        nk.run(path, jax.random.key(0), jnp.ones(3), grid.rows(2, 2))


def test_rollouts_and_grids_taken_for_each_other_are_flagged_where_they_cannot_be_read():
    def model(x, t):  # without a schedule, which would tell
        return 0.5 * x

    rows, counted = nk.grid(PATH, nk.grids.uniform(5)), rollouts(5)
    tree = nk.methods.dts(model, Near(), SHAPE, grid=nk.grid(PATH, nk.grids.uniform(4)), num_rollouts=5)
    run = jax.jit(nk.run)
    for sampler, right, wrong in ((tree, counted, rows), (nk.Single(nk.Look(model), KERNEL), rows, counted)):
        flags = [run(sampler, jax.random.key(0), jnp.ones(3), steps)[0].status for steps in (right, wrong)]
        assert [int(flag) & nk.Status.WRONG_GRID for flag in flags] == [0, nk.Status.WRONG_GRID]
