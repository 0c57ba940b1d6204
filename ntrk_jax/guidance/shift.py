r"""Two places where a shift of the mean can enter, and gradients at x0 itself; what the mean-shift rules share.

Every base kernel here has mean = alpha_s x0 + k eps, eps = (x - alpha_t x0) / sigma_t, and k = sqrt(sigma_s^2 - std^2)
but for `Correlated` below 0 and `EDM` with a noise factor, whose k is read off the mean, as a user's kernel's is.

- **x-space**: something is added to x_s. A shift of the same size at each row adds up over the rows, so a strength
  found at 25 steps is another one at 100.
- **velocity-space**: x0 is replaced by x0 + delta, in eps too, and so in every parametrisation alike. The mean moves by

      gain * delta,     gain = alpha_s - k alpha_t / sigma_t,

  which is of the order of the row. On a straight path without noise gain = (t - s) / t, the Euler step (t - s) of the
  velocity shifted by -delta / t. Strengths carry over from one grid to another if delta shrinks at least like sigma_t;
  the effect of a delta of constant size still grows with the logarithm of the number of rows.

A gradient g at x_t is a change of the score, and a score changed by g is an x0 changed by (sigma_t^2 / alpha_t) g: the
Tweedie mean of the law tilted by exp(V) is x0 + (sigma_t^2 / alpha_t) dV/dx, exactly. At alpha_t = 0 it is 0/0, and no
shift is made there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax import tweedie
from ntrk_jax.arguments import valueless
from ntrk_jax.core import Evals, Gaussian, Lookahead, Status, Step, Tilt, over_largest, root
from ntrk_jax.typing import Array, Key, Sample
from ntrk_jax.varying import vary

__all__: list[str] = []

SPACES = ("x", "velocity")
_LOWEST_ALPHA = 1e-3


def check_space(space: str) -> None:
    """Raise ValueError for a space that does not exist."""
    if space not in SPACES:
        raise ValueError(f"space must be 'x' or 'velocity', got {space!r}.")


def gain(look: Lookahead, base: Gaussian, step: Step) -> Array:
    """How far the mean moves for a unit shift of x0, [], for any kernel with mean = alpha_s x0 + k eps, k []."""
    kept = root(jnp.maximum(jnp.square(step.sigma_s) - jnp.square(base.std), 0.0))
    eps, signal = tweedie.eps(look, step), step.alpha_s * look.x0
    square = jnp.sum(jnp.square(eps))
    square = jnp.where(square > 0, square, jnp.ones_like(square))
    missed = jnp.sum((base.mean - signal - kept * eps) * eps) / square
    rounding = 8 * jnp.finfo(square.dtype).eps * root(jnp.sum(jnp.square(signal)) / square)
    kept = kept + jnp.where(jnp.abs(missed) > 1e-3 * step.sigma_s + rounding, missed, jnp.zeros_like(missed))
    return step.alpha_s - kept * step.alpha_t / step.sigma_t


def over_alpha(numerator: Array, step: Step) -> Array:
    """A numerator / alpha_t, and 0 where a row starts from pure noise, alpha_t < 1e-3."""
    some = step.alpha_t >= _LOWEST_ALPHA
    return jnp.where(some, numerator / jnp.where(some, step.alpha_t, jnp.ones_like(step.alpha_t)), 0.0)


def tweedie_gain(step: Step) -> Array:
    """How far x0 moves for a unit change of the score, sigma_t^2 / alpha_t, []."""
    return over_alpha(jnp.square(step.sigma_t), step)


def unit(g: Array) -> Array:
    """G scaled to a root mean square of 1, without overflow at any scale; zero stays zero."""
    scaled = over_largest(g)
    rms = root(jnp.mean(jnp.square(scaled)))
    return scaled / jnp.where(rms > 0, rms, jnp.ones_like(rms))


def ascend(look: Lookahead, step: Step, probe: Any, key: Key, size: Any, num: int) -> tuple[Array, Tilt]:
    """Climb the reward from x0 by `num` gradient steps; no model call.

    The reward is the plug-in one of the probe, or its `values` object if that is a function of x0 (a smoothed reward
    stays smoothed). A gradient that is not finite makes no step and sets a flag.

    Returns:
        The displacement of x0 [*shape], and an empty Tilt that carries the evaluations and the flag.

    Raises:
        ValueError: at trace time, if there is no reward to differentiate.
    """
    value, num_rewards = _value_at(probe)
    size = jnp.asarray(size, look.x0.dtype)

    def climb(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, bad = carry
        draw = jax.random.fold_in(key, i)
        g = jax.grad(lambda x0: value(draw, look.x, step.t, x0).astype(x0.dtype))(look.x0 + delta)
        moved = delta + size * g
        fine = jnp.all(jnp.isfinite(moved))
        return jnp.where(fine, moved, delta), bad | ~fine

    start = vary((jnp.zeros_like(look.x0), jnp.zeros((), bool)), (look, step, key, size))
    delta, bad = jax.lax.fori_loop(0, num, climb, start) if num else start
    status = jnp.where(bad, jnp.int32(Status.NONFINITE_GRAD), jnp.int32(0))
    return delta, Tilt(evals=Evals(reward=num * num_rewards, reward_vjp=num * num_rewards), status=status)


def _value_at(probe: Any) -> tuple[Callable[..., Array], int]:
    """The value as a function (key, x, t, x0) -> [] of x0, and how many rewards it calls."""
    reward, value = getattr(probe, "reward", None), getattr(probe, "value", None)
    if reward is None or not getattr(reward, "differentiable", True):
        got = "no reward" if reward is None else f"{valueless(reward)}, which gives values only"
        raise ValueError(f"a rule that climbs the reward needs Look(model, reward) with a gradient, got {got}.")
    if value is not None and value.needs_x0 and not hasattr(value, "through"):
        return lambda key, x, t, x0: jnp.asarray(value(key, x, t, x0, reward)), value.num_rewards
    return lambda key, x, t, x0: jnp.asarray(reward(x0)), 1


def mean_shift(delta: Sample, look: Lookahead, base: Gaussian, step: Step, space: str, in_x: Array) -> Sample:
    """The shift of the mean: `in_x` times delta in x-space, gain times delta in velocity-space."""
    return (in_x if space == "x" else gain(look, base, step)) * delta
