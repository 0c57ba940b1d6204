"""Reward per NFE on the digits: target and held-out reward, and distance to real digits, at growing budgets.

    python benchmarks/bench_reward.py [--num 200]

Base, best-of-N (25 steps, N = NFE / 25), DPS (squared convention) and NTRK, each at a few strengths. One budget is the
number of model evaluations a sample; gradients are counted beside it.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from timing import machine, report

import ntrk_jax as nk
from ntrk_jax.training import load_digits_model


def cases():
    """(name, num_steps, build(model, reward))."""
    shape = (8, 8, 1)
    for num_steps in (25, 5, 10, 50, 100):  # 25 first: distances are compared with its base
        yield "base", num_steps, lambda m, r: nk.methods.base(m, r)
        for rho in (0.02, 0.05, 0.1):
            yield f"ntrk rho={rho}", num_steps, lambda m, r, rho=rho: nk.methods.ntrk(m, r, shape, strength=rho)
        yield "calibrated, temperature 1", num_steps, lambda m, r: nk.methods.calibrated(m, r, shape)
        for zeta in (0.1, 0.15, 0.3):
            yield f"dps squared {zeta}", num_steps, lambda m, r, z=zeta: nk.methods.dps_squared(m, r, shape, strength=z)
    for num in (2, 4, 10, 20):
        yield f"best of {num}", 25, lambda m, r, n=num: nk.methods.best_of_n(m, r, shape, num_particles=n)


def draw(digits, build, num_steps, key, label):
    """One sample asked for one digit: (x, target, held-out, evals)."""
    steps = nk.grid(digits.schedule, nk.grids.uniform(num_steps))
    sampler = build(digits.denoiser, digits.reward(label))
    key_x, key_run, key_pick = jax.random.split(key, 3)
    population = (sampler.num_particles,) if isinstance(sampler, nk.BestOfN) else ()
    state, _ = nk.run(sampler, key_run, jax.random.normal(key_x, (*population, 8, 8, 1)), steps, lambda *_: ())
    state = nk.draw(key_pick, state) if population else state
    return state.look.x, state.look.value, digits.judge(label)(state.look.x), state.evals


def main():
    """Print one JSON line for each method and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=200)
    options = parser.parse_args()
    machine()
    digits = load_digits_model()
    labels = jnp.arange(options.num) % 10
    keys = jax.random.split(jax.random.key(0), options.num)
    base_distance = None
    for name, num_steps, build in cases():
        x, target, held_out, evals = jax.jit(
            lambda d, k, y, b=build, n=num_steps: jax.vmap(lambda k, y: draw(d, b, n, k, y))(k, y)
        )(digits, keys, labels)
        flat = x.reshape(options.num, -1)
        distance = float(jnp.mean(nk.metrics.nearest_distance(flat, digits.data.reshape(-1, 64))))
        base_distance = distance if (name, num_steps) == ("base", 25) else base_distance
        report(
            "reward",
            name,
            nfe=int(np.mean(evals.model)),
            gradients=int(np.mean(evals.model_vjp)),
            target=float(jnp.mean(target)),
            held_out=float(jnp.mean(held_out)),
            distance=distance,
            ratio_to_base_at_25=distance / base_distance if base_distance else None,
        )


if __name__ == "__main__":
    main()
