"""The mean-shift rules: each a point of another, each against a step worked out by hand, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import Shrink

import ntrk_jax as nk
from ntrk_jax import guidance

CURVE = nk.schedules.VPCosine()
STRAIGHT = nk.schedules.RectifiedFlow()
X = jnp.array([0.9, -0.4, 0.2])


def key(seed=4):
    return jax.random.key(seed)


def bumpy(x0):
    """A reward of degree four."""
    return -jnp.sum((x0 - 0.7) ** 4) - 0.5 * x0[0] * x0[1]


@nk.pytree
class Straight:
    """The denoiser of N(0.2, 0.5) along the straight path."""

    def __call__(self, x, t, cond=None):
        gain = 0.5 * (1.0 - t) / (0.5 * (1.0 - t) ** 2 + t * t)
        return 0.2 + gain * (x - 0.2 * (1.0 - t))


def row(path, num=5, index=2):
    return jax.tree.map(lambda a: a[index], nk.grid(path, nk.grids.uniform(num)))


def shift(rule, kernel=None, path=CURVE, value=None, index=2):
    """The rule's tilt of the mean, and the look and base it was asked at."""
    probe = nk.Look(Shrink() if path is CURVE else Straight(), bumpy, grad=True, value=value)
    step = row(path, index=index)
    seen = probe(jax.random.key(1), X, step.t)[0]
    base = (kernel or nk.kernels.DDIM())(seen, step)
    return rule(seen, base, step, key=key(), probe=probe).mean, seen, base, step


DPS, TFG, UGD = guidance.DPS, guidance.TFG, guidance.UGD
SAME = {
    "TDS": (TFG(0.7, 0.0, 0, "velocity"), guidance.Twisted(0.7, noiseless=True)),
    "UGD, forward": (TFG(0.7, 0.0, 0, "velocity"), UGD(0.7, num_backward=0)),
    "UGD, both": (TFG(0.7, 0.7 * 0.02, 3, "velocity"), UGD(0.7, 0.02, 3)),
    "MPGD": (TFG(None, 0.05, 1), guidance.MPGD(0.05)),
    "MPGD, velocity": (TFG(None, 0.05, 2, "velocity"), guidance.MPGD(0.05, 2, "velocity")),
    "DPS": (TFG(lambda s: 0.3 * s.alpha_t / s.alpha_s, 0.0, 0), DPS(0.3, "squared")),
    "FreeDoM": (TFG(lambda s: 0.3 * s.alpha_t**2 / s.alpha_s, 0.0, 0), guidance.FreeDoM(0.3, "signal", "x")),
}


SMOOTHED = nk.values.Smoothed(CURVE, gamma=0.3, num_samples=3)


@pytest.fixture(scope="module")
def pairs():
    """The shifts of each pair of rules, without smoothing and with it, in one program."""

    def both(rules, value):
        return [shift(rule, value=value)[0] for rule in rules]

    return jax.jit(lambda: {name: [both(rules, v) for v in (None, SMOOTHED)] for name, rules in SAME.items()})()


@pytest.mark.parametrize("name", SAME)
def test_special_points_of_tfg(name, pairs):
    """LGD-MC's smoothing is the value's: it moves both rules of a pair, and moves them alike."""
    plain, smooth = pairs[name]
    for one, other in (plain, smooth):
        np.testing.assert_allclose(one, other, rtol=1e-5)
        assert np.max(np.abs(one)) > 1e-3
    assert np.max(np.abs(smooth[0] - plain[0])) > 1e-3


def test_a_strength_is_a_number_or_a_function_of_the_row():
    step = row(CURVE)
    assert guidance.base.strength_at(0.3, step) == 0.3
    assert float(guidance.base.strength_at(lambda at: 2.0 * at.sigma_t, step)) == 2.0 * float(step.sigma_t)


def test_freedom_moves_x0_by_a_share_of_its_noise():
    mean, seen, base, step = shift(guidance.FreeDoM(0.1))
    noise = (seen.x - step.alpha_t * seen.x0) / step.alpha_t  # the noise in x_t / alpha_t
    unguided = nk.kernels.DDIM()(seen, step).mean
    moved = seen._replace(x0=seen.x0 + 0.1 * jnp.linalg.norm(noise) / jnp.linalg.norm(seen.grad) * seen.grad)
    np.testing.assert_allclose(base.mean + mean, nk.kernels.DDIM()(moved, step).mean, rtol=1e-5)
    assert np.max(np.abs(base.mean + mean - unguided)) > 1e-3


KERNELS = (
    nk.kernels.DDIM(), nk.kernels.DDIM(0.3), nk.kernels.DDPM(), nk.kernels.FlowODE(), nk.kernels.FlowSDE(0.7),
    nk.kernels.Correlated(0.6), nk.kernels.Correlated(-0.5), nk.kernels.EDM(0.4, noise=1.05),
)  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_velocity_space_is_the_kernel_at_the_shifted_x0(kernel):
    """In eps too: the kernel asked again at a look whose x0 is the guided one."""
    for path in (CURVE, STRAIGHT):
        mean, seen, base, step = shift(guidance.Twisted(0.4, noiseless=True), kernel, path)
        guided = seen._replace(x0=seen.x0 + 0.4 * step.sigma_t**2 / step.alpha_t * seen.grad)
        np.testing.assert_allclose(base.mean + mean, kernel(guided, step).mean, rtol=1e-5, atol=1e-6)


def test_velocity_space_is_euler_on_a_guided_velocity():
    """dx/dt = u on the straight path: u - delta / t for a shifted x0, u - t / (1 - t) g for a shifted score."""
    for rule, change in (
        (guidance.MPGD(0.05, space="velocity"), lambda look, t: -0.05 * jax.grad(bumpy)(look.x0) / t),
        (guidance.Twisted(0.4, noiseless=True), lambda look, t: -t / (1.0 - t) * 0.4 * look.grad),
    ):
        mean, seen, base, step = shift(rule, nk.kernels.FlowODE(), STRAIGHT)
        velocity = (seen.x - seen.x0) / step.t + change(seen, step.t)
        np.testing.assert_allclose(base.mean + mean, seen.x - velocity * (step.t - step.s), rtol=1e-5)


def test_velocity_space_is_euler_maruyama_on_a_guided_score_to_first_order():
    def gap(width):
        step = jax.tree.map(lambda a: a[0], nk.grid(STRAIGHT, jnp.array([0.5, 0.5 - width, 0.0])))
        seen = nk.Lookahead(X, 0.5 * X, None, jnp.array([0.3, -1.0, 0.5]))
        base = nk.kernels.FlowSDE(diffusion=lambda t: 0.8 * jnp.ones_like(t))(seen, step)
        mean = guidance.Twisted(1.0)(seen, base, step, key=key(), probe=None).mean
        drift = (step.t / (1.0 - step.t) + 0.5 * 0.8**2) * seen.grad  # -u + g^2 / 2 score, both shifted
        return float(jnp.max(jnp.abs(mean - width * drift)))

    assert gap(0.005) < 0.3 * gap(0.01) < 1e-3  # second order: a quarter


def drift(rule, num):
    """How far the flow is moved by a rule of strength 0.1."""
    look = nk.Look(Straight(), nk.rewards.Linear(jnp.ones(3)), grad=True)
    kernel, grid = nk.kernels.FlowODE(), nk.grid(STRAIGHT, nk.grids.uniform(num))

    def run(strength):
        return nk.run(nk.Single(look, kernel, nk.replace(rule, strength=strength)), key(), X, grid)[0].look.x

    off, on = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.1]))
    return float(jnp.mean(on - off))


def test_strength_carries_over_to_another_grid_in_velocity_space_alone():
    score, in_x = guidance.Twisted(noiseless=True), guidance.MPGD(space="x")
    assert 0.9 < drift(score, 64) / drift(score, 16) < 1.1
    assert 3.5 < drift(in_x, 64) / drift(in_x, 16) < 4.5


def test_twisted_reaches_the_tilted_mean_at_any_number_of_steps():
    """N(0, I) tilted by exp(a.x) is N(a, I): the guided flow from alpha_1 a is alpha_t a, in 3 steps as in 300."""
    a, path = jnp.array([1.0, -0.5, 2.0]), nk.schedules.VPLinear()
    look = nk.Look(lambda x, t: path(t)[0] * x, nk.rewards.Linear(a), grad=True)
    grid = nk.grid(path, nk.grids.uniform(3))

    def run(strength):
        rule = guidance.Twisted(strength, noiseless=True)
        return nk.run(nk.Single(look, nk.kernels.DDIM(0.0), rule), key(), grid.alpha_t[0] * a, grid)[0].look.x

    plain, guided = jax.jit(jax.vmap(run))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(guided, a, rtol=1e-4)
    assert np.max(np.abs(plain - a)) > 0.5


def test_an_exact_value_makes_the_tilted_denoiser():
    mixture, reward = nk.targets.das9()
    look = nk.Look(nk.models.Exact(mixture, CURVE), reward, True, nk.values.Exact(mixture, CURVE, reward, 2.0))
    tilted, kernel, step = nk.targets.tilt(mixture, reward, 2.0).mixture, nk.kernels.DDIM(0.7), row(CURVE)

    def means(x):
        seen = look(key(), x, step.t)[0]
        base = kernel(seen, step)
        shifted = base.mean + guidance.Twisted(0.5, noiseless=True)(seen, base, step, key=key(), probe=look).mean
        return shifted, base.mean, kernel(seen._replace(x0=tilted.denoise(x, step.alpha_t, step.sigma_t)), step).mean

    shifted, base, expected = jax.jit(jax.vmap(means))(jnp.array([[0.9, -0.4], [-2.0, 1.5]]))
    np.testing.assert_allclose(shifted, expected, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(base - expected)) > 0.1


def test_twisted_clamps_x0_and_keeps_an_exact_density():
    rule = guidance.Twisted(50.0, clamp=(-0.3, 0.4))
    mean, seen, base, step = shift(rule)
    clamped = jnp.clip(seen.x0 + 50.0 * step.sigma_t**2 / step.alpha_t * seen.grad, -0.3, 0.4)
    np.testing.assert_allclose(base.mean + mean, nk.kernels.DDIM()(seen._replace(x0=clamped), step).mean, atol=1e-5)
    moved, _ = nk.move(key(), seen, step, nk.kernels.DDIM(), rule)

    def log_prob(centre):
        return -0.5 * jnp.sum(((moved.x - centre) / base.std) ** 2)

    np.testing.assert_allclose(moved.log_ratio, log_prob(base.mean) - log_prob(base.mean + mean), rtol=1e-3)
    assert (rule.exact, guidance.Twisted(noiseless=True).exact) == (True, False)


def test_smoothing_keeps_a_linear_gradient_whole():
    """A log-mean-exp divided by the number of draws twice would give a quarter of it."""
    a = jnp.array([1.0, -2.0, 0.5])
    value = nk.values.Smoothed(CURVE, temperature=0.7, num_samples=4)
    grad = jax.grad(lambda x0: value(key(), X, 0.5, x0, nk.rewards.Linear(a)))(X)
    np.testing.assert_allclose(grad, a, rtol=1e-5)


@pytest.mark.parametrize(("structure", "width"), [("decrease", 0.6), ("increase", 0.8), ("constant", 1.0)])
def test_smoothing_has_the_width_of_its_structure(structure, width):
    """E exp(a.(x0 + w z)) = exp(a.x0 + w^2 |a|^2 / 2), with alpha = 0.8 and sigma = 0.6."""
    value = nk.values.Smoothed(lambda t: (0.8, 0.6), 2.0, 0.9, 20_000, structure)
    a = jnp.array([1.0, -2.0, 0.5])
    expected = float(a @ X) + 0.5 * (0.9 * width) ** 2 * float(a @ a) / 2.0
    assert abs(float(value(key(), X, 0.5, X, nk.rewards.Linear(a))) - expected) < 0.1 * width


def test_a_structure_over_one_row_from_noise_is_flat_zero():
    grid = nk.grid(CURVE, nk.grids.uniform(1))
    np.testing.assert_array_equal(guidance.Structure.over(grid, 0.4)(grid), [0.0])


@pytest.mark.parametrize("kind", ["increase", "decrease", "constant"])
def test_structures_are_normalised_over_a_grid(kind):
    grid = nk.grid(CURVE, nk.grids.uniform(7))
    strengths = np.asarray(guidance.Structure.over(grid, 0.4, kind)(grid))
    np.testing.assert_allclose(strengths.mean(), 0.4, rtol=1e-5)
    change = {"increase": 1, "decrease": -1, "constant": 0}[kind]
    np.testing.assert_array_equal(np.sign(np.round(np.diff(strengths), 6)), np.full(6, change))
    share = np.asarray((grid.alpha_t / grid.alpha_s) ** 2)  # on a variance-preserving path
    plain = {"increase": share, "decrease": 1 - share, "constant": np.ones(7)}[kind]
    np.testing.assert_allclose(guidance.Structure(1.0, kind)(grid), plain, rtol=1e-4, atol=1e-6)


RULES = (guidance.Twisted(1.0, noiseless=True), guidance.FreeDoM(), UGD(), TFG(), TFG(space="velocity"))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rows_from_pure_noise_and_to_clean_data_stay_finite(rule):
    assert float(row(STRAIGHT, 3, 0).alpha_t) == 0.0
    for index in (0, 4):
        mean = shift(rule, nk.kernels.FlowODE(), STRAIGHT, index=index)[0]
        assert np.all(np.isfinite(mean))
    assert np.max(np.abs(mean)) > 0


def test_a_gradient_that_is_not_finite_makes_no_step_and_is_flagged():
    def root(x0):
        return jnp.sum(jnp.sqrt(jnp.abs(x0)))

    look = nk.Look(lambda x, t: jnp.where(x[0] > 0, x, jnp.zeros_like(x)), root)
    grid = nk.grid(STRAIGHT, jnp.array([0.5, 0.0]))
    rule = guidance.MPGD(0.1)
    wrapped = guidance.Sum((guidance.Window(rule), guidance.Unguided()))
    sampler = nk.Single(look, nk.kernels.DDIM(), wrapped)
    run = jax.jit(jax.vmap(nk.run, (None, 0, 0, None)))
    state, _ = run(sampler, jax.random.split(key(), 2), jnp.array([[1.0, 1.0], [-1.0, 1.0]]), grid)
    assert state.status.tolist() == [0, nk.Status.NONFINITE_GRAD]
    np.testing.assert_allclose(state.look.x, [[1.05, 1.05], [0.0, 0.0]], atol=1e-6)


class Shifted:
    """A denoiser that moves with its condition."""

    def __call__(self, x, t, cond=0.0):
        return Shrink()(x, t) + cond


@pytest.mark.parametrize("name", ["mpgd", "tmpd"])
def test_classifier_free_guidance_goes_wherever_a_model_goes(name):
    """Strength 1 is the conditional model, at twice the calls."""
    reward = nk.rewards.Quadratic(1.0, 0.3)
    free = nk.models.ClassifierFree(Shifted(), 1.0, 0.0, 0.4)
    grid, run = nk.grid(CURVE, nk.grids.uniform(3)), jax.jit(nk.run)
    option = {} if name == "mpgd" else {"schedule": CURVE}
    build = nk.methods.CATALOGUE[name].build
    one, other = (
        run(build(model, reward, (3,), **option), key(), X, grid)[0]
        for model in (free, lambda x, t: Shifted()(x, t, 0.4))
    )
    np.testing.assert_allclose(one.look.x, other.look.x, atol=1e-5)
    assert (int(one.evals.model), int(one.evals.model_vjp)) == (2 * other.evals.model, 2 * other.evals.model_vjp)


class ValueOnly:
    differentiable = False

    def __call__(self, x0):
        return jnp.sum(x0)


VALUE_ONLY = ValueOnly()


def single(rule, reward=VALUE_ONLY):
    return nk.Single(nk.Look(Shrink(), reward), nk.kernels.DDIM(), rule)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: single(guidance.MPGD()), ValueError, "MPGD differentiates the reward at x0.*ValueOnly"),
        (lambda: single(guidance.Window(guidance.MPGD())), ValueError, "Window differentiates the reward"),
        (lambda: single(guidance.Sum((guidance.MPGD(),))), ValueError, "Sum differentiates the reward"),
        (lambda: single(TFG(None)), ValueError, "TFG differentiates the reward"),
        (lambda: single(guidance.MPGD(), None), ValueError, "the look has no reward"),
        (lambda: single(TFG(1.0), bumpy), ValueError, "grad=True"),
        (lambda: nk.methods.tds_shift(Shrink(), bumpy, kernel=nk.kernels.FlowODE()), ValueError, "FlowODE has none"),
        (lambda: guidance.MPGD(space="noise"), ValueError, "space must be 'x' or 'velocity'"),
        (lambda: guidance.MPGD(-0.1), ValueError, "MPGD strength must lie in"),
        (lambda: guidance.MPGD(num_steps=0), ValueError, "num_steps must be at least 1"),
        (lambda: guidance.FreeDoM(rate="alpha"), ValueError, "rate must be 'noise' or 'signal'"),
        (lambda: guidance.FreeDoM(-1.0), ValueError, "FreeDoM strength must lie in"),
        (lambda: guidance.Twisted(-1.0), ValueError, "Twisted strength must lie in"),
        (lambda: UGD(backward=-1.0), ValueError, "UGD backward must lie in"),
        (lambda: UGD(num_backward=-1), ValueError, "num_backward must be at least 0"),
        (lambda: TFG(mu=-1.0), ValueError, "TFG mu must lie in"),
        (lambda: TFG(num_inner=-1), ValueError, "num_inner must be at least 0"),
        (lambda: guidance.Structure(kind="flat"), ValueError, "increase, decrease, constant"),
        (lambda: nk.values.Smoothed(CURVE, gamma=-1.0), ValueError, "gamma must be at least 0"),
        (lambda: nk.values.Smoothed(CURVE, structure="flat"), ValueError, "structure must be"),
        (lambda: nk.methods.lgd_mc(lambda x, t: x, bumpy), ValueError, "pass schedule="),
        (lambda: nk.methods.pigdm(Shrink(), bumpy), TypeError, "must be linear or quadratic"),
    ],
)
def test_build_time(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_schedules_are_found_through_wrappers():
    model = nk.models.Cast(nk.models.Reschedule(Shrink(), CURVE, STRAIGHT))
    assert nk.methods.lgd_mc(model, bumpy).look.value.schedule == STRAIGHT
    for given, strength in (({}, 1.0), ({"temperature": 0.1}, 10.0), ({"temperature": 0.1, "strength": 3.0}, 3.0)):
        assert nk.methods.lgd_mc(model, bumpy, **given).guidance.strength == pytest.approx(strength)
    assert nk.methods.lgd_mc(model, bumpy, schedule=CURVE).look.value.schedule == CURVE
