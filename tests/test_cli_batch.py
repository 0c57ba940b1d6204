"""`ntrk batch`: a plan in, a store out, killed and resumed; and every plan that is refused."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from batch_cases import arrays, compiled_once, files
from test_cli_main import invoke, quick_compilation, refused

PLAN = 'target = "skew2"\nmethod = "base"\nsteps = 3\nnum = 40\nseed = 3\nchunk = 8\n'


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    with quick_compilation(), compiled_once(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_a_minimal_plan_draws_the_samples_of_ntrk_sample_and_goes_on_where_it_was(plan, tmp_path):
    first = invoke("batch", plan, "--store", tmp_path / "store", "--devices", min(2, jax.device_count()))
    assert first.exit_code == 0, first.output
    assert "40 of 40 samples" in first.stderr
    assert invoke("sample", "--target", "skew2", "--method", "base", "--steps", 3, "--num", 40, "--seed", 3,
                  "--out", tmp_path / "s.npz").exit_code == 0  # fmt: skip
    with np.load(tmp_path / "s.npz") as want:
        np.testing.assert_allclose(arrays(tmp_path / "store")["x"], want["x"], atol=1e-5)
    before = files(tmp_path / "store")
    again = invoke("batch", plan, "--store", tmp_path / "store", "--axes", "explicit")
    assert again.exit_code == 0
    assert files(tmp_path / "store") == before
    plan.write_text(PLAN.replace("steps = 3", "steps = 4"))
    refused(invoke("batch", plan, "--store", tmp_path / "store"), "another plan", "file: steps: it was '3', now '4'")
    plan.write_text("[")
    refused(invoke("batch", plan, "--store", tmp_path / "store"), "cannot read the plan")


def test_a_dry_run_shows_memory_and_writes_nothing(plan, tmp_path):
    shown = invoke("batch", plan, "--dry-run", "--devices", min(2, jax.device_count()))
    assert shown.exit_code == 0, shown.output
    for words in ("MiB", "GFLOP", "none", "40 samples of shape [2], 8 a chunk"):
        assert words in shown.stdout
    assert os.listdir(tmp_path) == ["plan.toml"]


def test_units_that_override(plan, tmp_path):
    plan.write_text(PLAN + "[[units]]\nkernel = 'DDIM(eta=0.5)'\n[[units]]\nname = 'b'\nseed = 1\n")
    shown = invoke("batch", plan, "--store", tmp_path / "store")
    assert shown.exit_code == 0, shown.output
    x = arrays(tmp_path / "store")["x"]
    assert x.shape == (80, 2)
    assert len(np.unique(x[:, 0])) == 80


REFUSED = [
    ("numm = 3\n" + PLAN, ["unknown entry 'numm'", "num", "checkpoint"]),
    (PLAN + "[[units]]\nchunk = 3\n", ["[[units]] has an unknown entry 'chunk'"]),
    (PLAN.replace("num = 40\n", ""), ["needs an entry num"]),
    (PLAN.replace('target = "skew2"\n', ""), ["needs an entry target", "checkpoint"]),
    (PLAN.replace("40", "-1"), ["num must be a whole number between 1"]),
    ("temperature = 2\n" + PLAN, ["plan.toml: base has no temperature"]),
    (PLAN + "[[units]]\nname = 'cold'\ntemperature = 0.1\n", ["plan.toml, unit cold: base has no temperature"]),
    (PLAN.replace("40", "true"), ["num must be a whole number"]),
    (PLAN.replace("40", '"many"'), ["num must be a whole number", "many"]),
    (PLAN.replace('"base"', '"nope"'), ["unknown method 'nope'"]),
    (PLAN.replace('"skew2"', "2"), ["target must be text"]),
    ("temperature = nan\n" + PLAN, ["temperature must be a finite number"]),
    ("temperature = [0.5, 1.0]\n" + PLAN, ["temperature must be a finite number", "give [[units]]"]),
    (f"temperature = 1{400 * '0'}\n" + PLAN, ["temperature must be a finite number, got 10000"]),
    (PLAN + "[mixture]\nmeans = [[0, 0]]\n", ["[mixture] belongs to the target mixture, got skew2"]),
    ("value = 'best'\n" + PLAN.replace("base", "tds"), ["value", "best holds no value"]),
    ("value = 'best'\n" + PLAN, ["base has no value"]),
    ("digits = 3\n" + PLAN, ["digits must be a list"]),
    ("units = 3\n" + PLAN, ["units must be tables"]),
    ("mixture = 3\n" + PLAN, ["mixture must be a table"]),
    (PLAN + "[[units]]\nname = 'a'\n[[units]]\nname = 'a'\n", ["distinct names"]),
    (PLAN + "[[units]]\ntarget = 'skew2'\n[[units]]\ntarget = 'skew3'\n", ["one shape"]),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[words[0] for _, words in REFUSED])
def test_plans_that_are_refused(plan, tmp_path, text, words):
    plan.write_text(text)
    refused(invoke("batch", plan, "--store", tmp_path / "store"), *words)
    assert os.listdir(tmp_path) == ["plan.toml"]


def test_options_that_are_refused(plan, tmp_path):
    refused(invoke("batch", plan), "--store DIR is missing")
    refused(invoke("batch", plan, "--dry-run", "--devices", 99), "--devices", f"between 1 and the {jax.device_count()}")
    refused(invoke("batch", plan, "--dry-run", "--processes", 2), "go together")
    refused(invoke("batch", plan, "--dry-run", "--processes", 2, "--devices", 3), "multiple of --processes")
    refused(invoke("batch", tmp_path / "none.toml", "--dry-run"), "cannot read the plan")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    refused(invoke("batch", plan, "--store", tmp_path / "full"), "no store of ntrk batch")


COMMAND = [sys.executable, "-c", "from ntrk_jax.cli import main; main()", "batch"]


def start(plan, store, cache):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    options = [str(plan), "--store", str(store), "--devices", "2", "--cache", str(cache)]
    return subprocess.Popen([*COMMAND, *options], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def marks(store):
    folder = store / "done"
    return {p.name for p in folder.glob("c.*") if p.suffix != ".partial"} if folder.exists() else set()


@pytest.mark.slow
def test_killed_and_started_again_equals_a_run_that_was_not(plan, tmp_path):
    plan.write_text(PLAN.replace("steps = 3", "steps = 100").replace("num = 40", "num = 1200"))
    store, cache = tmp_path / "store", tmp_path / "cache"
    for wanted in (1, 40):  # killed with so many chunks marked
        process, kept = start(plan, store, cache), files(store)
        while len(marks(store)) < wanted and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        now = files(store)
        assert all(now[name] == data for name, data in kept.items() if ".partial" not in name)
    assert 40 <= len(marks(store)) < 150
    process = start(plan, store, cache)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 0, said
    assert invoke("batch", plan, "--store", tmp_path / "whole", "--devices", 2).exit_code == 0
    assert files(store) == files(tmp_path / "whole")
