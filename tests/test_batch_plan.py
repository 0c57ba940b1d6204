"""Plans: a sample depends on its unit's name, the seed and its number, and on nothing else."""

import jax
import numpy as np
import pytest
from batch_cases import STEPS, arrays, compiled_once, one_device, plan, sampler

import ntrk_jax as nk
from ntrk_jax import batch
from ntrk_jax.batch.plan import grouped
from ntrk_jax.cli.runs import draw_samples


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("programs")):
        yield


def drawn(planned, folder):
    one_device(planned, folder / "store")
    return arrays(folder / "store")


def test_another_function_is_another_plan():
    """Numbers alone do not tell lambdas apart, nor what a method belongs to."""
    for one, other in ((lambda x: x[0], lambda x: -x[0]), (np.array([1.0]).dot, np.array([2.0]).dot)):
        assert plan(reward=one).record() != plan(reward=other).record()


def units(*etas, seed=None):
    return tuple(batch.Unit(f"eta {eta}", sampler(eta=eta), STEPS, seed) for eta in etas)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return drawn(batch.Plan(units(0.2, 0.6, 1.0), (8,), 16, seed=3, chunk=8), tmp_path_factory.mktemp("three"))


def test_samples_are_those_of_ntrk_sample(tmp_path):
    got = drawn(plan(num=21, seed=7), tmp_path)
    want = draw_samples(sampler(), 7, STEPS, (8,), 21, batch=5)
    np.testing.assert_allclose(got["x"], want.x, atol=1e-5)
    np.testing.assert_allclose(got["reward"], want.reward, atol=1e-4)
    np.testing.assert_array_equal(got["evals"][:, 0], want.evals.model)


def test_a_sample_does_not_depend_on_the_place_of_its_unit(three, tmp_path):
    other = drawn(batch.Plan(units(1.0, 0.2), (8,), 16, seed=3, chunk=8), tmp_path)
    np.testing.assert_array_equal(other["x"][16:], three["x"][:16])
    np.testing.assert_array_equal(other["x"][:16], three["x"][32:])


def test_units_have_their_own_noises_unless_a_seed_joins_them(three, tmp_path):
    first, second, third = np.split(three["x"], 3)
    assert np.abs(first - second).max() > 0.1
    assert np.abs(second - third).max() > 0.1
    paired = drawn(batch.Plan(units(1.0, 1.0 - 1e-6, seed=3), (8,), 16, seed=0, chunk=8), tmp_path)
    np.testing.assert_allclose(*np.split(paired["x"], 2), atol=1e-3)
    np.testing.assert_allclose(paired["x"][:16], draw_samples(sampler(), 3, STEPS, (8,), 16).x, atol=1e-5)


def test_units_that_differ_in_numbers_share_a_program_and_a_chunk_may_hold_several(tmp_path):
    planned = batch.Plan(units(0.2, 0.6, 1.0), (8,), 5, chunk=4)  # 15 rows, chunks across units
    (group,) = grouped(planned.units)
    assert [group.paths[k] for k in group.positions] == [".kernel.eta"]
    got = drawn(planned, tmp_path)
    alone = drawn(batch.Plan(units(0.6), (8,), 5, chunk=4), tmp_path / "alone")
    np.testing.assert_allclose(got["x"][5:10], alone["x"], atol=1e-5)


def test_units_of_several_programs(tmp_path):
    best = batch.Unit("best", nk.samplers.BestOfN(sampler(), num_particles=3), STEPS)
    planned = batch.Plan((*units(1.0), best), (8,), 8, chunk=8)
    got = drawn(planned, tmp_path)
    assert got["evals"][:8, 0].tolist() == [4] * 8
    assert got["evals"][8:, 0].tolist() == [12] * 8
    with pytest.raises(ValueError, match="multiple of chunk"):
        one_device(batch.Plan(planned.units, (8,), 6, chunk=4), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_conditions_and_bfloat16(tmp_path):
    made = {name: 0.5 * k for k, name in enumerate("abc")}
    planned = batch.make_plan(lambda eta: sampler(eta=eta), STEPS, (8,), 4, conditions=made, chunk=6, dtype="bfloat16")
    assert [u.name for u in planned.units] == ["a", "b", "c"]
    got = drawn(planned, tmp_path)
    assert got["x"].shape == (12, 8)
    assert got["x"].dtype == np.float32
    np.testing.assert_array_equal(got["x"], got["x"].astype(jax.numpy.bfloat16).astype(np.float32))
    assert np.isfinite(got["reward"]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"units": units(1.0, 1.0)}, "distinct names"),
        ({"units": ()}, "at least one unit"),
        ({"num": 0}, "at least one"),
        ({"chunk": 0}, "at least one"),
        ({"num": 2**31}, "at most"),
        ({"seed": -1}, "seeds must be"),
    ],
)
def test_what_cannot_be_planned(changes, words):
    with pytest.raises(ValueError, match=words):
        batch.Plan(**({"units": units(1.0), "shape": (8,), "num": 4, "chunk": 2} | changes))


def test_the_record_tells_plans_apart():
    base = plan().record()
    assert plan().record() == base
    assert nk.config.loads(batch.make_plan(nk.samplers.BestOfN(nk.Single(nk.Look(nk.models.Exact(
        nk.targets.skewed(2).mixture, nk.schedules.VPCosine()), nk.rewards.Linear(np.ones(2))), nk.kernels.DDIM())),
        STEPS, (2,), 4).record()["sampler"]).num_particles == 4  # fmt: skip
    weights = np.zeros((8, 8), np.float32)
    others = [plan(num=45), plan(chunk=4), plan(seed=1), plan(settings={"file": 1})]
    others += [batch.make_plan(sampler(weights=weights), STEPS, (8,), 44, chunk=8)]
    assert all(other.record() != base for other in others)
