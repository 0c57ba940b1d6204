"""The adapters against a Gaussian, whose prediction of every kind is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

from ntrk_jax import Look, config, schedules, tweedie
from ntrk_jax.models import Cast, ClassifierFree, FlaxDenoiser, NnxDenoiser
from ntrk_jax.models.nets import MLP
from ntrk_jax.tree import replace

MEAN, VAR = 0.7, 0.3
FLOW = schedules.RectifiedFlow()


def gaussian(kind):
    """The best prediction of one kind for data N(MEAN, VAR) on the straight path, by Gaussian conditioning."""

    def apply(params, x, t):
        alpha, sigma = 1.0 - t, t
        spread = alpha**2 * VAR + sigma**2
        away = x - alpha * params["mean"]
        x0, noise = params["mean"] + alpha * VAR * away / spread, sigma * away / spread
        return {
            "x0": x0, "eps": noise, "score": -away / spread, "v": alpha * noise - sigma * x0, "velocity": noise - x0,
        }[kind]  # fmt: skip

    return apply


@pytest.mark.parametrize("kind", tweedie.KINDS)
def test_every_kind_gives_the_same_tweedie_mean(kind):
    model = FlaxDenoiser(gaussian(kind), kind, {"mean": jnp.asarray(MEAN)}, FLOW)
    x, t = jnp.array([-1.0, 0.4, 2.0]), 0.35
    expected = MEAN + 0.65 * VAR * (np.asarray(x) - 0.65 * MEAN) / (0.65**2 * VAR + 0.35**2)
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x, t))(model, x), expected, rtol=2e-5)
    many = jax.vmap(model)(jnp.stack([x, -x]), jnp.array([0.35, 0.8]))
    np.testing.assert_allclose(many[0], expected, rtol=2e-5)


class Linen(nn.Module):
    """A linen network with a leading batch axis and an optional condition."""

    @nn.compact
    def __call__(self, x, t, cond=None):
        h = jnp.concatenate([x.reshape(x.shape[0], -1), t[:, None].astype(x.dtype)], axis=-1)
        if cond is not None:
            h = jnp.concatenate([h, cond.astype(x.dtype)], axis=-1)
        return nn.Dense(x[0].size)(nn.tanh(nn.Dense(16)(h))).reshape(x.shape)


def test_linen_network_with_a_batch_axis():
    net, x = Linen(), jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    cond = jnp.ones((2,))
    variables = jax.jit(net.init)(jax.random.key(0), x, jnp.ones(3), jnp.ones((3, 2)))
    model = FlaxDenoiser(net.apply, "x0", variables, FLOW, cond, batched=True)
    batch = jax.jit(net.apply)(variables, x, jnp.full((3,), 0.4), jnp.ones((3, 2)))
    np.testing.assert_allclose(jax.jit(jax.vmap(model, (0, None)))(x, 0.4), batch, atol=1e-6)
    other = jax.jit(model)(x[0], 0.4, 2.0 * cond)
    assert float(jnp.max(jnp.abs(other - batch[0]))) > 1e-4, "a condition at the call must win"
    with pytest.raises(ValueError, match="batched=True"):
        FlaxDenoiser(lambda w, x, t: x[None], "x0", {}, FLOW)(x[0], 0.4)
    with pytest.raises(IndexError) as caught:
        FlaxDenoiser(net.apply, "x0", variables, FLOW, cond)(x[0], 0.4)
    assert "needs batched=True" in caught.value.__notes__[-1]


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="pass module.apply"):
        FlaxDenoiser(Linen(), "x0", {}, FLOW)
    with pytest.raises(TypeError, match="got the class MLP"):
        NnxDenoiser(MLP, "x0", FLOW)
    with pytest.raises(TypeError, match="schedule must be one such as"):
        FlaxDenoiser(Linen().apply, "x0", {}, "flow")


def filled(seed=0):
    """A network with noise for weights, since its last layer starts at zero."""
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: MLP((4, 4, 1), width=16, hidden=16, depth=1, time_width=16, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(seed)
    return nnx.merge(graphdef, jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes))


def test_nnx_module_and_its_halves():
    net, x = filled(), jax.random.normal(jax.random.key(1), (4, 4, 1))
    model = NnxDenoiser(net, "x0", FLOW)
    np.testing.assert_allclose(jax.jit(model)(x, 0.4), jax.jit(lambda x: net(x, 0.4))(x), atol=1e-6)
    assert NnxDenoiser(nnx.split(net), "x0", FLOW) == model
    assert jax.tree.structure(NnxDenoiser(filled(3), "x0", FLOW)) == jax.tree.structure(model), "would recompile"
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.variables))


def test_other_weights_compile_nothing_new():
    traces = []

    @jax.jit
    def run(model, x):
        traces.append(1)
        return model(x, 0.4)

    x = jnp.ones((4, 4, 1))
    first, second = (run(NnxDenoiser(filled(seed), "x0", FLOW), x) for seed in (0, 1))
    assert len(traces) == 1
    assert float(jnp.max(jnp.abs(first - second))) > 1e-3


def test_printed_form_reads_back():
    model = NnxDenoiser(filled(), "v", FLOW)
    text = repr(model)
    assert "ntrk_jax.models.nets:MLP" in text
    functions = {"ntrk_jax.models.nets:MLP": model.apply}
    assert config.loads(text, arrays=jax.tree.leaves(model), functions=functions) == model


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes(dtype):
    model, x = NnxDenoiser(filled(), "x0", FLOW), jax.random.normal(jax.random.key(1), (4, 4, 1))
    run = jax.jit(lambda m, x: m(x, 0.4))
    out = run(model, x.astype(dtype))
    assert out.dtype == jnp.float32
    low = run(Cast(model), x.astype(dtype))
    assert low.dtype == dtype
    np.testing.assert_allclose(low.astype(jnp.float32), out, atol=0.1)


def test_float64_samples_through_float32_weights():
    with jax.enable_x64(True):
        model = FlaxDenoiser(lambda w, x, t: w * x, "eps", jnp.ones((), jnp.float32), FLOW)
        x = jnp.array([1.0, 2.0], jnp.float64)
        out = model(x, 0.5)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, x, rtol=1e-12)


def test_bad_kind():
    with pytest.raises(ValueError, match="kind must be one of"):
        FlaxDenoiser(lambda w, x, t: x, "noise", {}, FLOW)


def test_networks_are_not_taken_for_denoisers_nor_for_one_another():
    with pytest.raises(TypeError, match="model must be a denoiser .* got a network; say what it predicts"):
        Look(filled())
    with pytest.raises(TypeError, match="needs an NNX module, got Linen; for a linen module use FlaxDenoiser"):
        NnxDenoiser(Linen(), "x0", FLOW)


def test_labels_are_whole_numbers_where_nothing_is_traced():
    """A plain number becomes an array, as it does under `jax.jit`."""
    net = nn.Embed(11, 3)
    params = net.init(jax.random.key(0), jnp.int32(0))
    model = FlaxDenoiser(lambda p, x, t, c: net.apply(p, c) + x, "v", params, schedules.VPCosine())
    guided = ClassifierFree(model, 2.0, null=10, cond=3)
    np.testing.assert_allclose(guided(jnp.ones(3), 0.5), jax.jit(lambda m: m(jnp.ones(3), 0.5))(guided), rtol=1e-5)


def test_labels_may_be_places_in_a_list():
    model = FlaxDenoiser(
        lambda w, x, t, c: x * w[c], "x0", [jnp.array(0.5), jnp.array(0.3)], schedules.VPCosine(), cond=1
    )
    np.testing.assert_allclose(jax.jit(lambda x: model(x, 0.5))(jnp.ones(2)), 0.3)


def test_frozen_variables_compare_and_read_back():
    variables = FrozenDict({"w": jnp.arange(2.0)})
    model = FlaxDenoiser(gaussian, "v", variables, schedules.VPCosine())
    assert model == replace(model, variables={"w": jnp.arange(2.0)})
    assert model != replace(model, variables=FrozenDict({"w": jnp.ones(2)}))
    assert config.loads(repr(model), functions={f"{__name__}:gaussian": gaussian}) == model
