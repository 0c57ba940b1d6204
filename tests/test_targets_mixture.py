"""Mixtures against quadrature, at the ends of the noise scale, and in high dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax import rewards, targets

LEVELS = [(1.0, 0.1), (0.8, 0.6), (0.3, 0.95), (0.0, 1.0), (1.0, 80.0)]


def problem(dim):
    """Weights, means, covs and a start x, without any symmetry."""
    if dim == 1:
        return np.array([0.2, 0.7, 0.1]), np.array([[-1.5], [0.4], [2.1]]), np.array([[[0.3]], [[0.15]], [[0.6]]])
    covs = np.array([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.2], [-0.2, 0.7]], [[0.9, 0.1], [0.1, 0.2]]])
    return np.array([0.2, 0.7, 0.1]), np.array([[-1.5, 0.3], [0.4, -0.8], [1.6, 1.1]]), covs


def quadrature(dim, points):
    """Nodes [M, dim], and the density times the cell at each: written with inverses, not eigenvectors."""
    axis = np.linspace(-9.0, 9.0, points)
    nodes = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
    mass = np.zeros(len(nodes))
    for w, m, s in zip(*problem(dim), strict=True):
        off = nodes - m
        mass += w * np.exp(-0.5 * np.sum(off @ np.linalg.inv(s) * off, -1)) / np.sqrt(np.linalg.det(2 * np.pi * s))
    return nodes, mass * (axis[1] - axis[0]) ** dim


def reward_cases(dim):
    bent = np.array([[0.7]]) if dim == 1 else np.array([[1.2, -0.5], [-0.5, -0.6]])  # indefinite, yet normalisable
    a = np.array([1.3, -0.7])[:dim]
    return [(rewards.Linear(a, 0.4), lambda x: x @ a + 0.4), (
        rewards.Quadratic(bent, a, -0.3), lambda x: -0.5 * np.sum(x @ bent * x, -1) + x @ a - 0.3)]  # fmt: skip


def by_quadrature(dim, nodes, mass, x, alpha, sigma):
    """log p_t(x), the weights of the nodes given x, the posterior mean and the score."""
    logs = -0.5 * np.sum((x - alpha * nodes) ** 2, -1) / sigma**2
    like = mass * np.exp(logs - logs.max())
    log_p = np.log(like.sum()) + logs.max() - 0.5 * dim * np.log(2 * np.pi * sigma**2)
    given = like / like.sum()
    mean = given @ nodes
    return log_p, given, mean, (alpha * mean - x) / sigma**2


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-5), (False, 1e-3)])
def test_closed_forms_agree_with_quadrature(dim, x64, tolerance):
    nodes, mass = quadrature(dim, 8001 if dim == 1 else 481)
    beta = 1.7
    with jax.enable_x64(x64):
        target = targets.GaussianMixture(*problem(dim))
        assert target.means.dtype == (jnp.float64 if x64 else jnp.float32)

        def close(got, want):
            np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance)

        log_prob_at, denoise, score = (jax.jit(f) for f in (target.log_prob_at, target.denoise, target.score))
        cases = reward_cases(dim)
        values = [jax.jit(lambda *a, r=r: targets.value(target, r, beta, *a)) for r, _ in cases]
        for alpha, sigma in LEVELS:
            x = np.array([0.9, -1.4])[:dim] * np.hypot(alpha, sigma)
            point = jnp.asarray(x, target.means.dtype)
            log_p, given, mean, slope = by_quadrature(dim, nodes, mass, x, alpha, sigma)
            close(log_prob_at(point, alpha, sigma), log_p)
            close(denoise(point, alpha, sigma), mean)
            close(score(point, alpha, sigma) * sigma, slope * sigma)
            for value, (_, function) in zip(values, cases, strict=True):
                close(value(point, alpha, sigma), beta * np.log(given @ np.exp(function(nodes) / beta)))
        for reward, function in cases:
            tilted = targets.tilt(target, reward, beta)
            law = mass * np.exp(function(nodes) / beta)
            close(tilted.log_normalizer, np.log(law.sum()))
            close(tilted.mixture.mean(), law @ nodes / law.sum())
            close(targets.expected_reward(tilted.mixture, reward), law @ function(nodes) / law.sum())
            close(targets.expected_reward(target, reward), mass @ function(nodes))


def test_the_gradient_of_the_value_is_its_slope():
    with jax.enable_x64(True):
        target = targets.GaussianMixture(*problem(2))
        for reward, _ in reward_cases(2):
            at = jax.jit(target.value_function(reward, 1.7))
            gradient, x, step = jax.jit(jax.grad(at)), jnp.array([0.9, -1.4]), 1e-5
            for level in [(1.0, 0.0), *LEVELS]:
                slope = [(at(x + step * e, *level) - at(x - step * e, *level)) / (2 * step) for e in np.eye(2)]
                np.testing.assert_allclose(gradient(x, *level), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "reward", "log_z"), [("das9", -0.2907, -1.4397), ("das8", -1.3400, -2.9678)])
def test_published_mixtures(name, reward, log_z):
    problem = getattr(targets, name)()
    tilted = targets.tilt(*problem)
    assert abs(targets.expected_reward(tilted.mixture, problem.reward) - reward) < 1e-4
    assert abs(tilted.log_normalizer - log_z) < 1e-4


def test_the_ends_of_the_noise_scale():
    target = targets.skewed(16).mixture
    x = jnp.linspace(-2.0, 2.0, 16)
    np.testing.assert_array_equal(target.denoise(x, 1.0, 0.0), x)
    np.testing.assert_allclose(target.denoise(x, 1.0, 1e-4), x, atol=1e-5)
    np.testing.assert_allclose(target.denoise(x, 0.0, 1.0), target.mean(), atol=1e-6)
    np.testing.assert_allclose(target.denoise(80.0 * x, 1.0, 8e5), target.mean(), atol=1e-3)
    reward = rewards.Quadratic(0.3, x)
    np.testing.assert_allclose(targets.value(target, reward, 1.0, x, 1.0, 0.0), reward(x), rtol=1e-4)
    log_z = targets.tilt(target, reward).log_normalizer
    np.testing.assert_allclose(targets.value(target, reward, 1.0, x, 0.0, 1.0), log_z, rtol=1e-5)


def test_float32_in_high_dimension():
    dim, rng = 128, np.random.default_rng(0)
    problem = targets.skewed(dim)
    bent = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    raw = [np.asarray(a, np.float64) for a in (problem.mixture.means, problem.mixture.covs, problem.reward.a)]
    answers = []
    for x64 in (True, False):
        with jax.enable_x64(x64):
            target = targets.GaussianMixture(problem_weights := np.asarray([1, 2, 3]) / 6, *raw[:2])
            assert problem_weights.sum() == 1
            forms = rewards.Linear(raw[2]), rewards.Quadratic(bent @ bent.T, raw[2])
            functions = [target.value_function(reward) for reward in forms]

            def everything(x, alpha, sigma, target=target, functions=functions):
                answer = [target.denoise(x, alpha, sigma), sigma * target.score(x, alpha, sigma)]
                for function in functions:
                    value, grad = jax.value_and_grad(function)(x, alpha, sigma)
                    answer += [value, sigma * grad]
                return answer

            ask, rows = jax.jit(everything), []
            for alpha, sigma in [(1.0, 1e-3), (0.999, 0.045), (0.7, 0.714), (0.05, 0.9987), (1.0, 80.0)]:
                x = jnp.asarray(alpha * raw[0][0] + np.hypot(0.7 * alpha, sigma) * np.cos(np.arange(dim) ** 2))
                rows.append([np.asarray(a, np.float64) for a in ask(x, alpha, sigma)])
            answers.append(rows)
    for want, got in zip(*answers, strict=True):
        for w, g in zip(want, got, strict=True):
            assert np.abs(w - g).max() <= 1e-3 * max(1.0, np.abs(w).max()), (w, g)


def test_draws_have_the_law_of_the_mixture():
    target = targets.skewed(4).mixture
    x = np.asarray(target.sample(jax.random.key(0), 20000), np.float64)
    std = np.sqrt(np.diag(target.cov()) / len(x))

    def far(draws):
        return np.abs((draws.mean(0) - target.mean()) / std).max()

    assert far(x) < 4.0
    np.testing.assert_allclose(np.cov(x.T), target.cov(), atol=0.06)
    assert far(-x) > 4.0  # the check can fail: the mixture has no symmetry


def test_draws_of_the_posterior_and_their_weights():
    target, x = targets.GaussianMixture(*problem(2)), jnp.array([0.2, 0.1])
    draws, weights = target.posterior_draws(jax.random.key(0), x, 0.7, 0.7, 20000)
    law = target.posterior(x, 0.7, 0.7)
    np.testing.assert_array_equal(weights, 0.0)
    np.testing.assert_allclose(law.mean(), target.denoise(x, 0.7, 0.7), atol=1e-5)
    np.testing.assert_allclose(draws.mean(0), law.mean(), atol=4 * np.sqrt(np.diag(law.cov()).max() / 20000))
    np.testing.assert_allclose(np.cov(draws.T), law.cov(), atol=0.02)
    y = jnp.array([0.5, -0.5])
    bayes = target.log_prob(y) - target.log_prob_at(x, 0.7, 0.7) - jnp.sum((x - 0.7 * y) ** 2) / 0.98
    np.testing.assert_allclose(law.log_prob(y), bayes - jnp.log(2 * jnp.pi * 0.49), rtol=1e-4)


def test_samples_of_any_shape_and_dtype():
    target = targets.skewed(12).mixture
    x = jax.random.normal(jax.random.key(0), (2, 3, 2))
    flat = target.denoise(x.reshape(12), 0.8, 0.6)
    np.testing.assert_array_equal(target.denoise(x, 0.8, 0.6).reshape(12), flat)
    assert target.score(x, 0.8, 0.6).shape == x.shape
    low = target.denoise(x.astype(jnp.bfloat16), 0.8, 0.6)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32).reshape(12), flat, atol=0.03)
    with pytest.raises(ValueError, match="x must be one sample with 12 entries"):
        target.denoise(x[0], 0.8, 0.6)


def test_made_inside_jit_it_is_the_same():
    weights, means, covs = (jnp.asarray(a) for a in problem(2))
    x = jnp.array([0.3, -0.2])
    for reward, _ in reward_cases(2):

        def inside(means, temperature, reward=reward):
            target = targets.GaussianMixture(weights, means, covs)
            tilted = targets.tilt(target, reward, temperature)
            value = targets.value(target, reward, temperature, x, 0.6, 0.8)
            return tilted.log_normalizer, tilted.mixture.means, value

        outside = inside(means, 1.3)
        for a, b in zip(jax.jit(inside)(means, 1.3), outside, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_component_that_the_tilt_rules_out_keeps_its_value():
    """Its tilted weight underflows in float32; the value at a point that belongs to it must not."""
    target = targets.GaussianMixture(np.array([0.5, 0.5]), np.array([[0.0], [40.0]]), np.ones((2, 1, 1)))
    for reward in (rewards.Linear(np.array([-10.0])), rewards.Quadratic(np.array([[1.0]]), np.array([0.0]))):
        np.testing.assert_allclose(
            targets.value(target, reward, 1.0, jnp.array([40.0]), 1.0, 0.0), reward(jnp.array([40.0])), rtol=1e-5
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, m, s: (2 * w, m, s), "weights must be normalised"),
        (lambda w, m, s: (w - np.array([0.4, -0.4, 0.0]), m, s), "weights must be normalised"),
        (lambda w, m, s: (w, m, s + np.array([[0.0, 0.1], [0.0, 0.0]])), "covs must be symmetric"),
        (lambda w, m, s: (w, m, s - np.eye(2)), "covs must be positive definite"),
        (lambda w, m, s: (w, m, s * np.inf), "must be finite"),
        (lambda w, m, s: (w, m[:2], s), "a mixture needs weights"),
        (lambda w, m, s: (w, m, s[:, 0]), "a mixture needs weights"),
        (lambda w, m, s: (w[None], m, s), "a mixture needs weights"),
    ],
)
def test_bad_mixtures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        targets.GaussianMixture(*change(*problem(2)))


def test_float32_rounding_of_weights_and_lists_are_accepted():
    weights = np.full(7, 1 / 7, np.float32)
    targets.GaussianMixture(weights, np.zeros((7, 1)), np.ones((7, 1, 1)))
    assert targets.GaussianMixture([0.5, 0.5], [[0], [1]], [[[1.0]], [[2.0]]]).dim == 1


def test_bad_tilts_are_refused():
    target = targets.GaussianMixture(*problem(2))
    with pytest.raises(ValueError, match="the tilt must be normalisable"):
        targets.tilt(target, rewards.Quadratic(-1.2 * np.eye(2)))
    targets.tilt(target, rewards.Quadratic(-0.9 * np.eye(2)), 1.0)
    with pytest.raises(ValueError, match="the tilt must be normalisable"):
        targets.tilt(target, rewards.Quadratic(-0.9 * np.eye(2)), 0.7)
    with pytest.raises(ValueError, match="temperature must be positive"):
        targets.tilt(target, rewards.Linear(np.ones(2)), 0.0)
    with pytest.raises(TypeError, match="linear or quadratic"):
        targets.tilt(target, jnp.sum)
    for reward in (rewards.Linear(np.ones(3)), rewards.Linear(np.ones(1)), rewards.Linear(np.ones(2), np.ones(3))):
        with pytest.raises(ValueError, match="as many entries as the law"):
            targets.tilt(target, reward)
    for reward in (rewards.Linear(np.array([1.0, np.nan])), rewards.Quadratic(1.0, np.full(2, np.inf))):
        with pytest.raises(ValueError, match="the reward must be finite"):
            targets.tilt(target, reward)


def test_skewed_problems_are_tilted_visibly():
    for dim in (1, 2, 16):
        law, reward = targets.skewed(dim)
        x = law.sample(jax.random.key(0), 4000)
        moved = targets.expected_reward(targets.tilt(law, reward).mixture, reward) - targets.expected_reward(
            law, reward
        )
        assert 1.0 < moved / jnp.std(jax.vmap(reward)(x)) < 3.0
    assert targets.skewed(3) == targets.skewed(3)
    assert targets.skewed(3) != targets.skewed(3, seed=1)
    with pytest.raises(ValueError, match="must be at least 1"):
        targets.skewed(0)


def test_traced_weights_are_normalised_for_every_answer():
    weights, means, covs = problem(1)

    @jax.jit
    def answers(weights):
        mixture = targets.GaussianMixture(weights, means, covs)
        return mixture.mean(), mixture.log_prob(jnp.zeros(1))

    for got, want in zip(answers(3.0 * weights), answers(weights), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
