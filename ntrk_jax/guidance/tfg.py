r"""Training-free guidance: one rule with the others as special points.

    variance guidance   Delta_t = rho * g,                      g = d value / d x_t
    mean guidance       Delta_0 = num_inner ascent steps of size mu on the reward, from x0

    x-space             x_s += (alpha_s / alpha_t) Delta_t + alpha_s Delta_0                      (as published)
    velocity-space      x0  += (sigma_t^2 / alpha_t) Delta_t + Delta_0,  in eps too

The value is `values.Smoothed`, the reward smoothed over a width gamma, in both places. Recurrence is `samplers.Travel`.

| point | rho | mu, num_inner | gamma | recurrence |
|---|---|---|---|---|
| DPS, TDS | > 0 | 0 | 0 | 1 |
| LGD-MC | > 0 | 0 | > 0 | 1 |
| MPGD | None | > 0, 1 | 0 | 1 |
| FreeDoM | > 0 | 0 | 0 | > 1 |
| UGD | > 0 | > 0, m | 0 | > 1 |

How rho and mu run along the grid is a `Structure`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ntrk_jax.arguments import require_count
from ntrk_jax.core import Gaussian, Lookahead, Step, Tilt
from ntrk_jax.guidance.base import Strength, require, strength_at
from ntrk_jax.guidance.shift import ascend, check_space, gain, over_alpha, tweedie_gain
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, Scalar

__all__ = ["TFG", "Structure"]

_KINDS = ("increase", "decrease", "constant")


@pytree
class Structure:
    """A strength that follows the noise level, in one of TFG's three structures.

        strength * s / mean,     s = a, 1 - a or 1,   a = what a row leaves of the signal's share of the variance,
        a = abar_t / abar_s,     abar = alpha^2 / (alpha^2 + sigma^2)

    Attributes:
        strength: a number.
        kind: "increase" (a grows towards the data), "decrease" (1 - a) or "constant".
        mean: the mean of s over the rows of the grid, so that the strengths of a run average to `strength`;
            `Structure.over(steps, ...)` computes it. 1 leaves s as it is.

    Shapes: a row of the grid -> [].
    Cost per step: none.
    References: Ye et al. 2024, arXiv:2409.15761.

    Example:
        >>> import ntrk_jax as nk
        >>> steps = nk.grid(nk.schedules.VPCosine(), nk.grids.uniform(4))
        >>> round(float(nk.guidance.Structure.over(steps, 2.0, "decrease")(steps).mean()), 4)
        2.0
    """

    strength: Scalar = 1.0
    kind: str = static(default="increase")
    mean: Scalar = 1.0

    def __post_init__(self) -> None:
        """Refuse an unknown kind and a negative strength."""
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}.")
        require("Structure strength", self.strength, 0.0, float("inf"), number=True)
        require("Structure mean", self.mean, 1e-30, float("inf"), number=True)

    @classmethod
    def over(cls, steps: Step, strength: Scalar = 1.0, kind: str = "increase") -> Structure:
        """The structure whose strengths average to `strength` over the rows of a grid."""
        mean = jnp.mean(cls(1.0, kind)(steps))
        return cls(strength, kind, jnp.where(mean > 0, mean, jnp.ones_like(mean)))

    def __call__(self, step: Step) -> Array:
        """The strength on a row."""
        share = [jnp.square(a) / (jnp.square(a) + jnp.square(s)) for a, s in (step[2:4], step[4:6])]
        left = share[0] / share[1]
        s = {"increase": left, "decrease": 1.0 - left, "constant": jnp.ones_like(left)}[self.kind]
        return jnp.asarray(self.strength, s.dtype) * s / jnp.asarray(self.mean, s.dtype)


@pytree
class TFG:
    """Variance guidance through the network and mean guidance from x0 on.

    Attributes:
        rho: the strength of variance guidance, at least 0: a number, a `Structure` or another function of the grid's
            row; None leaves it out, and the look needs no gradient.
        mu: the step of mean guidance, at least 0, likewise.
        num_inner: steps of mean guidance; 0 leaves it out.
        space: "x" as published, where the total shift grows with the number of rows; "velocity" shifts x0.

    Shapes: look.x0, look.grad, base.mean [*shape]; base.std [].
    Cost per step: num_inner reward gradients, times the draws of a smoothed value, beyond the look's.
    Density: the last row, where std = 0, is shifted too and carries no ratio, so none is given.
    Errors: ValueError for a reward that has no gradient. A gradient that is not finite makes no step and sets a flag.
    Departs from the paper: variance guidance makes no shift in a row from pure noise, alpha_t < 1e-3.
    References: Ye et al. 2024, arXiv:2409.15761; the translation to flows follows arXiv:2607.00647.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.guidance.TFG(None, 0.1, num_inner=1).needs_grad
        False
    """

    rho: Strength | None = 1.0
    mu: Strength = 0.25
    num_inner: int = static(default=4)
    space: str = static(default="x")

    exact = False

    @property
    def needs_grad(self) -> bool:
        """Whether there is variance guidance."""
        return self.rho is not None

    @property
    def needs_reward_grad(self) -> bool:
        """Whether there is mean guidance."""
        return self.num_inner > 0

    def __post_init__(self) -> None:
        """Refuse an unknown space, negative strengths and a negative number of steps."""
        check_space(self.space)
        require("TFG rho", 0.0 if self.rho is None else self.rho, 0.0, float("inf"))
        require("TFG mu", self.mu, 0.0, float("inf"))
        require_count(0, num_inner=self.num_inner)

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The shift of the mean."""
        of_x0, tilt = ascend(look, step, probe, key, strength_at(self.mu, step), self.num_inner)
        of_x = gain_x0 = gain(look, base, step)
        if self.space == "x":
            of_x, gain_x0 = over_alpha(step.alpha_s, step), step.alpha_s
        else:
            of_x = of_x * tweedie_gain(step)
        mean = gain_x0 * of_x0
        if self.rho is not None:
            mean = mean + of_x * jnp.asarray(strength_at(self.rho, step), look.x0.dtype) * look.grad
        return tilt._replace(mean=mean)
