"""Rewards that fail: what happens to their samples, and to all others."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest
from batch_cases import WEIGHTS, Net, arrays, one_device, plan

import ntrk_jax as nk
from ntrk_jax import batch
from ntrk_jax.rewards import External

NUM = 96


def unlucky(x):
    """About one clean sample in thirteen, by the thousandths of its first entry, the same on every device."""
    return int(abs(1e3 * float(np.ravel(x)[0]))) % 13 == 0


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm") / "store"
    one_device(plan(NUM, 16, External(lambda x: x.sum())), folder)
    return arrays(folder)


class Faulty:
    """A reward that fails for the unlucky; `tries` counts the calls of each sample."""

    def __init__(self, fail, cure=None):
        self.fail, self.cure, self.tries = fail, cure, {}

    def __call__(self, x):
        name = np.asarray(x).tobytes()
        self.tries[name] = self.tries.get(name, 0) + 1
        if unlucky(x) and (self.cure is None or self.tries[name] <= self.cure):
            self.fail()
        return x.sum()


def boom():
    raise OSError("the scorer is down")


def hang():
    threading.Event().wait(30)


@pytest.mark.parametrize(("fail", "options"), [(boom, {}), (hang, {"time_limit": 0.1})], ids=["raises", "hangs"])
def test_failures_are_skipped_and_flagged_and_leave_the_others_alone(calm, tmp_path, fail, options):
    num = NUM if fail is boom else 16
    reward = External(Faulty(fail))
    report = one_device(plan(num, 16, reward), tmp_path / "store", on_error="skip", **options)
    got, flag = arrays(tmp_path / "store"), nk.Status.CALLBACK_FAILED
    bad = np.array([unlucky(x) for x in calm["x"][:num]])
    assert 0 < bad.sum() < num
    np.testing.assert_array_equal(np.isnan(got["reward"]), bad)
    assert (got["status"][bad] & flag).all()
    assert not got["status"][~bad].all()  # some of the others have lost a reward on their way
    for name in ("x", "log_weight", "evals"):  # the path of a sample is unguided here: only its reward is missing
        np.testing.assert_array_equal(got[name], calm[name][:num])
    np.testing.assert_array_equal(got["reward"][~bad], calm["reward"][:num][~bad])
    row = int(np.flatnonzero(got["status"])[0])
    said = "the scorer is down" if fail is boom else "took longer than 0.1 s"
    assert report.failures[0].startswith(f"sample {row} of unit 'all'")
    assert said in report.failures[0]
    assert report.flagged["CALLBACK_FAILED"] == np.count_nonzero(got["status"]) == len(report.failures) >= bad.sum()


def test_what_was_skipped_is_drawn_again_when_asked(calm, tmp_path):
    faulty = Faulty(boom)
    planned = plan(NUM, 16, External(faulty))
    one_device(planned, tmp_path / "store", on_error="skip")
    faulty.fail = lambda: None  # the scorer is back
    assert one_device(planned, tmp_path / "store").drawn == 0
    assert one_device(planned, tmp_path / "store", redraw=True).flagged == {}
    np.testing.assert_array_equal(arrays(tmp_path / "store")["reward"], calm["reward"])


@pytest.mark.parametrize("batched", [False, True])
def test_retries_cure_what_passes(calm, tmp_path, batched):
    one = Faulty(boom, cure=1)
    reward = External((lambda x: np.array([one(row) for row in x])) if batched else one, batched=batched)
    report = one_device(plan(NUM, 16, reward), tmp_path / "store", retries=2)
    assert report.failures == []
    np.testing.assert_allclose(arrays(tmp_path / "store")["reward"], calm["reward"], rtol=1e-6)
    assert max(one.tries.values()) >= 2


def test_a_call_is_tried_once_more_for_every_retry(calm, tmp_path):
    one = Faulty(boom, cure=2)  # the third try succeeds
    assert one_device(plan(NUM, 16, External(one)), tmp_path / "store", retries=2).failures == []
    assert max(one.tries.values()) >= 3
    with pytest.raises(batch.RewardError, match="the scorer is down"):
        one_device(plan(NUM, 16, External(Faulty(boom, cure=2))), tmp_path / "again", retries=1)


def test_a_run_stops_at_a_failure_and_keeps_what_it_has(calm, tmp_path):
    faulty = Faulty(boom)
    planned = plan(NUM, 16, External(faulty))
    said = r"sample \d+ of unit 'all': (on its way: )?OSError: the scorer is down.*safe"
    with pytest.raises(batch.RewardError, match=said):
        one_device(planned, tmp_path / "store")
    faulty.fail = lambda: None
    one_device(planned, tmp_path / "store")
    np.testing.assert_array_equal(arrays(tmp_path / "store")["reward"], calm["reward"])


@nk.pytree
class Holes:
    """A sum with NaN where x[0] is in a narrow band: a reward inside the program that fails for a few samples."""

    def __call__(self, x):
        return jnp.where(jnp.abs(x[0]) < 0.02, jnp.nan, jnp.sum(x))


def test_rewards_and_models_that_are_not_finite_flag_their_samples_alone(tmp_path):
    for name, reward in (("holes", Holes()), ("whole", nk.rewards.Linear(np.ones(8, np.float32)))):
        one_device(plan(256, 64, reward), tmp_path / name)
    got, want = arrays(tmp_path / "holes"), arrays(tmp_path / "whole")
    bad = (got["status"] & nk.Status.NONFINITE_REWARD) > 0
    assert 0 < bad.sum() < 64
    assert np.isnan(got["reward"][np.abs(got["x"][:, 0]) < 0.02]).all()
    np.testing.assert_array_equal(got["x"], want["x"])
    np.testing.assert_array_equal(got["status"][~bad], 0)


def test_a_program_that_fails_names_its_unit(tmp_path):
    import jax

    def broken(x):
        return jax.pure_callback(lambda v: 1 / 0, jax.ShapeDtypeStruct((), jnp.float32), x, vmap_method="sequential")

    with pytest.raises(batch.RewardError, match="while drawing unit 'all'.*ZeroDivisionError"):
        one_device(plan(8, 8, broken), tmp_path / "store")


def test_limits_that_leave_no_try():
    for options in ({"retries": -1}, {"time_limit": 0.0}):
        with pytest.raises(ValueError, match="at least 0 and time_limit above 0"):
            batch.Guard(**options)
    with pytest.raises(ValueError, match="stop or skip"):
        one_device(plan(), "nowhere", on_error="ignore")
    assert Net(WEIGHTS) == Net(WEIGHTS)
