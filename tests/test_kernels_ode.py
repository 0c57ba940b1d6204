"""The probability flow: densities and samples against laws known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax import metrics, models, schedules, targets
from ntrk_jax.kernels.ode import ProbabilityFlow

LAW = targets.skewed(2).mixture


def flow_of(schedule, law=LAW, **options):
    return ProbabilityFlow(lambda x, t: law.denoise(x, *schedule(t)), schedule, **options)


@pytest.mark.parametrize("schedule", [schedules.VPCosine(), schedules.RectifiedFlow(3.0)])
def test_log_densities_are_those_of_the_mixture(schedule):
    x = LAW.sample(jax.random.key(0), 24)
    got = jax.jit(jax.vmap(flow_of(schedule).log_prob))(x)
    np.testing.assert_allclose(got, jax.vmap(LAW.log_prob)(x), atol=1e-3)


def test_any_schedule_starts_from_its_own_noise():
    """For N(0, I) the flow of y is the identity, so the density is that of N(0, sigma^2 / (alpha^2 + sigma^2) I)."""
    x = jnp.array([0.5, -1.0])
    law = targets.GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    for schedule in (schedules.VPLinear(), schedules.EDM(5.0)):
        alpha, sigma = schedule(1.0)
        variance = sigma**2 / (alpha**2 + sigma**2)
        want = -0.5 * jnp.sum(x**2) / variance - jnp.log(2 * jnp.pi * variance)
        flow = flow_of(schedule, law)
        if isinstance(schedule, schedules.EDM):
            np.testing.assert_allclose(jax.jit(flow.log_prob)(x), want, atol=2e-4)
        np.testing.assert_allclose(jax.jit(flow.sample)(x), x / jnp.hypot(alpha, sigma), atol=3e-4)


def test_samples_have_the_law_of_the_mixture():
    n = 2000
    keys = list(jax.random.split(jax.random.key(0), 5))
    noise = jax.random.normal(keys[0], (n, 2))
    got = jax.jit(jax.vmap(flow_of(schedules.VPCosine(), rtol=1e-4, atol=1e-4).sample))(noise)
    floor = float(metrics.two_sample_floor(keys[1], LAW, n))
    exact = LAW.sample(keys[2], n)
    assert float(metrics.sliced_wasserstein(keys[3], got, exact)) < 1.8 * floor
    assert float(metrics.sliced_wasserstein(keys[4], -got, exact)) > 3 * floor  # the check can fail


def test_probes_estimate_the_same_density():
    flow, x = flow_of(schedules.VPCosine(), rtol=1e-4, atol=1e-4), jnp.array([0.3, 0.8])
    keys = jax.random.split(jax.random.key(1), 128)
    got = jax.jit(jax.vmap(lambda k: flow.log_prob(x, k, num_probes=2)))(keys)
    assert got.std() > 0
    assert abs(got.mean() - LAW.log_prob(x)) < 4 * got.std() / np.sqrt(128)


def test_images_and_a_solver_that_gives_up():
    law = targets.skewed(4).mixture
    image = jnp.array([[[0.1], [0.5]], [[-0.4], [0.2]]])
    flow = flow_of(schedules.RectifiedFlow(), law)
    assert jax.eval_shape(flow.sample, image).shape == (2, 2, 1)
    np.testing.assert_allclose(jax.jit(flow.log_prob)(image), law.log_prob(image), atol=1e-3)
    assert np.isnan(jax.jit(flow_of(schedules.RectifiedFlow(), law, max_steps=2).log_prob)(image))
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        flow.log_prob(image, jax.random.key(0), num_probes=0)


def test_a_schedule_that_ends_at_much_noise_smooths_by_that_much():
    law, schedule = (
        targets.GaussianMixture(np.ones(1), np.zeros((1, 2)), 0.09 * np.eye(2)[None]),
        schedules.VE(0.1, 50.0),
    )
    flow, std = flow_of(schedule, law), np.sqrt(0.09 + 0.01)
    np.testing.assert_allclose(jax.jit(flow.sample)(50.0 * jnp.array([1.0, -1.0])), [std, -std], rtol=2e-3)
    np.testing.assert_allclose(jax.jit(flow.log_prob)(jnp.zeros(2)), -np.log(2 * np.pi * std**2), atol=2e-3)


def test_flows_that_cannot_be_integrated_are_refused():
    for options in ({"min_ratio": 0.0}, {"rtol": -1.0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            flow_of(schedules.VPCosine(), **options)
    with pytest.raises(ValueError, match="was made for"):
        ProbabilityFlow(models.Exact(LAW, schedules.VPCosine()), schedules.VPLinear())


def test_a_network_of_noise_has_a_likelihood():
    """The flow's own range of times ends before alpha = 0, where such a network says nothing."""
    schedule = schedules.VPCosine()
    model = models.FlaxDenoiser(lambda w, x, t: schedule(t)[1] * x, "eps", {}, schedule)  # data N(0, I): eps = sigma x
    x = jnp.array([0.3, -0.2])
    got = jax.jit(ProbabilityFlow(model, schedule).log_prob)(x)
    np.testing.assert_allclose(got, -np.log(2 * np.pi) - 0.5 * float(x @ x), atol=2e-3)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.VPCosine(),
        pytest.param(schedules.VE(), marks=pytest.mark.slow),
        pytest.param(schedules.RectifiedFlow(), marks=pytest.mark.slow),
    ],
)
def test_a_network_of_noise_flows_from_the_noise_of_the_schedule(schedule):
    """It starts at t = 0.98 where alpha = 0 at 1; the noise that is given is that of t = 1 all the same."""

    def eps(w, x, t):
        alpha, sigma = schedule(t)
        return sigma * (x - alpha * w) / (0.25 * alpha**2 + sigma**2)

    flow = ProbabilityFlow(models.FlaxDenoiser(eps, "eps", jnp.float32(0.0), schedule), schedule)
    last = schedule(1.0)[1]
    ends = jax.vmap(flow.sample)(last * jnp.array([[1.0], [-2.0]]))
    np.testing.assert_allclose(ends, [[0.5], [-1.0]], rtol=2e-3)
    law = -0.5 * jnp.square(ends[:, 0] / 0.5) - jnp.log(0.5 * jnp.sqrt(2.0 * jnp.pi))
    np.testing.assert_allclose(jax.vmap(flow.log_prob)(ends), law, atol=3e-3)
