"""Tilting by training: the losses' gradients, what the rounds do with rewards, and what a resumed run gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax.kernels.ode import ProbabilityFlow
from ntrk_jax.models import FlaxDenoiser, MomentDenoiser, moment_network
from ntrk_jax.training import TiltLoss, TiltPlan, draw, draws, tilt, tilt_coefficient, tilt_target
from ntrk_jax.training import tilt_rounds as rounds
from ntrk_jax.training.draws import even_normal
from ntrk_jax.training.tilt_weights import effective_share, ess_step, pooled_weights, skewness

SCHEDULE = nk.schedules.VPCosine()


def key(seed=0):
    """A fresh key."""
    return jax.random.key(seed)


def linear(w, x, t):
    return w * x


def denoiser(w=0.5, kind="x0", schedule=SCHEDULE):
    return FlaxDenoiser(linear, kind, jnp.asarray(w), schedule)


def gaussian_model(mean=(0.0, 0.0), schedule=SCHEDULE):
    """The exact denoiser of N(mean, diag(2, 1/2)) in a turned frame, its network zero; and that law."""
    c, s = np.cos(0.4), np.sin(0.4)
    vectors = np.array([[c, -s], [s, c]])
    values = np.array([2.0, 0.5])
    law = nk.targets.GaussianMixture(np.ones(1), np.array([mean]), (vectors * values @ vectors.T)[None])
    arrays = (jnp.asarray(a, jnp.float32) for a in (mean, values, vectors))
    return MomentDenoiser(lambda w, u, t: w * u, jnp.zeros(()), schedule, *arrays), law


def test_target_and_its_derivative():
    sample, anchor, student = jnp.array([3.0, 0.0]), jnp.array([1.0, 1.0]), jnp.array([2.0, 0.5])
    np.testing.assert_allclose(tilt_target(sample, anchor, student, 0.5), [1.5, 0.75])
    for slope in jax.jacobian(tilt_target, argnums=(1, 2))(sample, anchor, student, 0.5):
        assert not np.any(slope), "neither anchor nor baseline is differentiated"
    assert float(tilt_coefficient("implicit", jnp.log(3.0))) == pytest.approx(2.0)
    assert float(tilt_coefficient("nft", 0.75, 0.1)) == pytest.approx(5.0)


@pytest.mark.parametrize("kind", nk.tweedie.KINDS)
def test_any_kind_is_the_error_of_its_own_prediction(kind):
    """The loss in units of a kind is the square error of that prediction, for the target written in that kind."""
    student, anchor = denoiser(0.3), denoiser(0.6)
    loss = TiltLoss(student, anchor, method="explicit", kind=kind)
    x0, log_weight = jnp.array([0.8, -1.1]), 0.4
    time_key, noise_key = jax.random.split(key())
    t, z = loss.time(time_key), jax.random.normal(noise_key, (2,))
    alpha, sigma = SCHEDULE(t)
    slope = nk.schedules.rates(SCHEDULE, t)
    x = alpha * x0 + sigma * z
    ours, old, drawn = (
        nk.tweedie.from_x0(kind, value, x, alpha, sigma, slope) for value in (student(x, t), anchor(x, t), x0)
    )
    expected = jnp.mean(jnp.square(ours - tilt_target(drawn, old, old, log_weight)))
    np.testing.assert_allclose(loss(key(), jnp.asarray(0.3), (x0, log_weight)), expected, rtol=2e-4)


@pytest.mark.parametrize(("predicts", "unit"), [("x0", "x0"), ("eps", "eps"), ("v", "v"), ("score", "eps")])
def test_left_alone_the_unit_is_what_the_network_predicts(predicts, unit):
    sample = jnp.array([0.8, -1.1]), 0.4
    losses = [TiltLoss(denoiser(kind=predicts), method="weighted", kind=k) for k in ("auto", unit)]
    usual, named = (loss(key(), jnp.asarray(0.3), sample) for loss in losses)
    np.testing.assert_allclose(usual, named, rtol=1e-6)


def test_the_gradient_of_implicit_does_not_go_through_its_baseline():
    student, anchor = denoiser(0.3), denoiser(0.6)
    sample = (jnp.array([0.8, -1.1]), 0.7)

    def gradient(method, coef):
        return float(jax.grad(TiltLoss(student, anchor, method=method, kind="x0"), 1)(key(), jnp.asarray(0.3), coef))

    time_key, noise_key = jax.random.split(key())
    loss = TiltLoss(student, anchor, method="implicit", kind="x0")
    alpha, sigma = SCHEDULE(loss.time(time_key))
    x = alpha * sample[0] + sigma * jax.random.normal(noise_key, (2,))
    target = 0.6 * x + np.expm1(0.7) * (sample[0] - 0.3 * x)
    assert gradient("implicit", sample) == pytest.approx(float(jnp.mean(2.0 * (0.3 * x - target) * x)), rel=1e-4)
    plain = TiltLoss(student, method="weighted", kind="x0")
    weighted = float(plain(key(), jnp.asarray(0.3), sample))
    assert weighted == pytest.approx(float(np.exp(0.7) * jnp.mean((0.3 * x - sample[0]) ** 2)), rel=1e-4)


def test_averaging_over_others_changes_the_variance_of_the_gradient_and_not_its_mean():
    x = 0.7 * jax.random.normal(key(3), (64, 2)) + jnp.where(jnp.arange(64) % 4 > 0, 2.0, -2.0)[:, None]
    logs = 0.3 * x[:, 0]
    keys, rows = jax.random.split(key(4), 20_000), jnp.arange(20_000) % 64
    for method in ("explicit", "implicit", "weighted"):

        def gradients(num, method=method):
            loss = TiltLoss(denoiser(), denoiser(), low=0.6, pool=(x, logs), num_others=num, method=method, kind="x0")
            each = jax.vmap(lambda k, i: jax.grad(loss, 1)(k, jnp.asarray(0.5), (x[i], logs[i])))
            return np.asarray(jax.jit(each)(jax.random.clone(keys), rows), np.float64)

        plain, averaged = gradients(0), gradients(15)
        error = np.hypot(plain.std(), averaged.std()) / np.sqrt(len(rows))
        assert abs(plain.mean() - averaged.mean()) < 4 * error
        assert averaged.std() < 0.85 * plain.std()


def test_refused_settings():
    with pytest.raises(ValueError, match="method must be one of explicit"):
        TiltLoss(denoiser(), denoiser(), method="nope")
    with pytest.raises(ValueError, match="kind must be one of"):
        TiltLoss(denoiser(), kind="nope")
    with pytest.raises(ValueError, match="needs an anchor"):
        TiltLoss(denoiser(), method="implicit")
    with pytest.raises(ValueError, match="needs a pool"):
        TiltLoss(denoiser(), num_others=1)
    for wrong in ({"method": "nft"}, {"ess": 1.0}, {"num_rounds": 0}, {"num_samples": 0}):
        with pytest.raises(ValueError, match="must"):
            TiltPlan(**wrong)


@pytest.mark.parametrize("schedule", [SCHEDULE, nk.schedules.VE()])
def test_the_moments_alone_are_the_denoiser_of_a_gaussian(schedule):
    model, law = gaussian_model((0.3, -1.0), schedule)
    x = jnp.array([0.9, -0.2])
    for t in (1e-3, 0.3, 0.99):
        exact = law.denoise(x, *schedule(t))
        np.testing.assert_allclose(model(x, t), exact, atol=2e-5)
        moved = model(x, t) - nk.tree.replace(model, variables=jnp.ones(()))(x, t)
        unit = -(x - schedule(t)[0] * law.mean())  # normalized undoes what makes F from an error
        root = np.linalg.cholesky(schedule(t)[0] ** 2 * law.cov() + schedule(t)[1] ** 2 * np.eye(2))
        size = np.linalg.norm(np.linalg.solve(root, unit))
        np.testing.assert_allclose(np.linalg.norm(model.normalized(moved, t)), size, rtol=1e-3)


def test_fitted_moments_are_those_of_the_weighted_samples():
    x = jax.random.normal(key(), (500, 2)) @ jnp.array([[1.0, 0.4], [0.0, 0.7]]) + jnp.array([1.0, -2.0])[None]
    w = jax.nn.softmax(x[:, 0])
    model = moment_network(key(), x, SCHEDULE, width=8, hidden=8, depth=1).fitted(x, w)
    np.testing.assert_allclose(model.mean, np.average(x, axis=0, weights=w), rtol=1e-4)
    cov = np.cov(np.asarray(x).T, aweights=np.asarray(w), ddof=0)
    np.testing.assert_allclose(model.vectors * model.values[None] @ model.vectors.T, cov, rtol=1e-3)
    for moments, values in (("diagonal", np.diag(cov)), ("scalar", np.trace(cov) / 2)):
        other = moment_network(key(), x, SCHEDULE, moments=moments, width=8, hidden=8, depth=1).fitted(x, w)
        np.testing.assert_allclose(other.values, values, rtol=1e-3)
    with pytest.raises(ValueError, match="moments must be one of"):
        moment_network(key(), x, SCHEDULE, moments="third")


@pytest.mark.parametrize("schedule", [nk.schedules.VPLinear(), nk.schedules.RectifiedFlow(3.0)])
def test_the_flow_draws_the_gaussian(schedule):
    model, law = gaussian_model((0.3, -1.0), schedule)
    x = draw(key(), model, 4096, (2,), 32)
    np.testing.assert_allclose(x.mean(0), law.mean(), atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), law.cov(), atol=0.03)


def test_even_starts_are_even_and_normal():
    z = even_normal(key(), 4096, (2, 3))
    assert z.shape == (4096, 2, 3)
    flat = np.sort(np.asarray(z).reshape(4096, 6), axis=0)
    independent = np.sort(np.asarray(jax.random.normal(key(), (4096, 6))), axis=0)
    quantiles = np.asarray(jax.scipy.stats.norm.cdf(flat)), np.asarray(jax.scipy.stats.norm.cdf(independent))
    off = [np.abs(q - (np.arange(4096)[:, None] + 0.5) / 4096).max() for q in quantiles]
    assert off[0] < 4e-4 < off[1]
    pairs = np.abs(np.cov(np.asarray(z).reshape(4096, 6).T) - np.eye(6))
    assert pairs.max() < 0.02
    assert not np.array_equal(z, even_normal(jax.random.key(1), 4096, (2, 3)))


def test_weights_along_the_path():
    rng = np.random.default_rng(0)
    r = rng.normal(size=(3, 4000)) + np.array([0.0, 0.5, 0.0])[:, None]  # of N(a, 1) at a = 0 and a = 0.5; no third
    weights = pooled_weights(r, np.array([0.0, 0.5, np.nan]), 0.5)
    assert weights.sum() == pytest.approx(1.0)
    assert not weights[2].any()
    assert float((weights * r).sum()) == pytest.approx(0.5, abs=0.05)
    # of a normal reward the share of effective samples after a step h is exp(-h^2)
    assert weights[0].sum() / weights[1].sum() == pytest.approx(np.exp(-0.25), rel=0.05)
    assert ess_step(r[0], np.exp(-0.09)) == pytest.approx(0.3, rel=0.05)
    assert ess_step(np.zeros(10), 0.9, 0.7) == 0.7


def test_one_weighted_round_is_made_where_the_whole_tilt_leaves_a_fifth_effective():
    normal = np.random.default_rng(1).normal(size=4000)  # of a normal reward times s the share is exp(-s^2)
    mild, steep = (s * normal for s in (np.sqrt(np.log(1 / 0.25)), np.sqrt(np.log(1 / 0.15))))
    leap = rounds._settled(TiltPlan(rate=1e-3, num_steps=10), 0.0, mild, False)
    assert (leap.method, leap.num_steps, leap.rate, rounds._step(mild, 1.0, leap, 0)) == ("weighted", 50, 2e-3, 1.0)
    for plan, a, r in (
        (TiltPlan(), 0.0, steep), (TiltPlan(), 0.5, mild), (TiltPlan(num_rounds=2), 0.0, mild),
        (TiltPlan(ess=0.9), 0.0, mild),
    ):  # fmt: skip
        assert rounds._settled(plan, a, r, False).method == "explicit"
    far, few = (np.where(np.arange(4000) < n, 0.0, -1000.0) for n in (150, 50))  # explicit steps end beyond a cliff
    quadratic = -8.0 * (normal - 2.0) ** 2  # and blow up with the long tail of a quadratic
    assert all(abs(skewness(r)) > rounds.LOPSIDED for r in (far, few, quadratic))
    methods = [rounds._settled(TiltPlan(num_samples=4000), 0.0, r, True).method for r in (far, few, quadratic, -few)]
    assert methods == ["weighted", "implicit", "weighted", "weighted"]
    assert rounds._settled(TiltPlan(num_rounds=3), 0.0, quadratic, True).method == "implicit"
    assert rounds._settled(TiltPlan("implicit"), 0.0, mild, False) == TiltPlan("implicit"), "what was named is kept"
    halves = np.log(np.array([1.0, 1.0, 1e-30, 1e-30])) + 900.0
    assert effective_share(halves) == pytest.approx(0.5)


def test_a_weight_too_small_for_its_dtype_has_no_say():
    loss = TiltLoss(denoiser(), None, method="weighted")
    for log_weight in (-1000.0, 0.0):
        value, grad = jax.value_and_grad(loss, 1)(key(), jnp.array(0.5), (jnp.ones(2), jnp.float32(log_weight)))
        assert (float(value) > 0, float(grad) != 0) == (log_weight == 0.0, log_weight == 0.0)
        assert np.isfinite(value)
        assert np.isfinite(grad)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"rate": -1.0}, "rate and noise must be positive"), ({"noise": 0.0}, "rate and noise"), ({"decay": 2.0}, "decay"),
     ({"num_others": -1}, "num_others must be at least 0"), ({"num_refresh": -1}, "num_refresh must be at least 0"),
     ({"kind": "noise"}, "kind must be one of")],
)  # fmt: skip
def test_plans_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TiltPlan(**options)


def test_draws_of_a_schedule_that_ends_at_much_noise():
    """Rows below its least noise stand at one time."""
    schedule, law = (
        nk.schedules.VE(0.1, 50.0),
        nk.targets.GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]),
    )
    x = draw(key(), nk.models.Exact(law, schedule), 256, (2,), 48)
    np.testing.assert_allclose(x.std(0), 1.0, atol=0.03)


TINY = {"num_others": 3, "num_samples": 256, "num_steps": 8, "batch_size": 64, "num_draw_steps": 8}


def test_a_round_moves_the_moments_to_the_tilt_and_the_network_is_left_alone():
    """On a Gaussian the moments are the whole answer, and 4096 samples find them within their noise."""
    model, law = gaussian_model()
    reward = nk.rewards.Linear(jnp.array([0.6, -1.0]))
    plan = TiltPlan("explicit", num_samples=4096, num_steps=1, batch_size=8, rate=1e-9, num_draw_steps=24)
    state = tilt(key(), model, reward, (2,), temperature=2.0, plan=plan)
    star = nk.targets.tilt(law, reward, 2.0).mixture
    np.testing.assert_allclose(state.model.mean, star.means[0], atol=0.05)
    cov = state.model.vectors * state.model.values[None] @ state.model.vectors.T
    np.testing.assert_allclose(cov, law.covs[0], atol=0.1)
    done = np.asarray(state.history[: int(state.round)])
    assert done[-1, 1] == 1.0
    assert np.all(done[:, 2] > 0.65)
    np.testing.assert_allclose(done[1:, 0], done[:-1, 1])


@pytest.mark.slow
def test_skewed_rewards_are_tilted_by_implicit_rounds_from_the_first_to_the_last():
    """The tail of a quadratic weighs too much in explicit steps: the law ends beyond its mean, or blows up."""
    x = jax.random.normal(key(), (2048, 2))
    model = moment_network(key(), x, nk.schedules.VPCosine(), width=32, hidden=32, depth=2)
    means = {}
    for method in ("auto", "explicit"):
        plan = TiltPlan(method, num_samples=1024, num_steps=150, batch_size=256, num_draw_steps=24, num_others=31)
        state = tilt(jax.random.key(1), model, lambda x: -4.0 * (x[0] - 3.5) ** 2, (2,), plan=plan)
        draws = draw(jax.random.key(9), state.model, 2048, (2,), 48)
        means[method] = float(draws[:, 0].mean())
        if method == "auto":
            assert bool(state.skewed)
            assert float(draws[:, 0].std()) == pytest.approx(1 / 3, abs=0.04)
    assert means["auto"] == pytest.approx(28 / 9, abs=0.05)
    assert means["explicit"] > 28 / 9 + 0.1  # negative control


def test_host_rewards_are_asked_once_a_sample_and_nothing_recompiles(tmp_path):
    model, _ = gaussian_model()
    asked = []

    def stripes(x):
        asked.append(x.shape)
        return int(np.floor(x[0]))

    programs = (rounds._steps, draws._ask, rounds._fitted)
    for program in programs:
        program.clear_cache()
    plan = TiltPlan("implicit", num_rounds=3, keep=2, **TINY)
    state = tilt(key(), model, nk.rewards.External(stripes), (2,), plan=plan)
    assert len(asked) == 3 * 256
    assert int(state.round) == 3
    assert [program._cache_size() for program in programs] == [1, 1, 1]
    assert float(state.model.mean[0]) > 0.5, "the tilt is upwards"
    assert np.all(np.isfinite(state.at))
    with pytest.raises(ValueError, match="must be finite"):
        tilt(key(), model, lambda x: jnp.nan * x[0], (2,), plan=plan)
    with pytest.raises(ValueError, match="scalar for one sample"):
        tilt(key(), model, lambda x: x, (2,), plan=plan)
    with pytest.raises(ValueError, match="temperature must be positive"):
        tilt(key(), model, jnp.sum, (2,), temperature=0.0, plan=plan)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(tmp_path):
    """With images, a plain network and the sets of two rounds together."""
    model, shape, folder = denoiser(0.9, schedule=nk.schedules.VPLinear()), (4, 4, 1), tmp_path / "run"
    plan = TiltPlan("weighted", num_rounds=3, num_refresh=4, keep=2, **TINY)
    whole = tilt(key(), model, jnp.mean, shape, plan=plan)

    def stop(text):
        if text.startswith("round 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tilt(key(), model, jnp.mean, shape, plan=plan, checkpoint=folder, progress=stop)
    lines = []
    resumed = tilt(key(), model, jnp.mean, shape, plan=plan, checkpoint=folder, progress=lines.append)
    assert [line.split(":")[0] for line in lines] == ["round 3"]
    assert whole.samples.shape == (2, 256, 4, 4, 1)
    assert float(whole.model.variables) != 0.9
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    model, _ = gaussian_model()
    plan, given = TiltPlan("implicit", num_rounds=1, **TINY), {"checkpoint": tmp_path / "run"}
    done = tilt(key(), model, nk.rewards.Linear(jnp.ones(2)), (2,), plan=plan, **given)
    again = tilt(key(), model, nk.rewards.Linear(jnp.ones(2)), (2,), plan=plan, **given)
    np.testing.assert_array_equal(done.samples, again.samples)
    changed = ({"temperature": 0.5}, {"reward": nk.rewards.Linear(-jnp.ones(2))}, {"key": jax.random.key(99)})
    for change in changed:
        parts = {"key": key(), "model": model, "reward": nk.rewards.Linear(jnp.ones(2)), "shape": (2,)} | change
        with pytest.raises(ValueError, match="is of another key, model, reward, temperature or plan"):
            tilt(**parts, plan=plan, **given)


def test_draws_of_a_network_of_noise_start_where_it_says_something_of_x0():
    """An error of 0.02 in eps, 30 times as large in x0 at the first row, moves the draws by little."""
    path = nk.schedules.VPCosine()

    def eps(w, x, t):
        alpha, sigma = path(t)
        return sigma * (x - alpha * 0.4) / (alpha**2 * 0.49 + sigma**2) + w

    worse, exact = (draw(key(), FlaxDenoiser(eps, "eps", jnp.float32(w), path), 1024, (1,), 48) for w in (0.02, 0.0))
    assert abs(float(exact.mean()) - 0.4) < 0.01
    assert abs(float(worse.mean()) - 0.4) < 0.1  # from t = 1 on it was -0.14
    flow = [ProbabilityFlow(FlaxDenoiser(eps, "eps", jnp.float32(w), path), path) for w in (0.02, 0.0)]
    noise = jax.random.normal(jax.random.key(5), (64, 1))
    moved = jax.vmap(flow[0].sample)(noise) - jax.vmap(flow[1].sample)(noise)
    assert abs(float(moved.mean())) < 0.1


def test_samples_that_do_not_vary_are_learned_and_a_loss_that_is_none_is_refused():
    ones = jnp.ones((4, 2))
    model = moment_network(key(), ones, nk.schedules.VPCosine(), width=8, hidden=8, depth=1)
    trained = rounds.denoise(key(), model, ones, 2, 4)
    np.testing.assert_allclose(trained(jnp.ones(2), 0.5), np.ones(2), atol=1e-3)
    with pytest.raises(ValueError, match="the loss is not finite"):
        rounds.denoise(key(), model, jnp.nan * ones, 2, 4)


def test_any_number_of_rounds_is_made_exactly():
    """What is reached is kept in float32, in which 107 steps of 1 / 107 fall short of 1."""
    for num in range(1, 257):
        plan, reached = TiltPlan(num_rounds=num), 0.0
        for done in range(num):
            assert reached < 1.0 - 0.5 / num
            step = rounds._step(np.zeros(2), 1.0 - reached, plan, done)
            reached = float(np.float32(1.0 if reached + step > 1.0 - 1e-6 else reached + step))
        assert reached == 1.0
