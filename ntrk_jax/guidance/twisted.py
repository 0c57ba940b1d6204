r"""The twisted proposal: x0 is replaced by the Tweedie mean of the tilted law, and the kernel does the rest.

    x0* = x0 + strength (sigma_t^2 / alpha_t) g,     g = d value / d x_t,   strength = 1 / temperature

For an exact value x0* is the exact Tweedie mean of p exp(r / temperature): guidance by the score, which serves every
kernel, with noise or without, diffusion or flow. Through DDPM's kernel the mean moves by
(alpha_s / alpha_t) (sigma_t^2 - (alpha_t sigma_s / alpha_s)^2) g, where DPS in its likelihood convention takes std^2 g:
the two differ by a factor alpha_s sigma_t^2 / (alpha_t sigma_s^2), which tends to 1 as rows shrink.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ntrk_jax.core import Gaussian, Lookahead, Step, Tilt
from ntrk_jax.guidance.base import Strength, require, strength_at
from ntrk_jax.guidance.shift import gain, tweedie_gain
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Key, Scalar

__all__ = ["Twisted"]


@pytree
class Twisted:
    """Shift x0 to the Tweedie mean of the tilted law; the proposal of twisted diffusion sampling.

    Attributes:
        strength: 1 / temperature, at least 0: a number or a function of the grid's row.
        clamp: (low, high), within which the shifted x0 is kept, or None. The shift depends on the look alone, so the
            density stays exact.
        noiseless: whether rows without noise are shifted too. False leaves them to the base kernel, which keeps
            log_ratio exact; True guides deterministic kernels and the last row, for a sampler without weights.

    Shapes: look.x0, look.grad, base.mean [*shape]; base.std [].
    Cost per step: no evaluation beyond the look's (needs Look(grad=True)).
    Density: an affine Gaussian given the look, log_ratio exact, unless `noiseless`.
    Departs from the paper: no clamp unless asked for; no shift in a row from pure noise, alpha_t < 1e-3.
    References: Wu et al. 2023, arXiv:2306.17775, Algorithm 1.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.guidance.Twisted(1.0).exact, nk.guidance.Twisted(1.0, noiseless=True).exact
        (True, False)
    """

    strength: Strength = 1.0
    clamp: tuple[Scalar, Scalar] | None = None
    noiseless: bool = static(default=False)

    needs_grad = True

    @property
    def exact(self) -> bool:
        """Whether log_ratio covers every row."""
        return not self.noiseless

    @property
    def needs_noise(self) -> bool:
        """Whether without noise there is no shift."""
        return not self.noiseless

    def __post_init__(self) -> None:
        """Refuse a negative strength."""
        require("Twisted strength", self.strength, 0.0, float("inf"))
        if self.clamp is not None and all(map(is_concrete, self.clamp)) and not self.clamp[0] < self.clamp[1]:
            raise ValueError(f"Twisted clamp needs low < high, got {self.clamp}.")

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The shift of the mean."""
        delta = jnp.asarray(strength_at(self.strength, step), look.grad.dtype) * tweedie_gain(step) * look.grad
        if self.clamp is not None:
            low, high = (jnp.asarray(end, look.x0.dtype) for end in self.clamp)
            delta = jnp.clip(look.x0 + delta, low, high) - look.x0
        shift = gain(look, base, step) * delta
        return Tilt(mean=shift if self.noiseless else jnp.where(base.std > 0, shift, jnp.zeros_like(shift)))
