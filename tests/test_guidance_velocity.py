"""Training-free velocity guidance: exact where it says so, the same in x0 and in velocity, and no call of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax.guidance import FirstOrder, Reweighted

STRAIGHT, CURVE = nk.schedules.RectifiedFlow(), nk.schedules.VPCosine()
SPREAD, MEAN = 0.7, (0.3, -0.2)
X = np.array([0.8, -0.5])
BETA = 0.4
COV = np.array([[0.9, 0.3], [0.3, 0.5]])


def gaussian(cov=None):
    cov = SPREAD**2 * np.eye(2) if cov is None else cov
    return nk.targets.GaussianMixture(np.ones(1), np.array([MEAN]), cov[None])


def pull(k):
    """R = -(k / 2) |x - c|^2."""
    c = np.array([0.5, 1.5])
    return nk.rewards.Quadratic(k, k * c, -0.5 * k * float(c @ c))


def shifted(rule, law, reward, schedule, t):
    """x0 + delta, read off a row that ends at t = 0 without noise, where x_s is x0 itself."""
    x, (alpha, sigma) = jnp.asarray(X), schedule(t)
    step = nk.core.Step(t, jnp.zeros_like(t), alpha, sigma, jnp.ones_like(t), jnp.zeros_like(t))
    probe = nk.Look(nk.models.Exact(law, schedule), reward)
    look, _, _ = probe(jax.random.key(0), x, t)
    base = nk.kernels.FlowODE()(look, step)
    return base.mean + rule(look, base, step, key=jax.random.key(1), probe=probe).mean


def errors(rule, law, reward, schedule=STRAIGHT, times=(0.05, 0.5, 0.95, 1.0)):
    """Of the shifted x0 against the tilted law's own denoiser, at every time, as a maximum."""
    tilted = nk.targets.tilt(law, reward, BETA).mixture

    def at(t):
        return shifted(rule, law, reward, schedule, t) - tilted.denoise(jnp.asarray(X), *schedule(t))

    return np.max(np.abs(jax.jit(jax.vmap(at))(jnp.array(times))), axis=1)


@pytest.mark.parametrize("schedule", [STRAIGHT, CURVE])
def test_the_exactness_cases(schedule):
    line, round_reward = nk.rewards.Linear(jnp.array([1.0, -0.4])), pull(2.5)
    with jax.enable_x64():
        full = lambda x, alpha, sigma: gaussian(COV).posterior(x, alpha, sigma).cov()  # noqa: E731
        assert np.max(errors(FirstOrder(1 / BETA, SPREAD), gaussian(), line, schedule)) < 1e-6
        assert np.max(errors(FirstOrder(1 / BETA, SPREAD, 2.5), gaussian(), round_reward, schedule)) < 1e-6
        damped = FirstOrder(1 / BETA, curvature=2.5, covariance=full)
        assert np.max(errors(damped, gaussian(COV), round_reward, schedule)) < 1e-6
        if schedule is STRAIGHT:
            assert np.max(errors(FirstOrder(1 / BETA, covariance=full), gaussian(COV), line, schedule)) < 1e-6
            plain = errors(FirstOrder(1 / BETA, SPREAD), gaussian(), round_reward, schedule)
            assert plain[-1] > 1.0, "without damping it overshoots at noise"
            assert np.max(errors(FirstOrder(1 / BETA, SPREAD), gaussian(COV), line, schedule)) > 0.05


def test_first_order_is_of_second_order_in_the_inverse_temperature():
    """For a mixture, whose posterior is no Gaussian, with the posterior's own covariance."""
    with jax.enable_x64():
        law, t, slope = nk.targets.skewed(2).mixture, jnp.array(0.6), np.array([0.8, 0.6])
        rule = FirstOrder(1.0, covariance=lambda x, alpha, sigma: law.posterior(x, alpha, sigma).cov())

        def move(s):
            return shifted(nk.replace(rule, strength=s), law, nk.rewards.Linear(slope), STRAIGHT, t)

        moved = jax.jit(jax.vmap(move))(jnp.array([1e-2, 5e-3]))
        exact = [nk.targets.tilt(law, nk.rewards.Linear(slope), 1 / s).mixture for s in (1e-2, 5e-3)]
        exact = [law.denoise(jnp.asarray(X), *STRAIGHT(t)) for law in exact]
        coarse, fine = np.linalg.norm(np.asarray(moved) - np.asarray(exact), axis=1)
    assert 1e-8 < fine < 1e-3
    assert 3.7 < coarse / fine < 4.3


def atoms():
    """A law of a few atoms, which the mixture's closed forms know as components of variance 1e-10."""
    points = np.array([[0.0, 1.0], [0.4, -0.3], [1.2, 0.2], [-0.8, -0.9]])
    law = nk.targets.GaussianMixture(np.full(4, 0.25), points, np.tile(1e-10 * np.eye(2), (4, 1, 1)))
    return law, points


def test_stored_draws_are_exact_for_the_law_of_the_draws():
    with jax.enable_x64():
        (law, points), reward = atoms(), pull(2.5)
        rule = Reweighted(points, jax.vmap(reward)(jnp.asarray(points)), 1 / BETA)
        assert np.max(errors(rule, law, reward, CURVE, (0.2, 0.6, 1.0))) < 1e-6
        assert np.max(errors(Reweighted(points, np.zeros(4), 1 / BETA), law, reward, CURVE, (0.6,))) > 0.1


def test_stored_draws_converge_as_one_over_the_root_of_their_number():
    problem, t = nk.targets.pulled("unequal", 0.3), jnp.array(0.7)
    exact = nk.targets.tilt(*problem).mixture.denoise(jnp.asarray(X), *STRAIGHT(t))

    def rms(num):
        def once(key):
            draws = problem.mixture.sample(key, num)
            rule = Reweighted(draws, jax.vmap(problem.reward)(draws))
            return jnp.sum(jnp.square(shifted(rule, *problem, STRAIGHT, t) - exact))

        return float(jnp.sqrt(jnp.mean(jax.lax.map(once, jax.random.split(jax.random.key(3), 32)))))

    few, many = rms(64), rms(1024)
    assert many < 0.1
    assert 2.6 < few / many < 6.0  # 4, give or take the 32 repeats


def rules():
    points = np.array([[0.0, 1.0], [0.4, -0.3], [1.2, 0.2]])
    return [FirstOrder(1.5, SPREAD), FirstOrder(1.5, SPREAD, 2.0), Reweighted(points, np.array([0.0, 1.0, -2.0]), 1.5)]


@pytest.mark.parametrize("schedule", [STRAIGHT, CURVE])
def test_x0_and_velocity_agree_on_every_kernel(schedule):
    """A guided kernel is the kernel of a model whose x0, or whose velocity, is the shifted one."""
    law, reward = gaussian(COV), pull(2.0)
    step = jax.tree.map(lambda a: a[3], nk.grid(schedule, nk.grids.uniform(8)))
    probe = nk.Look(nk.models.Exact(law, schedule), reward)
    kernels = (nk.kernels.FlowODE(), nk.kernels.FlowSDE(), nk.kernels.DDIM(0.5), nk.kernels.DDPM())

    @jax.jit
    def seen(rules):
        look, _, _ = probe(jax.random.key(0), jnp.asarray(X), step.t)
        slopes = nk.schedules.rates(schedule, step.t)
        out = []
        for rule in rules:
            star = look._replace(x0=shifted(rule, law, reward, schedule, step.t))
            v, moved = (
                nk.tweedie.from_x0("velocity", a.x0, a.x, step.alpha_t, step.sigma_t, slopes) for a in (look, star)
            )
            bases = [kernel(look, step) for kernel in kernels]
            tilts = [rule(look, base, step, key=jax.random.key(1), probe=probe) for base in bases]
            guided = [base.mean + tilt.mean for base, tilt in zip(bases, tilts, strict=True)]
            out.append((star.x0 - look.x0, moved - v, guided, [kernel(star, step).mean for kernel in kernels]))
        return out, slopes[0] - slopes[1] * step.alpha_t / step.sigma_t

    out, factor = seen(rules())
    for delta, change, guided, expected in out:
        assert np.linalg.norm(delta) > 0.05
        np.testing.assert_allclose(change, factor * delta, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(guided, expected, atol=1e-5)
    if schedule is STRAIGHT:
        np.testing.assert_allclose(factor, -1.0 / step.t, rtol=1e-6)


def test_the_damped_flow_samples_the_tilted_gaussian():
    """Mean and spread of the flow's end, for 2000 normal noises at 60 steps of its ODE."""
    problem = nk.targets.pulled("gaussian")
    sampler = nk.methods.flow_damped(nk.models.Exact(problem.mixture, STRAIGHT), problem.reward, spread=0.5**0.5)
    noise = jax.random.normal(jax.random.key(5), (2000, 2))
    noise = (noise - noise.mean(0)[None]) / noise.std(0)[None]
    run = jax.jit(jax.vmap(nk.run, (None, None, 0, None)))
    state, _ = run(sampler, jax.random.key(0), noise, nk.grid(STRAIGHT, nk.grids.uniform(60)))
    tilted = nk.targets.tilt(*problem).mixture
    np.testing.assert_allclose(state.look.x.mean(0), tilted.means[0], atol=0.03)
    np.testing.assert_allclose(state.look.x.std(0), np.sqrt(0.125), atol=0.02)
    assert state.evals.model[0] == 60
    assert state.evals.model_vjp[0] == 0


def test_what_the_methods_read_off_their_model_and_reward():
    problem = nk.targets.pulled("gaussian")
    exact = nk.models.Reschedule(nk.models.Exact(problem.mixture, STRAIGHT), STRAIGHT, STRAIGHT)
    rule = nk.methods.flow_monte_carlo(exact, problem.reward, num_samples=8).guidance
    assert rule.samples.shape == (8, 2)
    np.testing.assert_allclose(rule.rewards, [problem.reward(x) for x in rule.samples], rtol=1e-6)
    bent = nk.rewards.Quadratic(np.diag([1.0, 3.0]))
    for reward, curvature in ((problem.reward, 6.0), (bent, 2.0), (nk.rewards.Linear(np.ones(2)), 0.0)):
        assert nk.methods.flow_damped(exact, reward).guidance.curvature == curvature
    assert nk.methods.flow_damped(exact, jnp.sum, curvature=0.5, temperature=2.0).guidance.strength == 0.5


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: FirstOrder(-1.0), ValueError, "FirstOrder strength must lie in"),
        (lambda: FirstOrder(curvature=-1.0), ValueError, "FirstOrder curvature must lie in"),
        (lambda: Reweighted(np.zeros((3, 2)), np.zeros(2)), ValueError, "one reward for each stored sample"),
        (lambda: Reweighted(np.zeros((1, 2)), np.array([np.inf])), ValueError, "finite rewards"),
        (lambda: nk.methods.flow_monte_carlo(lambda x, t: x, jnp.sum), ValueError, "pass samples="),
        (lambda: nk.methods.flow_damped(lambda x, t: x, jnp.sum), TypeError, "give curvature=k"),
        (
            lambda: nk.Single(nk.Look(lambda x, t: x), nk.kernels.FlowODE(), FirstOrder()),
            ValueError,
            "FirstOrder differentiates the reward at x0",
        ),
        (lambda: nk.targets.pulled("square"), ValueError, "setting must be one of quadratic"),
    ],
)
def test_what_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
