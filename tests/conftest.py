"""Strict numeric modes, key-reuse checking and several CPU devices, for every test.

Nearly all of the suite's time is compilation. Programs are compiled with few optimisations, by the compiler's older
emitters of fused loops and in one piece, which makes it three times shorter, and without fused multiply-adds, so that
two programs of the same arithmetic agree bit for bit; where a processor has no such switch, tests of bitwise equality
ask for some optimisation instead (`catalogue.EXACT`). Lowerings share their context. With
JAX_DISABLE_MOST_OPTIMIZATIONS=0 everything is compiled as users have it.
"""

import gc
import os
import platform
import resource
import sys
import threading

gc.set_threshold(100_000, 20, 50)  # tracing makes many objects and few cycles
LEAN = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0"  # notebooks and commands inherit it
FLAGS = ["--xla_force_host_platform_device_count=4"]
UNFUSED = LEAN and platform.machine().lower() in ("x86_64", "amd64")
if UNFUSED:
    FLAGS.append("--xla_cpu_max_isa=AVX")
if LEAN:  # extra options that a version does not know are passed over
    FLAGS.append("--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters")
    FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_disable_most_optimizations", LEAN)


def share_contexts():
    """One MLIR context a thread serves all lowerings: making one costs 5 ms, as much as lowering a small program."""
    from jax._src.interpreters import mlir

    make, own = getattr(mlir, "make_ir_context", None), threading.local()

    def shared():
        if not hasattr(own, "context"):
            own.context = make()
        return own.context

    if make is not None:
        mlir.make_ir_context = shared


if LEAN:
    share_contexts()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run what is marked slow")


def pytest_collection_modifyitems(config, items):
    """What is marked slow is left to --slow, or to -m with that word."""
    if config.getoption("--slow") or "slow" in config.getoption("markexpr"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def pytest_runtest_setup(item):
    """What needs several devices is left out where the platform has fewer (the CPU has four)."""
    marker = item.get_closest_marker("devices")
    if marker and jax.device_count() < marker.args[0]:
        pytest.skip(f"needs {marker.args[0]} devices, has {jax.device_count()}.")


def pytest_collection_finish():
    """What is imported stays; the garbage collector need not look at it again."""
    gc.freeze()


ENOUGH = 1.5 * 2**30


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop the compiled programs after a module once the process has filled 1.5 GiB; small ones serve many modules."""
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if peak > ENOUGH:
        jax.clear_caches()


def scope_of(nodeid):
    """What runs together on one worker, because it shares compiled programs: a method's contract, else a module."""
    path, _, rest = nodeid.partition("::")
    if path.endswith("test_contract.py"):
        words = set(rest.partition("[")[2].rstrip("]").split("-")) - {"f32", "bf16", "vector", "image"}
        return f"{path}::{'-'.join(sorted(words))}"
    return nodeid if path.endswith(("test_notebooks.py", "test_public_api.py")) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Schedule by `scope_of`, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class ByProgram(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope_of(nodeid)

    return ByProgram(config, log)
