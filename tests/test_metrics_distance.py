"""Distances against numbers known by other means, and the nearest neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ntrk_jax import metrics, targets

KEY = jax.random.key


def test_in_one_dimension_it_is_the_wasserstein_distance():
    rng = np.random.default_rng(0)
    for n, m in ((50, 50), (50, 35), (7, 300)):
        x, y = rng.exponential(1.0, n), 0.5 + 2 * rng.exponential(1.0, m)
        got = metrics.sliced_wasserstein(KEY(0), jnp.asarray(x)[:, None], jnp.asarray(y)[:, None], order=1.0)
        np.testing.assert_allclose(got, scipy.stats.wasserstein_distance(x, y), rtol=1e-5)


def test_a_shift_is_at_its_length_over_the_root_of_the_dimension():
    """W2 between a set and its shift by v along u is |u.v|, and E (u.v)^2 = |v|^2 / d."""
    x = jax.random.normal(KEY(0), (100, 2, 3))
    got = metrics.sliced_wasserstein(KEY(1), x, x + 2.0, num_projections=4000)
    np.testing.assert_allclose(got, 2.0, rtol=0.05)
    doubled = jnp.concatenate([x, x])
    np.testing.assert_allclose(metrics.sliced_wasserstein(KEY(0), x, doubled), 0.0, atol=1e-6)


def test_unequal_numbers_are_coupled_exactly():
    x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [0.0], [3.0]])
    # quantiles meet on [0, 1/2): 0-0, [1/2, 2/3): 1-0, [2/3, 1): 1-3
    want = np.sqrt((2 / 3 - 1 / 2) * 1 + (1 / 3) * 4)
    np.testing.assert_allclose(metrics.sliced_wasserstein(KEY(0), x, y), want, rtol=1e-6)


def test_mmd_is_zero_in_expectation_for_equal_laws_and_large_for_others():
    def one(key, shift):
        a, b = jax.random.split(key)
        x, y = jax.random.normal(a, (100, 3)), jax.random.normal(b, (80, 3)) + shift
        return metrics.mmd(x, y, bandwidth=1.5)

    same = jax.vmap(lambda k: one(k, 0.0))(jax.random.split(KEY(0), 100))
    assert abs(same.mean()) < 4 * same.std() / np.sqrt(100)
    assert jax.vmap(lambda k: one(k, 1.0))(jax.random.split(KEY(1), 100)).min() > same.max()
    assert float(metrics.mmd(jnp.zeros((4, 1)), 50.0 + jnp.zeros((4, 1)))) > 0.5


def test_mmd_against_its_definition():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((5, 2)), rng.standard_normal((7, 2)) + 0.3

    def kernel(a, b):
        return np.mean([np.exp(-np.sum((a - b) ** 2) / (2 * (s * 0.8) ** 2)) for s in (0.5, 1.0, 2.0)])

    def mean(p, q, skip):
        terms = [kernel(a, b) for i, a in enumerate(p) for j, b in enumerate(q) if not (skip and i == j)]
        return np.mean(terms)

    want = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    np.testing.assert_allclose(metrics.mmd(jnp.asarray(x), jnp.asarray(y), bandwidth=0.8), want, rtol=1e-4, atol=1e-6)


def test_mode_mass_is_unbiased_where_modes_overlap():
    law = targets.skewed(2).mixture
    n = 20000
    x = law.sample(KEY(0), n)
    assert np.all(np.abs(metrics.mode_mass(x, law) - law.weights) < 4 * 0.5 / np.sqrt(n))
    assert float(metrics.mode_total_variation(x, law)) < 0.02
    assert float(metrics.mode_total_variation(-x, law)) > 0.1


def test_the_floor_falls_with_the_number_and_a_shift_lies_above_it():
    law = targets.skewed(4).mixture
    few, many = (float(metrics.two_sample_floor(KEY(0), law, n, num_projections=32)) for n in (250, 4000))
    assert 2.0 < few / many < 8.0  # the rate is 1 / sqrt(n): four
    a, b = jax.random.split(KEY(1))
    x = law.sample(a, 4000)
    assert float(metrics.sliced_wasserstein(b, x, x + 0.2)) > 2 * many


def test_nearest_neighbours():
    reference = jax.random.normal(KEY(0), (30, 4, 4))
    x = reference[jnp.array([7, 3, 19])] + jnp.array([0.0, 0.1, -0.2])[:, None, None]
    np.testing.assert_allclose(metrics.nearest_distance(x, reference), [0.0, 0.4, 0.8], rtol=1e-5, atol=0)
    assert metrics.nearest_index(x, reference).tolist() == [7, 3, 19]


def test_equal_sets_are_at_distance_zero_with_a_finite_gradient():
    x = jax.random.normal(KEY(0), (4, 2))
    for distance in (
        lambda x: metrics.sliced_wasserstein(KEY(0), x, jax.lax.stop_gradient(x)),
        lambda x: jnp.sum(metrics.nearest_distance(x, jax.lax.stop_gradient(x))),
    ):
        value, grad = jax.value_and_grad(distance)(x)
        assert float(value) == 0.0
        assert np.all(np.isfinite(grad))
    assert float(metrics.mmd(jnp.ones((4, 2)), jnp.ones((5, 2)))) == 0.0


def test_distances_of_any_order_and_scale():
    x = jax.random.normal(KEY(0), (50, 2))
    with jax.enable_x64(True):
        far, near = (metrics.sliced_wasserstein(KEY(1), *pair, order=60.0) for pair in ((x, x + 50), (x, x + 0.05)))
        np.testing.assert_allclose(far, 1e3 * near, rtol=1e-4)
    assert 50 < float(metrics.sliced_wasserstein(KEY(1), x, x + 50, order=60.0)) < 50 * 2**0.5
    for scale in (1e20, 1e-25):
        got = metrics.sliced_wasserstein(KEY(1), scale * x, scale * (x + 1))
        np.testing.assert_allclose(got, scale * metrics.sliced_wasserstein(KEY(1), x, x + 1), rtol=1e-5)


def test_samples_of_whole_numbers(recwarn):
    x = jnp.arange(12).reshape(6, 2)
    assert float(metrics.sliced_wasserstein(KEY(0), x, x + 1)) > 0.5
    assert metrics.nearest_distance(x, x + 1).tolist()[0] == pytest.approx(2**0.5)
    assert not recwarn


def test_samples_that_are_no_numbers_are_at_no_distance():
    x = jax.random.normal(KEY(0), (4, 2))
    bad = x.at[0, 0].set(jnp.nan)
    assert np.isnan(metrics.sliced_wasserstein(KEY(0), bad, x))
    assert np.isnan(metrics.nearest_distance(bad, x)).tolist() == [True, False, False, False]
    assert np.all(np.isfinite(jax.grad(lambda x: metrics.mmd(x, jnp.ones((4, 2))))(jnp.ones((4, 2)))))


def test_bad_samples_are_refused():
    x = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        metrics.mmd(x, x, bandwidth=0.0)
    with pytest.raises(ValueError, match="num_repeats must be at least 1"):
        metrics.two_sample_floor(KEY(0), None, 4, num_repeats=0)
    with pytest.raises(ValueError, match="two sets of samples"):
        metrics.sliced_wasserstein(KEY(0), x, jnp.zeros((4, 3)))
    for order in (0.5, np.inf, np.nan):
        with pytest.raises(ValueError, match="order must be at least 1 and finite"):
            metrics.sliced_wasserstein(KEY(0), x, x, order=order)
    with pytest.raises(ValueError, match="at least two samples"):
        metrics.mmd(x, x[:1])
    with pytest.raises(ValueError, match="samples and reference"):
        metrics.nearest_distance(x, jnp.zeros((4, 3)))


def test_mmd_sees_a_shift_within_modes_that_lie_far_apart():
    """Squares of 3000 have no digits left for a tenth: differences are taken first."""
    rng = np.random.default_rng(0)

    def two(shift, at):
        return np.concatenate([s * at + shift + 0.1 * rng.normal(size=(50, 2)) for s in (1, -1)]).astype(np.float32)

    near, far = (float(metrics.mmd(two(0.0, at), two(1.0, at), bandwidth=0.2)) for at in (8.0, 3000.0))
    assert near > 0.5
    assert abs(near - far) < 0.05
