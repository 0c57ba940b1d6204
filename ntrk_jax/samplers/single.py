"""One sample, one path: look, move, look, move, ..., look."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntrk_jax.arguments import refuse_class, require_rule, valueless
from ntrk_jax.core import Guidance, Info, Kernel, State, Step, Stream
from ntrk_jax.look import Look
from ntrk_jax.move import move
from ntrk_jax.tree import pytree
from ntrk_jax.typing import Key, Sample

__all__ = ["Single"]


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
        seen, evals, status = self.look.at(key, x, first.t, first.sigma_t)
        return State(seen, jnp.zeros((), seen.x0.dtype), evals, status)

    def step(self, key: Key, state: State, step: Step) -> tuple[State, Info]:
        """Move, then look at where it led."""
        return self.step_with(key, state, step, None)

    def step_with(self, key: Key, state: State, step: Step, z: Sample | None) -> tuple[State, Info]:
        """`step` with a standard noise [*shape] that was drawn already, or None."""
        moved, rule_evals = move(key, state.look, step, self.kernel, self.guidance, self.look, z=z)
        key_look = jax.random.fold_in(key, Stream.LOOK)
        seen, evals, status = self.look.at(key_look, moved.x, step.s, step.sigma_s)
        evals, status = evals + rule_evals, status | moved.status
        state = State(seen, state.log_weights + moved.log_ratio, state.evals + evals, state.status | status)
        return state, Info(seen.value, jnp.ones_like(moved.log_ratio), moved.log_ratio, status, evals)


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
