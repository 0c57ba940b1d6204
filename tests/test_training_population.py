"""One step of every tilting method on a mixture, without a network: against closed forms, in float64.

The table of one-step errors is the published experiment's mixture under its cosine schedule; the numbers typed here
were measured elsewhere by Monte Carlo (two digits), with another program.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax.training.population import (
    path_error,
    population_step,
    posterior_nodes,
    step_error,
    target_mean,
)
from ntrk_jax.training.tilting import nft_loss, tilt_target

SCHEDULE = nk.schedules.VPCosine()
ROUNDS = (1, 5, 20, 50, 100, 200)
TABLE = {
    (1.0, 4.0): (3.1e-1, 1.5e-2, 9.6e-4, 1.5e-4, 3.8e-5, 9.7e-6),
    (2.0, 4.0): (8.4e-1, 5.9e-2, 3.8e-3, 6.1e-4, 1.5e-4, 3.8e-5),
    (4.0, 0.0): (1.9, 2.1e-1, 1.5e-2, 2.4e-3, 6.1e-4, 1.5e-4),
}
PATH = {5: 8.9e-2, 20: 2.2e-2, 50: 8.5e-3, 100: 4.3e-3}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def one_step():
    """The error of one explicit step of size h from the published mixture, as one program."""
    with jax.enable_x64(True):
        law = nk.targets.two_modes().mixture
        program = jax.jit(lambda h, b: step_error(law, nk.rewards.Linear(b), h, SCHEDULE, num_times=16, order=16))
    return lambda num, b: float(program(1.0 / num, jnp.asarray(b)))


@pytest.mark.parametrize("b", TABLE)
def test_the_table_of_one_tilt(one_step, b):
    ours = [one_step(num, b) for num in ROUNDS]
    np.testing.assert_allclose(ours, TABLE[b], rtol=0.05)
    # quadratic in the step once it is small
    assert abs(ours[4] / ours[5] / 4 - 1) < 0.01


def test_along_the_other_axis_one_step_is_exact(one_step):
    assert one_step(1, (0.0, 4.0)) < 1e-13
    assert one_step(20, (0.0, 4.0)) < 1e-13


def test_errors_accumulate_like_one_over_the_rounds():
    law, reward = nk.targets.two_modes((2.0, 4.0))
    ours = {num: float(path_error(law, reward, num, SCHEDULE, num_times=12, order=10)) for num in (5, 20)}
    np.testing.assert_allclose(list(ours.values()), [PATH[num] for num in ours], rtol=0.06)
    assert 3.6 < ours[5] / ours[20] < 4.6


def at_points(function):
    """function(x, alpha, sigma) at three noise levels and a point of each, as one program."""
    x = jnp.asarray([[0.7, -0.4], [-0.3, 0.9], [1.1, 0.2]])
    return jax.jit(jax.vmap(function))(x, *SCHEDULE(jnp.asarray([0.2, 0.5, 0.85])))


def test_the_explicit_step_is_the_covariance_two_ways():
    """Cov(x_0, b.x_0 | x_t) = C b, with C from the posterior mixture, and C = s^2/a^2 (I + s^2 hess log p_t)."""
    law, reward = nk.targets.skewed(2)
    b = jnp.asarray(reward.a)

    def three(x, alpha, sigma):
        given = posterior_nodes(law, x, alpha, sigma, 6)
        r = 0.3 * jax.vmap(reward)(given.nodes)
        moved = population_step("explicit", given, r - given.mean(r)) - law.denoise(x, alpha, sigma)
        tweedie = sigma**2 / alpha**2 * (jnp.eye(2) + sigma**2 * jax.jacfwd(lambda y: law.score(y, alpha, sigma))(x))
        return moved, 0.3 * law.posterior(x, alpha, sigma).cov() @ b, 0.3 * tweedie @ b

    moved, closed, tweedie = at_points(three)
    np.testing.assert_allclose(moved, closed, atol=1e-8)
    np.testing.assert_allclose(moved, tweedie, atol=1e-8)
    assert float(jnp.min(jnp.linalg.norm(moved, axis=1))) > 1e-3


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_implicit_and_weighted_are_exact_for_any_step(kind):
    law, reward = nk.targets.skewed(2)
    if kind == "quadratic":
        reward = nk.rewards.Quadratic(jnp.array([[0.9, 0.2], [0.2, 0.4]]), jnp.array([0.5, -1.0]))
    for step in (0.1, 2.5):
        star = nk.targets.tilt(law, reward, 1.0 / step).mixture

        def learned(x, alpha, sigma, step=step, star=star):
            given = posterior_nodes(law, x, alpha, sigma, 40)
            logs = step * jax.vmap(reward)(given.nodes)
            exact = star.denoise(x, alpha, sigma)
            shifted = logs - jax.nn.logsumexp(logs, b=given.weights)  # a constant changes nothing
            out = [exact, population_step("explicit", given, logs - given.mean(logs))]
            out += [target_mean("implicit", given, part, exact) for part in (logs, shifted)]
            out += [population_step("implicit", given, part) for part in (logs, shifted)]
            return *out, population_step("weighted", given, logs)

        exact, explicit, *others = at_points(learned)
        for other in others:
            np.testing.assert_allclose(other, exact, atol=1e-8)
        assert float(jnp.max(jnp.abs(explicit - exact))) > 1e-4, "the explicit step is not exact here"


def test_nft_is_an_explicit_step_of_size_two_over_its_strength():
    law, reward = nk.targets.skewed(2)

    def learned(x, alpha, sigma):
        given = posterior_nodes(law, x, alpha, sigma, 12)
        optimality = jax.nn.sigmoid(jax.vmap(reward)(given.nodes))
        off = optimality - given.mean(optimality)
        covariance = given.mean(off[:, None] * given.nodes)
        return [
            (
                population_step("nft", given, optimality, strength),
                given.mean(given.nodes) + 2.0 / strength * covariance,
                population_step("explicit", given, 2.0 / strength * off),
            )
            for strength in (0.1,)
        ]

    for nft, closed, explicit in at_points(learned):
        np.testing.assert_allclose(nft, closed, atol=1e-8)
        np.testing.assert_allclose(nft, explicit, atol=1e-8)


def test_nft_is_its_target_sample_by_sample():
    """The two-branch loss and the regression on the target have one gradient, up to the strength squared."""
    student, anchor, sample = (jax.random.normal(jax.random.key(i), (5,)) for i in range(3))
    for optimality, strength in ((0.9, 0.1), (0.2, 2.0)):
        target = tilt_target(sample, anchor, anchor, (2.0 * optimality - 1.0) / strength)
        ours = jax.grad(lambda s, t=target: jnp.mean((s - t) ** 2))(student)
        theirs = jax.grad(nft_loss)(student, anchor, sample, optimality, strength)
        np.testing.assert_allclose(theirs, strength**2 * ours, rtol=1e-10)


def test_a_reference_anchor_needs_its_own_samples():
    """With samples of the tilted law and the base as anchor, the tilted mean is no fixed point."""
    law, reward = nk.targets.skewed(2)
    star = nk.targets.tilt(law, reward).mixture

    def residuals(x, alpha, sigma):
        exact, base = star.denoise(x, alpha, sigma), law.denoise(x, alpha, sigma)

        def residual(p):
            given = posterior_nodes(p, x, alpha, sigma, 30)
            coef = jnp.expm1(jax.vmap(reward)(given.nodes))
            return given.mean(tilt_target(given.nodes, base[None], exact[None], coef[:, None])) - exact

        return residual(law), residual(star)

    own, others = at_points(residuals)
    assert float(jnp.max(jnp.abs(own))) < 1e-8
    assert float(jnp.max(jnp.abs(others))) > 0.1
