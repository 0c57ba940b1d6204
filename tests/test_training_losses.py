"""The denoising loss of a perfect network is the posterior variance, whatever it predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models_flax import FLOW, MEAN, VAR, gaussian

from ntrk_jax import tweedie
from ntrk_jax.models import FlaxDenoiser
from ntrk_jax.training import DenoisingLoss

LOW, HIGH, NUM = 0.1, 0.9, 20_000


@functools.partial(jax.jit, static_argnums=2)
def run(loss, params, num):
    x0 = MEAN + jnp.sqrt(VAR) * jax.random.normal(jax.random.key(0), (num, 1))
    return jax.vmap(loss, (0, None, 0))(jax.random.split(jax.random.key(1), num), params, x0)


def losses(loss, params, num=NUM):
    return np.asarray(run(loss, params, num), np.float64)


@pytest.mark.parametrize("kind", tweedie.KINDS)
def test_weighted_by_x0_the_least_loss_is_the_posterior_variance(kind):
    loss = DenoisingLoss(gaussian(kind), kind, FLOW, weight="x0", low=LOW, high=HIGH)
    t = np.linspace(LOW, HIGH, 4001)
    expected = np.mean(VAR * t**2 / ((1 - t) ** 2 * VAR + t**2))
    seen = losses(loss, {"mean": jnp.asarray(MEAN)})
    error = seen.std() / np.sqrt(NUM)
    assert abs(seen.mean() - expected) < 4.5 * error
    wrong = losses(loss, {"mean": jnp.asarray(MEAN + 0.3)})
    assert wrong.mean() > seen.mean() + 4.5 * error, "a wrong network must cost more"


def test_unweighted_noise_prediction_costs_its_posterior_variance():
    loss = DenoisingLoss(gaussian("eps"), "eps", FLOW, low=LOW, high=HIGH)
    t = np.linspace(LOW, HIGH, 4001)
    expected = np.mean((1 - t) ** 2 * VAR / ((1 - t) ** 2 * VAR + t**2))
    seen = losses(loss, {"mean": jnp.asarray(MEAN)})
    assert abs(seen.mean() - expected) < 4.5 * seen.std() / np.sqrt(NUM)


def test_snr_weight_stops_at_its_largest():
    network = gaussian("x0")

    def one(weight, t):
        loss = DenoisingLoss(network, "x0", FLOW, weight=weight, low=t, high=t, max_snr=5.0)
        return losses(loss, {"mean": jnp.asarray(MEAN)}, 4).mean()

    np.testing.assert_allclose(one("snr", 0.1) / one("x0", 0.1), 5.0, rtol=1e-5)
    np.testing.assert_allclose(one("snr", 0.75) / one("x0", 0.75), (0.25 / 0.75) ** 2, rtol=1e-5)


def test_times():
    uniform = DenoisingLoss(gaussian("x0"), "x0", FLOW, low=0.2, high=0.6)
    t = np.asarray(jax.vmap(uniform.time)(jax.random.split(jax.random.key(3), 4000)))
    assert t.min() >= 0.2
    assert t.max() <= 0.6
    assert abs(t.mean() - 0.4) < 4 * 0.4 / np.sqrt(12 * 4000)
    bell = DenoisingLoss(gaussian("x0"), "x0", FLOW, times="logit-normal", low=0.0, mean=1.0, spread=0.5)
    s = np.asarray(jax.vmap(bell.time)(jax.random.split(jax.random.key(4), 4000)))
    quartiles = 1 / (1 + np.exp(-(1.0 + 0.5 * np.array([-0.67449, 0.0, 0.67449]))))
    np.testing.assert_allclose(np.quantile(s, [0.25, 0.5, 0.75]), quartiles, atol=0.012)


def test_condition_reaches_the_network():
    loss = DenoisingLoss(lambda w, x, t, c: c * jnp.ones_like(x), "x0", FLOW)
    assert float(loss(jax.random.key(0), None, (jnp.full(3, 2.0), jnp.asarray(2.0)))) == 0.0


@pytest.mark.parametrize(("name", "options"), [("kind", "noise"), ("times", "normal"), ("weight", "none")])
def test_refused_names(name, options):
    args = {"kind": "x0", name: options}
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        DenoisingLoss(gaussian("x0"), args.pop("kind"), FLOW, **args)


@pytest.mark.parametrize("options", [{"low": 0.9, "high": 0.1}, {"high": 5.0}, {"low": -1.0}, {"max_snr": -1.0}])
def test_refused_numbers(options):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1|max_snr must be positive"):
        DenoisingLoss(gaussian("x0"), "x0", FLOW, weight="snr", **options)


def test_networks_of_batches_are_trained_as_those_of_samples():
    def many(w, x, t, c):
        assert (x.shape, t.shape, c.shape) == ((1, 3), (1,), (1,))
        return w * x + c[:, None]

    sample = (jnp.ones(3), jnp.float32(0.5))
    losses = (DenoisingLoss(many, "x0", FLOW, batched=True), DenoisingLoss(lambda w, x, t, c: w * x + c, "x0", FLOW))
    assert len({float(loss(jax.random.key(0), jnp.float32(0.3), sample)) for loss in losses}) == 1


@pytest.mark.parametrize("wrong", [lambda w, x, t: w["mean"] * x[None], lambda w, x, t: x[:0]])
def test_a_prediction_of_another_shape_is_refused(wrong):
    with pytest.raises(ValueError, match="must predict the shape of one sample"):
        losses(DenoisingLoss(wrong, "x0", FLOW), {"mean": jnp.asarray(MEAN)}, 2)


def test_a_network_is_trained_in_the_precision_in_which_it_is_asked():
    seen = []

    def record(w, x, t):
        seen.append((x.dtype, t.dtype))
        return w.astype(x.dtype) * x

    for dtype in (jnp.bfloat16, jnp.float32):
        w = jnp.ones((), dtype)
        DenoisingLoss(record, "x0", FLOW)(jax.random.key(0), w, jnp.ones(2))
        FlaxDenoiser(record, "x0", w, FLOW)(jnp.ones(2), 0.5)
        assert seen[-2] == seen[-1] == (dtype, jnp.float32)
