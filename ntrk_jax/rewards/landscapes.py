r"""Rewards with a shape: two wells, a ring, a cliff.

    DoubleWell: r(x) = scale (-(x_1^4 - 12.5 x_1^2) / 8 - (x_2 - 0.4 x_1)^2)
    Ring:       r(x) = -(|x| - radius)^2 / (2 width^2)
    HalfSpace:  r(x) = -penalty where a.x < threshold, and 0 elsewhere

None is a polynomial of degree two, so a plug-in value is biased for all of them; `targets.Tiltable` knows their tilts.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ntrk_jax.rewards.analytic import common_dtype, dot, flat
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["DoubleWell", "HalfSpace", "Ring"]


@pytree
class DoubleWell:
    """Two wells in the plane, at about (2.5, 1) and (-2.5, -1), whose floor bends.

    Attributes:
        scale: [], the inverse temperature of the published experiment, 3 there.

    Shapes: [2] -> []; computed in at least float32.
    Cost: a few multiplications.

    References:
        Dandapanthula and Boffi 2026, arXiv:2606.02884.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(DoubleWell()(jnp.array([2.5, 1.0]))), 4)
        4.8828
    """

    scale: Scalar = 1.0

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        dtype = common_dtype(x0, self.scale)
        x = flat(x0, 2, dtype, "DoubleWell's plane")
        square = x[0] * x[0]
        return jnp.asarray(self.scale, dtype) * ((12.5 - square) * square / 8.0 - jnp.square(x[1] - 0.4 * x[0]))


@pytree
class Ring:
    """A ring around the origin: the reward falls with the distance from a sphere.

    Attributes:
        radius: [], of the sphere. width: [], positive: the standard deviation of exp(r) across it.

    Shapes: [*shape] -> []; computed in at least float32.
    Cost: one norm.

    Raises:
        ValueError: if the radius is negative or the width not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Ring(radius=4.0, width=1.0)(jnp.array([3.0, 4.0])))
        -0.5
    """

    radius: Scalar
    width: Scalar

    def __post_init__(self) -> None:
        """Refuse what is no ring."""
        if is_concrete(self.radius) and is_concrete(self.width):
            ok = np.all(np.asarray(self.radius) >= 0) and np.all(np.asarray(self.width) > 0)
            if not ok:
                raise ValueError(f"Ring needs radius >= 0 and width > 0, got {self.radius} and {self.width}.")

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        dtype = common_dtype(x0, self.radius, self.width)
        x = jnp.asarray(x0).astype(dtype)
        distance = jnp.sqrt(jnp.maximum(jnp.sum(x * x), jnp.finfo(dtype).tiny))  # a gradient at the origin too
        off = (distance - jnp.asarray(self.radius, dtype)) / jnp.asarray(self.width, dtype)
        return -0.5 * jnp.square(off)


@pytree
class HalfSpace:
    """A cliff: a penalty on one side of a plane, nothing on the other; there is no gradient to follow.

    Attributes:
        a: [*shape], the normal of the plane. threshold: []. penalty: [], taken off where a.x < threshold.

    Shapes: [*shape] -> []; computed in at least float32.
    Cost: one inner product.
    Gradient: zero almost everywhere, so `differentiable` is False and methods that need one refuse this reward.

    Raises:
        ValueError: if a is zero or not finite, or the penalty is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> cliff = HalfSpace(jnp.array([1.0, 0.0]), threshold=0.5, penalty=4.0)
        >>> float(cliff(jnp.array([0.0, 9.0]))), float(cliff(jnp.array([1.0, 9.0])))
        (-4.0, 0.0)
    """

    a: Any
    threshold: Scalar = 0.0
    penalty: Scalar = 1.0

    differentiable = False

    def __post_init__(self) -> None:
        """Refuse what is no plane and a penalty that is no number; an infinite one is a hard constraint."""
        if is_concrete(self.a) and not (np.all(np.isfinite(np.asarray(self.a))) and np.any(np.asarray(self.a))):
            raise ValueError("HalfSpace needs a finite normal a that is not zero.")
        if is_concrete(self.penalty) and np.any(np.isnan(np.asarray(self.penalty))):
            raise ValueError("the penalty of HalfSpace must be a number, got nan.")

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        a = jnp.asarray(self.a)
        dtype = common_dtype(a, x0)
        along = dot(a.reshape(-1).astype(dtype), flat(x0, a.size, dtype, "HalfSpace's normal a"))
        low = along < jnp.asarray(self.threshold, dtype)
        stepped = jnp.where(low, -jnp.asarray(self.penalty, dtype), jnp.zeros((), dtype))
        return jnp.where(jnp.isnan(along), along, stepped)  # a sample that is no number has no reward
