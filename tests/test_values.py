"""The four values: the exact one against its definition, the others against the exact one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax import rewards, schedules, targets, values
from ntrk_jax.core import Value
from ntrk_jax.tree import replace

SCHEDULE, BETA, KEY = schedules.VPCosine(), 1.3, jax.random.key(0)
COVS = np.array([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.2], [-0.2, 0.7]]])
TARGET = targets.GaussianMixture(np.array([0.3, 0.7]), np.array([[-1.5, 0.3], [0.8, -0.8]]), COVS)
LINEAR = rewards.Linear(np.array([1.0, -0.5]), 0.2)
QUADRATIC = rewards.Quadratic(np.array([[1.0, 0.3], [0.3, -0.4]]), np.array([0.5, 0.5]))
X = jnp.array([0.4, -0.3])


def key():
    return jax.random.key(0)


@pytest.mark.parametrize("reward", [LINEAR, QUADRATIC])
def test_exact_is_the_reward_at_the_data_and_log_z_at_the_noise(reward):
    value = values.Exact(TARGET, SCHEDULE, reward, BETA)
    np.testing.assert_allclose(value(KEY, X, 0.0), reward(X), rtol=1e-5)
    log_z = targets.tilt(TARGET, reward, BETA).log_normalizer
    np.testing.assert_allclose(value(KEY, X, 1.0), BETA * log_z, rtol=1e-5)
    np.testing.assert_allclose(value(KEY, X, 0.4), targets.value(TARGET, reward, BETA, X, *SCHEDULE(0.4)), rtol=1e-5)


def test_a_high_temperature_takes_no_digits_and_gives_the_mean():
    """V = E[r] + Var[r] / (2 beta) + ...: of the draws of an estimate, and of the law itself."""

    @jax.jit
    def asked(value):
        return value(key(), X, 0.5, X, LINEAR)

    for make in (
        lambda beta: values.MonteCarlo(TARGET, SCHEDULE, beta, 64), lambda beta: values.Smoothed(SCHEDULE, beta),
        lambda beta: values.Exact(TARGET, SCHEDULE, LINEAR, beta),
    ):  # fmt: skip
        low, high, higher = (float(asked(make(b))) for b in (1e2, 1e5, 1e8))
        assert low - high == pytest.approx(0.0, abs=1e-2)
        assert low > high
        assert higher == pytest.approx(high, rel=1e-4)
    for make in (values.MonteCarlo, lambda law, schedule, beta: values.Smoothed(schedule, beta)):
        infinite, high = (float(asked(make(TARGET, SCHEDULE, beta))) for beta in (jnp.inf, 1e8))
        assert infinite == pytest.approx(high, rel=1e-5)
    for law in (TARGET, targets.PowerLawField((2, 1), 2.0)):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            values.Exact(law, SCHEDULE, rewards.Linear(np.ones(2).reshape(2, *[1] * (law is not TARGET))), jnp.inf)


def test_a_component_that_was_unlikely_may_carry_the_value():
    """Weights of e^-100 beside rewards of 200: the sum is that of logarithms there."""
    far = targets.GaussianMixture(np.array([1.0 - 1e-37, 1e-37]), np.array([[0.0], [50.0]]), np.ones((2, 1, 1)))
    value = values.Exact(far, SCHEDULE, rewards.Linear(np.array([4.0])), 1.0)
    assert float(value(KEY, jnp.zeros(1), 1.0)) == pytest.approx(200.0 + 8.0 + np.log(1e-37), rel=1e-4)


def test_draws_that_a_reward_forbids_leave_the_derivatives_finite():
    """d V / d beta = V / beta - E[r exp(r / beta)] / (beta E[exp(r / beta)]), over the draws that are allowed."""

    def wall(x0):
        return jnp.where(x0[0] > X[0], x0[1], -jnp.inf)

    def value(beta):
        return values.Smoothed(SCHEDULE, beta, num_samples=8)(key(), X, 0.5, X, wall)

    beta, step = jnp.float32(0.7), 1e-2
    slope = (value(beta + step) - value(beta - step)) / (2 * step)
    assert float(jax.grad(value)(beta)) == pytest.approx(float(slope), rel=1e-2)
    assert float(value(jnp.inf)) == -np.inf


def test_a_reward_of_more_than_one_number_is_refused():
    for value in (values.MonteCarlo(TARGET, SCHEDULE), values.Smoothed(SCHEDULE)):
        with pytest.raises(ValueError, match="a reward must return a scalar"):
            value(key(), X, 0.5, X, lambda x0: x0)


def test_exact_makes_a_martingale():
    """exp(V_t / beta) is its own expectation under the true reverse step, here from t = 0.6 to s = 0.3."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = SCHEDULE(0.6), SCHEDULE(0.3)
    draw, noise = jax.random.split(jax.random.key(1))
    x0, _ = TARGET.posterior_draws(draw, X, alpha_t, sigma_t, 100000)
    pull = alpha_t * sigma_s**2 / (alpha_s * sigma_t**2)
    std = sigma_s * jnp.sqrt(1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
    mean = alpha_s * x0 + pull * (X[None] - alpha_t * x0)
    x_s = mean + std * jax.random.normal(noise, x0.shape)
    for reward in (LINEAR, QUADRATIC):
        value = values.Exact(TARGET, SCHEDULE, reward, BETA)
        later = np.exp(jax.vmap(lambda x, v=value: v(KEY, x, 0.3))(x_s) / BETA)
        now = np.exp(value(KEY, X, 0.6) / BETA)
        error = later.std() / np.sqrt(len(later))
        assert abs(later.mean() - now) < 4 * error
        assert abs(np.exp(value(KEY, X, 0.5) / BETA) - later.mean()) > 4 * error  # the check can fail


def test_exact_is_retabulated_when_replaced_and_swept_without_compiling():
    base = values.Exact(TARGET, SCHEDULE, QUADRATIC, BETA)
    compiled = jax.jit(lambda value, x: value(KEY, x, 0.4))
    for temperature in (BETA, 2.0, 5.0):
        value = replace(base, temperature=temperature)
        want = targets.value(TARGET, QUADRATIC, temperature, X, *SCHEDULE(0.4))
        np.testing.assert_allclose(compiled(value, X), want, rtol=1e-5, atol=1e-6)
    assert compiled._cache_size() == 1
    assert "function" not in repr(base)


def test_exact_on_a_field():
    field = targets.PowerLawField((4, 4), 2.0)
    reward = rewards.Linear(0.1 * np.ones((4, 4)))
    value = values.Exact(field, SCHEDULE, reward, BETA)
    x = field.sample(jax.random.key(0), 1)[0]
    np.testing.assert_allclose(value(KEY, x, 0.0), reward(x), rtol=1e-5)
    np.testing.assert_allclose(value(KEY, x, 1.0), BETA * targets.tilt(field, reward, BETA).log_normalizer, rtol=1e-5)


@pytest.mark.parametrize("reward", [LINEAR, QUADRATIC])
def test_monte_carlo_and_its_gradient_approach_the_exact_value(reward):
    exact = values.Exact(TARGET, SCHEDULE, reward, BETA)
    estimate = values.MonteCarlo(TARGET, SCHEDULE, BETA, num_samples=2000)
    assert estimate.num_rewards == 2000
    both = jax.jit(jax.vmap(jax.value_and_grad(lambda x, k, t: estimate(k, x, t, X, reward)), in_axes=(None, 0, None)))
    for t in (0.3, 0.7):
        want, slope = jax.value_and_grad(lambda x, t=t: exact(KEY, x, t))(X)
        value, grad = both(X, jax.random.split(jax.random.key(2), 64), t)
        assert abs(value.mean() - want) < 4 * value.std() / 8 + 2e-3
        assert np.all(np.abs(grad.mean(0) - slope) < 4 * grad.std(0) / 8 + 5e-3)


def test_the_gradient_through_the_draws_alone_is_wrong():
    """Why draws carry log-weights: which component they came from depends on x too."""

    class Unweighted:
        def posterior_draws(self, *args):
            draws, weights = TARGET.posterior_draws(*args)
            return draws, jax.lax.stop_gradient(weights)

    slope = jax.grad(lambda x: values.Exact(TARGET, SCHEDULE, LINEAR, BETA)(KEY, x, 0.5))(X)
    estimate = values.MonteCarlo(Unweighted(), SCHEDULE, BETA, num_samples=2000)
    both = jax.jit(jax.vmap(jax.grad(lambda x, k: estimate(k, x, 0.5, X, LINEAR)), in_axes=(None, 0)))
    grads = both(X, jax.random.split(jax.random.key(3), 64))
    assert np.any(np.abs(grads.mean(0) - slope) > 4 * grads.std(0) / 8 + 5e-3)


def test_plug_in_and_learned():
    assert float(values.PlugIn()(KEY, X, 0.5, X, LINEAR)) == float(LINEAR(X))
    learned = values.Learned(lambda w, x, t: w @ x + t, jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(learned(KEY, X, 0.5), 2 * 0.4 - 0.3 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: learned(KEY, x, 0.5))(X), [2.0, 1.0])


def test_what_values_declare():
    exact = values.Exact(TARGET, SCHEDULE, LINEAR)
    several = values.PlugIn(), exact, values.MonteCarlo(TARGET, SCHEDULE, num_samples=3), values.Learned(jnp.sum)
    assert all(isinstance(value, Value) for value in several)
    assert [value.needs_x0 for value in several] == [True, False, False, False]
    assert [value.num_rewards for value in several] == [1, 0, 3, 0]


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="temperature must be positive"):
        values.Exact(TARGET, SCHEDULE, LINEAR, 0.0)
    with pytest.raises(TypeError, match="linear or quadratic"):
        values.Exact(TARGET, SCHEDULE, jnp.sum)
    with pytest.raises(ValueError, match="temperature must be positive"):
        values.MonteCarlo(TARGET, SCHEDULE, -1.0)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        values.MonteCarlo(TARGET, SCHEDULE, num_samples=0)
