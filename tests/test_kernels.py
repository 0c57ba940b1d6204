"""Kernels on a Gaussian prior, where every step is affine: push mean and variance, measure the order of the error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk

MEAN, VAR = 0.7, 0.3


def moments(kernel, path, num_steps):
    """The exact mean and variance of x_0 under a kernel, for p = N(MEAN, VAR), pushed through the chain."""
    with jax.enable_x64(True):
        times = nk.grids.uniform(num_steps, start=0.98)
        grid = nk.grid(path, times)

        def body(carry, step):
            mean, var = carry
            a, s = step.alpha_t, step.sigma_t

            def means(x):
                x0 = MEAN + VAR * a / (a * a * VAR + s * s) * (x - a * MEAN)
                return kernel(nk.Lookahead(x, x0), step).mean

            base = kernel(nk.Lookahead(jnp.zeros(()), jnp.zeros(())), step)
            slope = means(jnp.ones(())) - means(jnp.zeros(()))
            return (means(mean), slope**2 * var + jnp.square(base.std)), None

        a, s = grid.alpha_t[0], grid.sigma_t[0]
        (mean, var), _ = jax.lax.scan(body, (a * MEAN, a * a * VAR + s * s), grid)
        return float(mean), float(var)


KERNELS = {
    "ddim0": nk.kernels.DDIM(0.0),
    "ddim1": nk.kernels.DDIM(1.0),
    "ddpm": nk.kernels.DDPM(),
    "flow_ode": nk.kernels.FlowODE(),
    "flow_sde": nk.kernels.FlowSDE(1.0),
    "flow_sde_half": nk.kernels.FlowSDE(0.5),
    "flow_sde_3t2": nk.kernels.FlowSDE(diffusion=lambda t: 3.0 * t * t),
}
PATHS = {
    "vp_cosine": nk.schedules.VPCosine(),
    "vp_linear": nk.schedules.VPLinear(),
    "flow": nk.schedules.RectifiedFlow(),
    "flow_shifted": nk.schedules.RectifiedFlow(3.0),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_first_order_in_the_step(kernel, path):
    errors = []
    for num_steps in (100, 200, 400):
        mean, var = moments(KERNELS[kernel], PATHS[path], num_steps)
        errors.append(abs(mean - MEAN) + abs(var - VAR))
    assert errors[-1] < 0.05
    assert errors[1] < 0.62 * errors[0]
    assert errors[2] < 0.62 * errors[1]


@pytest.mark.parametrize("correlation", [0.9, 0.99])
def test_a_fixed_correlation_does_not_converge_but_stays_near(correlation):
    """A correlation that does not tend to 1 renoises at every step: the mean stays, the variance shrinks."""
    mean, var = moments(nk.kernels.Correlated(correlation), nk.schedules.VPCosine(), 200)
    assert abs(mean - MEAN) < 0.02
    assert 0.5 * VAR < var < 1.02 * VAR


def test_a_wrong_kernel_is_caught():
    """Negative control: alpha at the wrong end of the row, a mistake seen in the wild."""

    def wrong(look, step):
        base = nk.kernels.DDIM(0.0)(look, step)
        return base._replace(mean=base.mean + (step.alpha_t - step.alpha_s) * look.x0)

    mean, var = moments(wrong, nk.schedules.VPCosine(), 400)
    assert abs(mean - MEAN) + abs(var - VAR) > 0.3


def test_edm_raises_the_noise_only_between_its_levels():
    path = nk.schedules.EDM(10.0)
    grid = nk.grid(path, nk.grids.karras(path, 8, 0.01, 10.0))
    kernel = nk.kernels.EDM(gamma=0.3, low=0.1, high=2.0, noise=1.007)
    seen = nk.Lookahead(jnp.ones(2), jnp.zeros(2))
    std = np.array([float(kernel(seen, jax.tree.map(lambda a, i=i: a[i], grid)).std) for i in range(8)])
    sigma = np.asarray(grid.sigma_s)
    inside = (sigma >= 0.1) & (sigma <= 2.0)
    assert 0 < inside.sum() < 7
    np.testing.assert_allclose(std[inside], 1.007 * sigma[inside] * np.sqrt(1 - 1 / 1.3**2), rtol=1e-5)
    np.testing.assert_array_equal(std[~inside], 0.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nk.kernels.DDIM(1.5), r"eta must lie in \[0, 1\], got 1.5"),
        (lambda: nk.kernels.Correlated(-2.0), r"correlation must lie in \[-1, 1\]"),
        (lambda: nk.kernels.FlowSDE(-0.1), "churn must be at least 0"),
        (lambda: nk.kernels.EDM(gamma=-1.0), "gamma must be at least 0"),
    ],
)
def test_refuses_strengths_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
