"""The transformer for work at real sizes: shapes, memory, dtypes, and what its answer may depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk

NET = nk.models.MMDiT(channels=3, width=24, num_heads=2, double_blocks=2, single_blocks=2, text_width=5)
TEXT = jax.random.normal(jax.random.key(1), (4, 5))


@pytest.fixture(scope="module")
def params():
    return jax.jit(NET.init)(jax.random.key(0))


def test_every_patch_attends_to_every_other_and_places_matter(params):
    x = jax.random.normal(jax.random.key(2), (4, 6, 3))
    net = jax.jit(NET)
    out = net(params, x, 0.3, TEXT)
    assert out.shape == x.shape
    moved = jnp.abs(net(params, x.at[0, 0, 0].add(1.0), 0.3, TEXT) - out)
    assert float(jnp.min(jnp.max(moved, axis=2))) > 0
    swapped = net(params, jnp.roll(x, 2, axis=1), 0.3, TEXT)
    assert float(jnp.max(jnp.abs(jnp.roll(swapped, -2, axis=1) - out))) > 1e-5
    for other in (net(params, x, 0.4, TEXT), net(params, x, 0.3, TEXT[::-1] * 2)):
        assert float(jnp.max(jnp.abs(other - out))) > 1e-6


@pytest.mark.slow
def test_rematerialisation_changes_memory_and_not_the_gradient(params):
    deep = dataclasses.replace(NET, double_blocks=1, single_blocks=8)
    weights, x = jax.jit(deep.init)(jax.random.key(0)), jax.random.normal(jax.random.key(3), (8, 8, 3))

    def compiled(net):
        grad = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(net(weights, x, 0.5, TEXT)))))
        return grad.lower(x).compile()

    kept, remade = compiled(deep), compiled(dataclasses.replace(deep, remat=True))
    np.testing.assert_allclose(kept(x), remade(x), rtol=1e-4, atol=1e-6)
    sizes = [c.memory_analysis().temp_size_in_bytes for c in (kept, remade)]
    assert sizes[1] < 0.5 * sizes[0]


def test_video_in_bfloat16_and_refusals():
    net = dataclasses.replace(NET, patch=(1, 2, 2))
    params = jax.jit(net.init, static_argnums=1)(jax.random.key(0), jnp.bfloat16)
    model = nk.models.FlaxDenoiser(net, "velocity", params, nk.schedules.RectifiedFlow(), TEXT)
    x0 = jax.jit(lambda m, x: m(x, 0.5))(model, jnp.ones((2, 4, 4, 3), jnp.bfloat16))
    assert (x0.shape, x0.dtype) == ((2, 4, 4, 3), jnp.float32)
    assert bool(jnp.all(jnp.isfinite(x0)))
    with pytest.raises(ValueError, match="width must be num_heads times a multiple of 6"):
        dataclasses.replace(net, width=20)
    with pytest.raises(ValueError, match=r"x must be \[\*space, 3\] in patches"):
        net(params, jnp.ones((2, 3, 4, 3)), 0.5, TEXT)
