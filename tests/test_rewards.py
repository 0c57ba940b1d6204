"""Rewards: their values, their gradients, how they compose, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax import rewards, targets

X = jnp.array([0.5, -1.0, 2.0])
A = np.array([1.0, 2.0, -0.5])
P = np.array([[1.0, 0.2, 0.0], [0.2, -0.5, 0.3], [0.0, 0.3, 2.0]])


def test_linear_and_quadratic_have_the_gradients_they_claim():
    linear, quadratic = rewards.Linear(A, 0.5), rewards.Quadratic(P, A, 0.5)
    np.testing.assert_allclose(linear(X), -2.5 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(linear)(X), A, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(quadratic)(X), A - P @ np.asarray(X), rtol=1e-5)
    np.testing.assert_allclose(jax.hessian(quadratic)(X), -P, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(quadratic(jnp.zeros(3)), 0.5)
    np.testing.assert_allclose(rewards.Quadratic(2.0)(X), -float(jnp.sum(X**2)), rtol=1e-6)


def test_samples_of_any_shape_and_dtype():
    image = jnp.arange(12.0).reshape(2, 3, 2)
    reward = rewards.Linear(np.ones((2, 3, 2)))
    assert float(reward(image)) == float(reward(image.reshape(12))) == 66.0
    assert reward(image.astype(jnp.bfloat16)).dtype == jnp.float32
    assert jax.vmap(reward)(jnp.stack([image, image])).shape == (2,)
    with pytest.raises(ValueError, match="has 12 entries"):
        reward(image[0])


def test_weighted_sums_keep_their_closed_form():
    parts = rewards.Linear(A, 0.5), rewards.Quadratic(P, A, 0.5), rewards.Quadratic(0.3)
    both = rewards.Weighted(parts, (2.0, -0.5, 1.0))
    np.testing.assert_allclose(both(X), 2 * parts[0](X) - 0.5 * parts[1](X) + parts[2](X), rtol=1e-6)
    p, b, c = both.quadratic()
    np.testing.assert_allclose(rewards.Quadratic(p, b, c)(X), both(X), rtol=1e-5)
    numbers = rewards.Weighted((rewards.Linear(A), rewards.Quadratic(0.3)), (1.0, 2.0))
    np.testing.assert_allclose(rewards.Quadratic(*numbers.quadratic())(X), numbers(X), rtol=1e-5)
    assert rewards.Weighted(parts[:1], (2.0,)).quadratic()[0] is None
    with pytest.raises(ValueError, match="as many weights as rewards"):
        rewards.Weighted(parts, (1.0,))
    with pytest.raises(TypeError, match="linear or quadratic rewards"):
        rewards.Weighted((rewards.Clipped(parts[0]),), (1.0,)).quadratic()


def test_sums_without_a_linear_part_are_tilted():
    law = targets.GaussianMixture(np.ones(1), np.ones((1, 2)), np.eye(2)[None])
    for part in (rewards.Quadratic(0.5), rewards.Quadratic(0.5 * np.eye(2))):
        both = rewards.Weighted((part, part), (0.5, 1.5))
        one = rewards.Quadratic(1.0)
        for of in (lambda r: targets.tilt(law, r).log_normalizer, lambda r: targets.expected_reward(law, r)):
            np.testing.assert_allclose(of(both), of(one), rtol=1e-6)


def test_clipped_stops_value_and_gradient():
    reward = rewards.Clipped(rewards.Linear(A), -1.0, 1.0)
    assert float(reward(X)) == -1.0
    np.testing.assert_array_equal(jax.grad(reward)(X), 0.0)
    np.testing.assert_allclose(jax.grad(reward)(0.1 * X), A, rtol=1e-6)
    with pytest.raises(ValueError, match="low < high"):
        rewards.Clipped(rewards.Linear(A), 1.0, 1.0)


def test_clipped_counts_have_bounds_between_whole_numbers():
    count = lambda x0: jnp.sum(x0 > 0)  # noqa: E731
    got = [float(rewards.Clipped(count, 0.5, 1.5)(x)) for x in jnp.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])]
    assert got == [0.5, 1.0, 1.5]
    assert float(rewards.Clipped(count, 0.0)(jnp.ones(2))) == 2.0


def test_functions_in_a_sum_are_part_of_the_program():
    both = rewards.Weighted((lambda x0: x0.sum(), rewards.Linear(np.ones(2))), (1.0, 0.5))
    assert float(jax.jit(lambda reward, x: reward(x))(both, jnp.ones(2))) == 3.0


def test_external_calls_the_host_and_has_no_gradient():
    shapes = []

    def largest(x):
        shapes.append(x.shape)
        return x.max(tuple(range(x.ndim - 2, x.ndim))) if x.ndim == 3 else x.max()

    x = jnp.arange(24.0).reshape(4, 2, 3)
    for batched, calls in ((False, [(2, 3)] * 4), (True, [(4, 2, 3)])):
        shapes.clear()
        reward = rewards.External(largest, batched)
        assert jax.jit(jax.vmap(reward))(x).tolist() == [5.0, 11.0, 17.0, 23.0]
        assert shapes == calls
        assert float(reward(x[0])) == 5.0
    assert not rewards.External.differentiable
    assert not rewards.Weighted((rewards.Linear(A), reward), (1.0, 1.0)).differentiable
    assert not rewards.Clipped(reward).differentiable
    assert rewards.Weighted((rewards.Linear(A),), (1.0,)).differentiable


def test_an_external_function_must_return_one_number_a_sample():
    with pytest.raises(Exception, match=r"must return one number.*got shape \(2,\)"):
        rewards.External(lambda x: x)(jnp.ones(2)).block_until_ready()
    with pytest.raises(Exception, match="returned None; has it a return"):
        rewards.External(lambda x: None)(jnp.ones(2)).block_until_ready()
    with pytest.raises(Exception, match=r"must return 4 numbers for as many samples"):
        jax.vmap(rewards.External(np.sum, batched=True))(jnp.ones((4, 2))).block_until_ready()


def test_neural_rewards_read_a_logit():
    weights = jnp.asarray(P, jnp.float32)

    def apply(w, x):
        return w @ x

    np.testing.assert_allclose(rewards.Neural(apply, weights, 2)(X), (weights @ X)[2])
    normalised = sum(jnp.exp(rewards.Neural(apply, weights, k, kind="log_prob")(X)) for k in range(3))
    np.testing.assert_allclose(normalised, 1.0, rtol=1e-6)
    np.testing.assert_allclose(rewards.Neural(lambda w, x: jnp.sum(w) * x[0], weights)(X), jnp.sum(weights) * 0.5)
    by_label = jax.vmap(lambda k: rewards.Neural(apply, weights, k)(X))(jnp.arange(3))
    np.testing.assert_allclose(by_label, weights @ X, rtol=1e-6)
    with pytest.raises(ValueError, match="kind must be one of"):
        rewards.Neural(apply, weights, 0, kind="softmax")
    with pytest.raises(ValueError, match="logits"):
        rewards.Neural(apply, weights)(X)
    with pytest.raises(ValueError, match=r"label must lie in 0 \.\.\. 2, got 7"):
        rewards.Neural(apply, weights, 7)(X)
    with pytest.raises(ValueError, match="'log_prob' is that of a label"):
        rewards.Neural(apply, weights, kind="log_prob")


def test_the_tilt_by_a_likelihood_is_the_posterior():
    """Kalman's formulas, written with the gain: mean, and the evidence N(y; A mean, A cov A' + std^2)."""
    cov, mean, a, y, std = np.array([[1.0, 0.4], [0.4, 0.5]]), np.array([0.3, -0.2]), np.array([[1.0, 2.0]]), [1.5], 0.5
    reward = rewards.LinearGaussian(a, np.array(y), std)
    prior = targets.GaussianMixture(np.ones(1), mean[None], cov[None])
    tilted = targets.tilt(prior, reward)
    spread = a @ cov @ a.T + std**2
    gain = cov @ a.T / spread
    np.testing.assert_allclose(tilted.mixture.means[0], mean + gain @ (y - a @ mean), rtol=1e-5)
    np.testing.assert_allclose(tilted.mixture.covs[0], cov - gain @ a @ cov, rtol=1e-4, atol=1e-5)
    evidence = -0.5 * (y - a @ mean) ** 2 / spread - 0.5 * np.log(2 * np.pi * spread)
    np.testing.assert_allclose(tilted.log_normalizer, evidence[0, 0], rtol=1e-5)
    x = jnp.array([0.7, 0.1])
    np.testing.assert_allclose(rewards.Quadratic(*reward.quadratic())(x), reward(x), rtol=1e-5)
    np.testing.assert_allclose(reward.residual(x), [0.6], rtol=1e-5)
    with pytest.raises(ValueError, match="operator \\[M, N\\]"):
        rewards.LinearGaussian(a, np.zeros(2))
    with pytest.raises(ValueError, match="noise_std must be positive"):
        rewards.LinearGaussian(a, np.array(y), 0.0)


def test_an_observation_of_little_noise_keeps_its_digits():
    """Terms of size 1 / std^2 cancel: in float32 the evidence was off by 0.8, and log Z of a tilt with it."""
    rng = np.random.default_rng(0)
    root, a, y, std = rng.normal(size=(8, 8)), rng.normal(size=(3, 8)), rng.normal(size=3), 0.003
    prior = targets.GaussianMixture(np.ones(1), rng.normal(size=(1, 8)), (root @ root.T / 8 + 0.1 * np.eye(8))[None])
    mean, cov = (np.asarray(part[0], np.float64) for part in (prior.means, prior.covs))
    a, y, std = (np.asarray(jnp.asarray(part), np.float64) for part in (a, y, std))
    spread, off = a @ cov @ a.T + std**2 * np.eye(3), y - a @ mean
    evidence = -0.5 * (off @ np.linalg.solve(spread, off) + np.linalg.slogdet(2 * np.pi * spread)[1])
    after = mean + cov @ a.T @ np.linalg.solve(spread, off)
    left = cov - cov @ a.T @ np.linalg.solve(spread, a @ cov)
    square = np.sum((y - a @ after) ** 2) + np.trace(a @ left @ a.T)
    expected = -0.5 * square / std**2 - 1.5 * np.log(2 * np.pi * std**2)
    one = rewards.LinearGaussian(jnp.asarray(a), jnp.asarray(y), std)
    for reward in (one, rewards.Weighted((one, one), (0.25, 0.75))):
        tilted = targets.tilt(prior, reward)
        np.testing.assert_allclose(tilted.log_normalizer, evidence, atol=2e-4)
        np.testing.assert_allclose(tilted.mixture.means[0], after, atol=2e-5)
        np.testing.assert_allclose(targets.value(prior, reward, 1.0, jnp.zeros(8), 0.0, 1.0), evidence, atol=2e-4)
        np.testing.assert_allclose(targets.expected_reward(tilted.mixture, reward), expected, atol=0.02)


def test_bad_forms_are_refused():
    with pytest.raises(ValueError, match="precision must be symmetric"):
        rewards.Quadratic(np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros(2))
    with pytest.raises(ValueError, match="precision must be a number or a matrix"):
        rewards.Quadratic(np.eye(3), np.zeros(2))
    with pytest.raises(ValueError, match="precision must be a number or a matrix"):
        rewards.Quadratic(np.ones(2), np.zeros(2))


def test_a_sample_that_is_no_number_has_no_reward():
    cliff = rewards.HalfSpace(np.array([1.0, 0.0]), 0.5, 4.0)
    assert np.isnan(cliff(jnp.array([np.nan, 0.0])))
