"""One sample, one path: look, move, look, move, ..., look."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import refuse_class, require_rule, valueless
from ntrk_jax.core import Evals, Guidance, Info, Kernel, Lookahead, State, Step, Stream, algebra_dtype
from ntrk_jax.look import Look
from ntrk_jax.move import move
from ntrk_jax.tree import pytree
from ntrk_jax.typing import Array, Key, Sample

__all__ = ["Single"]


class Underway(NamedTuple):
    """Between a move and the look at where it led: x and the look's key, what the move gave, what was there before."""

    key: Key
    x: Sample
    log_ratio: Array
    spent: Evals
    flags: Array
    log_weights: Array
    evals: Evals
    status: Array


@pytree
class Single:
    """One sample moved by a (tilted) reverse kernel.

    Attributes:
        look: what is asked of the model and the reward.
        kernel: the base reverse kernel.
        guidance: a rule that tilts it, or None.

    Shapes: x [*shape]; `state.log_weights` [] is the sum of log_ratio, so that
        `state.log_weights + state.look.value / temperature` is the log importance weight of the whole path for the
        tilted law (0 instead of the sum for a rule whose density is not exact).
    Cost per step: one look, plus what the rule declares. num_steps NFE for num_steps rows.

    Example:
        >>> import jax.numpy as jnp, ntrk_jax as nk
        >>> nk.Single(nk.Look(lambda x, t: 0.0 * x), nk.kernels.DDIM()).kernel
        kernels.DDIM(eta=1.0)
    """

    look: Look
    kernel: Kernel
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        """Refuse parts of the wrong kind, and a rule that reads what the look does not ask for."""
        refuse_missing_grad(self.look, self.guidance)
        refuse_no_noise(self.kernel, self.guidance)

    def init(self, key: Key, x: Sample, first: Step) -> State:
        """The look at the initial noise."""
        return self.arrive(self.embark(key, x), self.look.at(key, x, first.t, first.sigma_t))[0]

    def step(self, key: Key, state: State, step: Step) -> tuple[State, Info]:
        """Move, then look at where it led."""
        return self.step_with(key, state, step, None)

    def step_with(self, key: Key, state: State, step: Step, z: Sample | None) -> tuple[State, Info]:
        """`step` with a standard noise [*shape] that was drawn already, or None."""
        way = self.depart(key, state, step, z)
        return self.arrive(way, self.look.at(way.key, way.x, step.s, step.sigma_s))

    def embark(self, key: Key, x: Sample) -> Underway:
        """On the way to the look at the initial noise, which uses the key as it is."""
        none, zero = Evals().as_arrays(), jnp.zeros((), algebra_dtype(x))
        return Underway(key, x, zero, none, jnp.int32(0), zero, none, jnp.int32(0))

    def depart(self, key: Key, state: State, step: Step, z: Sample | None = None) -> Underway:
        """The first half of a step: the move."""
        moved, spent = move(key, state.look, step, self.kernel, self.guidance, self.look, z=z)
        status = jnp.asarray(moved.status, jnp.int32)
        key = jax.random.fold_in(key, Stream.LOOK)
        return Underway(
            key, moved.x, moved.log_ratio, spent.as_arrays(), status, state.log_weights, state.evals, state.status
        )

    def arrive(self, way: Underway, looked: tuple[Lookahead, Evals, Any]) -> tuple[State, Info]:
        """The second half of a step: what the look at `way.x`, made with `way.key`, has shown."""
        seen, evals, flags = looked
        evals, flags = way.spent + evals, way.flags | flags
        state = State(seen, way.log_weights + way.log_ratio, way.evals + evals, way.status | flags)
        return state, Info(seen.value, jnp.ones_like(way.log_ratio), way.log_ratio, flags, evals)


def refuse_missing_grad(look: Any, guidance: Any) -> None:
    """Raise ValueError if a rule reads a gradient that its look does not take, TypeError if one is something else."""
    if not hasattr(look, "at"):
        raise TypeError(f"look must be nk.Look(model, reward, ...), got {type(look).__name__}; wrap the model in Look.")
    if guidance is None:
        return
    require_rule("guidance", guidance)
    if guidance.needs_grad and not look.grad:
        name = type(guidance).__name__
        raise ValueError(f"{name} reads the reward's gradient; use Look(model, reward, grad=True).")
    without = look.reward is None or not getattr(look.reward, "differentiable", True)
    if getattr(guidance, "needs_reward_grad", False) and without:
        got = "no reward" if look.reward is None else f"{valueless(look.reward)}, which gives values only"
        raise ValueError(
            f"{type(guidance).__name__} differentiates the reward at x0, and the look has {got}; "
            "give Look a differentiable reward, or use a method that needs no gradient, such as best_of_n."
        )


def _name(part: Any) -> str:
    """What a person called it: a function by its own name."""
    inner = getattr(part, "fn", part)
    return getattr(inner, "__name__", type(inner).__name__)


def refuse_no_noise(kernel: Any, guidance: Any) -> None:
    """Raise ValueError if a rule acts through the kernel's noise and the kernel has none, TypeError for no kernel."""
    refuse_class("kernel", kernel)
    if not callable(kernel):
        raise TypeError(f"kernel must be a reverse kernel such as nk.kernels.DDIM(), got {_name(kernel)}.")
    if hasattr(kernel, "needs_grad"):
        raise TypeError(f"kernel must be a reverse kernel such as nk.kernels.DDIM(), got the rule {_name(kernel)}.")
    without = not getattr(kernel, "stochastic", True)
    if without and getattr(guidance, "needs_noise", False):
        acts = next((r for r in getattr(guidance, "rules", ()) if getattr(r, "needs_noise", False)), guidance)
        raise ValueError(
            f"{type(acts).__name__} acts through the noise of the kernel, and {type(kernel).__name__} has none: "
            "it would do nothing; use a stochastic kernel such as DDIM(eta=1.0) or FlowSDE()."
        )
