"""Devices and processes: the same samples on any number of them, and no collective where parameters are replicated."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from batch_cases import STEPS, WEIGHTS, Net, arrays, compiled_once, files, plan
from jax.sharding import PartitionSpec

import ntrk_jax as nk
from ntrk_jax import batch
from ntrk_jax.batch.plan import grouped


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "store"
    batch.run(plan(), folder, devices=1)
    return folder


@pytest.mark.devices(4)
@pytest.mark.parametrize(("devices", "axes"), [(1, "explicit"), (2, "auto"), (4, "explicit")])
def test_any_number_of_devices_draws_the_same_bits(alone, tmp_path, devices, axes):
    batch.run(plan(), tmp_path / "store", devices=devices, axes=axes)
    assert files(tmp_path / "store") == files(alone)


@pytest.mark.slow
@pytest.mark.devices(4)
def test_populations_agree_on_any_number_of_devices(tmp_path):
    """The samples bit for bit, the log-weights to rounding."""
    made = nk.methods.tds(Net(WEIGHTS), nk.rewards.Linear(np.ones(8, np.float32)), (8,), num_particles=3)
    for devices in (1, 2):
        batch.run(batch.make_plan(made, STEPS, (8,), 32, chunk=8), tmp_path / str(devices), devices=devices)
    one, two = (arrays(tmp_path / name) for name in "12")
    np.testing.assert_array_equal(one["x"], two["x"])
    np.testing.assert_allclose(one["log_weight"], two["log_weight"], rtol=1e-5, atol=1e-5)


LOOK = nk.Look(Net(WEIGHTS), nk.rewards.Linear(np.ones(8, np.float32)), grad=True)


@pytest.mark.devices(4)
@pytest.mark.parametrize(
    "made",
    [
        nk.Single(LOOK, nk.kernels.DDIM(), nk.guidance.NTRK(nk.whitening.UnitNorm(), strength=0.1)),
        nk.SMC(nk.replace(LOOK, grad=False), nk.kernels.DDIM(), num_particles=3),
    ],
    ids=["ntrk", "smc"],
)
def test_programs_of_independent_samples_hold_no_collective(made):
    planned = batch.make_plan(made, STEPS, (8,), 16, chunk=4)
    program = batch.Program(planned, grouped(planned.units)[0], batch.make_mesh(4, "explicit"))
    assert program.collectives == []
    assert program.memory["temp"] > 0


def rules(path, leaf):
    return PartitionSpec("data") if path.endswith(".weights") else None


@pytest.mark.devices(4)
@pytest.mark.parametrize("axes", ["auto", "explicit"])
def test_parameters_sharded_by_rules(alone, tmp_path, axes):
    planned = plan()
    program = batch.Program(planned, grouped(planned.units)[0], batch.make_mesh(4, axes), rules)
    assert program.collectives != []  # the weights are gathered: the search for collectives does find them
    k = next(k for k, path in enumerate(grouped(planned.units)[0].paths) if path.endswith(".weights"))
    assert program.common[k].addressable_shards[0].data.shape == (2, 8)
    batch.run(planned, tmp_path / "store", axes=axes, rules=rules)
    np.testing.assert_allclose(arrays(tmp_path / "store")["x"], arrays(alone)["x"], atol=1e-5)


PROCESS = """
import sys, jax
sys.path.insert(0, sys.argv[1])
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
from batch_cases import plan
from ntrk_jax import batch
try:
    print("drawn", batch.run(plan(), sys.argv[4], axes="explicit").drawn)
    batch.run(plan(num=9), sys.argv[4])
except batch.StoreError as error:
    print(error)
"""


@pytest.mark.slow
def test_two_processes_draw_the_same_bits_and_are_refused_together(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    here = os.path.dirname(__file__)
    args = [sys.executable, "-c", PROCESS, here, port]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    both = [subprocess.Popen([*args, str(p), str(tmp_path / "store")], env=env, stdout=subprocess.PIPE, text=True)
            for p in range(2)]  # fmt: skip
    said = [process.communicate(timeout=100)[0] for process in both]
    assert all("drawn 44" in text for text in said), said
    assert files(tmp_path / "store") == files(alone)
    assert "was made with another plan" in said[0]
    assert "the first process cannot use the store" in said[1]


def test_meshes_that_do_not_exist():
    with pytest.raises(ValueError, match=f"between 1 and the {jax.device_count()} visible"):
        batch.make_mesh(jax.device_count() + 1)
    with pytest.raises(ValueError, match="auto or explicit"):
        batch.make_mesh(1, "manual")
