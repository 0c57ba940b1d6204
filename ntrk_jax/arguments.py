"""What is refused in the same words everywhere: classes, broken counts, old keys, rewards of many numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntrk_jax.tree import Function, is_concrete, is_key

__all__ = [
    "as_shape",
    "refuse_class",
    "refuse_network",
    "require_called",
    "require_count",
    "require_key",
    "require_probability",
    "require_rule",
    "require_scalar",
    "require_schedule",
    "require_temperature",
    "require_temperature_of",
    "require_times",
    "valueless",
]


def as_shape(shape: Any) -> tuple[int, ...]:
    """The shape of one sample as a tuple; a number is that of a vector."""
    return (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)


def refuse_class(name: str, value: Any) -> None:
    """Raise TypeError for a class where an object of it is meant."""
    given = value.fn if isinstance(value, Function) else value
    if isinstance(given, type):
        raise TypeError(f"{name} must be an object, got the class {given.__name__}; write {given.__name__}(...).")


def refuse_network(name: str, value: Any) -> None:
    """Raise TypeError for a Flax module where a denoiser is meant: its prediction would be taken as x0."""
    known = ("flax.linen", "flax.nnx")
    if any(cls.__module__.startswith(known) for cls in type(getattr(value, "fn", value)).__mro__):
        raise TypeError(
            f"{name} must be a denoiser (x, t) -> x0, got a network; say what it predicts, be it 'x0': "
            "nk.models.NnxDenoiser(net, kind, schedule), or FlaxDenoiser(net.apply, kind, variables, schedule)."
        )


def require_called(name: str, value: Any, example: str) -> None:
    """Raise TypeError unless `value` can be called and is no class; `example` says what is."""
    refuse_class(name, value)
    if not callable(value):
        raise TypeError(f"{name} must be one such as {example}, got {value!r}.")


def require_schedule(schedule: Any) -> None:
    """Raise TypeError unless it can be called as t -> (alpha, sigma)."""
    require_called("schedule", schedule, "nk.schedules.VPCosine()")


def require_count(least: int = 1, /, **counts: Any) -> None:
    """Raise ValueError unless each is a whole number of at least `least`."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be at least {least} and a whole number, got {value!r}.")


def require_key(key: Any) -> None:
    """Raise TypeError unless `key` is a typed one."""
    if not is_key(key):
        raise TypeError(f"key must be a typed key, got {type(key).__name__}; make one with jax.random.key(seed).")


def require_probability(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a number strictly between 0 and 1."""
    if np.ndim(value) or isinstance(value, bool | str) or not 0.0 < float(value) < 1.0:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}.")


def require_rule(what: str, rule: Any) -> None:
    """Raise TypeError unless `rule` can be called as one and says what a rule says of itself."""
    refuse_class(what, rule)
    if not (callable(rule) and hasattr(rule, "needs_grad") and hasattr(rule, "exact")):
        raise TypeError(
            f"{what} must be a rule such as nk.guidance.NTRK(...), with needs_grad and exact, got {rule!r}."
        )


def require_temperature(temperature: Any, *, finite: bool = False) -> None:
    """Raise ValueError unless it is positive where it is known, and finite where a closed form is a product with it."""
    if not is_concrete(temperature):
        return
    given = np.asarray(temperature, np.float64)
    if not np.all(given > 0) or (finite and not np.all(np.isfinite(given))):
        raise ValueError(f"temperature must be positive{' and finite' if finite else ''}, got {temperature}.")


def require_temperature_of(value: Any, temperature: Any) -> None:
    """Raise ValueError if a value knows its own temperature and it is another than the method's."""
    own = getattr(value, "temperature", temperature)
    single = is_concrete(own) and is_concrete(temperature) and np.ndim(own) == np.ndim(temperature) == 0
    if single and not np.isclose(float(own), float(temperature), rtol=1e-2):
        raise ValueError(f"the value was made for temperature {own}, and the method aims at {temperature}.")


def require_times(low: Any, high: Any) -> None:
    """Raise ValueError unless 0 <= low <= high <= 1, where both are known."""
    if is_concrete(low) and is_concrete(high):
        ends = np.asarray(low), np.asarray(high)
        if not np.all((ends[0] >= 0) & (ends[0] <= ends[1]) & (ends[1] <= 1)):
            raise ValueError(f"times need 0 <= low <= high <= 1, got low = {low} and high = {high}.")


def require_scalar(value: Any) -> Any:
    """The reward of one sample; raise ValueError unless it is one number."""
    if value is None:
        raise ValueError("a reward must return a scalar for one sample, got None; has it a return?")
    if np.shape(value) != ():
        raise ValueError(f"a reward must return a scalar for one sample, got shape {np.shape(value)}; sum or index it.")
    return value


def valueless(reward: Any) -> str:
    """The name of the reward, or of the member of a composed one, that gives values and no gradient."""
    inner = getattr(reward, "reward", None)
    for member in getattr(reward, "rewards", () if inner is None else (inner,)):
        if not getattr(member, "differentiable", True):
            return valueless(member)
    return type(getattr(reward, "fn", reward)).__name__
