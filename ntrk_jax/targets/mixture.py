r"""Gaussian mixtures with full covariances: everything at every noise level in closed form.

With p = sum_k w_k N(mu_k, S_k) and x_t = alpha x_0 + sigma z, the noised law is sum_k w_k N(alpha mu_k, V_k),
V_k = alpha^2 S_k + sigma^2 I, and given x_t and k the law of x_0 is Gaussian. The eigenvectors Q_k of S_k are
those of V_k at every noise level, so one decomposition when the mixture is made leaves O(K d^2) work a call. With
eigenvalues s_k of S_k, v_k = alpha^2 s_k + sigma^2 and y_k = Q_k'(x_t - alpha mu_k),

    log N_k = -sum(y_k^2 / v_k + log v_k) / 2 + const      E[x_0 | x_t, k] = mu_k + Q_k (alpha s_k y_k / v_k)
    score   = -sum_k w_k(x_t) Q_k (y_k / v_k)              Cov[x_0 | x_t, k] = Q_k diag(sigma^2 s_k / v_k) Q_k'

Two rearrangements keep float32 accurate: log N_k is taken relative to one common Gaussian of variance
max(alpha^2 s + sigma^2), so that weights are exactly the prior's where alpha = 0; and where alpha > sigma the mean is
(x_t + sigma^2 score) / alpha, so that it is exactly x_t where sigma = 0.
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
from ntrk_jax.targets.checks import check_positive, check_shapes, check_values
from ntrk_jax.targets.tilted import all_concrete, contract
from ntrk_jax.tree import derived, pytree
from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = ["GaussianMixture"]


class Conditioned(NamedTuple):
    """The law of x_0 given x_t, component by component in its eigenbasis; x [d], the others [K, d] or []."""

    x: Array
    log_weights: Array
    y: Array
    gain: Array
    left: Array
    spread: Array
    clean: Array
    safe_alpha: Array


@pytree
class GaussianMixture:
    """A mixture of K Gaussians in d dimensions, exactly solvable at every noise level.

    Attributes:
        weights: [K], not negative, summing to one; traced ones are divided by their sum.
        means: [K, d].
        covs: [K, d, d], symmetric and positive definite.

    Shapes: x is [d] or any [*shape] with d entries (flattened inside, restored in the answer).
    Cost: one eigendecomposition O(K d^3) when made; O(K d^2) for every method that takes one sample.
    Derivatives: build or `nk.replace` it inside the function; none in covs where eigenvalues coincide (eigh).
    Dtype: answers that are samples have the dtype of x; scalars are at least float32.

    Raises:
        ValueError: if shapes do not fit, weights do not sum to one or a cov is not symmetric positive definite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> target = GaussianMixture(jnp.array([0.5, 0.5]), jnp.array([[-2.0], [2.0]]), jnp.full((2, 1, 1), 0.25))
        >>> target.sample(jax.random.key(0), 3).shape
        (3, 1)
        >>> round(float(target.denoise(jnp.array([1.0]), 0.0, 1.0)[0]), 6)  # pure noise says nothing: the mean
        0.0
    """

    weights: Any
    means: Any
    covs: Any
    logits: Any = derived()
    eigenvalues: Any = derived()
    eigenvectors: Any = derived()

    def __post_init__(self) -> None:
        """Check shapes and values, and decompose the covariances (in float64 where they are concrete)."""
        fields = (self.weights, self.means, self.covs)
        concrete = all_concrete(fields)
        dtype = jnp.result_type(float) if concrete else jnp.asarray(self.means).dtype
        xp, kind = (np, np.float64) if concrete else (jnp, dtype)
        weights, means, covs = (xp.asarray(f, kind) for f in fields)
        check_shapes(weights.shape, means.shape, covs.shape)
        if concrete:
            check_values(weights, means, covs)
        values, vectors = xp.linalg.eigh(0.5 * (covs + xp.swapaxes(covs, 1, 2)))
        if concrete:
            check_positive(values)
        with np.errstate(divide="ignore"):
            logits = xp.log(weights / weights.sum())
        _fill(self, dtype, weights if concrete else weights / weights.sum(), means, covs, logits, values, vectors)

    @property
    def num_components(self) -> int:
        """The number of components, K."""
        return self.means.shape[-2]

    @property
    def dim(self) -> int:
        """The number of dimensions, d."""
        return self.means.shape[-1]

    def mean(self) -> Array:
        """The mean of the mixture, [d]."""
        return contract("k,ki->i", self.weights, self.means)

    def cov(self) -> Array:
        """The covariance of the mixture, [d, d]."""
        off = self.means - self.mean()[None]
        within = contract("k,kij->ij", self.weights, self.covs)
        return within + contract("k,ki,kj->ij", self.weights, off, off)

    @partial(fused, static_argnames="num")
    def sample(self, key: Key, num: int) -> Array:
        """Draws, [num, d], in the dtype of the mixture."""
        which, noise = jax.random.split(key)
        labels = jax.random.categorical(which, self.logits, shape=(num,))
        z = jax.random.normal(noise, (num, self.dim), self.means.dtype)
        return _draw(labels, z, self.means, self.eigenvalues, self.eigenvectors)

    def log_prob(self, x: Sample) -> Array:
        """The log-density of one clean sample, []."""
        return self.log_prob_at(x, 1.0, 0.0)

    @fused
    def log_prob_at(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
        """The log-density of the law of x_t = alpha x_0 + sigma z at x, []."""
        x, alpha, sigma = self._inputs(x, alpha, sigma)
        centre, top = self.mean().astype(x.dtype), jnp.max(self.eigenvalues).astype(x.dtype)
        spread = alpha**2 * top + sigma**2
        common = jnp.sum((x - alpha * centre) ** 2) / spread + self.dim * jnp.log(2.0 * jnp.pi * spread)
        parts = self.relative_log_density(x, alpha, sigma, centre, top)
        return jax.nn.logsumexp(self.logits.astype(x.dtype) + parts) - 0.5 * common

    def denoise(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Sample:
        """The Tweedie mean E[x_0 | x_t = x], of the shape and dtype of x; exactly x / alpha where sigma = 0."""
        given = self.condition(x, alpha, sigma)
        weights = jnp.exp(given.log_weights)
        vectors = self.eigenvectors.astype(given.x.dtype)
        prior = contract("k,ki->i", weights, self.means.astype(given.x.dtype))
        moved = contract("kij,kj->i", vectors, weights[:, None] * given.gain * given.y)
        return tilted.like(jnp.where(given.clean, given.x / given.safe_alpha, prior) + moved, x)

    def score(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Sample:
        """The gradient of `log_prob_at` in x, of the shape and dtype of x."""
        given = self.condition(x, alpha, sigma)
        vectors = self.eigenvectors.astype(given.x.dtype)
        pull = jnp.exp(given.log_weights)[:, None] * given.y / given.spread
        return tilted.like(-contract("kij,kj->i", vectors, pull), x)

    def posterior(self, x: Sample, alpha: Scalar, sigma: Scalar) -> GaussianMixture:
        """The law of x_0 given x_t = x, itself a mixture (degenerate where sigma = 0). Cost: O(K d^3)."""
        given = self.condition(x, alpha, sigma)
        vectors = self.eigenvectors.astype(given.x.dtype)
        means = self._posterior_means(given)
        covs = contract("kij,kj,klj->kil", vectors, given.left, vectors)
        out, logs = object.__new__(GaussianMixture), given.log_weights
        _fill(out, given.x.dtype, jnp.exp(logs), means, covs, logs, given.left, vectors)
        return out

    @partial(fused, static_argnames="num")
    def posterior_draws(self, key: Key, x: Sample, alpha: Scalar, sigma: Scalar, num: int) -> tuple[Array, Array]:
        """Draws of x_0 given x_t = x, [num, *shape], and log-weights [num] that carry what draws cannot.

        The draws move with x inside their component; the log-weights are 0, and their gradient is that of the
        component's weight, so that log sum exp(log_weight + f(draw)) has the right gradient in x.
        """
        which, noise = jax.random.split(key)
        given = self.condition(x, alpha, sigma)
        fixed = jax.lax.stop_gradient(given.log_weights)
        labels = jax.random.categorical(which, fixed, shape=(num,))
        z = jax.random.normal(noise, (num, self.dim), given.x.dtype)
        draws = _draw(labels, z, self._posterior_means(given), given.left, self.eigenvectors.astype(given.x.dtype))
        return draws.reshape(num, *jnp.shape(x)), (given.log_weights - fixed)[labels]

    def tilt(self, reward: Any, temperature: Scalar = 1.0) -> tilted.Tilted:
        """This law tilted by a linear or quadratic reward; see `targets.tilt`."""
        require_temperature(temperature)
        means, covs, log_z, eigen = self._tilted_parts(reward, temperature)
        xp = np if isinstance(means, np.ndarray) else jnp
        logits = xp.asarray(self.logits, means.dtype) + log_z
        top = xp.max(logits)
        total = top + xp.log(xp.sum(xp.exp(logits - top)))
        weights = xp.exp(logits - total)
        if eigen is None:
            mixture = GaussianMixture(weights, means, covs)
        else:
            mixture = object.__new__(GaussianMixture)
            _fill(mixture, self.means.dtype, weights, means, covs, logits - total, *eigen)
        return tilted.Tilted(mixture, jnp.asarray(total, self.means.dtype))

    def value_function(self, reward: Any, temperature: Scalar = 1.0) -> Any:
        """The function (x, alpha, sigma) -> [] that `targets.value` evaluates, with its tables computed once."""
        require_temperature(temperature, finite=True)
        dtype = self.means.dtype
        p, b, c = tilted.quadratic_of(reward, self.dim, dtype, jnp)
        if p is None:
            projections = contract("kij,i->kj", self.eigenvectors, b)
            return tilted.LinearValue(self, b, projections, c, temperature)
        means, covs, log_z, _ = self._tilted_parts(reward, temperature)
        star = GaussianMixture(np.asarray(self.weights) if all_concrete(self) else self.weights, means, covs)
        return tilted.QuadraticValue(self, star, jnp.asarray(log_z, dtype), temperature)

    def expected_reward(self, reward: Any) -> Array:
        """E[r(x)] in closed form, []; see `targets.expected_reward`."""
        concrete = all_concrete(self, reward.quadratic() if hasattr(reward, "quadratic") else ())
        xp, dtype = (np, np.float64) if concrete else (jnp, self.means.dtype)
        p, b, c = tilted.quadratic_of(reward, self.dim, dtype, xp)
        weights, means, covs = (xp.asarray(a, dtype) for a in (self.weights, self.means, self.covs))
        each = contract("ki,i->k", means, b) + c
        if p is not None:
            p = p * xp.eye(self.dim, dtype=dtype) if p.ndim == 0 else p
            each = each - 0.5 * (contract("ki,ij,kj->k", means, p, means) + contract("ij,kij->k", p, covs))
        return jnp.asarray(contract("k,k->", weights / weights.sum(), each), self.means.dtype)

    @jax.jit
    def condition(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Conditioned:
        """What is known of x_0 given x_t = x, component by component."""
        x, alpha, sigma = self._inputs(x, alpha, sigma)
        values = self.eigenvalues.astype(x.dtype)
        centre, top = self.mean().astype(x.dtype), jnp.max(values)
        logs = self.logits.astype(x.dtype) + self.relative_log_density(x, alpha, sigma, centre, top)
        spread, y, clean = alpha**2 * values + sigma**2, self._rotate(x, alpha), alpha > sigma
        safe = jnp.where(clean, alpha, jnp.ones_like(alpha))
        gain = jnp.where(clean, -(sigma**2) / (safe * spread), alpha * values / spread)
        return Conditioned(x, jax.nn.log_softmax(logs), y, gain, sigma**2 * values / spread, spread, clean, safe)

    @jax.jit
    def relative_log_density(self, x: Sample, alpha: Scalar, sigma: Scalar, centre: Array, top: Array) -> Array:
        """Each log N(x; alpha mu_k, V_k) - log N(x; alpha centre, (alpha^2 top + sigma^2) I), [K].

        `top` is at least every eigenvalue; what is common to two laws cancels if they share `centre` and `top`.
        """
        x, alpha, sigma = self._inputs(x, alpha, sigma)
        values, top, centre = (a.astype(x.dtype) for a in (self.eigenvalues, top, centre))
        off, x_off = self.means.astype(x.dtype) - centre[None], x - alpha * centre
        spread, widest = alpha**2 * values + sigma**2, alpha**2 * top + sigma**2
        moved = (alpha**2 * jnp.sum(off**2, -1) - 2.0 * alpha * contract("ki,i->k", off, x_off)) / widest
        narrow = jnp.sum(self._rotate(x, alpha) ** 2 * (alpha**2 * (top - values) / (spread * widest)), -1)
        return -0.5 * (moved + narrow + jnp.sum(jnp.log(spread / widest), -1))

    def _posterior_means(self, given: Conditioned) -> Array:
        """E[x_0 | x_t, k], [K, d]."""
        start = jnp.where(given.clean, (given.x / given.safe_alpha)[None], self.means.astype(given.x.dtype))
        return start + contract("kij,kj->ki", self.eigenvectors.astype(given.x.dtype), given.gain * given.y)

    def _rotate(self, x: Array, alpha: Array) -> Array:
        """y_k = Q_k'(x - alpha mu_k), [K, d]."""
        off = x[None] - alpha * self.means.astype(x.dtype)
        return contract("kij,ki->kj", self.eigenvectors.astype(x.dtype), off)

    def _inputs(self, x: Sample, alpha: Scalar, sigma: Scalar) -> tuple[Array, Array, Array]:
        """The sample as a vector and the coefficients, in the widest of the dtypes of x and of the mixture."""
        x = jnp.asarray(x)
        if x.size != self.dim:
            raise ValueError(
                f"x must be one sample with {self.dim} entries, got shape {x.shape}; use jax.vmap for a batch."
            )
        dtype = self.means.dtype
        if jnp.issubdtype(x.dtype, jnp.floating):
            dtype = np.promote_types(dtype, x.dtype)
        return x.reshape(-1).astype(dtype), jnp.asarray(alpha, dtype), jnp.asarray(sigma, dtype)

    def _tilted_parts(self, reward: Any, temperature: Scalar) -> tuple[Any, Any, Any, Any]:
        """Means, covariances, log Z of the components, and their eigenvalues and -vectors where unchanged."""
        concrete = all_concrete(self, reward.quadratic() if hasattr(reward, "quadratic") else (), temperature)
        xp, dtype = (np, np.float64) if concrete else (jnp, self.means.dtype)
        p, b, c = tilted.quadratic_of(reward, self.dim, dtype, xp)
        means, covs = xp.asarray(self.means, dtype), xp.asarray(self.covs, dtype)
        values, vectors = xp.asarray(self.eigenvalues, dtype), xp.asarray(self.eigenvectors, dtype)
        beta = xp.asarray(temperature, dtype)
        if p is not None:
            roots = vectors * xp.sqrt(values)[:, None, :]
            return *tilted.tilt_gaussians(means, roots, p, b, c, beta), None
        shift = contract("kij,j->ki", covs, b) / beta
        log_z = (contract("ki,i->k", means + 0.5 * shift, b) + c) / beta
        return means + shift, covs, log_z, (values, vectors)


def _draw(labels: Array, z: Array, means: Array, values: Array, vectors: Array) -> Array:
    """mu_k + Q_k (sqrt(s_k) z) for the component k of each label, [num, d]; one component at a time."""

    def add(total: Array, part: tuple) -> tuple[Array, None]:
        k, mean, value, vector = part
        draw = mean[None] + contract("nj,ij->ni", z * jnp.sqrt(value)[None], vector)
        return jnp.where((labels == k)[:, None], draw, total), None

    return jax.lax.scan(add, jnp.zeros_like(z), (jnp.arange(means.shape[0]), means, values, vectors))[0]


def _fill(mixture: GaussianMixture, dtype: Any, *values: Any) -> None:
    names = ("weights", "means", "covs", "logits", "eigenvalues", "eigenvectors")
    for name, array in zip(names, values, strict=True):
        object.__setattr__(mixture, name, jnp.asarray(array, dtype))
