"""Whether a sample depends on its batch-mates or on the size of its batch.

    python benchmarks/bench_independence.py

For every method of the catalogue: sample 0 drawn with other batch-mates (same size), and in batches of 1, 2, 7 and 64.
Prints whether the bits agree, and the largest difference where XLA compiles another program for another size; for a
method that does not take this reward, what it says.
"""

import jax
import jax.numpy as jnp
import numpy as np
from timing import machine, report

import ntrk_jax as nk

SCHEDULE = nk.schedules.VPCosine()
SHAPE = (16,)


def draw(run, sampler, size, num, steps, seed):
    """The first sample of a batch whose other members come from another seed."""
    first, others = jax.random.key(0), jax.random.key(seed)
    keys = [first, *jax.random.split(others, size - 1)] if size > 1 else [first]
    pairs = [jax.random.split(k) for k in keys]
    shape = SHAPE if num is None else (num, *SHAPE)
    x = jnp.stack([jax.random.normal(p[0], shape) for p in pairs])
    state, _ = run(sampler, jnp.stack([p[1] for p in pairs]), x, steps)
    return np.asarray(state.look.x[0])


def options(name, entry, problem, steps):
    """What the constructor of a method needs besides model, reward and shape."""
    if name == "flow_monte_carlo":
        samples = problem.mixture.sample(jax.random.key(9), 256)
        return {"samples": samples, "rewards": jax.vmap(problem.reward)(samples)}
    if entry.tree:
        return {"grid": steps}
    return {"num_particles": 4} if entry.population else {}


def main():
    """Print one JSON line for each method."""
    machine()
    problem = nk.targets.skewed(SHAPE[0])
    model = nk.models.Exact(problem.mixture, SCHEDULE)
    steps = nk.grid(SCHEDULE, nk.grids.uniform(20))
    run = jax.jit(jax.vmap(nk.run, in_axes=(None, 0, 0, None)))
    for name, entry in nk.methods.CATALOGUE.items():
        rows = nk.samplers.rollouts(4) if entry.tree else steps
        try:
            sampler = entry.build(model, problem.reward, SHAPE, **options(name, entry, problem, steps))
            reference, mates = (draw(run, sampler, 7, 4 if entry.population else None, rows, seed) for seed in (1, 2))
        except (TypeError, ValueError) as refused:
            report("independence", name, refused=str(refused))
            continue
        sizes = [draw(run, sampler, n, 4 if entry.population else None, rows, 3) for n in (1, 2, 64)]
        report(
            "independence",
            name,
            other_mates_bitwise=bool(np.array_equal(reference, mates)),
            other_sizes_bitwise=all(np.array_equal(reference, x) for x in sizes),
            largest_difference=float(max(np.max(np.abs(reference - x)) for x in sizes)),
        )


if __name__ == "__main__":
    main()
