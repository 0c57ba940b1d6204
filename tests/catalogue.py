"""What the contract tests run: every catalogue entry on a small exact problem, as a vector and as an image."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntrk_jax as nk

SHAPES = {"vector": (6,), "image": (4, 4, 2)}
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
NUM_STEPS = 4
NUM_PARTICLES = 4
BATCH = 3


@nk.pytree
class Poisoned:
    """A reward that is NaN for the samples whose `poison` is 1."""

    reward: Any
    poison: Any = 0.0

    def __call__(self, x0):
        return jnp.where(self.poison > 0, jnp.nan, self.reward(x0))

    def quadratic(self):
        return getattr(self.reward, "fn", self.reward).quadratic()


@nk.pytree
class Shrink:
    """A denoiser, of data spread by `spread` around 0.2."""

    spread: float = 0.5

    @property
    def schedule(self):
        return schedule()

    def __call__(self, x, t, cond=None):
        alpha, sigma = schedule()(t)
        gain = alpha * self.spread / (alpha * alpha * self.spread + sigma * sigma)
        return 0.2 + gain * (x - 0.2 * alpha)


@nk.pytree
class Near:
    """A negative reward that is not linear."""

    centre: float = 0.7

    def __call__(self, x0):
        return -jnp.sum(jnp.square(x0 - self.centre))

    def quadratic(self):
        """Up to a constant."""
        return 2.0, 2.0 * self.centre, 0.0


@functools.lru_cache
def problem(shape):
    """A skewed two-component law on `shape`, its exact denoiser and a negative quadratic reward."""
    size = int(np.prod(shape))
    rng = np.random.default_rng(0)
    root = 0.3 * rng.normal(size=(2, size, size)) / np.sqrt(size)
    covs = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(size)
    means = np.stack([np.full(size, -0.5), np.linspace(0.2, 1.0, size)])
    mixture = nk.targets.GaussianMixture(jnp.array([0.3, 0.7]), jnp.asarray(means), jnp.asarray(covs))
    reward = nk.rewards.Quadratic(jnp.eye(size), jnp.full(size, 0.4), c=-4.0)
    return mixture, reward


def schedule():
    return nk.schedules.VPCosine()


@functools.lru_cache
def steps():
    return nk.grid(schedule(), nk.grids.uniform(NUM_STEPS))


def strengths(entry):
    """Two strengths in the range of a method, neither of them off."""
    if entry.strength is None:
        return ({}, {})
    values = (2.0, 3.0) if entry.strength == "temperature" else (0.05, 0.1)
    return tuple({entry.strength: jnp.float32(v)} for v in values)


CALLS, REWARDS = nk.models.Counter(), nk.models.Counter()
"""Model and reward evaluations that samplers built with `counted` really made."""


def build(name, shape, *, poison=0.0, counted=False, **options):
    """The sampler of a method on a model and a reward that compile fast, on request counted on the host."""
    entry = nk.methods.CATALOGUE[name]
    model, reward = (
        (nk.models.Counted(Shrink(), CALLS), nk.models.Counted(Near(), REWARDS)) if counted else (Shrink(), Near())
    )
    if entry.population:
        options.setdefault("num_particles", NUM_PARTICLES)
    if entry.tree:
        options.setdefault("grid", steps())
    if name in ("ntrk_climb", "ntrk_mixed", "ntrk_smc", "ntrk_x0"):  # `ntrk` and `calibrated` run the paper's operator
        options.setdefault("whiten", nk.whitening.UnitNorm())
    if name == "flow_monte_carlo":
        samples = 0.2 + 0.7 * jax.random.normal(jax.random.key(4), (16, *shape))
        options |= {"samples": samples, "rewards": jax.vmap(Near())(samples)}
    return entry.build(model, Poisoned(reward, poison), shape, **options)


def particles(sampler):
    """How many paths a sampler of the catalogue draws: at once, or one after the other for a tree."""
    return NUM_STEPS if hasattr(sampler, "grid") else getattr(sampler, "num_particles", 1)


@functools.lru_cache
def rollouts():
    return nk.samplers.rollouts(NUM_STEPS)


def rows(sampler):
    """What the sampler is run over: rollouts for a tree, which holds its own grid, else a grid; as plain rows for
    samplers whose loop does not know its last row anyway, so that rows may be repeated (`test_resumed...`)."""
    if hasattr(sampler, "grid"):
        return rollouts()
    return steps() if isinstance(sampler, nk.Single) else nk.core.Step(*steps())


def noise(name, shape, dtype, seed=1):
    """Initial noises [BATCH, (particles), *shape]."""
    population = (NUM_PARTICLES,) if nk.methods.CATALOGUE[name].population else ()
    return jax.random.normal(jax.random.key(seed), (BATCH, *population, *shape)).astype(dtype)


@functools.lru_cache
def keys(seed=2):
    return jax.random.split(jax.random.key(seed), BATCH)


COMPILED = []
"""One entry for every program compiled so far."""
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **more: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)

LEAN = jax.config.read("jax_disable_most_optimizations")
EXACT = {"xla_backend_optimization_level": 1} if LEAN and "xla_cpu_max_isa" not in os.environ["XLA_FLAGS"] else {}
"""Compiler options for bitwise comparisons of two programs, which fused multiply-adds may round apart."""


@functools.lru_cache
def programs():
    """(begin, advance): the two halves of `nk.run`, each vmap over keys, samples and the poison of each, jitted.

    begin gives the states at the first row; advance continues states over a grid whose first row has the index `start`,
    and records (state, info) of each row. One program so serves whole and resumed runs.
    """

    def poisoned(sampler, poison):
        def swap(path, leaf):
            return poison if getattr(path[-1], "name", "") == "poison" else leaf

        return jax.tree_util.tree_map_with_path(swap, sampler)

    def begin(sampler, key, x, poison, first):
        return poisoned(sampler, poison).init(jax.random.fold_in(key, nk.core.Stream.INIT), x, first)

    def advance(sampler, key, state, poison, grid, start):
        sampler = poisoned(sampler, poison)
        return nk.resume(sampler, key, state, grid, lambda state, info: (state, info), start=start)

    begin = jax.vmap(begin, in_axes=(None, 0, 0, 0, None))
    advance = jax.vmap(advance, in_axes=(None, 0, 0, 0, None, None))
    return tuple(jax.jit(half, compiler_options=EXACT) for half in (begin, advance))


def begin(sampler, key, x, poison=None):
    """The states [BATCH, ...] at the first row; poison [BATCH] is 1 where the reward is to be NaN."""
    clean = np.zeros(BATCH, np.float32) if poison is None else poison
    return programs()[0](sampler, key, x, clean, jax.tree.map(lambda a: a[0], rows(sampler)))


def advance(sampler, key, state, grid, start=0, poison=None):
    """Continue states [BATCH, ...] over a grid: (states at its end, the record of each row)."""
    clean = np.zeros(BATCH, np.float32) if poison is None else poison
    return programs()[1](sampler, key, state, clean, grid, jnp.int32(start))


def go(sampler, key, x, poison=None):
    """Run a batch."""
    return advance(sampler, key, begin(sampler, key, x, poison), rows(sampler), poison=poison)
