"""Learned guidance: what its losses are minimised by, what its numbers mean, and that every method can use it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax import training as nt
from ntrk_jax.models.value_nets import ValueMLP
from ntrk_jax.training import noise_aware

SCHEDULE = nk.schedules.VPCosine()
BETA = 0.8
LAW, REWARD = nk.targets.skewed(1)
TILTED = nk.targets.tilt(LAW, REWARD, BETA)
LEVEL = BETA * float(TILTED.log_normalizer)
EXACT = nk.values.Exact(LAW, SCHEDULE, REWARD, BETA)
MODEL = nk.models.Exact(LAW, SCHEDULE)


def soft(x, t):
    """The exact value in the units of the network."""
    return (EXACT(None, x, t) - LEVEL) / BETA


def mean_reward(x, t):
    """E[r given x_t] in the units of the network; the reward is linear."""
    return (REWARD(MODEL(x, t)) - LEVEL) / BETA


def around(centre):
    """A network that is `centre` at parameters 0, and other functions of x and t away from them."""
    return lambda w, x, t: centre(x, t) + w @ jnp.stack([jnp.ones(()), x[0], jnp.sin(2.0 * x[0]) * t])


@functools.partial(jax.jit, static_argnums=0)
def by_quadrature(kind, share, t):
    """The gradient of the mean loss at a value between the exact one (share 0) and the mean reward (share 1).

    Relative to the mean size of a draw's gradient; every draw of (x0, z) on a grid, so there is no randomness.
    """
    centre = around(lambda x, t: soft(x, t) + share * (mean_reward(x, t) - soft(x, t)))
    loss = nt.ValueLoss(centre, SCHEDULE, BETA, LEVEL, kind, model=MODEL if kind == "consistency" else None)
    alpha, sigma = SCHEDULE(t)
    x0, noise = jnp.linspace(-9.0, 9.0, 721), jnp.linspace(-6.0, 6.0, 121)
    mass = jnp.exp(jax.vmap(LAW.log_prob)(x0[:, None]))[:, None] * jnp.exp(-0.5 * noise**2)[None]

    def one(x0, z):
        group = nt.Group(x0[None, None], REWARD(x0[None])[None], jnp.zeros(1))
        return jax.grad(loss.at)(jnp.zeros(3), alpha * x0[None] + sigma * z, t, group)

    grads = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(x0, noise) * mass[..., None]
    return jnp.sum(grads, (0, 1)) / jnp.maximum(jnp.sum(jnp.abs(grads), (0, 1)), 1e-20)


@pytest.mark.parametrize("kind", ["bregman", "regression", "consistency", "log"])
def test_the_exact_value_minimises_the_mean_loss_and_that_of_the_log_is_another(kind):
    for t in (0.3, 0.8):
        right, wrong = (0.0, 1.0) if kind != "log" else (1.0, 0.0)  # the log-regression finds the mean reward
        assert np.abs(by_quadrature(kind, right, t)).max() < 1e-4
        assert np.abs(by_quadrature(kind, wrong, t)).max() > 1e-2


@jax.jit
def group_gradients(forget=False):
    """The gradients at the exact value of the loss of groups of exact draws, half of each law, [groups, 3]."""
    one, two = jax.random.split(jax.random.key(1))
    x0 = jnp.concatenate([LAW.sample(one, 8192), TILTED.mixture.sample(two, 8192)])
    rewards = jax.vmap(REWARD)(x0)
    weights = jnp.concatenate(nt.balanced(rewards[:8192], rewards[8192:], BETA)[1:])
    draws = nt.Group(x0, rewards, jnp.where(forget, 0.0, weights))
    groups = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(8, 2048, *a.shape[1:]), 0, 1), draws)
    loss = nt.ValueLoss(around(soft), SCHEDULE, BETA, LEVEL, model=MODEL, low=0.1, num_noised=2)
    keys = jax.random.split(jax.random.key(2), 2048)
    return jax.vmap(lambda key, group: jax.grad(loss, 1)(key, jnp.zeros(3), group))(keys, groups)


def z_scores(gradients):
    gradients = np.asarray(gradients, np.float64)
    return np.abs(gradients.mean(0)) / (gradients.std(0) / np.sqrt(len(gradients)))


def test_groups_and_weighted_draws_move_no_minimiser():
    assert z_scores(group_gradients()).max() < 4.5
    assert z_scores(group_gradients(True)).max() > 6, "draws of both laws need their weights"


def test_the_level_is_the_log_normaliser_and_weights_are_bounded():
    rng, beta = np.random.default_rng(0), 4.0
    base = rng.gamma(2.0, size=4000).astype(np.float32)  # tilted by exp(r / 4) it is wider by 4/3, and Z = (4/3)^2
    tilted = rng.gamma(2.0, 4.0 / 3.0, size=2000).astype(np.float32)
    weigh = jax.jit(nt.balanced)
    level, of_base, of_tilted = weigh(base, tilted, beta)
    assert float(level) == pytest.approx(beta * 2 * np.log(4.0 / 3.0), abs=4 * beta * 0.01)
    weights = np.exp(np.concatenate([of_base, of_tilted]), dtype=np.float64)
    assert weights.max() <= 1.5 + 1e-5
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(weights.size)
    plain = beta * np.log(np.mean(np.exp(base.astype(np.float64) / beta)))
    alone, ones, _ = weigh(base, base[:0], beta)
    assert float(alone) == pytest.approx(plain, rel=1e-5)
    assert not np.any(ones)
    again = base[nt.resampled(jax.random.key(5), base / np.float32(beta), 2000)]
    assert float(weigh(base, again, beta)[0]) == pytest.approx(plain, abs=0.02)
    assert float(weigh(base + 500.0, again + 500.0, beta)[0]) == pytest.approx(plain + 500.0, abs=0.03)


def test_a_network_far_off_has_a_finite_loss():
    draws = nt.Group(jnp.zeros((2, 1)), jnp.array([900.0, -900.0]), jnp.zeros(2))
    loss = nt.ValueLoss(lambda w, x, t: 1e4 * w, SCHEDULE, level=890.0)
    assert all(np.isfinite(v) for v in jax.jit(jax.value_and_grad(loss, 1))(jax.random.key(0), 1.0, draws))


@pytest.mark.parametrize(("shift", "kinds"), [(4.0, ("bregman", "regression")), (7.0, ("bregman", "regression"))])
def test_a_tilt_of_many_nats_is_still_the_minimiser(shift, kinds):
    """N(0, 1) tilted by exp(shift x): near the data the value lies shift^2 / 2 nats above its level."""
    base = jax.random.normal(jax.random.key(0), (2048, 1))
    tilted = jax.random.normal(jax.random.key(1), (2048, 1)) + shift
    level, *weights = nt.balanced(shift * base[:, 0], shift * tilted[:, 0])
    x0 = jnp.concatenate([base, tilted])
    draws, grid = nt.Group(x0, shift * x0[:, 0], jnp.concatenate(weights)), jnp.linspace(-5.0, 120.0, 1251)
    for kind in kinds:
        loss = nt.ValueLoss(lambda u, x, t: u, SCHEDULE, 1.0, level, kind)
        at = jax.vmap(loss.at, (0, None, None, None))(grid, SCHEDULE(0.05)[0] * jnp.array([shift]), 0.05, draws)
        assert float(grid[jnp.argmin(at)]) == pytest.approx(shift**2 / 2, rel=0.1)


def test_losses_of_any_gain_are_finite():
    """Weights are exp(log_weight + gain), at most 2, where exp(gain) alone is no float32."""
    draws = nt.Group(jnp.zeros((2, 1)), jnp.array([0.0, 200.0]), jnp.array([0.0, -199.5]))
    for kind in ("bregman", "regression", "log", "consistency"):
        loss = nt.ValueLoss(lambda w, x, t: w + w * x[0], SCHEDULE, kind=kind, model=MODEL)
        assert all(np.isfinite(v) for v in jax.jit(jax.value_and_grad(loss, 1))(jax.random.key(0), 1.0, draws))


def test_values_are_fitted_to_one_finite_reward_a_draw():
    x = jnp.ones((8, 1))
    for rewards, words in (
        (jnp.ones((8, 1)), "one number for each draw"), (jnp.ones(4), "one number for each draw"),
        (jnp.full(8, -jnp.inf), "must be finite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            nt.fit_value(jax.random.key(0), nt.value_network(x, SCHEDULE), SCHEDULE, x, rewards)
        with pytest.raises(ValueError, match=f"tilted.* {words}"):
            nt.fit_value(
                jax.random.key(0), nt.value_network(x, SCHEDULE), SCHEDULE, x, jnp.ones(8), tilted=(x, rewards)
            )


@pytest.mark.parametrize(
    ("options", "words"),
    [({"kind": "mse"}, "kind must be"), ({"temperature": 0.0}, "temperature"), ({"consistency": -1.0}, "consistency"),
     ({"kind": "consistency"}, "needs the base model"), ({"num_noised": 0}, "num_noised must be at least 1"),
     ({"low": 0.9, "high": 0.1}, "0 <= low <= high <= 1")],
)  # fmt: skip
def test_refused_losses(options, words):
    with pytest.raises(ValueError, match=words):
        nt.ValueLoss(lambda w, x, t: w, SCHEDULE, **options)


PLANE, SLOPE = nk.targets.skewed(2)
PLANE_MODEL = nk.models.Exact(PLANE, SCHEDULE)
STEPS = nk.grid(SCHEDULE, nk.grids.uniform(6))


@pytest.fixture(scope="module")
def value():
    """A value learned in a few seconds."""
    draws = PLANE.sample(jax.random.key(0), 16_384)
    network = nt.value_network(draws, SCHEDULE, width=32, depth=1)
    return nt.fit_value(
        jax.random.key(1), network, SCHEDULE, draws, draws @ SLOPE.a, model=PLANE_MODEL, num_steps=400,
        group=64, chunk=400,
    )  # fmt: skip


def test_a_learned_value_has_the_right_level_and_a_better_gradient_than_the_plug_in(value):
    tilted = nk.targets.tilt(PLANE, SLOPE)
    log_z = float(tilted.log_normalizer)
    assert float(jax.jit(value)(None, jnp.array([0.4, -1.0]), 1.0)) == pytest.approx(log_z, abs=0.3)
    looks = [nk.Look(PLANE_MODEL, SLOPE, grad=True, value=v)
             for v in (value, nk.values.PlugIn(), nk.values.Exact(PLANE, SCHEDULE, SLOPE))]  # fmt: skip

    @jax.jit
    @jax.vmap
    def gradients(x0, z, t):
        alpha, sigma = SCHEDULE(t)
        return [sigma * look(jax.random.key(0), alpha * x0 + sigma * z, t)[0].grad for look in looks]

    x0, z = tilted.mixture.sample(jax.random.key(2), 2000), jax.random.normal(jax.random.key(3), (2000, 2))
    mine, plug_in, right = gradients(x0, z, jnp.linspace(0.01, 1.0, 2000))
    size = np.sqrt(np.mean(right**2))
    assert np.sqrt(np.mean((mine - right) ** 2)) < 0.25 * size
    assert np.sqrt(np.mean((plug_in - right) ** 2)) > 0.7 * size


def sampler_of(name, model, reward, value):
    guided = nk.Look(model, reward, grad=True, value=value)
    if name == "dts":
        return nk.samplers.DTS(guided, nk.kernels.DDIM(1.0), STEPS, nk.guidance.DPS(1.0), num_levels=3, num_rollouts=2)
    if name == "score":
        return nk.methods.tds_shift(model, reward, (2,), value=value, noiseless=True)
    return getattr(nk.methods, name)(model, reward, (2,), value=value)


@pytest.mark.parametrize("name", ["tds", "das", "fk", "svdd", "dts", "ntrk", "score"])
def test_every_method_runs_on_it_and_asks_the_model_for_no_gradient(name):
    models, rewards = nk.models.Counter(), nk.models.Counter()
    model = nk.models.Counted(lambda x, t: (1.0 - t) * x, models)
    reward = nk.models.Counted(lambda x0: -jnp.sum(x0**2), rewards)
    small = nk.values.Learned(lambda w, x, t: (1.0 - t) * (w @ x), jnp.array([0.3, -0.2]))
    sampler = sampler_of(name, model, reward, small)
    population = name in ("tds", "das", "fk")
    x = jax.random.normal(jax.random.key(4), (4, 2) if population else (2,))
    rows = nk.samplers.rollouts(2) if name == "dts" else STEPS
    state, _ = jax.jit(nk.run)(sampler, jax.random.key(5), x, rows)
    nk.check(state)
    assert int(state.evals.model) > 0
    assert models.vjp == rewards.vjp == int(state.evals.model_vjp) == int(state.evals.reward_vjp) == 0
    assert 1 <= int(state.evals.reward) <= 8, "the reward is asked at clean samples alone"


def test_the_twisted_rule_is_guidance_of_the_score_and_of_the_velocity():
    flow, beta, x, t, s = nk.schedules.RectifiedFlow(), 0.5, jnp.array([0.3, -1.0]), 0.6, 0.5
    value, tilted = nk.values.Exact(PLANE, flow, SLOPE, beta), nk.targets.tilt(PLANE, SLOPE, beta).mixture

    @jax.jit
    def moves():
        step = nk.core.Step(t, s, 1.0 - t, t, 1.0 - s, s)
        seen, _, _ = nk.Look(nk.models.Exact(PLANE, flow), SLOPE, grad=True, value=value)(jax.random.key(0), x, t)
        rule = nk.guidance.Twisted(1.0 / beta, noiseless=True)
        velocity = (x - seen.x0) / t - t / (1 - t) * seen.grad / beta
        bases = [
            kernel(seen, jax.tree.map(jnp.asarray, step)) for kernel in (nk.kernels.FlowODE(), nk.kernels.DDIM(0.0))
        ]
        shifts = [rule(seen, base, jax.tree.map(jnp.asarray, step), key=None, probe=None).mean for base in bases]
        moved = [base.mean + shift for base, shift in zip(bases, shifts, strict=True)]
        return velocity, (x - tilted.denoise(x, 1 - t, t)) / t, moved

    velocity, right, moved = moves()
    np.testing.assert_allclose(velocity, right, rtol=1e-4, atol=1e-5)
    for one in moved:
        np.testing.assert_allclose(one, x + (s - t) * velocity, rtol=1e-5, atol=1e-6)


def test_draws_of_the_tilted_law_by_smc(value):
    tilted = nk.targets.tilt(PLANE, SLOPE).mixture
    x, rewards = nt.smc_draws(
        jax.random.key(6), value, PLANE_MODEL, SLOPE, SCHEDULE, (2,), 2048, num_steps=40, num_particles=16
    )
    np.testing.assert_allclose(rewards, x @ SLOPE.a, rtol=1e-4, atol=1e-4)
    right = nk.targets.expected_reward(tilted, SLOPE)
    assert abs(rewards.mean() - right) < 0.15 * abs(right - nk.targets.expected_reward(PLANE, SLOPE))


def test_a_value_is_written_and_read_back(value, tmp_path):
    nt.save_value(tmp_path / "value", value)
    again = nt.load_value(tmp_path)
    x = jnp.array([0.3, -0.7])
    assert float(again(None, x, 0.4)) == float(value(None, x, 0.4))
    experts = nt.Experts(ValueMLP((2,), SCHEDULE, width=4, depth=1), (0.5,))
    nt.save_value(tmp_path / "experts", nt.learned(experts, experts.init(jax.random.key(0)), 1.0, 2.0))
    assert nt.load_value(tmp_path / "experts").apply.apply == experts
    with pytest.raises(ValueError, match="ValueMLP"):
        nt.save_value(tmp_path / "other", nk.values.Learned(lambda w, x, t: w, 1.0))
    (tmp_path / "value" / "network.json").write_text('{"format": "ntrk_jax value 1", "network": "__import__(\'os\')"}')
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="holds no value"):
            nt.load_value(folder)


def test_experts_are_asked_and_trained_on_their_own_range():
    counter = nk.models.Counter()
    experts = nt.Experts(nk.models.Counted(lambda w, x, t: w * t + 0.0 * x[0], counter), (0.2, 0.7))
    scales = jnp.array([1.0, 10.0, 100.0])
    times = [0.1, 0.2, 0.69, 0.7, 1.0]
    seen = [float(v) for v in jax.lax.map(lambda t: experts(scales, jnp.ones(1), t), jnp.asarray(times))]
    np.testing.assert_allclose(seen, [0.1, 2.0, 6.9, 70.0, 100.0], rtol=1e-5)
    assert counter.forward == len(times), "one network a call"
    experts = nt.Experts(lambda w, x, t: w * t, (0.2, 0.7))
    draws = nt.Group(jnp.zeros((12, 1)), jnp.full((12,), -jnp.inf), jnp.zeros(12))  # the loss is exp(w t)
    keys = jax.random.split(jax.random.key(0), 200)
    slopes = jax.vmap(lambda key: jax.grad(experts.spread(nt.ValueLoss(experts, SCHEDULE)), 1)(key, 0 * scales, draws))(
        keys
    )
    mean, low, high = 3 * np.asarray(slopes), np.array([1e-3, 0.2, 0.7]), np.array([0.2, 0.7, 1.0])
    assert np.all((mean > low) & (mean < high)), "each sees times of its range alone"
    np.testing.assert_allclose(mean.mean(0), 0.5 * (low + high), rtol=0.02)
    with pytest.raises(ValueError, match="edges must increase"):
        nt.Experts(lambda w, x, t: w, (0.5, 0.5))


@pytest.fixture(scope="module")
def taught():
    """Three modes of which one pays; what is undecided between the others looks as good to the clean reward."""
    means = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    law = nk.targets.GaussianMixture(np.array([0.4, 0.4, 0.2]), means, np.tile(0.2 * np.eye(2), (3, 1, 1)))
    reward = nk.rewards.Quadratic(np.diag([2.0, 0.0]), np.zeros(2))
    model, steps = nk.models.Exact(law, SCHEDULE), nk.grid(SCHEDULE, nk.grids.uniform(10))
    paths = nt.reward_paths(jax.random.key(0), nk.methods.base(model, reward), steps, (2,), 4096)
    kept, fresh = (jax.tree.map(lambda a, i=i: a[i::2], paths) for i in (0, 1))
    network = ValueMLP((2,), SCHEDULE, 3.0, width=32, depth=1)
    return model, reward, steps, fresh, nt.distil(jax.random.key(1), network, reward, kept, num_steps=250)


def test_the_noise_aware_reward_is_the_mean_reward_to_come(taught):
    _, reward, _, fresh, value = taught
    row = 3  # after which t = 0.6

    @jax.jit
    @jax.vmap
    def said(x0):
        return reward(x0), value(jax.random.key(0), x0, fresh.t[0, row], x0, reward)

    clean, aware = (np.asarray(fresh.reward - v) for v in said(fresh.x0[:, row]))
    size = np.std(fresh.reward)
    for direction in (np.ones(2048), np.asarray(fresh.x0[:, row, 0]) ** 2, np.asarray(fresh.x0[:, row, 1])):
        assert abs(np.mean(aware * direction)) < 0.1 * size * np.sqrt(np.mean(direction**2))
    assert clean.mean() < -0.2 * size, "the clean reward flatters what is undecided"
    assert np.mean(aware**2) < 0.8 * np.mean(clean**2)


def test_pruning_by_the_noise_aware_reward_keeps_better_paths_at_equal_cost(taught):
    model, reward, steps, _, value = taught

    @jax.jit
    def best(value):
        sampler = nk.methods.ttsnap(model, reward, (2,), num_particles=8, value=value, chunk=8)
        keys = jax.random.split(jax.random.key(3), 1024)
        x = jax.random.normal(jax.random.key(4), (1024, 8, 2))
        state, _ = jax.vmap(nk.run, (None, 0, 0, None))(sampler, keys, x, steps)
        return jnp.max(jnp.where(state.log_weights == 0, state.look.value, -jnp.inf), -1), state.evals

    (clean, spent), (aware, spent_too) = best(None), best(value)
    np.testing.assert_array_equal(spent.model, spent_too.model)
    gain = np.asarray(aware - clean)
    assert gain.mean() > 4.5 * gain.std() / np.sqrt(len(gain))


def test_an_untrained_correction_changes_nothing():
    network, x0 = ValueMLP((2,), SCHEDULE, width=8), jnp.array([1.0, 2.0])
    value = nt.NoiseAware(network, network.init(jax.random.key(0)), 3.0)
    assert float(value(None, x0, 0.5, x0, jnp.sum)) == 3.0


def test_paths_without_a_reward_or_of_one_row_are_refused():
    path = nk.Single(nk.Look(PLANE_MODEL), nk.kernels.DDIM(1.0))
    for grid, words in (
        (STEPS.rows(0, 1), "two rows or more"), (STEPS, "give the sampler's Look a reward"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            noise_aware.reward_paths(jax.random.key(0), path, grid, (2,), 2)
    rewarded = nk.Single(nk.Look(PLANE_MODEL, SLOPE), nk.kernels.DDIM(1.0))
    other = nk.grid(nk.schedules.VPLinear(), nk.grids.uniform(4))
    with pytest.raises(ValueError, match="was made for"):
        noise_aware.reward_paths(jax.random.key(0), rewarded, other, (2,), 2)


def test_where_no_row_is_clean_enough_the_cleanest_is_pressed():
    paths = noise_aware.Paths(jnp.arange(3.0)[:, None], jnp.array([0.9, 0.5, 0.2]), jnp.zeros(()))
    loss = noise_aware.DistilLoss(lambda w, x0, t: w, lambda x0: x0[0], high=0.1)
    pressed = jax.vmap(lambda k: loss(k, jnp.zeros(()), paths))(jax.random.split(jax.random.key(0), 20))
    np.testing.assert_array_equal(pressed, 4.0)
