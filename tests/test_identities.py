"""Identities between methods, kernels and rules: two ways to one answer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import EXACT, SHAPES, Near, Shrink, problem, schedule, steps

import ntrk_jax as nk
from ntrk_jax.schedules import rates

SHAPE = SHAPES["vector"]
RUN = jax.jit(jax.vmap(nk.run, in_axes=(None, 0, 0, None)))


def look(**kwargs):
    return nk.Look(Shrink(), Near(), **kwargs)


def sample(sampler, seed=0, num=16, grid=None):
    x = jax.random.normal(jax.random.key(seed), (num, *SHAPE))
    keys = jax.random.split(jax.random.key(seed + 1), num)
    return RUN(sampler, keys, x, steps() if grid is None else grid)[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nk.kernels.DDIM(1.0), nk.kernels.DDPM()),
        (nk.kernels.DDIM(0.0), nk.kernels.FlowODE()),
        (nk.kernels.Correlated(1.0), nk.kernels.FlowODE()),
        (nk.kernels.FlowSDE(0.0), nk.kernels.FlowODE()),
        (nk.kernels.EDM(0.0), nk.kernels.FlowODE()),
        (nk.kernels.EDM(0.25), nk.kernels.Correlated(0.8)),
        (nk.kernels.Correlated(lambda s: s.alpha_t * s.sigma_s / (s.alpha_s * s.sigma_t)), nk.kernels.DDPM()),
    ],
    ids=str,
)
def test_kernels_that_are_the_same(one, other):
    a, b = (sample(nk.Single(look(), k)).look.x for k in (one, other))
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_kernels_that_differ_do_differ():
    a, b = (sample(nk.Single(look(), k)).look.x for k in (nk.kernels.DDIM(1.0), nk.kernels.DDIM(0.5)))
    assert np.max(np.abs(a - b)) > 0.05


def test_euler_step_of_the_straight_path():
    grid = nk.grid(nk.schedules.RectifiedFlow(), nk.grids.uniform(4))
    step = jax.tree.map(lambda a: a[1], grid)
    x, x0 = jnp.array([0.3, -1.0]), jnp.array([0.5, 0.2])
    velocity = nk.tweedie.from_x0(
        "velocity", x0, x, step.alpha_t, step.sigma_t, rates(nk.schedules.RectifiedFlow(), step.t)
    )
    moved = nk.kernels.FlowODE()(nk.Lookahead(x, x0), step).mean
    np.testing.assert_allclose(moved, x - velocity * (step.t - step.s), rtol=1e-6)


def test_flow_sde_is_euler_maruyama_to_first_order():
    def gap(width):
        times = jnp.array([0.5, 0.5 - width, 0.0])
        step = jax.tree.map(lambda a: a[0], nk.grid(nk.schedules.RectifiedFlow(), times))
        seen = nk.Lookahead(jnp.array([0.3, -1.0]), jnp.array([0.5, 0.2]))
        diffusion = 0.8
        base = nk.kernels.FlowSDE(diffusion=lambda t: diffusion * jnp.ones_like(t))(seen, step)
        velocity = nk.tweedie.eps(seen, step) - seen.x0
        drift = -velocity + 0.5 * diffusion**2 * nk.tweedie.score(seen, step)
        np.testing.assert_allclose(base.std, diffusion * np.sqrt(width), rtol=1e-5)
        return float(jnp.max(jnp.abs(base.mean - (seen.x + width * drift))))

    assert gap(0.01) < 0.3 * gap(0.02)  # second order: a quarter


@pytest.mark.parametrize("kind", nk.tweedie.KINDS)
@pytest.mark.parametrize(
    "path", [nk.schedules.VPCosine(), nk.schedules.VPLinear(), nk.schedules.RectifiedFlow(3.0), nk.schedules.EDM(5.0)]
)
def test_parametrisations_round_trip(kind, path):
    t = 0.4
    alpha, sigma = path(t)
    x, x0 = jnp.array([0.3, -1.0]), jnp.array([0.5, 0.2])
    d = rates(path, t)
    there = nk.tweedie.from_x0(kind, x0, x, alpha, sigma, d)
    np.testing.assert_allclose(nk.tweedie.to_x0(kind, there, x, alpha, sigma, d), x0, rtol=2e-5)


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_noise_predictions_start_from_pure_noise(kind):
    def apply(_, x, t):
        alpha, sigma = schedule()(t)
        return nk.tweedie.from_x0(kind, 0.3 * x, x, alpha, sigma)

    model = nk.models.FlaxDenoiser(apply, kind, {}, schedule())
    assert np.all(np.isfinite(nk.Look(model).at(jax.random.key(0), jnp.ones(SHAPE), 1.0, 1.0)[0].x0))


@pytest.mark.parametrize("kind", ["eps", pytest.param("score", marks=pytest.mark.slow)])
def test_a_network_of_noise_is_not_asked_for_x0_where_it_has_none_to_tell(kind):
    model = nk.models.FlaxDenoiser(lambda w, x, t: w * x, kind, jnp.float32(0.9), schedule())
    x, run = jnp.ones(SHAPE), jax.jit(nk.run)
    pure, below = (nk.grid(schedule(), nk.grids.uniform(25, start=start)) for start in (1.0, 0.98))

    def status(rows, **changed):
        sampler = nk.Single(nk.Look(nk.replace(model, **changed)), nk.kernels.DDIM())
        return int(run(sampler, jax.random.key(0), x, rows)[0].status)

    with pytest.raises(ValueError, match=f"predicts {kind} says nothing of x0 where alpha = 0"):
        nk.run(nk.Single(nk.Look(model), nk.kernels.DDIM()), jax.random.key(0), x, pure)
    assert status(pure) & nk.Status.WRONG_GRID
    assert (status(below), status(pure, kind="v")) == (0, 0)
    for axis in (nk.schedules.VPLinear(), nk.schedules.VE(), nk.schedules.EDM()):
        for num in (1, 8):
            assert status(nk.grid(axis, nk.grids.uniform(num)), schedule=axis) == 0
    assert (status(pure.rows(24)), status(nk.grids.usual(model, schedule(), 2))) == (0, 0)
    elsewhere, flow = nk.replace(model, schedule=nk.schedules.VPLinear()), nk.schedules.RectifiedFlow()
    rows = nk.grid(flow, nk.grids.uniform(8))
    for inner, own, expected in ((elsewhere, nk.schedules.VPLinear(), 0), (model, schedule(), nk.Status.WRONG_GRID)):
        moved = nk.Single(nk.Look(nk.models.Reschedule(inner, own, flow)), nk.kernels.DDIM())
        assert int(run(moved, jax.random.key(0), x, rows)[0].status) & nk.Status.WRONG_GRID == expected


def test_score_is_that_of_the_mixture():
    mixture, _ = problem(SHAPE)
    alpha, sigma = schedule()(0.3)
    x = jnp.linspace(-1.0, 1.0, 6)
    x0 = mixture.denoise(x, alpha, sigma)
    expected = jax.grad(mixture.log_prob_at)(x, alpha, sigma)
    np.testing.assert_allclose(nk.tweedie.from_x0("score", x0, x, alpha, sigma), expected, rtol=1e-3, atol=1e-4)


def test_best_of_one_is_the_sampler_itself():
    single = nk.Single(look(), nk.kernels.DDIM())
    best = nk.BestOfN(single, 1)
    x = jax.random.normal(jax.random.key(0), (1, *SHAPE))
    state, _ = nk.run(best, jax.random.key(1), x, steps())
    assert state.look.x.shape == (1, *SHAPE)
    assert int(state.evals.model) == steps().num_steps
    assert float(nk.draw(jax.random.key(2), state).look.value) == float(state.look.value[0])


def test_best_of_n_never_chooses_a_reward_that_is_not_finite():
    x = jnp.array([[0.1], [0.9], [0.5]])
    look = nk.Look(lambda x, t: x, lambda x0: jnp.where(x0[0] > 0.8, jnp.inf, x0[0]))
    state, _ = nk.run(nk.BestOfN(nk.Single(look, nk.kernels.DDIM(0.0)), 3), jax.random.key(0), x, steps())
    assert np.isfinite(nk.draw(jax.random.key(1), state).look.value)


def test_a_sample_does_not_depend_on_the_size_of_its_batch():
    """To rounding: XLA compiles another program for another size."""
    rule = nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.1)
    run = jax.jit(jax.vmap(nk.run, in_axes=(None, 0, 0, None)), compiler_options=EXACT)
    x = jax.random.normal(jax.random.key(0), (7, *SHAPE))
    keys = jax.random.split(jax.random.key(1), 7)
    sampler = nk.Single(look(grad=True), nk.kernels.DDIM(), rule)
    one, many = (run(sampler, keys[:n], x[:n], steps())[0].look.x[0] for n in (1, 7))
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_changing_strength_temperature_or_seed_compiles_nothing():
    traced = jax.jit(chex.assert_max_traces(nk.run, n=2))
    unit = nk.whitening.UnitNorm()
    for seed, strength in enumerate((0.01, 0.1, 0.3)):
        for rule in (nk.guidance.NTRK(unit, strength), nk.guidance.NTRK(unit, nk.guidance.Calibrated(1.0 / strength))):
            traced(nk.Single(look(grad=True), nk.kernels.DDIM(), rule), jax.random.key(seed), jnp.ones(SHAPE), steps())


def test_best_of_n_keeps_the_best():
    best = nk.BestOfN(nk.Single(look(), nk.kernels.DDIM()), 8)
    x = jax.random.normal(jax.random.key(0), (8, *SHAPE))
    state, _ = nk.run(best, jax.random.key(1), x, steps())
    chosen = nk.draw(jax.random.key(2), state)
    assert float(chosen.look.value) == float(jnp.max(state.look.value))
    assert list(np.isfinite(state.log_weights)).count(True) == 1


def test_calibrated_gradient_and_likelihood_dps_agree_for_a_weak_tilt():
    weak = 1000.0
    unit = nk.whitening.UnitNorm()
    mixed = nk.guidance.NTRK(unit, nk.guidance.Calibrated(weak), where="mixed")
    gradient = nk.guidance.NTRK(unit, nk.guidance.Calibrated(weak))
    shift = nk.guidance.DPS(1.0 / weak)
    base, a, b, c = (
        sample(nk.Single(look(grad=True), nk.kernels.DDIM(), g)).look.x for g in (None, mixed, gradient, shift)
    )
    np.testing.assert_allclose(a, c, atol=1e-5)
    np.testing.assert_allclose(b - base, c - base, atol=2e-5)
    assert np.max(np.abs(a - base)) > 2e-5


def test_sum_of_two_shifts_is_the_shift_of_the_sum():
    two = nk.guidance.Sum((nk.guidance.DPS(0.2), nk.guidance.DPS(0.3)))
    one = nk.guidance.DPS(0.5)
    a, b = (sample(nk.Single(look(grad=True), nk.kernels.DDIM(), g)) for g in (two, one))
    np.testing.assert_allclose(a.look.x, b.look.x, atol=1e-5)
    np.testing.assert_allclose(a.log_weights, b.log_weights, atol=1e-4)


def test_window_acts_inside_and_only_there():
    grid = steps()
    rule = nk.guidance.DPS(1.0)
    everywhere = sample(nk.Single(look(grad=True), nk.kernels.DDIM(), nk.guidance.Window(rule)))
    unwrapped = sample(nk.Single(look(grad=True), nk.kernels.DDIM(), rule))
    np.testing.assert_allclose(everywhere.look.x, unwrapped.look.x, atol=2e-6)
    times = [float(t) for t in grid.t]
    first_two = nk.guidance.Window(rule, low=times[2], high=1.0)
    x, key = jnp.ones(SHAPE), jax.random.key(3)
    a, _ = nk.run(nk.Single(look(grad=True), nk.kernels.DDIM(), first_two), key, x, grid)
    half, _ = nk.run(nk.Single(look(grad=True), nk.kernels.DDIM(), rule), key, x, grid.rows(0, 2))
    b, _ = nk.resume(nk.Single(look(grad=True), nk.kernels.DDIM()), key, half, grid.rows(2), start=2)
    np.testing.assert_allclose(a.look.x, b.look.x, atol=1e-6)


def test_three_conventions_of_dps_on_a_residual():
    """The shift of each convention, from the gradient of |y - x|^2 worked out by hand."""
    y = jnp.array([1.0, -2.0])
    x = jnp.array([0.0, 0.0])
    residual = nk.Lookahead(x, x, -jnp.sum((y - x) ** 2), 2.0 * (y - x))
    base, step = nk.Gaussian(x, jnp.float32(0.5)), jax.tree.map(lambda a: a[0], steps())
    args = {"key": jax.random.key(0), "probe": None}
    shift = {c: nk.guidance.DPS(1.0, c)(residual, base, step, **args).mean for c in ("norm", "squared", "likelihood")}
    np.testing.assert_allclose(shift["norm"], y / np.sqrt(5.0), rtol=1e-6)  # unit vector towards y
    np.testing.assert_allclose(shift["squared"], 2.0 * y, rtol=1e-6)
    np.testing.assert_allclose(shift["likelihood"], 0.25 * 2.0 * y, rtol=1e-6)
    positive = residual._replace(value=jnp.float32(3.0))
    np.testing.assert_array_equal(nk.guidance.DPS(1.0, "norm")(positive, base, step, **args).mean, np.zeros(2))


def test_weights_of_a_guided_path_recover_the_tilted_law():
    """Importance weights exp(log_weights + r / temperature) of NTRK paths give the tilt's normaliser."""
    problem_1d = nk.targets.skewed(2)
    tilted = nk.targets.tilt(problem_1d.mixture, problem_1d.reward)
    model = nk.models.Exact(problem_1d.mixture, schedule())
    grid = nk.grid(schedule(), nk.grids.uniform(200))
    rule = nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.003)
    sampler = nk.Single(nk.Look(model, problem_1d.reward, grad=True), nk.kernels.DDIM(), rule)
    num = 4000
    x = jax.random.normal(jax.random.key(0), (num, 2))
    keys = jax.random.split(jax.random.key(1), num)
    state, _ = RUN(sampler, keys, x, grid)
    w = np.exp(np.asarray(state.log_weights + state.look.value) - float(tilted.log_normalizer))
    error = w.std() / np.sqrt(num)
    assert error < 0.1
    assert abs(w.mean() - 1.0) < 4 * error + 0.05  # 0.05: the bias of 200 steps
    unweighted = np.exp(np.asarray(state.look.value) - float(tilted.log_normalizer))
    assert abs(unweighted.mean() - 1.0) > 0.15  # negative control: without the ratio it is wrong
