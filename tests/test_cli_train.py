"""`ntrk train digits`: writes a checkpoint that the other commands read, and overwrites nothing."""

import jax
import numpy as np
import pytest
from test_cli_main import invoke, refused

from ntrk_jax.training import digits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    out = tmp_path_factory.mktemp("train") / "new"
    result = invoke("train", "digits", "--out", out, "--seed", 5, "--steps", 2, "--classifier-steps", 1)
    jax.config.update("jax_disable_most_optimizations", before)
    assert result.exit_code == 0, result.output
    return out, result


def test_the_checkpoint_can_be_read(trained):
    out, result = trained
    assert [p.name for p in out.iterdir()] == ["digits.npz"]
    model = digits.load_digits_model(out / "digits.npz")
    assert model.record["seed"] == 5
    assert model.record["num_steps"] == 2
    assert np.all(np.isfinite(model.denoiser(model.data[0], 0.5)))
    assert "accuracy" in result.stdout
    assert "denoiser: step 2 of 2" in result.stderr


def test_a_checkpoint_is_not_overwritten(trained):
    out, _ = trained
    before = (out / "digits.npz").read_bytes()
    refused(invoke("train", "digits", "--out", out), "exists already", "--overwrite")
    refused(invoke("train", "digits", "--out", out / "digits.npz"), "exists already")
    assert (out / "digits.npz").read_bytes() == before


@pytest.mark.parametrize("option", ["--seed", "--steps", "--classifier-steps"])
def test_what_cannot_be(option, tmp_path):
    refused(invoke("train", "digits", "--out", tmp_path, option, -1), option)
    assert not list(tmp_path.iterdir())
