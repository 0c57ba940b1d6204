r"""Noise-range experts: several networks, each asked about one range of times, as one network.

    u(x, t) = u_k(x, t)   where   edges_(k-1) <= t < edges_k

A value at high noise is smooth and nearly flat, at low noise it is the reward itself; networks that share nothing need
not compromise between the two. Their parameters are stacked, leaves [K, ...], and the one that is asked is indexed: a
call costs one network, never K, wherever a batch shares its time, as in sampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.training.guidance_net import Group, ValueLoss
from ntrk_jax.tree import pytree, replace, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["ExpertLoss", "Experts"]


@pytree
class Experts:
    """K networks of one build for K ranges of times: (params, x [*shape], t []) -> [].

    Attributes:
        apply: one network, (params, x, t) -> [], with `init(key) -> params`, such as `models.ValueMLP`. Static.
        edges: the K - 1 times between the ranges, increasing. Static.

    Shapes: params has the leaves of one network, [K, ...].
    Cost: one call of one network, given one time for a batch; a batch of times gathers a network for each.
    Departs from the paper: the experts are whole small networks, not additions to a large one, and are trained on
        draws with known rewards instead of on the outputs of a clean-data model.
    References: Go et al. 2023 (PPAP), "Towards Practical Plug-and-Play Diffusion Models", arXiv:2212.05973.

    Raises:
        ValueError: if the edges do not increase within (0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> two = Experts(lambda w, x, t: w * x.sum(), (0.5,))
        >>> [float(two(jnp.array([1.0, 10.0]), jnp.ones(3), t)) for t in (0.2, 0.5)]
        [3.0, 30.0]
    """

    apply: Callable[..., Any] = static()
    edges: tuple[float, ...] = static(default=(0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        """Refuse ranges that are none."""
        ends = (0.0, *self.edges, 1.0)
        if not all(a < b for a, b in itertools.pairwise(ends)):
            raise ValueError(f"edges must increase within (0, 1), got {self.edges}.")

    def init(self, key: Key) -> PyTree:
        """Random parameters of all experts, leaves [K, ...]."""
        return jax.vmap(self.apply.init)(jax.random.split(key, len(self.edges) + 1))  # type: ignore[attr-defined]

    def __call__(self, params: PyTree, x: Sample, t: Scalar) -> Array:
        """The answer of the expert for t."""
        t = jnp.asarray(t)
        index = jnp.sum(t >= jnp.asarray(self.edges, t.dtype), dtype=jnp.int32)
        return self.apply(jax.tree.map(lambda a: a[index], params), x, t)

    def spread(self, loss: ValueLoss) -> ExpertLoss:
        """The loss that trains every expert on its own range at once."""
        return ExpertLoss(loss, self)


@pytree
class ExpertLoss:
    """A loss of all experts: each on its own range of times, on its own share of a group's members.

    Attributes:
        loss: the loss of one network over the whole range [loss.low, loss.high]; its `apply` is not used.
        experts: the networks.

    Shapes: as the loss, with stacked parameters.
    Cost: as the loss, rounded up to one member an expert.
    Optimum: that of the loss, range by range.
    """

    loss: ValueLoss
    experts: Experts

    def __call__(self, key: Key, params: PyTree, sample: Group) -> Array:
        """The mean of the experts' losses."""
        edges, num = self.experts.edges, len(self.experts.edges) + 1
        size = self.loss.num_noised or sample.reward.shape[0]
        one = replace(self.loss, apply=self.experts.apply, num_noised=-(-size // num))
        dtype = jnp.result_type(sample.reward.dtype, jnp.float32)
        ends = jnp.stack([jnp.asarray(t, dtype) for t in (self.loss.low, *edges, self.loss.high)])

        def of(key: Key, own: PyTree, low: Array, high: Array) -> Array:
            return replace(one, low=low, high=high)(key, own, sample)

        return jnp.mean(jax.vmap(of)(jax.random.split(key, num), params, ends[:-1], ends[1:]))
