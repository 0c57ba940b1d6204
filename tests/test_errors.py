"""What is refused, and what the refusal says: build time, trace time, run time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import ntrk_jax as nk

VP = nk.models.Exact(nk.targets.skewed(2)[0], nk.schedules.VPCosine())
MIXTURE = nk.targets.skewed(2)[0]
STEPS = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(3))
X, KEY = jnp.ones(3), jax.random.key(0)


def model(x, t):
    return 0.5 * x


def total(x0):
    return jnp.sum(x0)


def single(**kwargs):
    return nk.Single(nk.Look(model, total, grad=True), nk.kernels.DDIM(), **kwargs)


def smc(**parts):
    return nk.SMC(nk.Look(model, total), nk.kernels.DDIM(), **parts)


def exact(temperature):
    law, reward = nk.targets.skewed(2)
    return nk.values.Exact(law, nk.schedules.VPCosine(), reward, temperature)


class ValueOnly:
    differentiable = False

    def __call__(self, x0):
        return jnp.sum(x0)


def mixed():
    return nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.1, where="mixed")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nk.Look(3.0), TypeError, "called as model"),
        (lambda: nk.guidance.Window(nk.guidance.DPS(), 0.9, 0.2), ValueError, "Window needs low < high"),
        (lambda: nk.guidance.Window(3), TypeError, "the rule of Window must be a rule such as"),
        (lambda: nk.guidance.Ending(nk.guidance.DPS), TypeError, "the rule of Ending must be an object.*class DPS"),
        (lambda: nk.guidance.Limit(3, 1.0), TypeError, "the rule of Limit must be a rule such as"),
        (lambda: nk.guidance.Sum(nk.guidance.DPS()), TypeError, "Sum needs a tuple of rules"),
        (lambda: nk.guidance.Sum((3,)), TypeError, "a rule of Sum must be a rule such as"),
        (lambda: nk.guidance.Sum((mixed(), mixed())), ValueError, "at most one rule of a Sum may project"),
        (lambda: nk.guidance.Twisted(1.0, clamp=(1.0, -1.0)), ValueError, "clamp needs low < high"),
        (lambda: nk.guidance.Structure(1.0, mean=0.0), ValueError, "Structure mean must lie in"),
        (lambda: nk.guidance.DPS(None), TypeError, "must be a number or a function of the grid's row, got None"),
        (lambda: nk.guidance.Calibrated(lambda s: 1.0), TypeError, "temperature must be a number, got"),
        (lambda: nk.guidance.NTRK(lambda g, key: g), TypeError, "whiten must have a method project"),
        (lambda: nk.guidance.NTRK(None), TypeError, "whiten must be one such as nk.whitening.TypicalSet"),
        (lambda: nk.kernels.EDM(0.2, low=5.0, high=1.0), ValueError, "EDM needs low <= high"),
        (lambda: nk.schedules.VPLinear("a", "b"), ValueError, "0 < beta_min < beta_max, got 'a' and 'b'"),
        (lambda: nk.schedules.EDM(float("inf")), ValueError, "a finite sigma_max > 0, got inf"),
        (lambda: nk.schedules.VE(0.01, None), ValueError, "0 < sigma_min < sigma_max"),
        (lambda: nk.values.Smoothed(nk.schedules.VPCosine), TypeError, "schedule must be an object.*VPCosine"),
        (lambda: nk.values.MonteCarlo(MIXTURE, None), TypeError, "schedule must be one such as"),
        (lambda: nk.values.Exact(MIXTURE, nk.schedules.VPCosine, total), TypeError, "schedule must be an object"),
        (lambda: nk.rewards.Weighted(total, 1.0), TypeError, "Weighted needs a tuple of rewards"),
        (lambda: MIXTURE.tilt(total, 0.0), ValueError, "temperature must be positive, got 0"),
        (
            lambda: nk.methods.ntrk_climb(model, total, (2,), kernel=nk.kernels.FlowODE()),
            ValueError,
            "FlowODE has none",
        ),
        (
            lambda: nk.methods.ntrk_x0(model, total, (2,), value=exact(1.0)),
            ValueError,
            "climbs a function of x0, got.*Ex",
        ),
        (lambda: nk.methods.lgd_mc(VP, total, strength=9.0, guidance=nk.guidance.DPS(0.1)), ValueError, "or a rule"),
        (
            lambda: nk.methods.svdd(model, total, temperature=0.1, value=exact(2.0)),
            ValueError,
            "made for temperature 2.0, and the method aims at 0.1",
        ),
        (
            lambda: nk.methods.flow_first_order(model, total, temperature=0.0),
            ValueError,
            "temperature must be positive",
        ),
        (
            lambda: nk.samplers.BestOfN(nk.samplers.Travel(nk.Single(nk.Look(model), nk.kernels.DDIM())), 4),
            ValueError,
            "reward",
        ),
        (lambda: nk.kernels.DDIM("a"), TypeError, "DDIM eta must be a number, got 'a'"),
        (lambda: nk.Look(model, grad=True), ValueError, "needs a reward"),
        (lambda: nk.Look(model, ValueOnly(), grad=True), ValueError, "gives values only"),
        (lambda: nk.Look(model, nk.models.Counted(ValueOnly(), nk.models.Counter()), True), ValueError, "values only"),
        (lambda: nk.Look(model, total, value=total), TypeError, "one of nk.values"),
        (lambda: nk.methods.ntrk(model, total, (3,), kernel=nk.kernels.FlowODE()), ValueError, "FlowODE has none"),
        (lambda: nk.methods.dps(model, total, (3,), kernel=nk.kernels.DDIM(0.0)), ValueError, "DDIM has none"),
        (lambda: nk.Single(nk.Look(model, total), nk.kernels.DDIM(), nk.guidance.DPS()), ValueError, "grad=True"),
        (lambda: nk.Single(nk.Look(model), nk.kernels.DDIM(), "ntrk"), TypeError, "must be a rule"),
        (lambda: nk.Single(model, nk.kernels.DDIM()), TypeError, "look must be nk.Look.*wrap the model"),
        (lambda: nk.Single(nk.Look(model), None), TypeError, "kernel must be a reverse kernel.*got NoneType"),
        (lambda: nk.Single(nk.Look(model), nk.kernels.DDIM), TypeError, "got the class DDIM"),
        (lambda: single(guidance=nk.guidance.DPS), TypeError, "guidance must be an object, got the class DPS"),
        (lambda: nk.methods.ntrk(model, total, (3,), kernel=nk.kernels.Correlated(-1.0)), ValueError, "Correlated has"),
        (lambda: nk.methods.ntrk(model, total, (3,), kernel=nk.kernels.EDM(0.0)), ValueError, "EDM has none"),
        (lambda: nk.methods.fk(model, total, kernel=nk.kernels.Correlated(1.0)), ValueError, "draws no noise"),
        (lambda: nk.BestOfN(nk.Single(nk.Look(model), nk.kernels.DDIM()), 2), ValueError, "chooses by reward"),
        (lambda: nk.BestOfN(single(), 0), ValueError, "num_particles must be at least 1"),
        (lambda: nk.BestOfN(single(), 2.5), ValueError, "a whole number, got 2.5"),
        (lambda: nk.methods.tds(model, total, num_particles=2.5), ValueError, "num_particles must be at least 1"),
        (lambda: nk.methods.tds(model, total, temperature=0.0), ValueError, "temperature must be positive, got 0.0"),
        (lambda: nk.methods.das(model, total, temperature=-1.0), ValueError, "temperature must be positive, got -1.0"),
        (lambda: nk.methods.das(model, total, schedule=None), ValueError, "temper by .*; schedule is for tds and fk"),
        (lambda: nk.methods.fk_max(model, total, schedule="auto"), ValueError, "'max' builds up by itself"),
        (lambda: nk.methods.fk(model, total, potential="diff"), ValueError, "'max' or 'sum', got 'diff'"),
        (lambda: smc(resample=nk.resampling.Systematic), TypeError, "resample must be an object.*class Systematic"),
        (lambda: smc(potential=0.5), TypeError, "potential must be one such as .*got 0.5"),
        (lambda: smc(when=0.5), TypeError, "when must be one such as Spaced.*got 0.5"),
        (lambda: nk.Look(model, nk.rewards.Linear), TypeError, "reward must be an object, got the class Linear"),
        (lambda: nk.Single(nk.Look(model), nk.guidance.DPS(1.0)), TypeError, "reverse kernel .*got the rule DPS"),
        (
            lambda: nk.methods.calibrated(model, total, (2,), temperature=0.5, value=exact(2.0)),
            ValueError,
            "made for temperature 2.0, and the method aims at 0.5",
        ),
        (
            lambda: nk.samplers.log_z(nk.State(None, jnp.zeros(()), None, None)),
            ValueError,
            "state of an SMC population",
        ),
        (lambda: nk.samplers.log_z(nk.State(None, jnp.zeros(4), None, None)), ValueError, "got a State with .4,"),
        (
            lambda: nk.guidance.NTRK(nk.whitening.UnitNorm),
            TypeError,
            "whiten must be an object, got the class UnitNorm",
        ),
        (
            lambda: nk.guidance.NTRK(nk.whitening.UnitNorm(), "big"),
            TypeError,
            "NTRK strength must be a number.*got 'big'",
        ),
        (
            lambda: nk.Look(model, nk.rewards.Weighted((total, ValueOnly()), (1, 1)), True),
            ValueError,
            "ValueOnly gives",
        ),
        (lambda: nk.models.Exact(nk.targets.skewed(2).mixture, "cosine"), TypeError, "schedule must be.*got 'cosine'"),
        (
            lambda: nk.models.Exact(model, nk.schedules.VPCosine()),
            TypeError,
            "needs a target with denoise.*got Function",
        ),
        (lambda: nk.grid(nk.schedules.VPCosine, nk.grids.uniform(4)), TypeError, "got the class VPCosine"),
        (lambda: nk.grids.uniform(2.5), ValueError, "num_steps must be at least 1 and a whole number, got 2.5"),
        (lambda: nk.guidance.NTRK(nk.whitening.UnitNorm(), 1.0), ValueError, r"must lie in \[0, 1\), got 1.0"),
        (lambda: nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.1, where="mean"), ValueError, "'gradient' or 'mixed'"),
        (lambda: nk.guidance.Calibrated(0.0), ValueError, "temperature must lie in"),
        (lambda: nk.guidance.Calibrated(1.0, max_strength=1.0), ValueError, "max_strength"),
        (lambda: nk.guidance.DPS(-1.0), ValueError, "DPS strength must lie in"),
        (lambda: nk.guidance.DPS(convention="cubed"), ValueError, "norm, squared, likelihood"),
    ],
)
def test_build_time(build, error, message):
    with pytest.raises(error, match=message):
        build()


class Bare:
    """A rule that returns the shift itself."""

    needs_grad, exact = False, True

    def __call__(self, look, base, step, *, key, probe):
        return 0.1 * look.x0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nk.run(single(), jax.random.PRNGKey(0), X, STEPS), TypeError, "jax.random.key"),
        (lambda: nk.run(single(), 0, X, STEPS), TypeError, "typed key"),
        (lambda: nk.run(nk.Single, jax.random.key(0), X, STEPS), TypeError, "sampler must be one such as nk.Single"),
        (lambda: nk.run(single(), jax.random.split(jax.random.key(0)), X, STEPS), ValueError, "jax.vmap"),
        (lambda: nk.run(single(), jax.random.key(0), jnp.ones(3, int), STEPS), TypeError, "floating-point"),
        (lambda: nk.run(single(), jax.random.key(0), jnp.float32(1.0), STEPS), TypeError, "at least one axis"),
        (lambda: nk.run(single(), jax.random.key(0), X, jnp.ones(3)), TypeError, "nk.grid"),
        (lambda: nk.run(single(), jax.random.key(0), X, STEPS._replace(t=jnp.ones(2))), ValueError, "one shape"),
        (lambda: nk.run(nk.BestOfN(single(), 4), jax.random.key(0), jnp.ones((2, 3)), STEPS), ValueError, "4 initial"),
        (
            lambda: nk.draw(jax.random.key(0), nk.run(single(), jax.random.key(0), X, STEPS)[0]),
            ValueError,
            "population",
        ),
        (
            lambda: nk.draw(jax.random.key(0), nk.State(None, jnp.zeros(5), None, jnp.zeros(5, int))),
            ValueError,
            "needs one population.*vmap it over a batch",
        ),
        (
            lambda: nk.run(nk.Single(nk.Look(model), lambda look, step: (look.x0, 1.0)), jax.random.key(0), X, STEPS),
            TypeError,
            "a kernel must return nk.Gaussian.*got tuple",
        ),
        (
            lambda: nk.run(single(guidance=Bare()), jax.random.key(0), X, STEPS),
            TypeError,
            "a rule must return nk.Tilt",
        ),
        (
            lambda: nk.run(nk.Single(nk.Look(model), lambda look, step: nk.Gaussian(0.0, 1.0)), KEY, X, STEPS),
            ValueError,
            r"a mean of the shape of x, \(3,\), and one number as std, got shapes \(\) and \(\)",
        ),
        (
            lambda: nk.run(nk.Single(nk.Look(model), lambda look, step: nk.Gaussian(look.x, look.x)), KEY, X, STEPS),
            ValueError,
            r"one number as std, got shapes \(3,\) and \(3,\)",
        ),
        (
            lambda: nk.run(nk.Single(nk.Look(model, lambda x0: None), nk.kernels.DDIM()), KEY, X, STEPS),
            ValueError,
            "got None; has it a return",
        ),
    ],
)
def test_trace_time(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_wrong_shapes_from_model_and_reward():
    with pytest.raises(ValueError, match="shape of x"):
        nk.run(nk.Single(nk.Look(lambda x, t: x[:1]), nk.kernels.DDIM()), jax.random.key(0), X, STEPS)
    with pytest.raises(ValueError, match="scalar for one sample"):
        nk.run(nk.Single(nk.Look(model, lambda x0: x0), nk.kernels.DDIM()), jax.random.key(0), X, STEPS)


def test_only_one_rule_of_a_sum_may_project():
    mixed = nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.1, where="mixed")
    with pytest.raises(ValueError, match="at most one rule"):
        nk.run(single(guidance=nk.guidance.Sum((mixed, mixed))), jax.random.key(0), X, STEPS)


def test_run_time_flags_a_nonfinite_gradient_and_goes_on():
    sampler = nk.Single(nk.Look(model, lambda x0: jnp.sum(jnp.sqrt(x0 * 0.0))), nk.kernels.DDIM())
    guided = nk.Single(
        nk.Look(model, lambda x0: jnp.sum(jnp.sqrt(x0 * 0.0)), grad=True), nk.kernels.DDIM(), nk.guidance.DPS(1.0)
    )
    state, _ = nk.run(guided, jax.random.key(0), X, STEPS)
    assert int(state.status) == nk.Status.NONFINITE_GRAD
    plain, _ = nk.run(sampler, jax.random.key(0), X, STEPS)
    assert int(plain.status) == 0
    np.testing.assert_allclose(state.look.x, plain.look.x, rtol=1e-6)
    with pytest.raises(FloatingPointError, match="NONFINITE_GRAD in 1 of 1"):
        nk.check(state)
    nk.check(plain)


def test_run_time_flags_a_tilt_that_overflows():
    steep = nk.methods.calibrated(model, lambda x0: 1e38 * jnp.sum(x0), (3,), temperature=1e-3)
    state, _ = nk.run(steep, jax.random.key(0), X, STEPS)
    assert int(state.status) & nk.Status.NONFINITE_GRAD


def test_a_steep_gradient_does_not_overflow_the_calibrated_strength():
    rule = nk.guidance.NTRK(nk.whitening.UnitNorm(), nk.guidance.Calibrated(1.0))
    look = nk.Look(model, lambda x0: 1e25 * jnp.sum(x0), grad=True)
    state, _ = nk.run(nk.Single(look, nk.kernels.DDIM(), rule), jax.random.key(0), X, STEPS)
    assert np.all(np.isfinite(state.look.x))
    assert int(state.status) == 0


def test_run_time_flags_a_nonfinite_sample():
    state, _ = nk.run(nk.Single(nk.Look(lambda x, t: x / 0.0), nk.kernels.DDIM()), jax.random.key(0), X, STEPS)
    assert int(state.status) & nk.Status.NONFINITE_SAMPLE


def test_check_is_for_the_host():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda k: nk.check(nk.run(single(), k, X, STEPS)[0]))(jax.random.key(0))


def test_checkify_goes_through_the_whole_loop():
    with jax.debug_key_reuse(False):
        checked = checkify.checkify(nk.run, errors=checkify.nan_checks)
        error, _ = jax.jit(checked)(single(), jax.random.key(0), X, STEPS)
        assert error.get() is None
        bad = nk.Single(nk.Look(lambda x, t: jnp.sqrt(-jnp.abs(x))), nk.kernels.DDIM())
        error, _ = jax.jit(checked)(bad, jax.random.key(0), X, STEPS)
        assert "nan generated" in error.get()


def test_records():
    state, (xs, info) = nk.run(single(), jax.random.key(0), X, STEPS, record=nk.trajectory)
    assert xs.shape == (3, 3)
    np.testing.assert_array_equal(xs[-1], state.look.x)
    assert info.value.shape == (3,)
    assert nk.run(single(), jax.random.key(0), X, STEPS, record=lambda s, i: ())[1] == ()
