"""From a plan in TOML to a `batch.Plan`: every entry is checked, unknown ones are refused with the known names.

target = "das9"        # or checkpoint = "digits.npz", or the folder of a tuned model
method = "ntrk"
steps = 100
num = 100_000          # samples (of each unit)
seed = 0
chunk = 4096           # samples that one device draws at a time

[[units]]              # optional: what differs, one table a unit; `digits = [0, 1, 2]` is short for three of them
strength = 0.1
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ntrk_jax.batch import Plan, Unit
from ntrk_jax.cli.build import Choices, prepare
from ntrk_jax.cli.checkpoints import is_folder, tuned_problem
from ntrk_jax.cli.console import BadInput, user_input
from ntrk_jax.cli.problems import problem

__all__ = ["read_plan"]

_WHOLE = {
    "steps": (1, 100_000), "num": (1, 2**31 - 1), "seed": (0, 2**32 - 1), "chunk": (1, 1_000_000),
    "particles": (1, 100_000), "digit": (0, 9),
}  # fmt: skip
_REAL = ("strength", "temperature")
_TEXT = ("target", "checkpoint", "method", "value", "kernel", "schedule")
_SHARED = ("num", "chunk")  # of the whole table
_DEFAULTS = {"steps": 25, "seed": 0, "chunk": 256}
_UNIT = sorted({*_WHOLE, *_REAL, *_TEXT, "name", "set"} - set(_SHARED))
_KNOWN = sorted({*_WHOLE, *_REAL, *_TEXT, "set", "digits", "units", "mixture", "reward"})


def read_plan(path: Path) -> Plan:
    """The plan that a TOML file asks for.

    Raises:
        BadInput: if the file cannot be read, or asks for what does not exist.
    """
    import tomllib

    with user_input(f"cannot read the plan {path}"):
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    _check(entries, _KNOWN, str(path))
    for name in ("mixture", "reward"):
        if name in entries and not isinstance(entries[name], dict):
            raise BadInput(f"{path}: {name} must be a table [{name}].")
    units = _units(entries, str(path))
    plain = {k: v for k, v in entries.items() if k not in ("units", "digits")}
    for unit in units or [{}]:
        for name in ("target", "method", "num"):
            if name not in plain | unit and not (name == "target" and "checkpoint" in plain | unit):
                hint = " (or a checkpoint)" if name == "target" else ""
                raise BadInput(f"{path} needs an entry {name}{hint}.")
    return _plan(plain, units, entries, path)


def _plan(plain: dict[str, Any], units: list[dict[str, Any]], entries: dict[str, Any], path: Path) -> Plan:
    known: dict[tuple, Any] = {}
    shared = _DEFAULTS | plain
    made, shapes = [], set()
    for own in units or [{}]:
        with _of_the_plan(path, own.get("name")):
            sampler, steps, shape = _sampler(shared | own, known, path)
        seed = own.get("seed") if units else shared["seed"]
        made.append(Unit(own.get("name", "all"), sampler, steps, seed))
        shapes.add(shape)
    if len(shapes) > 1:
        raise BadInput(f"{path}: units must draw samples of one shape, got {sorted(shapes)}.")
    with user_input(str(path)):
        return Plan(
            tuple(made), shapes.pop(), shared["num"], shared["seed"], shared["chunk"], settings={"file": entries}
        )


@contextmanager
def _of_the_plan(path: Path, unit: str | None) -> Iterator[None]:
    """Report what is wrong with the options of a method by the plan and the unit, whose entries have no dashes."""
    try:
        yield
    except BadInput as error:
        text = re.sub(r"(?<!\S)--(?=[a-z])", "", error.message).removeprefix(f"{path}: ")
        raise BadInput(f"{path}{f', unit {unit}' if unit else ''}: {text}") from None


def _sampler(entry: dict[str, Any], known: dict[tuple, Any], path: Path) -> tuple[Any, Any, tuple[int, ...]]:
    """The sampler, grid and shape of one unit; problems that were made before are shared."""
    name = tuple(entry.get(k) for k in ("target", "schedule", "digit", "checkpoint"))
    if name not in known:
        known[name] = _problem(entry, path)
    task = known[name]
    extra = tuple(f"{k}={v}" for k, v in entry.get("set", {}).items())
    value = entry.get("value", "plug-in")
    choices = Choices(
        entry.get("strength"), entry.get("temperature"), entry.get("particles"), entry.get("kernel"),
        value if value in ("plug-in", "exact") else str(_beside(path, value)), extra,
    )  # fmt: skip
    return *prepare(entry["method"], task, choices, entry["steps"]), task.shape


def _problem(entry: dict[str, Any], path: Path) -> Any:
    """The named problem of a unit, or that of its checkpoint."""
    target, schedule, digit = (entry.get(k) for k in ("target", "schedule", "digit"))
    checkpoint = None if "checkpoint" not in entry else _beside(path, entry["checkpoint"])
    if is_folder(checkpoint):
        if schedule is not None:
            raise BadInput(f"{path}: schedule is fixed by the checkpoint, whose network was trained on its own.")
        assert checkpoint is not None
        return tuned_problem(checkpoint, target, digit)
    tables = {k: entry[k] for k in ("mixture", "reward") if k in entry}
    with user_input(str(path)):
        return problem(target or "digits", schedule=schedule, digit=digit, checkpoint=checkpoint, tables=tables)


def _beside(path: Path, name: str) -> Path:
    """A file named in the plan, relative to the plan."""
    return path.parent / Path(name).expanduser()


def _units(entries: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The overrides of each unit, with its name."""
    units, digits = entries.get("units", []), entries.get("digits")
    if digits is not None:
        if units or "digit" in entries or not isinstance(digits, list):
            raise BadInput(f"{where}: digits must be a list, without digit and [[units]] beside it.")
        units = [{"digit": digit} for digit in digits]
    if not isinstance(units, list) or not all(isinstance(unit, dict) for unit in units):
        raise BadInput(f"{where}: units must be tables [[units]].")
    for unit in units:
        _check(unit, _UNIT, f"{where}, [[units]]")
    return [{"name": ", ".join(f"{k} = {v}" for k, v in sorted(unit.items())) or "all"} | unit for unit in units]


def _check(entry: dict[str, Any], known: list[str], where: str) -> None:
    """Refuse unknown names and values of the wrong kind."""
    for name, value in entry.items():
        if name not in known:
            raise BadInput(f"{where} has an unknown entry {name!r}; known are {', '.join(known)}.")
        if name in _WHOLE:
            low, high = _WHOLE[name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise BadInput(f"{where}: {name} must be a whole number between {low} and {high}, got {value!r}.")
        if name in _REAL and not _is_finite(value):
            hint = "; for several give [[units]], one table each" if isinstance(value, list) else ""
            raise BadInput(f"{where}: {name} must be a finite number, got {value!r}{hint}."[:300])
        if name in (*_TEXT, "name") and not isinstance(value, str):
            raise BadInput(f"{where}: {name} must be text, got {value!r}.")
        if name == "set" and not isinstance(value, dict):
            raise BadInput(f"{where}: set must be a table [set], got {value!r}.")


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
