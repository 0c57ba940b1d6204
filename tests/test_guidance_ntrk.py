"""NTRK's options: the reward's own gradient, and a strength that is steady over grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk

SCHEDULE = nk.schedules.VPCosine()
UNIT = nk.whitening.UnitNorm()


def normal(x, t):
    """The denoiser of N(0, I): x0 = alpha x."""
    return SCHEDULE(t)[0] * x


@pytest.mark.parametrize("where", ["gradient", "mixed"])
@pytest.mark.parametrize("strength", [0.2, nk.guidance.Steady(0.3)], ids=["rho", "steady"])
def test_through_a_denoiser_that_only_scales_both_gradients_are_one(where, strength):
    """The denoiser's Jacobian is a number, and the direction is all that counts."""

    def halved(x, t):
        return 0.5 * x

    reward, steps = nk.rewards.Linear(jnp.array([1.0, -2.0, 0.5])), nk.grid(SCHEDULE, nk.grids.uniform(8))
    x, found = jax.random.normal(jax.random.key(1), (3,)), []
    for through in (True, False):
        rule = nk.guidance.NTRK(UNIT, strength, where, through)
        sampler = nk.Single(nk.Look(halved, reward, grad=through), nk.kernels.DDIM(), rule)
        found.append(jax.jit(nk.run)(sampler, jax.random.key(0), x, steps)[0])
    np.testing.assert_allclose(found[0].look.x, found[1].look.x, rtol=1e-5)
    assert (int(found[0].evals.model_vjp), int(found[1].evals.model_vjp)) == (8, 0)
    base = nk.run(nk.Single(nk.Look(halved), nk.kernels.DDIM()), jax.random.key(0), x, steps)[0]
    assert float(jnp.linalg.norm(found[0].look.x - base.look.x)) > 0.1


def test_a_climb_in_the_last_row_moves_the_sample_by_the_gradient_at_it_and_costs_one():
    steps, x = nk.grid(SCHEDULE, nk.grids.uniform(4)), jax.random.normal(jax.random.key(1), (3,))
    reward = nk.rewards.Quadratic(jnp.float32(1.0), jnp.array([1.0, -2.0, 0.5]))
    run = jax.jit(nk.run)
    plain = run(nk.methods.ntrk(normal, reward, (3,), strength=0.1, whiten=UNIT), jax.random.key(0), x, steps)[0]
    climbed = run(
        nk.methods.ntrk_climb(normal, reward, (3,), strength=0.1, climb=0.3, whiten=UNIT), jax.random.key(0), x, steps
    )[0]
    expected = plain.look.x + 0.3 * jax.grad(reward)(plain.look.x)
    np.testing.assert_allclose(climbed.look.x, expected, rtol=1e-5, atol=1e-6)
    assert float(jnp.linalg.norm(climbed.look.x - plain.look.x)) > 0.1
    assert [int(a - b) for a, b in zip(climbed.evals, plain.evals, strict=True)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "rule",
    [
        lambda b: nk.guidance.NTRK(UNIT, nk.guidance.Calibrated(b)),
        lambda b: nk.guidance.NTRK(UNIT, 0.1 * b, where="mixed"),
        lambda b: nk.guidance.NTRK(UNIT, 0.1 * b, through=False),
    ],
    ids=["calibrated", "mixed", "x0"],
)
def test_runs_are_differentiable_from_pure_noise_on(rule):
    """Gradients and roots vanish in the first and the last row; derivatives there are numbers all the same."""
    steps, x = nk.grid(SCHEDULE, nk.grids.uniform(3)), jnp.array([0.3, -0.8])
    reward = nk.rewards.Quadratic(jnp.float32(0.5), jnp.array([1.0, -0.5]))

    def end(given):
        x, b, eta = given
        sampler = nk.Single(nk.Look(normal, reward, grad=True), nk.kernels.DDIM(eta), rule(b))
        return jnp.sum(nk.run(sampler, jax.random.key(2), x, steps)[0].look.x)

    given, both, h = (x, jnp.float32(1.5), jnp.float32(0.9)), jax.jit(jax.value_and_grad(end)), 1e-2
    _, slope = both(given)
    for i, g in enumerate(slope[1:], 1):
        ends = [float(both((*given[:i], given[i] + s * h, *given[i + 1 :]))[0]) for s in (1, -1)]
        np.testing.assert_allclose(g, (ends[0] - ends[1]) / (2 * h), rtol=2e-2, atol=2e-3)
    at_one = both((x, given[1], jnp.float32(1.0)))[1]
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves((slope, at_one)))


@jax.jit
def pushed(rule, steps):
    """Where the mean of N(0, I) ends up along a linear reward: everything is affine, so no noise is needed."""
    look, kernel = nk.Look(normal, nk.rewards.Linear(jnp.array([1.0, 0.0])), grad=True), nk.kernels.DDIM()

    def row(x, step):
        seen, _, _ = look(jax.random.key(0), x, step.t)
        base = kernel(seen, step)
        return base.mean + base.std * rule(seen, base, step, key=jax.random.key(0), probe=look).noise, None

    return jax.lax.scan(row, jnp.zeros(2), steps)[0][0]


def test_with_four_times_the_rows_a_steady_strength_pushes_as_far_and_a_constant_rho_twice_as_far():
    for rule, low, high in (
        (nk.guidance.NTRK(UNIT, nk.guidance.Steady(0.1)), 1.0, 1.1),
        (nk.guidance.NTRK(UNIT, 0.01), 1.8, 2.2),
    ):
        few, many = (pushed(rule, nk.grid(SCHEDULE, nk.grids.uniform(n))) for n in (400, 1600))
        assert float(few) > 0.1
        assert low < float(many / few) < high


def test_a_temperature_needs_the_gradient_of_the_value():
    with pytest.raises(ValueError, match="through=True or Steady"):
        nk.guidance.NTRK(UNIT, nk.guidance.Calibrated(1.0), through=False)


def test_a_reward_without_a_gradient_is_refused():
    host = nk.rewards.External(lambda x: x.sum())
    with pytest.raises(ValueError, match="differentiates the reward at x0"):
        nk.methods.ntrk_x0(normal, host, (2,))
