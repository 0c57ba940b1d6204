"""`ntrk train tilt`: a stopped run goes on, the report has the promised keys, and `ntrk sample` takes the folder."""

import json
import shutil

import numpy as np
import pytest
from test_cli_main import invoke, quick_compilation, refused

import ntrk_jax as nk
from ntrk_jax.cli import train_tilt as command
from ntrk_jax.cli.checkpoints import tuned_problem

TINY = ["--base-steps", 4, "--base-samples", 256, "--samples", 64, "--steps", 2, "--rounds", 2, "--batch", 16]
TINY += ["--width", 8, "--depth", 1, "--b", "0.5,4", "--temperature", 2, "--schedule", "RectifiedFlow(shift=2.0)"]
KEYS = ("sw2", "sw2_floor", "mean", "cov", "weights", "nll", "nll_exact", "seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run that was stopped after its first round, with what it said the second time."""
    out = tmp_path_factory.mktemp("tilt") / "run"
    with quick_compilation(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_JUDGED", 200)
        advance = command._advance

        def stop(progress, text, last=False):
            advance(progress, text, last)
            if text.startswith("round 1"):
                raise KeyboardInterrupt

        with patch.context() as once:
            once.setattr(command, "_advance", stop)
            stopped = invoke("train", "tilt", *TINY, "--out", out)
        assert stopped.exit_code == 130
        assert f"what was done is in {out / 'unfinished'}; run the same command again" in stopped.stderr
        assert sorted(p.name for p in out.iterdir()) == ["unfinished"]
        refused(invoke("train", "tilt", *TINY, "--seed", 1, "--out", out), "unfinished", "other options")
        result = invoke("train", "tilt", *TINY, "--out", out)
        assert result.exit_code == 0, result.output
        yield out, result


@pytest.mark.slow
def test_the_report(folder):
    out, result = folder
    assert sorted(p.name for p in out.iterdir()) == ["model", "model.json", "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert all(report[key] is not None for key in KEYS)
    assert report["resumed"] is True
    assert report["rounds"] == 2
    assert report["reward_calls"] == 128
    assert "round 2" in result.stderr
    assert "round 1" not in result.stderr, "the first round is not done twice"
    assert "tuned" in result.stdout
    law, reward = nk.targets.two_modes((0.5, 4.0))
    star = nk.targets.tilt(law, reward, 2.0).mixture
    np.testing.assert_allclose(report["weights_exact"], star.weights, atol=1e-6)
    np.testing.assert_allclose(report["mean_exact"], star.mean(), atol=0.5)
    assert abs(report["nll_exact"] - 2.7) < 0.3
    assert np.shape(report["cov"]) == (2, 2)
    assert sum(report["weights"]) == pytest.approx(1.0, abs=1e-5)
    assert report["mean_reward"] > report["base"]["mean_reward"] + 1.0, "the tilt is upwards"
    assert report["base"].keys() >= {"sw2", "mean", "cov", "weights", "nll"}
    assert {"settings", "versions", "machine", "schedule"} <= report.keys()


@pytest.mark.slow
def test_what_is_there_is_kept(folder):
    out, _ = folder
    before = (out / "report.json").read_bytes()
    refused(invoke("train", "tilt", *TINY, "--out", out), "exists already", "--overwrite")
    assert (out / "report.json").read_bytes() == before


@pytest.mark.slow
def test_sampling_on_top(folder, tmp_path):
    out, _ = folder
    task = tuned_problem(out)
    report = json.loads((out / "report.json").read_text())
    assert task.schedule == nk.schedules.RectifiedFlow(2.0)
    np.testing.assert_allclose(task.law.mean(), nk.targets.tilt(*nk.targets.two_modes((0.5, 4.0)), 2.0).mixture.mean())
    for method in ("base", "ntrk"):
        to = tmp_path / f"{method}.npz"
        result = invoke("sample", "--checkpoint", out, "--method", method, "--num", 64, "--steps", 6, "--out", to)
        assert result.exit_code == 0, result.output
        with np.load(to) as got:
            assert got["x"].shape == (64, 2)
            if method == "base":  # the tuned model, not the base
                assert abs(got["x"][:, 1].mean() - report["mean"][1]) < 0.4
    refused(invoke("sample", "--checkpoint", out, "--target", "das9"), "model of two_modes", "das9")
    refused(invoke("sample", "--checkpoint", out, "--schedule", "VPCosine"), "--schedule is fixed")
    refused(invoke("sample", "--checkpoint", out, "--digit", 3), "--digit")


@pytest.mark.slow
def test_a_batch_plan_names_the_folder(folder, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(f'checkpoint = "{folder[0]}"\nmethod = "base"\nnum = 4\nsteps = 2\n')
    shown = invoke("batch", plan, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "4 samples of shape [2]" in shown.stdout
    plan.write_text(plan.read_text() + 'target = "das9"\n')
    refused(invoke("batch", plan, "--dry-run"), "is a model of two_modes, got target das9")


def broken(out, tmp_path, **changes):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    record = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(record | changes))
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"format": "another"},
        {"target": 3},
        {"temperature": -1.0},
        {"b": [1.0]},
        {"schedule": "__import__('os').getcwd()"},
        {"network": {"width": 10**9, "hidden": 16, "depth": 3, "moments": "full"}},
        {"network": {"width": 9, "hidden": 16, "depth": 3, "moments": "full"}},
        {"network": None},
    ],
    ids=str,
)
def test_a_folder_that_is_not_what_it_says(folder, tmp_path, changes):
    refused(invoke("sample", "--checkpoint", broken(folder[0], tmp_path, **changes)), "--")


@pytest.mark.slow
def test_foreign_and_corrupt_folders(folder, tmp_path):
    refused(invoke("sample", "--checkpoint", tmp_path / "nowhere"), "nowhere", "ntrk train tilt")
    (tmp_path / "foreign").mkdir()
    refused(invoke("sample", "--checkpoint", tmp_path / "foreign"), "foreign", "ntrk train tilt")
    copy = broken(folder[0], tmp_path)
    shutil.rmtree(copy / "model")
    refused(invoke("sample", "--checkpoint", copy), "is not a checkpoint")
    (copy / "model.json").write_text("{")
    refused(invoke("sample", "--checkpoint", copy), "ntrk train tilt")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--b", "1"], ["--b", "two finite numbers"]),
        (["--b", "1,x"], ["--b", "0.5,4"]),
        (["--b", "nan,1"], ["--b", "finite"]),
        (["--target", "das9", "--b", "0,4"], ["--b belongs to --target two_modes"]),
        (["--target", "nope"], ["unknown target"]),
        (["--temperature", "0"], ["--temperature", "above 0"]),
        (["--method", "nft"], ["--method"]),
        (["--rounds", "0"], ["--rounds"]),
        (["--digit", "3"], ["--digit"]),
        (["--ess", "nan"], ["--ess", "not a finite number"]),
        (["--schedule", "nope"], ["--schedule"]),
    ],
)
def test_what_cannot_be(args, words, tmp_path):
    out = tmp_path / "out"
    refused(invoke("train", "tilt", *args, "--out", out), *words)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["folder", "file", "unfinished"])
def test_what_a_person_keeps_there_is_never_touched(kind, tmp_path):
    kept = {"folder": "model/notes", "file": "model", "unfinished": "unfinished/notes"}[kind]
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_text("mine")
    for more in ([], ["--overwrite"]) if kind != "folder" else ([],):
        words = {"folder": "exists already", "file": "is a file", "unfinished": "in the way"}[kind]
        refused(invoke("train", "tilt", *TINY, *more, "--out", tmp_path), words)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [kept]
    assert (tmp_path / kept).read_text() == "mine"
