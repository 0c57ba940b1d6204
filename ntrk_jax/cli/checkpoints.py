"""Folders that `ntrk train tilt` writes and `ntrk sample --checkpoint` reads: model.json and the weights beside it.

model.json says what the arrays in model/ are: the target and the tilt, the schedule and the network's sizes. It is read
as numbers and words, each checked; nothing in the folder is executed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import ntrk_jax as nk
from ntrk_jax.cli.console import BadInput, user_input
from ntrk_jax.cli.problems import Named, parse, problem

__all__ = ["MODEL", "RECORD", "describe", "is_folder", "tuned_problem", "write_arrays"]

RECORD, MODEL = "model.json", "model"
_FORMAT = "ntrk_jax tuned model 1"
_SIZES = ("width", "hidden", "depth")
_LARGEST = 4096


def is_folder(path: Path | None) -> bool:
    """Whether `--checkpoint` means a folder of a tuned model and not a digits file."""
    return path is not None and (path.is_dir() or path.suffix != ".npz")


def describe(task: Named, settings: dict[str, Any]) -> dict[str, Any]:
    """What model.json says of a model tuned with these settings."""
    network = {k: settings[k] for k in _SIZES} | {"moments": settings["moments"]}
    kept = {k: settings[k] for k in ("target", "b", "digit", "temperature")}
    return {"format": _FORMAT, **kept, "schedule": repr(task.schedule), "network": network}


def write_arrays(folder: Path, model: Any) -> None:
    """Write the arrays of a tuned model into its folder."""
    from ntrk_jax.training import save

    save(folder / MODEL, _arrays(model))


def tuned_problem(folder: Path, target: str | None = None, digit: int | None = None) -> Named:
    """The tuned model of a folder as a problem: its own reward is asked for once more on top.

    The law is the tilted one in closed form, where that can be tilted again.

    Args:
        target: the target that was typed, which must be the folder's, or None. digit: of the reward on top, for digits.
    """
    record = _read_record(folder)
    name, b = str(record["target"]), record["b"]
    if target is not None and target != name:
        raise BadInput(f"--checkpoint {folder} is a model of {name}, got --target {target}.")
    if name == "digits":
        task = problem(name, digit=record["digit"] if digit is None else digit)
        blank = task.model
    else:
        task = problem(name, schedule=record["schedule"], digit=digit, b=b)
        with user_input(f"--checkpoint {folder}"):
            schedule = parse(record["schedule"], "schedules")
            sizes = {k: record["network"][k] for k in _SIZES}
            blank = nk.models.blank_network(task.shape, schedule, record["network"]["moments"], **sizes)
    with user_input(f"--checkpoint {folder}"):
        model = _filled(folder, blank)
    exact = task.tilted(float(record["temperature"]))
    return task._replace(model=model, law=exact if hasattr(exact, "tilt") else None)


def _arrays(model: Any) -> dict[str, Any]:
    names = ("variables", "mean", "values", "vectors")
    return {name: getattr(model, name) for name in names if getattr(model, name, None) is not None}


def _filled(folder: Path, blank: Any) -> Any:
    """The model with the folder's arrays in the place of its own."""
    import jax

    from ntrk_jax.training import restore

    found = restore(folder / MODEL, _arrays(blank))
    if not all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(found)):
        raise ValueError("the model's arrays must be finite")
    return nk.tree.replace(blank, **found)


def _read_record(folder: Path) -> dict[str, Any]:
    """model.json, every entry of the type and range it must have."""
    again = f"--checkpoint {folder} is not a folder that `ntrk train tilt` has finished"
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        network, b = record["network"], record["b"]
        ok = (
            record["format"] == _FORMAT
            and isinstance(record["target"], str)
            and isinstance(record["schedule"], str)
            and (b is None or (len(b) == 2 and all(isinstance(v, (int, float)) for v in b)))
            and (record["digit"] is None or record["digit"] in range(10))
            and float(record["temperature"]) > 0
            and all(isinstance(network[k], int) and 1 <= network[k] <= _LARGEST for k in _SIZES)
            and isinstance(network["moments"], str)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{again} ({reason[:200]}).") from None
    if not ok:
        raise BadInput(f"{again} (an entry of {RECORD} is not what it must be).")
    return record
