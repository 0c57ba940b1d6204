"""One sample by its name: the key of a family and a number in it, and nothing else.

Sample i of a family uses fold_in(key, i) alone, split into its initial noise, its run and its draw from a population.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntrk_jax.run import run
from ntrk_jax.samplers.population import Population, log_z
from ntrk_jax.typing import Key

__all__ = ["Drawn", "draw_one"]


class Drawn(NamedTuple):
    """Samples and what they cost; the leading axis counts samples.

    x: [num, *shape]. reward, log_weights, status: [num]. evals: an `Evals` of [num].
    log_weights: of a path that of the final state, to which a tilt adds its reward over the temperature; of a
        population, whose member is drawn by weight already, and of a tree the estimate of log Z.
    """

    x: Any
    reward: Any
    log_weights: Any
    evals: Any
    status: Any


def draw_one(
    sampler: Any,
    key: Key,
    index: Any,
    steps: Any,
    shape: tuple[int, ...],
    record: Callable[..., Any] | None = None,
    dtype: Any = None,
) -> tuple[Drawn, Any]:
    """Sample number `index` of the family named by `key`: (sample, recorded trace).

    x is [num_particles, *shape] for a sampler with `num_particles`, unless it says `population = False`; a sampler that
    holds its `grid`, as trees do, starts from that grid's noise. Of a population one member is drawn by its weight,
    with its own trace (its path, where nothing was resampled).
    dtype: of the latents, float32 unless given; their noise is drawn in at least float32.

    Example:
        >>> import jax, ntrk_jax as nk
        >>> sampler = nk.Single(nk.Look(lambda x, t: 0.5 * x, lambda x0: x0.sum()), nk.kernels.DDIM())
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
        >>> drawn, _ = draw_one(sampler, jax.random.key(0), 7, steps, (2,))
        >>> drawn.x.shape, int(drawn.evals.model)
        ((2,), 4)
    """
    key_noise, key_run, key_draw = jax.random.split(jax.random.fold_in(key, index), 3)
    num = getattr(sampler, "num_particles", None) if getattr(sampler, "population", True) else None
    full = shape if num is None else (num, *shape)
    levels = getattr(sampler, "grid", steps)  # trees hold their grid, and are run over rollouts
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    z = jax.random.normal(key_noise, full, dtype if dtype == jnp.float64 else jnp.float32)
    x = (jnp.asarray(levels.sigma_t)[0].astype(z.dtype) * z).astype(dtype)
    state, trace = run(sampler, key_run, x, steps, record or (lambda state, info: None))
    if state.log_weights.ndim == 1:
        chosen = jax.random.categorical(key_draw, state.log_weights)
        look, trace = jax.tree.map(lambda a: a[chosen], state.look), jax.tree.map(lambda a: a[:, chosen], trace)
        weight = log_z(state) if isinstance(state, Population) else state.log_weights[chosen]
        state = state._replace(look=look, log_weights=weight)
    seen = state.look
    reward = jnp.full((), jnp.nan, jnp.float32) if seen.value is None else seen.value
    return Drawn(seen.x, reward, state.log_weights, state.evals, state.status), trace
