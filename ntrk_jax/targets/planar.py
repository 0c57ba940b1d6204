r"""Tilts of a mixture in the plane by any reward, by quadrature.

With p = sum_k w_k N(mu_k, S_k) and z the coordinates in which a component, or its posterior given x_t, is N(0, I),

    E[f(x_0) exp(r(x_0) / beta) | x_t] = sum_k w_k(x_t) integral f(x_k(z)) exp(r(x_k(z)) / beta) N(z; 0, I) dz,

and each integral is a sum over an even grid of spacing h in z: the trapezoid rule, whose error is of order
exp(-2 pi^2 s^2 / h^2) for an integrand that falls over s, so that a grid of spacing h = s is exact to eight digits; at
a jump the error is of order h. The tilt is again a mixture, of the tilted components p_k exp(r / beta) / Z_k with the
weights w_k Z_k / Z; given x, the share of each component is what it was.

The nodes move with x, so that the gradient of the value is that of the reward at the nodes. A reward that has none
(`differentiable` is False) is asked at nodes that stay where they are, and their weights N(z(x); 0, I) move instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntrk_jax.core import soft_mean
from ntrk_jax.targets.mixture import Conditioned, GaussianMixture
from ntrk_jax.targets.tilted import like
from ntrk_jax.tree import derived, pytree, static
from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = ["PlanarTilt", "PlanarValue", "component_integrals", "refuse_coarse"]

_SPAN, _CELLS = 8.0, 320
_LOOK_SPAN, _COARSE = 6.0, 0.02


@pytree
class PlanarValue:
    """The soft value of a mixture in the plane under any reward.

    Attributes:
        mixture: in two dimensions. reward: [2] -> []. temperature: [], positive.
        num_nodes: of the grid along either axis of a component's posterior, from -6 to 6 of its standard deviations.
            The default is good to single precision where exp(r / temperature) varies over no less than 0.3 of them.
            `values.Exact` refuses a grid that misses log Z, at pure noise, by 0.02.

    Shapes: x [2] -> []; differentiable in x.
    Cost: K num_nodes^2 reward calls.
    """

    mixture: GaussianMixture
    reward: Any
    temperature: Scalar = 1.0
    num_nodes: int = static(default=41)

    def __call__(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Array:
        """The value at a noised sample x [2], in the reward's units, []."""
        _, logs, rewards = self.nodes(x, alpha, sigma)
        return soft_mean(rewards.reshape(-1), self.temperature, logs.reshape(-1))

    def nodes(self, x: Sample, alpha: Scalar, sigma: Scalar) -> tuple[Array, Array, Array]:
        """Points x_0 [K, n, 2], the logarithms of their weights given x_t = x, and rewards, [K, n]; n = num_nodes^2."""
        given = self.mixture.posterior(x, alpha, sigma)
        line = np.linspace(-_LOOK_SPAN, _LOOK_SPAN, self.num_nodes)
        z = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        prior = -0.5 * np.sum(z**2, -1)
        prior = prior - np.log(np.sum(np.exp(prior)))
        dtype = given.means.dtype
        points = _points(given.means, given.eigenvalues, given.eigenvectors, jnp.asarray(z, dtype))
        logs = given.logits[:, None] + jnp.asarray(prior, dtype)[None]
        if not getattr(self.reward, "differentiable", True):
            points = jax.lax.stop_gradient(points)
            logs = logs + _moving(points, given.means, given.eigenvalues, given.eigenvectors)
        return points, logs, jax.vmap(jax.vmap(self.reward))(points).astype(dtype)


@pytree
class PlanarTilt:
    """A mixture in the plane tilted by any reward, p exp(r / temperature) / Z; made by `targets.Tiltable`.

    Attributes:
        mixture, reward, temperature, num_nodes: as in `PlanarValue`.
        weights, means: [K], [K, 2], of the tilted components.
        log_z: [], the logarithm of the normaliser.

    Shapes: x is [2].
    Cost: made on the host in float64 from a table of 320 x 320 cells a component; `denoise` K num_nodes^2 reward calls.
    Sampling: by the inverse distribution function of the table, whose cells are 1/20 of a standard deviation wide.

    Raises:
        ValueError: if the mixture is not in the plane, is traced, or its tilt leaves 8 standard deviations of it.
    """

    mixture: GaussianMixture
    reward: Any
    temperature: Scalar = 1.0
    num_nodes: int = static(default=41)
    weights: Any = derived()
    means: Any = derived()
    log_z: Any = derived()
    rows: Any = derived()
    columns: Any = derived()

    def __post_init__(self) -> None:
        """Tabulate the tilted components."""
        shares, log_z, z = _table(self.mixture, self.reward, self.temperature)
        _refuse_edges(shares)
        logs, total = _totals(self.mixture, log_z)
        points = np.asarray(_points(*_parts(self.mixture), z))
        rows = np.cumsum(shares.sum(2), 1)
        columns = np.cumsum(shares, 2) / np.maximum(shares.sum(2), 1e-300)[:, :, None]
        dtype = jnp.result_type(float)
        means = np.einsum("kj,kji->ki", shares.reshape(len(logs), -1), points)
        tables = {"weights": np.exp(logs - total), "means": means, "log_z": total, "rows": rows, "columns": columns}
        for name, table in tables.items():
            object.__setattr__(self, name, jnp.asarray(table, dtype))

    @property
    def dim(self) -> int:
        """The number of dimensions, 2."""
        return 2

    def sample(self, key: Key, num: int) -> Array:
        """Draws, [num, 2]."""
        labels, levels = jax.random.split(key)
        which = jax.random.categorical(labels, jnp.log(self.weights), shape=(num,))
        level = jax.random.uniform(levels, (num, 2), self.weights.dtype)
        means, values, vectors = (a.astype(self.weights.dtype) for a in _parts(self.mixture, jnp))

        def one(k: Array, level: Array) -> Array:
            row, first = _inverse(self.rows[k], level[0])
            z = jnp.stack([first, _inverse(self.columns[k, row], level[1])[1]])
            return means[k] + jnp.matmul(vectors[k], jnp.sqrt(values[k]) * z, precision="highest")

        return jax.vmap(one)(which, level)

    def log_prob(self, x: Sample) -> Array:
        """The log-density of one clean sample, []."""
        base = self.mixture.log_prob(x)
        return base + jnp.asarray(self.reward(x), base.dtype) / self.temperature - self.log_z.astype(base.dtype)

    def denoise(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Sample:
        """The Tweedie mean E[x_0 | x_t = x] under the tilted law, of the shape and dtype of x."""
        value = PlanarValue(self.mixture, self.reward, self.temperature, self.num_nodes)
        points, logs, rewards = value.nodes(x, alpha, sigma)
        weights = jax.nn.softmax((logs + rewards / jnp.asarray(self.temperature, logs.dtype)).reshape(-1))
        return like(jnp.matmul(weights, points.reshape(-1, 2), precision="highest"), x)

    def condition(self, x: Sample, alpha: Scalar, sigma: Scalar) -> Conditioned:
        """What is known of x_0 given x_t = x; its `log_weights` are the components' shares where sigma = 0."""
        return self.mixture.condition(x, alpha, sigma)

    def expected_reward(self, reward: Any) -> Array:
        """E[r(x)] under this law, for any reward, []; on the host."""
        means = component_integrals(self.mixture, reward, self.reward, self.temperature)
        return jnp.asarray(np.asarray(self.weights, np.float64) @ means, self.weights.dtype)


def refuse_coarse(value: PlanarValue) -> None:
    """Refuse a grid too coarse for its reward: by its log Z at pure noise, where components are widest."""
    temperature = float(value.temperature)
    with jax.ensure_compile_time_eval():  # also where it is made in a program of numbers that are known
        exact = _totals(value.mixture, _table(value.mixture, value.reward, temperature)[1])[1]
        error = abs(float(_at_pure_noise(value)) / temperature - exact)
    if not error < _COARSE:
        raise ValueError(
            f"the reward varies too fast for {value.num_nodes} x {value.num_nodes} nodes a component: they miss log Z "
            f"by {error:.2g}; give Tiltable a larger num_nodes."
        )


@jax.jit
def _at_pure_noise(value: PlanarValue) -> Array:
    return value(jnp.zeros(2), 0.0, 1.0)


def component_integrals(mixture: GaussianMixture, function: Callable, reward: Any, temperature: Scalar) -> np.ndarray:
    """E[f(x)] under each component tilted by exp(r / temperature), [K], on the host in float64."""
    shares, _, z = _table(mixture, reward, temperature)
    points = _points(*_parts(mixture), z)
    return np.sum(shares.reshape(len(shares), -1) * _evaluate(function, points), 1)


def _table(mixture: GaussianMixture, reward: Any, temperature: Scalar) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mass of each cell of each tilted component [K, n, n], its log Z [K], and the cells' centres [n^2, 2]."""
    if mixture.dim != 2:
        raise ValueError(f"quadrature needs a law in the plane, got {mixture.dim} dimensions; use values.MonteCarlo.")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((mixture, temperature, reward))):
        raise ValueError("a tilt by quadrature is tabulated on the host; make it outside jax.jit.")
    width = 2.0 * _SPAN / _CELLS
    line = -_SPAN + width * (np.arange(_CELLS) + 0.5)
    z = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    rewards = _evaluate(reward, _points(*_parts(mixture), z)) / float(temperature)
    plain = -0.5 * np.sum(z**2, -1)[None] + np.log(width**2 / (2.0 * np.pi))
    log_z = np.logaddexp.reduce(plain + rewards, axis=1)
    dead = np.isneginf(log_z)[:, None]  # a component without mass, of weight 0, stays as it is
    shares = np.exp(np.where(dead, plain, plain + rewards - np.where(dead, 0.0, log_z[:, None])))
    return shares.reshape(-1, _CELLS, _CELLS), log_z, z


def _totals(mixture: GaussianMixture, log_z: np.ndarray) -> tuple[np.ndarray, float]:
    """log(w_k Z_k) [K], and log Z of the mixture."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(mixture.weights, np.float64)) + log_z
    total = float(np.logaddexp.reduce(logs))
    if not np.isfinite(total):
        raise ValueError(f"the reward must leave the law some mass, got log Z = {total}.")
    return logs, total


def _moving(points: Array, means: Array, values: Array, vectors: Array) -> Array:
    """0 [K, n], with the gradient of log N(points; means, Q diag(values) Q') in the means."""
    off = jnp.einsum("kji,knj->kni", vectors, points - means[:, None], precision="highest")
    square = jnp.sum(jnp.where(values[:, None] > 0, off**2 / jnp.where(values > 0, values, 1.0)[:, None], 0.0), -1)
    return -0.5 * (square - jax.lax.stop_gradient(square))


def _parts(mixture: GaussianMixture, xp: Any = np) -> tuple[Any, Any, Any]:
    """Means, eigenvalues and eigenvectors; as float64 for numpy."""
    arrays = mixture.means, mixture.eigenvalues, mixture.eigenvectors
    return tuple(np.asarray(a, np.float64) if xp is np else a for a in arrays)  # type: ignore[return-value]


def _points(means: Any, values: Any, vectors: Any, z: Any) -> Any:
    """mu_k + Q_k sqrt(s_k) z for each component and each z [n, 2], [K, n, 2]."""
    xp = np if isinstance(means, np.ndarray) else jnp
    roots = vectors * xp.sqrt(values)[:, None, :]
    return means[:, None] + xp.sum(roots[:, None] * z[None, :, None, :], -1)


def _evaluate(function: Callable, points: np.ndarray) -> np.ndarray:
    """A function of one sample at points [K, n, 2], in float64, [K, n]."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(jax.vmap(function)))(jnp.asarray(points, jnp.float64)), np.float64)


def _refuse_edges(shares: np.ndarray) -> None:
    """Refuse a tilt that moves a component out of its table."""
    inside = shares[:, 1:-1, 1:-1].sum((1, 2))
    if not np.all(inside > 1.0 - 1e-6):
        raise ValueError(
            f"the tilt must stay within {_SPAN:g} standard deviations of each component, got a share of "
            f"{1.0 - np.min(inside):.3g} at the edge; raise the temperature."
        )


def _inverse(cdf: Array, level: Array) -> tuple[Array, Array]:
    """The cell and the coordinate in [-span, span] at which a tabulated distribution function [n] reaches a level."""
    cell = jnp.minimum(jnp.searchsorted(cdf, level, side="right"), _CELLS - 1)
    below = jnp.where(cell > 0, cdf[jnp.maximum(cell - 1, 0)], jnp.zeros_like(level))
    part = jnp.clip((level - below) / jnp.maximum(cdf[cell] - below, 1e-30), 0.0, 1.0)
    return cell, -_SPAN + 2.0 * _SPAN / _CELLS * (cell.astype(level.dtype) + part)
