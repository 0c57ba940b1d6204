"""The typicality battery: standard normal under white noise at every shape, alarmed by every kind of structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ntrk_jax.metrics.typicality import typicality


@pytest.mark.parametrize(
    "shape",
    [
        (1,),
        (64,),
        (7, 13, 3),
        pytest.param((8, 64), marks=pytest.mark.slow),
        pytest.param((3, 3, 48), marks=pytest.mark.slow),
    ],
)
def test_scores_are_standard_normal_for_white_noise(shape):
    """Mean within 5 standard errors of 0 (and 0.15 for the approximations), spread within 0.85..1.15, no outliers."""
    draws = 400
    battery = jax.jit(jax.vmap(typicality))(jax.random.normal(jax.random.key(11), (draws, *shape)))
    for name, scores in battery._asdict().items():
        z = np.asarray(scores).reshape(draws, -1)
        z = z[:, np.abs(z).max(axis=0) > 0]
        if z.shape[1] == 0:
            continue
        assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(draws) + 0.05, name
        assert z.std(axis=0).min() > 0.85, name
        assert z.std(axis=0).max() < 1.2, name
        assert np.abs(z).max() < 5.5, name
    assert battery.largest.shape == (draws,)
    np.testing.assert_array_equal(battery.largest[3], jax.tree.map(lambda a: a[3], battery).largest)


def test_moments_agree_with_scipy():
    x = np.random.default_rng(0).standard_t(8, size=500)
    ours = jax.jit(typicality)(jnp.asarray(x, jnp.float32))
    assert float(ours.skewness) == pytest.approx(float(stats.skewtest(x).statistic), abs=2e-3)
    assert float(ours.kurtosis) == pytest.approx(float(stats.kurtosistest(x).statistic), abs=2e-3)


def test_kolmogorov_smirnov_agrees_with_scipy():
    x = np.random.default_rng(1).normal(0.15, 1.0, size=400)
    p = stats.kstest(x, "norm").pvalue
    assert float(jax.jit(typicality)(jnp.asarray(x, jnp.float32)).ks) == pytest.approx(stats.norm.isf(p), abs=0.05)


NOISE = jax.random.normal(jax.random.key(12), (32, 32, 3))
ROW = jnp.arange(32, dtype=jnp.float32)[:, None, None]
CONTROLS = {
    "mean": NOISE + 0.2,
    "variance": 1.1 * NOISE,
    "skewness": (jax.random.exponential(jax.random.key(1), NOISE.shape) - 1.0),
    "kurtosis": jax.random.t(jax.random.key(2), 4.0, NOISE.shape) / np.sqrt(2.0),
    "ks": jnp.round(NOISE),
    "autocorrelation": (NOISE + jnp.roll(NOISE, 1, axis=0)) / np.sqrt(2.0),
    "autocorrelation_abs": NOISE * (1.0 + 0.8 * jnp.sign(ROW - 15.5)) / np.sqrt(1.64),
    "spectrum": NOISE + 0.3 * jnp.cos(2 * np.pi * ROW / 32),
    "peak": NOISE + 0.3 * jnp.cos(2 * np.pi * 9 * ROW / 32),
    "tiles": NOISE.at[8:16, 8:16].mul(1.8),
    "channels": jnp.stack([NOISE[..., 0], 0.5 * NOISE[..., 0] + 0.87 * NOISE[..., 1], NOISE[..., 2]], axis=-1),
}


@pytest.fixture(scope="module")
def battery():
    return jax.jit(typicality)


@pytest.mark.parametrize("name", CONTROLS)
def test_each_statistic_sees_what_it_is_for(battery, name):
    assert float(battery(NOISE).largest) < 4.5
    assert float(jnp.max(jnp.abs(getattr(battery(CONTROLS[name]), name)))) > 5


def test_far_tails_stay_finite_and_grow(battery):
    peaks = [float(battery(NOISE + a * jnp.cos(2 * np.pi * 9 * ROW / 32)).peak) for a in (0.5, 1.0, 4.0)]
    assert np.isfinite(peaks).all()
    assert peaks[0] < peaks[1] < peaks[2]
    for x in (0.0 * NOISE, 1e10 * NOISE, 0.0 * NOISE + 1.0):
        largest = float(battery(x).largest)
        assert np.isfinite(largest)
        assert largest > 5


def test_what_overflows_is_not_typical_and_nothing_is_no_noise(battery):
    assert float(battery(1e30 * NOISE).largest) > 5
    with pytest.raises(ValueError, match=r"at least one number, got an array of shape \(0,\)"):
        typicality(jnp.zeros(0))
