"""The comparison itself: for each method a strength is chosen, then every seed is drawn and judged.

Strengths are tried as the method's catalogue row lists them; while the best is at an end of what was tried, one more
beyond it at the same ratio, three at most; then half a step to either side of the best, and, of `Plan.halvings` more
than one, a quarter, an eighth ... Of a method that lists none and takes the data for Gaussian the standard deviation is
tried, from a tenth of the data's up: that of what a mixture is made of may serve it better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import ntrk_jax as nk
from ntrk_jax.cli.build import Choices, told
from ntrk_jax.cli.compare_judges import DigitsJudge, ExactJudge, key_of
from ntrk_jax.cli.compare_runs import Budget, Draws, Made, Program, make
from ntrk_jax.cli.console import BadInput, Progress
from ntrk_jax.cli.problems import Named

__all__ = ["Outcome", "Plan", "compare_method", "judge_for", "refusal", "summary_of"]

Judge = ExactJudge | DigitsJudge

_BEYOND = 3
_SPREADS = (0.1, 0.3, 1.0)
"""Of the data's own."""


class Plan(NamedTuple):
    """What is run for every method."""

    budget: Budget
    num: int
    seeds: tuple[int, ...]
    tune: bool = True
    kernel: str | None = None
    value: str = "plug-in"
    halvings: int = 1


class Dial(NamedTuple):
    """The option of a method that is tuned, what is tried of it, and its range, low <= value < high."""

    option: str
    tries: tuple[float, ...]
    low: float
    high: float


class Outcome(NamedTuple):
    """What a method did: one row a seed, what was tried, and the draws of the first seed."""

    method: str
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    tries: list[dict[str, Any]]
    compile_seconds: float
    first: Draws


def judge_for(task: Named, num: int) -> Judge:
    """Who judges the draws of a target."""
    return DigitsJudge(task, num) if task.law is None else ExactJudge(task, num)


def compare_method(name: str, task: Named, judge: Judge, plan: Plan, progress: Progress | None = None) -> Outcome:
    """Tune one method, then run all seeds; `progress` advances once for the tuning and once a seed.

    Raises:
        BadInput: in one line, if the method cannot serve this target or this budget.
    """
    progress = progress or Progress(0, quiet=True)
    made, dial = _made(name, task, judge, plan), _dial(name, task, judge)
    progress.say(f"compiling {name}")
    try:
        program = Program(made, task, plan.num, judge.asked)
    except (TypeError, ValueError) as error:
        raise BadInput(" ".join(str(error).split())) from None
    tries = []
    if plan.tune:
        progress.say(f"tuning {name}")
        made, tries = _tuned(name, task, judge, plan, made, program, dial)
        progress.advance(f"{name}, tuned" if tries else f"{name}, at its defaults")
    rows, first = [], None
    for seed in plan.seeds:
        draws, seconds = program(made, key_of(seed))
        first = draws if first is None else first
        rows.append(_row(name, seed, draws, judge(draws, seed), seconds))
        progress.advance(f"{name}, seed {seed}")
    assert first is not None
    settings = {"num_steps": made.num_steps, "num_particles": made.num_particles}
    entry = nk.methods.CATALOGUE.get(name)
    if entry is not None:
        settings |= ({entry.strength: "default"} if entry.strength else {}) | told(entry, task)
    if dial is not None and tries:
        settings[dial.option] = min(tries, key=lambda one: one["score"])["strength"]
    return Outcome(name, rows, settings, tries, program.compile_seconds, first)


def refusal(name: str, task: Named, plan: Plan) -> str | None:
    """Why a method cannot serve this target or this budget, found before anything is run; None if it can."""
    try:
        make(name, task, task.law, plan.budget, Choices(kernel=plan.kernel, value=plan.value))
    except BadInput as error:
        return error.message.removeprefix(f"--method {name}: ")
    return None


def _dial(name: str, task: Named, judge: Judge) -> Dial | None:
    """What is tuned of a method, or None."""
    entry = nk.methods.CATALOGUE.get(name)
    if entry is None:
        return None
    listed = entry.tries or (judge.temperatures if entry.strength == "temperature" else ())
    if entry.strength is not None and listed:
        return Dial(entry.strength, listed, entry.low, entry.high)
    tries = tuple(share * spread for spread in told(entry, task).values() for share in _SPREADS)
    return Dial("spread", tries, 1e-30, float("inf")) if tries else None


def _made(name: str, task: Named, judge: Judge, plan: Plan, option: str | None = None, value: float = 1.0) -> Made:
    choices = Choices(kernel=plan.kernel, value=plan.value)
    if option is not None:
        known = option in Choices._fields
        choices = choices._replace(**{option: value} if known else {"extra": (f"{option}={value!r}",)})
    return make(name, task, judge.tilted, plan.budget, choices)


def _tuned(
    name: str, task: Named, judge: Judge, plan: Plan, made: Made, program: Program, dial: Dial | None
) -> tuple[Made, list[dict[str, Any]]]:
    """The sampler at the best of the method's strengths, and what each of them scored."""
    seed = plan.seeds[0]
    if dial is None:
        return made, []
    tried: dict[float, tuple[tuple[int, float], Made, dict[str, Any]]] = {}

    def attempt(strength: float) -> None:
        if dial.low <= strength < dial.high and strength not in tried:
            one = _made(name, task, judge, plan, dial.option, strength)
            measured = judge(program(one, key_of(seed, tuning=True))[0], seed, tuning=True)
            tried[strength] = (judge.score(measured), one, measured)

    def best() -> float:
        return min(tried, key=lambda strength: tried[strength][0])

    for strength in dial.tries:
        attempt(strength)
    low, high = min(dial.tries), max(dial.tries)
    ratio = (high / low) ** (1.0 / (len(dial.tries) - 1)) if high > low else 10**0.5
    for _ in range(_BEYOND):
        attempt(best() * ratio if best() == max(tried) else best() / ratio if best() == min(tried) else best())
    for _ in range(plan.halvings):
        ratio, middle = ratio**0.5, best()
        attempt(middle / ratio)
        attempt(middle * ratio)
    tries = [{"strength": s, "score": score, **measured} for s, (score, _, measured) in tried.items()]
    return tried[best()][1], tries


def _row(name: str, seed: int, draws: Draws, measured: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One row of the report: means over the draws of a seed."""
    spent = {field: _mean(count) for field, count in draws.evals._asdict().items()}
    ess = np.asarray(draws.ess, np.float64)
    row = {
        "method": name, "seed": seed, "nfe": spent["model"], "model_vjp": spent["model_vjp"],
        "reward": spent["reward"], "reward_vjp": spent["reward_vjp"],
    }  # fmt: skip
    names = ("mean_reward", "sw1", "sw2", "mode_tv", "log_z")
    row |= {key: measured[key] for key in names}
    row |= {"ess": None if np.any(np.isnan(ess)) else float(ess.mean()), "seconds": seconds}
    row |= {key: value for key, value in measured.items() if key not in names}
    row["forward_equivalents"] = spent["model"] + 2 * spent["model_vjp"]
    return row | {"flagged": int(np.count_nonzero(draws.status))}


def _mean(count: Any) -> int | float:
    """A mean of counts, as an integer where it is one."""
    mean = float(np.mean(np.asarray(count, np.float64)))
    return int(mean) if mean == int(mean) else mean


def summary_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One entry a method: means and standard errors over seeds of everything that is a number."""
    out = []
    for one in outcomes:
        mean, error = {}, {}
        for key in one.rows[0]:
            values = [row[key] for row in one.rows]
            if key in ("method", "seed"):
                continue
            known = not any(v is None for v in values)
            mean[key] = float(np.mean(values)) if known else None
            several = known and len(values) > 1
            error[key] = float(np.std(values, ddof=1) / len(values) ** 0.5) if several else None
        out.append({
            "method": one.method, "settings": one.settings, "mean": mean, "standard_error": error,
            "tries": one.tries, "seconds_to_compile": one.compile_seconds,
        })  # fmt: skip
    return out
