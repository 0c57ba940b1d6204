"""What the benchmarks share: ratios of interleaved best times, compile times, one JSON line per case."""

import json
import platform
import time

import jax


def best(functions, repeats=15):
    """The best wall time of each function in seconds, the functions taking turns."""
    for f in functions:
        jax.block_until_ready(f())
    times = [[] for _ in functions]
    for _ in range(repeats):
        for f, out in zip(functions, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(f())
            out.append(time.perf_counter() - start)
    return [min(t) for t in times]


def compile_seconds(function, *args):
    """Seconds to lower and compile a jitted function, without running it."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    return time.perf_counter() - start, compiled


def report(bench, case, **numbers):
    """Print one JSON line."""
    numbers = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in numbers.items()}
    numbers = {k: None if v != v else v for k, v in numbers.items()}  # JSON has no NaN
    print(json.dumps({"bench": bench, "case": case, **numbers}), flush=True)


def machine():
    """Print what the numbers were measured on."""
    import ntrk_jax

    device = jax.devices()[0]
    report(
        "machine",
        "versions",
        device=str(device.device_kind),
        jax=jax.__version__,
        python=platform.python_version(),
        cpu_count=__import__("os").cpu_count(),
        ntrk_jax=ntrk_jax.__version__,
    )
