"""The report of `ntrk demo`: one dictionary, printed as tables, written as JSON and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ntrk_jax.cli.console import table
from ntrk_jax.cli.digits_study import METRICS

__all__ = ["digits_table", "markdown", "mixture_table", "rival_line", "verdict_line"]

_MIXTURE_COLUMNS = ["sampler", "steps", "sliced W2", "/ floor", "mean reward", "seconds"]


def _with_error(row: dict[str, Any], name: str, digits: int = 2) -> str:
    mean, error = row["mean"][name], row["standard_error"][name]
    if mean is None or math.isnan(mean):
        return "none"
    return f"{mean:.{digits}f}" + ("" if error is None else f" ±{error:.{digits}f}")


def _gradients(evals: dict[str, int]) -> str:
    """Of the model and of the reward; one number where they agree."""
    model, reward = evals["model_vjp"], evals["reward_vjp"]
    return str(model) if model == reward else f"{model} + {reward}"


def _digit_grid(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, one a method, and the lines, one a number."""
    cells: dict[str, Callable[[dict[str, Any]], str]] = {
        "NFE": lambda row: str(row["nfe"]),
        "gradients": lambda row: _gradients(row["evals_per_sample"]),
        "reward": lambda row: _with_error(row, "reward"),
        "held-out": lambda row: _with_error(row, "judge"),
        "recognised": lambda row: f"{row['mean']['recognised']:.0%}",
        "distance": lambda row: _with_error(row, "distance"),
        "ratio": lambda row: f"{row['distance_ratio_to_base']:.2f}",
        "spread": lambda row: _with_error(row, "spread"),
        "noise": lambda row: _with_error(row, "noise"),
        "run, s": lambda row: f"{row['seconds_a_seed']:.2f}",
        "compile, s": lambda row: f"{row['seconds_to_compile']:.1f}",
    }
    return ["", *(row["label"] for row in rows)], [[name, *map(cell, rows)] for name, cell in cells.items()]


def _mixture_rows(mixture: dict[str, Any]) -> list[list[str]]:
    floor = mixture["sliced_w2_floor"]
    out = [["two exact samples", "", f"{floor:.3f}", "1.0", f"{mixture['exact_mean_reward']:.2f}", ""]]
    for row in mixture["rows"]:
        if row["num_steps"] is not None:
            out.append([
                row["label"], str(row["num_steps"]), f"{row['sliced_w2']:.3f}", f"{row['sliced_w2'] / floor:.1f}",
                f"{row['mean_reward']:.2f}", f"{row['seconds']:.1f}",
            ])  # fmt: skip
    return out


def digits_table(report: dict[str, Any]) -> Any:
    """The digits as a table for the terminal."""
    settings = report["settings"]
    title = (
        f"Digits: {settings['num']} samples for each of {len(settings['seeds'])} seeds, mean ± standard error of them"
    )
    columns, lines = _digit_grid(report["digits"]["methods"])
    out = table(title, columns)
    for line in lines:
        out.add_row(*line)
    return out


def mixture_table(report: dict[str, Any]) -> Any:
    """The mixture as a table for the terminal."""
    mixture = report["mixture"]
    out = table(
        f"2-D mixture, exact value, {mixture['samples']} samples: distance to the exact tilted law", _MIXTURE_COLUMNS
    )
    for row in _mixture_rows(mixture):
        out.add_row(*row)
    return out


def verdict_line(verdict: dict[str, Any]) -> str:
    """What a reader wants to know first; says no where the answer is no."""

    def word(name: str) -> str:
        return "yes" if verdict[name] else "no"

    wins, seeds = verdict["seeds_won"], verdict["seeds"]
    return (
        f"NTRK at {verdict['nfe']} NFE beats best-of-N at {verdict['nfe_of_best_of_n']} NFE: "
        f"target reward {word('target_reward')} ({wins['reward']} of {seeds} seeds), "
        f"held-out reward {word('held_out_reward')} ({wins['judge']} of {seeds} seeds), "
        f"distance at most {verdict['largest_ratio']:g} times the base's {word('distance')} "
        f"({verdict['distance_ratio_to_base']:.2f})."
    )


def rival_line(verdict: dict[str, Any]) -> str:
    """NTRK beside DPS, at the strengths stated."""
    gap = verdict["ntrk_minus_dps"]
    known = gap["spread"] is not None and math.isfinite(gap["spread"])
    spread = f"spread {gap['spread']:+.2f}, " if known else ""  # of one sample a digit there is none
    return (
        f"NTRK minus DPS, both at {verdict['nfe']} NFE: target reward {gap['reward']:+.2f}, "
        f"held-out reward {gap['judge']:+.2f}, distance {gap['distance']:+.2f}, {spread}"
        f"largest |z| of the noise {gap['noise']:+.2f}."
    )


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    settings, mixture, machine = report["settings"], report["mixture"], report["machine"]
    lines = [
        "# Report of `ntrk demo`", "", f"**{verdict_line(report['digits']['verdict'])}**", "",
        rival_line(report["digits"]["verdict"]), "",
        "## Handwritten digits", "",
        f"{settings['num']} samples for each of the seeds {', '.join(map(str, settings['seeds']))}; they are asked for "
        f"the digits {', '.join(map(str, settings['digits']))} in turn; {settings['num_steps']} steps of DDIM(1). "
        "Mean ± standard error over seeds. The picture `digits.png` shows the first samples of the first seed.", "",
        *_table(*_digit_grid(report["digits"]["methods"])), "",
        *(f"- {name}: {METRICS[name]}." for name in ("reward", "recognised", "distance", "spread", "noise")),
        f"- held-out: {METRICS['judge']}.",
        "- ratio: distance divided by the base sampler's.",
        f"- Real digits are {report['digits']['real_distance']:.2f} from their nearest other real digit; their spread "
        f"is {report['digits']['real_spread']:.2f}.",
        "- The injected noise is (x_s - base mean) / base std along the path, steps 2 to the last but one.",
        "- NFE, gradients: model evaluations a sample, and as many backward passes through model and reward.",
        "- run, compile: wall time of one seed's samples, and of the compilation before the first.", "",
        "Settings (NTRK's strength is its default; that of DPS was tuned on other seeds to the same ratio):", "",
        *(f"- {row['label']}: " + (", ".join(f"{k} = {v}" for k, v in row["settings"].items()) or "none")
          for row in report["digits"]["methods"]), "",
        "## 2-D mixture", "",
        f"Target: {mixture['target']}, temperature {mixture['temperature']:g}; value: {mixture['value']}; whitening: "
        f"`{mixture['whitening']}`; {mixture['samples']} samples. A constant rho aims elsewhere at every number of "
        "steps; a temperature does not. Picture: `mixture.png`.", "",
        *_table(_MIXTURE_COLUMNS, _mixture_rows(mixture)), "",
        "## How it was made", "",
        f"- command: `{machine['command']}`", f"- {report['seconds']:.0f} seconds in all, compilation included",
        f"- machine: {machine['processor']}, {machine['cpu_count']} CPU cores, {machine['system']}, "
        f"devices {', '.join(sorted(set(machine['devices'])))}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in report['versions'].items())}",
        f"- digits model: {report['digits']['model']}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    rule = "|".join(["---", *["---:"] * (len(columns) - 1)])
    return [f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]
