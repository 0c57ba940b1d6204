r"""Rewards made of rewards, and rewards that live outside JAX.

Weighted: r(x) = sum_i w_i r_i(x)      Clipped: r(x) = min(max(r_0(x), low), high)      External: r(x) = f(numpy x)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.rewards.analytic import common_dtype
from ntrk_jax.tree import as_float, is_concrete, pytree, static
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["Clipped", "External", "Weighted"]


@pytree
class Weighted:
    """A weighted sum of rewards.

    Attributes:
        rewards: a tuple of rewards.
        weights: as many numbers (a tuple or [num]), in the units the sum should have.

    Shapes: [*shape] -> [].
    Cost: one call of each reward.

    Raises:
        ValueError: if there are not as many weights as rewards, and at least one.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntrk_jax.rewards import Linear
        >>> both = Weighted((Linear(jnp.ones(2)), Linear(jnp.array([1.0, -1.0]))), (1.0, 0.5))
        >>> float(both(jnp.array([3.0, 1.0])))
        5.0
    """

    rewards: tuple
    weights: Any

    def __post_init__(self) -> None:
        """Refuse weights that do not match."""
        if not isinstance(self.rewards, tuple | list) or (
            not isinstance(self.weights, tuple | list) and not np.ndim(self.weights)
        ):
            raise TypeError(
                "Weighted needs a tuple of rewards and as many weights: Weighted((first, second), (1.0, 0.5))."
            )
        if type(self.weights) in (tuple, list):
            object.__setattr__(self, "weights", type(self.weights)(map(as_float, self.weights)))
        num = len(self.weights) if isinstance(self.weights, (tuple, list)) else np.shape(self.weights)[0]
        if num != len(self.rewards) or num == 0:
            raise ValueError(f"Weighted needs as many weights as rewards, got {num} and {len(self.rewards)}.")

    @property
    def differentiable(self) -> bool:
        """Whether every reward has a gradient."""
        return all(getattr(reward, "differentiable", True) for reward in self.rewards)

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        parts = [jnp.asarray(reward(x0)) for reward in self.rewards]
        dtype = common_dtype(*parts)
        weights = [jnp.asarray(self.weights[i], dtype) for i in range(len(parts))]
        return jnp.sum(jnp.stack([w * part.astype(dtype) for w, part in zip(weights, parts, strict=True)]))

    def quadratic(self) -> tuple[Any, Any, Any]:
        """(P or None, b, c) of the sum, where every reward has one.

        Raises:
            TypeError: if one of the rewards is neither linear nor quadratic.
        """
        total: tuple[Any, Any, Any] = (None, 0.0, 0.0)
        for i, reward in enumerate(self.rewards):
            if not hasattr(reward, "quadratic"):
                raise TypeError(f"closed forms need linear or quadratic rewards, got {type(reward).__name__}.")
            total = _add(total, self.weights[i], reward.quadratic())
        return total


def _add(total: tuple[Any, Any, Any], weight: Any, part: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """The sum total + weight * part, with P widened to a matrix where one of them is; on the host where it can be."""
    given = [x for x in (*total, weight, *part) if x is not None]
    xp = np if all(map(is_concrete, given)) else jnp
    (p, b, c), (q, d, e) = ((None if part[0] is None else _number(xp, part[0]), *part[1:]) for part in (total, part))
    w, b, c, d, e = (_number(xp, x) for x in (weight, b, c, d, e))
    if q is not None:
        q = w * q
        size = max(np.shape(q)[:1] + (() if p is None else np.shape(p)[:1]), default=0)
        p = q if p is None else _square(xp, p, size) + _square(xp, q, size)
    b, d = (v.reshape(-1) if v.ndim else v for v in (b, d))
    return p, b + w * d, c + w * e


def _number(xp: Any, x: Any) -> Any:
    return np.asarray(x, np.float64) if xp is np else jnp.asarray(x)


def _square(xp: Any, p: Any, size: int) -> Any:
    return p * xp.eye(size, dtype=p.dtype) if size and p.ndim == 0 else p


@pytree
class Clipped:
    """Another reward cut off below and above; its gradient is zero outside.

    Attributes:
        reward: the reward. low, high: [], in its units.

    Shapes: [*shape] -> [].
    Cost: one call of the reward.

    Raises:
        ValueError: if low is not below high.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntrk_jax.rewards import Linear
        >>> float(Clipped(Linear(jnp.ones(2)), -1.0, 1.0)(jnp.array([3.0, 1.0])))
        1.0
    """

    reward: Any
    low: Scalar = -jnp.inf
    high: Scalar = jnp.inf

    def __post_init__(self) -> None:
        """Refuse an empty interval."""
        if is_concrete(self.low) and is_concrete(self.high) and not np.all(np.less(self.low, self.high)):
            raise ValueError(f"Clipped needs low < high, got {self.low} and {self.high}.")

    @property
    def differentiable(self) -> bool:
        """Whether the reward has a gradient."""
        return getattr(self.reward, "differentiable", True)

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        value = jnp.asarray(self.reward(x0))
        value = value.astype(common_dtype(value))  # a count has bounds that are no whole numbers
        return jnp.clip(value, jnp.asarray(self.low, value.dtype), jnp.asarray(self.high, value.dtype))


@pytree
class External:
    """A reward computed on the host by any Python function, without a gradient.

    The call goes through `jax.pure_callback`, so it works inside jit, vmap and scan, and the function must give the
    same answer for the same sample.

    Attributes:
        function: a numpy sample [*shape] -> a number; with batched=True, [B, *shape] -> [B]. Static.
        batched: whether the function takes a batch; one call is then made for a whole vmap.

    Shapes: [*shape] -> [], float32.
    Cost: one transfer to the host and one call a sample (a batch where batched).
    Gradient: none (`differentiable` is False); methods that need one refuse this reward when they are built.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> reward = External(lambda x: x.max())
        >>> jax.vmap(reward)(jnp.array([[1.0, 3.0], [5.0, 4.0]])).tolist()
        [3.0, 5.0]
    """

    function: Callable[[np.ndarray], Any] = static()
    batched: bool = static(default=False)
    differentiable = False

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        shape = jnp.shape(x0)

        def on_host(x: Any) -> np.ndarray:
            x = np.asarray(x)
            lead = x.shape[: x.ndim - len(shape)]
            given = self.function(x.reshape(-1, *shape)) if self.batched else self.function(x)
            if given is None:
                raise ValueError("the function of External returned None; has it a return?")
            out = np.asarray(given, np.float32)
            if out.size != int(np.prod(lead)):
                what = f"{int(np.prod(lead))} numbers for as many samples" if self.batched else "one number"
                raise ValueError(f"the function of External must return {what} {shape}, got shape {out.shape}.")
            return out.reshape(lead)

        result = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(on_host, result, x0, vmap_method="expand_dims" if self.batched else "sequential")
