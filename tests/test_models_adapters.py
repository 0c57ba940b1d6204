"""Other people's networks as denoisers: layouts, times and conditions arrive as their authors expect them."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntrk_jax as nk
from ntrk_jax.models import adapters

HEIGHT, WIDTH, CHANNELS, TEXT, POOLED = 8, 4, 4, 6, 5


@dataclasses.dataclass
class Answer:
    sample: Any


class TinyFlux(nn.Module):
    """The call of maxdiffusion's FluxTransformer2DModel, on two layers."""

    @nn.compact
    def __call__(
        self, hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids, guidance,
        return_dict=True, train=False,
    ):  # fmt: skip
        assert hidden_states.shape == (1, HEIGHT * WIDTH // 4, 4 * CHANNELS)
        assert img_ids.shape == (HEIGHT * WIDTH // 4, 3)
        assert txt_ids.shape == (encoder_hidden_states.shape[1], 3)
        text = nn.Dense(8)(encoder_hidden_states).mean(axis=1) + nn.Dense(8)(pooled_projections)
        known = text + nn.Dense(8)(jnp.stack([timestep, guidance], axis=-1))
        hidden = nn.Dense(8)(hidden_states) + known[:, None, :] + nn.Dense(8)(img_ids)[None]
        return Answer(nn.Dense(4 * CHANNELS)(nn.silu(hidden)))


@pytest.fixture(scope="module")
def flux():
    tokens = HEIGHT * WIDTH // 4
    shapes = {
        "hidden_states": (1, tokens, 4 * CHANNELS), "encoder_hidden_states": (1, 3, TEXT),
        "pooled_projections": (1, POOLED), "timestep": (1,), "img_ids": (tokens, 3), "txt_ids": (3, 3),
        "guidance": (1,),
    }  # fmt: skip
    net = TinyFlux()
    variables = jax.jit(net.init)(jax.random.key(0), **{k: jnp.ones(v) for k, v in shapes.items()})
    text, pooled = jax.random.normal(jax.random.key(1), (3, TEXT)), jnp.linspace(-1.0, 1.0, POOLED)
    return nk.models.FluxDenoiser(net.apply, variables, text=text, pooled=pooled)


def test_tokens_are_patches_in_rows_with_the_channel_slowest():
    x = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
    tokens = adapters.pack(jnp.asarray(x))
    assert tokens.shape == (6, 12)
    for row, column, channel, i, j in [(0, 0, 0, 0, 0), (1, 2, 2, 0, 1), (0, 1, 1, 1, 0)]:
        assert tokens[row * 3 + column, channel * 4 + i * 2 + j] == x[2 * row + i, 2 * column + j, channel]
    np.testing.assert_array_equal(adapters.unpack(tokens, 4, 6), x)
    with pytest.raises(ValueError, match="patch must divide"):
        adapters.pack(jnp.zeros((3, 4, 1)))


def test_a_flux_like_network_is_a_velocity_on_latents(flux):
    x, t = jax.random.normal(jax.random.key(2), (HEIGHT, WIDTH, CHANNELS)), 0.7
    x0 = jax.jit(lambda model, x: model(x, t))(flux, x)
    network = flux.apply.apply
    where = np.stack(np.meshgrid(np.arange(4), np.arange(2), indexing="ij"), axis=-1).reshape(-1, 2)
    velocity = network(
        flux.variables, adapters.pack(x)[None], flux.cond["text"][None], flux.cond["pooled"][None], jnp.array([t]),
        jnp.asarray(np.pad(where, ((0, 0), (1, 0))), jnp.float32), jnp.zeros((3, 3)), jnp.array([3.5]),
    ).sample[0]  # fmt: skip
    np.testing.assert_allclose(x0, x - t * adapters.unpack(velocity, HEIGHT, WIDTH), rtol=2e-5, atol=2e-6)


def test_weights_conditions_and_guidance_are_leaves_of_a_guided_sampler(flux):
    shape = (HEIGHT, WIDTH, CHANNELS)
    steps = nk.grid(flux.schedule, nk.grids.shifted(3, 3.0))
    compiled = []

    @jax.jit
    def sample(model, key):
        compiled.append(1)
        sampler = nk.methods.ntrk(model, nk.rewards.Linear(jnp.ones(shape)), shape, strength=0.1)
        start, walk = jax.random.split(key)
        return nk.run(sampler, walk, jax.random.normal(start, shape), steps)[0].look.x

    first = sample(flux, jax.random.key(3))
    other = nk.models.FluxDenoiser(
        flux.apply.apply, flux.variables, text=2 * flux.cond["text"], pooled=flux.cond["pooled"], guidance=1.0
    )
    assert bool(jnp.all(jnp.isfinite(first)))
    assert float(jnp.max(jnp.abs(first - sample(other, jax.random.key(3))))) > 1e-6
    assert len(compiled) == 1


class TinyWan(nnx.Module):
    """The call of maxdiffusion's WanModel, on one layer: minus the video, times time, plus the text's mean."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jax.random.normal(rngs.params(), ()))

    def __call__(
        self, hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image=None, return_dict=True
    ):
        assert hidden_states.shape == (1, 3, 2, 4, 5)
        flat = timestep[:, None, None, None, None] / 1000.0 + jnp.mean(encoder_hidden_states)
        return self.scale[...] * hidden_states * flat


def test_a_wan_like_module_sees_channels_first_and_times_up_to_1000():
    graphdef, weights = nnx.split(TinyWan(nnx.Rngs(0)))
    text, x = jnp.full((7, 2), 0.25), jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    model = nk.models.WanDenoiser(lambda w, **kw: nnx.merge(graphdef, w)(**kw), weights, text=text)
    velocity = weights["scale"][...] * x * (0.5 + 0.25)
    np.testing.assert_allclose(model(x, 0.5), x - 0.5 * velocity, rtol=1e-5, atol=1e-6)
    guided = nk.models.ClassifierFree(model, 5.0, null=jnp.zeros((7, 2)), cond=text)
    np.testing.assert_allclose(
        guided(x, 0.5), x - 0.5 * weights["scale"][...] * x * (0.5 + 5 * 0.25), rtol=1e-4, atol=1e-5
    )
    assert guided.num_calls == 2


@dataclasses.dataclass(kw_only=True, frozen=True)
class LinenInference:
    """The shape of hackable_diffusion's FlaxLinenInferenceFn."""

    network: Any
    params: Any

    def __call__(self, time, xt, conditioning):
        shift = 0.0 if conditioning is None else conditioning["label"]
        return {"epsilon": self.params["w"] * xt * time + shift, "x0": jnp.zeros_like(xt)}


@dataclasses.dataclass(kw_only=True, frozen=True)
class Guided:
    """The shape of its GuidedDiffusionInferenceFn."""

    base_inference_fn: LinenInference
    scale: float = 2.0

    def __call__(self, time, xt, conditioning):
        given, none = (self.base_inference_fn(time, xt, c) for c in (conditioning, None))
        return {k: none[k] + self.scale * (given[k] - none[k]) for k in given}


def test_an_inference_function_gives_its_weights_up_as_leaves():
    schedule, x = nk.schedules.VPCosine(), jnp.array([1.0, -2.0])
    inner = LinenInference(network="net", params={"w": jnp.array(0.5)})
    model = nk.models.InferenceDenoiser(
        Guided(base_inference_fn=inner), schedule, "epsilon", {"label": jnp.array([0.1])}, num_calls=2
    )
    alpha, sigma = schedule(0.4)
    expected = (x - sigma * (0.5 * x * 0.4 + 0.2)) / alpha
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x, 0.4))(model, x), expected, rtol=1e-5)
    assert [float(a.ravel()[0]) for a in jax.tree.leaves((model.params, model.cond))] == pytest.approx([0.5, 0.1])
    assert model.function.base_inference_fn.params is None
    doubled = jax.tree.map(lambda a: 2 * a, model)
    assert float(jnp.max(jnp.abs(doubled(x, 0.4) - model(x, 0.4)))) > 0.1
    other = nk.replace(
        model, function=Guided(base_inference_fn=LinenInference(network="net", params={"w": jnp.array(2.0)}))
    )
    assert float(other.params["base_inference_fn"]["params"]["w"]) == 2.0
    kept = nk.replace(model, num_calls=1)
    assert float(kept.params["base_inference_fn"]["params"]["w"]) == 0.5
    with pytest.raises(ValueError, match="predicts epsilon, x0, not 'score'"):
        nk.models.InferenceDenoiser(inner, schedule, "score")(x, 0.4)
    with pytest.raises(ValueError, match="kind must be one of"):
        nk.models.InferenceDenoiser(inner, schedule, "noise")


def test_a_grid_of_another_schedule_is_refused():
    law = nk.targets.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
    cosine, flow = nk.schedules.VPCosine(), nk.schedules.RectifiedFlow()
    model, steps = nk.models.Exact(law, cosine), nk.grid(flow, nk.grids.uniform(4))
    sampler = nk.Single(nk.Look(nk.models.Cast(model)), nk.kernels.DDIM())
    with pytest.raises(ValueError, match=r"Exact was made for schedules.VPCosine\(\), but at t = "):
        nk.run(sampler, jax.random.key(0), jnp.ones(2), steps)
    value = nk.values.Exact(law, cosine, nk.rewards.Linear(jnp.ones(2)))
    other = nk.models.Reschedule(model, cosine, flow)
    with pytest.raises(ValueError, match="wrap the model"):
        nk.grids.check_schedule(nk.Look(other, nk.rewards.Linear(jnp.ones(2)), value=value), steps)
    nk.grids.check_schedule(nk.Look(other), steps)
    nk.grids.check_schedule(sampler, nk.grid(cosine, nk.grids.uniform(4)))


def test_a_grid_of_another_schedule_is_flagged_where_it_cannot_be_read():
    law = nk.targets.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
    sampler = nk.Single(nk.Look(nk.models.Exact(law, nk.schedules.VPCosine())), nk.kernels.DDIM())
    run = jax.jit(jax.vmap(nk.run, (None, 0, None, None)))
    keys = jax.random.split(jax.random.key(0), 3)
    for schedule, wrong in ((nk.schedules.VPCosine(), False), (nk.schedules.RectifiedFlow(), True)):
        state, _ = run(sampler, keys, jnp.ones(2), nk.grid(schedule, nk.grids.uniform(4)))
        assert state.status.tolist() == [wrong * nk.Status.WRONG_GRID] * 3
    with pytest.raises(FloatingPointError, match="WRONG_GRID in 3 of 3; make the grid from the model's own schedule"):
        nk.check(state)


def test_a_tree_is_compared_with_the_grid_that_it_holds():
    law, reward = nk.targets.skewed(2)
    model = nk.models.Exact(law, nk.schedules.VPCosine())
    flow = nk.grid(nk.schedules.RectifiedFlow(), nk.grids.uniform(4))
    right = nk.methods.dts(model, reward, (2,), grid=nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4)))
    nk.grids.check_schedule(right, nk.samplers.rollouts(4))
    with pytest.raises(ValueError, match="Exact was made for schedules.VPCosine"):
        nk.grids.check_schedule(nk.replace(right, grid=flow), nk.samplers.rollouts(4))
