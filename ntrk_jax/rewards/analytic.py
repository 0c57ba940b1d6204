r"""Rewards that are polynomials of degree one and two, whose tilts are known in closed form.

    r(x) = a.x + c                      Linear
    r(x) = -x'Px / 2 + b.x + c          Quadratic

A reward of this kind answers `quadratic()` with (P or None, b, c); every closed form of `ntrk_jax.targets`
asks for that and for nothing else, so a reward of your own that answers it gets them too.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ntrk_jax.tree import as_float, is_concrete, pytree
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["Linear", "Quadratic"]


def common_dtype(*arrays: Any) -> Any:
    """The widest floating dtype of the arrays, at least float32; Python numbers and integers do not count."""
    out = np.dtype(np.float32)
    for array in arrays:
        dtype = getattr(array, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            out = np.promote_types(out, jnp.zeros((), dtype).dtype)
    return out


def flat(x: Any, size: int, dtype: Any, what: str) -> Array:
    """One sample as a vector of `size` entries."""
    x = jnp.asarray(x)
    if x.size != size:
        raise ValueError(f"{what} has {size} entries; got a sample of shape {x.shape}: pass one with {size} entries.")
    return x.reshape(-1).astype(dtype)


def dot(a: Any, b: Any) -> Any:
    """The inner product in full precision on every device, on the host for numpy arrays."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a @ b
    return jnp.matmul(a, b, precision="highest")


@pytree
class Linear:
    """A reward that grows along one direction, r(x) = a.x + c.

    Attributes:
        a: [*shape], the gradient. A sample of another shape with as many entries is flattened.
        c: [], the reward of the zero sample.

    Shapes: [*shape] -> []; computed in at least float32.
    Cost: one inner product.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Linear(jnp.array([1.0, 2.0]), 0.5)(jnp.array([3.0, 4.0])))
        11.5
    """

    a: Any
    c: Scalar = 0.0

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        a = jnp.asarray(self.a)
        dtype = common_dtype(a, x0, self.c)
        x0 = flat(x0, a.size, dtype, "Linear's direction a")
        return dot(a.reshape(-1).astype(dtype), x0) + jnp.asarray(self.c, dtype)

    def quadratic(self) -> tuple[None, Any, Scalar]:
        """(None, a, c): no quadratic part."""
        return None, self.a, self.c


@pytree
class Quadratic:
    """A quadratic reward, r(x) = -x'Px/2 + b.x + c with any symmetric P.

    Attributes:
        precision: P, [N, N], symmetric, definite or not; or [] for that number times the identity.
        linear: b, [*shape] with N entries; or [] for a constant vector.
        c: [], the reward of the zero sample.

    Shapes: [*shape] -> []; computed in at least float32.
    Cost: one product of P and x, O(N^2); O(N) where P is a number.

    Raises:
        ValueError: if P is neither a number nor a symmetric square matrix of the size of b.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Quadratic(jnp.eye(2), jnp.array([1.0, 0.0]))(jnp.array([3.0, 4.0])))
        -9.5
    """

    precision: Any
    linear: Any = 0.0
    c: Scalar = 0.0

    def __post_init__(self) -> None:
        """Refuse a P that is not symmetric or does not fit b."""
        object.__setattr__(self, "precision", as_float(self.precision))
        shape, size = np.shape(self.precision), int(np.prod(np.shape(self.linear)))
        square = len(shape) == 2 and shape[0] == shape[1] and (np.shape(self.linear) == () or shape[0] == size)
        if shape != () and not square:
            raise ValueError(
                f"precision must be a number or a matrix [N, N] with N the number of entries of linear, got shapes "
                f"{shape} and {np.shape(self.linear)}."
            )
        if shape != () and is_concrete(self.precision):
            p = np.asarray(self.precision, np.float64)
            gap = np.abs(p - p.T).max()
            if not gap <= 1e-5 * np.abs(p).max():
                raise ValueError(
                    f"precision must be symmetric, got entries that differ by {gap:.3g}; use (P + P.T) / 2."
                )

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        p, b = jnp.asarray(self.precision), jnp.asarray(self.linear)
        dtype = common_dtype(p, b, x0, self.c)
        size = p.shape[0] if p.ndim else (b.size if b.ndim else jnp.size(x0))
        x0 = flat(x0, size, dtype, "Quadratic's form")
        p, b = p.astype(dtype), jnp.broadcast_to(b.reshape(-1).astype(dtype), (size,))
        bent = dot(p, x0) if p.ndim else p * x0
        return dot(b - 0.5 * bent, x0) + jnp.asarray(self.c, dtype)

    def quadratic(self) -> tuple[Any, Any, Scalar]:
        """(P, b, c)."""
        return self.precision, self.linear, self.c
