"""The loop: look first or last, resumed anywhere, over grids that know their last row and others; what it records."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import EXACT

import ntrk_jax as nk
from ntrk_jax.grids import Grid, Part
from ntrk_jax.tree import describe, pytree

SCHEDULE = nk.schedules.VPCosine()
STEPS = nk.grid(SCHEDULE, nk.grids.uniform(5, start=0.95))
PROBLEM = nk.targets.skewed(2)
LOOK = nk.Look(nk.models.Exact(PROBLEM.mixture, SCHEDULE), PROBLEM.reward, grad=True)
SAMPLER = nk.Single(LOOK, nk.kernels.DDIM(), nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.1))
KEY, X = jax.random.key(0), jax.random.normal(jax.random.key(1), (2,))


def everything(state, info):
    return state, info


def go(steps, record=everything, sampler=SAMPLER):
    return jax.jit(nk.run, static_argnums=4, compiler_options=EXACT)(sampler, KEY, X, steps, record)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)


def test_grids_know_their_last_row():
    assert type(STEPS) is type(STEPS.rows(2)) is type(STEPS.rows(-1)) is type(STEPS.rows(1, 9)) is Grid
    assert type(STEPS.rows(0, 4)) is type(STEPS.rows(1, -1)) is type(STEPS.rows(1, 4).rows(1)) is Part
    assert type(jax.jit(lambda: nk.grid(SCHEDULE, nk.grids.uniform(5)))()) is nk.core.Step  # its values are not known
    shifted = nk.grid(lambda t: (1.0 - t, t + 0.01), nk.grids.uniform(5))
    assert type(shifted) is nk.core.Step  # noise is left at the end


def test_both_orders_give_the_same_states_and_records_and_ask_the_model_as_often():
    first, last = go(STEPS), go(nk.core.Step(*STEPS))
    close(first, last)
    same((first[0].evals, first[1][1].evals), (last[0].evals, last[1][1].evals))
    assert int(first[0].evals.model) == 5
    assert first[1][0].look.x.shape == (5, 2)


@pytest.mark.parametrize("row", [1, 2, 4])
def test_a_run_resumed_after_any_row_is_the_whole_run(row):
    state, trace = go(STEPS)
    half, before = go(STEPS.rows(0, row))
    resume = jax.jit(nk.resume, static_argnums=4, static_argnames="start", compiler_options=EXACT)
    end, after = resume(SAMPLER, KEY, half, STEPS.rows(row), everything, start=row)
    same(end, state)
    same(jax.tree.map(lambda *a: jnp.concatenate(a), before, after), trace)


def test_states_of_other_samplers_are_refused():
    half, _ = go(STEPS.rows(0, 2))
    by_hand = half._replace(evals=nk.core.Evals(2, 2, 2, 2))
    same(nk.resume(SAMPLER, KEY, by_hand, STEPS.rows(2), start=2)[0].look, go(STEPS)[0].look)
    blind = nk.Single(nk.Look(LOOK.model, LOOK.reward), nk.kernels.DDIM())
    rows = STEPS.rows(2)
    with pytest.raises(ValueError, match=r"of the same sampler, got one that differs in \.look\.grad"):
        nk.resume(blind, KEY, half, rows, start=2)
    with pytest.raises(ValueError, match="num_particles=4"):
        nk.resume(nk.methods.fk(LOOK.model, LOOK.reward, num_particles=4), KEY, half, rows, start=2)
    with pytest.raises(TypeError, match="state must be the state that nk.run or nk.resume gave, got tuple"):
        nk.resume(SAMPLER, KEY, (half, None), rows, start=2)
    with pytest.raises(TypeError, match="start"):
        nk.resume(SAMPLER, KEY, half, rows)
    for start in (-1, 2.5):
        with pytest.raises(ValueError, match=f"start must be at least 0 and a whole number, got {start}"):
            nk.resume(SAMPLER, KEY, half, rows, start=start)
    for call in (
        lambda: nk.resume(SAMPLER, KEY, half, rows, None, start=2),
        lambda: nk.run(SAMPLER, KEY, X, STEPS, None),
    ):
        with pytest.raises(TypeError, match="record must be one such as"):
            call()


@pytest.mark.parametrize("rows", [slice(3), slice(None, None, 2), np.array([0, 1, 1, 2, 3, 4])], ids=repr)
def test_a_grid_sliced_by_other_means_than_rows_is_run_as_its_rows_say(rows):
    sliced = jax.tree.map(lambda a: a[rows], STEPS)
    assert type(sliced) is Grid
    same(nk.run(SAMPLER, KEY, X, sliced), nk.run(SAMPLER, KEY, X, nk.core.Step(*sliced)))
    state, _ = go(sliced)
    assert int(state.status) == nk.core.Status.WRONG_GRID
    with pytest.raises(FloatingPointError, match="grid.rows"):
        nk.check(state)
    assert int(go(STEPS)[0].status) == int(go(STEPS.rows(0, 3))[0].status) == 0


@pytest.mark.parametrize("steps", [STEPS, nk.core.Step(*STEPS)], ids=["grid", "rows"])
def test_a_record_that_acts_sees_each_row_once(steps):
    seen = []

    def tell(state, info):
        jax.debug.callback(lambda value: seen.append(float(value)), info.value, ordered=False)
        return info.value

    _, values = nk.run(SAMPLER, KEY, X, steps, tell)
    jax.effects_barrier()
    assert sorted(seen) == sorted(np.asarray(values).tolist())


@pytree
class Counting(nk.Single):
    """A sampler of its own that changes a step."""

    def step(self, key, state, step):
        state, info = super().step(key, state, step)
        return state._replace(log_weights=state.log_weights + 1.0), info


class Clipped(nk.Look):
    """A look of its own."""

    def at(self, key, x, t, sigma):
        seen, evals, status = super().at(key, x, t, sigma)
        return seen._replace(x0=jnp.clip(seen.x0, -0.01, 0.01)), evals, status


def test_a_look_that_changes_what_is_seen_is_asked():
    sampler = nk.Single(Clipped(nk.Look(lambda x, t: x).model), nk.kernels.DDIM())
    state, _ = nk.run(sampler, KEY, X, STEPS)
    half, _ = nk.run(sampler, KEY, X, STEPS.rows(0, 2))
    same(nk.resume(sampler, KEY, half, STEPS.rows(2), start=2)[0], state)
    assert float(jnp.abs(state.look.x).max()) <= 0.01


def test_how_a_grid_was_made_is_not_printed():
    plain, sampler = nk.core.Step(*STEPS), nk.Single(LOOK, nk.kernels.DDIM())
    assert describe(STEPS) == describe(STEPS.rows(0)) == describe(plain)
    records = [nk.batch.make_plan(sampler, steps, (2,), 4, chunk=2).record() for steps in (STEPS, plain)]
    assert records[0] == records[1]  # a store of one goes on with the other
    dts = nk.samplers.DTS(nk.Look(LOOK.model, PROBLEM.reward), nk.kernels.DDIM(), STEPS.rows(1), num_levels=2)
    assert nk.config.loads(repr(dts), arrays=jax.tree.leaves(dts)) == dts


def test_a_subclass_that_changes_the_step_is_run_by_its_step():
    plain, other = nk.Single(LOOK, nk.kernels.DDIM()), Counting(LOOK, nk.kernels.DDIM())
    np.testing.assert_allclose(nk.run(plain, KEY, X, STEPS)[0].log_weights, 0.0)
    np.testing.assert_allclose(nk.run(other, KEY, X, STEPS)[0].log_weights, 5.0)


@pytest.mark.parametrize(("steps", "branches", "models"), [(STEPS, False, 1), (nk.core.Step(*STEPS), True, 2)])
def test_a_gpu_meets_no_branch_in_the_loop_over_a_grid_and_the_model_is_compiled_once(steps, branches, models):
    sampler = nk.Single(nk.Look(lambda x, t: x * jnp.tan(t)), nk.kernels.DDIM())
    text = jax.jit(nk.run).trace(sampler, KEY, X, steps).lower(lowering_platforms=("cuda",)).as_text()
    asked = re.findall(r'"stablehlo.case"\((%\w+)\)', text[text.index("stablehlo.while") :])
    assert any(f"{name} = stablehlo.convert" in text for name in asked) == branches  # of a flag; the platform is known
    assert len(re.findall(r"\.tan\b", text)) == models
