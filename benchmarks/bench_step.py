"""Step time against a hand-written scan, compile time and memory against the number of steps, recompilation.

    python benchmarks/bench_step.py
    taskset -c 0 python benchmarks/bench_step.py     (one core: XLA then runs one piece of a program after the other)

The hand-written scans below do the arithmetic of the sampler and nothing else: no counts, no flags. Asked for the
sample alone, as they are, the compiled sampler leaves out what nobody reads; asked for its whole state it carries
counts, flags and the importance weight of the path. NTRK is compared with a scan without that weight ("ntrk"), with
one that moves first and carries its look, as a step of the library does by itself ("carried ntrk"), and with one that
computes the weight ("weighted ntrk").
"""

import functools

import jax
import jax.numpy as jnp
from timing import best, compile_seconds, machine, report

import ntrk_jax as nk

SCHEDULE = nk.schedules.VPCosine()


def problems():
    """A 2-D mixture in a large batch and a 64-dimensional one in a small batch: dispatch-bound and compute-bound."""
    for dim, batch in ((2, 4096), (64, 256)):
        problem = nk.targets.skewed(dim)
        yield f"mixture d={dim} batch={batch}", nk.models.Exact(problem.mixture, SCHEDULE), problem.reward, dim, batch


def hand_plain(model, key, x, steps):
    """DDIM(1) by hand."""

    def body(x, row):
        i, s = row
        x0 = model(x, s.t)
        eps = (x - s.alpha_t * x0) / s.sigma_t
        c = s.alpha_t * s.sigma_s / (s.alpha_s * s.sigma_t)
        std = s.sigma_s * jnp.sqrt((1 - c) * (1 + c))
        z = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        return s.alpha_s * x0 + jnp.sqrt(s.sigma_s**2 - std**2) * eps + std * z, None

    return jax.lax.scan(body, x, (jnp.arange(steps.num_steps), steps))[0]


def looked(model, reward, x, t):
    """(x0, gradient of the reward at x0 by x)."""

    def value(x):
        x0 = model(x, t)
        return reward(x0), x0

    (_, x0), g = jax.value_and_grad(value, has_aux=True)(x)
    return x0, g


def tilted(x, x0, g, rho, key, s):
    """(x_s, its noise, the fresh noise, std) of one NTRK step with a unit-norm whitening."""
    eps = (x - s.alpha_t * x0) / s.sigma_t
    c = s.alpha_t * s.sigma_s / (s.alpha_s * s.sigma_t)
    std = s.sigma_s * jnp.sqrt((1 - c) * (1 + c))
    z = jax.random.normal(key, x.shape)
    noise = jnp.sqrt(rho) * nk.whitening.UnitNorm()(g) + jnp.sqrt(1 - rho) * z
    return s.alpha_s * x0 + jnp.sqrt(s.sigma_s**2 - std**2) * eps + std * noise, noise, z, std


def hand_ntrk(model, reward, rho, key, x, steps):
    """NTRK by hand: look, then move."""

    def body(x, row):
        i, s = row
        x0, g = looked(model, reward, x, s.t)
        return tilted(x, x0, g, rho, jax.random.fold_in(key, i), s)[0], None

    return jax.lax.scan(body, x, (jnp.arange(steps.num_steps), steps))[0]


def hand_carried(model, reward, rho, key, x, steps):
    """The same in the order of a step: move, then look at where it led, so that a row ends with what is known of x."""

    def body(carry, row):
        i, s = row
        x = tilted(*carry, rho, jax.random.fold_in(key, i), s)[0]
        return (x, *looked(model, reward, x, s.s)), None

    first = (x, *looked(model, reward, x, steps.t[0]))
    return jax.lax.scan(body, first, (jnp.arange(steps.num_steps), steps))[0][0]


def hand_weighted(model, reward, rho, key, x, steps):
    """NTRK by hand with the importance weight of its path, which every sampler of the library carries."""

    def body(carry, row):
        x, weight = carry
        i, s = row
        x0, g = looked(model, reward, x, s.t)
        x, noise, z, std = tilted(x, x0, g, rho, jax.random.fold_in(key, i), s)
        ratio = 0.5 * jnp.sum(z**2 - noise**2) + 0.5 * x.size * jnp.log1p(-rho)
        return (x, weight + jnp.where(std > 0, ratio, 0.0)), None

    return jax.lax.scan(body, (x, jnp.zeros(())), (jnp.arange(steps.num_steps), steps))[0]


def step_time(num_steps=200):
    """The sampler's time over the hand-written scan's: the sample alone, its whole state, and a trace besides."""
    steps = nk.grid(SCHEDULE, nk.grids.uniform(num_steps, start=0.99))
    for name, model, reward, dim, batch in problems():
        x = jax.random.normal(jax.random.key(0), (batch, dim))
        keys = jax.random.split(jax.random.key(1), batch)
        plain = nk.Single(nk.Look(model), nk.kernels.DDIM())
        rule = nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.05)
        ntrk = nk.Single(nk.Look(model, reward, grad=True), nk.kernels.DDIM(), rule)
        alone = jax.jit(jax.vmap(lambda s, k, x, g: nk.run(s, k, x, g)[0].look.x, (None, 0, 0, None)))
        ours = jax.jit(jax.vmap(lambda s, k, x, g: nk.run(s, k, x, g, lambda *_: ()), (None, 0, 0, None)))
        traced = jax.jit(jax.vmap(nk.run, (None, 0, 0, None)))
        by_hand = {
            "plain": jax.jit(jax.vmap(hand_plain, (None, 0, 0, None))),
            "ntrk": jax.jit(jax.vmap(hand_ntrk, (None, None, None, 0, 0, None))),
            "carried": jax.jit(jax.vmap(hand_carried, (None, None, None, 0, 0, None))),
            "weighted": jax.jit(jax.vmap(hand_weighted, (None, None, None, 0, 0, None))),
        }
        for kind in ("plain", "ntrk unit norm", "carried ntrk unit norm", "weighted ntrk unit norm"):
            sampler = plain if kind == "plain" else ntrk
            args = (model,) if kind == "plain" else (model, reward, jnp.float32(0.05))
            hand = functools.partial(by_hand[kind.split()[0]], *args, keys, x, steps)
            library = [functools.partial(f, sampler, keys, x, steps) for f in (alone, ours, traced)]
            hand, sample, whole, recorded = best([hand, *library])
            report(
                "step",
                f"{kind}, {name}",
                hand_us=1e6 * hand / num_steps,
                ours_us=1e6 * sample / num_steps,
                ratio=sample / hand,
                ratio_of_the_whole_state=whole / hand,
                ratio_with_a_trace_of_every_step=recorded / hand,
            )


def flat_in_steps():
    """Compile time and peak temporary memory at 25 and at 1000 steps."""
    problem = nk.targets.skewed(16)
    model = nk.models.Exact(problem.mixture, SCHEDULE)
    sampler = nk.methods.ntrk(model, problem.reward, (16,), strength=0.05)
    x, keys = jnp.ones((64, 16)), jax.random.split(jax.random.key(0), 64)
    for num_steps in (25, 100, 1000):
        steps = nk.grid(SCHEDULE, nk.grids.uniform(num_steps, start=0.99))
        final = jax.vmap(lambda s, k, x, g: nk.run(s, k, x, g, record=lambda *_: ())[0].look.x, (None, 0, 0, None))
        seconds, compiled = compile_seconds(final, sampler, keys, x, steps)
        memory = compiled.memory_analysis()
        report("flat", f"ntrk d=16, {num_steps} steps", compile_s=seconds, temp_bytes=int(memory.temp_size_in_bytes))


def recompilation():
    """How many programs are compiled over changed strengths, temperatures and seeds: 1 each is right."""
    problem = nk.targets.skewed(16)
    model = nk.models.Exact(problem.mixture, SCHEDULE)
    steps = nk.grid(SCHEDULE, nk.grids.uniform(25, start=0.99))
    cases = {
        "ntrk strength": [nk.methods.ntrk(model, problem.reward, (16,), strength=s) for s in (0.01, 0.1, 0.3)],
        "calibrated temperature": [
            nk.methods.calibrated(model, problem.reward, (16,), temperature=t) for t in (0.5, 1.0, 2.0)
        ],
        "dps strength": [nk.methods.dps(model, problem.reward, (16,), strength=s) for s in (0.5, 1.0, 2.0)],
    }
    for name, samplers in cases.items():
        run = jax.jit(lambda s, k, x, g: nk.run(s, k, x, g)[0].look.x)
        for seed, sampler in enumerate(samplers):
            run(sampler, jax.random.key(seed), jnp.ones(16), steps).block_until_ready()
        report("recompile", name, programs=run._cache_size(), settings=len(samplers))


if __name__ == "__main__":
    machine()
    step_time()
    flat_in_steps()
    recompilation()
