"""From the options of `ntrk sample` to a sampler: every option is checked against the catalogue's entry."""

from __future__ import annotations

import ast
import inspect
import math
from typing import Any, NamedTuple

import ntrk_jax as nk
from ntrk_jax.cli.console import BadInput, user_input
from ntrk_jax.cli.problems import Named, parse

__all__ = ["Choices", "build"]

_VALUES = ("plug-in", "exact")


class Choices(NamedTuple):
    """The options of a method; None is the method's default."""

    strength: float | None = None
    temperature: float | None = None
    particles: int | None = None
    kernel: str | None = None
    value: str = "plug-in"
    extra: tuple[str, ...] = ()


def build(method: str, task: Named, choices: Choices) -> Any:
    """The sampler that the options ask for.

    Raises:
        BadInput: if the method is unknown or cannot use one of the options.
    """
    entry = nk.methods.CATALOGUE.get(method)
    if entry is None:
        raise BadInput(f"unknown method {method!r}; known are {', '.join(nk.methods.names())}.")
    options = _strength(method, entry, choices)
    if choices.particles is not None:
        if not entry.population:
            raise BadInput(f"--particles is for methods with a population, and {method} has none.")
        options["num_particles"] = choices.particles
    if choices.kernel is not None:
        _require_option(method, entry, "kernel", "--kernel")
        with user_input("--kernel"):
            options["kernel"] = parse(choices.kernel, "kernels")
    if choices.value == "exact":
        _require_option(method, entry, "value", "--value exact")
        options["value"] = _exact(task, choices.temperature)
    options |= dict(_extra(method, entry, item) for item in choices.extra)
    with user_input(f"--method {method}"):
        return entry.build(task.model, task.reward, task.shape, **options)


def _strength(method: str, entry: Any, choices: Choices) -> dict[str, Any]:
    """--strength or --temperature, whichever the method has, if it lies in the method's range."""
    given = {"strength": choices.strength, "temperature": choices.temperature}
    for name, value in given.items():
        own = name == entry.strength
        if value is None or (name == "temperature" and choices.value == "exact" and not own):
            continue
        if not own:
            hint = f"; use --{entry.strength}" if entry.strength else ""
            raise BadInput(f"{method} has no --{name}{hint}.")
        if not (entry.low <= value < entry.high):
            low = "above 0" if 0 < entry.low < 1e-9 else f"at least {entry.low:g}"
            high = "finite" if math.isinf(entry.high) else f"below {entry.high:g}"
            raise BadInput(f"--{name} of {method} must be {low} and {high}, got {value:g}.")
    value = given.get(entry.strength) if entry.strength else None
    return {} if value is None else {entry.strength: value}


def _exact(task: Named, temperature: float | None) -> Any:
    if task.law is None:
        raise BadInput(f"--value exact needs a target whose law is known, not {task.name}.")
    with user_input("--value exact"):
        return nk.values.Exact(task.law, task.schedule, task.reward, 1.0 if temperature is None else temperature)


def _accepts(entry: Any) -> tuple[set[str], bool]:
    """The names of a method's options, and whether it passes others on."""
    parameters = list(inspect.signature(entry.build).parameters.values())[3:]
    names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _require_option(method: str, entry: Any, name: str, flag: str) -> None:
    names, others = _accepts(entry)
    if name not in names and not others:
        raise BadInput(f"{method} has no {flag}.")


def _extra(method: str, entry: Any, item: str) -> tuple[str, Any]:
    """One --set NAME=VALUE; the value is a number or a word."""
    name, equals, text = item.partition("=")
    if not equals:
        raise BadInput(f"--set needs NAME=VALUE, got {item!r}.")
    names, _ = _accepts(entry)
    names -= {"kernel", "value", "whiten", "guidance", "strength", "temperature", "num_particles"}
    if name not in names:
        raise BadInput(f"{method} has no option {name!r}; --set knows {', '.join(sorted(names)) or 'none'} for it.")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text
