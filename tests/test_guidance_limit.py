"""A bounded push: shorter, same direction, same sample where it was short enough, density still exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk

STEPS = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(10))
ROW = jax.tree.map(lambda a: a[5], STEPS)
LOOK = nk.Lookahead(jnp.ones(4), jnp.full(4, 0.3), jnp.float32(0.0), jnp.array([3.0, -1.0, 0.5, 2.0]))


def push(rule):
    """The push in standard deviations, and the log-ratio against its definition."""
    base = nk.kernels.DDIM()(LOOK, ROW)
    moved, _ = nk.move(jax.random.key(0), LOOK, ROW, nk.kernels.DDIM(), rule)
    tilt = rule(LOOK, base, ROW, key=jax.random.key(1), probe=None)
    mean, std = base.mean + tilt.mean + base.std * tilt.noise, base.std * tilt.scale
    log_p = -0.5 * jnp.sum(jnp.square((moved.x - base.mean) / base.std)) - 4 * jnp.log(base.std)
    log_q = -0.5 * jnp.sum(jnp.square((moved.x - mean) / std)) - 4 * jnp.log(std)
    assert float(moved.log_ratio) == pytest.approx(float(log_p - log_q), rel=1e-4, abs=1e-4)
    return np.asarray((mean - base.mean) / base.std)


@pytest.mark.parametrize("rule", [nk.guidance.DPS(30.0), nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.9)], ids=repr)
def test_a_long_push_is_shortened_and_weighed_as_it_is_made(rule):
    whole, short = push(rule), push(nk.guidance.Limit(rule, 0.5))
    assert np.linalg.norm(whole) > 1.0
    np.testing.assert_allclose(short, 0.5 * whole / np.linalg.norm(whole), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(push(nk.guidance.Limit(rule, 100.0)), whole, rtol=1e-6)


def test_rows_without_noise_are_left_alone():
    last = jax.tree.map(lambda a: a[-1], STEPS)
    rule = nk.guidance.DPS(0.1, "squared")
    base = nk.kernels.DDIM()(LOOK, last)
    tilts = [r(LOOK, base, last, key=jax.random.key(0), probe=None) for r in (rule, nk.guidance.Limit(rule, 1e-3))]
    np.testing.assert_array_equal(tilts[0].mean, tilts[1].mean)


def test_a_bound_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="Limit norm must lie in"):
        nk.guidance.Limit(nk.guidance.DPS(1.0), 0.0)


@pytest.mark.parametrize("wrap", [nk.guidance.Limit, nk.guidance.Window])
def test_a_wrapped_rule_is_refused_as_it_would_be_alone(wrap):
    look = nk.Look(lambda x, t: x, nk.rewards.External(np.sum))
    with pytest.raises(ValueError, match="differentiates the reward at x0"):
        nk.Single(look, nk.kernels.DDIM(), wrap(nk.guidance.MPGD(0.1)))


def test_any_push_is_shortened_whatever_its_size():
    for size in (1e-30, 1.0, 1e25):
        look = LOOK._replace(grad=size * LOOK.grad)
        base = nk.kernels.DDIM()(look, ROW)
        tilt = nk.guidance.Limit(nk.guidance.DPS(1.0), 0.5)(look, base, ROW, key=jax.random.key(0), probe=None)
        length = np.linalg.norm(np.asarray(tilt.mean / base.std, np.float64))
        assert 0.0 < length <= 0.5 * (1 + 1e-5)
        assert length == pytest.approx(0.5, rel=1e-5) or size < 1.0


def test_a_run_through_the_bound_has_derivatives():
    """The last row has no noise and so no push, where a norm has no slope."""

    never = nk.resampling.WhenESS(nk.resampling.Systematic(), 0.0)

    def mean(temperature):
        sampler = nk.methods.tds(lambda x, t: 0.5 * x, jnp.sum, temperature=temperature, resample=never)
        return jnp.sum(nk.run(sampler, jax.random.key(0), jnp.ones((4, 2)), STEPS)[0].look.x)

    slope, width = float(jax.grad(mean)(2.0)), 1e-2
    assert slope == pytest.approx(float(mean(2.0 + width) - mean(2.0 - width)) / (2 * width), rel=1e-2)
