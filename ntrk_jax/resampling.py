r"""Resampling: a weighted population becomes an equally weighted one of the same size.

Particle i gets n_i children with E[n_i] = K w_i; the schemes differ in how n_i varies around its mean.

| scheme | n_i | variance | work |
|---|---|---|---|
| `Multinomial` | K independent draws | highest | K searches |
| `Residual` | floor(K w_i), the rest by draws | lower | K searches |
| `Stratified` | one draw in each of K equal strata | lower | K searches |
| `Systematic` | one draw shared by the strata | lowest as a rule, no guarantee | K searches |
| `SSP` | floor or ceiling, negatively associated | low, consistent for every order of the particles | K scan steps |

Weights live in log space, and carry the evidence: resampling sets all of them to their log-mean-exp, so that at the end
of a run their log-mean-exp estimates log Z. A weight that is not finite is a dead particle; where all are dead every
particle is its own child. The whole particle, with all that was computed for it, is re-indexed at once.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import refuse_class
from ntrk_jax.core import Step, algebra_dtype, fused
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Key, Scalar
from ntrk_jax.varying import vary

__all__ = [
    "SSP", "Multinomial", "Residual", "Scheme", "Spaced", "Stratified", "Systematic", "WhenESS", "ess", "log_mean_exp",
    "reindex", "systematic",
]  # fmt: skip


@runtime_checkable
class Scheme(Protocol):
    """Log-weights [K] -> the parent [K] of each new particle."""

    def ancestors(self, key: Key, log_weights: Array) -> Array: ...


def alive(log_weights: Array) -> Array:
    """The log-weights, in at least float32, with every one that is not finite at -inf."""
    log_weights = log_weights.astype(algebra_dtype(log_weights))
    return jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)


@fused
def log_mean_exp(log_weights: Array) -> Array:
    """log(mean(exp(log_weights))), []: at the end of a run the estimate of log Z. Not finite weights count as zero."""
    return jax.nn.logsumexp(alive(log_weights)) - float(np.log(log_weights.shape[0]))


@fused
def ess(log_weights: Array) -> Array:
    """The effective sample size (sum w)^2 / sum w^2, []: K for equal weights, 1 for one that carries all, 0 for none.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(ess(jnp.log(jnp.array([0.5, 0.5, 1e-9])))), 4)
        2.0
    """
    shares = _probabilities(log_weights)
    some = jnp.any(jnp.isfinite(log_weights))
    return jnp.where(some, 1.0 / jnp.sum(shares * shares), jnp.zeros((), shares.dtype))


def reindex(tree: Any, log_weights: Array, ancestors: Array) -> tuple[Any, Array]:
    """Every leaf [K, ...] of the particles at their parents, and the common log-weight."""
    level = jnp.broadcast_to(log_mean_exp(log_weights), log_weights.shape)
    return jax.tree.map(lambda a: a[ancestors], tree), level.astype(log_weights.dtype)


@fused
def _probabilities(log_weights: Array) -> Array:
    """Normalised weights [K]; uniform where all are dead."""
    safe = alive(log_weights)
    top = jnp.max(safe)
    weights = jnp.exp(safe - jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top)))
    weights = jnp.where(jnp.isfinite(top), weights, jnp.ones_like(weights))
    return weights / jnp.sum(weights)


@fused
def _invert(probabilities: Array, positions: Array) -> Array:
    """The particle whose share of [0, 1) holds each position; never one of weight zero."""
    edges = jnp.cumsum(probabilities)
    found = jnp.searchsorted(edges / edges[-1], positions, side="right")
    size = probabilities.shape[0]
    last = size - 1 - jnp.argmax(probabilities[::-1] > 0)
    return jnp.minimum(found.astype(jnp.int32), last.astype(jnp.int32))


def systematic(key: Key, log_weights: Array, num: int) -> Array:
    """Rows [num] drawn from log_weights [K] evenly, ascending: row i floor(num w_i) or floor(num w_i) + 1 times."""
    offset = jax.random.uniform(key, (), algebra_dtype(log_weights))
    return _invert(_probabilities(log_weights), (jnp.arange(num, dtype=offset.dtype) + offset) / num)


_ROUNDING = 16


def _parents(scheme: Scheme, key: Key, log_weights: Array) -> Array:
    """The scheme's parents [K]; each particle its own where all are dead."""
    parents = scheme.ancestors(key, log_weights)
    some = jnp.any(alive(log_weights) > -jnp.inf)
    return jnp.where(some, parents, jnp.arange(parents.shape[0], dtype=parents.dtype))


class _Resampling:
    """A scheme is a resampler by itself."""

    ancestors: Any

    def __call__(self, key: Key, log_weights: Array, tree: Any) -> tuple[Any, Array, Array]:
        """Resample: the re-indexed tree, equal log-weights, the parents."""
        parents = _parents(self, key, log_weights)
        return *reindex(tree, log_weights, parents), parents


@pytree
class Multinomial(_Resampling):
    """K independent draws in proportion to the weights.

    Cost: K searches. References: Gordon, Salmond, Smith 1993.
    """

    @fused
    def ancestors(self, key: Key, log_weights: Array) -> Array:
        """The parent of each new particle, [K]."""
        positions = jax.random.uniform(key, log_weights.shape, algebra_dtype(log_weights))
        return _invert(_probabilities(log_weights), positions)


@pytree
class Stratified(_Resampling):
    """One independent draw in each of K equal strata.

    Cost: K searches. References: Kitagawa 1996.
    """

    @fused
    def ancestors(self, key: Key, log_weights: Array) -> Array:
        """The parent of each new particle, [K], ascending."""
        num = log_weights.shape[0]
        inside = jax.random.uniform(key, (num,), algebra_dtype(log_weights))
        return _invert(_probabilities(log_weights), (jnp.arange(num, dtype=inside.dtype) + inside) / num)


@pytree
class Systematic(_Resampling):
    """K evenly spaced positions with one random offset: n_i is floor(K w_i) or floor(K w_i) + 1.

    Cost: one draw and K searches. References: Carpenter, Clifford, Fearnhead 1999.
    """

    @fused
    def ancestors(self, key: Key, log_weights: Array) -> Array:
        """The parent of each new particle, [K], ascending."""
        return systematic(key, log_weights, log_weights.shape[0])


@pytree
class Residual(_Resampling):
    """Each particle gets floor(K w_i) children; the remaining places are drawn from the remainders.

    Cost: K searches. References: Liu, Chen 1998.
    """

    @fused
    def ancestors(self, key: Key, log_weights: Array) -> Array:
        """The parent of each new particle, [K]."""
        num = log_weights.shape[0]
        shares = _probabilities(log_weights) * num
        whole = jnp.floor(shares + _ROUNDING * jnp.finfo(shares.dtype).eps * jnp.maximum(shares, 1.0))
        rest = jnp.maximum(shares - whole, 0.0)
        rest = jnp.where(jnp.sum(rest) > 0, rest, jnp.ones_like(rest))
        drawn = _invert(rest / jnp.sum(rest), jax.random.uniform(key, (num,), algebra_dtype(log_weights)))
        counts = whole.astype(jnp.int32)
        sure = jnp.repeat(jnp.arange(num, dtype=jnp.int32), counts, total_repeat_length=num)
        return jnp.where(jnp.arange(num) < jnp.sum(counts), sure, drawn)


@pytree
class SSP(_Resampling):
    """The Srinivasan sampling process: n_i is the floor or the ceiling of K w_i, negatively associated.

    Two particles with remainders a and b are opened at a time and mass is moved from one to the other, in a direction
    that keeps both means, until one of them is whole; it is settled, and the next particle is opened.

    Cost: K - 1 sequential steps of a scan. References: Gerber, Chopin, Whiteley 2019, arXiv:1708.04221, Algorithm 1.
    """

    @fused
    def ancestors(self, key: Key, log_weights: Array) -> Array:
        """The parent of each new particle, [K], ascending."""
        num = log_weights.shape[0]
        shares = _probabilities(log_weights) * num
        whole = jnp.floor(shares)
        rest = shares - whole
        coins = jax.random.uniform(key, (num,), algebra_dtype(log_weights))

        def settle(carry: tuple[Array, Array], item: tuple) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            (i, a), (j, b, coin) = carry, item
            up, down = jnp.minimum(1.0 - a, b), jnp.minimum(a, 1.0 - b)
            rises = coin * (up + down) < down  # a + up with probability down / (up + down)
            full = jnp.where(rises, 1.0 - a <= b, a > 1.0 - b)  # is the one that is settled whole at 1, or at 0?
            keeps = jnp.where(rises, 1.0 - a > b, a > 1.0 - b)  # does i stay open?
            left = jnp.where(full, a + b - 1.0, a + b)
            settled = jnp.where(keeps, j, i)
            return (jnp.where(keeps, i, j), left), (settled, full.astype(jnp.int32))

        indices = jnp.arange(num, dtype=jnp.int32)
        opened = vary((indices[0], rest[0]), (rest, coins))
        (last, _), (settled, full) = jax.lax.scan(settle, opened, (indices[1:], rest[1:], coins[1:]))
        counts = whole.astype(jnp.int32).at[settled].add(full)
        counts = counts.at[last].add(jnp.maximum(num - jnp.sum(counts, dtype=jnp.int32), 0))
        return jnp.repeat(indices, counts, total_repeat_length=num)


@pytree
class WhenESS:
    """Resample only where the effective sample size is below a share of the population; else carry the weights.

    Attributes:
        scheme: how to resample.
        threshold: the share of K, in [0, 1]; 0 never resamples, 1 does at every unequal weight.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> weights = jnp.log(jnp.array([0.3, 0.4, 0.3]))
        >>> WhenESS(Systematic(), 0.5)(jax.random.key(0), weights, jnp.arange(3))[2].tolist()
        [0, 1, 2]
    """

    scheme: Scheme
    threshold: Scalar = 0.5

    def __post_init__(self) -> None:
        """Refuse a class for a scheme, and a share outside [0, 1]."""
        refuse_class("scheme", self.scheme)
        if is_concrete(self.threshold) and not np.all((np.asarray(self.threshold) >= 0) & (self.threshold <= 1)):
            raise ValueError(f"threshold is a share of the population in [0, 1], got {self.threshold}.")

    def __call__(self, key: Key, log_weights: Array, tree: Any) -> tuple[Any, Array, Array]:
        """Resample or carry: the tree, the log-weights, the parents (each its own where carried)."""
        num = log_weights.shape[0]
        equal = _ROUNDING * jnp.finfo(algebra_dtype(log_weights)).eps  # lost of equal weights to rounding
        wanted = ess(log_weights) < self.threshold * num * (1.0 - equal)
        parents = _parents(self.scheme, key, log_weights)
        parents = jnp.where(wanted, parents, jnp.arange(num, dtype=parents.dtype))
        moved, level = reindex(tree, log_weights, parents)
        return moved, jnp.where(wanted, level, log_weights), parents


@pytree
class Spaced:
    """When to resample: at evenly spaced times inside a window, whatever the number of steps.

    A row t -> s counts if a multiple of `interval` lies in [s, t) and low <= s <= high.

    Attributes:
        interval: between two times. low, high: of the window; times are in [0, 1], 1 is noise. They are those of the
            schedule: on `EDM`, whose time is its noise level, all that tells of x0 happens below 0.1.

    Raises:
        ValueError: if the interval is not positive, or low above high.
    """

    interval: Scalar = 0.2
    low: Scalar = 0.2
    high: Scalar = 0.8

    def __post_init__(self) -> None:
        """Refuse what never resamples."""
        if is_concrete(self.interval) and not np.all(np.asarray(self.interval) > 0):
            raise ValueError(f"interval must be positive, got {self.interval}.")
        if is_concrete(self.low) and is_concrete(self.high) and not np.all(np.less_equal(self.low, self.high)):
            raise ValueError(f"low must be at most high, got {self.low} and {self.high}.")

    def __call__(self, step: Step) -> Array:
        """Whether to resample after this row, []."""
        slack = 1e-5
        crossed = jnp.ceil(step.t / self.interval - slack) > jnp.ceil(step.s / self.interval - slack)
        return crossed & (step.s >= self.low - slack) & (step.s <= self.high + slack)
