r"""FreeDoM: the mean shifted along the value's gradient by a strength that follows the noise level.

    delta = strength * rate * g,     g = d value / d x_t

| rate | the factor | published with |
|---|---|---|
| `"noise"` | (sigma_t / alpha_t) rms(eps) / rms(g) | faces: x0 moves by that share of its noise, at any scale of g |
| `"signal"` | alpha_t | segmentation, sketches, text: the guidance grows as the sample clears up |

delta enters in velocity-space (x0 + delta) or in x-space (x_s + delta). The other half of the method, going back and
repeating the row, is `samplers.Travel`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ntrk_jax import tweedie
from ntrk_jax.core import Gaussian, Lookahead, Step, Tilt, root
from ntrk_jax.guidance.base import Strength, require, strength_at
from ntrk_jax.guidance.shift import check_space, mean_shift, over_alpha, unit
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key

__all__ = ["FreeDoM"]


@pytree
class FreeDoM:
    """Shift along the gradient, with one of FreeDoM's two strength rules.

    Attributes:
        strength: a number, at least 0, or a function of the grid's row.
        rate: "noise" or "signal".
        space: "velocity" shifts x0, "x" shifts x_s: there the total shift grows with the number of rows. Published
            are ("noise", "velocity") and ("signal", "x").

    Shapes: look.x, look.x0, look.grad, base.mean [*shape]; base.std [].
    Cost per step: no evaluation beyond the look's (needs Look(grad=True)).
    Density: the last row, where std = 0, is shifted too and carries no ratio, so none is given.
    Departs from the paper: "noise" makes no shift in a row from pure noise, alpha_t < 1e-3, where the factor is
        infinite; norms are taken per sample.
    References: Yu et al. 2023, arXiv:2303.09833, Algorithm 1 and the authors' code.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.guidance.FreeDoM(0.1).rate
        'noise'
    """

    strength: Strength = 0.1
    rate: str = static(default="noise")
    space: str = static(default="velocity")

    needs_grad = True
    exact = False

    def __post_init__(self) -> None:
        """Refuse an unknown rate or space and a negative strength."""
        if self.rate not in ("noise", "signal"):
            raise ValueError(f"rate must be 'noise' or 'signal', got {self.rate!r}.")
        check_space(self.space)
        require("FreeDoM strength", self.strength, 0.0, float("inf"))

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The shift of the mean."""
        strength = jnp.asarray(strength_at(self.strength, step), look.grad.dtype)
        delta = strength * self._scaled(look, step)
        return Tilt(mean=mean_shift(delta, look, base, step, self.space, jnp.ones_like(strength)))

    def _scaled(self, look: Lookahead, step: Step) -> Array:
        if self.rate == "signal":
            return step.alpha_t * look.grad
        rms = root(jnp.mean(jnp.square(tweedie.eps(look, step))))
        return over_alpha(step.sigma_t * rms, step) * unit(look.grad)
