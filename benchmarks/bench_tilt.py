"""Iterative tilting by training, against the exact tilted law.

    python benchmarks/bench_tilt.py                         every case, three seeds
    python benchmarks/bench_tilt.py --case easy --seeds 1   one case, one seed

- easy, hard: `ntrk train tilt --target two_modes --b 0,4` (or 0.5,4) with its defaults, base training included.
- implicit, weighted: the hard case with the other targets.
- published: the published setting, reduced (see `published`).
- step, ring, double_well, field32: targets of that name, with the command's defaults. `ideal`: the sliced W2 and the
  mean reward of the exact denoiser's samples from the same starts, judged alike.
- integer: an integer-valued reward on the host.

Bars: easy SW2 <= 0.10, variance of y within 10 % of 0.5, weights within 0.03, nll within 0.05 of 2.83;
hard SW2 <= 0.15.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from click.testing import CliRunner
from timing import machine, report

import ntrk_jax as nk
from ntrk_jax.cli import main
from ntrk_jax.cli.problems import Named, problem
from ntrk_jax.cli.tilt_report import judge
from ntrk_jax.training import TiltLoss, denoise, tilt
from ntrk_jax.training.fit import begin
from ntrk_jax.training.tilt_rounds import _steps

COMMANDS = {
    "easy": ["--b", "0,4"],
    "hard": ["--b", "0.5,4"],
    "implicit": ["--b", "0.5,4", "--method", "implicit"],
    "weighted": ["--b", "0.5,4", "--method", "weighted"],
    "step": ["--target", "step"],
    "ring": ["--target", "ring"],
    "double_well": ["--target", "double_well"],
    "field32": ["--target", "field32"],
    "step_explicit": ["--target", "step", "--method", "explicit"],
    "step_implicit": ["--target", "step", "--method", "implicit"],
    "step_weighted": ["--target", "step", "--method", "weighted"],
}
SHOWN = ("sw2", "sw2_floor", "mean", "mean_exact", "weights", "weights_exact", "nll", "nll_exact", "mean_reward",
         "mean_reward_exact")  # fmt: skip


def show(case, seed, found, **more):
    """One line: the numbers with the variances taken out of the covariance."""
    numbers = {k: np.round(found[k], 4).tolist() for k in SHOWN if found.get(k) is not None}
    variances = None if found["cov"] is None else np.round(np.diag(found["cov"]), 4).tolist()
    report("tilt", case, seed=seed, **numbers, variances=variances, base_sw2=found["base"]["sw2"], **more)


def command(case, seed):
    """The command itself, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        args = ["train", "tilt", *COMMANDS[case], "--seed", str(seed), "--out", folder]
        result = CliRunner().invoke(main, args)
        if result.exit_code:
            raise SystemExit(result.output)
        found = json.loads((Path(folder) / "report.json").read_text())
    more = {k: found[k] for k in ("rounds", "reward_calls", "seconds", "cpu_seconds")}
    if "--target" in COMMANDS[case]:
        task = problem(COMMANDS[case][1])
        model = nk.models.Exact(task.tilted(1.0), task.schedule)
        ideal = judge(task, 1.0, model, model, seed, 10_000)
        more |= {f"ideal_{k}": ideal[k] for k in ("sw2", "mean_reward")}
    show(case, seed, found, **more)


def levels(x):
    """An integer for every sample: stripes across the plane."""
    return np.floor(1.5 * x[1] + 0.5 * x[0])


def integer(seed):
    """An integer-valued reward that lives on the host, on the two modes; the exact law knows it as a jax function."""
    law = nk.targets.Tiltable(nk.targets.two_modes().mixture)
    keys = jax.random.split(jax.random.key(seed), 4)
    began, spent = time.perf_counter(), time.process_time()
    x = law.sample(keys[0], 1 << 16)
    blank = nk.models.moment_network(keys[1], x, nk.schedules.VPCosine())
    base = denoise(keys[2], blank, x, 2000)
    state = tilt(keys[3], base, nk.rewards.External(levels), (2,))
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    task = Named("two_modes", base, base.schedule, lambda x: jnp.floor(1.5 * x[1] + 0.5 * x[0]), (2,), law)
    found = judge(task, 1.0, base, state.model, seed, 10_000)
    show("integer", seed, found, rounds=int(state.round), **seconds)


def published(seed, rounds=20, num=1000, steps=400):
    """The published setting: a network that predicts the noise, the raw reward, 20 rounds of 1000 samples by 200
    stochastic steps, batches of 64, Adam at 1e-4. Reduced: 400 instead of about 1600 training steps a round, three
    blocks of width 128 instead of five layers of 256.
    """
    import optax
    from flax import nnx

    law, reward = nk.targets.two_modes()
    keys = jax.random.split(jax.random.key(seed), 3 + 2 * rounds)
    began, spent = time.perf_counter(), time.process_time()
    net = nk.models.nets.MLP((2,), width=128, hidden=256, depth=3, time_width=128, rngs=nnx.Rngs(seed))
    blank = nk.models.NnxDenoiser(net, "eps", nk.schedules.VPCosine())
    grid = nk.grid(blank.schedule, nk.grids.uniform(200))

    @jax.jit
    def draws(model, key):
        sampler = nk.Single(nk.Look(model), nk.kernels.DDIM(1.0))
        start, run = jax.random.split(key)
        x = jax.random.normal(start, (num, 2))
        return jax.vmap(lambda k, z: nk.run(sampler, k, z, grid)[0].look.x)(jax.random.split(run, num), x)

    base = model = denoise(keys[1], blank, law.sample(keys[0], 30_000), 3000, 512, rate=1e-3)
    adam = optax.adam(1e-4)
    for i in range(rounds):
        x = draws(model, keys[3 + 2 * i])
        raw = jax.vmap(reward)(x).astype(jnp.float32) / rounds
        loss = TiltLoss(model, model, method="explicit", kind="eps")
        start = begin(model.variables, adam.init(model.variables))
        state = _steps(keys[4 + 2 * i], loss, (x, raw), 0.9, start, adam, 64, steps)
        model = nk.tree.replace(model, variables=state.params)
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    found = judge(Named("two_modes", base, base.schedule, reward, (2,), law), 1.0, base, model, seed, 10_000)
    show("published", seed, found, rounds=rounds, **seconds)


CASES = {**{k: lambda seed, k=k: command(k, seed) for k in COMMANDS}, "integer": integer, "published": published}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    machine()
    for case in options.case or CASES:
        for seed in range(options.first, options.first + options.seeds):
            CASES[case](seed)
