"""The wrappers: guidance without a classifier, precision, another schedule, and the count of real executions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax import config, schedules
from ntrk_jax.models import Cast, ClassifierFree, Counted, Counter, Exact, FlaxDenoiser, Reschedule
from ntrk_jax.targets import GaussianMixture

SKEWED = GaussianMixture(
    jnp.array([0.7, 0.3]),
    jnp.array([[-1.0, 0.5], [2.0, -1.0]]),
    jnp.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.6]]]),
)
X = jnp.array([0.4, -1.2])


def test_exact_is_the_prior_mean_in_pure_noise_and_x_without_noise():
    model = jax.jit(Exact(SKEWED, schedules.VPCosine()))
    np.testing.assert_allclose(model(X, 1.0), [-0.1, 0.05], atol=1e-6)
    np.testing.assert_allclose(model(X, 1e-4), X, atol=1e-3)


PAIRS = [
    (schedules.EDM(40.0), schedules.VPCosine(), (0.05, 0.5, 0.95)),
    (schedules.VPCosine(), schedules.RectifiedFlow(3.0), (0.05, 0.5, 0.95, 1.0)),
    (schedules.VPLinear(), schedules.VE(0.01, 20.0), (0.1, 0.5, 1.0)),
    (schedules.VPCosine(), schedules.VPCosine(), (0.3, 1.0)),
]


@pytest.mark.parametrize(("trained_on", "sampled_on", "times"), PAIRS)
def test_reschedule_is_exact(trained_on, sampled_on, times):
    model = Reschedule(Exact(SKEWED, trained_on), trained_on, sampled_on)
    on = jnp.asarray(times)
    by = jax.jit(lambda m: jax.vmap(m, (None, 0))(X, on))
    np.testing.assert_allclose(by(model), by(Exact(SKEWED, sampled_on)), atol=2e-4)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(model(x, times[-1]))))(X)
    assert bool(jnp.all(jnp.isfinite(grad)))


def conditional(cond):
    return FlaxDenoiser(lambda w, x, t, c: w * x + c, "x0", jnp.asarray(0.5), schedules.RectifiedFlow(), cond)


@pytest.mark.parametrize(("strength", "expected"), [(0.0, 0.5), (1.0, 2.5), (3.0, 6.5)])
def test_classifier_free_extrapolates_from_null_to_the_condition(strength, expected):
    model = ClassifierFree(conditional(None), strength, null=jnp.asarray(0.0), cond=jnp.asarray(2.0))
    np.testing.assert_allclose(model(jnp.ones(3), 0.3), np.full(3, expected))
    assert model.num_calls == 2


def test_classifier_free_needs_one_number_as_strength():
    for strength in ("3", lambda step: 3.0):
        with pytest.raises(TypeError, match="strength must be a number"):
            ClassifierFree(conditional(None), strength, jnp.asarray(0.0), jnp.asarray(2.0))
    with pytest.raises(ValueError, match=r"one strength, got shape \(3,\)"):  # arguments in another order
        ClassifierFree(conditional(None), jnp.zeros(3), 3.0, jnp.ones(3))(jnp.ones(3), 0.3)
    swept = jax.vmap(lambda s: ClassifierFree(conditional(None), s, jnp.asarray(0.0), jnp.asarray(2.0))(X, 0.3))
    np.testing.assert_allclose(swept(jnp.array([0.0, 3.0])), [0.5 * X, 0.5 * X + 6.0], rtol=1e-6)


def test_classifier_free_needs_a_condition():
    with pytest.raises(ValueError, match="needs a condition"):
        ClassifierFree(conditional(None), 2.0, jnp.asarray(0.0))(jnp.ones(3), 0.3)
    with pytest.raises(ValueError, match="its own condition, which is cond too"):
        ClassifierFree(conditional(jnp.asarray(2.0)), 2.0, None, jnp.asarray(2.0))
    for wrapped in (Cast(conditional(jnp.asarray(2.0)), "float32"), Counted(conditional(jnp.asarray(2.0)), Counter())):
        with pytest.raises(ValueError, match="its own condition, which is cond too"):
            ClassifierFree(wrapped, 2.0, None, jnp.asarray(2.0))
        with pytest.raises(ValueError, match="its own condition, which is cond too"):
            ClassifierFree(wrapped, 2.0, None)(jnp.ones(3), 0.3, jnp.asarray(2.0))
    own = ClassifierFree(conditional(jnp.asarray(0.0)), 2.0, None, jnp.asarray(2.0))  # the model's own is the null
    np.testing.assert_allclose(own(jnp.ones(3), 0.3), np.full(3, 4.5))


def test_cast_prints_its_dtype_by_name():
    cast = Cast(Exact(SKEWED, schedules.VPCosine()), jnp.float16)
    assert config.loads(repr(cast), arrays=jax.tree.leaves(cast)) == cast


def test_cast_runs_the_network_in_bfloat16_and_spares_the_schedule():
    seen = []

    def apply(params, x, t):
        seen.append((params.dtype, x.dtype, t.dtype))
        return params * x

    schedule = schedules.RectifiedFlow(jnp.asarray(3.0))
    model = Cast(FlaxDenoiser(apply, "v", jnp.ones(3), schedule))
    out = model(jnp.ones(3), 0.3)
    assert seen == [(jnp.bfloat16, jnp.bfloat16, jnp.float32)]
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, FlaxDenoiser(apply, "v", jnp.ones(3), schedule)(jnp.ones(3), 0.3), rtol=0.02)


def test_wrappers_pass_on_what_a_call_costs():
    two = ClassifierFree(conditional(None), 1.0, jnp.asarray(0.0), jnp.asarray(1.0))
    flow = schedules.RectifiedFlow()
    for wrapped in (Cast(two), Reschedule(two, flow, flow), Counted(two, Counter())):
        assert wrapped.num_calls == 2
    assert Counted(lambda x, t: x, Counter()).num_calls == 1


def counted():
    counter = Counter()
    return Counted(
        FlaxDenoiser(lambda w, x, t: w * jnp.tanh(x), "x0", jnp.asarray(2.0), schedules.EDM()), counter
    ), counter


def test_counted_changes_nothing():
    model, _ = counted()
    value, grad = jax.value_and_grad(lambda x: jnp.sum(model(x, 0.5)))(X)
    plain, slope = jax.value_and_grad(lambda x: jnp.sum(model.fn(x, 0.5)))(X)
    assert float(value) == float(plain)
    np.testing.assert_array_equal(grad, slope)
    weights = jax.grad(lambda m: jnp.sum(m(X, 0.5)))(model).fn.variables
    np.testing.assert_allclose(weights, jnp.sum(jnp.tanh(X)), rtol=1e-6)


def test_counted_under_transformations():
    model, counter = counted()

    def counts(fn, *args):
        counter.reset()
        jax.block_until_ready(jax.jit(fn)(*args))
        return counter.forward, counter.vjp

    def both(m, x, t):
        return jax.value_and_grad(lambda y: jnp.sum(m(y, t)))(x)

    def maybe(m, x, yes):
        return jax.lax.cond(yes, lambda y: m(y, 0.5), lambda y: y, x)

    batch, times = jnp.ones((5, 2)), jnp.linspace(0.1, 0.9, 5)
    assert counts(lambda m, x: m(x, 0.5), model, X) == (1, 0)
    assert counts(both, model, X, 0.5) == (1, 1)
    assert counts(jax.vmap(both, (None, 0, None)), model, batch, 0.5) == (5, 5)
    assert counts(jax.vmap(both, (None, None, 0)), model, X, times) == (5, 5), "batched through the time alone"
    assert counts(lambda m, x: jax.lax.scan(lambda y, _: (m(y, 0.5), None), x, length=7)[0], model, X) == (7, 0)
    assert counts(maybe, model, X, False) == (0, 0)
    assert counts(maybe, model, X, True) == (1, 0)
    stepped = jax.vmap(lambda x: jax.lax.scan(lambda y, _: (both(model, y, 0.5)[1], None), x, length=3)[0])
    assert counts(stepped, batch) == (15, 15)


def test_counted_rewards_and_unused_results():
    counter = Counter()
    reward = Counted(lambda x: jnp.sum(x**2), counter)
    jax.block_until_ready(jax.jit(jax.vmap(jax.grad(reward)))(jnp.ones((4, 2))))
    assert (counter.forward, counter.vjp) == (4, 4)
    counter.reset()
    jax.block_until_ready(jax.jit(lambda x: (reward(x), x + 1.0)[1])(X))
    assert counter.forward == 1, "a call whose result is dropped was still asked for"
