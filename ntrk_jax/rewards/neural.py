r"""Rewards given by a network, for instance a classifier: r(x) = logits(x)[label] or log softmax(logits(x))[label]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.rewards.analytic import common_dtype
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Sample

__all__ = ["Neural"]

_KINDS = ("logit", "log_prob")


@pytree
class Neural:
    """The output of a network for a clean sample, its parameters being leaves.

    Attributes:
        apply: (params, x0 [*shape]) -> logits [num_classes], or [] for a network that scores by itself. Static.
        params: the network's parameters, any pytree.
        label: [], the class whose logit is the reward; an integer leaf, so that it may be swept. None where the
            output is a scalar.
        kind: "logit", the raw logit, or "log_prob", the log of the softmax, which saturates at 0. Static.

    Shapes: [*shape] -> []; computed in the dtype of the network, returned in at least float32.
    Cost: one forward pass.

    Raises:
        ValueError: if the kind is unknown, or the output does not fit the label.

    Example:
        >>> import jax.numpy as jnp
        >>> reward = Neural(lambda w, x: w @ x, jnp.array([[1.0, 0.0], [0.0, 2.0]]), label=1)
        >>> float(reward(jnp.array([3.0, 4.0])))
        8.0
    """

    apply: Callable[[Any, Sample], Array] = static()
    params: Any
    label: Any = None
    kind: str = static(default="logit")

    def __post_init__(self) -> None:
        """Refuse an unknown kind."""
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}.")
        if self.label is None and self.kind == "log_prob":
            raise ValueError("kind 'log_prob' is that of a label; give label=, or leave kind to score by the output.")

    def __call__(self, x0: Sample, /) -> Array:
        """The reward of one sample."""
        out = jnp.asarray(self.apply(self.params, x0))
        out = out.astype(common_dtype(out))
        if out.ndim != (0 if self.label is None else 1):
            raise ValueError(
                "the network must return logits [num_classes] with a label and a scalar without one, got shape "
                f"{out.shape} and label {self.label}."
            )
        if self.label is None:
            return out
        if is_concrete(self.label) and not 0 <= int(self.label) < out.shape[0]:
            raise ValueError(f"label must lie in 0 ... {out.shape[0] - 1}, got {self.label}.")
        return (out if self.kind == "logit" else jax.nn.log_softmax(out))[self.label]
