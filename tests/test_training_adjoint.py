"""Adjoint Matching on a skewed law of one number: its adjoint is the value's gradient, its optimum the tilted law."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntrk_jax as nk
from ntrk_jax.training import AdjointMatching, fit, lean_adjoint
from ntrk_jax.training.paths import walk

PATH = nk.schedules.RectifiedFlow()
LAW = nk.targets.GaussianMixture(np.array([0.3, 0.7]), np.array([[-1.2], [0.9]]), np.array([[[0.3]], [[0.15]]]))
REWARD = nk.rewards.Quadratic(np.array([[0.8]]), np.array([1.1]))
BETA = 0.7
TILTED = nk.targets.tilt(LAW, REWARD, BETA).mixture
ANCESTRAL = nk.kernels.DDIM(1.0)


def blend(w, x, t):
    """From the base's x0 (all zero) to the tilted law's (mix = 1), and two ways off that line."""
    base, star = (law.denoise(x, *PATH(t)) for law in (LAW, TILTED))
    return base + w["mix"] * (star - base) + w["shift"] + w["slope"] * x


def weights(mix):
    return {"mix": jnp.float32(mix), "shift": jnp.float32(0.0), "slope": jnp.float32(0.0)}


BASE = nk.models.FlaxDenoiser(blend, "x0", weights(0.0), PATH)


@jax.jit
def minus_adjoints(mix, t, x):
    """-a_t over 2048 paths from x at t, of the base (mix = 0) or the tilted chain (mix = 1)."""
    steps = nk.grid(PATH, t * nk.grids.uniform(128))

    def one(key):
        path = walk(nk.replace(BASE, variables=weights(mix)), ANCESTRAL, key, x, steps)
        return -lean_adjoint(BASE, REWARD, ANCESTRAL, steps, path, BETA)[0, 0]

    return jax.vmap(one)(jax.random.split(jax.random.key(0), 2048))


@pytest.mark.parametrize(("t", "x"), [(0.9, 0.4), (0.6, -0.5), (0.3, -0.6)])
def test_the_mean_lean_adjoint_is_minus_the_gradient_of_the_value(t, x):
    expected = jax.grad(lambda x: nk.targets.value(LAW, REWARD, BETA, x, *PATH(t)) / BETA)(jnp.array([x]))[0]
    for mix, right in ((1.0, True), (0.0, False)):
        draws = np.asarray(minus_adjoints(mix, t, jnp.array([x])), np.float64)
        error, allowed = abs(draws.mean() - expected), 3 * draws.std() / np.sqrt(len(draws)) + 0.01 * abs(expected)
        assert (error < allowed) == right, "paths of the base are the negative control"


def matching(**options):
    steps = nk.grid(PATH, nk.grids.uniform(64))
    return AdjointMatching(BASE, REWARD, steps, BETA, ANCESTRAL, **options)


def noises(num):
    return jax.random.normal(jax.random.key(4), (num, 1))


def test_the_loss_is_stationary_at_the_tilted_model_and_not_at_the_base():
    gradient = jax.jit(jax.vmap(jax.grad(matching(num_rows=16), argnums=1), (0, None, 0)))
    z = {}
    for mix in (0.0, 1.0):
        grads = gradient(jax.random.split(jax.random.key(1), 1024), weights(mix), noises(1024))
        z[mix] = {name: float(jnp.mean(g) / (jnp.std(g) / np.sqrt(1024))) for name, g in grads.items()}
    assert all(abs(value) < 3 for value in z[1.0].values()), z
    assert z[0.0]["mix"] < -10
    assert abs(z[0.0]["shift"]) > 10


def test_training_finds_the_tilted_law():
    steps = nk.grid(PATH, nk.grids.uniform(24))
    loss = AdjointMatching(BASE, REWARD, steps, BETA, ANCESTRAL, num_rows=8)
    state = fit(jax.random.key(2), loss, weights(0.0), noises(512), optax.adam(0.05), 80, batch_size=64, decay=0.9)
    assert abs(state.average["mix"] - 1.0) < 0.15
    assert abs(state.average["shift"]) < 0.1
    assert abs(state.average["slope"]) < 0.1


def test_a_subset_of_rows_is_all_of_them_when_it_is_full_and_clipping_shortens():
    loss = jax.jit(lambda loss, params: loss(jax.random.key(3), params, jnp.array([0.3])))
    full = loss(matching(), weights(0.5))
    np.testing.assert_allclose(loss(matching(num_rows=63), weights(0.5)), full, rtol=1e-4)
    np.testing.assert_allclose(loss(matching(clip=1e6), weights(0.5)), full, rtol=1e-6)
    still = loss(matching(clip=0.0), weights(0.0))
    assert still < 1e-10, "without an adjoint the base stays put"
    assert loss(matching(clip=0.1), weights(0.0)) < 0.2 * loss(matching(), weights(0.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: matching(num_rows=64), "num_rows must be between 1 and 63"),
        (lambda: nk.replace(matching(), temperature=0.0), "temperature must be positive"),
        (lambda: nk.replace(matching(), kernel=nk.kernels.FlowODE()), "stochastic kernel.*FlowODE"),
        (lambda: nk.replace(matching(), kernel=nk.kernels.EDM(0.2, 0.05, 1.0)), "EDM draws none in row 0, at t = 1"),
        (lambda: nk.replace(matching(), steps=nk.grid(PATH, nk.grids.uniform(1))), "at least two rows"),
        (lambda: nk.replace(matching(), reward=nk.rewards.HalfSpace(np.ones(1))), "differentiable reward.*HalfSpace"),
    ],
)
def test_what_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
