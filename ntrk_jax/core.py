"""The types that every part of the house speaks, and nothing else.

    x_t --look--> Lookahead(x, x0, value, grad) --move--> x_s, log_ratio --select--> population
         model + reward: the only            base Gaussian kernel + tilt          reweight, resample
         stage that spends evaluations       + noise: no model calls              no model calls

Time runs t -> s with s < t; 1 is noise, 0 is data. Noising is x_t = alpha_t x_0 + sigma_t z. Every
parametrisation is converted in `look` to one currency, the Tweedie mean x0 = E[x_0 | x_t].
The state carries the look *at the current x*: the last look is at sigma = 0, where the Tweedie mean of x is x
itself, costs no model call and gives the true final reward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ntrk_jax.typing import Array, Key, Sample, Scalar

__all__ = [
    "Denoiser", "Evals", "Gaussian", "Guidance", "Info", "Kernel", "Lookahead", "Move", "Resampler",
    "Reward", "Sampler", "State", "Status", "Step", "Stream", "Tilt", "Value", "Whitening", "algebra_dtype",
    "fused", "over_largest", "root", "soft_mean",
]  # fmt: skip


class Step(NamedTuple):
    """One row of the grid; a grid is a Step of [num_steps] arrays. `grid.rows(2, 5)` slices it."""

    t: Scalar
    s: Scalar
    alpha_t: Scalar
    sigma_t: Scalar
    alpha_s: Scalar
    sigma_s: Scalar

    def rows(self, start: int, stop: int | None = None) -> Step:
        """The grid's rows start..stop, itself a grid."""
        return jax.tree.map(lambda a: a[start:stop], self)

    @property
    def num_steps(self) -> int:
        """The number of rows of a grid."""
        return int(jnp.shape(self.t)[0])


class Evals(NamedTuple):
    """Counts of evaluations, int32 data summed through the scan. NFE is `model`; gradients are apart."""

    model: Scalar = 0
    model_vjp: Scalar = 0
    reward: Scalar = 0
    reward_vjp: Scalar = 0

    def __add__(self, other: object) -> Evals:
        """The sum, field by field."""
        if not isinstance(other, Evals):
            return NotImplemented
        return Evals(*(a + b for a, b in zip(self.as_arrays(), other.as_arrays(), strict=True)))

    def as_arrays(self) -> Evals:
        """The same counts as int32 arrays, as loops carry them."""
        return Evals(*(jnp.asarray(n, jnp.int32) for n in self))


class Lookahead(NamedTuple):
    """What is known at the current x: the Tweedie mean, and the value and its gradient if asked for."""

    x: Sample
    x0: Sample
    value: Any = None
    grad: Any = None


class Gaussian(NamedTuple):
    """N(mean, std^2 I): mean [*shape], std []."""

    mean: Sample
    std: Scalar


class Tilt(NamedTuple):
    """An affine change of a base Gaussian: x_s = base.mean + mean + base.std * project(noise + scale * z, key).

    Where noise is zero everywhere nothing is projected: without a tilt the base kernel is left alone, bit for bit.
    status: bits of `Status` that the rule raises, for instance where it left out a gradient that was not finite.
    """

    mean: Any = 0.0
    noise: Any = 0.0
    scale: Scalar = 1.0
    project: Callable[[Array, Key], Array] | None = None
    evals: Evals = Evals()
    status: Any = 0


class Move(NamedTuple):
    """A drawn x_s, log p_base(x_s | x_t) - log q(x_s | x_t), and the status bits of the tilt."""

    x: Sample
    log_ratio: Scalar
    status: Any = 0


class Status:
    """Bit flags in `Info.status` and `State.status`; 0 is a clean run. `ntrk_jax.check(state)` raises on them."""

    NONFINITE_REWARD = 1
    NONFINITE_GRAD = 2
    NONFINITE_SAMPLE = 4
    DEAD_WEIGHTS = 8
    TREE_FULL = 16
    CALLBACK_FAILED = 32
    WRONG_GRID = 64


class State(NamedTuple):
    """What the next step needs. `look` is the look at the current x.

    log_weights: [] for a single sample, [num_particles] for a population. For `Single` it is the summed
    log_ratio of base to proposal (0 for a rule whose density is not exact).
    """

    look: Lookahead
    log_weights: Array
    evals: Evals
    status: Array


class Info(NamedTuple):
    """What a person wants to know of one step: scalars, recorded by default."""

    value: Any
    ess: Array
    log_ratio: Array
    status: Array
    evals: Evals


@runtime_checkable
class Denoiser(Protocol):
    """The Tweedie mean E[x_0 | x_t] of one sample, [*shape] -> [*shape]."""

    def __call__(self, x: Sample, t: Scalar, cond: Any = None) -> Sample: ...


@runtime_checkable
class Reward(Protocol):
    """A scalar for one clean sample, [*shape] -> []."""

    def __call__(self, x0: Sample, /) -> Array: ...


@runtime_checkable
class Value(Protocol):
    """What stands for beta log E[exp(r(x_0)/beta) | x_t], in the reward's units.

    `needs_x0` says whether the value depends on x through the model (then its gradient costs a model VJP);
    `num_rewards` is how often the reward is called.
    """

    @property
    def needs_x0(self) -> bool: ...

    @property
    def num_rewards(self) -> int: ...

    def __call__(self, key: Key, x: Sample, t: Scalar, x0: Sample, reward: Any) -> Array: ...


@runtime_checkable
class Kernel(Protocol):
    """The base reverse kernel p(x_s | x_t) as a Gaussian. `stochastic` is False where std is always 0."""

    def __call__(self, look: Lookahead, step: Step) -> Gaussian: ...


@runtime_checkable
class Whitening(Protocol):
    """A set of typical noises and two ways into it."""

    def __call__(self, g: Array, key: Key | None = None) -> Array:
        """A direction of any scale: normalised to norm sqrt(N), then projected."""
        ...

    def project(self, z: Array, key: Key | None = None) -> Array:
        """A noise, perhaps biased: the nearest typical noise; the identity on what is already typical."""
        ...


@runtime_checkable
class Guidance(Protocol):
    """A rule that tilts a base Gaussian towards reward.

    needs_grad: whether `look.grad` is read. exact: whether the proposal is an affine Gaussian given the
    look, so that log_ratio is its exact density ratio. `probe` is the sampler's `Look`, for rules that spend
    evaluations of their own (which they declare in `Tilt.evals`).
    """

    @property
    def needs_grad(self) -> bool: ...

    @property
    def exact(self) -> bool: ...

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt: ...


@runtime_checkable
class Resampler(Protocol):
    """Weighted population -> population: (tree, log_weights, ancestors), every leaf re-indexed alike.

    The samplers re-index by the ancestors themselves and hand over an empty tree.
    """

    def __call__(self, key: Key, log_weights: Array, tree: Any) -> tuple[Any, Array, Array]: ...


@runtime_checkable
class Sampler(Protocol):
    """What `run` scans: a state, a `State` or a tuple with the same four fields and more, and one step of it."""

    def init(self, key: Key, x: Array, first: Step) -> Any: ...

    def step(self, key: Key, state: Any, step: Step) -> tuple[Any, Info]: ...


class Stream:
    """Tags of the random streams of one step, for `jax.random.fold_in(key, tag)`.

    The draw itself uses the step's key, so that a plain step costs one hash and one draw. Drawing N numbers hashes the
    counters 0 ... N - 1 and folding in hashes the tag: tags from 2^31 up never meet a counter.
    """

    RULE = 0x80000001
    PROJECT = 0x80000002
    LOOK = 0x80000003
    SELECT = 0x80000004
    INIT = 0xFFFFFFFF


def root(x: Array) -> Array:
    """The square root of x >= 0, with the derivative 0 instead of infinity at 0; 0 below, NaN of NaN."""
    none = x <= 0
    return jnp.where(none, jnp.zeros_like(x), jnp.sqrt(jnp.where(none, jnp.ones_like(x), x)))


def over_largest(x: Array) -> Array:
    """X divided by the magnitude of its largest entry, at any scale; zeros stay zeros.

    Where that is far from 1 it is first brought nearer by a power of two: XLA keeps no 1 / largest of numbers above
    2^126, which is denormal.
    """
    top = jnp.max(jnp.abs(x))
    far = jnp.where(top < 2.0**-60, 2.0**60, jnp.ones_like(top))
    x = x * jax.lax.stop_gradient(jnp.where(top > 2.0**60, 2.0**-60, far)).astype(x.dtype)
    largest = jnp.max(jnp.abs(x))
    return x / jnp.where(largest > 0, largest, jnp.ones_like(largest))


fused = partial(jax.jit, inline=True)
"""One program where a function is called by itself, and no seam where it is called inside of one."""


@fused
def soft_mean(values: Array, temperature: Scalar, log_weights: Array) -> Array:
    """Temperature times log sum_i w_i exp(values_i / temperature), [num] -> [], for weights that sum to 1.

    Where the values lie within half a temperature of each other by the mean of exp - 1, which keeps the digits that a
    high temperature takes from the logarithm and its derivatives; at infinity it is the weighted mean. A value of -inf
    has no share in the exponential mean, nor in its derivatives.
    """
    dead = jnp.isneginf(values)
    values = jnp.where(dead, jnp.zeros_like(values), values)
    log_weights = jnp.where(dead, jnp.full_like(log_weights, -jnp.inf), log_weights)
    beta, endless = jnp.asarray(temperature, values.dtype), jnp.isinf(temperature)
    beta = jnp.where(endless, jnp.ones_like(beta), beta)
    weights = jnp.exp(log_weights)
    centre = jax.lax.stop_gradient(jnp.sum(weights * values))
    apart = (values - centre) / beta
    near = jnp.all(jnp.abs(apart) < 0.5) & ~jnp.any(dead)
    inside = jnp.where(near, apart, jnp.zeros_like(apart))
    risen = jnp.sum(weights * jnp.expm1(inside))
    far = beta * jax.nn.logsumexp(log_weights + values / beta)
    soft = jnp.where(near, centre + beta * jnp.log1p(risen), far)
    mean = jnp.where(jnp.any(dead), -jnp.inf, centre + jnp.sum(weights * (values - centre)))
    return jnp.where(endless, mean, soft)


def algebra_dtype(x: Array) -> Any:
    """The dtype of the Gaussian algebra for samples like x: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64) if x.dtype == jnp.float64 else jnp.dtype(jnp.float32)
