r"""Mixtures whose components share a covariance that is isotropic but for a few directions, for inverse problems.

    p = sum_k w_k N(mu_k, S),   S = variance (I - B'B) + B' diag(variances) B,   B [M, d] with orthonormal rows.

Noising keeps the form, V = alpha^2 S + sigma^2 I, and so does an observation y = H x + noise of M numbers: an isotropic
law (M = 0) becomes one with the row space of H as its directions, so that a posterior in d = 800 costs O((K + M) d) a
call instead of O(K d^2). With P = V^-1 and c the mean of the mixture, the components' log weights given x_t are

    log w_k + alpha (mu_k - c)'P (x - alpha (mu_k + c) / 2) + const,

differences only: nothing large cancels where alpha is small.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_temperature
from ntrk_jax.core import fused
from ntrk_jax.targets import tilted
from ntrk_jax.targets.checks import check_values
from ntrk_jax.targets.observed import LowRankValue, observe, seen_reward, value_of
from ntrk_jax.targets.tilted import all_concrete, contract
from ntrk_jax.tree import pytree
from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = ["LowRankMixture"]


class _Given(NamedTuple):
    """The law of x_0 given x_t: log_weights [K], means [K, d], and the variances of all components alike.

    anchor: [d], x / alpha where alpha > sigma, else 0; the means exactly, where there is no noise.
    """

    anchor: Array
    log_weights: Array
    means: Array
    variance: Array
    variances: Array


@pytree
class LowRankMixture:
    """A mixture of K Gaussians with one covariance, isotropic but for M directions.

    Attributes:
        weights: [K], not negative, summing to one.
        means: [K, d].
        variance: [], positive, of every direction that is not in `basis`.
        basis: [M, d] with orthonormal rows, or None for none.
        variances: [M], positive, along the rows of `basis`.

    Shapes: x is [d] or any [*shape] with d entries.
    Cost: O((K + M) d) a call for every method that takes one sample; the tilt O(d M^2), on the host.
    Dtype: answers that are samples have the dtype of x; scalars are at least float32.

    Raises:
        ValueError: if the shapes do not fit, the weights are not normalised, a variance is not positive or the rows of
            the basis are not orthonormal.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntrk_jax import rewards, targets
        >>> law = LowRankMixture(jnp.array([0.5, 0.5]), jnp.array([[-2.0, 0.0], [2.0, 0.0]]))
        >>> seen = targets.tilt(law, rewards.LinearGaussian(jnp.array([[2.0, 0.0]]), jnp.array([4.0]), 2.0))
        >>> [round(v, 6) for v in seen.mixture.variances.tolist()]  # 1 / (1 + 2^2 / 2^2)
        [0.5]
    """

    weights: Any
    means: Any
    variance: Scalar = 1.0
    basis: Any = None
    variances: Any = None

    def __post_init__(self) -> None:
        """Check the fields where they can be read, and fill in an empty basis."""
        shape = np.shape(self.means)
        if len(shape) != 2 or np.shape(self.weights) != shape[:1] or 0 in shape:
            raise ValueError(f"a mixture needs weights [K] and means [K, d], got {np.shape(self.weights)} and {shape}.")
        if (self.basis is None) != (self.variances is None):
            raise ValueError("LowRankMixture needs basis and variances together, or neither.")
        concrete = all_concrete((self.weights, self.means, self.variance, self.basis, self.variances))
        basis = np.zeros((0, shape[1])) if self.basis is None else self.basis
        variances = np.zeros(0) if self.variances is None else self.variances
        if np.shape(basis)[1:] != shape[1:] or np.shape(variances) != np.shape(basis)[:1]:
            raise ValueError(
                f"basis must be [M, {shape[1]}] and variances [M], got {np.shape(basis)} and {np.shape(variances)}."
            )
        if concrete:
            _check(self.weights, self.means, self.variance, basis, variances)
        dtype = jnp.result_type(float) if concrete else jnp.asarray(self.means).dtype
        fields = {"weights": self.weights, "means": self.means, "variance": self.variance}
        for name, value in {**fields, "basis": basis, "variances": variances}.items():
            object.__setattr__(self, name, jnp.asarray(value, dtype))

    @property
    def num_components(self) -> int:
        """The number of components, K."""
        return self.means.shape[0]

    @property
    def dim(self) -> int:
        """The number of dimensions, d."""
        return self.means.shape[1]

    def mean(self) -> Array:
        """The mean of the mixture, [d]."""
        return contract("k,ki->i", self.weights, self.means)

    @partial(fused, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        """Draws, [num, d]."""
        which, noise = jax.random.split(key)
        labels = jax.random.categorical(which, jnp.log(self.weights), shape=(num,))
        z = jax.random.normal(noise, (num, self.dim), self.means.dtype)
        return self.means[labels] + jax.vmap(lambda one: self._scale(one, self.variance, self.variances))(z)

    def log_prob(self, x: Sample) -> Array:
        """The log-density of one clean sample, []."""
        return self.log_prob_at(x, 1.0, 0.0)

    @fused
    def log_prob_at(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
        """The log-density of the law of x_t = alpha x_0 + sigma z at x, []."""
        x, alpha, sigma = self._inputs(x, alpha, sigma)
        wide, narrow = self._spreads(alpha, sigma)
        off = x - alpha * self.mean().astype(x.dtype)
        along = contract("mi,i->m", self.basis.astype(x.dtype), off)
        square = jnp.sum(off**2) / wide + jnp.sum(along**2 * (1.0 / narrow - 1.0 / wide))
        rank = self.basis.shape[0]
        log_det = (self.dim - rank) * jnp.log(2.0 * jnp.pi * wide) + jnp.sum(jnp.log(2.0 * jnp.pi * narrow))
        return jax.nn.logsumexp(self._relative(x, alpha, wide, narrow)) - 0.5 * (square + log_det)

    def denoise(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Sample:
        """The Tweedie mean E[x_0 | x_t = x], of the shape and dtype of x; exactly x / alpha where sigma = 0."""
        given = self.condition(x, alpha, sigma)
        mean = given.anchor + contract("k,ki->i", jnp.exp(given.log_weights), given.means - given.anchor[None])
        return tilted.like(mean, x)

    @fused
    def condition(self, x: Sample, alpha: Scalar, sigma: Scalar) -> _Given:
        """The law of x_0 given x_t = x, component by component."""
        x, alpha, sigma = self._inputs(x, alpha, sigma)
        wide, narrow = self._spreads(alpha, sigma)
        logs = jax.nn.log_softmax(self._relative(x, alpha, wide, narrow))
        variance, variances = self.variance.astype(x.dtype), self.variances.astype(x.dtype)
        clean = alpha > sigma
        safe = jnp.where(clean, alpha, jnp.ones_like(alpha))
        gains = [
            jnp.where(clean, -(sigma**2) / (safe * spread), alpha * own / spread)
            for own, spread in ((variance, wide), (variances, narrow))
        ]
        means = self.means.astype(x.dtype)
        off = x[None] - alpha * means
        along = contract("mi,ki->km", self.basis.astype(x.dtype), off)
        anchor = jnp.where(clean, x / safe, jnp.zeros_like(x))
        start = jnp.where(clean, anchor[None], means)
        moved = gains[0] * off + contract("km,mi->ki", along * (gains[1] - gains[0])[None], self.basis.astype(x.dtype))
        return _Given(anchor, logs, start + moved, sigma**2 * variance / wide, sigma**2 * variances / narrow)

    @partial(fused, static_argnames="num")
    def posterior_draws(self, key: Key, x: Sample, alpha: Scalar, sigma: Scalar, num: int) -> tuple[Array, Array]:
        """Draws of x_0 given x_t = x, [num, *shape], and log-weights [num]; as `GaussianMixture.posterior_draws`."""
        which, noise = jax.random.split(key)
        given = self.condition(x, alpha, sigma)
        fixed = jax.lax.stop_gradient(given.log_weights)
        labels = jax.random.categorical(which, fixed, shape=(num,))
        z = jax.random.normal(noise, (num, self.dim), given.means.dtype)
        draws = given.means[labels] + jax.vmap(lambda one: self._scale(one, given.variance, given.variances))(z)
        return draws.reshape(num, *jnp.shape(x)), (given.log_weights - fixed)[labels]

    def tilt(self, reward: Any, temperature: Scalar = 1.0) -> tilted.Tilted:
        """This law given an observation, p exp(r / temperature) / Z, in float64 on the host; see `targets.tilt`."""
        require_temperature(temperature)
        weights, means, basis, variances, log_z = observe(self, reward, temperature)
        law = LowRankMixture(weights, means, self.variance, basis, variances)
        return tilted.Tilted(law, jnp.asarray(log_z, self.means.dtype))

    def value_function(self, reward: Any, temperature: Scalar = 1.0) -> LowRankValue:
        """The function (x, alpha, sigma) -> [] that `targets.value` evaluates."""
        require_temperature(temperature, finite=True)
        return value_of(self, reward, temperature)

    def expected_reward(self, reward: Any) -> Array:
        """E[r(x)] for a `rewards.LinearGaussian`, []; see `targets.expected_reward`."""
        return jnp.asarray(seen_reward(self, reward), self.means.dtype)

    def _scale(self, z: Array, variance: Array, variances: Array) -> Array:
        """S^(1/2) z for a covariance with these variances, [d]."""
        basis, root = self.basis.astype(z.dtype), jnp.sqrt(variance)
        along = contract("mi,i->m", basis, z) * (jnp.sqrt(variances) - root)
        return root * z + contract("m,mi->i", along, basis)

    def _spreads(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        """alpha^2 s + sigma^2 outside of the basis [] and along it [M]."""
        one, own = self.variance.astype(alpha.dtype), self.variances.astype(alpha.dtype)
        return alpha**2 * one + sigma**2, alpha**2 * own + sigma**2

    def _relative(self, x: Array, alpha: Array, wide: Array, narrow: Array) -> Array:
        """Log w_k + log N(x; alpha mu_k, V) - log N(x; alpha c, V) with c the mixture's mean, [K]."""
        means, basis, centre = self.means.astype(x.dtype), self.basis.astype(x.dtype), self.mean().astype(x.dtype)
        left, right = means - centre[None], x[None] - 0.5 * alpha * (means + centre[None])
        inner = contract("ki,ki->k", left, right) / wide
        turned = contract("km,mi->ki", contract("ki,mi->km", left, basis) * (1.0 / narrow - 1.0 / wide)[None], basis)
        return jnp.log(self.weights.astype(x.dtype)) + alpha * (inner + contract("ki,ki->k", turned, right))

    def _inputs(self, x: Sample, alpha: Scalar, sigma: Scalar) -> tuple[Array, Array, Array]:
        """The sample as a vector and the coefficients, in the widest of the dtypes of x and of the mixture."""
        x, dtype = jnp.asarray(x), self.means.dtype
        if x.size != self.dim:
            raise ValueError(f"x must be one sample with {self.dim} entries, got shape {x.shape}; use jax.vmap.")
        if jnp.issubdtype(x.dtype, jnp.floating):
            dtype = np.promote_types(dtype, x.dtype)
        return x.reshape(-1).astype(dtype), jnp.asarray(alpha, dtype), jnp.asarray(sigma, dtype)


def _check(weights: Any, means: Any, variance: Any, basis: Any, variances: Any) -> None:
    """Refuse weights, variances and a basis that are none."""
    check_values(np.asarray(weights, np.float64), np.asarray(means, np.float64), np.ones((1, 1, 1)))
    if not (np.all(np.asarray(variance) > 0) and np.all(np.asarray(variances) > 0)):
        raise ValueError(f"variance and variances must be positive, got {variance} and {variances}.")
    gap = np.abs(np.asarray(basis, np.float64) @ np.asarray(basis, np.float64).T - np.eye(len(basis)))
    if gap.size and gap.max() > 1e-4:
        raise ValueError(f"the rows of basis must be orthonormal, got an error of {gap.max():.3g}; use a QR.")
