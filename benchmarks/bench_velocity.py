"""Velocity guidance without a further network call, on the published planar targets: distance to the exact tilted law.

    python benchmarks/bench_velocity.py

Flow ODE on the straight path with the exact denoiser, 50 Euler rows, so that what is left is the rule's error and the
discretisation's; `exact` shows the second alone. Sliced W2 to exact draws, beside that of two exact sets as large.
The calls are those counted in the model by host callbacks, for each sample.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from timing import machine, report

import ntrk_jax as nk

SCHEDULE = nk.schedules.RectifiedFlow()


def problems():
    """The five pulled mixtures and the double well, with the curvature that the damping takes for each."""
    out = {setting: (nk.targets.pulled(setting), 6.0) for setting in nk.targets.PULLED}
    return out | {"double well": (nk.targets.double_well(), 6.0)}


def spreads(mixture):
    """Of one component and of the whole law, as standard deviations an axis."""
    of = lambda cov: float(np.sqrt(np.trace(np.asarray(cov)) / 2))  # noqa: E731
    return of(np.asarray(mixture.covs)[0]), of(mixture.cov())


def methods(problem, curvature, stored):
    """Name -> (model, reward) -> sampler."""
    narrow, wide = spreads(problem.mixture)
    draws = problem.mixture.sample(jax.random.key(11), stored)
    rewards = jax.vmap(problem.reward)(draws)
    ode = nk.kernels.FlowODE()
    exact = nk.values.Exact(problem.mixture, SCHEDULE, problem.reward)
    m = nk.methods
    return {
        "base": lambda model, r: m.flow_ode(model),
        "exact": lambda model, r: m.tds_shift(model, r, noiseless=True, kernel=ode, value=exact),
        "DPS plug-in": lambda model, r: m.tds_shift(model, r, noiseless=True, kernel=ode),
        "monte carlo": lambda model, r: m.flow_monte_carlo(model, r, samples=draws, rewards=rewards),
        "first order, component s": lambda model, r: m.flow_first_order(model, r, spread=narrow),
        "first order, total s": lambda model, r: m.flow_first_order(model, r, spread=wide),
        "damped, component s": lambda model, r: m.flow_damped(model, r, spread=narrow, curvature=curvature),
        "damped, total s": lambda model, r: m.flow_damped(model, r, spread=wide, curvature=curvature),
    }


def audited(build, problem, grid):
    """Model calls and model VJPs of one sample, counted as they are made."""
    counter = nk.models.Counter()
    sampler = build(nk.models.Counted(nk.models.Exact(problem.mixture, SCHEDULE), counter), problem.reward)
    state, _ = jax.jit(nk.run)(sampler, jax.random.key(0), jnp.ones(2), grid)
    jax.block_until_ready(state)
    jax.effects_barrier()
    return counter.forward, counter.vjp


def main():
    """Print one JSON line for each target and rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--stored", type=int, default=16384)
    args = parser.parse_args()
    machine()
    grid = nk.grid(SCHEDULE, nk.grids.uniform(args.steps))
    run = jax.jit(lambda sampler, noise: jax.lax.map(
        lambda x: nk.run(sampler, jax.random.key(0), x, grid)[0].look.x, noise, batch_size=256
    ))  # fmt: skip
    for target, (problem, curvature) in problems().items():
        tilted = nk.targets.tilt(*problem).mixture
        drawn, noise_key, at = jax.random.split(jax.random.key(1), 3)
        reference = tilted.sample(drawn, args.num)
        floor = float(nk.metrics.two_sample_floor(at, tilted, args.num))
        noise = jax.random.normal(noise_key, (args.num, 2))
        for name, build in methods(problem, curvature, args.stored).items():
            x = run(build(nk.models.Exact(problem.mixture, SCHEDULE), problem.reward), noise)
            calls, vjps = audited(build, problem, grid)
            lost = int(jnp.sum(~jnp.all(jnp.isfinite(x), axis=1)))
            distance = float(nk.metrics.sliced_wasserstein(at, x, reference)) if lost == 0 else float("nan")
            reward = float(jnp.mean(jax.vmap(problem.reward)(x)))
            report("velocity", f"{target}, {name}", sw2=distance, floor=floor, mean_reward=reward,
                   exact_reward=float(nk.targets.expected_reward(tilted, problem.reward)),
                   model_calls=calls, model_vjps=vjps, not_finite=lost)  # fmt: skip


if __name__ == "__main__":
    main()
