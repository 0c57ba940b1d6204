"""What every guidance rule shares: strengths, windows and sums.

A rule reads a look and returns a `Tilt`, an affine change of the base Gaussian:
x_s = base.mean + mean + base.std * project(noise + scale * z), and without a tilt of the noise nothing is projected.
Tilts of several rules add up (`Sum`): means and noises add, scales multiply, and at most one rule may project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntrk_jax.arguments import refuse_class, require_rule
from ntrk_jax.core import Evals, Gaussian, Guidance, Lookahead, Step, Tilt
from ntrk_jax.tree import is_concrete, pytree
from ntrk_jax.typing import Array, Key, Scalar
from ntrk_jax.varying import vary

__all__ = ["Ending", "Strength", "Sum", "Unguided", "Window", "strength_at"]

Strength = Scalar | Callable[[Step], Array]
"""A number, or a function of the grid's row (a pytree, or a plain function of a `Step`)."""


def strength_at(strength: Any, step: Step) -> Any:
    """The strength [] on a row of the grid."""
    return strength(step) if callable(strength) else strength


def require(
    name: str, strength: Any, low: float, high: float, *, open_above: bool = False, number: bool = False
) -> None:
    """Raise ValueError if a concrete strength lies outside [low, high] (or [low, high)), TypeError if it is none."""
    refuse_class(name, strength)
    if strength is None or isinstance(strength, str) or (number and callable(strength)):
        given = type(strength).__name__ if callable(strength) else repr(strength)
        kinds = "a number" if number else "a number or a function of the grid's row"
        raise TypeError(f"{name} must be {kinds}, got {given}.")
    if callable(strength) or not is_concrete(strength):
        return
    values = np.asarray(strength)
    ok = np.all(values >= low) and np.all(values < high if open_above else values <= high)
    if not ok:
        end = ")" if open_above or not np.isfinite(high) else "]"
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}{end}, got {strength}.")


def passed_on(name: str, *default: Any) -> Any:
    """A property of a wrapper: what its `rule` says of itself, or the default where the rule need not say it."""
    return property(lambda self: getattr(self.rule, name, *default), doc=f"The rule's own `{name}`.")


@pytree
class Unguided:
    """The base kernel itself, as a rule.

    Cost per step: none. Density: exact, log_ratio 0.
    """

    needs_grad = False
    exact = True

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """No tilt."""
        return Tilt()


@pytree
class Sum:
    """Several rules at once: means and noises add, scales multiply, evaluations add.

    Attributes:
        rules: the rules, of which at most one projects its noise.

    Density: exact if every rule is.

    Example:
        >>> import ntrk_jax as nk
        >>> both = nk.guidance.Sum((nk.guidance.DPS(0.1), nk.guidance.NTRK(nk.whitening.UnitNorm(), 0.1)))
        >>> both.exact, both.needs_grad
        (True, True)
    """

    rules: tuple[Guidance, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no rule, and two rules that project."""
        if not isinstance(self.rules, tuple | list):
            raise TypeError(f"Sum needs a tuple of rules, got {type(self.rules).__name__}.")
        for rule in self.rules:
            require_rule("a rule of Sum", rule)
        if sum(getattr(rule, "where", None) == "mixed" for rule in self.rules) > 1:
            raise ValueError("at most one rule of a Sum may project its noise; use where='gradient' for the others.")

    @property
    def needs_grad(self) -> bool:
        """Whether any rule reads the gradient."""
        return any(rule.needs_grad for rule in self.rules)

    @property
    def needs_reward_grad(self) -> bool:
        """Whether any rule differentiates the reward itself."""
        return any(getattr(rule, "needs_reward_grad", False) for rule in self.rules)

    @property
    def needs_noise(self) -> bool:
        """Whether every rule acts through the kernel's noise."""
        return any(getattr(rule, "needs_noise", False) for rule in self.rules)

    @property
    def exact(self) -> bool:
        """Whether every rule's density is exact."""
        return all(rule.exact for rule in self.rules)

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The sum of the rules' tilts."""
        out = Tilt()
        for rule, rule_key in zip(self.rules, jax.random.split(key, max(len(self.rules), 1)), strict=False):
            tilt = rule(look, base, step, key=rule_key, probe=probe)
            if tilt.project is not None and out.project is not None:
                raise ValueError(
                    "at most one rule of a Sum may project its noise; use where='gradient' for the others."
                )
            project = tilt.project or out.project
            evals = out.evals + tilt.evals
            status = out.status | tilt.status
            out = Tilt(out.mean + tilt.mean, out.noise + tilt.noise, out.scale * tilt.scale, project, evals, status)
        return out


@pytree
class Window:
    """A rule that acts only where low < t <= high; elsewhere it is skipped and the base kernel moves.

    Attributes:
        rule: the rule.
        low, high: times in [0, 1].

    Cost per step: the rule's inside the window, none outside (`lax.cond`). The look's gradient is still taken.
    Density: as the rule's.
    """

    rule: Guidance
    low: Scalar = 0.0
    high: Scalar = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no rule, and an empty window."""
        require_rule("the rule of Window", self.rule)
        if is_concrete(self.low) and is_concrete(self.high) and not np.all(np.less(self.low, self.high)):
            raise ValueError(f"Window needs low < high, got {self.low} and {self.high}.")

    needs_grad = passed_on("needs_grad")
    needs_reward_grad = passed_on("needs_reward_grad", False)
    needs_noise = passed_on("needs_noise", False)
    exact = passed_on("exact")

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The rule's tilt inside the window, none outside."""
        inside = (step.t > self.low) & (step.t <= self.high)
        return _where(inside, self.rule, look, base, step, key, probe)


@pytree
class Ending:
    """A rule that acts in the last row alone, where sigma_s = 0 and no noise is drawn; elsewhere it is skipped.

    A rule that tilts the noise leaves that row to the base kernel, x_s = x0. A climb of x0 there raises the reward of
    the sample itself, which no denoiser smooths any more: `Sum((NTRK(...), Ending(MPGD(0.2))))`.

    Attributes:
        rule: the rule.

    Shapes: as the rule's.
    Cost per step: the rule's in the last row, none before (`lax.cond`).
    Density: none, as the row has no noise.

    Example:
        >>> import ntrk_jax as nk
        >>> nk.guidance.Ending(nk.guidance.MPGD(0.2)).needs_grad
        False
    """

    rule: Guidance

    def __post_init__(self) -> None:
        """Refuse what is no rule."""
        require_rule("the rule of Ending", self.rule)

    needs_grad = passed_on("needs_grad")
    needs_reward_grad = passed_on("needs_reward_grad", False)
    exact = False

    def __call__(self, look: Lookahead, base: Gaussian, step: Step, *, key: Key, probe: Any) -> Tilt:
        """The rule's tilt in the last row, none before."""
        return _where(step.sigma_s == 0, self.rule, look, base, step, key, probe)


def _where(inside: Array, rule: Guidance, look: Lookahead, base: Gaussian, step: Step, key: Key, probe: Any) -> Tilt:
    """A rule's tilt if `inside` [], else none, and then nothing of it is computed."""
    zero = jnp.zeros_like(base.mean)
    project: list[Any] = [None]

    def guided(key: Key) -> tuple:
        tilt = rule(look, base, step, key=key, probe=probe)
        project[0] = tilt.project
        scale = jnp.asarray(tilt.scale, zero.dtype)
        return tilt.mean + zero, tilt.noise + zero, scale, Evals() + tilt.evals, jnp.asarray(tilt.status, jnp.int32)

    def alike(branch: Any) -> Any:
        return lambda key: vary(branch(key), (rule, look, base, step, key))

    def plain(key: Key) -> tuple:
        return zero, zero, jnp.ones((), zero.dtype), Evals() + Evals(), jnp.int32(0)

    mean, noise, scale, evals, status = jax.lax.cond(inside, alike(guided), alike(plain), key)
    return Tilt(mean, noise, scale, project[0], evals, status)
