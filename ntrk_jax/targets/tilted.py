r"""Closed-form tilts: p*(x) = p(x) exp(r(x) / temperature) / Z for r(x) = -x'Px/2 + b.x + c.

A tilt of N(mu, S) by such an r is Gaussian. With S = M M', A = I + M'PM / beta and g = (b - P mu) / beta,

    S* = M A^-1 M',   mu* = mu + S* g,   log Z = r(mu) / beta - log|A| / 2 + g'S*g / 2,

and it exists exactly where A is positive definite (the same as S^-1 + P / beta being so). A mixture is tilted
component by component, its weights multiplied by the Z of each.

The value at x_t is beta log E[exp(r(x_0)/beta) | x_t]. With w_k the weights of the components given x_t,

    V = beta log sum_k w_k E_k,   E_k = E[exp(r(x_0)/beta) | x_t, k].

For a linear r, E_k = exp(r(m_k)/beta + a'C_k a / (2 beta^2)) with m_k, C_k the moments of x_0 given x_t and k: no
cancellation at any noise level. For a quadratic r, E_k = Z_k p*_k(x_t) / p_k(x_t), the ratio of two noised
components, taken relative to one common Gaussian so that what is large cancels before it is rounded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.core import soft_mean
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["Tilted", "expected_reward", "tilt", "value"]


class Tilted(NamedTuple):
    """A tilted law and the logarithm of its normaliser, log E[exp(r(x)/temperature)] under the base law."""

    mixture: Any
    log_normalizer: Array


def tilt(mixture: Any, reward: Any, temperature: Scalar = 1.0) -> Tilted:
    """The law p exp(r / temperature) / Z in closed form, and log Z.

    Args:
        mixture: a `GaussianMixture`, a `PowerLawField`, or another law of `targets` with a method `tilt`.
        reward: `Linear`, `Quadratic` or anything whose `quadratic()` answers (P or None, b, c).
        temperature: [], in the units of the reward, positive.

    Cost: O(K d^2) for a linear reward, O(K d^3) for a quadratic one.

    Raises:
        TypeError: if the reward is neither linear nor quadratic.
        ValueError: if the temperature is not positive, or the tilt is not normalisable.

    Example:
        >>> import jax.numpy as jnp
        >>> import ntrk_jax.targets as targets
        >>> from ntrk_jax.rewards import Linear
        >>> normal = targets.GaussianMixture(jnp.ones(1), jnp.zeros((1, 1)), jnp.ones((1, 1, 1)))
        >>> tilted = targets.tilt(normal, Linear(jnp.array([2.0])))
        >>> float(tilted.mixture.means[0, 0]), float(tilted.log_normalizer)
        (2.0, 2.0)
    """
    return mixture.tilt(reward, temperature)


def value(mixture: Any, reward: Any, temperature: Scalar, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
    """The soft value temperature * log E[exp(r(x_0)/temperature) | x_t = x], in the reward's units.

    Args:
        mixture: a `GaussianMixture` or a `PowerLawField`.
        reward: `Linear`, `Quadratic` or anything whose `quadratic()` answers (P or None, b, c).
        temperature: [], positive.
        x: [*shape], a noised sample. alpha, sigma: [], with x = alpha x_0 + sigma z.

    Shapes: [*shape] -> []; differentiable in x.
    Cost: O(K d^2) for a linear reward. A quadratic one is tilted anew at each call, O(K d^3): use
        `mixture.value_function(reward, temperature)` or `values.Exact` to do that once.

    Raises:
        TypeError, ValueError: as `tilt`.
    """
    return mixture.value_function(reward, temperature)(x, alpha, sigma)


def expected_reward(mixture: Any, reward: Any) -> Array:
    """E[r(x)] under a law of this package, in closed form.

    Raises:
        TypeError: if the reward is neither linear nor quadratic.
    """
    return mixture.expected_reward(reward)


def all_concrete(*trees: Any) -> bool:
    """Whether every leaf can be read now."""
    return all(is_concrete(leaf) for leaf in jax.tree.leaves(trees))


def contract(spec: str, *arrays: Any) -> Any:
    """An einsum in full precision, on the host for numpy arrays and on the device otherwise."""
    if isinstance(arrays[0], np.ndarray):
        return np.einsum(spec, *arrays, optimize=True)
    return jnp.einsum(spec, *arrays, precision="highest")


def like(flat: Array, x: Any) -> Array:
    """A flat answer in the shape of x, and in its dtype where that is floating."""
    dtype = getattr(x, "dtype", flat.dtype)
    return flat.reshape(jnp.shape(x)).astype(dtype if jnp.issubdtype(dtype, jnp.floating) else flat.dtype)


def quadratic_of(reward: Any, size: int, dtype: Any, xp: Any) -> tuple[Any, Any, Any]:
    """(P or None, b [size], c []) of a reward, as arrays of `xp`; P is [] or [size, size].

    Raises:
        TypeError: if the reward does not answer `quadratic()`. ValueError: if its size is another or it is not finite.
    """
    if not hasattr(reward, "quadratic"):
        raise TypeError(
            f"closed forms need a linear or quadratic reward (one with a method quadratic()), got "
            f"{type(reward).__name__}; use values.MonteCarlo or values.PlugIn for it."
        )
    p, b, c = reward.quadratic()
    if not (np.shape(b) == () or np.size(b) == size) or np.shape(p) not in ((), (size, size)) or np.shape(c) != ():
        raise ValueError(
            f"the reward must have as many entries as the law, {size}, and a number c, got {np.size(b)}, precision "
            f"{np.shape(p)} and c {np.shape(c)}."
        )
    p = None if p is None else xp.asarray(p, dtype)
    b, c = xp.asarray(b, dtype), xp.asarray(c, dtype)
    if xp is np and not all(np.all(np.isfinite(part)) for part in (p, b, c) if part is not None):
        raise ValueError("the reward must be finite, got NaN or infinite coefficients.")
    return p, xp.broadcast_to(b.reshape(-1), (size,)), c


def require_normalizable(smallest: Any) -> None:
    """Refuse a tilt for which cov^-1 + P / temperature is not positive definite."""
    if is_concrete(smallest) and not np.min(smallest) > 1e-6:
        raise ValueError(
            "the tilt must be normalisable: cov^-1 + precision / temperature must be positive definite in every "
            f"component, got a smallest relative eigenvalue of {float(np.min(smallest)):.3g}; raise the temperature "
            "or make the reward more concave."
        )


def tilt_gaussians(means: Any, roots: Any, p: Any, b: Any, c: Any, temperature: Any) -> tuple[Any, Any, Any]:
    """Means [K, d], covariances [K, d, d] and log Z [K] of K tilted Gaussians whose covariances are roots roots'."""
    xp = np if isinstance(means, np.ndarray) else jnp
    size = means.shape[1]
    p = p * xp.eye(size, dtype=means.dtype) if p.ndim == 0 else p
    bend = contract("ij,kj->ki", p, means)
    slope = b[None] - bend
    core = contract("kia,ij,kjb->kab", roots, p, roots) / temperature + xp.eye(size, dtype=means.dtype)[None]
    spread, turn = xp.linalg.eigh(0.5 * (core + xp.swapaxes(core, 1, 2)))
    require_normalizable(spread)
    half = contract("kia,kab->kib", roots, turn) / xp.sqrt(spread)[:, None, :]
    covs, log_det = contract("kib,kjb->kij", half, half), xp.log(spread).sum(-1)
    slope = slope / temperature
    shift = contract("kij,kj->ki", covs, slope)
    reward = contract("ki,ki->k", b[None] - 0.5 * bend, means) + c
    log_z = reward / temperature - 0.5 * log_det + 0.5 * contract("ki,ki->k", slope, shift)
    return means + shift, covs, log_z


@pytree
class LinearValue:
    """The value of a mixture under a linear reward; made by `GaussianMixture.value_function`."""

    mixture: Any
    linear: Any
    projections: Any
    c: Any
    temperature: Scalar

    def __call__(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
        """The value at a noised sample x [*shape], []."""
        given = self.mixture.condition(x, alpha, sigma)
        dtype, m = given.x.dtype, self.mixture
        beta, b = jnp.asarray(self.temperature, dtype), self.linear.astype(dtype)
        proj = self.projections.astype(dtype)
        near = contract("i,i->", b, given.x) / given.safe_alpha
        far = contract("ki,i->k", m.means.astype(dtype), b)
        mean = jnp.where(given.clean, near, far) + contract("ki,ki->k", proj * given.gain, given.y)
        variance = jnp.sum(proj**2 * given.left, -1)
        return self.c.astype(dtype) + soft_mean(mean + 0.5 * variance / beta, beta, given.log_weights)


@pytree
class QuadraticValue:
    """The value of a mixture under a quadratic reward; made by `GaussianMixture.value_function`."""

    mixture: Any
    tilted: Any
    log_z: Any
    temperature: Scalar

    def __call__(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
        """The value at a noised sample x [*shape], []."""
        m, tilted = self.mixture, self.tilted
        top = jnp.maximum(jnp.max(m.eigenvalues), jnp.max(tilted.eigenvalues))
        centre = m.mean()
        base = m.relative_log_density(x, alpha, sigma, centre, top)
        star = tilted.relative_log_density(x, alpha, sigma, centre, top)
        logits, log_z = m.logits.astype(base.dtype), self.log_z.astype(base.dtype)
        beta = jnp.asarray(self.temperature, base.dtype)
        return beta * (jax.nn.logsumexp(logits + log_z + star) - jax.nn.logsumexp(logits + base))
