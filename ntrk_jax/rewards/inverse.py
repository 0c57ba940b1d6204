r"""Rewards of inverse problems: the log-likelihood of an observation y = A x + noise_std n, n ~ N(0, I),

    r(x) = -|y - A x|^2 / (2 noise_std^2) - M log(2 pi noise_std^2) / 2.

Its tilt at temperature 1 is the posterior of x given y, and the tilt's log normaliser is the log evidence log p(y).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ntrk_jax.rewards.analytic import common_dtype, dot, flat
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["LinearGaussian"]


@pytree
class LinearGaussian:
    """The log-likelihood of a linear observation with Gaussian noise.

    Attributes:
        operator: A, [M, N].
        observation: y, [M].
        noise_std: [], positive.

    Shapes: [*shape] with N entries -> []; computed in at least float32.
    Cost: one product of A and x, O(M N).

    Raises:
        ValueError: if the shapes do not fit or the noise is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> reward = LinearGaussian(jnp.array([[1.0, 1.0]]), jnp.array([2.0]), 0.5)
        >>> reward.residual(jnp.array([1.0, 2.0])).tolist()
        [-1.0]
    """

    operator: Any
    observation: Any
    noise_std: Scalar = 1.0

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit and noise that is not positive."""
        shape, observed = np.shape(self.operator), np.shape(self.observation)
        if len(shape) != 2 or observed != shape[:1]:
            raise ValueError(f"LinearGaussian needs operator [M, N] and observation [M], got {shape} and {observed}.")
        if is_concrete(self.noise_std) and not np.all(np.asarray(self.noise_std) > 0):
            raise ValueError(f"noise_std must be positive, got {self.noise_std}.")

    def residual(self, x0: Sample) -> Array:
        """What the observation leaves unexplained, y - A x0, [M]."""
        matrix = jnp.asarray(self.operator)
        dtype = common_dtype(matrix, x0)
        x0 = flat(x0, matrix.shape[1], dtype, "the operator's row")
        y = jnp.asarray(self.observation).astype(dtype)
        return y - dot(matrix.astype(dtype), x0)

    def __call__(self, x0: Sample, /) -> Array:
        """The log-likelihood of one sample."""
        residual = self.residual(x0)
        std = jnp.asarray(self.noise_std, residual.dtype)
        size = residual.shape[0]
        return -0.5 * jnp.sum((residual / std) ** 2) - 0.5 * size * jnp.log(2.0 * jnp.pi * std**2)

    def quadratic(self) -> tuple[Any, Any, Any]:
        """(A'A, A'y, c) / noise_std^2: the same function as a quadratic form, in float64 where all can be read.

        Its terms are 1 / noise_std^2 times as large as what is left when they cancel.
        """
        parts = self.operator, self.observation, self.noise_std
        xp = np if all(map(is_concrete, parts)) else jnp
        dtype = np.float64 if xp is np else common_dtype(*map(jnp.asarray, parts[:2]))
        a, y, std = (xp.asarray(part, dtype) for part in parts)
        a, y = a / std, y / std
        constant = xp.sum(y**2) + y.size * xp.log(2.0 * np.pi * std**2)
        return dot(a.T, a), dot(a.T, y), -0.5 * constant
