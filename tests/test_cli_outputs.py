"""Files appear whole or not at all."""

import json
import math
import pathlib

import numpy as np
import pytest

from ntrk_jax.cli.console import BadInput
from ntrk_jax.cli.outputs import refuse_existing, staged, to_json, versions


def test_staged_files_appear_together(tmp_path):
    with staged(tmp_path / "new" / "folder", ["a", "b"], False) as stage:
        (stage / "a").write_text("1")
        (stage / "b").write_text("2")
        assert not (tmp_path / "new" / "folder" / "a").exists()
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["a", "b"]


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail():
        with staged(tmp_path, ["a"], True) as stage:
            (stage / "a").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_existing_files_are_refused_or_replaced(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(BadInput, match="exists already"), staged(tmp_path, ["a"], False):
        pass
    with staged(tmp_path, ["a"], True) as stage:
        (stage / "a").write_text("new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_file_that_appeared_meanwhile_is_kept(tmp_path):
    def write():
        with staged(tmp_path, ["a"], False) as stage:
            (stage / "a").write_text("ours")
            (tmp_path / "a").write_text("theirs")

    with pytest.raises(BadInput, match="exists already"):
        write()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "theirs")]


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        refuse_existing(tmp_path / "file" / "deep", ["a"], False)
    (tmp_path / "a").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        refuse_existing(tmp_path, ["a"], True)


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="a folder that nobody may write to")
def test_a_folder_that_cannot_be_made_is_found_at_the_start():
    with pytest.raises(BadInput, match="/proc is not writable; give another --out"):
        refuse_existing(pathlib.Path("/proc/x/y"), ["a"], False)


def test_json_holds_arrays_and_what_is_not_finite():
    text = to_json({"a": np.float32(0.5), "b": np.arange(2), "c": math.nan, "d": (1, "x"), 3: None, "e": tuple})
    assert json.loads(text) == {"a": 0.5, "b": [0, 1], "c": None, "d": [1, "x"], "3": None, "e": "<class 'tuple'>"}


def test_versions_name_what_matters():
    assert {"python", "ntrk_jax", "jax", "numpy"} <= set(versions())
