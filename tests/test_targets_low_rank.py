"""Mixtures with one low-rank covariance: against the dense mixture with the same covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax import rewards, targets
from ntrk_jax.targets import GaussianMixture, LowRankMixture

LEVELS = [(1.0, 0.0), (0.999, 0.05), (0.8, 0.6), (0.1, 0.995), (0.0, 1.0), (1.0, 2.0)]


def dense(law):
    basis, variances = np.asarray(law.basis, np.float64), np.asarray(law.variances, np.float64)
    cov = float(law.variance) * np.eye(law.dim) + basis.T @ np.diag(variances - float(law.variance)) @ basis
    return GaussianMixture(law.weights, law.means, np.tile(cov, (law.num_components, 1, 1)))


def small():
    """Three components in five dimensions, two directions of their own, and an observation of two numbers."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((5, 2)))[0].T
    law = LowRankMixture(np.array([0.2, 0.5, 0.3]), rng.standard_normal((3, 5)), 0.6, basis, np.array([0.2, 1.7]))
    return law, rewards.LinearGaussian(rng.standard_normal((2, 5)), rng.standard_normal(2), 0.7), rng.standard_normal(5)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_closed_forms_agree_with_the_dense_mixture(temperature):
    with jax.enable_x64(True):
        law, reward, x = small()
        other = dense(law)
        star, log_z = targets.tilt(law, reward, temperature)
        want, want_log_z = targets.tilt(other, reward, temperature)
        np.testing.assert_allclose(log_z, want_log_z, rtol=1e-9)
        np.testing.assert_allclose(star.weights, want.weights, rtol=1e-9)
        np.testing.assert_allclose(star.means, want.means, rtol=1e-9)
        np.testing.assert_allclose(dense(star).covs, want.covs, atol=1e-9)
        assert star.basis.shape == (4, 5)
        np.testing.assert_allclose(star.expected_reward(reward), want.expected_reward(reward), rtol=1e-9)

        @jax.jit
        def answers(one, value, x, alpha, sigma):
            return (
                one.log_prob_at(x, alpha, sigma),
                one.denoise(x, alpha, sigma),
                jax.value_and_grad(value)(x, alpha, sigma),
            )

        pairs = [
            [(one, one.value_function(reward, temperature)) for one in pair] for pair in ((law, other), (star, want))
        ]
        for alpha, sigma in LEVELS[1:]:
            for (left, value), (right, expected) in pairs:
                got, exact = answers(left, value, x, alpha, sigma), answers(right, expected, x, alpha, sigma)
                for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)
        np.testing.assert_array_equal(law.denoise(x, 1.0, 0.0), x)


def test_two_observations_in_turn_are_one_of_both():
    with jax.enable_x64(True):
        law, both, _ = small()
        first, second = (
            rewards.LinearGaussian(both.operator[i : i + 1], both.observation[i : i + 1], 0.7) for i in (0, 1)
        )
        turn = targets.tilt(targets.tilt(law, first).mixture, second).mixture
        np.testing.assert_allclose(turn.means, targets.tilt(law, both).mixture.means, rtol=1e-9)
        np.testing.assert_allclose(dense(turn).covs, dense(targets.tilt(law, both).mixture).covs, atol=1e-9)


def test_draws_have_the_moments_of_the_law():
    law, reward, x = small()
    star, num = targets.tilt(law, reward).mixture, 40_000
    draws = np.asarray(star.sample(jax.random.key(0), num))
    want = dense(star)
    assert np.abs(draws.mean(0) - np.asarray(want.mean())).max() < 4.5 * draws.std() / num**0.5
    cov = np.asarray(want.cov())
    assert np.abs(np.cov(draws.T) - cov).max() < 5 * 2**0.5 * np.diag(cov).max() / num**0.5
    assert np.abs(np.cov(draws.T) - np.asarray(dense(law).cov())).max() > 0.2  # the check can fail
    given, logs = star.posterior_draws(jax.random.key(1), jnp.asarray(x, jnp.float32), 0.8, 0.6, num)
    np.testing.assert_allclose(
        given.mean(0), star.denoise(jnp.asarray(x, jnp.float32), 0.8, 0.6), atol=4.5 * 1.5 / num**0.5
    )
    assert not np.any(logs)


def test_single_precision_far_from_the_origin():
    problem = targets.cardoso(800, observed=4)
    x = problem.mixture.sample(jax.random.key(0), 1)[0]
    with jax.enable_x64(True):
        wide = targets.cardoso(800, observed=4)
        tilted = targets.tilt(*wide).mixture
        exact = [tilted.denoise(np.asarray(x, np.float64), a, s) for a, s in LEVELS]
    tilted = targets.tilt(*problem).mixture
    for want, (alpha, sigma) in zip(exact, LEVELS, strict=True):
        np.testing.assert_allclose(tilted.denoise(x, alpha, sigma), want, atol=2e-3)


def test_the_inverse_problem_is_the_published_one():
    law, reward = targets.cardoso(8, observed=2, instance=5)
    np.testing.assert_array_equal(np.unique(law.means), [-16.0, -8.0, 0.0, 8.0, 16.0])
    np.testing.assert_array_equal(law.means[:, 0], law.means[:, 6])
    np.testing.assert_array_equal(law.means[:, 1], law.means[:, 7])
    assert len(np.unique(np.asarray(law.means), axis=0)) == 25
    scales = np.linalg.svd(np.asarray(reward.operator))[1]
    assert 0 < scales.min() < scales.max() < 1
    assert 0 < float(reward.noise_std) < scales.max()
    evidence = targets.tilt(law, reward).log_normalizer
    np.testing.assert_allclose(evidence, targets.tilt(dense(law), reward).log_normalizer, rtol=1e-4)
    other = targets.cardoso(8, observed=2, instance=6)
    assert not np.allclose(other.mixture.weights, law.weights)


def test_the_observation_is_that_of_a_draw_of_the_law():
    """Whitened by its own mode the observation is standard normal, so its distance to the nearest mode is no longer."""
    squares = []
    for instance in range(60):
        law, reward = targets.cardoso(8, observed=4, instance=instance)
        h, std = np.asarray(reward.operator, np.float64), float(reward.noise_std)
        away = np.asarray(law.means, np.float64) @ h.T - np.asarray(reward.observation, np.float64)
        squares.append(np.min(np.sum(away @ np.linalg.inv(h @ h.T + std**2 * np.eye(4)) * away, 1)))
    assert 3.0 < np.mean(squares) < 4.0 + 3 * (8 / 60) ** 0.5


def test_what_is_no_low_rank_mixture():
    ones, means = np.ones(1), np.zeros((1, 3))
    for args, words in [
        ((np.ones(2), means), "weights .K. and means"),
        ((np.ones(1) * 0.5, means), "normalised"),
        ((ones, means, -1.0), "positive"),
        ((ones, means, 1.0, np.eye(3)[:1]), "together"),
        ((ones, means, 1.0, np.eye(2), np.ones(2)), r"basis must be \[M, 3\]"),
        ((ones, means, 1.0, 2 * np.eye(3), np.ones(3)), "orthonormal"),
    ]:
        with pytest.raises(ValueError, match=words):
            LowRankMixture(*args)
    law = LowRankMixture(ones, means)
    with pytest.raises(TypeError, match="LinearGaussian, got Linear"):
        targets.tilt(law, rewards.Linear(np.ones(3)))
    with pytest.raises(ValueError, match="one sample with 3 entries"):
        law.denoise(jnp.zeros(4), 1.0, 0.1)
    with pytest.raises(ValueError, match="dim must be even"):
        targets.cardoso(7)
    assert nk.metrics.mode_mass(jnp.zeros((2, 3)), law).shape == (1,)
