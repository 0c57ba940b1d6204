r"""A network preconditioned by the first two moments of the data: it learns what a Gaussian of those moments lacks.

For data N(m, S), S = Q diag(s) Q', and x_t = alpha x_0 + sigma z, the Tweedie mean is linear. With
v = alpha^2 s + sigma^2, y = Q'(x_t - alpha m),

    E[x_0 | x_t] = m + Q (alpha s / v) y,        Cov[x_0 | x_t] = Q diag(sigma^2 s / v) Q'.

For any other data of these moments that is the best linear answer at every noise level, and what it misses has at most
that covariance. So a network F is asked for the rest, in coordinates where input and output have unit variance,

    x0 = m + Q (alpha s / v) y + Q sqrt(sigma^2 s / v) Q' F(Q y / sqrt(v), tau),

tau = 2/pi arctan(sigma / (alpha s0)) and s0^2 the mean of s. This is the preconditioning of Karras et al., which knows
a zero mean and one variance, with all moments. An untrained network is the exact denoiser of N(m, S), and when the data
are moved by an affine map that commutes with Q, the same F serves with the new moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.core import algebra_dtype
from ntrk_jax.schedules import Schedule
from ntrk_jax.tree import pytree, replace, static
from ntrk_jax.typing import Array, Key, PyTree, Sample, Scalar

__all__ = ["MomentDenoiser", "blank_network", "moment_network"]

_LEAST = 1e-12
"""The least variance, of data that do not vary."""
MOMENTS = ("full", "diagonal", "scalar")


@pytree
class MomentDenoiser:
    """A denoiser made of the moments of the data and a network for the rest; see the module's equation.

    Attributes:
        apply: (variables, u [*shape], tau [] in [0, 1][, cond]) -> F [*shape], of unit scale in and out. Static.
        variables: the network's weights, a pytree of arrays.
        schedule: t -> (alpha, sigma).
        mean: [*shape]. values: the eigenvalues s, [d], or [] for one variance. vectors: Q [d, d], or None for the
            identity (one variance an entry).

    Shapes: x [*shape], t [] -> [*shape], in at least float32.
    Cost: one network evaluation, and O(d^2) with `vectors`, O(d) without.
    Departs from the paper: full moments instead of one variance.
    References: Karras et al. 2022, arXiv:2206.00364, Section 5 and Table 1.

    Example:
        >>> import jax.numpy as jnp, ntrk_jax as nk
        >>> none = MomentDenoiser(lambda w, u, tau: 0 * u, (), nk.schedules.RectifiedFlow(), jnp.zeros(2), jnp.ones(()))
        >>> [round(v, 5) for v in none(jnp.ones(2), 0.5).tolist()]  # the denoiser of N(0, I)
        [1.0, 1.0]
    """

    apply: Callable[..., Any] = static()
    variables: PyTree
    schedule: Schedule
    mean: Any
    values: Any
    vectors: Any = None

    num_calls = 1

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample:
        """The Tweedie mean at (x, t)."""
        dtype = algebra_dtype(x)
        alpha, sigma, values = self._at(t, dtype)
        mean = jnp.asarray(self.mean, dtype)
        spread = alpha**2 * values + sigma**2
        y = self._into(x.astype(dtype) - alpha * mean)
        scale = jnp.sqrt(jnp.mean(values))
        tau = jnp.arctan2(sigma, alpha * scale) * (2.0 / jnp.pi)
        args = (self._back(y / jnp.sqrt(spread)).reshape(x.shape), tau)
        rest = self.apply(self.variables, *args) if cond is None else self.apply(self.variables, *args, cond)
        moved = alpha * values / spread * y + sigma * jnp.sqrt(values / spread) * self._into(rest.astype(dtype))
        return mean + self._back(moved).reshape(x.shape)

    def normalized(self, error: Sample, t: Scalar) -> Sample:
        """An error in x0 as the error of F that makes it, [*shape]; the time must have noise."""
        alpha, sigma, values = self._at(t, error.dtype)
        root = sigma * jnp.sqrt(values / (alpha**2 * values + sigma**2))
        return self._back(self._into(error) / root).reshape(error.shape)

    def fitted(self, x: Array, weights: Array) -> MomentDenoiser:
        """The same network with the moments of weighted samples: x [num, *shape], weights [num] that sum to one.

        As many moments as there were: a full covariance, a variance an entry, or one variance.
        """
        flat = x.reshape(x.shape[0], -1).astype(algebra_dtype(x))
        mean, values, vectors = _moments(flat, weights.astype(flat.dtype), self.vectors is not None)
        values = values if jnp.ndim(self.values) else jnp.mean(values)
        return replace(self, mean=mean.reshape(x.shape[1:]), values=values, vectors=vectors)

    def _at(self, t: Scalar, dtype: Any) -> tuple[Array, Array, Array]:
        alpha, sigma = (jnp.asarray(c, dtype) for c in self.schedule(jnp.asarray(t, dtype)))
        return alpha, sigma, jnp.asarray(self.values, dtype)

    def _into(self, x: Array) -> Array:
        """Q'x as a vector [d]."""
        x = x.reshape(-1)
        return x if self.vectors is None else jnp.matmul(x, self.vectors.astype(x.dtype), precision="highest")

    def _back(self, y: Array) -> Array:
        """Q y, [d]."""
        return y if self.vectors is None else jnp.matmul(self.vectors.astype(y.dtype), y, precision="highest")


def _moments(flat: Array, weights: Array, full: bool) -> tuple[Array, Array, Any]:
    """The mean [d], and the eigenvalues [d] and -vectors [d, d] of the covariance, or the variances [d] and None."""
    mean = jnp.matmul(weights, flat, precision="highest")
    off = flat - mean[None]
    if not full:
        variances = jnp.matmul(weights, off**2, precision="highest")
        return mean, jnp.maximum(variances, 1e-4 * jnp.mean(variances) + _LEAST), None
    values, vectors = jnp.linalg.eigh(jnp.matmul((off * weights[:, None]).T, off, precision="highest"))
    return mean, jnp.maximum(values, 1e-4 * jnp.mean(values) + _LEAST), vectors


def blank_network(
    shape: tuple[int, ...],
    schedule: Schedule,
    moments: str = "full",
    width: int = 64,
    hidden: int = 128,
    depth: int = 3,
) -> MomentDenoiser:
    """A `moment_network` whose weights are shapes and whose moments are those of N(0, I): what a checkpoint fills in.

    Raises:
        ValueError: if moments is not "full", "diagonal" or "scalar".
    """
    if moments not in MOMENTS:
        raise ValueError(f"moments must be one of {', '.join(MOMENTS)}, got {moments!r}.")
    from flax import nnx

    from ntrk_jax.models.flax import NnxDenoiser

    graphdef, state = nnx.split(nnx.eval_shape(lambda: _network(shape, width, hidden, depth, nnx.Rngs(0))))
    halves = NnxDenoiser((graphdef, state), "x0", schedule)
    size = math.prod(shape)
    values = jnp.ones(()) if moments == "scalar" else jnp.ones((size,))
    vectors = jnp.eye(size) if moments == "full" else None
    return MomentDenoiser(halves.apply, halves.variables, schedule, jnp.zeros(shape), values, vectors)


def _network(shape: tuple[int, ...], width: int, hidden: int, depth: int, rngs: Any) -> Any:
    from ntrk_jax.models.nets import MLP

    return MLP(shape, width=width, hidden=hidden, depth=depth, rngs=rngs)


def moment_network(
    key: Key, x: Array, schedule: Schedule, *, moments: str = "full", width: int = 64, hidden: int = 128, depth: int = 3
) -> MomentDenoiser:
    """An untrained `MomentDenoiser` for data like x: the moments of x and a `nets.MLP` that still predicts zero.

    Args:
        key: of the initial weights. x: [num, *shape], samples of the data. schedule: t -> (alpha, sigma).
        moments: "full" (a covariance, O(d^2) a call), "diagonal" (a variance an entry) or "scalar" (one variance).
        width, hidden, depth: of the network.

    Raises:
        ValueError: if moments is not one of the three.

    Example:
        >>> import jax, ntrk_jax as nk
        >>> x = jax.random.normal(jax.random.key(0), (100, 8, 8, 1))
        >>> moment_network(jax.random.key(1), x, nk.schedules.VPCosine(), moments="scalar")(x[0], 0.5).shape
        (8, 8, 1)
    """
    from flax import nnx

    shape = x.shape[1:]
    blank = blank_network(shape, schedule, moments, width, hidden, depth)
    init = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(_network(shape, width, hidden, depth, nnx.Rngs(key)))))
    even = jnp.full((x.shape[0],), 1.0 / x.shape[0], algebra_dtype(x))
    return replace(blank.fitted(x, even), variables=init(key))
