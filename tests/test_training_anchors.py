"""Fine-tuning by reward gradient and by policy gradient, against unrolled loops, finite memory and the exact tilt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax.training import AlignProp, DRaFT, PolicyGradient, advantages, ddpo, flow_grpo, gather

PATH = nk.schedules.RectifiedFlow()
ODE = nk.kernels.DDIM(0.0)
STEPS = nk.grid(PATH, nk.grids.uniform(6))
X = jnp.array([0.7, -1.1])


def predict(w, x, t):
    """A small network: two weights and a bend."""
    return w["bias"] + jnp.tanh(w["gain"] * x) * (1.0 + t)


WEIGHTS = {"bias": jnp.array([0.2, -0.1]), "gain": jnp.array([0.8, 0.5])}
MODEL = nk.models.FlaxDenoiser(predict, "x0", WEIGHTS, PATH)


def reward(x):
    return jnp.sin(x[0]) + x[0] * x[1] - 0.3 * x[1] ** 2


def unrolled(w, num_live):
    """The straight path's Euler steps written out, with the last `num_live` of them live."""
    x, h = X, 1.0 / 6
    for i in range(6):
        t = 1.0 - i * h
        live = w if i >= 6 - num_live else jax.lax.stop_gradient(w)
        x = x - h * (x - predict(live, x, t)) / t
        x = x if i >= 6 - num_live else jax.lax.stop_gradient(x)
    return -reward(x)


def gradients(*losses):
    """Of several losses at the weights, as vectors, and their values."""
    key = jax.random.key(0)
    out = jax.jit(lambda w: [jax.value_and_grad(loss, argnums=1)(key, w, X) for loss in losses])(WEIGHTS)
    return np.array([value for value, _ in out]), np.array([np.concatenate([g["bias"], g["gain"]]) for _, g in out])


def test_gradients_are_those_of_the_unrolled_path():
    """All rows, the last two, and AlignProp's truncation at the same places, with and without rematerialisation."""
    full, two = (DRaFT(MODEL, reward, STEPS, ODE, num_live=k) for k in (None, 2))
    kept = DRaFT(MODEL, reward, STEPS, ODE, remat=False)
    align = [AlignProp(MODEL, reward, STEPS, ODE, share=s, spread=0.0) for s in (1.0, 2 / 6)]
    loops = [lambda key, w, x, k=k: unrolled(w, k) for k in (6, 2)]
    values, g = gradients(full, kept, align[0], loops[0], two, align[1], loops[1])
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    np.testing.assert_allclose(g[:3], np.tile(g[3], (3, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(g[0], g[1], atol=1e-6)
    np.testing.assert_allclose(g[4:6], np.tile(g[6], (2, 1)), rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(g[3] - g[6]) > 0.1, "truncation changes the gradient"


def test_rematerialisation_keeps_states_and_not_layers():
    """Bytes of the gradient of 60 rows, for a network whose layer is 512 times its sample."""
    wide = nk.models.FlaxDenoiser(lambda w, x, t: jnp.tanh(jnp.outer(x, w)).sum(1), "x0", jnp.ones(512), PATH)

    def bytes_of(remat):
        loss = DRaFT(wide, jnp.sum, nk.grid(PATH, nk.grids.uniform(60)), ODE, remat=remat)
        compiled = jax.jit(jax.grad(loss, argnums=1)).lower(jax.random.key(0), jnp.ones(512), jnp.ones(4)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    layers = 60 * 4 * 512 * 4
    assert bytes_of(True) < 0.3 * layers
    assert bytes_of(False) > layers


def test_many_copies_vary_less_than_one():
    """From one and the same end, as the root of their number."""
    grads = []
    for copies in (1, 8):
        loss = DRaFT(MODEL, reward, STEPS, ODE, num_live=1, num_copies=copies)
        grad = jax.vmap(jax.grad(loss, argnums=1), (0, None, None))
        grads.append(np.asarray(jax.jit(grad)(jax.random.split(jax.random.key(1), 400), WEIGHTS, X)["gain"]))
    one, many = grads
    ratio = one.std(0) / many.std(0)
    assert np.all((ratio > 2.3) & (ratio < 3.5)), ratio
    np.testing.assert_array_less(np.abs(many.mean(0) - one.mean(0)), 4 * one.std(0) / np.sqrt(400))


def test_draft_raises_the_reward_at_every_step():
    loss = DRaFT(MODEL, lambda x: -jnp.sum(jnp.square(x - 1.0)), STEPS)
    noise = jax.random.normal(jax.random.key(3), (64, 2))

    def batch(w):
        return jnp.mean(jax.vmap(loss, (0, None, 0))(jax.random.split(jax.random.key(2), 64), w, noise))

    step = jax.jit(jax.value_and_grad(batch))
    w, losses = WEIGHTS, []
    for _ in range(8):
        value, grad = step(w)
        losses.append(float(value))
        w = jax.tree.map(lambda a, g: a - 0.05 * g, w, grad)
    assert np.all(np.diff(losses) < 0), losses


LAW = nk.targets.GaussianMixture(
    np.array([0.35, 0.65]), np.array([[-1.5, 0.0], [1.0, 0.5]]), np.array([[[0.4, 0.1], [0.1, 0.3]], 0.3 * np.eye(2)])
)
SLOPE = np.array([0.5, 1.0])
CENTRES = jax.random.normal(jax.random.key(8), (24, 2))


def features(x, t):
    """Bumps of x, each at two times."""
    bumps = jnp.exp(-0.5 * jnp.sum(jnp.square(x[None] - CENTRES), axis=1))
    return jnp.concatenate([bumps * t, bumps * (1 - t), jnp.stack([t, 1 - t])])


def flexible(w, x, t):
    return LAW.denoise(x, *PATH(t)) + features(x, t) @ w


def test_the_first_policy_gradient_is_that_of_the_tilt():
    """Row by row the score function's mean is gain * d E[A | x_t] / dx_t, and d E[r | x_t] / dx_t is
    (alpha / sigma^2) Cov(r, x0 | x_t): the derivative of the exactly tilted x0 in 1 / temperature."""
    zero = jnp.zeros((50, 2))
    loss = ddpo(nk.models.FlaxDenoiser(flexible, "x0", zero, PATH), nk.grid(PATH, nk.grids.uniform(16)))
    tilted = nk.targets.tilt(LAW, nk.rewards.Linear(1e-3 * SLOPE)).mixture

    def expected(x, x_s, step):
        look = nk.core.Lookahead(x, LAW.denoise(x, step.alpha_t, step.sigma_t))
        gain = loss.kernel(look._replace(x0=look.x0 + 1.0), step).mean[0] - loss.kernel(look, step).mean[0]
        cov = (tilted.denoise(x, step.alpha_t, step.sigma_t) - look.x0) / 1e-3
        return -gain * step.alpha_t / step.sigma_t**2 * jnp.outer(features(x, step.t), cov)

    @jax.jit
    def first(key, noise, zero):
        model = nk.models.FlaxDenoiser(flexible, "x0", zero, PATH)
        data = gather(key, zero, model, nk.rewards.Linear(SLOPE), loss.kernel, loss.steps, noise)
        one = nk.replace(loss, model=model)
        batch = lambda w: jnp.mean(jax.vmap(one, (None, None, 0))(key, w, data))  # noqa: E731
        value, grad = jax.value_and_grad(batch)(zero)
        rows = jax.vmap(jax.vmap(expected), (0, 0, None))(data.path[:, :-2], data.path[:, 1:-1], loss.steps.rows(0, 15))
        return data, value, grad, jnp.mean(rows, axis=(0, 1)) / jnp.std(data.reward)

    data, value, grad, exact = first(jax.random.key(6), jax.random.normal(jax.random.key(5), (2048, 2)), zero)
    np.testing.assert_allclose(value, -np.mean(data.advantage), atol=1e-5)
    grad, exact = np.ravel(grad), np.ravel(exact)
    cosine = grad @ exact / np.linalg.norm(grad) / np.linalg.norm(exact)
    assert cosine > 0.9, cosine
    assert 0.8 < np.linalg.norm(grad) / np.linalg.norm(exact) < 1.25


def test_a_ratio_that_has_moved_far_enough_stops_counting_and_the_reference_pulls_back():
    loss = ddpo(MODEL, STEPS)
    noise = jax.random.normal(jax.random.key(5), (4, 2))
    data = gather(jax.random.key(6), WEIGHTS, MODEL, reward, loss.kernel, loss.steps, noise)
    one = jax.tree.map(lambda a: a[0], data)
    grad = jax.jit(lambda loss, w, data: jax.grad(loss, argnums=1)(jax.random.key(0), w, data))
    size = lambda g: float(sum(jnp.sum(jnp.abs(a)) for a in jax.tree.leaves(g)))  # noqa: E731
    good, bad = (one._replace(advantage=jnp.float32(a), log_prob=one.log_prob - 1.0) for a in (1.0, -1.0))
    assert size(grad(loss, WEIGHTS, good)) == 0, "ratios are e > 1.1 already"
    assert size(grad(loss, WEIGHTS, bad)) > 0.1
    pulled, still = nk.replace(loss, kl=1.0), one._replace(advantage=jnp.float32(0.0))
    assert size(grad(pulled, WEIGHTS, still)) < 1e-5
    off = jax.tree.map(lambda a: a + 0.1, WEIGHTS)
    away = grad(pulled, off, still)
    assert float(sum(jnp.sum(a) for a in jax.tree.leaves(away))) > 0.1


def test_the_pull_back_is_the_divergence_between_the_kernels():
    """KL = |difference of means|^2 / (2 std^2), for each row that draws noise."""
    loss = nk.replace(ddpo(MODEL, STEPS), kl=1.0)
    data = gather(jax.random.key(6), WEIGHTS, MODEL, reward, loss.kernel, loss.steps, jnp.ones((2, 2)))
    one = jax.tree.map(lambda a: a[0], data)._replace(advantage=jnp.float32(0.0))
    off = jax.tree.map(lambda a: a + 0.1, WEIGHTS)
    rows = [jax.tree.map(lambda a, i=i: a[i], loss.steps) for i in range(loss.steps.num_steps - 1)]
    each = []
    for i, row in enumerate(rows):
        bases = [
            loss.kernel(nk.core.Lookahead(one.path[i], nk.replace(MODEL, variables=w)(one.path[i], row.t)), row)
            for w in (off, WEIGHTS)
        ]
        each.append(float(jnp.sum((bases[0].mean - bases[1].mean) ** 2) / (2.0 * bases[1].std ** 2)))
    got = [float(loss(jax.random.key(0), w, one)) for w in (off, WEIGHTS)]
    assert got[1] == pytest.approx(0.0, abs=1e-6)
    assert got[0] == pytest.approx(np.mean(each), rel=1e-3)


def test_flow_grpo_has_the_published_noise():
    steps = nk.grid(PATH, nk.grids.uniform(2000))
    row = jax.tree.map(lambda a: a[800], steps)
    std = flow_grpo(MODEL, STEPS).kernel(nk.core.Lookahead(X, X), row).std
    published = 0.7 * np.sqrt(row.sigma_t / (1 - row.sigma_t)) * np.sqrt(row.t - row.s)
    np.testing.assert_allclose(std, published, rtol=2e-3)


def test_advantages_are_of_their_group_and_cut():
    rewards = np.random.default_rng(0).normal(size=12).astype(np.float32)
    grouped = np.asarray(advantages(jnp.asarray(rewards), 4)).reshape(3, 4)
    np.testing.assert_allclose(grouped.mean(1), 0.0, atol=1e-5)
    np.testing.assert_allclose(grouped.std(1), 1.0, atol=1e-3)
    np.testing.assert_allclose(advantages(jnp.asarray(rewards) + 7.0, 4).reshape(3, 4), grouped, atol=1e-4)
    assert float(jnp.max(advantages(jnp.zeros(200).at[0].set(1.0)))) == 5.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DRaFT(MODEL, reward, STEPS, num_live=7), "num_live must be between 1 and 6"),
        (lambda: DRaFT(MODEL, reward, STEPS, num_copies=2), "needs num_live=1"),
        (lambda: DRaFT(MODEL, nk.rewards.HalfSpace(np.ones(2)), STEPS), "DRaFT needs a differentiable reward"),
        (lambda: DRaFT(MODEL, reward, STEPS, num_live=1.5), "num_live must be at least 1 and a whole number"),
        (lambda: AlignProp(MODEL, reward, STEPS, share=1.5), "share must lie in"),
        (lambda: AlignProp(MODEL, reward, STEPS, share=jnp.array([0.5, 1.5])), "share must lie in"),
        (
            lambda: gather(
                jax.random.key(0), MODEL.variables, MODEL, lambda x: x, nk.kernels.DDIM(), STEPS, jnp.ones((2, 2))
            ),
            "scalar",
        ),
        (lambda: AlignProp(MODEL, nk.rewards.HalfSpace(np.ones(2)), STEPS), "AlignProp needs a differentiable reward"),
        (lambda: PolicyGradient(MODEL, STEPS, ODE), "PolicyGradient needs a stochastic kernel"),
        (lambda: ddpo(MODEL, STEPS, clip=-1.0), "clip must be at least 0"),
        (lambda: advantages(jnp.ones(5), 2), "divide the 5 paths"),
    ],
)
def test_what_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
