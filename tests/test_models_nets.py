"""The networks: shapes, conditions, and that every part of the input reaches the output."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntrk_jax import models
from ntrk_jax.models.nets import MLP, DiT, time_features


def small(name, **kwargs):
    rngs = nnx.Rngs(0)
    if name == "mlp":
        return MLP((4, 6, 2), width=16, hidden=24, depth=2, time_width=16, rngs=rngs, **kwargs)
    return DiT((4, 6, 2), patch=2, width=16, depth=2, num_heads=2, rngs=rngs, **kwargs)


def stirred(name, **kwargs):
    """The same network with noise for weights, since its last layers start at zero."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: small(name, **kwargs)))
    rng = np.random.default_rng(1)
    return nnx.merge(graphdef, jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes))


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_untrained_predicts_zero_and_every_input_matters_once_stirred(name):
    x = jax.random.normal(jax.random.key(2), (4, 6, 2))
    assert float(jnp.max(jnp.abs(jax.jit(lambda x: small(name)(x, 0.3))(x)))) == 0.0
    net = stirred(name, cond_dim=3)
    cond = jnp.array([1.0, -1.0, 0.5])
    by_x, by_t, by_cond = jax.jit(jax.grad(lambda *a: net(*a)[0, 0, 0], argnums=(0, 1, 2)))(x, 0.3, cond)
    assert bool(jnp.all(by_x != 0)), "the first output pixel must depend on every input pixel"
    assert float(by_t) != 0
    assert bool(jnp.all(by_cond != 0))
    low = jax.eval_shape(net, x.astype(jnp.bfloat16), 0.3, cond)
    assert (low.shape, low.dtype) == (x.shape, jnp.bfloat16)


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_refusals(name):
    with pytest.raises(ValueError, match=r"one sample of shape \(4, 6, 2\)"):
        stirred(name)(jnp.ones((1, 4, 6, 2)), 0.3)
    with pytest.raises(ValueError, match="needs cond"):
        stirred(name, cond_dim=3)(jnp.ones((4, 6, 2)), 0.3)


def test_tokens_are_the_patches_and_join_undoes_cut():
    net, x = stirred("dit"), jnp.arange(48.0).reshape(4, 6, 2)
    np.testing.assert_array_equal(net._cut(x)[1].reshape(2, 2, 2), x[:2, 2:4])
    np.testing.assert_array_equal(net._join(net._cut(x)), x)


def test_networks_are_found_when_first_asked_for():
    code = "import sys, ntrk_jax as nk; assert 'flax' not in sys.modules; print(nk.models.nets.MLP.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "MLP\n"
    assert models.__getattr__("nets").DiT is DiT
    with pytest.raises(AttributeError, match="no attribute 'net'"):
        _ = models.net


def test_refused_sizes():
    with pytest.raises(ValueError, match="patch must divide"):
        DiT((5, 6, 1), patch=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        DiT((4, 4, 1), width=10, num_heads=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="even"):
        time_features(0.5, 7)


def test_time_features_tell_times_apart():
    f = jax.vmap(lambda t: time_features(t, 32))(jnp.linspace(0.0, 1.0, 101))
    gaps = jnp.linalg.norm(f[:, None] - f[None], axis=-1) + 10.0 * jnp.eye(101)
    assert float(jnp.min(gaps)) > 0.1
