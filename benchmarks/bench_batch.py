"""Batch runs: the same samples on any devices, kills, the price of storing, throughput beside a bare jitted loop.

`python benchmarks/bench_batch.py [--only devices kills overhead throughput failures] [--kills 20] [--num 100000]`.
"""

import argparse
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from timing import machine, report

import ntrk_jax as nk
from ntrk_jax import batch

PLAN = 'target = "das9"\nmethod = "ntrk"\nsteps = {steps}\nnum = {num}\nseed = 0\nchunk = {chunk}\n'
COMMAND = [sys.executable, "-c", "from ntrk_jax.cli import main; main()", "batch"]


def start(plan, store, *options):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*COMMAND, str(plan), "--store", str(store), *map(str, options)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    said = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), said


def files(folder):
    """Path -> bytes of what a store holds; the commit is left out, for it may change between the runs."""
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".lock")]
    found = {str(p.relative_to(folder)): p.read_bytes() for p in kept}
    return {name: re.sub(rb'"git_commit": {[^}]*}', b"", data) for name, data in found.items()}


def samples(folder):
    import zarr

    return np.asarray(zarr.open_group(folder, mode="r")["x"])


def free_port():
    with contextlib.closing(socket.socket()) as held:
        held.bind(("localhost", 0))
        return held.getsockname()[1]


def devices(folder):
    """1, 2, 4 and 8 devices, 1 and 2 processes, both kinds of axes; and another chunk."""
    plan, other = folder / "plan.toml", folder / "other.toml"
    plan.write_text(PLAN.format(steps=50, num=3000, chunk=128))
    other.write_text(PLAN.format(steps=50, num=3000, chunk=200))
    cases = [(n, 1, axes) for n in (1, 2, 4, 8) for axes in ("auto", "explicit")]
    cases += [(n, 2, axes) for n in (2, 4, 8) for axes in ("auto", "explicit")]
    first = None
    for num, processes, axes in cases:
        store = folder / f"{num}-{processes}-{axes}"
        options = ["--devices", num, "--axes", axes]
        if processes > 1:
            options += ["--coordinator", f"localhost:{free_port()}", "--processes", processes, "--process"]
        finish(*(start(plan, store, *options, *([p] if processes > 1 else [])) for p in range(processes)))
        first = first or files(store)
        case = f"devices={num} processes={processes} {axes}"
        report("batch", case, same_bytes=files(store) == first)
    finish(start(other, folder / "other"))
    gap = float(np.abs(samples(folder / "other") - samples(folder / "1-1-auto")).max())
    report("batch", "chunk=200 beside chunk=128", largest_difference=gap)


def kills(folder, num):
    """A run killed at random moments until it has been killed `num` times, then finished."""
    plan, cache = folder / "plan.toml", folder / "cache"
    plan.write_text(PLAN.format(steps=100, num=12_800, chunk=64))
    finish(start(plan, folder / "whole", "--cache", cache))
    whole, rng = files(folder / "whole"), random.Random(0)
    began = time.perf_counter()
    finish(start(plan, folder / "again", "--cache", cache))
    alone, done, lost, round_, moments = time.perf_counter() - began, 0, 0, 0, []
    while done < num:
        store, round_ = folder / f"store{round_}", round_ + 1
        while done < num:
            kept = {k: v for k, v in files(store).items() if ".partial" not in k} if store.exists() else {}
            process = start(plan, store, "--cache", cache)
            try:
                process.wait(rng.uniform(0.0, 1.1 * alone))
                finish(process)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
            done += 1
            marks = len(list((store / "done").glob("c.*[0-9]"))) if store.exists() else -1
            moments.append(marks)
            now = files(store) if store.exists() else {}
            lost += sum(now.get(name) != data for name, data in kept.items() if name.startswith("done/"))
            check = folder / "check"  # every interrupted store is also finished by itself
            if store.exists():
                shutil.copytree(store, check)
            finish(start(plan, check, "--cache", cache))
            assert files(check) == whole, f"kill {done} changed the store"
            shutil.rmtree(check)
        shutil.rmtree(store, ignore_errors=True)
    report("batch", "kill -9", kills=done, chunks=len(list((folder / "whole" / "done").glob("c.*"))),
           chunks_marked_when_killed=moments, marked_chunks_lost=lost, all_equal_uninterrupted=True)  # fmt: skip


def cpu_a_write(plan, folder):
    """CPU seconds that writing one chunk takes, nothing else running in this process."""
    batch.run(plan, folder, devices=1)
    store = batch.Store(folder, plan)
    rows = [store.read(name, slice(0, plan.chunk)) for name in ("x", "reward", "log_weight", "status", "evals")]
    drawn = batch.Drawn(rows[0], rows[1], rows[2], nk.Evals(*rows[4].T), rows[3])
    with clock() as seconds:
        for _ in range(20):
            store.write(0, drawn)
    shutil.rmtree(folder)
    return float(seconds[1]) / 20


@nk.pytree
class Layers:
    """A network of square layers, to make a step of a given length."""

    weights: object

    def __call__(self, x, t, cond=None):
        for weight in self.weights:
            x = jnp.tanh(weight @ x)
        return x


def bare(plan, wait):
    """Wall and CPU seconds of a jitted loop over the chunks that stores nothing and holds the results on the host.

    wait: for each chunk before the next is started, or for all at the end.
    """
    unit = plan.units[0]
    key = jax.random.key(plan.seed)

    @jax.jit
    def chunk(sampler, steps, first):
        indices = first + jnp.arange(plan.chunk, dtype=jnp.uint32)
        return jax.vmap(lambda i: batch.draw_one(sampler, key, i, steps, plan.shape)[0])(indices)

    def start(c):
        out = chunk(unit.sampler, unit.steps, jnp.uint32(c * plan.chunk))
        return jax.tree.map(np.asarray, out) if wait else out

    jax.block_until_ready(start(0))
    with clock() as seconds:
        jax.tree.map(np.asarray, [start(c) for c in range(plan.num_chunks)])
    return seconds


@contextlib.contextmanager
def clock():
    """Wall and CPU seconds of a block."""
    seconds = np.zeros(2)
    began = np.array([time.perf_counter(), time.process_time()])
    yield seconds
    seconds += np.array([time.perf_counter(), time.process_time()]) - began


def stored(plan, folder, keep=True):
    """Wall and CPU seconds of drawing a plan on one device, writing it or not; what does not grow is left out."""
    whole, write = batch.Store.write, batch.Store.write
    program, began = batch.Program.__init__, []

    def after(self, *args, **options):
        program(self, *args, **options)
        began.append(time.process_time())

    batch.Program.__init__ = after
    batch.Store.write = write if keep else (lambda self, chunk, drawn: None)
    ended = []
    try:
        out = batch.run(plan, folder, devices=1, progress=lambda done, total: ended.append(time.process_time()))
    finally:
        batch.Program.__init__, batch.Store.write = program, whole
    shutil.rmtree(folder)
    return np.array([out.seconds, ended[-1] - began[0]])


def overhead(folder):
    """The price of storing where a step of a chunk takes about 10 ms: as many layers as that asks for here."""
    size, steps = 3072, nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(20))
    reward = nk.rewards.Linear(np.ones(size, np.float32) / size)

    def layered(num):
        rng = np.random.default_rng(0)
        weights = [jnp.asarray(rng.standard_normal((size, size)) / size**0.5, jnp.float32) for _ in range(num)]
        sampler = nk.Single(nk.Look(Layers(weights), reward), nk.kernels.DDIM())
        return batch.make_plan(sampler, steps, (size,), num=16 * 24, chunk=16)

    def step(wall):
        return wall / (24 * steps.num_steps)

    layers = max(2, round(2 * 0.01 / step(stored(layered(2), folder / "s", False)[0])))
    plan = layered(layers)
    runs = np.array([[stored(plan, folder / "s", keep) for keep in (False, True)] for _ in range(6)])
    wall, wall_kept = np.median(runs, axis=0)[:, 0]
    report("batch", "storing beside not storing", milliseconds_a_step=1e3 * step(wall), layers=layers,
           wall_overhead_median=wall_kept / wall - 1, best_overhead=float(np.divide(*runs.min(axis=0)[::-1, 0]) - 1),
           cpu_milliseconds_a_chunk=1e3 * cpu_a_write(plan, folder / "w"), runs=len(runs),
           bytes_a_sample=4 * (size + 7))  # fmt: skip


def throughput(folder, num):
    """Many mixture samples at 100 steps with NTRK, stored."""
    law, reward = nk.targets.das9()
    schedule = nk.schedules.VPCosine()
    sampler = nk.methods.ntrk(nk.models.Exact(law, schedule), reward, (law.dim,))
    plan = batch.make_plan(sampler, nk.grid(schedule, nk.grids.uniform(100)), (law.dim,), num, chunk=4096)
    runs = np.array([[bare(plan, True), bare(plan, False), stored(plan, folder / "s")] for _ in range(3)])
    best, middle = runs.min(axis=0), np.median(runs, axis=0)
    report("batch", "mixture, ntrk, 100 steps", num=num, samples_per_second=num / best[2, 0], runs=len(runs),
           of_bare_best=best[:2, 0].min() / best[2, 0], of_bare_median=middle[:2, 0].min() / middle[2, 0],
           of_bare_cpu_median=middle[:2, 1].min() / middle[2, 1], bare_seconds=best[:2, 0].min(),
           stored_seconds=best[2, 0])  # fmt: skip


def failures(folder):
    """1 % of rewards NaN, 1 % of callbacks raising: what is flagged, and that the others are as they would be."""
    import zlib

    def unlucky(x):
        return zlib.crc32(np.asarray(x).tobytes()) % 100 == 0

    def raising(x):
        if unlucky(x):
            raise OSError("no answer")
        return x.sum()

    steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(10))
    functions = {"calm": lambda x: x.sum(), "nan": lambda x: np.nan if unlucky(x) else x.sum(), "raising": raising}
    found = {}
    for name, function in functions.items():
        look = nk.Look(lambda x, t: 0.5 * x, nk.rewards.External(function))
        plan = batch.make_plan(nk.Single(look, nk.kernels.DDIM()), steps, (4,), 2000, chunk=250)
        result = batch.run(plan, folder / name, on_error="skip")
        import zarr

        group = zarr.open_group(folder / name, mode="r")
        found[name] = {key: np.asarray(group[key]) for key in ("x", "reward")}
        bad = np.array([unlucky(x) for x in found[name]["x"]]) if name != "calm" else np.zeros(2000, bool)
        same = all(np.array_equal(found[name][k][~bad], found["calm"][k][~bad]) for k in ("x", "reward"))
        report("batch", f"rewards: {name}", unlucky=int(bad.sum()), flagged=result.flagged, others_bitwise_equal=same,
               missing_where_unlucky=bool(np.array_equal(np.isnan(found[name]["reward"]), bad)))  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    cases = ["devices", "kills", "overhead", "throughput", "failures"]
    parser.add_argument("--only", nargs="*", default=cases, choices=cases)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num", type=int, default=100_000)
    args = parser.parse_args()
    machine()
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            extra = {"kills": [args.kills], "throughput": [args.num]}.get(name, [])
            globals()[name](pathlib.Path(folder), *extra)


if __name__ == "__main__":
    main()
