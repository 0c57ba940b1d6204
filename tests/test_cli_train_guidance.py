"""`ntrk train guidance`: what it writes, that a stopped run goes on to the same end, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli_main import invoke, refused

from ntrk_jax.cli import train_guidance
from ntrk_jax.cli.console import BadInput
from ntrk_jax.cli.unfinished import open_work
from ntrk_jax.training import load_value

SMALL = ("--steps", 8, "--samples", 256, "--group", 32, "--width", 4, "--num", 64, "--sampling-steps", 4,
         "--rounds", 1, "--temperature", 2)  # fmt: skip


def go(out, *more):
    return invoke("train", "guidance", "--out", out, *SMALL, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, measured on few points, and what it said."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        for name, number in (("_POINTS", 64), ("_ROWS", 4), ("_PARTICLES", 4), ("_POPULATIONS", 2)):
            patch.setattr(train_guidance, name, number)
        return out, go(out)


@pytest.mark.slow
def test_what_is_written(finished):
    out, result = finished
    assert result.exit_code == 0, result.output
    assert "round 1: step 8 of 8" in result.stderr
    report = json.loads((out / "report.json").read_text())
    for name in ("gradient_error", "sw2", "tds_ess"):
        assert {"learned", "plug_in"} == set(report[name])
        assert all(np.isfinite(v) and v > 0 for v in report[name].values())
    assert report["sw2_floor"] > 0
    assert report["log_z"]["level"] == pytest.approx(report["log_z"]["exact"], abs=0.5)
    assert report["settings"]["temperature"] == 2
    assert {"seconds", "versions", "machine"} <= set(report)
    at_noise = float(load_value(out)(None, jnp.zeros(2), 1.0)) / 2
    assert at_noise == pytest.approx(report["log_z"]["value_at_noise"], rel=1e-5)
    refused(go(out), "report.json exists already", "--overwrite")


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_end(finished, tmp_path, monkeypatch):
    numbers = {"gradient_error": {}, "sw2": {}, "tds_ess": {}, "sw2_floor": 0.1}
    monkeypatch.setattr(train_guidance, "evaluate", lambda *args: dict(numbers))
    done = []

    def stop(self, text):
        done.append(text)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_guidance.Progress, "advance", stop)
        assert go(tmp_path).exit_code != 0
    assert [p.name for p in tmp_path.iterdir()] == ["unfinished"]
    refused(go(tmp_path, "--seed", 1), "unfinished run of other options", "--overwrite")
    result = go(tmp_path, "--overwrite")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "unfinished").exists()
    assert "step 4 of 8" not in result.stderr, "the first steps were done"
    assert "step 8 of 8" in result.stderr
    leaves = [jax.tree.leaves(load_value(folder).params) for folder in (finished[0], tmp_path)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_sampling_with_what_was_learned(finished, tmp_path):
    drawn = tmp_path / "s.npz"
    args = ("sample", "--method", "tds", "--particles", 4, "--num", 4, "--steps", 2, "--value", finished[0])
    result = invoke(*args, "--target", "skew2", "--temperature", 2, "--out", drawn)
    assert result.exit_code == 0, result.output
    with np.load(drawn) as got:
        assert (got["evals_model_vjp"] == 0).all(), "the learned value asks nothing of the model"
        assert "values.Learned" in str(got["sampler"])
    refused(invoke(*args, "--target", "skew3"), "--value", "shape (2,), got (3,)")
    refused(invoke(*args, "--target", "skew2", "--schedule", "VE"), "--value", "was made for")
    refused(invoke(*args, "--target", "das8"), "--value", "learned for the target skew2, not for das8")
    refused(invoke(*args, "--target", "skew2"), "learned at temperature 2.0; give --temperature 2.0")
    refused(invoke(*args[:-1], tmp_path, "--target", "skew2"), "--value", "holds no value")


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--target", "digits"), "no tilted law"), (("--target", "nothing"), "unknown target"), (("--loss", "mse"), "mse"),
     (("--temperature", 0), "--temperature"), (("--consistency", "nan"), "not a finite number"),
     (("--group", 512), "--group must be at most")],
)  # fmt: skip
def test_what_cannot_be(options, words, tmp_path):
    refused(go(tmp_path, *options), words)
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_of_other_options_is_kept_unless_it_is_to_be_replaced(tmp_path):
    work, before = open_work(tmp_path, {"seed": 0}, False, "value")
    (work / "round-1").mkdir()
    assert not before
    for overwrite in (False, True):
        assert open_work(tmp_path, {"seed": 0}, overwrite, "value") == (work, True), "the same options go on"
    with pytest.raises(BadInput, match="--overwrite"):
        open_work(tmp_path, {"seed": 1}, False, "value")
    assert (work / "round-1").exists()
    assert open_work(tmp_path, {"seed": 1}, True, "value") == (work, False)
    assert [p.name for p in work.iterdir()] == ["settings.json"]
