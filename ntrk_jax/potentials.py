r"""Potentials: the sequence of targets that a population is carried through.

At noise level t the population stands for p(x_t) psi_t(x_t), and the last potential is psi_0 = exp(r / temperature)
exactly, so that every choice of the others aims at the same tilted law. A move from t to s multiplies the weight by

    [p(x_s | x_t) / q(x_s | x_t)] psi_s(x_s) / psi_t(x_t).

With v_t the value at x_t (the plug-in r(x0), or another of `values`):

| potential | log psi_t | used by |
|---|---|---|
| `Tempered` | gamma(t) v_t / temperature | TDS, FK "difference", DAS (gamma rises; 1 throughout as published) |
| `Adaptive` | the same, gamma chosen from the weights | DAS, adaptive |
| `Accumulated` | sum over u >= t of (v_u, max or sum of the v so far) / temperature | FK "reward", "max", "sum" |

Potentials see the whole population: values are [num_particles], as are the leaves of `Memory` that belong to particles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import require_called, require_temperature
from ntrk_jax.core import Step
from ntrk_jax.tree import is_concrete, pytree, static
from ntrk_jax.typing import Array, Scalar
from ntrk_jax.varying import vary

__all__ = ["Accumulated", "Adaptive", "Geometric", "Memory", "Potential", "Signal", "Tempered"]


class Memory(NamedTuple):
    """What a potential remembers, [K] each or None: log_psi at the current x, seen so far, gamma (all equal)."""

    log_psi: Array
    seen: Array | None = None
    gamma: Array | None = None


@runtime_checkable
class Potential(Protocol):
    """The targets of a population.

    init: (value [K], first row) -> Memory at x_T.
    scale: (memory, step) -> [K], what multiplies the value's gradient in the proposal.
    __call__: (memory, value [K] at x_s, step, untilted [K], the log-weights without psi) -> Memory at x_s.
    """

    def init(self, value: Array, first: Step) -> Memory: ...

    def scale(self, memory: Memory, step: Step) -> Any: ...

    def __call__(self, memory: Memory, value: Array, step: Step, untilted: Array) -> Memory: ...


RATE = 100.0 * float(np.log(1.008))
"""The published growth of the tilt: 0.8 % a row at 100 rows."""


@pytree
class Geometric:
    """Tempering that grows geometrically along the run: gamma(t) = min(1, exp(rate (1 - t)) - 1).

    With num_steps equal rows it is min(1, (1 + g)^i - 1) after i of them, g = exp(rate / num_steps) - 1; the default is
    g = 0.008 at 100 rows. The time is the schedule's: that of `EDM` is its noise level, most of whose range says
    nothing of x0; give a larger rate, or take `Signal`.

    References: Kim et al. 2025 (DAS), arXiv:2501.05803.
    """

    rate: Scalar = RATE

    def __post_init__(self) -> None:
        """Refuse a rate that is not positive: the tilt would turn away from the reward, or come all at the end."""
        if is_concrete(self.rate) and not np.all(np.asarray(self.rate) > 0):
            raise ValueError(f"rate must be positive, got {self.rate}.")

    def __call__(self, t: Scalar) -> Array:
        """Gamma at time t, in [0, 1]."""
        return jnp.minimum(jnp.expm1(self.rate * (1.0 - jnp.asarray(t))), 1.0)


@pytree
class Signal:
    """Tempering by how much of x_t is signal: gamma(t) = v alpha_t^2 / (v alpha_t^2 + sigma_t^2).

    The plug-in value at noise is the reward of a blurred mean, and a population sent after it has to be called back by
    weights with heavy tails. This trusts it as far as x_t tells of x_0: on the nine modes of `targets.das9` the
    standard deviation of log Z falls from 0.9 to 0.2, for TDS and FK steering alike.

    Attributes:
        variance: v, about that of the data in one direction.
    """

    variance: Scalar = 1.0

    def __call__(self, alpha: Scalar, sigma: Scalar) -> Array:
        """Gamma at a noise level, in [0, 1]."""
        signal = jnp.asarray(self.variance, jnp.result_type(alpha)) * jnp.square(alpha)
        return signal / (signal + jnp.square(sigma))


@pytree
class Tempered:
    """log psi_t = gamma(t) v_t / temperature, with gamma = 1 at the end.

    Attributes:
        temperature: beta of the tilted law, positive; infinity leaves all weights equal.
        schedule: `Signal`, a function t [] -> gamma in [0, 1], or None for 1 throughout.

    References: Wu et al. 2023 (TDS), arXiv:2306.17775; Singhal et al. 2025 (FK steering, difference),
        arXiv:2501.06848; Kim et al. 2025 (DAS), arXiv:2501.05803, Eq. 8 to 10.
    """

    temperature: Scalar = 1.0
    schedule: Callable[[Scalar], Array] | Signal | None = None

    def __post_init__(self) -> None:
        """Refuse a temperature that is not positive and a schedule that is none."""
        require_temperature(self.temperature)
        if self.schedule is not None:
            require_called("schedule", self.schedule, "potentials.Geometric()")

    def init(self, value: Array, first: Step) -> Memory:
        """The potential of the initial noise."""
        return self._at(value, self._gamma(first.t, first.alpha_t, first.sigma_t, value))

    def scale(self, memory: Memory, step: Step) -> Any:
        """gamma(s): the proposal climbs the potential it is about to be weighed by."""
        return None if self.schedule is None else self._ending(step, memory.log_psi)

    def __call__(self, memory: Memory, value: Array, step: Step, untilted: Array) -> Memory:
        """The potential at x_s."""
        return self._at(value, self._ending(step, value))

    def _ending(self, step: Step, like: Array) -> Array:
        return jnp.where(step.sigma_s == 0, jnp.ones_like(like), self._gamma(step.s, step.alpha_s, step.sigma_s, like))

    def _gamma(self, t: Scalar, alpha: Scalar, sigma: Scalar, like: Array) -> Array:
        if isinstance(self.schedule, Signal):
            gamma = self.schedule(alpha, sigma)
        else:
            gamma = 1.0 if self.schedule is None else self.schedule(t)
        return jnp.broadcast_to(jnp.asarray(gamma, like.dtype), like.shape)

    def _at(self, value: Array, gamma: Array) -> Memory:
        return Memory(gamma * value / jnp.asarray(self.temperature, value.dtype))


@pytree
class Adaptive:
    """Tempering chosen from the weights: the largest gamma that keeps the effective sample size.

        log psi_t = gamma_t v_t / temperature,   gamma_s = max{gamma in [gamma_t, 1] : ESS(gamma) >= target K}

    with ESS of the weights after the row; gamma = 1 at the end. The choice looks at the population, so log Z keeps a
    bias of order 1 / K. If the weights are below the target already, gamma stays.

    Attributes:
        temperature: beta of the tilted law.
        target: the share of K to keep, in (0, 1).

    Cost: 30 evaluations of the ESS a row, no model call.
    Derivatives: gamma is found by bisection and counts as a constant, so derivatives in a temperature are not those of
        the run while gamma is below 1.
    References: Kim et al. 2025 (DAS), arXiv:2501.05803, section 4; Jasra et al. 2011.
    """

    temperature: Scalar = 1.0
    target: Scalar = 0.9

    def __post_init__(self) -> None:
        """Refuse a temperature that is not positive and a share outside (0, 1)."""
        require_temperature(self.temperature)
        if is_concrete(self.target) and not np.all((np.asarray(self.target) > 0) & (np.asarray(self.target) < 1)):
            raise ValueError(f"target is a share of the population in (0, 1), got {self.target}.")

    def init(self, value: Array, first: Step) -> Memory:
        """No tilt at the initial noise."""
        return Memory(jnp.zeros_like(value), gamma=jnp.zeros_like(value))

    def scale(self, memory: Memory, step: Step) -> Any:
        """The current gamma."""
        return memory.gamma

    def __call__(self, memory: Memory, value: Array, step: Step, untilted: Array) -> Memory:
        """The potential at x_s."""
        assert memory.gamma is not None
        before = memory.gamma[0]
        per_unit = value / jnp.asarray(self.temperature, value.dtype)

        def effective(gamma: Array) -> Array:
            weights = untilted + gamma * (per_unit - top)
            weights = jnp.where(jnp.isfinite(weights), weights, -jnp.inf)
            return 2.0 * jax.nn.logsumexp(weights) - jax.nn.logsumexp(2.0 * weights)

        living = jnp.where(jnp.isfinite(per_unit), per_unit, -jnp.inf)
        top = jnp.where(jnp.any(jnp.isfinite(per_unit)), jnp.max(living), 0.0).astype(value.dtype)
        goal = jnp.log(jnp.asarray(self.target, value.dtype)) + float(np.log(value.shape[0]))

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = 0.5 * (ends[0] + ends[1])
            enough = effective(middle) >= goal
            return jnp.where(enough, middle, ends[0]), jnp.where(enough, ends[1], middle)

        one = jnp.ones_like(before)
        found, _ = jax.lax.fori_loop(0, 30, halve, vary((before, one), (before, value, untilted, step)))
        free = (effective(one) >= goal) | (step.sigma_s == 0)
        gamma = jnp.broadcast_to(jnp.where(free, one, found), value.shape)
        return Memory(gamma * per_unit, gamma=gamma)


@pytree
class Accumulated:
    """FK steering's potentials that build up: log psi_t = sum over u >= t of f(v_1 ... v_u) / temperature.

    u runs over the rows that count. f is the value itself ("reward"), the largest of the values counted ("max") or
    their sum ("sum"). At the end all that was built up is taken back: psi_0 = exp(r / temperature).

    What is built up is a tilt by as many rewards as rows count. Let few count where rewards are not bounded: with a
    linear reward and a hundred rows the population leaves for where the base law has nothing, and no weight brings it
    back; with "sum", whose tilt grows as the square of that number, five are too many already.

    Attributes:
        temperature: 1 / lambda.
        kind: "reward", "max" or "sum". Static.
        when: a function of the grid's row, such as `resampling.Spaced()`, which says after which rows the value counts,
            or None for all, the initial noise too.

    Departs from the paper: there is no floor of zero under the largest value; weights are kept in log space and never
        clamped.
    References: Singhal et al. 2025, arXiv:2501.06848, section 3.
    """

    temperature: Scalar = 1.0
    kind: str = static(default="max")
    when: Any = None

    def __post_init__(self) -> None:
        """Refuse an unknown kind and a temperature that is not positive."""
        require_temperature(self.temperature)
        if self.kind not in ("reward", "max", "sum"):
            raise ValueError(f"kind must be 'reward', 'max' or 'sum', got {self.kind!r}.")

    def init(self, value: Array, first: Step) -> Memory:
        """The potential of the initial noise."""
        if self.when is None:
            return Memory(value / jnp.asarray(self.temperature, value.dtype), value)
        return Memory(jnp.zeros_like(value), jnp.full_like(value, 0.0 if self.kind == "sum" else -jnp.inf))

    def scale(self, memory: Memory, step: Step) -> Any:
        """None: the gradient of the value itself."""
        return None

    def __call__(self, memory: Memory, value: Array, step: Step, untilted: Array) -> Memory:
        """The potential at x_s."""
        assert memory.seen is not None
        seen = value
        if self.kind != "reward":
            seen = jnp.maximum(memory.seen, value) if self.kind == "max" else memory.seen + value
        beta = jnp.asarray(self.temperature, value.dtype)
        built = memory.log_psi + seen / beta
        if self.when is not None:
            counts = self.when(step)
            built, seen = jnp.where(counts, built, memory.log_psi), jnp.where(counts, seen, memory.seen)
        return Memory(jnp.where(step.sigma_s == 0, value / beta, built), seen)
