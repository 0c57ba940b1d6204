"""Calibrated NTRK against the exact tilted law: distance by dimension and number of steps.

    python benchmarks/bench_calibrated.py [--num 4096] [--quick]

Sliced W2 between samples and exact draws from the tilt, beside the distance between two sets of exact draws (the
floor).
Laws: skewed mixtures with full covariances and a linear reward in d = 2, 16, 128, and a 32x32 power-law Gaussian
field.
Methods: NTRK with a constant rho, whose law moves with the number of steps; calibrated NTRK with the plug-in value; and
with the exact value, which converges at first order in the step.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from timing import machine, report

import ntrk_jax as nk

SCHEDULE = nk.schedules.VPCosine()


def field_problem():
    """A 32x32 power-law field and a smooth linear reward, of two to three standard deviations under the tilt."""
    field = nk.targets.PowerLawField((32, 32), exponent=2.0)
    ramp = jnp.linspace(-1.0, 1.0, 32)
    bump = jnp.exp(-4.0 * (ramp[:, None] ** 2 + (ramp[None, :] - 0.3) ** 2))
    reward = nk.rewards.Linear(bump)
    scale = jnp.sqrt(2.0 * nk.targets.tilt(field, reward).log_normalizer)  # log Z = variance / 2 for a centred law
    return field, nk.rewards.Linear(2.5 * bump / scale)


def problems():
    """The laws by name."""
    for dim in (2, 16, 128):
        problem = nk.targets.skewed(dim)
        yield f"mixture d={dim}", problem.mixture, problem.reward, (dim,)
    field, reward = field_problem()
    yield "field 32x32", field, reward, (32, 32)


def samplers(law, reward, shape):
    """The methods by name."""
    model = nk.models.Exact(law, SCHEDULE)
    exact = nk.values.Exact(law, SCHEDULE, reward, 1.0)
    typical = nk.whitening.TypicalSet(shape)
    return {
        "ntrk rho=0.1": nk.methods.ntrk(model, reward, shape, strength=0.1, whiten=typical),
        "calibrated, plug-in value": nk.methods.calibrated(model, reward, shape, whiten=typical),
        "calibrated, exact value": nk.methods.calibrated(model, reward, shape, whiten=typical, value=exact),
    }


def draw(sampler, key, shape, num_steps, num):
    """Samples [num, prod(shape)] and their rewards, in chunks."""
    steps = nk.grid(SCHEDULE, nk.grids.uniform(num_steps))
    chunk = min(num, 256)

    @jax.jit
    def batch(sampler, keys):
        pairs = jax.vmap(jax.random.split)(keys)
        x = jax.vmap(lambda k: jax.random.normal(k, shape))(pairs[:, 0])
        state, _ = jax.vmap(lambda k, x: nk.run(sampler, k, x, steps, record=lambda *_: ()))(pairs[:, 1], x)
        return state.look.x.reshape(x.shape[0], -1), state.look.value

    keys = jax.random.split(key, num).reshape(-1, chunk)
    xs, rewards = zip(*(batch(sampler, k) for k in keys), strict=True)
    return jnp.concatenate(xs), jnp.concatenate(rewards)


def main():
    """Print one JSON line for each law, method and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=4096)
    parser.add_argument("--quick", action="store_true", help="512 samples at 25 and 100 steps")
    parser.add_argument("--only", default="", help="run only the laws whose name contains this")
    parser.add_argument("--method", default="", help="run only the methods whose name contains this")
    options = parser.parse_args()
    num, all_steps = (512, (25, 100)) if options.quick else (options.num, (25, 100, 400))
    machine()
    for name, law, reward, shape in problems():
        if options.only not in name:
            continue
        tilted = nk.targets.tilt(law, reward).mixture
        keys = jax.random.split(jax.random.key(0), 4)
        exact = [tilted.sample(k, num).reshape(num, -1) for k in keys[:2]]
        floor = float(nk.metrics.sliced_wasserstein(keys[2], *exact))
        chosen = {k: v for k, v in samplers(law, reward, shape).items() if options.method in k}
        for method, sampler in chosen.items():
            for num_steps in all_steps:
                start = time.perf_counter()
                x, rewards = draw(sampler, keys[3], shape, num_steps, num)
                distance = float(nk.metrics.sliced_wasserstein(keys[2], x, exact[0]))
                report(
                    "calibrated",
                    f"{name}, {method}, {num_steps} steps",
                    sw2=distance,
                    floor=floor,
                    ratio=distance / floor,
                    mean_reward=float(np.mean(rewards)),
                    exact_mean_reward=float(nk.targets.expected_reward(tilted, reward)),
                    seconds=time.perf_counter() - start,
                )


if __name__ == "__main__":
    main()
