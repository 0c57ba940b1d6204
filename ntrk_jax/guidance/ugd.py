r"""Universal guidance: forward guidance through the network, backward guidance from x0 on, both carried by eps.

    forward     eps -= strength sigma_t g,                            g = d value / d x_t
    backward    eps -= (alpha_t / sigma_t) Delta,                     Delta = num_backward ascent steps on r from x0,
                                                                      each of size strength * backward

A change of eps by -(alpha_t / sigma_t) delta is a change of x0 by delta, so both are one shift of x0,

    delta = strength (sigma_t^2 / alpha_t) g + Delta,

in velocity-space. The third part of the method, recurrence, is `samplers.Travel`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ntrk_jax.arguments import require_count
from ntrk_jax.core import Gaussian, Lookahead, Step, Tilt
from ntrk_jax.guidance.base import Strength, require, strength_at
from ntrk_jax.guidance.shift import ascend, gain, tweedie_gain
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Key

__all__ = ["UGD"]


@pytree
class UGD:
    """Universal guidance: the score shifted by the value's gradient, x0 by a few steps of the reward's own.

    Attributes:
        strength: of both parts, at least 0: a number or a function of the grid's row. 1 / temperature, if the value is
            the log-likelihood of what is asked for.
        backward: the size of a backward step over strength, a posterior variance: a number or a function of the row.
        num_backward: m, the backward steps; 0 is forward guidance alone.

    Shapes: look.x0, look.grad, base.mean [*shape]; base.std [].
    Cost per step: num_backward reward gradients beyond the look's (needs Look(grad=True)).
    Density: the last row, where std = 0, is shifted too and carries no ratio, so none is given.
    Errors: ValueError for a reward that has no gradient. A gradient that is not finite makes no step and sets a flag.
    Departs from the paper: plain gradient ascent in backward guidance; forward guidance makes no shift in a row from
        pure noise, alpha_t < 1e-3.
    References: Bansal et al. 2023, arXiv:2302.07121, Algorithm 1.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.guidance.UGD(2.0, num_backward=3).backward
        0.1
    """

    strength: Strength = 1.0
    backward: Strength = 0.1
    num_backward: int = static(default=1)

    needs_grad = True
    exact = False

    @property
    def needs_reward_grad(self) -> bool:
        """Whether there is backward guidance."""
        return self.num_backward > 0

    def __post_init__(self) -> None:
        """Refuse negative strengths and a negative number of steps."""
        require("UGD strength", self.strength, 0.0, float("inf"))
        require("UGD backward", self.backward, 0.0, float("inf"))
        require_count(0, num_backward=self.num_backward)

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The shift of the mean."""
        strength = jnp.asarray(strength_at(self.strength, step), look.grad.dtype)
        size = strength * jnp.asarray(strength_at(self.backward, step), look.grad.dtype)
        backward, tilt = ascend(look, step, probe, key, size, self.num_backward)
        return tilt._replace(mean=gain(look, base, step) * (strength * tweedie_gain(step) * look.grad + backward))
