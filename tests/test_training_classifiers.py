"""The classifiers: logits of mean zero, a convolution that is one, and a loss that is a cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntrk_jax.training.classifiers import (
    ClassifierLoss,
    init_patches,
    init_perceptron,
    patches,
    perceptron,
)

IMAGE = jax.random.normal(jax.random.key(2), (4, 6, 2))
BOTH = [
    (perceptron, lambda: init_perceptron(jax.random.key(0), 48)),
    (patches, lambda: init_patches(jax.random.key(1), (4, 6, 2))),
]


def convolution():
    return jax.jit(init_patches, static_argnums=1)(jax.random.key(1), (4, 6, 2))


@pytest.mark.parametrize(("apply", "init"), BOTH)
def test_logits_have_mean_zero_and_see_every_pixel(apply, init):
    params = jax.jit(init)()
    logits = jax.jit(apply)(params, IMAGE)
    assert logits.shape == (10,)
    assert abs(float(jnp.mean(logits))) < 1e-5
    assert bool(jnp.all(jax.jit(jax.grad(lambda x: apply(params, x)[3]))(IMAGE) != 0))
    assert jax.eval_shape(apply, params, IMAGE.astype(jnp.bfloat16)).dtype == jnp.float32


@jax.default_matmul_precision("highest")  # a GPU multiplies single precision in fewer digits by default
def test_first_layer_is_a_convolution():
    params = convolution()
    kernel = params["patch"]["kernel"].reshape(3, 3, 2, -1)
    expected = jax.lax.conv_general_dilated(
        IMAGE[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    expected = jax.nn.gelu(expected)
    pooled = jax.lax.conv_general_dilated(
        expected[None], params["pool"]["kernel"].reshape(2, 2, expected.shape[-1], -1), (2, 2), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]  # fmt: skip
    h = jax.nn.gelu(jax.nn.gelu(pooled).reshape(-1) @ params["mix"]["kernel"]) @ params["out"]["kernel"]
    np.testing.assert_allclose(jax.jit(patches)(params, IMAGE), h - h.mean(), atol=1e-4)


def test_loss_is_the_cross_entropy_and_noise_raises_it():
    def logits(params, x):
        return params * x

    x, label = jnp.array([2.0, 0.0, -1.0]), jnp.asarray(0)
    clean = ClassifierLoss(logits, 0.0)(jax.random.key(0), jnp.asarray(1.0), (x, label))
    np.testing.assert_allclose(clean, np.log(1 + np.exp(-2) + np.exp(-3)), rtol=1e-5)
    keys = jax.random.split(jax.random.key(1), 2000)
    noisy = jax.vmap(ClassifierLoss(logits, 3.0), (0, None, None))(keys, jnp.asarray(1.0), (x, label))
    assert float(jnp.mean(noisy)) > 3 * float(clean)
