r"""Diffusion posterior sampling: the reward's gradient shifts the mean of the reverse kernel.

With g = d r(x0(x_t)) / d x_t three conventions are in use, and results of one do not carry over to another:

| convention | shift of the mean | stands for |
|---|---|---|
| `"norm"` | strength * grad of -sqrt(-r), that is strength g / (2 sqrt(-r)) | the published code: r = -|y - A x0|^2 |
| `"squared"` | strength * g | the published equations: r = -|y - A x0|^2 |
| `"likelihood"` | strength * std^2 g, strength = 1 / temperature | the kernel tilted by exp(r / temperature) |
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ntrk_jax.core import Gaussian, Lookahead, Step, Tilt
from ntrk_jax.guidance.base import Strength, require, strength_at
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key

__all__ = ["DPS"]

_CONVENTIONS = ("norm", "squared", "likelihood")


@pytree
class DPS:
    """Shift the mean along the reward's gradient, in one of the three conventions in use.

    Attributes:
        strength: the factor of the shift, at least 0: a number or a function of the grid's row. In the "likelihood"
            convention it is 1 / temperature.
        convention: "norm", "squared" or "likelihood". "norm" reads the value as minus a squared residual; where it is
            not negative there is no residual and no shift.

    Shapes: look.grad, base.mean [*shape]; look.value, base.std [].
    Cost per step: no evaluation beyond the look's (needs Look(grad=True)).
    Density: an affine Gaussian given the look where base.std > 0, so log_ratio is exact ("likelihood" makes no shift
        at the last row, where std = 0; the other two do, and that row carries no ratio).
    Departs from the paper: the residual's norm is taken per sample, never over a batch.
    References: Chung et al. 2023, arXiv:2209.14687, Algorithm 1.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.guidance.DPS(0.3, convention="norm")
        guidance.DPS(strength=0.3, convention='norm')
    """

    strength: Strength = 1.0
    convention: str = static(default="likelihood")

    needs_grad = True

    @property
    def needs_noise(self) -> bool:
        """Whether the shift is scaled by the kernel's noise, so that without noise there is none."""
        return self.convention == "likelihood"

    def __post_init__(self) -> None:
        """Refuse an unknown convention and a negative strength."""
        if self.convention not in _CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(_CONVENTIONS)}, got {self.convention!r}.")
        require("DPS strength", self.strength, 0.0, float("inf"))

    @property
    def exact(self) -> bool:
        """Whether log_ratio covers every row: only the likelihood convention leaves the last, noiseless row alone."""
        return self.convention == "likelihood"

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The shift of the mean."""
        factor = jnp.asarray(strength_at(self.strength, step), look.grad.dtype) * self._convert(look.value, base)
        return Tilt(mean=factor * look.grad)

    def _convert(self, value: Array, base: Gaussian) -> Array:
        if self.convention == "likelihood":
            return jnp.square(base.std)
        if self.convention == "squared":
            return jnp.ones_like(value)
        below = jnp.where(value < 0, -value, jnp.ones_like(value))
        return jnp.where(value < 0, 0.5 / jnp.sqrt(below), jnp.zeros_like(value))
