"""Time travel: what it leaves alone, what it costs, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import Near, Shrink

import ntrk_jax as nk
from ntrk_jax.samplers import Travel

PATH = nk.schedules.VPCosine()
GRID = nk.grid(PATH, nk.grids.uniform(4))
X = jnp.array([0.9, -0.4, 0.2])
RUN = jax.jit(nk.run)


def guided():
    return nk.Single(nk.Look(Shrink(), Near(), grad=True), nk.kernels.DDIM(), nk.guidance.DPS(0.3))


def test_one_pass_is_the_sampler_itself():
    plain, _ = RUN(guided(), jax.random.key(1), X, GRID)
    state, trace = RUN(Travel(guided(), 1), jax.random.key(1), X, GRID)
    np.testing.assert_allclose(state.look.x, plain.look.x, rtol=1e-6)
    assert [int(n) for n in state.evals] == [int(n) for n in plain.evals]
    assert float(plain.log_weights) != 0.0
    assert (float(state.log_weights), float(jnp.max(jnp.abs(trace.log_ratio)))) == (0.0, 0.0)
    assert not Travel(guided()).exact


def test_rows_inside_the_window_are_repeated_and_counted_and_other_numbers_compile_nothing():
    """Times 1, 0.75, 0.5, 0.25: the window holds the second and the third."""
    run = jax.jit(lambda *args: nk.run(*args))  # programs of its own, to be counted
    for repeats in (3, 5):
        state, trace = run(Travel(guided(), repeats, 0.3, 0.8), jax.random.key(1), X, GRID)
        assert trace.evals.model.tolist() == [1, repeats, repeats, 0]  # a row's own look is at its end
        assert int(state.evals.model) == 2 * repeats + 2
        assert int(state.evals.model_vjp) == 2 * repeats + 2
    assert run._cache_size() == 1


@nk.pytree
class Bridge:
    """The exact reverse kernel of N(0, I) on a variance-preserving path."""

    def __call__(self, look, step):
        a = step.alpha_t / step.alpha_s
        return nk.Gaussian(a * look.x, jnp.sqrt((1.0 - a) * (1.0 + a)))


def test_there_and_back_keeps_the_law():
    """With the exact kernel x_s stays N(0, I), and so stays its product with the noise that it came from."""
    num = 100_000
    sampler = Travel(nk.Single(nk.Look(lambda x, t: 0.0 * x), Bridge()), 4)
    x = jax.random.normal(jax.random.key(0), (num,))
    state = sampler.init(jax.random.key(1), x, jax.tree.map(lambda a: a[0], GRID))
    for i in (1, 3):
        step = jax.tree.map(lambda a, i=i: a[i], GRID)
        out, _ = jax.jit(sampler.step)(jax.random.key(2), state, step)
        assert abs(float(jnp.mean(out.look.x))) < 4 / np.sqrt(num)
        assert abs(float(jnp.mean(out.look.x**2)) - 1.0) < 4 * np.sqrt(2 / num)
        correlation = float(step.alpha_t / step.alpha_s) ** 7  # seven noisings or denoisings
        assert abs(float(jnp.mean(out.look.x * x)) - correlation) < 4 / np.sqrt(num)


def test_a_bad_look_on_the_way_is_flagged():
    def breaks_above(x0):
        return jnp.where(jnp.any(jnp.abs(x0) > 0), jnp.nan, 0.0)

    sampler = Travel(
        nk.Single(nk.Look(lambda x, t: jnp.where(t > 0.9, x, 0.0 * x), breaks_above), nk.kernels.DDIM(0.0))
    )
    state, trace = RUN(sampler, jax.random.key(1), X, nk.grid(PATH, jnp.array([0.95, 0.5, 0.0])))
    assert int(state.status) == nk.Status.NONFINITE_REWARD
    assert int(trace.status[0]) == nk.Status.NONFINITE_REWARD


def test_what_is_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        Travel(guided(), 0)
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        Travel(guided(), 2, low=0.9, high=0.1)
    with pytest.raises(TypeError, match="of a Single, got BestOfN"):
        Travel(nk.BestOfN(guided(), 2))
