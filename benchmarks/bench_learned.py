"""Learned guidance beside the exact value and the plug-in: gradient error, samples, twist; what its parts are worth.

    python benchmarks/bench_learned.py [--only bars|losses|experts|pruning] [--seeds 1] [--first 0]

- bars: skewed mixtures in d = 2 and 16. Gradient error: root mean square of sigma (grad V - exact) over tilted x_t,
  t uniform, relative to that of sigma grad V. sw2: sliced W2 to the exact tilted law of 4096 samples of the guided
  deterministic flow in 200 steps; floor: the mean and the largest of 8 distances between two exact sets of that size.
  ess: mean effective share of 32 particles of TDS in 50 steps.
- losses: the same on d = 2 for each kind of loss, with and without the gradient's term.
- experts: three noise-range experts of a third of the steps' draws each beside one network.
- pruning: best of 8 pruned to one, by the clean reward of the Tweedie mean, by the noise-aware one, and by the exact
  E[r | x_t]; the mean reward of what is left, at equal cost.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from timing import machine, report

import ntrk_jax as nk
from ntrk_jax import training as nt
from ntrk_jax.cli.problems import problem
from ntrk_jax.cli.train_guidance import evaluate, learn
from ntrk_jax.models.value_nets import ValueMLP

USUAL = {
    "loss": "bregman", "consistency": 1.0, "steps": 3000, "samples": 65_536, "rounds": 2, "group": 256, "width": 128,
    "num": 4096, "sampling_steps": 200,
}  # fmt: skip


def case(name, target, temperature, seed, **changes):
    options = USUAL | changes | {"temperature": temperature, "seed": seed}
    task = problem(target)
    tilted = task.tilted(temperature)
    began, cpu = time.perf_counter(), time.process_time()
    value = learn(task, options)
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    out = evaluate(task, tilted, value, options)
    floors = jax.jit(jax.vmap(lambda key: nk.metrics.two_sample_floor(key, tilted, options["num"])))
    floors = np.asarray(floors(jax.random.split(jax.random.key(99), 8)))
    rows = {f"{k}_{who}": v for k in ("gradient_error", "sw2", "tds_ess") for who, v in out[k].items()}
    extra = {"sw2_floor": float(floors.mean()), "sw2_floor_max": float(floors.max())}
    report("learned", name, seed=seed, temperature=temperature, **changes, **rows, **extra, **out["log_z"], **seconds)


def bars(seeds):
    for seed in seeds:
        case("bar d=2", "skew2", 1.0, seed)
        case("bar d=16", "skew16", 0.5, seed)


def losses(seeds):
    for seed in seeds:
        for loss, eta in (("bregman", 1.0), ("bregman", 0.0), ("regression", 1.0), ("regression", 0.0),
                          ("consistency", 1.0), ("log", 0.0)):  # fmt: skip
            case("loss d=2", "skew2", 1.0, seed, loss=loss, consistency=eta, rounds=1)


def experts(seeds):
    law, reward = nk.targets.skewed(2)
    schedule = nk.schedules.VPCosine()
    task, tilted = problem("skew2"), nk.targets.tilt(law, reward).mixture
    for seed in seeds:
        keys = jax.random.split(jax.random.key(seed), 2)
        draws = law.sample(keys[0], USUAL["samples"])
        one = nt.value_network(draws, schedule, width=64)
        for name, network in (("one network", one), ("three experts", nt.Experts(one, (0.35, 0.65)))):
            value = nt.fit_value(keys[1], network, schedule, draws, jax.vmap(reward)(draws), model=task.model)
            out = evaluate(task, tilted, value, USUAL | {"temperature": 1.0, "seed": seed})
            report("learned", f"{name}, width 64", seed=seed, gradient_error=out["gradient_error"]["learned"],
                   sw2=out["sw2"]["learned"], tds_ess=out["tds_ess"]["learned"])  # fmt: skip


class MeanReward:
    """The exact E[r | x_t] of a mixture."""

    needs_x0, num_rewards = True, 0

    def __init__(self, law, schedule, reward):
        """Of a mixture on a schedule."""
        self.law, self.schedule, self.reward = law, schedule, reward

    def __call__(self, key, x, t, x0, reward):
        return self.law.posterior(x, *self.schedule(t)).expected_reward(self.reward)


def between():
    """Three modes; what is undecided between the two that cost looks as good to the reward as the one that pays."""
    means = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    law = nk.targets.GaussianMixture(np.array([0.4, 0.4, 0.2]), means, np.tile(0.2 * np.eye(2), (3, 1, 1)))
    return law, nk.rewards.Quadratic(np.diag([2.0, 0.0]), np.zeros(2))


def pruning(seeds, num=2048):
    schedule = nk.schedules.VPCosine()
    steps = nk.grid(schedule, nk.grids.uniform(20))
    for name, (law, reward) in (("three modes", between()), ("das8", nk.targets.das8())):
        model = nk.models.Exact(law, schedule)
        for seed in seeds:
            keys = jax.random.split(jax.random.key(seed), 4)
            cpu = time.process_time()
            paths = nt.reward_paths(keys[0], nk.methods.base(model, reward), steps, (2,), 8192)
            network = ValueMLP((2,), schedule, 3.0, width=64, depth=1)
            taught = nt.distil(keys[1], network, reward, paths, num_steps=1000, highs=(0.5, 1.0))
            cpu = time.process_time() - cpu
            x, draws = jax.random.normal(keys[2], (num, 8, 2)), jax.random.split(keys[3], num)
            values = {"clean": None, "noise_aware": taught, "exact_mean": MeanReward(law, schedule, reward)}
            out = {}
            for who, value in values.items():
                sampler = nk.methods.ttsnap(model, reward, (2,), num_particles=8, value=value, chunk=1)
                state, _ = jax.jit(jax.vmap(nk.run, (None, 0, 0, None)))(sampler, draws, x, steps)
                best = jnp.max(jnp.where(state.log_weights == 0, state.look.value, -jnp.inf), -1)
                out |= {f"reward_{who}": float(best.mean()), f"error_{who}": float(best.std() / num**0.5),
                        f"model_calls_{who}": float(jnp.mean(state.evals.model))}  # fmt: skip
            report("pruning", name, seed=seed, cpu_seconds=cpu, **out)


def main():
    studies = {"bars": bars, "losses": losses, "experts": experts, "pruning": pruning}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(studies))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    machine()
    for name in [options.only] if options.only else studies:
        studies[name](range(options.first, options.first + options.seeds))


if __name__ == "__main__":
    main()
