"""The two pictures of `ntrk demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntrk_jax.cli.figures import BASE, EXACT, SAMPLES, contours, figure, image_grid

__all__ = ["digits_picture", "mixture_picture"]

_COLUMNS = 10
_MOST_POINTS = 1500


def digits_picture(path: Path, outcomes: Sequence[Any], rows: Sequence[dict[str, Any]], real: np.ndarray) -> None:
    """The first samples of the first seed, one band a method, column d asked for the digit d; real digits on top.

    real: [10, H, W, ...], one image of each digit.
    """
    count = min(2 * _COLUMNS, len(outcomes[0].images) // _COLUMNS * _COLUMNS) or len(outcomes[0].images)
    bands = [("real digits", "", real)]
    for out, row in zip(outcomes, rows, strict=True):
        text = f"reward {_short(row['mean']['reward'])}\nheld-out {_short(row['mean']['judge'])}"
        text += f"\ndistance {row['distance_ratio_to_base']:.2f} of base"
        bands.append((f"{row['label']}\n{row['nfe']} NFE", text, out.images[:count]))
    grids = [image_grid(_planes(images), _COLUMNS) for _, _, images in bands]
    heights = [grid.shape[0] / grid.shape[1] for grid in grids]
    fig = figure(9.5, 5.6 * sum(heights) + 0.16 * len(bands) + 0.75)
    panels = fig.subplots(len(bands), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    for axes, grid, (label, text, _) in zip(panels, grids, bands, strict=True):
        axes.imshow(grid, cmap="gray_r", vmin=-1.0, vmax=1.0, interpolation="nearest")
        axes.set_axis_off()
        axes.text(-0.02, 0.5, label, transform=axes.transAxes, ha="right", va="center", fontsize=10, weight="bold")
        axes.text(1.02, 0.5, text, transform=axes.transAxes, ha="left", va="center", fontsize=9)
    side = grids[0].shape[1] / _COLUMNS
    for digit in range(len(real)):
        panels[0].text((digit + 0.45) * side, -6, str(digit), ha="center", va="bottom", fontsize=10)
    fig.suptitle("Handwritten digits: each column is asked for one digit (first samples, not selected)", fontsize=11)
    fig.savefig(path, bbox_inches="tight")


def _short(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"


def _planes(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float32).reshape(len(images), *images.shape[1:3], -1).mean(-1)


def mixture_picture(path: Path, out: Any) -> None:
    """Base law and exact tilted law, then each sampler at each number of steps, over contours of the tilted law."""
    by = {name: [c for c in out.clouds if c.method == name] for name in ("base", "exact", "constant", "calibrated")}
    columns = max(len(by["constant"]), 1) + 1
    grid = [[*by["base"], *by["constant"]], [*by["exact"], *by["calibrated"]]]
    limits = _frame([c.x for c in out.clouds])
    (left, right), (low, high) = limits
    width = 3.0 * columns
    fig = figure(width, 2.0 * (3.0 * (high - low) / (right - left) + 0.3) + 0.6)
    panels = fig.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    for axes, cloud in zip(panels.ravel(), (c for line in grid for c in line), strict=True):
        _panel(axes, cloud, out, limits)
    fig.suptitle(
        f"Distance W2 to the exact tilted law (two exact samples: {out.floor:.3f}). "
        "Lines: base law grey, exact tilted law orange.\nBoth samplers use the exact value and the same whitening.",
        fontsize=11,
    )
    fig.savefig(path, bbox_inches="tight")


def _frame(clouds: Sequence[np.ndarray]) -> tuple:
    """((left, right), (low, high)) that hold nearly all of every cloud, with room for a line of text above."""
    low = np.min([np.quantile(x, 0.005, axis=0) for x in clouds], axis=0)
    high = np.max([np.quantile(x, 0.995, axis=0) for x in clouds], axis=0)
    pad = 0.1 * (high - low)
    return (low[0] - pad[0], high[0] + pad[0]), (low[1] - pad[1], high[1] + 2.5 * pad[1])


def _panel(axes: Any, cloud: Any, out: Any, limits: tuple) -> None:
    contours(axes, out.law if cloud.method == "base" else out.tilted, limits, EXACT if cloud.method != "base" else BASE)
    x = cloud.x[:_MOST_POINTS]
    axes.scatter(x[:, 0], x[:, 1], s=3, color=SAMPLES, alpha=0.45, linewidths=0)
    title = cloud.label if cloud.num_steps is None else f"{cloud.label}, {cloud.num_steps} steps"
    axes.set_title(title, fontsize=10)
    note = f"W2 {cloud.distance:.3f}, " if cloud.method != "exact" else ""
    note += f"mean reward {cloud.reward:.2f}"
    axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=9)
    axes.set(xlim=limits[0], ylim=limits[1], aspect="equal", xticks=[], yticks=[])
