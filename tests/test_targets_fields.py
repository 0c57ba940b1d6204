"""Random fields: the spectrum they claim, and agreement with the dense Gaussian of the same covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax import rewards, targets

LEVELS = [(1.0, 0.0), (1.0, 1e-3), (0.7, 0.7), (0.0, 1.0), (1.0, 80.0)]


def dense(field):
    """The same law as a mixture of one: its precision is minus the slope of its score."""
    mean = field.mean()
    slope = jax.jacobian(lambda x: field.score(x, 1.0, 0.0).reshape(-1))(mean).reshape(field.dim, field.dim)
    cov = np.linalg.inv(-np.asarray(slope, np.float64))
    return targets.GaussianMixture(np.ones(1), np.asarray(mean).reshape(1, -1), 0.5 * (cov + cov.T)[None])


@pytest.mark.parametrize("shape", [(8, 6), (5, 7), (6, 5, 2)])
def test_samples_have_the_covariance_that_the_density_claims(shape):
    field = targets.PowerLawField(shape, exponent=2.0, scale=1.5, centre=0.5)
    cov = np.asarray(dense(field).covs[0])
    np.testing.assert_allclose(np.diag(cov), 1.5**2, rtol=1e-3)  # stationary, of the stated scale
    x = np.asarray(field.sample(jax.random.key(0), 20000)).reshape(20000, -1)
    error = 4.5 * 1.5**2 * np.sqrt(2 / 20000)
    assert np.abs(x.mean(0) - 0.5).max() < 4.5 * 1.5 / np.sqrt(20000)
    assert np.abs(np.cov(x.T) - cov).max() < error
    assert np.abs(np.cov(x[:, ::-1].T[1:]) - cov[:-1, :-1]).max() > error  # the check can fail


def test_the_spectrum_falls_with_the_exponent():
    for exponent in (0.0, 2.0, 3.5):
        field = targets.PowerLawField((64, 64), exponent)
        x = np.asarray(field.sample(jax.random.key(1), 200))
        power = (np.abs(np.fft.fft2(x)) ** 2).mean(0) / 64**2
        octave = np.log(power[16, 0] / power[8, 0]) / np.log((16**2 + 1) / (8**2 + 1)) * -2
        assert abs(octave - exponent) < 0.35, (exponent, octave)


@pytest.mark.parametrize("precision", [None, 0.7])
def test_closed_forms_agree_with_the_dense_gaussian(precision):
    with jax.enable_x64(True):
        centre = jax.random.normal(jax.random.key(5), (4, 6, 2))
        field = targets.PowerLawField((4, 6, 2), 2.0, 1.5, centre)
        other, b = dense(field), 0.3 * jax.random.normal(jax.random.key(1), (4, 6, 2))
        reward = rewards.Linear(b, 0.3) if precision is None else rewards.Quadratic(precision, b, 0.3)
        x = field.sample(jax.random.key(2), 1)[0]

        @jax.jit
        def answers(x, alpha, sigma):
            def one(law):
                value = jax.value_and_grad(lambda y: targets.value(law, reward, 0.8, y, alpha, sigma))(x)
                return law.log_prob_at(x, alpha, sigma), law.denoise(x, alpha, sigma), law.score(x, alpha, sigma), value

            return one(field), one(other)

        for level in LEVELS:
            got, want = answers(x, *level)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        tilted, wanted = targets.tilt(field, reward, 0.8), targets.tilt(other, reward, 0.8)
        np.testing.assert_allclose(tilted.log_normalizer, wanted.log_normalizer, rtol=1e-6)
        np.testing.assert_allclose(tilted.mixture.log_prob(x), wanted.mixture.log_prob(x), rtol=1e-6)
        means = [targets.expected_reward(t.mixture, reward) for t in (tilted, wanted)]
        np.testing.assert_allclose(*means, rtol=1e-6)
        posteriors = [law.posterior(x, 0.6, 0.8).log_prob(x + 0.1) for law in (field, other)]
        np.testing.assert_allclose(*posteriors, rtol=1e-6)


def test_the_ends_of_the_noise_scale_in_float32():
    field = targets.PowerLawField((32, 32), 2.5)
    x = field.sample(jax.random.key(0), 1)[0]
    np.testing.assert_allclose(field.denoise(x, 1.0, 0.0), x, atol=1e-6)
    np.testing.assert_allclose(field.denoise(x, 0.0, 1.0), 0.0, atol=1e-6)
    np.testing.assert_allclose(field.posterior(x, 1.0, 0.0).mean(), x, atol=1e-6)
    low = field.denoise(x.astype(jnp.bfloat16).reshape(-1), 0.8, 0.6)
    assert low.dtype == jnp.bfloat16
    assert low.shape == (1024,)


def test_draws_of_the_posterior():
    field = targets.PowerLawField((6, 6), 2.0)
    x = field.sample(jax.random.key(0), 1)[0]
    draws, weights = field.posterior_draws(jax.random.key(1), x, 0.6, 0.8, 20000)
    assert draws.shape == (20000, 6, 6)
    np.testing.assert_array_equal(weights, 0.0)
    cov = np.asarray(dense(field.posterior(x, 0.6, 0.8)).covs[0])
    np.testing.assert_allclose(draws.mean(0), field.denoise(x, 0.6, 0.8), atol=4.5 * np.sqrt(cov.max() / 20000))
    np.testing.assert_allclose(np.cov(draws.reshape(20000, -1).T), cov, atol=0.03)


def test_a_convex_reward_has_a_mean_though_no_tilt():
    field, reward = targets.PowerLawField((4, 4)), rewards.Quadratic(-5.0, np.zeros(16))
    np.testing.assert_allclose(field.expected_reward(reward), 2.5 * 16, rtol=1e-5)


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match="shape must be"):
        targets.PowerLawField((8,))
    with pytest.raises(ValueError, match="scale must be positive"):
        targets.PowerLawField((8, 8), scale=0.0)
    with pytest.raises(ValueError, match="centre must be"):
        targets.PowerLawField((8, 8), centre=np.zeros(8))
    with pytest.raises(ValueError, match="every Fourier variance must be positive"):
        targets.PowerLawField((8, 8), precision=-5.0)
    field = targets.PowerLawField((4, 4))
    with pytest.raises(ValueError, match="a quadratic reward whose precision is a number"):
        targets.tilt(field, rewards.Quadratic(np.eye(16), np.zeros(16)))
    for make in (targets.tilt, lambda law, reward: law.value_function(reward)):
        with pytest.raises(ValueError, match="must be normalisable"):
            make(field, rewards.Quadratic(-5.0, np.zeros(16)))
    with pytest.raises(ValueError, match="temperature must be positive"):
        targets.tilt(field, rewards.Linear(np.zeros(16)), -1.0)
    with pytest.raises(ValueError, match="x must be one sample of shape"):
        field.denoise(jnp.zeros((2, 4, 4)), 0.8, 0.6)
