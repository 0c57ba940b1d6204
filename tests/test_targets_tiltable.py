"""Tilts by quadrature and by a cliff: against sums over fine grids in float64, and against radial integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ive

import ntrk_jax as nk
from ntrk_jax import rewards, targets

LEVELS = [(0.999, 0.05), (0.8, 0.6), (0.1, 0.995), (0.0, 1.0), (1.0, 2.0)]
POINT = np.array([0.7, -0.4])


def log_density(law, points):
    """The log-density of a mixture in the plane at points [n, 2], written out again."""
    logs = []
    for w, mean, cov in zip(*(np.asarray(a, np.float64) for a in (law.weights, law.means, law.covs)), strict=True):
        off = points - mean
        square = np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off)
        logs.append(np.log(w) - 0.5 * square - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1])
    return np.logaddexp.reduce(logs)


def double_well(x):
    return 3.0 * (-0.125 * (x[:, 0] ** 4 - 12.5 * x[:, 0] ** 2) - (x[:, 1] - 0.4 * x[:, 0]) ** 2)


def ring(x):
    return -((np.hypot(*x.T) - 2.0) ** 2) / (2 * 0.3**2)


def square_grid():
    line = np.linspace(-9.0, 9.0, 1201)
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2), np.full(
        1201**2, (line[1] - line[0]) ** 2
    )


def cliff_grid(reward):
    """Nodes and weights in the plane whose panels meet at the cliff."""
    a, edge = np.asarray(reward.a), float(reward.threshold)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u = np.concatenate([edge + 12 * (nodes - 1) / 2, edge + 12 * (nodes + 1) / 2])
    v, normal = np.linspace(-9, 9, 401), np.array([-a[1], a[0]])
    points = (u[:, None, None] * a + v[None, :, None] * normal).reshape(-1, 2)
    return points, np.outer(np.tile(6 * weights, 2), np.full(401, v[1] - v[0])).ravel()


def case(name):
    law, reward = getattr(targets, name)()
    if name == "step":
        points, cells = cliff_grid(reward)
        values = np.where(points @ np.asarray(reward.a) < float(reward.threshold), -4.0, 0.0)
    else:
        points, cells = square_grid()
        values = {"double_well": double_well, "ring": ring}[name](points)
    return law, reward, points, cells, values


@pytest.mark.parametrize("name", ["double_well", "ring", "step"])
def test_closed_forms_agree_with_sums_over_a_grid(name):
    with jax.enable_x64(True):
        law, reward, points, cells, values = case(name)
        logs = log_density(law.mixture, points)
        mass = cells * np.exp(logs + values)
        tilted, log_z = targets.tilt(law, reward)
        np.testing.assert_allclose(cells @ np.exp(logs), 1.0, rtol=1e-9)
        np.testing.assert_allclose(log_z, np.log(mass.sum()), atol=1e-7)
        mean = mass @ values / mass.sum()
        np.testing.assert_allclose(targets.expected_reward(tilted, reward), mean, rtol=1e-7)
        np.testing.assert_allclose(targets.expected_reward(law, reward), cells @ (np.exp(logs) * values), rtol=1e-5)
        centre = np.asarray(tilted.weights) @ np.asarray(tilted.means)
        np.testing.assert_allclose(centre, mass @ points / mass.sum(), atol=1e-7)
        value = nk.values.Exact(law, nk.schedules.VPCosine(), reward).function
        found = jax.jit(lambda x, a, s: (value(x, a, s), tilted.denoise(x, a, s), tilted.log_prob(x)))
        for alpha, sigma in LEVELS:
            noised = logs - 0.5 * np.sum((POINT - alpha * points) ** 2, -1) / sigma**2
            base, star = cells * np.exp(noised - noised.max()), cells * np.exp(noised - noised.max() + values)
            got = found(jnp.asarray(POINT), alpha, sigma)
            np.testing.assert_allclose(got[0], np.log(star.sum() / base.sum()), atol=3e-6)
            np.testing.assert_allclose(got[1], star @ points / star.sum(), atol=3e-6)
        here = log_density(law.mixture, POINT[None])[0] + float(reward(jnp.asarray(POINT))) - float(log_z)
        np.testing.assert_allclose(got[2], here, rtol=1e-9)


def test_the_ring_agrees_with_radial_integrals():
    r = np.linspace(1e-6, 12.0, 200_001)
    tilt = np.exp(-((r - 2.0) ** 2) / (2 * 0.3**2))
    with jax.enable_x64(True):
        law, reward = targets.ring()
        np.testing.assert_allclose(
            targets.tilt(law, reward).log_normalizer, np.log(np.trapezoid(r * np.exp(-r * r / 2) * tilt, r)), atol=1e-8
        )
        for alpha, sigma in LEVELS:
            v = 1.0 / (1.0 + alpha**2 / sigma**2)
            centre = np.hypot(*POINT) * alpha * v / sigma**2
            density = r / v * ive(0, r * centre / v) * np.exp(-((r - centre) ** 2) / (2 * v))
            value = targets.value(law, reward, 1.0, jnp.asarray(POINT), alpha, sigma)
            np.testing.assert_allclose(value, np.log(np.trapezoid(density * tilt, r)), atol=3e-6)


@pytest.mark.parametrize("name", ["double_well", "ring", "step"])
def test_draws_follow_the_tilted_law(name):
    law, reward = getattr(targets, name)()
    tilted, num = targets.tilt(law, reward).mixture, 40_000
    x, got = jax.jit(lambda law, key: (x := law.sample(key, num), jax.vmap(reward)(x)))(tilted, jax.random.key(0))
    error = float(jnp.std(got)) / num**0.5
    exact = float(targets.expected_reward(tilted, reward))
    assert abs(float(got.mean()) - exact) < 4 * error
    assert jax.jit(nk.metrics.mode_total_variation)(x, tilted) < 4 * 0.5 / num**0.5
    centre = jnp.matmul(tilted.weights, tilted.means)
    assert np.all(np.abs(x.mean(0) - centre) < 4.5 * x.std(0) / num**0.5)
    if name != "ring":  # the base law has other weights or another reward: the checks can fail
        other = law.sample(jax.random.key(2), num)
        assert abs(float(jax.vmap(reward)(other).mean()) - exact) > 4 * error


def test_the_mean_of_the_tilt_from_noise_alone():
    for name in ("double_well", "step"):
        tilted = targets.tilt(*getattr(targets, name)()).mixture
        denoise = jax.jit(type(tilted).denoise)
        mean = denoise(tilted, jnp.array([0.3, 1.0]), 0.0, 1.0)
        np.testing.assert_allclose(mean, jnp.matmul(tilted.weights, tilted.means), atol=1e-5)
        x = jnp.array([0.3, 1.0])
        np.testing.assert_allclose(denoise(tilted, x, 1.0, 0.0), x, atol=1e-6)


def test_polynomials_keep_their_closed_form():
    problem = targets.das9()
    law = targets.Tiltable(problem.mixture)
    assert targets.tilt(law, problem.reward).mixture == targets.tilt(*problem).mixture
    assert float(targets.expected_reward(law, problem.reward)) == float(targets.expected_reward(*problem))
    with jax.enable_x64(True):
        law = targets.Tiltable(targets.skewed(2).mixture)
        reward = targets.skewed(2).reward
        by_grid = targets.tilt(law, lambda x: reward(x))  # a function that does not say that it is linear
        np.testing.assert_allclose(by_grid.log_normalizer, targets.tilt(law, reward).log_normalizer, rtol=1e-6)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_draws_beyond_a_cliff_far_out_are_those_of_the_tail(side):
    """A normal law kept beyond 5 and beyond 12 standard deviations: mean phi / Phi, as many values as draws."""
    normal = targets.Tiltable(targets.GaussianMixture(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1))))
    for edge in (5.0, 12.0):
        law = targets.tilt(normal, rewards.HalfSpace(np.array([side]), edge, 300.0)).mixture
        draws = side * np.asarray(law.sample(jax.random.key(0), 4000))[:, 0]
        width = draws.std() / np.sqrt(4000)
        assert draws.min() >= edge
        assert len(np.unique(draws)) > 1000
        assert abs(draws.mean() - abs(float(law.means[0, 0]))) < 4 * width


def test_a_sum_of_other_rewards_is_one_of_them():
    law, one = targets.Tiltable(targets.skewed(2).mixture), rewards.Ring(2.0, 0.3)
    got, want = (targets.tilt(law, r).log_normalizer for r in (rewards.Weighted((one,), (1.0,)), one))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_jump_by_quadrature_has_the_value_and_the_gradient_of_its_closed_form():
    law, cliff = targets.Tiltable(targets.skewed(2).mixture), rewards.HalfSpace(jnp.array([1.0, 0.5]), 0.7, 3.0)
    both = [jax.jit(law.value_function(r)) for r in (cliff, rewards.Weighted((cliff,), (1.0,)))]
    for alpha, sigma in ((0.1, 0.995), (0.6, 0.8), (0.95, 0.3)):
        for function, tolerance in ((lambda f: f, 0.02), (jax.grad, 0.02)):
            exact, got = (function(f)(jnp.asarray(POINT), alpha, sigma) for f in both)
            np.testing.assert_allclose(got, exact, rtol=tolerance, atol=0.01)
    assert np.all(np.isfinite(jax.grad(both[1])(jnp.asarray(POINT), 1.0, 0.0)))


@jax.jit
def valued(law, reward, temperature, x):
    return targets.value(law, reward, temperature, x, 0.6, 0.8)


@pytest.mark.parametrize("temperature", [1e5, 1e8])
def test_values_at_high_temperatures_are_the_mean_reward(temperature):
    law, x = targets.Tiltable(targets.skewed(2).mixture), jnp.asarray(POINT)
    draws, _ = jax.jit(law.posterior_draws, static_argnums=4)(jax.random.key(0), x, 0.6, 0.8, 20_000)
    for reward in (rewards.HalfSpace(jnp.array([1.0, 0.5]), 0.7, 3.0), rewards.Ring(2.0, 1.0)):
        got, seen = float(valued(law, reward, temperature, x)), jax.vmap(reward)(draws)
        assert abs(got - float(seen.mean())) < 4 * float(seen.std()) / 20_000**0.5 + 1e-3
    field = targets.PowerLawField((8, 8))
    value, image = field.value_function(rewards.Quadratic(0.3, np.ones((8, 8))), temperature), jnp.ones((8, 8))
    posterior = field.posterior(image, 0.6, 0.8)
    mean = posterior.expected_reward(rewards.Quadratic(0.3, np.ones((8, 8))))
    np.testing.assert_allclose(value(image, 0.6, 0.8), mean, rtol=1e-4)


def test_a_hard_constraint_leaves_the_rest_of_the_law():
    law, hard = targets.Tiltable(targets.skewed(2).mixture), rewards.HalfSpace(jnp.array([1.0, 0.5]), 0.7, jnp.inf)
    tilted = targets.tilt(law, hard)
    share = np.exp(float(tilted.log_normalizer))
    draws = law.sample(jax.random.key(1), 20_000)
    assert abs(float(jnp.mean(jax.vmap(hard)(draws) == 0)) - share) < 4 * 0.5 / 20_000**0.5
    assert (float(tilted.mixture.expected_reward(hard)), float(targets.expected_reward(law, hard))) == (0.0, -np.inf)
    far = targets.GaussianMixture(
        np.full(2, 0.5), np.array([[-9.0, 0.0], [3.0, 0.0]]), np.tile(0.04 * np.eye(2), (2, 1, 1))
    )
    wall = rewards.Weighted((rewards.HalfSpace(jnp.array([1.0, 0.0]), -2.9, jnp.inf),), (1.0,))
    by_table = targets.tilt(targets.Tiltable(far), wall)
    np.testing.assert_allclose(by_table.log_normalizer, np.log(0.5), atol=1e-6)
    assert np.all(np.asarray(by_table.mixture.sample(jax.random.key(0), 100))[:, 0] > 0)


def test_a_grid_too_coarse_for_its_reward_is_refused():
    wide = targets.GaussianMixture(np.ones(1), np.zeros((1, 2)), 9 * np.eye(2)[None])
    thin, noise = rewards.Ring(3.0, 0.1), (jnp.zeros(2), 0.0, 1.0)
    with pytest.raises(ValueError, match="they miss log Z by 0.67; give Tiltable a larger num_nodes"):
        nk.values.Exact(targets.Tiltable(wide), nk.schedules.VPCosine(), thin)
    fine = targets.Tiltable(wide, num_nodes=161)
    exact = float(targets.tilt(fine, thin).log_normalizer)
    np.testing.assert_allclose(fine.value_function(thin)(*noise), exact, atol=0.01)


def test_values_are_made_in_a_program_and_in_stacks():
    law, ring, x = targets.Tiltable(targets.skewed(2).mixture), rewards.Ring(2.0, 1.0), jnp.asarray(POINT)
    exact, other = nk.values.Exact(law, nk.schedules.VPCosine(), ring), nk.schedules.VPLinear()
    want = targets.value(law, ring, 1.0, x, 0.6, 0.8)
    np.testing.assert_allclose(jax.jit(lambda x: targets.value(law, ring, 1.0, x, 0.6, 0.8))(x), want, rtol=1e-6)
    made = jax.jit(lambda x: nk.replace(exact, schedule=other)(None, x, 0.4))(x)
    np.testing.assert_allclose(made, nk.replace(exact, schedule=other)(None, x, 0.4), rtol=1e-6)
    pair = law.value_function(ring, jnp.array([1.0, 2.0]))
    both = jax.vmap(lambda t: nk.replace(pair, temperature=t)(x, 0.6, 0.8))(pair.temperature)
    np.testing.assert_allclose(both[0], want, rtol=1e-6)
    assert nk.values.Exact(law, other, rewards.Ring(jnp.array([2.0, 1.5]), 1.0)).temperature == 1.0


def test_gradients_at_high_temperatures_are_those_of_the_mean():
    law, x = targets.Tiltable(targets.skewed(2).mixture), jnp.asarray(POINT)
    for reward in (rewards.HalfSpace(jnp.array([1.0, 0.5]), 0.7, 3.0), rewards.Ring(2.0, 1.0)):
        low, high = (jax.jit(jax.grad(valued, 3))(law, reward, t, x) for t in (1e4, 1e9))
        np.testing.assert_allclose(high, low, rtol=2e-3, atol=1e-4)


def test_a_half_space_is_known_by_its_plane():
    law = targets.tilt(targets.Tiltable(targets.skewed(2).mixture), rewards.HalfSpace(jnp.array([1.0, 0.5]), 0.7, 3.0))
    alike = [(jnp.array([1.0, 0.5]), jnp.float32(0.7)), (jnp.array([[2.0, 1.0]]), 1.4), ([1.0, 0.5], 0.7)]
    means = [float(law.mixture.expected_reward(rewards.HalfSpace(*plane, 3.0))) for plane in alike]
    np.testing.assert_allclose(means, means[0], rtol=1e-6)


def test_answers_have_the_shape_of_the_question_and_floats_for_integers():
    law = targets.Tiltable(targets.skewed(2).mixture)
    for reward in (rewards.HalfSpace(jnp.array([1.0, 0.5]), 0.7, 3.0), rewards.Ring(2.0, 1.0)):
        tilted = targets.tilt(law, reward).mixture
        whole = tilted.denoise(jnp.array([[1, 2]]), 0.6, 0.8)
        assert whole.shape == (1, 2)
        np.testing.assert_allclose(whole[0], tilted.denoise(jnp.array([1.0, 2.0]), 0.6, 0.8), rtol=1e-6)


def test_what_cannot_be_tilted():
    one = targets.skewed(2).mixture
    for law in (targets.PowerLawField((4, 4)), None, one.means):
        with pytest.raises(TypeError, match="Tiltable needs a GaussianMixture"):
            targets.Tiltable(law)
    cliff = rewards.HalfSpace(jnp.array([1.0, 0.5]), 0.7, 3.0)
    for law in (targets.tilt(targets.Tiltable(one), cliff).mixture,):
        with pytest.raises(ValueError, match="of its own plane"):
            law.expected_reward(nk.replace(cliff, threshold=-1.0))
    for bad, words in ((np.zeros(2), "normal a that is not zero"), (np.array([1.0, np.nan]), "finite normal")):
        with pytest.raises(ValueError, match=words):
            rewards.HalfSpace(bad)
    with pytest.raises(ValueError, match="must have as many entries as the law, 2, got 3"):
        targets.tilt(targets.Tiltable(one), rewards.HalfSpace(np.ones(3)))
    deep = targets.Tiltable(targets.skewed(3).mixture)
    with pytest.raises(TypeError, match="in 3 dimensions .* got Ring"):
        targets.tilt(deep, rewards.Ring(1.0, 1.0))
    with pytest.raises(ValueError, match="stay within 8 standard deviations"):
        targets.tilt(targets.Tiltable(targets.skewed(2).mixture), lambda x: 30.0 * x[0])
    with pytest.raises(ValueError, match="outside jax.jit"):
        jax.jit(lambda w: targets.tilt(targets.ring().mixture, rewards.Ring(2.0, w)).log_normalizer)(0.3)
    with pytest.raises(ValueError, match="temperature must be positive"):
        targets.tilt(*targets.ring(), temperature=0.0)
    with pytest.raises(TypeError, match="half-space rewards, got Ring"):
        targets.tilt(*targets.step()).mixture.expected_reward(rewards.Ring(1.0, 1.0))


def test_a_cliff_in_any_dimension_is_a_mass_below_a_plane():
    with jax.enable_x64(True):
        law = targets.Tiltable(targets.skewed(5).mixture)
        reward = rewards.HalfSpace(jnp.arange(1.0, 6.0), 0.3, 2.5)
        below = jnp.mean(jax.vmap(reward)(law.sample(jax.random.key(0), 20_000)) < 0)
        mean = float(targets.expected_reward(law, reward))
        assert abs(mean + 2.5 * float(below)) < 4 * 2.5 * 0.5 / 20_000**0.5
        log_z = np.log1p(mean / 2.5 * (1 - np.exp(-2.5)))
        np.testing.assert_allclose(targets.tilt(law, reward).log_normalizer, log_z, rtol=1e-9)


def test_gradients_where_there_are_any():
    law, reward = targets.step()
    value = nk.values.Exact(law, nk.schedules.VPCosine(), reward)
    grad = jax.jit(jax.grad(lambda x: value(jax.random.key(0), x, 0.5)))(jnp.zeros(2))
    assert jnp.vdot(grad, reward.a) > 0.1
    with pytest.raises(ValueError, match="HalfSpace gives values only"):
        nk.methods.dps(nk.models.Exact(law, nk.schedules.VPCosine()), reward, (2,))
    assert jnp.all(jnp.isfinite(jax.grad(rewards.Ring(1.0, 0.5))(jnp.zeros(3))))
    with pytest.raises(ValueError, match="radius >= 0 and width > 0"):
        rewards.Ring(1.0, 0.0)
