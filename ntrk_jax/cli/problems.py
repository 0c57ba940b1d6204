"""Named problems: a model, a reward and, where it is known, the exact tilted law."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ntrk_jax as nk
from ntrk_jax.cli.console import BadInput, user_input

__all__ = ["NAMED", "TARGETS", "Named", "is_number", "parse", "problem"]

NAMED = (
    "das9, das8, skewD (D dimensions, e.g. skew2), cardosoD (D even), double_well, ring, step, two_modes, field32, "
    "digits"
)
TARGETS = f"{NAMED}, or mixture (given by [mixture] in --config)"

_MAX_DIM = 4096
_FIXED = ("das9", "das8", "double_well", "ring", "step", "field32")


class Named(NamedTuple):
    """What a sampler is built for.

    model, schedule, reward: as everywhere. shape: of one sample. law: the base law in closed form, or None.
    digits: the digits model that all of this belongs to, or None.
    """

    name: str
    model: Any
    schedule: Any
    reward: Any
    shape: tuple[int, ...]
    law: Any = None
    digits: Any = None

    def tilted(self, temperature: float) -> Any:
        """The exact tilted law, or None where it is not known, does not exist, or the temperature is infinite."""
        if self.law is None or math.isinf(temperature):
            return None
        try:
            return nk.targets.tilt(self.law, self.reward, temperature).mixture
        except ValueError:
            return None

    def spread(self) -> float:
        """The standard deviation of an entry of the data, all together: of 1024 exact draws, or of the real digits."""
        import jax
        import numpy as np

        data = self.digits.data if self.law is None else self.law.sample(jax.random.key(0), 1024)
        return float(np.sqrt(np.mean(np.var(np.asarray(data, np.float64), axis=0))))


def problem(
    name: str, *, schedule: str | None = None, digit: int | None = None, checkpoint: Path | None = None,
    tables: dict[str, Any] | None = None, observed: int | None = None, instance: int | None = None,
    b: Sequence[float] | None = None,
) -> Named:  # fmt: skip
    """The problem called `name`; options that it does not read are refused.

    observed, instance: of `targets.cardoso`, 1 and 0 unless given. b: of `targets.two_modes`, (0, 4) unless given.
    """
    if (observed, instance) != (None, None) and not name.startswith("cardoso"):
        raise BadInput(f"--observed and --instance belong to --target cardosoD, got --target {name}.")
    if tables and name != "mixture":
        raise BadInput(f"[{next(iter(tables))}] belongs to the target mixture, got {name}.")
    if b is not None and name != "two_modes":
        raise BadInput(f"--b belongs to --target two_modes, got --target {name}.")
    if name == "digits":
        if schedule is not None:
            raise BadInput("--schedule is fixed for digits: the network was trained on its own.")
        return _digits(0 if digit is None else digit, checkpoint)
    if digit is not None or checkpoint is not None:
        raise BadInput(f"--digit and --checkpoint belong to --target digits, got --target {name}.")
    if name == "two_modes":
        with user_input("--b"):
            law, reward = nk.targets.two_modes((0.0, 4.0) if b is None else b)
    else:
        law, reward = _closed_form(name, tables, 1 if observed is None else observed, instance or 0)
    with user_input("--schedule"):
        axis = parse(schedule or _usual_schedule(name, law.dim), "schedules")
    return Named(name, nk.models.Exact(law, axis), axis, reward, getattr(law, "shape", (law.dim,)), law)


def _usual_schedule(name: str, dim: int) -> str:
    """A schedule whose last noise hides the law: modes that are 16 sqrt(dim) away need more of it, and slowly."""
    if not name.startswith("cardoso"):
        return "VPCosine"
    return "VPLinear" if dim <= 16 else "VPLinear(beta_max=40.0)"


def _closed_form(name: str, tables: dict[str, Any] | None, observed: int, instance: int) -> tuple[Any, Any]:
    numbered = re.fullmatch(r"(skew|cardoso)([1-9][0-9]*)", name)
    if name in _FIXED:
        return getattr(nk.targets, name)()
    if numbered:
        family, dim = numbered.group(1), int(numbered.group(2))
        if dim > _MAX_DIM:
            raise BadInput(f"--target {family}D needs D of at most {_MAX_DIM}, got {dim}.")
        with user_input("--target"):
            return nk.targets.skewed(dim) if family == "skew" else nk.targets.cardoso(dim, observed, instance)
    if name == "mixture":
        return _configured(tables or {})
    raise BadInput(f"unknown target {name!r}; known are {NAMED if tables is None else TARGETS}.")


def _configured(tables: dict[str, Any]) -> tuple[Any, Any]:
    """The mixture and the reward of a configuration file."""
    if "mixture" not in tables or "reward" not in tables:
        raise BadInput("target mixture needs the tables [mixture] and [reward] in its file: --config, or the plan.")
    given = dict(tables["mixture"])
    _refuse_unknown("[mixture]", given, {"weights", "means", "covs"}, all_needed=True)
    with user_input("[mixture]"):
        law = nk.targets.GaussianMixture(*(_array(given[k]) for k in ("weights", "means", "covs")))
    given = dict(tables["reward"])
    _refuse_unknown("[reward]", given, {"linear", "precision", "c"})
    with user_input("[reward]"):
        linear, c = _array(given.get("linear", [0.0] * law.dim)), float(given.get("c", 0.0))
        if "precision" in given:
            reward = nk.rewards.Quadratic(_array(given["precision"]), linear, c)
        else:
            reward = nk.rewards.Linear(linear, c)
        nk.targets.expected_reward(law, reward)
    return law, reward


def _array(value: Any) -> Any:
    import numpy as np

    return np.asarray(value, np.float64)


def _refuse_unknown(where: str, given: dict[str, Any], known: set[str], all_needed: bool = False) -> None:
    if unknown := sorted(set(given) - known):
        raise BadInput(f"{where} has an unknown entry {unknown[0]!r}; known are {', '.join(sorted(known))}.")
    if all_needed and (missing := sorted(known - set(given))):
        raise BadInput(f"{where} needs an entry {missing[0]!r}.")


def _digits(digit: int, checkpoint: Path | None) -> Named:
    from ntrk_jax.training import digits

    with user_input("--checkpoint" if checkpoint else "digits"):
        model = digits.load_digits_model(checkpoint)
    return Named("digits", model.denoiser, model.schedule, model.reward(digit), digits.SHAPE, digits=model)


def parse(text: str, module: str) -> Any:
    """A kernel or schedule from its printed form; the module's name and empty brackets may be left out.

    Example:
        >>> parse("DDIM(eta=0.5)", "kernels")
        kernels.DDIM(eta=0.5)
    """
    home = getattr(nk, module)
    known = {name.lower(): name for name in home.__all__ if dataclasses.is_dataclass(getattr(home, name))}
    head, bracket, rest = text.strip().partition("(")
    name = head.removeprefix(f"{module}.").replace("_", "").lower()
    if name not in known:
        raise ValueError(
            f"unknown name {head!r}; known are {', '.join(known.values())}, with options as in 'DDIM(eta=0.5)'."
        )
    made = nk.config.loads(f"{module}.{known[name]}{bracket or '()'}{rest}")
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        usual = bool(field.metadata) or value is field.default or callable(value)
        if not usual and not is_number(value):
            raise ValueError(f"{field.name} must be a number, got {value!r}.")
    return made


def is_number(value: Any) -> bool:
    """Whether `value` is one real number, possibly infinite; text, lists and NaN are not."""
    if not nk.tree.is_concrete(value) or getattr(value, "ndim", 0) != 0:
        return False
    try:
        return not math.isnan(float(value))
    except (OverflowError, TypeError, ValueError):
        return False
