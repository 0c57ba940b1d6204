"""Schedules, their inverses and grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax.schedules import rates

VP = [nk.schedules.VPCosine(), nk.schedules.VPLinear(), nk.schedules.VPLinear(0.5, 10.0)]
ALL = [*VP, nk.schedules.VE(), nk.schedules.EDM(), nk.schedules.RectifiedFlow(), nk.schedules.RectifiedFlow(3.0)]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_ends_and_monotony(schedule):
    alpha, sigma = schedule(jnp.linspace(0.0, 1.0, 101))
    assert float(alpha[0]) == 1.0
    assert float(sigma[0]) == 0.0
    assert np.all(np.diff(sigma) > 0)
    assert np.all(np.diff(alpha) <= 0)
    assert np.all(np.asarray(alpha) >= 0)


@pytest.mark.parametrize("schedule", VP, ids=repr)
def test_variance_preserving(schedule):
    alpha, sigma = schedule(jnp.linspace(0.0, 1.0, 101))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=1e-6)


def test_linear_schedule_against_its_published_integral():
    """log alpha(1) = -(0.1 + 20) / 4 for beta from 0.1 to 20 (Song et al. 2021)."""
    np.testing.assert_allclose(jnp.log(nk.schedules.VPLinear()(1.0)[0]), -5.025, rtol=1e-6)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_time_of_inverts_the_ratio(schedule):
    t = jnp.linspace(0.02, 0.97, 20)
    alpha, sigma = schedule(t)
    np.testing.assert_allclose(schedule.time_of(sigma / alpha), t, rtol=2e-4)
    assert float(schedule.time_of(jnp.float32(0.0))) == 0.0


def test_flow_reaches_pure_noise_at_infinite_ratio():
    assert float(nk.schedules.RectifiedFlow(3.0).time_of(jnp.inf)) == 1.0


def test_what_is_below_the_smallest_level_is_asked_at_that_level():
    """A network trained down to sigma_min is never asked without noise, but for no noise at all."""
    schedule = nk.schedules.VE(0.01, 50.0)
    ratios = jnp.array([1e-6, 0.005, 0.01])
    np.testing.assert_allclose(schedule(schedule.time_of(ratios))[1], 0.01, rtol=1e-3)


def levels(schedule):
    return nk.grid(schedule, nk.grids.uniform(4)).sigma_s


def test_schedules_can_be_swept_and_differentiated():
    for build in (
        lambda b: nk.schedules.VPLinear(0.1, b), lambda b: nk.schedules.VE(0.01, b), nk.schedules.EDM,
        nk.schedules.RectifiedFlow,
    ):  # fmt: skip

        @jax.jit
        def level(b, build=build):
            return levels(build(b))

        several = build(jnp.array([2.0, 3.0]))
        axes = (jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, several),)
        np.testing.assert_allclose(jax.jit(jax.vmap(levels, axes))(several)[1], level(3.0), rtol=1e-6)
        slope = jax.jit(jax.jacrev(level))(2.0)
        np.testing.assert_allclose(slope, (level(2.01) - level(1.99)) / 0.02, rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(jax.jit(jax.jacfwd(level))(2.0), slope, rtol=1e-5)


def test_rates_are_derivatives():
    with jax.enable_x64(True):
        for schedule in ALL:
            up, down = schedule(0.4 + 1e-6), schedule(0.4 - 1e-6)
            for rate, u, d in zip(rates(schedule, 0.4), up, down, strict=True):
                np.testing.assert_allclose(rate, (u - d) / 2e-6, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nk.schedules.VPLinear(2.0, 1.0), "0 < beta_min < beta_max"),
        (lambda: nk.schedules.VE(1.0, 0.5), "0 < sigma_min < sigma_max"),
        (lambda: nk.schedules.EDM(0.0), "sigma_max > 0"),
        (lambda: nk.schedules.RectifiedFlow(-1.0), "shift > 0"),
        (lambda: nk.grids.uniform(0), "num_steps must be at least 1"),
        (lambda: nk.grids.trailing(50, 20), "at most num_train_steps=20"),
        (lambda: nk.grid(ALL[0], jnp.array([0.0, 0.5, 1.0])), "decrease strictly"),
        (lambda: nk.grid(ALL[0], jnp.array([1.0, 0.5])), "exactly 0"),
        (lambda: nk.grid(ALL[0], jnp.array([1.0])), "at least two entries"),
    ],
)
def test_refusals_say_what_to_do(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_rows_join_up():
    grid = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(7))
    np.testing.assert_array_equal(grid.s[:-1], grid.t[1:])
    np.testing.assert_array_equal(grid.alpha_s[:-1], grid.alpha_t[1:])
    assert grid.num_steps == 7
    assert grid.rows(2, 5).num_steps == 3
    assert float(grid.sigma_s[-1]) == 0.0


def test_karras_levels_are_the_published_ones():
    """Karras et al. 2022, Eq. 5, for n = 3, rho = 7, sigma from 80 to 0.002, computed by hand in double precision."""
    path = nk.schedules.EDM(80.0)
    times = nk.grids.karras(path, 3)
    middle = ((80.0 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    np.testing.assert_allclose(80.0 * times, [80.0, middle, 0.002, 0.0], rtol=1e-4)
    assert abs(middle - 2.515) < 0.01
    assert nk.grids.karras(path, 1).shape == (2,)
    usual = nk.grids.usual(lambda x, t: x, path, 3)  # uniform times would be 80, 53 and 27
    np.testing.assert_allclose(usual.sigma_t, [80.0, middle, 0.002], rtol=1e-4)


@pytest.mark.parametrize("path", ALL, ids=repr)
def test_karras_times_stay_within_every_schedule(path):
    grid = nk.grid(path, nk.grids.karras(path, 12))
    assert np.all(np.asarray(grid.sigma_t) > 0)


def test_infinite_ratio_is_the_noisiest_time():
    assert float(nk.schedules.VPLinear().time_of(jnp.inf)) == 1.0


def test_shifted_times_equal_the_shifted_schedule():
    plain = nk.grid(nk.schedules.RectifiedFlow(), nk.grids.shifted(5, 3.0))
    shifted = nk.grid(nk.schedules.RectifiedFlow(3.0), nk.grids.uniform(5))
    np.testing.assert_allclose(plain.sigma_t, shifted.sigma_t, rtol=1e-6)


def test_trailing_starts_at_the_last_training_step():
    times = np.asarray(nk.grids.trailing(4, 1000))
    np.testing.assert_allclose(times, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert nk.grids.trailing(7, 1000).shape == (8,)


def test_integer_times_are_accepted():
    assert nk.grid(nk.schedules.VPCosine(), jnp.array([1, 0])).num_steps == 1
