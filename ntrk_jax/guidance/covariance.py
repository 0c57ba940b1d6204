r"""Guidance that knows how uncertain x0 is, for linear and quadratic rewards r(x) = -x'Px/2 + b.x + c.

Where x_0 given x_t is N(x0, C), the soft value is in closed form. With lambda = 1 / temperature and g = b - P x0,

    V = r(x0) - log|I + lambda P C| / (2 lambda) + lambda g'C u / 2,    u = (I + lambda P C)^-1 g,
    dV / dx_t = J'u,    J = dx0 / dx_t,

with C held fixed. The plug-in value omits the factor (I + lambda P C)^-1, and so pushes hardest where x0 is least
known. The posterior covariance is

| jacobian | C | model VJPs |
|---|---|---|
| `"none"` | spread^2 sigma^2 / (spread^2 alpha^2 + sigma^2) I, that of data N(0, spread^2 I); Pi-GDM | 1 |
| `"diagonal"` | (sigma^2 / alpha) diag(J'1), the row sums of J; TMPD as run on images | 2 |
| `"full"` | (sigma^2 / alpha) J, exact (Tweedie's second formula); TMPD | N |

For a single Gaussian law the last is the exact value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import require_schedule
from ntrk_jax.core import algebra_dtype
from ntrk_jax.guidance.base import require
from ntrk_jax.guidance.shift import _LOWEST_ALPHA
from ntrk_jax.tree import pytree, static
from ntrk_jax.typing import Array, Key, Sample, Scalar
from ntrk_jax.varying import vary

__all__ = ["MomentMatched"]

_JACOBIANS = ("none", "diagonal", "full")


@pytree
class MomentMatched:
    """The soft value with a Gaussian in place of the posterior: a `value` for `Look`, and so for every rule.

    Attributes:
        schedule: t -> (alpha, sigma), the one the sampler uses.
        temperature: beta, [], positive.
        jacobian: "none", "diagonal" or "full".
        spread: the standard deviation of the data, read by "none" alone.
        size: N, the number of entries of a sample, for "full" alone.

    Shapes: x [*shape] -> value [], gradient [*shape].
    Cost per look: 1, 2 or N model VJPs, whether or not the gradient is kept; no reward call, but a linear system: of M
        unknowns for a reward with an `operator` [M, N], else of N, and none where P or C and P are numbers.
    Errors: TypeError at trace time for a reward that is neither linear nor quadratic. Where exp(r / temperature) has no
        mean under the Gaussian the value is NaN and flagged.
    Departs from the paper: gradients are those of a log-expectation, without the factor r_t^2 that Pi-GDM puts on its
        own; any quadratic reward, not linear observations alone; a negative row sum counts as 0. In a row from pure
        noise (alpha < 1e-3) "diagonal" and "full" read C as about 0.
    References: Song et al. 2023 (Pi-GDM), "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR;
        Boys et al. 2023 (TMPD), arXiv:2310.06721.

    Example:
        >>> import jax, jax.numpy as jnp, ntrk_jax as nk
        >>> value = nk.guidance.MomentMatched(nk.schedules.VPCosine())
        >>> look = nk.Look(lambda x, t: 0.5 * x, nk.rewards.Quadratic(1.0, 1.0), grad=True, value=value)
        >>> [round(g, 4) for g in look(jax.random.key(0), jnp.ones(2), 0.5)[0].grad.tolist()]
        [0.1667, 0.1667]
    """

    schedule: Callable[[Scalar], tuple[Array, Array]]
    temperature: Scalar = 1.0
    jacobian: str = static(default="none")
    spread: Scalar = 1.0
    size: int | None = static(default=None)

    needs_x0 = True
    num_rewards = 0

    def __post_init__(self) -> None:
        """Refuse an unknown covariance, one of unknown size, and numbers that mean nothing."""
        require_schedule(self.schedule)
        if self.jacobian not in _JACOBIANS:
            raise ValueError(f"jacobian must be one of {', '.join(_JACOBIANS)}, got {self.jacobian!r}.")
        if self.jacobian == "full" and self.size is None:
            raise ValueError("jacobian='full' costs one VJP an entry of x; say how many: MomentMatched(..., size=N).")
        require("temperature", self.temperature, 1e-30, float("inf"))
        require("spread", self.spread, 1e-30, float("inf"))

    @property
    def num_vjps(self) -> int:
        """How often a look pulls a vector back through the model."""
        return {"none": 1, "diagonal": 2, "full": self.size or 1}[self.jacobian]

    def __call__(self, key: Key, x: Sample, t: Scalar, x0: Sample, reward: Any) -> Array:
        """Refused: the value needs the model's pullback."""
        raise TypeError("MomentMatched is a value for nk.Look, which hands it the model's Jacobian.")

    def through(
        self, key: Key, x: Sample, t: Scalar, x0: Sample, pull: Callable[[Sample], Sample], reward: Any
    ) -> tuple[Array, Sample]:
        """The value [] and its gradient [*shape] at x_t, with pull: u -> J'u."""
        beta = jnp.asarray(self.temperature, x0.dtype)
        back, pull = pull, lambda u: back(vary(u, x0))
        rows = self._rows(x0, pull) if self.jacobian == "full" else None
        covariance = self._covariance(x0, t, pull, rows)
        value, u = soft_value(reward, x0.reshape(-1), covariance, 1.0 / beta)
        grad = pull(u.reshape(x0.shape)) if rows is None else _matmul(u, rows).reshape(x0.shape)
        return value, grad

    def _rows(self, x0: Sample, pull: Callable[[Sample], Sample]) -> Array:
        """The Jacobian J [N, N]."""
        if x0.size != self.size:
            raise ValueError(f"MomentMatched was given size={self.size}, and x has {x0.size} entries.")
        basis = jnp.eye(x0.size, dtype=x0.dtype).reshape(-1, *x0.shape)
        return jax.vmap(pull)(basis).reshape(x0.size, x0.size)

    def _covariance(self, x0: Sample, t: Scalar, pull: Callable[[Sample], Sample], rows: Array | None) -> Array:
        alpha, sigma = (jnp.asarray(c, algebra_dtype(x0)) for c in self.schedule(t))
        if self.jacobian == "none":
            spread = jnp.asarray(self.spread, x0.dtype)
            return jnp.square(spread * sigma) / (jnp.square(spread * alpha) + jnp.square(sigma))
        factor = jnp.square(sigma) / jnp.maximum(alpha, _LOWEST_ALPHA)
        if rows is None:
            return factor * jnp.maximum(pull(jnp.ones_like(x0)).reshape(-1), 0.0)
        return factor * 0.5 * (rows + rows.T)


def soft_value(reward: Any, x0: Array, covariance: Array, scale: Array) -> tuple[Array, Array]:
    """The soft value under N(x0 [N], C), C [], [N] or [N, N], and its gradient [N] at fixed C; scale = 1 / beta."""
    if not hasattr(reward, "quadratic"):
        raise TypeError(f"MomentMatched needs a linear or quadratic reward, got {type(reward).__name__}.")
    precision, linear, constant = reward.quadratic()
    dtype, size = x0.dtype, x0.size
    b = jnp.broadcast_to(jnp.asarray(linear, dtype).reshape(-1), (size,))
    p = jnp.zeros((), dtype) if precision is None else jnp.asarray(precision, dtype)
    bent = _matmul(p, x0) if p.ndim else p * x0
    g, plain = b - bent, jnp.sum((b - 0.5 * bent) * x0) + jnp.asarray(constant, dtype)
    if hasattr(reward, "operator"):
        spread, u = _observed(reward, x0, covariance, scale)
    else:
        spread, u = _solved(p, g, covariance, scale)
    return plain + 0.5 * scale * jnp.sum(g * _apply(covariance, u)) - 0.5 * spread, u


def _solved(p: Array, g: Array, covariance: Array, scale: Array) -> tuple[Array, Array]:
    """log|I + scale P C| / scale and u = (I + scale P C)^-1 g."""
    if not p.ndim and covariance.ndim < 2:
        product = jnp.broadcast_to(p * covariance, g.shape)
        logs = jnp.sum(jnp.log1p(scale * product))
        return _over(logs, scale, jnp.sum(product)), g / (1.0 + scale * product)
    columns = covariance[None, :] if covariance.ndim == 1 else covariance
    product = _matmul(p, columns) if p.ndim and covariance.ndim == 2 else p * columns
    matrix = jnp.eye(g.size, dtype=g.dtype) + scale * product
    return _over(_logdet(matrix), scale, jnp.trace(product)), jnp.linalg.solve(matrix, g)


def _observed(reward: Any, x0: Array, covariance: Array, scale: Array) -> tuple[Array, Array]:
    """The same for r = -|y - A x|^2 / (2 v), in the space of y: u = A'(v I + scale A C A')^-1 (y - A x0)."""
    a = jnp.asarray(reward.operator, x0.dtype)
    variance = jnp.square(jnp.asarray(reward.noise_std, x0.dtype))
    product = _matmul(a, jax.vmap(lambda row: _apply(covariance, row))(a).T) / variance
    matrix = jnp.eye(a.shape[0], dtype=x0.dtype) + scale * product
    u = jnp.linalg.solve(matrix, reward.residual(x0).astype(x0.dtype)) / variance
    return _over(_logdet(matrix), scale, jnp.trace(product)), _matmul(u, a)


def _over(logdet: Array, scale: Array, limit: Array) -> Array:
    """A logdet / scale, whose limit at an infinite temperature is the trace."""
    return jnp.where(scale > 0, logdet / jnp.where(scale > 0, scale, jnp.ones_like(scale)), limit)


def _logdet(matrix: Array) -> Array:
    sign, logdet = jnp.linalg.slogdet(matrix)
    return jnp.where(sign > 0, logdet, jnp.nan)


def _apply(covariance: Array, v: Array) -> Array:
    return _matmul(covariance, v) if covariance.ndim == 2 else covariance * v


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
