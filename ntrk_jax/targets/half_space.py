r"""Tilts of a mixture by a cliff, r(x) = -penalty 1[a.x < threshold], in closed form.

Given x_t and the component k, a.x_0 is N(m_k, v_k), so with z_k = (m_k - threshold) / sqrt(v_k) and
q = exp(-penalty / beta),

    E_k = E[exp(r / beta) | x_t, k] = Phi(z_k) + q Phi(-z_k),       V = beta log sum_k w_k(x_t) E_k,
    E*[x_0 | x_t, k] = nu_k + C_k a / sqrt(v_k) * (1 - q) phi(z_k) / E_k.

The reward has no gradient; its value has one at every x_t with noise.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from ntrk_jax.core import soft_mean
from ntrk_jax.rewards import HalfSpace
from ntrk_jax.targets.mixture import Conditioned, GaussianMixture
from ntrk_jax.targets.tilted import all_concrete, contract, like
from ntrk_jax.tree import derived, pytree
from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = ["HalfSpaceTilt", "HalfSpaceValue"]

_FAR = 10.0


@pytree
class HalfSpaceValue:
    """The soft value of a mixture under a `rewards.HalfSpace`.

    Attributes:
        mixture: a `GaussianMixture`. reward: a `rewards.HalfSpace`. temperature: [], positive.

    Shapes: x [*shape] -> []; differentiable in x.
    Cost: O(K d^2).
    """

    mixture: GaussianMixture
    reward: HalfSpace
    temperature: Scalar = 1.0

    def __call__(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
        """The value at a noised sample, in the reward's units, []."""
        given = self.mixture.posterior(x, alpha, sigma)
        z = _sides(given, self.reward)[0]
        logs = jnp.concatenate([given.logits + norm.logcdf(z), given.logits + norm.logcdf(-z)])
        low = -jnp.asarray(self.reward.penalty, logs.dtype)
        rewards = jnp.concatenate([jnp.zeros_like(z), jnp.broadcast_to(low, z.shape)])
        return soft_mean(rewards, self.temperature, logs)

    def parts(self, x: Sample, alpha: Scalar, sigma: Scalar) -> tuple[Array, Array, Array]:
        """log(w_k E_k), E*[x_0 | x_t, k] and P*(a.x_0 < threshold | x_t, k): [K], [K, d], [K]."""
        given = self.mixture.posterior(x, alpha, sigma)
        return _tilted(given, self.reward, self.temperature)


@pytree
class HalfSpaceTilt:
    """A mixture tilted by a cliff, p exp(r / temperature) / Z; made by `targets.Tiltable`.

    Attributes:
        mixture, reward, temperature: as in `HalfSpaceValue`.
        weights, means: [K], [K, d], of the tilted components. log_z: [], the logarithm of the normaliser.

    Shapes: x is [d] or any shape with d entries; samples are [num, d].
    Cost: O(K d^2) for each method.
    """

    mixture: GaussianMixture
    reward: HalfSpace
    temperature: Scalar = 1.0
    weights: Any = derived()
    means: Any = derived()
    log_z: Any = derived()

    def __post_init__(self) -> None:
        """Tilt each component."""
        logs, means, _ = _tilted(self.mixture, self.reward, self.temperature)
        object.__setattr__(self, "weights", jax.nn.softmax(logs))
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "log_z", jax.nn.logsumexp(logs))

    @property
    def dim(self) -> int:
        """The number of dimensions, d."""
        return self.mixture.dim

    def sample(self, key: Key, num: int) -> Array:
        """Draws, [num, d]: a component, a side of the plane, the distance from the plane, and the rest."""
        keys = jax.random.split(key, 4)
        m, dtype = self.mixture, self.mixture.means.dtype
        a, threshold = jnp.asarray(self.reward.a, dtype).reshape(-1), jnp.asarray(self.reward.threshold, dtype)
        low = _tilted(m, self.reward, self.temperature)[2]
        slope = contract("kij,j->ki", m.covs, a)
        mean, variance = contract("ki,i->k", m.means, a), contract("ki,i->k", slope, a)
        roots = m.eigenvectors * jnp.sqrt(m.eigenvalues)[:, None, :]

        def one(k: Array, side: Array, along: Key, rest: Key) -> Array:
            edge = (threshold - mean[k]) / jnp.sqrt(variance[k])
            sign = jnp.where(side < low[k], -1.0, 1.0).astype(dtype)
            u = jnp.sqrt(variance[k]) * sign * _beyond(along, sign * edge)
            free = jnp.matmul(roots[k], jax.random.normal(rest, (m.dim,), dtype), precision="highest")
            free = free - slope[k] * jnp.matmul(a, free, precision="highest") / variance[k]
            return m.means[k] + slope[k] * u / variance[k] + free

        which = jax.random.categorical(keys[0], jnp.log(self.weights), shape=(num,))
        side = jax.random.uniform(keys[1], (num,), dtype)
        return jax.vmap(one)(which, side, jax.random.split(keys[2], num), jax.random.split(keys[3], num))

    def log_prob(self, x: Sample) -> Array:
        """The log-density of one clean sample, []."""
        base = self.mixture.log_prob(x)
        return base + jnp.asarray(self.reward(x), base.dtype) / self.temperature - self.log_z.astype(base.dtype)

    def denoise(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Sample:
        """The Tweedie mean E[x_0 | x_t = x] under the tilted law, of the shape and dtype of x."""
        logs, means, _ = HalfSpaceValue(self.mixture, self.reward, self.temperature).parts(x, alpha, sigma)
        return like(contract("k,ki->i", jax.nn.softmax(logs), means), x)

    def condition(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Conditioned:
        """What is known of x_0 given x_t = x; its `log_weights` are the components' shares where sigma = 0."""
        return self.mixture.condition(x, alpha, sigma)

    def expected_reward(self, reward: Any) -> Array:
        """E[r(x)] for a half-space reward on the same side of the same plane, [].

        Raises:
            TypeError: for any other reward. ValueError: for another plane.
        """
        if not isinstance(reward, HalfSpace):
            raise TypeError(f"the law knows the mean of half-space rewards, got {type(reward).__name__}.")
        planes = [(jnp.asarray(r.a), jnp.asarray(r.threshold)) for r in (reward, self.reward)]
        if all_concrete(planes) and not np.allclose(*(_plane(*plane) for plane in planes), rtol=1e-5):
            raise ValueError("the law knows the mean of half-space rewards of its own plane, got another; use draws.")
        low = contract("k,k->", self.weights, _tilted(self.mixture, self.reward, self.temperature)[2])
        return jnp.where(low > 0, -jnp.asarray(reward.penalty, low.dtype) * low, jnp.zeros_like(low))


def _beyond(key: Key, edge: Array) -> Array:
    """A standard normal number above an edge [], however far out: by its distribution, beyond 10 by its tail's."""
    far = edge > _FAR
    v = jax.random.uniform(key, (), edge.dtype, minval=jnp.finfo(edge.dtype).epsneg)
    near = -ndtri(v * ndtr(-jnp.where(far, jnp.zeros_like(edge), edge)))
    tail = jnp.sqrt(jnp.square(jnp.where(far, edge, jnp.full_like(edge, _FAR))) - 2.0 * jnp.log(v))
    return jnp.maximum(jnp.where(far, tail, near), edge)


@jax.jit
def _tilted(law: GaussianMixture, reward: HalfSpace, temperature: Scalar) -> tuple[Array, Array, Array]:
    """log(w_k Z_k) [K], the means [K, d] and the mass below the threshold [K] of the tilted components of a law."""
    drop = jnp.asarray(reward.penalty, law.means.dtype) / jnp.asarray(temperature, law.means.dtype)
    z, slope, spread = _sides(law, reward)
    above, below = norm.logcdf(z), norm.logcdf(-z) - drop
    logs = jnp.logaddexp(above, below)
    gain = -jnp.expm1(-drop) * jnp.exp(norm.logpdf(z) - logs) / spread
    return law.logits + logs, law.means + slope * gain[:, None], jnp.exp(below - logs)


def _plane(a: Array, threshold: Array) -> np.ndarray:
    """A normal of length 1 and the threshold in its units, [d + 1]."""
    both = np.append(np.asarray(a, np.float64).ravel(), np.asarray(threshold, np.float64))
    return both / np.linalg.norm(both[:-1])


def _sides(law: GaussianMixture, reward: HalfSpace) -> tuple[Array, Array, Array]:
    """Of a.x under each component: standard deviations from the threshold [K], S_k a [K, d], standard deviation [K]."""
    dtype = law.means.dtype
    if jnp.asarray(reward.a).size != law.dim:
        given = jnp.asarray(reward.a).size
        raise ValueError(f"the half-space must have as many entries as the law, {law.dim}, got {given}.")
    a, threshold = jnp.asarray(reward.a, dtype).reshape(-1), jnp.asarray(reward.threshold, dtype)
    turned = contract("kij,i->kj", law.eigenvectors, a)
    slope = contract("kij,kj->ki", law.eigenvectors, law.eigenvalues * turned)
    spread = jnp.sqrt(jnp.maximum(jnp.sum(turned**2 * law.eigenvalues, -1), 1e-24))
    return (contract("ki,i->k", law.means, a) - threshold) / spread, slope, spread
