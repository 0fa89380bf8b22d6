# SPDX-License-Identifier: Apache-2.0
"""Picture of a sweep: camera images with the points in view, and bird's-eye views."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.evaluation import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pcseg_core.labels import LabelSpace
    from pcseg_core.viewer.rerun import CameraView, View

# All in pixels.
_WIDTH = 1600
_TITLE_HEIGHT = 84
_LEGEND_HEIGHT = 60
_GAP = 32
_LARGEST_BEV = 752

_TITLES = {
    "label": "Classes",
    "confidence": "Confidence (dark: low, yellow: high)",
    "error": "Right and wrong",
    "height": "Height",
    "intensity": "Intensity",
}
# Bird's-eye views: the first of these whose layers are all known.
_PANELS: tuple[tuple[str, ...], ...] = (
    ("truth", "label", "error"),
    ("label", "confidence"),
    ("label",),
)
_RAW_PANELS = ("height", "intensity")


def draw(view: View, space: LabelSpace | None, path: str | os.PathLike[str]) -> None:
    """Write the picture of a view, atomically, 1600 px wide.

    Top: images, up to three in a row. Bottom: bird's-eye views of truth, labels and error, or of
    labels and confidence, or of height and intensity, as far as they are known.
    """
    layers = view.layers(space.palette if space is not None else np.zeros((0, 3), np.uint8))
    panels = next((p for p in _PANELS if set(p) <= set(layers)), _RAW_PANELS)
    panels = tuple(name for name in panels if name in layers)
    per_row = min(3, len(view.cameras)) or 1
    rows = [view.cameras[i : i + per_row] for i in range(0, len(view.cameras), per_row)]
    side = min(_LARGEST_BEV, (_WIDTH - _GAP * (len(panels) + 1)) // len(panels))
    heights = [_row_height(row) for row in rows]
    total = _TITLE_HEIGHT + sum(heights) + side + _GAP + _LEGEND_HEIGHT
    figure = pictures.new_figure(_WIDTH, total)
    place = (_GAP / _WIDTH, 1 - 0.48 * _TITLE_HEIGHT / total)
    figure.text(*place, _headline(view), fontsize=15, weight="bold", color=pictures.INK)
    top = _TITLE_HEIGHT
    for row, height in zip(rows, heights):
        _draw_images(figure, row, view, layers, top)
        top += height
    _draw_bevs(figure, view, layers, panels, top, side)
    _draw_legend(figure, view, space, "error" in panels)
    pictures.save(figure, path)


def _headline(view: View) -> str:
    text = f"{view.name}: {len(view.xyz):,} points"
    if view.labels is not None and len(view.labels):
        text += f", {100 * np.mean(view.labels >= 0):.0f} % labeled"
    if view.labels is not None and view.truth is not None and (view.truth >= 0).any():
        known = view.truth >= 0
        right = np.mean(view.labels[known] == view.truth[known])
        text += f", {100 * right:.1f} % equal to the {view.truth_name}"
    return text


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a position in pixels from the top left corner."""
    total = figure.get_figheight() * figure.dpi
    return figure.add_axes(
        (left / _WIDTH, 1 - (top + height) / total, width / _WIDTH, height / total)
    )


def _image_size(row: list[CameraView], seen: CameraView) -> tuple[float, float]:
    width = (_WIDTH - _GAP * (len(row) + 1)) / len(row)
    return width, width * seen.image.shape[0] / seen.image.shape[1]


def _row_height(row: list[CameraView]) -> int:
    return _GAP + max(round(_image_size(row, seen)[1]) for seen in row)


def _draw_images(
    figure: Figure,
    row: list[CameraView],
    view: View,
    layers: dict[str, pictures.Colors],
    top: float,
) -> None:
    """Draw a row of images; points without a label are left out."""
    by_distance = pictures.scalar_colors(np.linalg.norm(view.xyz, axis=1), 2, 40, "turbo_r")
    colors = layers.get("label", by_distance)
    for column, seen in enumerate(row):
        width, height = _image_size(row, seen)
        axes = _axes(figure, _GAP + column * (width + _GAP), top, width, height)
        shown = np.ones(len(seen.index), bool)
        if view.labels is not None:
            shown = view.labels[seen.index] >= 0
        size = 9.0 if len(row) == 1 else 4.0
        pixels, chosen = seen.uv[shown], colors[seen.index[shown]]
        pictures.overlay(axes, seen.image, pixels, chosen, title=seen.name, point_size=size)


def _draw_bevs(
    figure: Figure,
    view: View,
    layers: dict[str, pictures.Colors],
    panels: tuple[str, ...],
    top: float,
    side: float,
) -> None:
    left = (_WIDTH - len(panels) * side - (len(panels) - 1) * _GAP) / 2
    shuffled = np.random.default_rng(0).permutation(len(view.xyz))  # neither color on top
    titles = {**_TITLES, "truth": view.truth_name.capitalize()}
    if "truth" in panels:
        titles["label"] = "Labels of the network"
    if view.truth_name != "truth":
        titles["error"] = f"Agreement with the {view.truth_name}"
    for column, name in enumerate(panels):
        axes = _axes(figure, left + column * (side + _GAP), top, side, side)
        pictures.bev(
            axes,
            view.xyz,
            layers[name],
            title=titles[name],
            point_size=1.8 * side / _LARGEST_BEV,
            on_top=shuffled if name == "error" else None,
        )


def _draw_legend(figure: Figure, view: View, space: LabelSpace | None, with_error: bool) -> None:
    height = 0.2 * _LEGEND_HEIGHT / (figure.get_figheight() * figure.dpi)
    if space is not None and view.labels is not None:
        present = [i for i in range(len(space)) if _occurs(view, i)]
        names = [space.names[i] for i in present]
        anchor = (0.34 if with_error else 0.5, height)
        pictures.legend(figure, names, space.palette[present], anchor=anchor)
    if with_error:
        marks = (pictures.RIGHT, pictures.WRONG, pictures.UNLABELED)
        verdicts = ("right", "wrong") if view.truth_name == "truth" else ("same", "other")
        names = [*verdicts, f"no {view.truth_name}"]
        pictures.legend(figure, names, marks, anchor=(0.84, height))


def _occurs(view: View, class_id: int) -> bool:
    known = (labels for labels in (view.labels, view.truth) if labels is not None)
    return any(bool((labels == class_id).any()) for labels in known)
