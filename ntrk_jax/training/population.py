r"""The methods of `training.tilting` without a network or a sample: one step on a mixture by quadrature.

Given x_t, the law of x_0 under a Gaussian mixture is a Gaussian mixture, so every conditional mean that a method's
target has is a sum over Gauss-Hermite nodes of each component. With nodes x_i of weights
w_i and l_i = h r(x_i),

    explicit:   u + sum w_i l_i (x_i - u)                        = u + Cov(x_0, l | x_t),      u = sum w_i x_i
    implicit:   the fixed point v = u + sum w_i (exp(l_i) - 1) (x_i - v)
    weighted:   argmin_v sum w_i exp(l_i) |x_i - v|^2
    nft:        the minimiser of its two-branch loss, a quadratic in v

so what a perfect network with endless data would learn is known to rounding (float64), and with it what is left: the
discretisation error of the explicit step, O(h^2) a step and O(1 / rounds) along the path, and none of the other two.
All means are of x0; another parametrisation differs by an affine map.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.schedules import Schedule
from ntrk_jax.targets import GaussianMixture, tilt
from ntrk_jax.training.tilting import nft_loss, tilt_coefficient, tilt_target
from ntrk_jax.typing import Array, Sample, Scalar

__all__ = ["Posterior", "path_error", "population_step", "posterior_nodes", "step_error", "target_mean"]


class Posterior(NamedTuple):
    """Nodes x [num, d] and weights w [num], summing to one, of the law of x_0 given x_t."""

    nodes: Array
    weights: Array

    def mean(self, values: Array) -> Array:
        """The mean of values [num, ...] at the nodes, [...]."""
        return jnp.tensordot(self.weights, values, axes=1, precision="highest")


def posterior_nodes(law: GaussianMixture, x: Sample, alpha: Scalar, sigma: Scalar, order: int = 24) -> Posterior:
    """The law of x_0 given x_t = x [d] as nodes and weights, [K order^d] of them.

    Integrals of smooth functions are exact to rounding at the default order in low dimensions; functions with jumps
    are not what this is for.
    """
    line, mass = np.polynomial.hermite_e.hermegauss(order)
    z = np.stack(np.meshgrid(*[line] * law.dim, indexing="ij"), -1).reshape(-1, law.dim)
    each = np.prod(np.stack(np.meshgrid(*[mass / mass.sum()] * law.dim, indexing="ij"), -1).reshape(-1, law.dim), -1)
    given = law.posterior(x, alpha, sigma)
    roots = given.eigenvectors * jnp.sqrt(given.eigenvalues)[:, None, :]
    nodes = given.means[:, None, :] + jnp.einsum("kij,nj->kni", roots, jnp.asarray(z, x.dtype), precision="highest")
    weights = given.weights[:, None] * jnp.asarray(each, x.dtype)[None]
    return Posterior(nodes.reshape(-1, law.dim), weights.reshape(-1) / jnp.sum(weights))


def target_mean(method: str, given: Posterior, log_weights: Array, student: Sample, strength: Scalar = 1.0) -> Array:
    """E[T | x_t] of `tilt_target` with the exact anchor and a student that says `student`, [d].

    Args:
        method: "explicit", "implicit" or "nft". log_weights: l at the nodes, [num]; for "nft" the optimality R.
    """
    anchor = given.mean(given.nodes)
    baseline = student if method == "implicit" else anchor

    def target(sample: Sample, log_weight: Array) -> Array:
        return tilt_target(sample, anchor, baseline, tilt_coefficient(method, log_weight, strength))

    return given.mean(jax.vmap(target)(given.nodes, log_weights))


def population_step(method: str, given: Posterior, log_weights: Array, strength: Scalar = 1.0) -> Array:
    """The x0-mean that a perfect student learns in one step of a method, [d].

    Args:
        method: as in `TiltLoss`. given: the law of x_0 given x_t. log_weights: l at the nodes, [num]; for "nft" the
            optimality R in [0, 1].

    Raises:
        ValueError: if the method is unknown.
    """
    if method == "weighted":
        weights = given.weights * jnp.exp(log_weights)
        return jnp.tensordot(weights, given.nodes, axes=1, precision="highest") / jnp.sum(weights)
    zero = jnp.zeros_like(given.nodes[0])
    if method == "nft":
        anchor = given.mean(given.nodes)

        def loss(student: Sample) -> Array:
            return given.mean(
                jax.vmap(lambda x, r: nft_loss(student, anchor, x, r, strength))(given.nodes, log_weights)
            )

        return -jnp.linalg.solve(jax.hessian(loss)(zero), jax.grad(loss)(zero))
    # the target's mean is affine in the student, A + B v with B = dA/dv a multiple of the identity
    start = target_mean(method, given, log_weights, zero, strength)
    slope = target_mean(method, given, log_weights, jnp.ones_like(zero), strength) - start
    return start / (1.0 - slope)


def step_error(
    law: GaussianMixture, reward: Any, step: Scalar, schedule: Schedule, method: str = "explicit", *,
    num_times: int = 24, order: int = 24, inner: int = 8,
) -> Array:  # fmt: skip
    """How wrong the score is after one step from a law, sqrt(E |sigma (s - s*)|^2), [].

    s* is the score of the tilt p exp(step r) / Z in closed form; t ~ U[0.02, 0.98] by Gauss-Legendre quadrature,
    x_t by Gauss-Hermite quadrature of the law's own noised components, and `inner` the order of the quadrature given
    x_t.

    Cost: num_times K^2 (order inner)^d reward calls.
    """
    star = tilt(law, reward, 1.0 / step).mixture

    def error(x: Sample, alpha: Array, sigma: Array) -> Array:
        given = posterior_nodes(law, x, alpha, sigma, inner)
        log_weights = step * jax.vmap(reward)(given.nodes)
        log_weights = log_weights - given.mean(log_weights)
        return population_step(method, given, log_weights) - star.denoise(x, alpha, sigma)

    return _score_error(law, error, schedule, num_times, order)


def path_error(
    law: GaussianMixture, reward: Any, num_rounds: int, schedule: Schedule, *, num_times: int = 30, order: int = 24
) -> Array:
    """How wrong the score is after num_rounds explicit steps along the whole tilt, []; O(1 / num_rounds).

    Each step adds Cov(x_0, r / num_rounds | x_t) under the exact law of its round; the error is measured at the noised
    samples of the tilted law, otherwise as in `step_error`.

    Cost: num_times K order^d num_rounds covariances of a linear or quadratic reward, by quadrature of order 6, which
    is exact for them.
    """
    star = tilt(law, reward).mixture
    laws = [law, *(tilt(law, reward, num_rounds / k).mixture for k in range(1, num_rounds))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *laws)

    def error(x: Sample, alpha: Array, sigma: Array) -> Array:
        def shift(total: Array, one: GaussianMixture) -> tuple[Array, None]:
            given = posterior_nodes(one, x, alpha, sigma, 6)
            r = jax.vmap(reward)(given.nodes) / num_rounds
            return total + population_step("explicit", given, r - given.mean(r)) - given.mean(given.nodes), None

        return jax.lax.scan(shift, law.denoise(x, alpha, sigma), stacked)[0] - star.denoise(x, alpha, sigma)

    return _score_error(star, error, schedule, num_times, order)


def _score_error(law: GaussianMixture, error: Any, schedule: Schedule, num_times: int, order: int) -> Array:
    """The root of the mean of |alpha / sigma error|^2, over t uniform on [0.02, 0.98] and x_t of the law."""
    nodes, mass = np.polynomial.legendre.leggauss(num_times)
    times = jnp.asarray(0.5 + 0.48 * nodes, law.means.dtype)

    def at(t: Array) -> Array:
        alpha, sigma = schedule(t)
        noise = posterior_nodes(law, jnp.zeros((law.dim,), times.dtype), jnp.zeros_like(t), jnp.ones_like(t), order)
        spread = jax.vmap(lambda x: jnp.sum(jnp.square(alpha / sigma * error(x, alpha, sigma))))
        return noise.mean(spread(_noised(law, alpha, sigma, order)))

    return jnp.sqrt(jnp.sum(jnp.asarray(0.5 * mass, times.dtype) * jax.lax.map(at, times)))


def _noised(law: GaussianMixture, alpha: Array, sigma: Array, order: int) -> Array:
    """Nodes of the law of x_t = alpha x_0 + sigma z, [K order^d, d], in the order of those at pure noise."""
    line = np.polynomial.hermite_e.hermegauss(order)[0]
    z = jnp.asarray(np.stack(np.meshgrid(*[line] * law.dim, indexing="ij"), -1).reshape(-1, law.dim), law.means.dtype)
    scale = jnp.sqrt(alpha**2 * law.eigenvalues + sigma**2)
    nodes = alpha * law.means[:, None, :] + jnp.einsum(
        "kij,nj->kni", law.eigenvectors * scale[:, None, :], z, precision="highest"
    )
    return nodes.reshape(-1, law.dim)
