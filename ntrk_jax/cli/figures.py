"""Pictures: matplotlib on its file-writing backend, colours that a colour-blind reader can tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BASE", "EXACT", "SAMPLES", "contours", "figure", "image_grid", "picture"]

SAMPLES, EXACT, BASE = "#0072B2", "#D55E00", "#999999"

_MOST_IMAGES = 100


def figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches, independent of the user's matplotlib settings."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(out)
    return out


def image_grid(images: np.ndarray, columns: int, gap: float = 0.12) -> np.ndarray:
    """Images [num, H, W] side by side, [rows, columns], with white gaps of a fraction of a side; NaN is the gap."""
    height, width = images.shape[1:3]
    zoom = 8
    pad = max(1, int(gap * zoom * min(height, width)))
    rows = -(-len(images) // columns)
    out = np.full((rows * (height * zoom + pad) - pad, columns * (width * zoom + pad) - pad), np.nan)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height * zoom + pad), (i % columns) * (width * zoom + pad)
        out[top : top + height * zoom, left : left + width * zoom] = np.kron(image, np.ones((zoom, zoom)))
    return out


def contours(axes: Any, law: Any, limits: tuple, colour: str, filled: bool = False) -> None:
    """Lines of equal density of a 2-D law, at 0.5, 0.05 and 0.005 of its largest."""
    (left, right), (low, high) = limits
    x, y = np.meshgrid(np.linspace(left, right, 160), np.linspace(low, high, 160))
    points = np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)
    logs = _log_densities(law, points).reshape(x.shape)
    density = np.exp(logs - logs.max())
    levels = [0.005, 0.05, 0.5]
    if filled:
        axes.contourf(x, y, density, levels=[0.02, 0.1, 0.3, 0.6, 1.01], colors=[colour], alpha=0.18)
    else:
        axes.contour(x, y, density, levels=levels, colors=colour, linewidths=0.9)


def _log_densities(law: Any, points: np.ndarray) -> np.ndarray:
    import jax

    return np.asarray(jax.jit(jax.vmap(lambda law, x: law.log_prob(x), (None, 0)))(law, points))


def limits_of(*clouds: np.ndarray, margin: float = 0.12) -> tuple:
    """((left, right), (low, high)) that hold nearly all points of the clouds, of equal lengths."""
    points = np.concatenate([c[np.all(np.isfinite(c), -1)] for c in clouds])
    if not len(points):
        return (-1.0, 1.0), (-1.0, 1.0)
    low, high = np.quantile(points, 0.002, axis=0), np.quantile(points, 0.998, axis=0)
    centre, half = 0.5 * (low + high), 0.5 * float(np.max(high - low)) * (1.0 + 2.0 * margin) + 1e-6
    return (float(centre[0] - half), float(centre[0] + half)), (float(centre[1] - half), float(centre[1] + half))


def picture(
    path: Path, x: np.ndarray, reward: np.ndarray, title: str, law: Any = None, exact: Any = None,
    span: tuple[float, float] | None = None, temperature: float = 1.0,
) -> None:  # fmt: skip
    """A picture of samples [num, *shape]: images as a grid, planes as points over the laws, lines as a histogram.

    span: the pixel values shown as white and black; None takes them from the samples.
    temperature: that of the exact law, for its name in the legend.
    """
    x, laws = np.asarray(x, np.float32), _named_laws(law, exact, temperature)
    if x.ndim >= 3:
        fig = _images(x, reward, title, span)
    elif x.shape[1] == 1:
        fig = _histogram(x[:, 0], title, laws)
    else:
        fig = _points(x, title, laws)
    fig.savefig(path, bbox_inches="tight")


def _named_laws(law: Any, exact: Any, temperature: float) -> list[tuple[Any, str, str]]:
    """The laws that are known, each with its colour and its name in the legend."""
    rows = [(law, BASE, "base law"), (exact, EXACT, f"exact tilted law, temperature {temperature:g}")]
    return [row for row in rows if row[0] is not None]


def _images(x: np.ndarray, reward: np.ndarray, title: str, span: tuple[float, float] | None) -> Any:
    images = x.reshape(*x.shape[:3], -1).mean(-1)[:_MOST_IMAGES]
    columns = min(10, len(images))
    grid = image_grid(images, columns)
    fig = figure(0.75 * columns + 0.5, 0.75 * grid.shape[0] / grid.shape[1] * columns + 0.8)
    axes = fig.subplots()
    low, high = span or np.nanquantile(images, [0.001, 0.999])
    axes.imshow(grid, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{title}\nmean reward {np.mean(reward):.3g}", fontsize=9)
    return fig


def _histogram(x: np.ndarray, title: str, laws: list[tuple[Any, str, str]]) -> Any:
    fig = figure(6.0, 4.0)
    axes = fig.subplots()
    axes.hist(x[np.isfinite(x)], bins=60, density=True, color=SAMPLES, alpha=0.5, label="samples")
    left, right = axes.get_xlim()
    line = np.linspace(left, right, 400, dtype=np.float32)
    for one, colour, label in laws:
        axes.plot(line, np.exp(_log_densities(one, line[:, None])), color=colour, label=label)
    axes.set(title=title, xlabel="x", ylabel="density")
    axes.legend(frameon=False)
    return fig


def _points(x: np.ndarray, title: str, laws: list[tuple[Any, str, str]]) -> Any:
    from matplotlib.lines import Line2D

    fig = figure(6.0, 6.0)
    axes = fig.subplots()
    handles = [Line2D([], [], color=SAMPLES, marker="o", linestyle="", markersize=4, label="samples")]
    known = laws if x.shape[1] == 2 else []
    limits = limits_of(x[:, :2], *(np.repeat(row[0].means, 2, axis=0) for row in known))
    for one, colour, label in known:
        contours(axes, one, limits, colour)
        handles.append(Line2D([], [], color=colour, label=label))
    axes.scatter(x[:, 0], x[:, 1], s=5, color=SAMPLES, alpha=0.6, linewidths=0)
    axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$", xlim=limits[0], ylim=limits[1], aspect="equal")
    fig.legend(handles=handles, frameon=False, loc="outside lower center", ncols=3, fontsize=9)
    return fig
