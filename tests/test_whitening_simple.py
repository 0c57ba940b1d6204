"""The norm, the ranks and the spectral projection: scale, ties, and what each promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ntrk_jax.whitening import Certified, RankGaussian, Spectral, TypicalSet, UnitNorm

SHAPES = [(1,), (7, 13, 3)]
RULES = [UnitNorm(), RankGaussian(), Spectral()]


@pytest.mark.parametrize("W", RULES, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_scale_and_input(W, shape):
    g = jax.random.normal(jax.random.key(0), shape)
    run, project = jax.jit(W), jax.jit(W.project)
    for scale in (1e-30, 1e30, 1e38 / float(jnp.max(jnp.abs(g)))):
        np.testing.assert_allclose(run(g * scale), run(g), atol=1e-3)
    for bad in (jnp.zeros(shape), g.at[(0,) * len(shape)].set(jnp.nan)):
        assert jnp.isfinite(run(bad)).all()
        assert jnp.isfinite(project(bad)).all()
    assert run(g.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("W", RULES, ids=lambda w: type(w).__name__)
def test_keys_only_matter_for_ties(W):
    flat = jnp.zeros((64,))
    assert not np.allclose(W(flat, jax.random.key(0)), W(flat, jax.random.key(1)))
    np.testing.assert_array_equal(W(flat), W(flat))


def test_unit_norm_is_the_same_direction_with_norm_root_n():
    g = jnp.array([3.0, -4.0, 12.0])
    np.testing.assert_allclose(UnitNorm()(g), g * np.sqrt(3) / 13, rtol=1e-6)


def test_unit_norm_projects_to_the_interval_of_the_norm():
    z = jax.random.normal(jax.random.key(1), (100,))
    np.testing.assert_array_equal(UnitNorm().project(z), z)
    low, high = stats.chi.interval(0.9999, 100)
    assert float(jnp.linalg.norm(UnitNorm().project(5 * z))) == pytest.approx(high, rel=1e-5)
    assert float(jnp.linalg.norm(UnitNorm().project(0.1 * z))) == pytest.approx(low, rel=1e-5)


@pytest.mark.parametrize("W", [UnitNorm(), Spectral()], ids=repr)
def test_a_noise_of_any_scale_keeps_its_direction(W):
    z = jax.random.normal(jax.random.key(1), (64,))
    w = jax.jit(jax.vmap(W.project))(z[None] * jnp.array([1.0, 1e-12, 1e-20, 1e-30, 1e20])[:, None])
    cosines = w @ z / jnp.linalg.norm(w, axis=1) / jnp.linalg.norm(z)
    assert float(jnp.min(cosines)) > 0.9
    assert float(jnp.max(jnp.abs(cosines - cosines[0]))) < 0.02


def test_ranks_keep_the_order_and_give_normal_quantiles():
    g = jnp.asarray(np.random.default_rng(0).standard_t(3, size=501), jnp.float32)
    w = np.asarray(RankGaussian()(g))
    assert stats.spearmanr(w, np.asarray(g)).statistic > 0.999999
    assert np.median(w) == pytest.approx(0.0, abs=1e-6)
    assert np.quantile(w, 0.975) == pytest.approx(stats.norm.ppf(0.975), abs=0.02)
    assert np.mean(w**2) == pytest.approx(1.0, rel=1e-5)


def flat_spectrum(n):
    """A delta, whose magnitudes are all equal."""
    return jnp.zeros((n,)).at[n // 2].set(1.0)


@pytest.mark.parametrize("n", [64, 1000])
def test_spectral_blocks_have_the_expected_norms_and_keep_white_noise(n):
    g = jax.random.normal(jax.random.key(2), (n,))
    w = Spectral().project(g)
    check_blocks(w)
    np.testing.assert_allclose(Spectral().project(w), w, atol=2e-3)
    assert float(jnp.vdot(w, g) / jnp.linalg.norm(w) / jnp.linalg.norm(g)) > 0.98
    for tied in (flat_spectrum(n), jnp.linspace(-1.0, 1.0, n)):
        check_blocks(Spectral()(tied))


def check_blocks(w):
    f = np.fft.rfft(np.asarray(w, np.float64), norm="ortho")
    y = np.concatenate([[(f[0].real + 1j * f[-1].real) / np.sqrt(2)], f[1:-1]])
    for block in np.array_split(np.abs(y), max(1, len(y) // 16)):
        assert block.sum() == pytest.approx(np.sqrt(np.pi) / 2 * len(block), rel=1e-4)
        assert (block**2).sum() == pytest.approx(len(block), rel=1e-4)


@pytest.mark.parametrize("make", [flat_spectrum, lambda n: jax.random.normal(jax.random.key(5), (n,))])
def test_derivatives_of_the_simple_rules_are_finite(make):
    g, weights = make(64), jnp.arange(64.0)
    for f in (Spectral(), Spectral().project, UnitNorm(), UnitNorm().project):
        assert jnp.all(jnp.isfinite(jax.jit(jax.grad(lambda g, f=f: jnp.vdot(f(g), weights)))(g)))
    assert jnp.all(jnp.isfinite(jax.grad(lambda z: jnp.vdot(UnitNorm().project(z), weights))(jnp.zeros(64))))
    direction = jax.random.normal(jax.random.key(6), (64,))
    along = jax.jit(lambda g: jax.jvp(Spectral(), (g,), (direction,))[1])(g)
    back = jax.jit(jax.grad(lambda g: jnp.vdot(Spectral()(g), weights)))(g)
    np.testing.assert_allclose(jnp.vdot(along, weights), jnp.vdot(back, direction), rtol=1e-3)


def test_spectral_cosine_on_white_noise_is_the_published_one():
    """Published: at least 0.988 on white noise in blocks of 16 (GPER, arXiv:2602.08646)."""
    g = jax.random.normal(jax.random.key(3), (20, 16384))
    w = jax.jit(jax.vmap(Spectral().project))(g)
    cos = jnp.sum(g * w, axis=1) / jnp.linalg.norm(g, axis=1) / jnp.linalg.norm(w, axis=1)
    assert float(cos.min()) > 0.987
    assert float(cos.max()) < 0.992


@pytest.mark.parametrize("shape", [(2,), (33,), (9, 11)])
def test_spectral_leaves_no_mean_of_an_odd_or_small_array_untypical(shape):
    z = jax.random.normal(jax.random.key(4), shape)
    for w in (Spectral()(jnp.ones(shape)), Spectral().project(z + 3), Spectral().project(1e30 * z)):
        assert abs(float(jnp.sum(w))) <= 4.5 * np.sqrt(w.size)
        assert float(jnp.sum(w * w)) <= w.size + 18


@pytest.mark.parametrize("W", [*RULES, TypicalSet((3,)), Certified((3,))], ids=lambda w: type(w).__name__)
def test_whole_numbers_are_refused(W):
    for f in (W, W.project, getattr(W, "violation", W)):
        with pytest.raises(TypeError, match=r"floating dtype, got int32; pass x.astype"):
            f(jnp.array([1, 2, 3]))


def test_bad_fields_are_refused():
    for bad in (0.0, (8, 8)):
        with pytest.raises(ValueError, match="confidence of UnitNorm must lie between 0 and 1"):
            UnitNorm(bad)
    for bad in (1, (8, 8), 2.5):
        with pytest.raises(ValueError, match="block of Spectral, which serves any shape, must be at least 2"):
            Spectral(bad)
