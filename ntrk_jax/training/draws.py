r"""Samples of the current model for training: even starts, and a second-order deterministic flow.

Samples made from independent noises carry the noise's own fluctuations into the next model: the share of a mode among S
of them is off by sqrt(w (1 - w) / S), and over the rounds these errors walk. Starts that fill space evenly (a Sobol
sequence, shifted at random, through the normal quantile function) fluctuate far less, each start alone still being
N(0, I), and a deterministic flow keeps them even.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_scalar
from ntrk_jax.core import Denoiser, Step
from ntrk_jax.grids import grid, noisiest
from ntrk_jax.schedules import Schedule
from ntrk_jax.tree import Function
from ntrk_jax.typing import Array, Key, Sample

__all__ = ["asked", "draw", "even_angles", "even_normal", "flow"]

_MAX_DIM = 21_201
_BITS = 30


def even_normal(key: Key, num: int, shape: tuple[int, ...]) -> Array:
    """Standard normal draws that fill space evenly, [num, *shape] float32; made on the host.

    Each is N(0, I) alone; together they are a Sobol sequence under a random digital shift, so that means of smooth
    functions are off by far less than 1 / sqrt(num), best where num is a power of two. Beyond 21201 entries, for which
    the sequence is not tabulated, they are independent.

    Example:
        >>> import jax
        >>> z = even_normal(jax.random.key(0), 1024, (2,))
        >>> bool(abs(z.mean(0)).max() < 0.01), bool(abs(z.var(0) - 1).max() < 0.02)
        (True, True)
    """
    size = math.prod(shape)
    if size > _MAX_DIM:
        return jax.random.normal(key, (num, *shape), jnp.float32)
    from scipy.special import ndtri
    from scipy.stats import qmc

    points = qmc.Sobol(size, scramble=False, bits=_BITS).random_base2(max(0, math.ceil(math.log2(num))))[:num]
    digits = (points * 2.0**_BITS).astype(np.int64)
    shift = np.asarray(jax.random.bits(key, (size,), jnp.uint32)).astype(np.int64) >> (32 - _BITS)
    u = ((digits ^ shift[None]) + 0.5) / 2.0**_BITS
    return jnp.asarray(ndtri(u).reshape(num, *shape), jnp.float32)


def flow(model: Denoiser, x: Sample, steps: Step) -> Sample:
    """The sample that the model's probability flow makes of a noise x, [*shape].

    The second-order multistep solver in the log of the signal-to-noise ratio: with h = log(alpha_s / sigma_s) -
    log(alpha_t / sigma_t) and x0' the extrapolation of the last two Tweedie means to the middle of the row,

        x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0',
        x0' = x0 + (h / 2 h_last) (x0 - x0_last)

    and plainly x0 in the first row, in the last, which ends at the data, and after a row that stands still.

    Args:
        model: (x, t) -> x0. x: sigma(1) times a standard normal. steps: the rows of a grid.

    Cost: one model call a row.
    References: Lu et al. 2022 (DPM-Solver++ 2M), arXiv:2211.01095, Algorithm 2.
    """
    alpha, sigma = jnp.append(steps.alpha_t, steps.alpha_s[-1]), jnp.append(steps.sigma_t, steps.sigma_s[-1])
    with_signal = (alpha > 0) & (sigma > 0)
    logs = jnp.log(jnp.where(alpha > 0, alpha, 1.0)) - jnp.log(jnp.where(sigma > 0, sigma, 1.0))
    h = jnp.diff(logs)
    before = jnp.append(jnp.ones((1,), h.dtype), h[:-1])
    usable = with_signal[:-1] & with_signal[1:] & jnp.append(jnp.zeros((1,), bool), with_signal[:-2])
    usable &= before != 0  # rows below the least noise of a schedule stand at one time
    lead = jnp.where(usable, 0.5 * h / jnp.where(usable, before, 1.0), jnp.zeros_like(h)).astype(x.dtype)

    def row(carry: tuple[Sample, Sample], given: tuple[Step, Array]) -> tuple[tuple[Sample, Sample], None]:
        (x, last), (step, ahead) = carry, given
        x0 = model(x, step.t).astype(x.dtype)
        kept = (step.sigma_s / step.sigma_t).astype(x.dtype)
        gain = step.alpha_s.astype(x.dtype) - step.alpha_t.astype(x.dtype) * kept
        return (kept * x + gain * (x0 + ahead * (x0 - last)), x0), None

    init: Any = (x, jnp.zeros_like(x))
    return jax.lax.scan(row, init, (steps, lead))[0][0]


def draw(
    key: Key, model: Any, num: int, shape: tuple[int, ...], num_steps: int = 48, batch: int = 8192, even: bool = True
) -> Array:
    """Samples of a model by its probability flow, [num, *shape].

    Args:
        model: a denoiser with `schedule`. num_steps: model calls a sample, at even angles arctan(sigma / alpha), from
            t = 0.98 on for a network that predicts eps or the score, which say nothing of x0 at t = 1.
        batch: samples at a time. even: whether the starts are even, or independent.
    """
    z = even_normal(key, num, shape) if even else jax.random.normal(key, (num, *shape))
    size = math.ceil(num / math.ceil(num / batch))
    padded = jnp.concatenate([z, z[: -num % size]]).reshape(-1, size, *shape)
    return jnp.concatenate([_flows(model, part, num_steps) for part in padded])[:num]


@partial(jax.jit, static_argnums=2)
def _flows(model: Any, z: Array, num_steps: int) -> Array:
    steps = grid(model.schedule, even_angles(model.schedule, num_steps, noisiest(model, model.schedule)))
    return jax.vmap(lambda one: flow(model, steps.sigma_t[0].astype(one.dtype) * one, steps))(z)


def even_angles(schedule: Schedule, num_steps: int, start: float = 1.0) -> Array:
    """Times at even angles arctan(sigma / alpha) from `start` to data, [num_steps + 1]."""
    alpha, sigma = schedule(start)
    angles = jnp.arctan2(sigma, alpha) * jnp.linspace(1.0, 0.0, num_steps + 1)[1:-1]
    ends = jnp.full((1,), start), jnp.zeros((1,))
    return jnp.concatenate([ends[0], schedule.time_of(jnp.tan(angles)).astype(ends[0].dtype), ends[1]])


def asked(reward: Any, x: Array, batch: int) -> Array:
    """The reward of every sample, once, [num] float32."""
    given = Function(reward) if jax.tree_util.all_leaves([reward]) else reward
    return jnp.concatenate([_ask(given, x[i : i + batch]) for i in range(0, x.shape[0], batch)])


@jax.jit
def _ask(reward: Any, x: Array) -> Array:
    return jax.vmap(lambda one: jnp.asarray(require_scalar(reward(one)), jnp.float32))(x)
