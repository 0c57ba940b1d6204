"""The worker of `bench_peers.py` for ntrk_jax."""

import jax
import jax.numpy as jnp
from peers_common import Case, jax_parts, serve

import ntrk_jax as nk

NOTHING, DENOISER, EXACT = "denoiser", "denoiser, likelihood", "denoiser, likelihood, exact value"


def cases(problem):
    """The methods by name; all of them ask the denoiser that every other package gets too."""
    denoise, _, _ = jax_parts(problem)
    schedule = nk.schedules.VPLinear(problem.beta_min, problem.beta_max)
    steps = nk.grid(schedule, nk.grids.uniform(problem.num_steps))
    mixture = nk.targets.GaussianMixture(problem.weights, problem.means, problem.covs)
    reward = nk.rewards.LinearGaussian(problem.operator, problem.observation, problem.noise_std)
    exact = nk.values.Exact(mixture, schedule, reward, 1.0)
    num, shape = problem.num, (problem.means.shape[1],)

    def model(x, t, cond=None):
        return denoise(x, *schedule(t))

    @jax.jit
    def paths(sampler, seed):
        keys = jax.random.split(jax.random.key(seed), num + 1)
        x = jax.random.normal(keys[num], (num, *shape))
        state, _ = jax.vmap(lambda k, x: nk.run(sampler, k, x, steps, record=lambda *_: ()))(keys[:num], x)
        return state.look.x

    @jax.jit
    def population(sampler, seed):
        key, noise = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(noise, (num, *shape))
        state, _ = nk.run(sampler, key, x, steps, record=lambda *_: ())
        return state.look.x, state.log_weights

    def case(run, sampler, kind, knows):
        return Case(lambda seed, _: run(sampler, jnp.uint32(seed)), kind, knows, problem.num_steps)

    def tuned(run, make, strengths):
        return Case(
            lambda seed, strength: run(make(strength), jnp.uint32(seed)), "guidance", DENOISER, problem.num_steps,
            strengths,
        )  # fmt: skip

    m, r, s = nk.methods, reward, shape
    matched = nk.guidance.MomentMatched(schedule, 1.0, "none")
    full = nk.guidance.MomentMatched(schedule, 1.0, "full", size=shape[0])
    alone = {
        "ddim": (m.ddim(model), "prior, deterministic", NOTHING),
        "base": (m.base(model), "prior, stochastic", NOTHING),
        "tds_shift": (m.tds_shift(model, r, s, noiseless=True), "guidance", DENOISER),
        "calibrated": (m.calibrated(model, r, s), "guidance", DENOISER),
        "pigdm": (m.pigdm(model, r, s, schedule=schedule), "guidance", DENOISER),
        "tmpd full": (m.tmpd(model, r, s, jacobian="full", schedule=schedule), "guidance", DENOISER),
        "dps, exact value": (m.dps(model, r, s, value=exact), "guidance", EXACT),
        "tds_shift, exact value": (m.tds_shift(model, r, s, noiseless=True, value=exact), "guidance", EXACT),
        "calibrated, exact value": (m.calibrated(model, r, s, value=exact), "guidance", EXACT),
    }
    together = {
        "fk": m.fk(model, r, s, num_particles=num),
        "tds": m.tds(model, r, s, num_particles=num),
        "das": m.das(model, r, s, num_particles=num),
        "fk, pigdm's value": m.fk(model, r, s, num_particles=num, value=matched),
        "tds, pigdm's value": m.tds(model, r, s, num_particles=num, value=matched),
        "ntrk_smc, pigdm's value": m.ntrk_smc(model, r, s, num_particles=num, value=matched),
        "tds, tmpd's value": m.tds(model, r, s, num_particles=num, value=full),
        "das, tmpd's value": m.das(model, r, s, num_particles=num, value=full),
    }
    return {
        **{name: case(paths, *parts) for name, parts in alone.items()},
        "dps": tuned(paths, lambda c: m.dps(model, r, s, strength=c), m.CATALOGUE["dps"].tries),
        "dps_norm": tuned(paths, lambda c: m.dps_norm(model, r, s, strength=c), m.CATALOGUE["dps_norm"].tries),
        **{name: case(population, sampler, "population", DENOISER) for name, sampler in together.items()},
    }


if __name__ == "__main__":
    serve(("jax", "ntrk_jax"), cases)
