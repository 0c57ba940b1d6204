"""Resampling: unbiased offspring, whole particles, weights that carry the evidence, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax import resampling

SCHEMES = [
    resampling.Multinomial(), resampling.Stratified(), resampling.Systematic(), resampling.Residual(), resampling.SSP(),
]  # fmt: skip
WEIGHTS = np.array([0.05, 0.4, 0.0, 0.25, 0.03, 0.27])
NUM = 8000


def offspring(scheme, log_weights, num=NUM):
    """Counts [num, K] of children over many keys."""
    keys = jax.random.split(jax.random.key(3), num)
    parents = jax.jit(jax.vmap(scheme.ancestors, (0, None)))(keys, log_weights)
    return np.asarray(jax.vmap(lambda p: jnp.bincount(p, length=log_weights.shape[0]))(parents))


def assert_unbiased(counts, weights):
    expected = len(weights) * weights
    error = np.maximum(counts.std(0) / np.sqrt(len(counts)), 1e-6)
    assert np.max(np.abs(counts.mean(0) - expected) / error) < 4.5


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_expected_offspring_is_k_times_the_weight(scheme):
    with np.errstate(divide="ignore"):
        counts = offspring(scheme, jnp.log(jnp.asarray(WEIGHTS, jnp.float32)) + 500.0)
    assert np.all(counts.sum(1) == len(WEIGHTS))
    assert np.all(counts[:, 2] == 0)
    assert_unbiased(counts, WEIGHTS)
    with pytest.raises(AssertionError):
        assert_unbiased(counts, np.roll(WEIGHTS, 1))
    spread = np.abs(counts - len(WEIGHTS) * WEIGHTS)
    if isinstance(scheme, (resampling.Systematic, resampling.SSP)):
        assert spread.max() < 1.0 + 1e-5
    if isinstance(scheme, resampling.Residual):
        assert np.all(counts >= np.floor(len(WEIGHTS) * WEIGHTS - 1e-5))
    if not isinstance(scheme, resampling.Multinomial):
        multinomial = len(WEIGHTS) * WEIGHTS * (1 - WEIGHTS)
        assert np.all(counts.var(0) <= multinomial * 1.05 + 1e-9)


def test_strata_draw_independently():
    """A stratum gives particle i a child or none: a coin that falls with the share of the stratum which i holds."""
    ends, strata = len(WEIGHTS) * np.cumsum(WEIGHTS)[:, None], np.arange(len(WEIGHTS))[None]
    starts = ends - len(WEIGHTS) * WEIGHTS[:, None]
    shares = np.maximum(np.minimum(ends, strata + 1) - np.maximum(starts, strata), 0.0)
    variance = np.sum(shares * (1 - shares), axis=1)

    def deviation(scheme):
        with np.errstate(divide="ignore"):
            counts = offspring(scheme, jnp.log(jnp.asarray(WEIGHTS, jnp.float32)))
        squares = np.square(counts - len(WEIGHTS) * WEIGHTS)
        return np.max(np.abs(squares.mean(0) - variance) / np.maximum(squares.std(0) / np.sqrt(NUM), 1e-6))

    assert deviation(resampling.Stratified()) < 4.5
    assert deviation(resampling.Systematic()) > 20, "one offset for all strata must fail this"


@pytest.mark.parametrize("num", [3, 1000])
def test_rows_of_any_number_are_drawn_evenly(num):
    with np.errstate(divide="ignore"):
        rows = resampling.systematic(jax.random.key(0), jnp.log(jnp.asarray(WEIGHTS, jnp.float32)), num)
    counts = np.bincount(np.asarray(rows), minlength=len(WEIGHTS))
    assert counts.sum() == num
    assert np.all(np.abs(counts - num * WEIGHTS) < 1 + 1e-3)


def test_offspring_of_ssp_are_negatively_associated():
    counts = offspring(resampling.SSP(), jnp.log(jnp.array([0.15, 0.15, 0.35, 0.35])))
    covariance = np.cov(counts.T)
    assert np.all(covariance[~np.eye(4, dtype=bool)] < 0.02)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_extremes(scheme):
    key, other = jax.random.split(jax.random.key(0))
    far = jnp.array([-2e4, 1e4, -jnp.inf, 1e4 - 50.0, jnp.nan, jnp.inf])
    assert set(np.asarray(jax.jit(scheme.ancestors)(key, far)).tolist()) == {1}
    dead = jnp.full(6, -jnp.inf)
    tree, level, parents = jax.jit(scheme)(other, dead, jnp.arange(6))
    assert np.all((np.asarray(parents) >= 0) & (np.asarray(parents) < 6))
    assert np.all(np.asarray(level) == -np.inf)
    assert tree.shape == (6,)
    assert np.asarray(scheme.ancestors(jax.random.key(1), jnp.zeros(1))).tolist() == [0]


@pytest.mark.parametrize("num", [41, 82])
def test_equal_weights_leave_residual_nothing_to_draw(num):
    """Rounding takes from some K that K times 1 / K is 1."""
    parents = jax.jit(resampling.Residual().ancestors)(jax.random.key(0), jnp.zeros(num))
    np.testing.assert_array_equal(np.sort(parents), np.arange(num))
    carried = jax.jit(resampling.WhenESS(resampling.Multinomial(), 1.0))(jax.random.key(0), jnp.zeros(num), ())[2]
    np.testing.assert_array_equal(carried, np.arange(num))


def test_where_all_are_dead_every_particle_is_its_own_child():
    for scheme in (*SCHEMES, *(resampling.WhenESS(scheme, 1.0) for scheme in SCHEMES)):
        parents = jax.jit(scheme)(jax.random.key(0), jnp.full(6, -jnp.inf), ())[2]
        np.testing.assert_array_equal(parents, np.arange(6))


def test_whole_particles_move_and_the_evidence_stays():
    log_weights = jnp.log(jnp.array([0.1, 0.7, 0.15, 0.05])) + 3.0
    tree = {"x": jnp.arange(8.0).reshape(4, 2), "grad": jnp.arange(4), "memory": (jnp.arange(4.0) * 10,)}
    moved, level, parents = resampling.Systematic()(jax.random.key(2), log_weights, tree)
    for leaf, before in zip(jax.tree.leaves(moved), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(leaf, before[parents])
    np.testing.assert_allclose(level, np.full(4, 3.0 + np.log(0.25)), rtol=1e-6)
    assert float(resampling.log_mean_exp(level)) == pytest.approx(float(resampling.log_mean_exp(log_weights)), abs=1e-6)


def test_weights_are_carried_until_the_effective_sample_size_falls():
    even, uneven = jnp.log(jnp.array([0.3, 0.2, 0.25, 0.25])), jnp.log(jnp.array([0.97, 0.01, 0.01, 0.01]))
    assert float(resampling.ess(uneven)) == pytest.approx(1 / (0.97**2 + 3e-4), rel=1e-5)
    rule = resampling.WhenESS(resampling.Systematic(), 0.5)
    tree, kept, parents = rule(jax.random.key(0), even, jnp.arange(4))
    np.testing.assert_array_equal(kept, even)
    np.testing.assert_array_equal(parents, np.arange(4))
    _, level, parents = rule(jax.random.key(0), uneven, jnp.arange(4))
    assert len(set(np.asarray(level).tolist())) == 1
    assert np.sum(np.asarray(parents) == 0) >= 3
    with pytest.raises(ValueError, match=r"threshold is a share of the population in \[0, 1\], got 2"):
        resampling.WhenESS(resampling.Systematic(), 2.0)
    with pytest.raises(TypeError, match="scheme must be an object, got the class SSP"):
        resampling.WhenESS(resampling.SSP)


@pytest.mark.parametrize("num_steps", [20, 50, 100])
def test_spaced_rows_do_not_depend_on_the_number_of_steps(num_steps):
    steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(num_steps))
    chosen = np.asarray(jax.vmap(resampling.Spaced(0.2, 0.2, 0.8))(steps))
    np.testing.assert_allclose(np.asarray(steps.s)[chosen], [0.8, 0.6, 0.4, 0.2], atol=1e-5)


def test_windows_that_never_resample_are_refused():
    for args, words in (((0.0,), "interval must be positive"), ((0.2, 0.8, 0.2), "low must be at most high")):
        with pytest.raises(ValueError, match=words):
            resampling.Spaced(*args)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_of_half_precision_lose_no_particles(scheme):
    parents = scheme.ancestors(jax.random.key(0), jnp.zeros(1000, jnp.bfloat16))
    childless = np.mean(np.bincount(np.asarray(parents), minlength=1000) == 0)
    assert childless < 0.41, "of independent draws 1 / e have none"
