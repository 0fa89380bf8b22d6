# SPDX-License-Identifier: Apache-2.0
"""Parts of pictures: bird's-eye views, points over images, legends, confusion matrices, bars.

The functions draw into given matplotlib axes. Colors are float (N, 3) RGB in 0..1;
`label_colors`, `error_colors` and `scalar_colors` make them. `new_figure` and `save` need no
display and do not change the state of pyplot.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colors = npt.NDArray[np.float64]

UNLABELED = (0.86, 0.86, 0.88)
RIGHT = (0.70, 0.80, 0.72)
WRONG = (0.84, 0.12, 0.14)
INK = "#1b1f24"
FAINT = "#8a929b"
ACCENT = "#1f6feb"
_SERIES = (ACCENT, "#d0d7de", "#f0a202", "#8b949e", "#2a9d8f")
_DPI = 100


def new_figure(width_px: int, height_px: int) -> Figure:
    """White figure of exactly this size; `save` keeps it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI, facecolor="white")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically; the suffix (.png, .jpg, .pdf, .svg) chooses the format."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, facecolor="white")


def label_colors(labels: npt.NDArray[Any], palette: npt.NDArray[np.uint8]) -> Colors:
    """Colors (N, 3) of class ids (N,) by a palette (C, 3); negative ids are light gray."""
    table = np.vstack([np.asarray(palette, np.float64) / 255, UNLABELED])
    ids = np.asarray(labels, np.int64)
    return table[np.where((ids < 0) | (ids >= len(palette)), len(palette), ids)]


def error_colors(pred: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Colors:
    """Colors (N, 3): pale green for right, red for wrong, light gray for points without truth."""
    colors = np.empty((len(truth), 3))
    colors[:] = UNLABELED
    known = np.asarray(truth) >= 0
    right = known & (np.asarray(pred) == np.asarray(truth))
    colors[right] = RIGHT
    colors[known & ~right] = WRONG
    return colors


def scalar_colors(
    values: npt.NDArray[Any], low: float, high: float, colormap: str = "turbo"
) -> Colors:
    """Colors (N, 3) of numbers (N,) on a matplotlib color map; NaN is light gray."""
    from matplotlib import colormaps

    numbers = np.asarray(values, np.float64)
    span = max(high - low, 1e-9)
    scaled = np.clip((numbers - low) / span, 0, 1)
    colors: Colors = np.asarray(colormaps[colormap](np.nan_to_num(scaled)))[:, :3]
    colors[~np.isfinite(numbers)] = UNLABELED
    return colors


def bev(
    ax: Axes,
    xyz: npt.NDArray[Any],
    colors: Colors,
    *,
    extent_m: float = 40.0,
    title: str = "",
    point_size: float = 1.0,
    on_top: npt.NDArray[Any] | None = None,
) -> None:
    """Bird's-eye view around the sensor, forward (+x) up and left (+y) to the left.

    Args:
        xyz: (N, 3) points in the LiDAR frame [m].
        colors: (N, 3).
        extent_m: half of the side of the view [m].
        point_size: size of a point in squared typographic points.
        on_top: (N,) numbers, points with higher ones are drawn on top; None takes z.
    """
    height = xyz[:, 2] if on_top is None else on_top
    near = np.flatnonzero(np.all(np.abs(xyz[:, :2]) < extent_m, axis=1))
    order = near[np.argsort(height[near], kind="stable")]
    _rings(ax, extent_m)
    ax.scatter(-xyz[order, 1], xyz[order, 0], c=colors[order], s=point_size, linewidths=0, zorder=3)
    ax.plot([0], [0], marker="^", color=INK, markersize=7, markeredgecolor="white", zorder=5)
    ax.set_xlim(-extent_m, extent_m)
    ax.set_ylim(-extent_m, extent_m)
    ax.set_aspect("equal")
    frame(ax, title)


def overlay(
    ax: Axes,
    image: npt.NDArray[np.uint8],
    uv: npt.NDArray[Any],
    colors: Colors,
    *,
    title: str = "",
    point_size: float = 9.0,
    dim: float = 0.6,
) -> None:
    """Draw points over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        uv: (N, 2) pixels, integer coordinates are pixel centers.
        colors: (N, 3).
        dim: share of light gray mixed into the image, 0..1, for contrast with the points.
    """
    gray = image.mean(axis=2, keepdims=True)
    faded = (1 - dim) * image + dim * (0.45 * gray + 140)
    ax.imshow(np.clip(faded, 0, 255).astype(np.uint8), interpolation="bilinear")
    ax.scatter(uv[:, 0], uv[:, 1], c=colors, s=point_size, linewidths=0)
    ax.set_xlim(-0.5, image.shape[1] - 0.5)
    ax.set_ylim(image.shape[0] - 0.5, -0.5)
    frame(ax, title)


def frame(ax: Axes, title: str = "") -> None:
    """Set a thin frame and a title on the left, without ticks."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color="#d0d7de", linewidth=0.8)
    ax.set_title(title, loc="left", fontsize=11, color=INK)


def legend(
    figure: Figure,
    names: Sequence[str],
    colors: Any,
    *,
    anchor: tuple[float, float] = (0.5, 0.0),
    columns: int = 0,
) -> None:
    """Draw colored squares with names, in one row or in a number of columns.

    Args:
        colors: one per name: uint8 (C, 3) palette, floats in 0..1 or matplotlib color names.
    """
    from matplotlib.patches import Patch

    table = np.asarray(colors)
    shades = table / 255 if table.dtype == np.uint8 else colors
    handles = [Patch(facecolor=shade, label=name) for name, shade in zip(names, shades)]
    figure.legend(
        handles=handles,
        ncols=columns or len(handles),
        loc="lower center",
        bbox_to_anchor=anchor,
        frameon=False,
        fontsize=10,
        handlelength=1.1,
        handleheight=1.1,
        labelcolor=INK,
    )


def confusion(
    ax: Axes, matrix: npt.NDArray[Any], names: Sequence[str], *, title: str = "Confusion"
) -> None:
    """Draw a confusion matrix in percent of the true class; rows truth, columns predicted.

    Args:
        matrix: (C, C) counts; a matrix (C, D) with more columns needs D column names in `names`,
            of which the first C name the rows.
    """
    counts = np.asarray(matrix, np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    ax.imshow(np.nan_to_num(share), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(share >= 0.005):
        value = share[row, column]
        ax.text(
            column,
            row,
            f"{100 * value:.0f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if value > 0.55 else INK,
        )
    ax.set_xticks(range(counts.shape[1]), names, rotation=40, ha="right", fontsize=9)
    ax.set_yticks(range(counts.shape[0]), names[: counts.shape[0]], fontsize=9)
    ax.set_xlabel("predicted", fontsize=9, color=FAINT)
    ax.set_ylabel("true", fontsize=9, color=FAINT)
    ax.tick_params(length=0, colors=INK)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=11, color=INK)


def bars(
    ax: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str = "IoU"
) -> None:
    """Draw grouped horizontal bars of fractions, in percent.

    Args:
        names: (G,) groups from top to bottom.
        series: name -> (G,) values in 0..1; NaN is written as a dash. The first series is
            annotated with its numbers.
    """
    thickness = 0.84 / max(len(series), 1)
    rows = np.arange(len(names))
    for index, (name, values) in enumerate(series.items()):
        numbers = 100 * np.asarray(values, np.float64)
        place = rows + (index - (len(series) - 1) / 2) * thickness
        color = _SERIES[index % len(_SERIES)]
        ax.barh(place, np.nan_to_num(numbers), height=thickness * 0.92, color=color, label=name)
        if index == 0:
            for y, number in zip(place, numbers):
                text = "–" if np.isnan(number) else f"{number:.0f}"
                x = 0 if np.isnan(number) else number
                ax.text(x + 1, y, text, va="center", fontsize=8, color=INK)
    ax.set_yticks(rows, names, fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, 105)
    ax.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"], fontsize=8)
    ax.tick_params(length=0, colors=INK)
    ax.grid(axis="x", color="#eaeef2", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=11, color=INK)
    ax.legend(
        frameon=False,
        fontsize=8.5,
        loc="upper left",
        bbox_to_anchor=(0.0, -0.06),
        ncols=2,
        labelcolor=INK,
    )


def reliability(
    ax: Axes, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str = ""
) -> None:
    """Draw the share of right points over the confidence; on the diagonal both agree.

    Args:
        series: name -> mean confidence (B,) and share of right points (B,) of each bin in 0..1,
            NaN for bins without points.
    """
    ax.plot([0, 1], [0, 1], color="#d0d7de", linewidth=1.2, zorder=1)
    for index, (name, (confidence, accuracy)) in enumerate(series.items()):
        color = _SERIES[(0, 2)[index % 2]]
        known = np.isfinite(np.asarray(confidence, np.float64))
        x, y = (np.asarray(values, np.float64)[known] for values in (confidence, accuracy))
        ax.plot(x, y, color=color, marker="o", markersize=4, label=name, zorder=3 - index / 10)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_aspect("equal")
    ticks = [0, 0.25, 0.5, 0.75, 1]
    ax.set_xticks(ticks, ["0", "25", "50", "75", "100 %"], fontsize=8)
    ax.set_yticks(ticks, ["0", "25", "50", "75", "100 %"], fontsize=8)
    ax.set_xlabel("confidence", fontsize=9, color=FAINT)
    ax.set_ylabel("right", fontsize=9, color=FAINT)
    ax.tick_params(length=0, colors=INK)
    ax.grid(color="#eaeef2", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=11, color=INK)
    ax.legend(frameon=False, fontsize=8.5, loc="upper left", labelcolor=INK)


def _rings(ax: Axes, extent_m: float) -> None:
    """Draw range circles every 10 m (every quarter of a large extent)."""
    from matplotlib.patches import Circle

    step = 10.0 if extent_m <= 60 else extent_m / 4
    for radius in np.arange(step, extent_m * 0.99, step):
        ax.add_patch(Circle((0, 0), radius, fill=False, color="#dde3e9", linewidth=0.8, zorder=1))
        place = radius * np.sqrt(0.5)
        ax.annotate(
            f"{radius:.0f} m",
            (place, -place),
            color=FAINT,
            fontsize=7,
            ha="center",
            va="center",
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
        )
