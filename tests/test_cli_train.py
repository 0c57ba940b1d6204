"""`ntrk train digits`: passes on what it was asked, writes one file that the other commands read, overwrites nothing.

The training itself is tested where it lives; here it is replaced by a function of the same signature.
"""

import inspect
import shutil
from pathlib import Path

import pytest
from test_cli_main import invoke, refused

import ntrk_jax
from ntrk_jax.training import digits

SHIPPED = Path(ntrk_jax.__file__).parent / "data" / "digits.npz"


@pytest.fixture
def asked(monkeypatch):
    """What `train_digits` was called with."""
    calls = []
    signature = inspect.signature(digits.train_digits)

    def train(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        calls.append(given)
        for step in (1, 2):
            given["progress"]("denoiser", step, 2, 0.5)
        shutil.copy(SHIPPED, given["out"])
        return digits.load_digits_model(given["out"])

    monkeypatch.setattr(digits, "train_digits", train)
    return calls


def test_what_was_asked_and_what_is_written(asked, tmp_path):
    out = tmp_path / "new" / "folder"
    result = invoke("train", "digits", "--out", out, "--seed", 5, "--steps", 2, "--classifier-steps", 1, "--kind", "v")
    assert result.exit_code == 0, result.output
    assert [p.name for p in out.iterdir()] == ["digits.npz"]
    assert (out / "digits.npz").read_bytes() == SHIPPED.read_bytes()
    (given,) = asked
    assert (given["seed"], given["num_steps"], given["classifier_steps"], given["kind"]) == (5, 2, 1, "v")
    assert "accuracy" in result.stdout
    assert "denoiser: step 2 of 2, loss 0.5" in result.stderr


def test_a_file_may_be_named(asked, tmp_path):
    assert invoke("train", "digits", "--out", tmp_path / "mine.npz").exit_code == 0
    assert digits.load_digits_model(tmp_path / "mine.npz").record["seed"] == 0


def test_a_checkpoint_is_not_overwritten(asked, tmp_path):
    kept = tmp_path / "digits.npz"
    kept.write_text("keep")
    for out in (tmp_path, kept):
        refused(invoke("train", "digits", "--out", out), "exists already", "--overwrite")
    assert kept.read_text() == "keep"
    assert not asked
    assert invoke("train", "digits", "--out", tmp_path, "--overwrite").exit_code == 0
    assert kept.read_bytes() == SHIPPED.read_bytes()


@pytest.mark.parametrize("option", ["--seed", "--steps", "--classifier-steps"])
def test_what_cannot_be(option, tmp_path):
    refused(invoke("train", "digits", "--out", tmp_path, option, -1), option)
    assert not list(tmp_path.iterdir())
