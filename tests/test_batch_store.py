"""Stores: what is in them, that they survive every interruption, and everything that is refused in one line."""

import itertools
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from batch_cases import Stopped, arrays, compiled_once, files, one_device, plan, sampler, stop_after

import ntrk_jax as nk
from ntrk_jax import batch
from ntrk_jax.batch import store as store_module


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "store"
    return folder, one_device(plan(), folder)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "store")


def test_what_is_in_it(whole):
    folder, report = whole
    got = arrays(folder)
    assert set(got) == {"x", "reward", "log_weight", "status", "evals", "done"}
    assert got["x"].shape == (44, 8)
    np.testing.assert_allclose(got["reward"], got["x"].sum(-1), atol=1e-4)
    np.testing.assert_array_equal(got["evals"], np.tile([4, 0, 5, 0], (44, 1)))
    assert np.unique(got["x"][:, 0]).size == 44
    assert not got["status"].any()
    assert got["done"].all()
    assert report.mean_reward == pytest.approx(got["reward"].mean(), abs=1e-5)
    assert (report.total, report.drawn, report.num_flagged, report.notes) == (44, 44, 0, [])
    attributes = json.loads((folder / "zarr.json").read_text())["attributes"]
    assert attributes["sampler"] == repr(sampler())
    assert attributes["plan"]["chunk"] == 8
    assert set(attributes["versions"]) == {"ntrk_jax", "jax", "jaxlib", "numpy", "zarr"}
    assert "git_commit" in attributes


def test_another_reader_opens_it(whole):
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(whole[0] / "x")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), arrays(whole[0])["x"])


@pytest.mark.parametrize("rows", [8, 24, 40])
def test_stopped_and_resumed_equals_uninterrupted(whole, tmp_path, rows):
    with pytest.raises(Stopped):
        one_device(plan(), tmp_path / "store", progress=stop_after(rows))
    before = files(tmp_path / "store")
    stamps = {name: os.stat(tmp_path / "store" / name).st_mtime_ns for name in before}
    assert int((arrays(tmp_path / "store")["done"] > 0).sum()) == rows // 8
    report = one_device(plan(), tmp_path / "store")
    assert report.drawn == 44 - rows
    assert files(tmp_path / "store") == files(whole[0])
    assert all(os.stat(tmp_path / "store" / name).st_mtime_ns == stamp for name, stamp in stamps.items())


def test_what_kills_leave_behind_is_removed(whole, tmp_path):
    with pytest.raises(Stopped):
        one_device(plan(), tmp_path / "store", progress=stop_after(8))
    (tmp_path / "store" / "x" / "c.1.0.0123abcd.partial").write_bytes(b"half")
    (tmp_path / ".store-abcd").mkdir()
    (tmp_path / "store" / "reward" / "c.3").write_bytes(b"half")  # written, never marked
    one_device(plan(), tmp_path / "store")
    assert files(tmp_path / "store") == files(whole[0])
    assert os.listdir(tmp_path) == ["store"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated": lambda s: cut(s / "x" / "c.2.0"),
    "flipped": lambda s: flip(s / "reward" / "c.2"),
    "deleted": lambda s: (s / "status" / "c.2").unlink(),
    "swapped": lambda s: shutil.copy(s / "x" / "c.1.0", s / "x" / "c.2.0"),  # whole, and another chunk's
    "mark": lambda s: cut(s / "done" / "c.2") or (s / "done" / "c.2").write_bytes(b"ab"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_chunk_is_drawn_again(whole, copy, damage):
    DAMAGE[damage](copy)
    assert files(copy) != files(whole[0])
    report = one_device(plan(), copy)
    assert (report.damaged, report.drawn) == ([2], 8)
    assert files(copy) == files(whole[0])


def test_a_damaged_chunk_loses_its_mark_before_it_is_drawn(copy):
    cut(copy / "x" / "c.2.0")
    store = store_module.Store(copy, plan())
    assert store.pending() == ([2], [2])
    assert store.read("done").astype(bool).tolist() == [True, True, False, True, True, True]
    assert store.pending(verify=False) == ([2], [])


def lose(name):
    def change(folder):
        root = json.loads((folder / "zarr.json").read_text())
        del root["attributes"][name]
        (folder / "zarr.json").write_text(json.dumps(root))

    return change


REFUSED = {
    "sampler attribute": (lose("sampler"), "lost its attribute 'sampler'"),
    "plan attribute": (lose("plan"), "lost its attribute 'plan'"),
    "commit attribute": (lose("git_commit"), "lost its attribute 'git_commit'"),
    "no attributes": (lambda s: (s / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}'), "no store"),
    "unreadable": (lambda s: cut(s / "zarr.json"), "damaged: zarr.json is not readable"),
    "array unreadable": (lambda s: cut(s / "x" / "zarr.json"), "damaged: x/zarr.json is not readable"),
    "array missing": (lambda s: shutil.rmtree(s / "evals"), "array 'evals' is missing"),
    "foreign": (lambda s: (s / "zarr.json").rename(s / "notes.txt"), "no store of ntrk batch"),
    "array of another shape": (
        lambda s: shutil.copy(s / "status" / "zarr.json", s / "x" / "zarr.json"), "'x' should be float32\\[44, 8\\]"),
    "array without codecs": (
        lambda s: (s / "x" / "zarr.json").write_text('{"shape": [44, 8], "data_type": "float32"}'), "zarr cannot open"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_store_that_is_not_this_plans_is_refused_and_left_alone(copy, case):
    change, words = REFUSED[case]
    change(copy)
    before = files(copy)
    with pytest.raises(batch.StoreError, match=words):
        one_device(plan(), copy)
    assert files(copy) == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (plan(num=45), "another plan .*num: it was '44', now '45'"),
        (plan(seed=1), "another plan .*seed"),
        (plan(reward=nk.rewards.Linear(np.full(8, 2.0, np.float32))), "another sampler .*1.0.*2.0"),
    ],
)
def test_a_changed_plan_is_refused(whole, changed, words):
    before = files(whole[0])
    with pytest.raises(batch.StoreError, match=words):
        one_device(changed, whole[0])
    assert files(whole[0]) == before


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(batch.StoreError, match="is a file"):
        one_device(plan(), tmp_path / "file")


def test_a_second_run_is_refused_and_the_lock_goes_with_its_holder(whole, copy):
    with store_module.locked(copy), pytest.raises(batch.StoreError, match="in use by another run"):
        one_device(plan(), copy)
    assert one_device(plan(), copy).drawn == 0


def test_other_versions_are_noted(copy):
    root = json.loads((copy / "zarr.json").read_text())
    root["attributes"]["versions"]["jax"] = "0.0.1"
    (copy / "zarr.json").write_text(json.dumps(root))
    assert any("0.0.1" in note for note in one_device(plan(), copy).notes)


def test_a_disk_that_fails_loses_nothing(whole, tmp_path, monkeypatch):
    calls, sync = itertools.count(), store_module._fsync

    def full(path):
        if next(calls) > 60:
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(store_module, "_fsync", full)
    with pytest.raises(batch.StoreError, match="cannot be written .No space left on device.*safe"):
        one_device(plan(), tmp_path / "store")
    monkeypatch.undo()
    kept = int((arrays(tmp_path / "store")["done"] > 0).sum())
    assert 0 < kept < 6
    assert one_device(plan(), tmp_path / "store").drawn == 44 - 8 * kept
    assert files(tmp_path / "store") == files(whole[0])


@pytest.fixture
def disk(tmp_path):
    """A disk of 160 kB of its own, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", folder], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_and_a_read_only_one(whole, disk, tmp_path):
    with pytest.raises(batch.StoreError, match="No space left on device"):
        one_device(plan(), disk / "store")
    kept = int((arrays(disk / "store")["done"] > 0).sum())
    assert 0 < kept < 6
    shutil.copytree(disk / "store", tmp_path / "larger")
    assert one_device(plan(), tmp_path / "larger").drawn == 44 - 8 * kept
    assert files(tmp_path / "larger") == files(whole[0])
    before = files(disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for name in ("store", "new"):
        with pytest.raises(batch.StoreError, match="Read-only file system"):
            one_device(plan(), disk / name)
    assert files(disk / "store") == before


def test_what_was_not_verified_and_is_damaged_is_named(copy):
    flip(copy / "reward" / "c.2")
    with pytest.raises(batch.StoreError, match="is damaged .*; run again with verification"):
        batch.run(plan(), copy, devices=1, verify=False)
