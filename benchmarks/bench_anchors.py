"""Fine-tuning anchors on one law with a known tilt: what each loss makes of the same small network.

    python benchmarks/bench_anchors.py

Two modes in the plane with the reward (0.5, 4).x, whose exact tilt has the weights 0.119 and 0.881. A small network is
trained on draws of the base, then fine-tuned by each loss, and drawn from by the flow ODE in 64 rows. Sliced W2 is to
the exact tilted law at temperature 1; seconds include compilation.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import machine, report

import ntrk_jax as nk
from ntrk_jax.models.precondition import moment_network
from ntrk_jax.training import AdjointMatching, AlignProp, DRaFT, ddpo, flow_grpo, gather
from ntrk_jax.training.tilt_rounds import denoise

PATH = nk.schedules.RectifiedFlow()
PROBLEM = nk.targets.two_modes((0.5, 4.0))
TILTED = nk.targets.tilt(*PROBLEM).mixture


def grid(num):
    """Rows of the straight path."""
    return nk.grid(PATH, nk.grids.uniform(num))


def draw(model, num=4096):
    """Draws of a model by its flow, [num, 2]."""
    run = lambda m, x: nk.run(nk.Single(nk.Look(m), nk.kernels.FlowODE()), jax.random.key(0), x, grid(64))[0].look.x  # noqa: E731
    return jax.jit(jax.vmap(run, (None, 0)))(model, jax.random.normal(jax.random.key(21), (num, 2)))


def judge(case, model, seconds=0.0, **more):
    """One JSON line on a model."""
    x = draw(model)
    at, drawn = jax.random.split(jax.random.key(1))
    weights = nk.metrics.mode_mass(x, TILTED)
    report(
        "anchors", case, mean_reward=float(jnp.mean(jax.vmap(PROBLEM.reward)(x))),
        exact_reward=float(nk.targets.expected_reward(TILTED, PROBLEM.reward)),
        sw2=float(nk.metrics.sliced_wasserstein(at, x, TILTED.sample(drawn, len(x)))),
        floor=float(nk.metrics.two_sample_floor(at, TILTED, len(x))), right=float(weights[1]),
        variance_y=float(jnp.var(x[:, 1])), seconds=seconds, **more,
    )  # fmt: skip


def descend(loss, optimizer, params, opt_state, key, batch):
    """One optax step on the mean of a loss over a batch."""
    keys = jax.random.split(key, jax.tree.leaves(batch)[0].shape[0])
    mean = lambda p: jnp.mean(jax.vmap(loss, (0, None, 0))(keys, p, batch))  # noqa: E731
    updates, opt_state = optimizer.update(jax.grad(mean)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def on_noise(loss, num_steps, batch, rate):
    """Steps on fresh noises: (loss, params) -> params."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps, 0.05))

    def step(loss, carry, key):
        one, other = jax.random.split(key)
        return descend(loss, optimizer, *carry, one, jax.random.normal(other, (batch, 2))), None

    @jax.jit
    def train(loss, params):
        keys = jax.random.split(jax.random.key(3), num_steps)
        return jax.lax.scan(lambda c, k: step(loss, c, k), (params, optimizer.init(params)), keys)[0][0]

    return jax.block_until_ready(train(loss, loss.model.variables))


def on_paths(loss, num_rounds, num_paths, inner, rate):
    """Rounds of gathering paths with the old weights and a few steps on them."""
    optimizer = optax.adam(rate)

    def one_round(loss, carry, key):
        first, second, third = jax.random.split(key, 3)
        noise = jax.random.normal(second, (num_paths, 2))
        data = gather(first, carry[0], loss.model, PROBLEM.reward, loss.kernel, loss.steps, noise)
        batches = jax.tree.map(lambda a: a.reshape(inner, -1, *a.shape[1:]), data)
        step = lambda c, kb: (descend(loss, optimizer, *c, *kb), None)  # noqa: E731
        return jax.lax.scan(step, carry, (jax.random.split(third, inner), batches))[0], None

    @jax.jit
    def train(loss, params):
        keys = jax.random.split(jax.random.key(4), num_rounds)
        return jax.lax.scan(lambda c, k: one_round(loss, c, k), (params, optimizer.init(params)), keys)[0][0]

    return jax.block_until_ready(train(loss, loss.model.variables))


def cases(base):
    """Name -> how it is trained."""
    r, short = PROBLEM.reward, grid(16)
    am, fine = (AdjointMatching(base, r, grid(num), 1.0, num_rows=12) for num in (32, 96))
    grpo = lambda kl: flow_grpo(base, short, clip=0.2, kl=kl)  # noqa: E731
    return {
        "adjoint matching, 300 steps": lambda: on_noise(am, 300, 128, 1e-3),
        "adjoint matching, 1200 steps": lambda: on_noise(am, 1200, 256, 1e-3),
        "adjoint matching, 96 rows, 600 steps": lambda: on_noise(fine, 600, 256, 1e-3),
        "DRaFT, 50 steps": lambda: on_noise(DRaFT(base, r, short), 50, 64, 3e-4),
        "DRaFT, 200 steps": lambda: on_noise(DRaFT(base, r, short), 200, 64, 3e-4),
        "DRaFT-1, 200 steps": lambda: on_noise(DRaFT(base, r, short, num_live=1), 200, 64, 3e-4),
        "DRaFT-LV, 200 steps": lambda: on_noise(DRaFT(base, r, short, num_live=1, num_copies=2), 200, 64, 3e-4),
        "AlignProp, 50 steps": lambda: on_noise(AlignProp(base, r, short), 50, 64, 3e-4),
        "DDPO, 20 rounds": lambda: on_paths(ddpo(base, short, clip=0.2), 20, 1024, 4, 3e-4),
        "DDPO, 80 rounds": lambda: on_paths(ddpo(base, short, clip=0.2), 80, 1024, 4, 3e-4),
        "Flow-GRPO, kl 0.04, 80 rounds": lambda: on_paths(grpo(0.04), 80, 1024, 4, 3e-4),
        "Flow-GRPO, kl 0.35, 80 rounds": lambda: on_paths(grpo(0.35), 80, 1024, 4, 3e-4),
    }


def main():
    """Print one JSON line a loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the names to run")
    args = parser.parse_args()
    machine()
    data = PROBLEM.mixture.sample(jax.random.key(0), 32768)
    started = time.perf_counter()
    network = moment_network(jax.random.key(1), data, PATH, width=32, hidden=64, depth=2)
    base = denoise(jax.random.key(2), network, data, 3000)
    judge(
        "base", base, time.perf_counter() - started, parameters=sum(np.size(a) for a in jax.tree.leaves(base.variables))
    )
    judge("exact model", nk.models.Exact(TILTED, PATH))
    for name, train in cases(base).items():
        if args.only in name:
            started = time.perf_counter()
            params = train()
            judge(name, nk.replace(base, variables=params), time.perf_counter() - started)


if __name__ == "__main__":
    main()
