"""The contract that every method of the catalogue keeps, in two precisions and on two shapes.

Compiling is what these tests cost: single precision is run on vectors and bfloat16 on images, and the other two
combinations are traced, which finds what shapes and dtypes can break. In bfloat16 one method of each kind is run, in
single precision all but those that are another one with other settings; the rest with --slow. One program a method and
precision serves all tests but one; in single precision it counts the evaluations that are really made.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import (
    BATCH,
    CALLS,
    COMPILED,
    DTYPES,
    NUM_STEPS,
    REWARDS,
    SHAPES,
    advance,
    begin,
    build,
    go,
    keys,
    noise,
    particles,
    rows,
    strengths,
)

import ntrk_jax as nk

NAMES = nk.methods.names()
RUN = [("f32", "vector"), ("bf16", "image")]
TRACED = [("f32", "image"), ("bf16", "vector")]
KINDS = "base svdd ntrk dps fk dts".split()
SETTINGS = """
correlated ddpm edm flow_ode flow_sde svdd_argmax code beam dps_norm dps_squared tds_shift lgd_mc pigdm fk_max fk_sum
das das_adaptive flow_first_order flow_damped dts_star
""".split()
"""Another kernel, choice, value, potential or rule of a class that is run under the name of another method."""


def rest_slow(values, kept):
    """Parameters, of which those that are not kept are run with --slow."""
    return [value if kept(value) else pytest.param(value, marks=pytest.mark.slow) for value in values]


CASES = rest_slow(
    [(name, *how) for name in NAMES for how in RUN],
    lambda case: case[0] not in SETTINGS if case[1] == "f32" else case[0] in KINDS,
)
DISTINCT = rest_slow(NAMES, lambda name: name not in SETTINGS)


@pytest.fixture(params=CASES, ids=lambda c: "-".join(c), scope="module")
def case(request):
    name, dtype, shape = request.param
    first, second = strengths(nk.methods.CATALOGUE[name])
    x = noise(name, SHAPES[shape], DTYPES[dtype])
    return name, SHAPES[shape], x, made(name, x, SHAPES[shape], first), second


def made(name, x, shape, strength):
    """The sampler that the program of a case is made for."""
    return build(name, shape, poison=jnp.float32(0), counted=x.dtype == jnp.float32, **strength)


def test_runs_with_the_shapes_and_dtypes_of_its_input(case):
    _, _, x, sampler, _ = case
    state, (_, trace) = go(sampler, keys(), x)
    assert state.look.x.shape == x.shape
    assert state.look.x.dtype == x.dtype
    assert np.all(np.isfinite(np.asarray(state.look.x, np.float32)))
    assert trace.value.shape == (BATCH, NUM_STEPS)
    assert not np.any(state.status)


def test_state_is_a_fixed_point_of_step(case):
    _, _, x, sampler, _ = case
    state, after = begin(sampler, keys(), x), go(sampler, keys(), x)[0]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(after)] == [(a.shape, a.dtype) for a in jax.tree.leaves(state)]


def test_other_strengths_compile_nothing(case):
    name, shape, x, sampler, second = case
    go(sampler, keys(), x)
    other, key = made(name, x, shape, second), keys(3)
    compiled = len(COMPILED)
    go(other, key, x)
    assert len(COMPILED) == compiled


def test_same_key_same_answer_other_key_other_answer(case):
    name, _, x, sampler, _ = case
    one, again = go(sampler, keys(), x)[0], go(sampler, keys(), x)[0]
    np.testing.assert_array_equal(one.look.x, again.look.x)
    other = go(sampler, keys(5), x)[0]
    deterministic = name in ("ddim", "flow_ode", "flow_monte_carlo", "flow_first_order", "flow_damped")
    assert np.array_equal(one.look.x, other.look.x) == deterministic


def test_a_sample_does_not_depend_on_its_batch_mates(case):
    name, shape, x, sampler, _ = case
    alone = go(sampler, keys(), x)[0].look.x[0]
    mates = noise(name, shape, x.dtype, seed=9).at[0].set(x[0])
    others = jax.random.split(jax.random.key(7), BATCH)
    mixed_keys = jax.random.wrap_key_data(jax.random.key_data(others).at[0].set(jax.random.key_data(keys())[0]))
    np.testing.assert_array_equal(go(sampler, mixed_keys, mates)[0].look.x[0], alone)


def test_a_nonfinite_reward_sets_its_flag_and_does_not_spread(case):
    _, _, x, sampler, _ = case
    clean = go(sampler, keys(), x)[0]
    state = go(sampler, keys(), x, poison=jnp.array([0.0, 1.0, 0.0], jnp.float32))[0]
    assert list(np.asarray(state.status) & nk.Status.NONFINITE_REWARD) == [0, nk.Status.NONFINITE_REWARD, 0]
    for i in (0, 2):
        np.testing.assert_array_equal(state.look.x[i], clean.look.x[i])
    assert np.all(np.isfinite(np.asarray(state.look.x, np.float32)))
    with pytest.raises(FloatingPointError, match="NONFINITE_REWARD in 1 of 3"):
        nk.check(state)


@pytest.mark.parametrize("name", NAMES)
def test_repr_reads_back(name):
    sampler = build(name, SHAPES["vector"], **strengths(nk.methods.CATALOGUE[name])[0])
    assert nk.config.loads(repr(sampler), arrays=jax.tree.leaves(sampler)) == sampler


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "shape"), TRACED)
def test_traces_with_the_shapes_and_dtypes_of_its_input(name, dtype, shape):
    x = noise(name, SHAPES[shape], DTYPES[dtype])
    sampler = build(name, SHAPES[shape], poison=jnp.float32(0), **strengths(nk.methods.CATALOGUE[name])[0])
    first = jax.tree.map(lambda a: a[0], rows(sampler))
    state = jax.eval_shape(sampler.init, jax.random.key(0), x[0], first)
    after, _ = jax.eval_shape(sampler.step, jax.random.key(0), state, first)
    assert (after.look.x.shape, after.look.x.dtype) == (x.shape[1:], x.dtype)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(after)] == [(a.shape, a.dtype) for a in jax.tree.leaves(state)]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_vmap_is_refused(name):
    """Not summed into one sample; nor is an image cut into particles."""
    sampler = build(name, SHAPES["image"])
    x = noise(name, SHAPES["image"], jnp.float32)
    wrong = [x[:, 0], x[0, :, 0]] if nk.methods.CATALOGUE[name].population else [x, x[0, 0]]
    over = rows(sampler)
    for given in wrong:
        with pytest.raises(ValueError, match=r"built for samples of shape \(4, 4, 2\)|\[num_particles=4, \*shape\]"):
            jax.eval_shape(lambda x: nk.run(sampler, jax.random.key(0), x, over), given)


@pytest.mark.devices(BATCH)
@pytest.mark.parametrize("name", rest_slow(NAMES, lambda name: name in KINDS))
def test_goes_into_shard_map(name):
    """With its check of what varies over the mesh, which loops that begin with constants would not pass."""
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = noise(name, SHAPES["vector"], jnp.float32)
    sampler = build(name, SHAPES["vector"])
    steps, spec = rows(sampler), jax.sharding.PartitionSpec("data")
    many = jax.vmap(lambda key, x: nk.run(sampler, key, x, steps)[0].look.x)
    shared = jax.eval_shape(jax.shard_map(many, mesh=mesh, in_specs=spec, out_specs=spec), keys(), x)
    assert shared.shape == (BATCH, *x.shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_traces_in_double_precision(name):
    with jax.enable_x64(True):
        x = noise(name, SHAPES["vector"], jnp.float64)[0]
        sampler = build(name, SHAPES["vector"])
        state, _ = jax.eval_shape(lambda k, x: nk.run(sampler, k, x, rows(sampler)), jax.random.key(0), x)
    assert (state.look.x.shape, state.look.x.dtype) == (x.shape, jnp.float64)


def test_strength_off_is_the_unguided_sampler_bitwise(case):
    name, shape, x, _, _ = case
    entry = nk.methods.CATALOGUE[name]
    if entry.off is None:
        pytest.skip("has no strength that turns it off")
    if x.dtype != jnp.float32:
        pytest.skip("the Gaussian algebra is float32 here too")
    off = made(name, x, shape, {entry.strength: jnp.float32(entry.off)})
    plain = entry.unguided(off)
    expected, actual = go(plain, keys(), x)[0], go(off, keys(), x)[0]
    if not isinstance(plain, nk.BestOfN):
        np.testing.assert_array_equal(actual.look.x, expected.look.x)
        np.testing.assert_array_equal(actual.log_weights, np.zeros(BATCH))
    else:  # another sampler with another look: newer compilers round the two programs apart where one takes gradients
        close = {"rtol": 0.0, "atol": 1e-6 if off.look.grad else 0.0}
        np.testing.assert_allclose(actual.look.x.astype(float), expected.look.x.astype(float), **close)


@pytest.mark.parametrize("name", DISTINCT)
def test_declared_evaluations_are_those_executed(name):
    x = noise(name, SHAPES["vector"], jnp.float32)
    sampler = made(name, x, SHAPES["vector"], strengths(nk.methods.CATALOGUE[name])[0])
    CALLS.reset()
    REWARDS.reset()
    state = jax.block_until_ready(go(sampler, keys(), x)[0])
    declared = [int(np.sum(n)) for n in state.evals]
    assert declared == [CALLS.forward, CALLS.vjp, REWARDS.forward, REWARDS.vjp]
    assert declared[0] == nk.methods.CATALOGUE[name].nfe(NUM_STEPS, particles(sampler)) * BATCH


@pytest.mark.parametrize("name", DISTINCT)
def test_resumed_equals_uninterrupted(name):
    x = noise(name, SHAPES["vector"], jnp.float32)
    sampler = made(name, x, SHAPES["vector"], strengths(nk.methods.CATALOGUE[name])[0])
    whole, (states, _) = go(sampler, keys(), x)
    half = jax.tree.map(lambda a: a[:, 1], states)
    grid = rows(sampler)
    if isinstance(grid, nk.grids.Grid):
        left = grid.rows(2)
    else:
        left = jax.tree.map(lambda a: a[np.array([2, 3, 3, 3])], grid)  # padded, for the program of whole runs
    _, (states, _) = advance(sampler, keys(), half, left, start=2)
    for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a[:, 1], b)
