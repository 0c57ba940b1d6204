r"""Noise schedules: time t in [0, 1] -> (alpha, sigma) with x_t = alpha x_0 + sigma z.

t = 0 is data (alpha = 1, sigma = 0 exactly) and t = 1 is noise. Each schedule also inverts the noise-to-signal
ratio sigma/alpha (`time_of`), which is what lets one model be sampled on the time axis of another.

| schedule | alpha(t) | sigma(t) |
|---|---|---|
| `VPLinear` | exp(-B/2), B = beta_min t + (beta_max - beta_min) t^2 / 2 | sqrt(1 - alpha^2) |
| `VPCosine` | cos(pi t / 2) | sin(pi t / 2) |
| `VE` | 1 | sigma_min (sigma_max / sigma_min)^t, and 0 at t = 0 |
| `EDM` | 1 | sigma_max t |
| `RectifiedFlow` | 1 - u | u = shift t / (1 + (shift - 1) t) |
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Scalar

__all__ = ["EDM", "VE", "RectifiedFlow", "Schedule", "VPCosine", "VPLinear", "rates"]


@runtime_checkable
class Schedule(Protocol):
    """t -> (alpha, sigma), with the inverse of sigma / alpha."""

    def __call__(self, t: Scalar) -> tuple[Array, Array]: ...

    def time_of(self, ratio: Scalar) -> Array:
        """The time at which sigma / alpha equals ratio."""
        ...


def rates(schedule: Schedule, t: Scalar) -> tuple[Array, Array]:
    """The time derivatives (alpha', sigma') of a schedule, by forward-mode differentiation."""
    t = _as_time(t)
    _, tangents = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    return tangents


def _as_time(t: Scalar) -> Array:
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))


FIRST_TIME = 1e-5
"""The earliest time that is not 0 at which a model is asked."""


def _known(*values: Any) -> bool:
    """Whether all can be judged now: numbers, arrays, and what can be neither."""
    return all(is_concrete(value) or value is None or isinstance(value, str) for value in values)


def _increasing(*values: Any) -> bool:
    """Whether finite numbers, or arrays of them that are swept, rise strictly from 0."""
    known = [np.asarray(value) for value in values]
    if not all(jnp.issubdtype(a.dtype, np.number) and np.all(np.isfinite(a.astype(float))) for a in known):
        return False
    return all(np.all(a < b) for a, b in zip([np.zeros(()), *known], known, strict=False))


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@pytree
class VPLinear:
    """The variance-preserving schedule with linear beta(t) (Ho et al. 2020; Song et al. 2021, arXiv:2011.13456).

    Attributes:
        beta_min, beta_max: the rates at t = 0 and t = 1, in units of 1/time.

    Example:
        >>> alpha, sigma = VPLinear()(0.0)
        >>> float(alpha), float(sigma)
        (1.0, 0.0)
    """

    beta_min: Scalar = 0.1
    beta_max: Scalar = 20.0

    def __post_init__(self) -> None:
        """Refuse rates that are not increasing."""
        if _known(self.beta_min, self.beta_max):
            ok = _increasing(self.beta_min, self.beta_max)
            _require(ok, f"VPLinear needs 0 < beta_min < beta_max, got {self.beta_min!r} and {self.beta_max!r}.")

    def __call__(self, t: Scalar) -> tuple[Array, Array]:
        """(alpha, sigma) at t, each of the shape of t."""
        t = _as_time(t)
        b = self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t
        some = t > 0  # at 0 the slope in t is infinite, that in the rates 0
        inside = jnp.sqrt(-jnp.expm1(-jnp.where(some, b, jnp.ones_like(b))))
        return jnp.exp(-0.5 * b), jnp.where(some, inside, jnp.sqrt(jnp.where(some, jnp.ones_like(t), t)))

    def time_of(self, ratio: Scalar) -> Array:
        """The time at which sigma / alpha equals ratio; 1 for any ratio beyond that of t = 1."""
        ratio = _as_time(ratio)
        rise = self.beta_max - self.beta_min
        top = self.beta_min + 0.5 * rise
        b = jnp.minimum(jnp.log1p(jnp.square(jnp.minimum(ratio, 1e15))), top)
        t = 2.0 * b / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * rise * b))
        return jnp.where(b >= top, jnp.ones_like(t), t)


@pytree
class VPCosine:
    """The variance-preserving schedule that turns by a constant angle per unit of time.

    alpha is computed as sin(pi (1 - t) / 2) so that it is exactly 0 at t = 1 in every precision.

    Example:
        >>> alpha, sigma = VPCosine()(1.0)
        >>> float(alpha), float(sigma)
        (0.0, 1.0)
    """

    def __call__(self, t: Scalar) -> tuple[Array, Array]:
        """(alpha, sigma) at t, each of the shape of t."""
        t = _as_time(t)
        return jnp.sin(0.5 * jnp.pi * (1.0 - t)), jnp.sin(0.5 * jnp.pi * t)

    def time_of(self, ratio: Scalar) -> Array:
        """The time at which sigma / alpha equals ratio."""
        return jnp.arctan(_as_time(ratio)) * (2.0 / jnp.pi)


@pytree
class VE:
    """The variance-exploding schedule with geometric noise levels (Song et al. 2021, arXiv:2011.13456).

    sigma jumps from sigma_min to 0 at t = 0, so that the last step of a grid is the denoising step.

    Attributes:
        sigma_min, sigma_max: the noise levels next to t = 0 and at t = 1, in units of the data.

    Example:
        >>> [round(float(VE(0.01, 100.0)(t)[1]), 3) for t in (0.0, 0.5, 1.0)]
        [0.0, 1.0, 100.0]
    """

    sigma_min: Scalar = 0.01
    sigma_max: Scalar = 50.0

    def __post_init__(self) -> None:
        """Refuse levels that are not increasing."""
        if _known(self.sigma_min, self.sigma_max):
            ok = _increasing(self.sigma_min, self.sigma_max)
            _require(ok, f"VE needs 0 < sigma_min < sigma_max, got {self.sigma_min!r} and {self.sigma_max!r}.")

    def __call__(self, t: Scalar) -> tuple[Array, Array]:
        """(alpha, sigma) at t, each of the shape of t."""
        t = _as_time(t)
        level = self.sigma_min * jnp.exp(t * jnp.log(jnp.asarray(self.sigma_max / self.sigma_min, t.dtype)))
        return jnp.ones_like(t), jnp.where(t > 0, level, jnp.zeros_like(level))

    def time_of(self, ratio: Scalar) -> Array:
        """The time at which sigma equals ratio; 0 for ratio 0, and next to 0, at sigma_min, for what lies between."""
        ratio = _as_time(ratio)
        safe = jnp.maximum(ratio, self.sigma_min)
        t = jnp.log(safe / self.sigma_min) / jnp.log(jnp.asarray(self.sigma_max / self.sigma_min, ratio.dtype))
        return jnp.where(ratio > 0, jnp.maximum(t, FIRST_TIME), jnp.zeros_like(t))


@pytree
class EDM:
    """The noise level itself as time, sigma = sigma_max t (Karras et al. 2022, arXiv:2206.00364).

    Attributes:
        sigma_max: the noise level at t = 1, in units of the data.

    Example:
        >>> float(EDM(80.0)(0.5)[1])
        40.0
    """

    sigma_max: Scalar = 80.0

    def __post_init__(self) -> None:
        """Refuse a level that is not positive."""
        if _known(self.sigma_max):
            _require(_increasing(self.sigma_max), f"EDM needs a finite sigma_max > 0, got {self.sigma_max!r}.")

    def __call__(self, t: Scalar) -> tuple[Array, Array]:
        """(alpha, sigma) at t, each of the shape of t."""
        t = _as_time(t)
        return jnp.ones_like(t), self.sigma_max * t

    def time_of(self, ratio: Scalar) -> Array:
        """The time at which sigma equals ratio."""
        return _as_time(ratio) / self.sigma_max


@pytree
class RectifiedFlow:
    """The straight path x_t = (1 - u) x_0 + u z, u = shift t / (1 + (shift - 1) t).

    shift = 1 is Liu et al. 2022 (arXiv:2209.03003); shift > 1 spends more of the time at high noise
    (Esser et al. 2024, arXiv:2403.03206, section 5.3.2).

    Example:
        >>> alpha, sigma = RectifiedFlow(shift=3.0)(0.5)
        >>> float(alpha), float(sigma)
        (0.25, 0.75)
    """

    shift: Scalar = 1.0

    def __post_init__(self) -> None:
        """Refuse a shift that is not positive."""
        if _known(self.shift):
            _require(_increasing(self.shift), f"RectifiedFlow needs a finite shift > 0, got {self.shift!r}.")

    def __call__(self, t: Scalar) -> tuple[Array, Array]:
        """(alpha, sigma) at t, each of the shape of t."""
        t = _as_time(t)
        below = 1.0 + (self.shift - 1.0) * t
        return (1.0 - t) / below, self.shift * t / below

    def time_of(self, ratio: Scalar) -> Array:
        """The time at which sigma / alpha equals ratio (any ratio >= 0, infinity gives 1)."""
        ratio = _as_time(ratio)
        u = jnp.where(jnp.isinf(ratio), 1.0, ratio / (1.0 + jnp.where(jnp.isinf(ratio), 0.0, ratio)))
        return u / (self.shift - (self.shift - 1.0) * u)
