"""The share of the whitening in one NTRK step of a diffusion transformer with random weights.

    python benchmarks/bench_share.py

One step is a look with its gradient and a move. A linear reward stands for a scorer that costs nothing, so the share
printed is the largest it can be.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from timing import best, machine, report

import ntrk_jax as nk
from ntrk_jax.models.nets import DiT


def main():
    """Print one JSON line for each size."""
    machine()
    schedule = nk.schedules.RectifiedFlow()
    step = jax.tree.map(lambda a: a[5], nk.grid(schedule, nk.grids.uniform(25)))
    for shape, width, depth in (((32, 32, 4), 256, 6), ((64, 64, 4), 256, 6), ((64, 64, 4), 384, 12)):
        net = DiT(shape, width=width, depth=depth, rngs=nnx.Rngs(0))
        size = sum(p.size for p in jax.tree.leaves(nnx.state(net, nnx.Param)))
        model = nk.models.NnxDenoiser(net, "velocity", schedule)
        reward = nk.rewards.Linear(jnp.linspace(-1.0, 1.0, shape[0] * shape[1] * shape[2]).reshape(shape))
        whiten = nk.whitening.TypicalSet(shape)
        sampler = nk.methods.ntrk(model, reward, shape, strength=0.05, whiten=whiten)
        key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), shape)
        state = jax.jit(sampler.init)(key, x, step)
        one = functools.partial(jax.jit(sampler.step), key, state, step)
        alone = functools.partial(jax.jit(lambda w, g, k: w(g, k)), whiten, state.look.grad, key)
        whole, white = best([one, alone], repeats=5)
        report(
            "share",
            f"DiT {size / 1e6:.1f} M parameters, latent {shape}, one sample",
            step_ms=1e3 * whole,
            whitening_ms=1e3 * white,
            share=white / whole,
            sweeps=int(whiten.detailed(state.look.grad, key).sweeps),
        )


if __name__ == "__main__":
    main()
