"""The report of `ntrk compare`: tables for the terminal and for a page, and the picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ntrk_jax.cli.console import table

__all__ = ["cells", "compare_table", "markdown", "picture"]

_EXACT = {
    "mean reward": ("mean_reward", 3), "sliced W1": ("sw1", 3), "sliced W2": ("sw2", 3), "mode TV": ("mode_tv", 3),
    "log Z": ("log_z", 3), "ESS": ("ess", 1),
}  # fmt: skip
_DIGITS = {
    "reward": ("mean_reward", 2), "held-out": ("held_out", 2), "distance": ("distance", 2),
    "ratio": ("distance_ratio", 2), "ESS": ("ess", 1),
}  # fmt: skip


def _number(value: Any, digits: int) -> str:
    if value is None:
        return ""
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.2e}"


def _with_error(entry: dict[str, Any], name: str, digits: int) -> str:
    mean, error = entry["mean"].get(name), entry["standard_error"].get(name)
    shown = _number(mean, digits)
    return shown if error is None or shown in ("", "diverged") else f"{shown} ±{_number(error, digits)}"


def _setting(entry: dict[str, Any]) -> str:
    """The strength or temperature, or the spread that the data are taken to have."""
    settings = entry["settings"]
    value = settings.get("strength", settings.get("temperature"))
    if value == "default" and "spread" in settings:
        return f"spread {settings['spread']:.3g}"
    return "" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns and the lines."""
    digits = report["target"] == "digits"
    metrics = _DIGITS if digits else _EXACT
    heads = ["method", "strength", "rows", "K", "NFE", "VJP", *metrics, "seconds"]
    lines = []
    if not digits:
        known = {**report["exact"], **report["floor"]}
        own = [_number(known.get(name), places) for name, places in metrics.values()]
        lines.append(["two exact sets", "", "", "", "", "", *own, ""])
    for entry in report["summary"]:
        mean, settings = entry["mean"], entry["settings"]
        counts = [f"{mean[name]:g}" for name in ("nfe", "model_vjp")]
        many = settings["num_particles"]
        own = [_with_error(entry, name, places) for name, places in metrics.values()]
        lines.append([
            entry["method"], _setting(entry), str(settings["num_steps"]), "" if many is None else str(many), *counts,
            *own, f"{mean['seconds']:.2f}",
        ])  # fmt: skip
    return heads, lines


def _title(report: dict[str, Any]) -> str:
    settings = report["settings"]
    num, seeds = settings["num"], len(settings["seeds"])
    return f"{report['target']}: {num} draws for each of {seeds} seeds, mean ± standard error of the seeds"


def compare_table(report: dict[str, Any]) -> Any:
    """The report as a table for the terminal."""
    heads, lines = cells(report)
    shown = [i for i in range(len(heads)) if i == 0 or any(line[i] for line in lines)]
    out = table(_title(report), [heads[i] for i in shown])
    for line in lines:
        out.add_row(*(line[i] for i in shown))
    return out


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    heads, lines = cells(report)
    rule = "|".join(["---", *["---:"] * (len(heads) - 1)])
    machine, settings = report["machine"], report["settings"]
    skipped = [f"- {one['method']}: {one['reason']}" for one in report["skipped"]]
    return "\n".join([
        f"# `ntrk compare` on {report['target']}", "", f"{_title(report)}.", "",
        f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines), "",
        "- NFE, VJP: model evaluations and backward passes through the model for one returned draw; a VJP costs about "
        "two more evaluations.",
        f"- Budget: {report['rules']['budget']}",
        f"- Strengths: {report['rules']['tuning']}",
        "- One population, or one tree, is one draw. K: particles or rollouts. ESS: mean over rows, before resampling. "
        "log Z: of all populations (trees) of a seed together; none for a tree at another temperature than the law's.",
        "- seconds: wall time of one seed's draws, compilation apart.",
        f"- kernel: {settings['kernel'] or 'each method' + chr(39) + 's default'}; value: {settings['value']}; "
        f"schedule: `{settings['schedule']}`; reward: `{settings['reward']}`.", "",
        *(["Left out:", "", *skipped, ""] if skipped else []),
        "## How it was made", "", f"- command: `{machine['command']}`",
        f"- {report['seconds']:.0f} seconds in all, compilation included",
        f"- machine: {machine['processor']}, {machine['cpu_count']} CPU cores, {machine['system']}, devices "
        f"{', '.join(sorted(set(machine['devices'])))}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in report['versions'].items())}", "",
    ])  # fmt: skip


def picture(path: Path, report: dict[str, Any], tilted: Any, exact: Any, clouds: dict[str, Any]) -> None:
    """The picture: in the plane the draws themselves, elsewhere bars.

    tilted: the exact tilted law, or None. exact: draws of it. clouds: the draws of each method at the first seed.
    """
    plane = tilted is not None and exact.ndim == 2 and exact.shape[1] == 2
    fig = _clouds(report, tilted, exact, clouds) if plane else _bars(report)
    fig.savefig(path, bbox_inches="tight")


def _clouds(report: dict[str, Any], tilted: Any, exact: Any, clouds: dict[str, Any]) -> Any:
    from ntrk_jax.cli.figures import EXACT, SAMPLES, contours, figure, limits_of

    columns = min(5 if len(clouds) < 10 else 7, len(clouds) + 1)
    rows = math.ceil((len(clouds) + 1) / columns)
    fig = figure(2.3 * columns, 2.55 * rows)
    limits = limits_of(np.asarray(exact), margin=0.25)
    panels = np.atleast_1d(fig.subplots(rows, columns, squeeze=False)).ravel()
    for axes in panels:
        axes.set_axis_off()
    means = {entry["method"]: entry["mean"] for entry in report["summary"]}
    shown = [("exact draws", exact, EXACT), *((name, x, SAMPLES) for name, x in clouds.items())]
    for axes, (name, x, colour) in zip(panels, shown, strict=False):
        axes.set_axis_on()
        contours(axes, tilted, limits, EXACT)
        x = np.asarray(x)[:600]
        outside = np.mean(np.any((x < [side[0] for side in limits]) | (x > [side[1] for side in limits]), axis=1))
        axes.scatter(x[:, 0], x[:, 1], s=3, color=colour, alpha=0.5, linewidths=0)
        sw2 = report["floor"]["sw2"] if name not in means else means[name]["sw2"]
        beyond = f", {outside:.0%} outside" if outside >= 0.01 else ""
        axes.set_title(f"{name}\nsliced W2 {_number(sw2, 2)}{beyond}", fontsize=8)
        axes.set(xlim=limits[0], ylim=limits[1], aspect="equal", xticks=[], yticks=[])
    return fig


def _bars(report: dict[str, Any]) -> Any:
    from ntrk_jax.cli.figures import EXACT, SAMPLES, figure

    digits = report["target"] == "digits"
    left, right = ("held_out", "distance_ratio") if digits else ("mean_reward", "sw2")
    names = [entry["method"] for entry in report["summary"]]
    fig = figure(9.0, 1.2 + 0.26 * len(names))
    panels = fig.subplots(1, 2, sharey=True)
    lines = {"mean_reward": report["exact"]["mean_reward"], "sw2": report["floor"]["sw2"], "distance_ratio": 1.2}
    heads = {
        "held_out": "target (bar) and held-out (dot) reward", "distance_ratio": "distance to real digits / base's",
        "mean_reward": "mean reward (line: exact)", "sw2": "sliced W2 (line: two exact sets)",
    }  # fmt: skip
    for axes, key in zip(panels, (left, right), strict=True):
        means, errors = (
            np.array([_finite(entry[part].get(name)) for entry in report["summary"]])
            for part, name in (("mean", "mean_reward" if key == "held_out" else key), ("standard_error", key))
        )
        axes.barh(range(len(names)), means, xerr=np.nan_to_num(errors), color=SAMPLES, height=0.7, error_kw={"lw": 0.8})
        if key == "held_out":
            axes.plot(
                [_finite(e["mean"].get(key)) for e in report["summary"]], range(len(names)), "o", color=EXACT, ms=4
            )
        if lines.get(key) is not None:
            axes.axvline(lines[key], color=EXACT, lw=1.0)
        axes.set_xlabel(heads[key], fontsize=9)
        _zoom(axes, means, lines.get(key))
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    return fig


def _finite(value: Any) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _zoom(axes: Any, means: np.ndarray, line: float | None) -> None:
    """Keep a method that went astray from flattening the others."""
    known = means[np.isfinite(means)]
    if not len(known):
        return
    points = np.append(known, [0.0 if line is None else line])
    low, high = np.min(points), np.max(points)
    middle = np.median(np.abs(points)) + 1e-9
    left, right = min(0.0, max(low, -6.0 * middle) * 1.08), max(0.0, min(high, 6.0 * middle) * 1.08)
    axes.set_xlim(left, right)
    for row, mean in enumerate(means):
        if np.isfinite(mean) and not left <= mean <= right:  # say where a bar that is cut would end
            side, edge = ("left", left) if mean < left else ("right", right)
            axes.text(edge, row, f" {mean:.3g} ", ha=side, va="center", fontsize=7, color="white")
