"""Plans: a sample depends on its unit's name, the seed and its number, and on nothing else."""

import json
import sys
import types

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


def work(monkeypatch, tmp_path, text):
    """The functions of a script, as a process finds them that has just read it."""
    module = types.ModuleType("my_script")
    module.__file__ = str(tmp_path / "my_script.py")
    monkeypatch.setitem(sys.modules, "my_script", module)
    exec(text, module.__dict__)
    return module


def test_a_function_that_was_edited_is_another_plan(monkeypatch, tmp_path):
    """Its own code counts, that of what it calls, and the numbers and arrays of the module that it reads."""
    script = (
        "import jax, numpy as np\nweight, target = 1.0, np.ones(2)\ncalls = 0\n\n"
        "def inner(x):\n    global calls\n    calls += 1\n    return weight * x[0]\n\n"
        "@jax.jit\ndef reward(x):\n    return inner(x) + target[0]\n\nclass Score:\n    def __call__(self, x):\n"
        "        return 2 * x[0]\n\nfrom ntrk_jax.tree import pytree\n\n"
        "@pytree\nclass Leaves:\n    scale: float = 1.0\n\n"
        "    def __call__(self, x):\n        return weight * self.scale * x[0]\n\ncache = {}\n\n"
        "def filled(x):\n    return cache.setdefault(x.shape, x[0])\n"
    )

    def record(name, text=script):
        found = getattr(work(monkeypatch, tmp_path, text), name)
        return plan(reward=found() if name in ("Score", "Leaves") else found).record()

    assert "my_script:" in record("reward")["sampler"]
    for name in ("reward", "Score", "Leaves"):
        assert record(name) == record(name)
    assert record("reward", script.replace("calls = 0", "calls = 9")) == record("reward"), "it counts and reads nothing"
    for old, new in {"weight, target = 1.0": "weight, target = 2.0", "ones(2)": "zeros(2)", "* x[0]": "* x[1]"}.items():
        assert record("reward", script.replace(old, new)) != record("reward"), new
    for name in ("Score", "Leaves"):
        assert record(name, script.replace("* x[0]", "* x[1]")) != record(name)
    assert record("filled", script.replace("cache = {}", "cache = {1: 2}")) == record("filled"), "it fills itself"
    reward = work(monkeypatch, tmp_path, script).inner
    assert "function('my_script:inner')" in repr(sampler(reward=reward)), "printed and read back by its name"


def test_settings_are_those_that_are_read_back_and_hide_nothing():
    planned = batch.make_plan(sampler(), STEPS, (np.int64(8),), np.int64(4), settings={"size": (8, 8), 3: 4, "seed": 9})
    assert planned.settings == {"size": [8, 8], "3": 4, "seed": 9}
    assert json.loads(json.dumps(planned.record())) == planned.record()
    assert planned.record()["plan"]["seed"] == 0, "the plan's own"
    for bad in (np.float32(1), float("nan")):
        with pytest.raises(ValueError, match="settings must be what JSON can hold"):
            batch.make_plan(sampler(), STEPS, (8,), 4, settings={"x": bad})


def test_other_generators_are_other_plans():
    was = plan().record()
    for other in (jax.default_prng_impl("rbg"), jax.threefry_partitionable(False)):
        with other:
            assert plan().record() != was


def test_latents_are_single_unless_asked_for_and_populations_keep_their_evidence():
    with jax.enable_x64(True):
        drawn = jax.eval_shape(lambda key: batch.draw_one(sampler(), key, 0, STEPS, (8,))[0], jax.random.key(0))
        assert drawn.x.dtype == np.float32
    fk = nk.methods.fk(lambda x, t: 0.5 * x, lambda x0: x0.sum(), (2,), num_particles=4)
    drawn, _ = jax.jit(lambda key: batch.draw_one(fk, key, 0, STEPS, (2,)))(jax.random.key(0))
    assert drawn.log_weights.shape == ()
    want = jax.jit(lambda key: every(fk, key))(jax.random.key(0))
    np.testing.assert_allclose(drawn.log_weights, nk.samplers.log_z(want), rtol=1e-5)


def every(fk, key):
    """The whole population of which `draw_one` draws a member."""
    noise_key, run_key, _ = jax.random.split(jax.random.fold_in(key, 0), 3)
    return nk.run(fk, run_key, STEPS.sigma_t[0] * jax.random.normal(noise_key, (4, 2)), STEPS)[0]


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
        ({"units": ()}, "units must be at least 1"),
        ({"num": 0}, "num must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"num": 2**31}, "at most"),
        ({"seed": -1}, "seeds must be"),
    ],
)
def test_what_cannot_be_planned(changes, words):
    with pytest.raises(ValueError, match=words):
        batch.Plan(**({"units": units(1.0), "shape": (8,), "num": 4, "chunk": 2} | changes))


class Scorer:
    """A reward that compares by identity; it counts its calls, which is no setting."""

    def __init__(self, scale):
        self.scale, self.calls, self.table = scale, 0, np.full(3, scale)

    def __call__(self, x):
        self.calls += 1
        return self.scale * x.sum()

    score = __call__


def test_the_settings_of_an_object_that_scores_are_part_of_the_plan():
    def record(reward):
        look = nk.Look(nk.models.Exact(nk.targets.skewed(2)[0], nk.schedules.VPCosine()), nk.rewards.External(reward))
        return batch.make_plan(nk.Single(look, nk.kernels.DDIM()), STEPS, (2,), 4).record()

    one, used = Scorer(1.0), Scorer(1.0)
    used.calls = 7
    assert record(one) == record(used)
    assert record(one) != record(Scorer(2.0))
    assert record(one.score) == record(used.score) != record(Scorer(2.0).score)
    used.table = np.full(3, 5.0)
    assert record(one) != record(used)


def test_the_numbers_of_a_later_condition_are_part_of_the_record():
    first, second = (batch.Plan(units(0.2, eta), (8,), 4).record() for eta in (0.6, 0.7))
    assert first["units"][1]["with"] != second["units"][1]["with"]


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
