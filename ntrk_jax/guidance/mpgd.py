r"""Manifold preserving guidance: climb the reward from x0 itself, with no backward pass through the network.

    delta = sum of num_steps steps strength * dr/dx0,      x_s = alpha_s (x0 + delta) + k eps

For a reward that varies little over the posterior the gradient with respect to x_t is that with respect to x0 times the
denoiser's Jacobian, (alpha_t / sigma_t^2) Cov(x_0 | x_t); here a number takes the place of the Jacobian, so `strength`
is in units of a posterior variance over a temperature.
"""

from __future__ import annotations

from typing import Any

from ntrk_jax.arguments import require_count
from ntrk_jax.core import Gaussian, Lookahead, Step, Tilt
from ntrk_jax.guidance.base import Strength, require, strength_at
from ntrk_jax.guidance.shift import ascend, check_space, mean_shift
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Key

__all__ = ["MPGD"]


@pytree
class MPGD:
    """Shift x0 along the reward's own gradient.

    Attributes:
        strength: the step in x0, at least 0: a number or a function of the grid's row.
        num_steps: gradient steps a row.
        space: "x" keeps eps, as published: x_s moves by alpha_s delta at every row, in total by what grows with the
            number of rows. "velocity" moves eps with x0, and x_s by the order of the row; with a strength that
            shrinks like sigma_t, such as `lambda step: 0.1 * step.sigma_t`, the total does not depend on the grid.

    Shapes: look.x0, base.mean [*shape].
    Cost per step: num_steps reward gradients (times the draws of a smoothed value); no model VJP, so Look(grad=False).
    Density: the last row, where std = 0, is shifted too and carries no ratio, so none is given.
    Errors: ValueError for a reward that has no gradient. A gradient that is not finite makes no step and sets a flag.
    Departs from the paper: no autoencoder; wrap the reward in one if there is one.
    References: He et al. 2023, arXiv:2311.16424.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.guidance.MPGD(0.1).needs_grad
        False
    """

    strength: Strength = 0.1
    num_steps: int = static(default=1)
    space: str = static(default="x")

    needs_grad = False
    needs_reward_grad = True
    exact = False

    def __post_init__(self) -> None:
        """Refuse an unknown space, a negative strength and no step at all."""
        check_space(self.space)
        require("MPGD strength", self.strength, 0.0, float("inf"))
        require_count(num_steps=self.num_steps)

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The shift of the mean."""
        delta, tilt = ascend(look, step, probe, key, strength_at(self.strength, step), self.num_steps)
        return tilt._replace(mean=mean_shift(delta, look, base, step, self.space, step.alpha_s))
