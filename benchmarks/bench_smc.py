"""Evidence and mean reward of every SMC method on exact mixtures: `python benchmarks/bench_smc.py`.

One line a problem and method. log Z is that of the mean of Z over the populations; its reference is the exact value
plus the discretisation bias, measured by plain Monte Carlo from the base sampler on the same grid. The mean reward is
the weighted mean over a population, averaged over populations.
"""

import argparse
import time

import jax
import numpy as np
from timing import machine, report

import ntrk_jax as nk

PROBLEMS = {
    "das9": nk.targets.das9, "das8": nk.targets.das8, "skew2": lambda: nk.targets.skewed(2),
    "skew8": lambda: nk.targets.skewed(8),
}  # fmt: skip
METHODS = ("fk", "fk signal", "fk_max", "tds", "das", "das_adaptive", "ntrk_smc")
run = jax.jit(jax.vmap(nk.run, (None, 0, 0, None)))


def reference(mixture, reward, schedule, steps, num, batch=100_000):
    """Log mean exp(r) and the mean reward of the base chain tilted by hand, with standard errors."""
    base = nk.Single(nk.Look(nk.models.Exact(mixture, schedule), reward), nk.kernels.DDIM())
    rewards, batch = [], min(batch, num)
    for i in range(num // batch):
        key, noise = jax.random.split(jax.random.fold_in(jax.random.key(99), i))
        x = jax.random.normal(noise, (batch, mixture.dim))
        rewards.append(np.asarray(run(base, jax.random.split(key, batch), x, steps)[0].look.value, np.float64))
    r = np.concatenate(rewards)
    w = np.exp(r - r.max())
    mean = (w * r).sum() / w.sum()
    error = np.sqrt(np.sum((w * (r - mean)) ** 2)) / w.sum()
    return r.max() + np.log(w.mean()), w.std() / w.mean() / len(w) ** 0.5, mean, error


def case(method, groups, particles, num_steps, ref, mixture, reward, exact):
    """The numbers of one line."""
    schedule = nk.schedules.VPCosine()
    steps = nk.grid(schedule, nk.grids.uniform(num_steps))
    model = nk.models.Exact(mixture, schedule)
    name, _, option = method.partition(" ")
    options = {"schedule": nk.potentials.Signal()} if option == "signal" else {}
    sampler = nk.methods.CATALOGUE[name].build(model, reward, (mixture.dim,), num_particles=particles, **options)
    x = jax.random.normal(jax.random.key(2), (groups, particles, mixture.dim))
    began = time.perf_counter()
    state, trace = jax.block_until_ready(run(sampler, jax.random.split(jax.random.key(1), groups), x, steps))
    seconds = time.perf_counter() - began
    nk.check(state)
    log_z = np.asarray(jax.vmap(nk.samplers.log_z)(state), np.float64)
    z = np.exp(log_z - log_z.max())
    mean_z, error_z = log_z.max() + np.log(z.mean()), z.std(ddof=1) / z.mean() / groups**0.5
    weights = np.asarray(jax.nn.softmax(state.log_weights, -1), np.float64)
    rewards = (weights * np.asarray(state.look.value, np.float64)).sum(1)
    log_z_ref, log_z_ref_error, mean_ref, mean_ref_error = ref
    error = np.hypot(error_z, log_z_ref_error)
    return {
        "populations": groups, "particles": particles,
        "steps": num_steps, "log_z": mean_z, "log_z_error": error_z, "log_z_exact": exact[0],
        "log_z_of_the_chain": log_z_ref, "log_z_of_the_chain_error": log_z_ref_error,
        "standard_errors_off": (mean_z - log_z_ref) / error, "mean_reward": rewards.mean(),
        "mean_reward_error": rewards.std(ddof=1) / groups**0.5, "mean_reward_exact": exact[1],
        "mean_reward_of_the_chain": mean_ref, "mean_reward_of_the_chain_error": mean_ref_error,
        "ess_smallest": float(trace.ess.min(-1).mean()), "ess_last": float(trace.ess[:, -1].mean()), "seconds": seconds,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=256)
    parser.add_argument("--particles", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--reference", type=int, default=1_000_000)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--methods", default=",".join(METHODS))
    args = parser.parse_args()
    machine()
    schedule = nk.schedules.VPCosine()
    steps = nk.grid(schedule, nk.grids.uniform(args.steps))
    for name in args.problems.split(","):
        mixture, reward = PROBLEMS[name]()
        tilted = nk.targets.tilt(mixture, reward)
        exact = (float(tilted.log_normalizer), float(nk.targets.expected_reward(tilted.mixture, reward)))
        ref = reference(mixture, reward, schedule, steps, args.reference)
        for method in args.methods.split(","):
            line = case(method, args.groups, args.particles, args.steps, ref, mixture, reward, exact)
            report("smc", f"{name} {method}", **line)


if __name__ == "__main__":
    main()
