"""From the options of `ntrk sample` to a sampler: every option is checked against the catalogue's entry."""

from __future__ import annotations

import ast
import inspect
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import ntrk_jax as nk
from ntrk_jax.cli.console import BadInput, user_input
from ntrk_jax.cli.problems import Named, is_number, parse

__all__ = ["ROLLOUTS", "Choices", "aimed_temperature", "build", "prepare", "told"]

ROLLOUTS = 100
"""Of a tree, unless --particles says otherwise."""


class Choices(NamedTuple):
    """The options of a method; None is the method's default."""

    strength: float | None = None
    temperature: float | None = None
    particles: int | None = None
    kernel: str | None = None
    value: str = "plug-in"
    extra: tuple[str, ...] = ()


def prepare(method: str, task: Named, choices: Choices, num_steps: int) -> tuple[Any, Any]:
    """The sampler that the options ask for, and the rows that it is run over: of the grid, or rollouts of a tree.

    Raises:
        BadInput: if the method is unknown or cannot use one of the options.
    """
    grid = nk.grids.usual(task.model, task.schedule, num_steps)
    sampler = build(method, task, choices, grid)
    entry = nk.methods.CATALOGUE[method]
    aimed = aimed_temperature(method, choices)
    learned = _learned_for(choices.value).get("temperature", aimed)
    if entry.strength == "temperature" and not math.isclose(learned, aimed, rel_tol=1e-6):
        raise BadInput(f"--value {choices.value} was learned at temperature {learned}; give --temperature {learned}.")
    return sampler, nk.samplers.rollouts(choices.particles or ROLLOUTS) if entry.tree else grid


def build(method: str, task: Named, choices: Choices, grid: Any = None) -> Any:
    """The sampler that the options ask for; a tree holds its grid.

    Raises:
        BadInput: if the method is unknown or cannot use one of the options.
    """
    entry = nk.methods.CATALOGUE.get(method)
    if entry is None:
        raise BadInput(f"unknown method {method!r}; known are {', '.join(nk.methods.names())}.")
    given = dict(_extra(method, entry, item) for item in choices.extra)
    options = _strength(method, entry, choices) | ({} if "spread" in given else told(entry, task))
    if entry.tree:
        names, others = _accepts(entry)
        options |= {"grid": grid}
        options |= {"num_rollouts": choices.particles or ROLLOUTS} if "num_rollouts" in names or others else {}
    elif entry.population and choices.particles is not None:
        options["num_particles"] = choices.particles
    if choices.kernel is not None:
        _require_option(method, entry, "kernel", "--kernel")
        with user_input("--kernel"):
            options["kernel"] = parse(choices.kernel, "kernels")
    if choices.value != "plug-in":
        _require_option(method, entry, "value", f"--value {choices.value}")
        options["value"] = _value(task, choices.value, aimed_temperature(method, choices))
    options |= given
    with user_input(f"--method {method}"):
        sampler = entry.build(task.model, task.reward, task.shape, **options)
    if choices.particles is not None and not (entry.population or entry.tree):
        if not hasattr(sampler, "num_particles"):
            raise BadInput(f"--particles is for methods with particles, candidates or rollouts; {method} has none.")
        sampler = nk.replace(sampler, num_particles=choices.particles)
    guidance = getattr(sampler, "guidance", None)
    if getattr(guidance, "convention", None) == "norm" and _positive_somewhere(task.reward):
        raise BadInput(
            f"{method} in the norm convention reads the reward as minus a squared residual, and that of {task.name} is "
            "positive somewhere, where there would be no shift; use dps or dps_squared."
        )
    return sampler


def told(entry: Any, task: Named) -> dict[str, float]:
    """What a method that takes the data for Gaussian is told of them, their spread; of other methods nothing."""
    return {"spread": task.spread()} if "spread" in _accepts(entry)[0] else {}


def aimed_temperature(method: str, choices: Choices) -> float:
    """The temperature of the tilted law that the options aim at: 1 where the method has none, inf for no tilt."""
    if choices.temperature is not None:
        return choices.temperature
    convention = [item for item in choices.extra if item.startswith("convention=")]
    if method == "dps" and choices.strength is not None and convention in ([], ["convention=likelihood"]):
        return math.inf if choices.strength == 0 else 1.0 / choices.strength
    return 1.0


def _positive_somewhere(reward: Any) -> bool:
    """Whether the reward is known to be above 0 for some sample, up to rounding."""
    import numpy as np

    if isinstance(reward, nk.rewards.Neural):
        return reward.kind == "logit"
    if not isinstance(reward, nk.rewards.Linear | nk.rewards.Quadratic):
        return False
    linear = reward.a if isinstance(reward, nk.rewards.Linear) else reward.linear
    b, c = np.ravel(np.asarray(linear, np.float64)), float(reward.c)
    p = np.asarray(getattr(reward, "precision", 0.0), np.float64)
    values, vectors = np.linalg.eigh(p if p.ndim else p * np.eye(b.size))
    along, tiny = vectors.T @ b, 1e-6 * max(1.0, float(np.abs(values).max()))
    if np.any(values < -tiny) or np.any((values <= tiny) & (np.abs(along) > tiny)):
        return True
    curved = values > tiny
    return c + 0.5 * float(np.sum(along[curved] ** 2 / values[curved])) > tiny


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


def _value(task: Named, value: str, temperature: float) -> Any:
    """The exact value, or the learned one of a folder."""
    if value == "exact" and task.law is None:
        raise BadInput(f"--value exact needs a target whose law is known, not {task.name}.")
    with user_input(f"--value {value}"):
        if value == "exact":
            beta = temperature if math.isfinite(temperature) else 1.0
            return nk.values.Exact(task.law, task.schedule, task.reward, beta)
        import jax

        from ntrk_jax.training import load_value

        learned = load_value(value)
        nk.grids.check_schedule(learned, nk.grid(task.schedule, nk.grids.uniform(4)))
        jax.eval_shape(lambda x: learned(jax.random.key(0), x, 0.5), jax.ShapeDtypeStruct(task.shape, "float32"))
        target = _learned_for(value).get("target", task.name)
        if target != task.name:
            raise ValueError(f"it was learned for the target {target}, not for {task.name}.")
        return learned


def _learned_for(value: str) -> dict[str, Any]:
    """The settings that a value was learned with, where the report of its training lies beside it."""
    folder = Path(value).parent if (Path(value) / "network.json").is_file() else Path(value)
    try:
        return dict(json.loads((folder / "report.json").read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


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
    names -= {"kernel", "value", "whiten", "guidance", "strength", "temperature", "num_particles", "grid",
              "num_rollouts"}  # fmt: skip
    if name not in names:
        raise BadInput(
            f"{method} has no option {name!r}; its options for --set are: {', '.join(sorted(names)) or 'none'}."
        )
    if isinstance(inspect.signature(entry.build).parameters[name].default, str):
        return name, text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if not is_number(value):
        raise BadInput(f"--set {name} must be a number, got {text!r}.")
    return name, value
