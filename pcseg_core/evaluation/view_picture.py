# SPDX-License-Identifier: Apache-2.0
"""One picture of one sweep: its images with the points they see, and the sweep from above."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.evaluation import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pcseg_core.labels import LabelSpace
    from pcseg_core.viewer import CameraView, View

_WIDTH = 1600
_BEV_HEIGHT = 800
_TITLE_HEIGHT = 60
_LEGEND_HEIGHT = 60
_GAP = 32
_TITLES = {
    "label": "From above, by class",
    "confidence": "From above, by confidence (dark: unsure, yellow: sure)",
    "error": "From above, right and wrong",
    "height": "From above, by height",
    "intensity": "From above, by intensity",
}


def draw(view: View, space: LabelSpace | None, path: str | os.PathLike[str]) -> None:
    """Write the picture of a view, atomically, 1600 px wide.

    Images go on top, up to three side by side; below them the sweep by class and by error, by
    confidence, or by height, whichever is known.
    """
    per_row = min(3, len(view.cameras)) or 1
    rows = [view.cameras[i : i + per_row] for i in range(0, len(view.cameras), per_row)]
    heights = [_row_height(row) for row in rows]
    total = _TITLE_HEIGHT + sum(heights) + _BEV_HEIGHT + _LEGEND_HEIGHT
    figure = pictures.new_figure(_WIDTH, total)
    figure.text(
        0.02, 1 - 0.6 * _TITLE_HEIGHT / total, _headline(view), fontsize=15, weight="bold",
        color=pictures.INK,
    )  # fmt: skip
    top = _TITLE_HEIGHT
    palette = space.palette if space is not None else np.zeros((0, 3), np.uint8)
    layers = view.layers(palette)
    for row, height in zip(rows, heights):
        _draw_images(figure, row, view, layers, top / total, height / total)
        top += height
    _draw_bevs(figure, view, layers, top, total)
    _draw_legend(figure, view, space, "error" in layers, total)
    pictures.save(figure, path)


def _headline(view: View) -> str:
    text = f"{view.name}: {len(view.xyz):,} points"
    if view.labels is not None:
        labelled = np.mean(view.labels >= 0) if len(view.labels) else 0.0
        text += f", {100 * labelled:.0f} % labeled"
    if view.labels is not None and view.truth is not None and (view.truth >= 0).any():
        known = view.truth >= 0
        right = np.mean(view.labels[known] == view.truth[known])
        text += f", {100 * right:.1f} % right"
    return text


def _row_height(row: list[CameraView]) -> int:
    width = _image_width(row)
    return max(round(width * c.image.shape[0] / c.image.shape[1]) for c in row) + _GAP


def _image_width(row: list[CameraView]) -> float:
    return (_WIDTH - _GAP * (len(row) + 1)) / len(row)


def _draw_images(
    figure: Figure,
    row: list[CameraView],
    view: View,
    layers: dict[str, pictures.Colors],
    top: float,
    height: float,
) -> None:
    width = _image_width(row)
    share = height * (1 - _GAP / _row_height(row))
    for column, seen in enumerate(row):
        left = (_GAP + column * (width + _GAP)) / _WIDTH
        axes = figure.add_axes((left, 1 - top - height, width / _WIDTH, share))
        colors = layers["label"] if "label" in layers else _by_distance(view)
        size = 9.0 if len(row) == 1 else 4.0
        labelled = np.ones(len(seen.index), bool)
        if view.labels is not None:
            labelled = view.labels[seen.index] >= 0
        pictures.overlay(
            axes, seen.image, seen.uv[labelled], colors[seen.index[labelled]],
            title=seen.name, point_size=size,
        )  # fmt: skip


def _by_distance(view: View) -> pictures.Colors:
    return pictures.scalar_colors(np.linalg.norm(view.xyz, axis=1), 2, 40, "turbo_r")


def _draw_bevs(
    figure: Figure, view: View, layers: dict[str, pictures.Colors], top: int, total: int
) -> None:
    order = [name for name in ("label", "error", "confidence", "height", "intensity") if name in layers][:2]
    side = _BEV_HEIGHT - _GAP - 10
    left = (_WIDTH - len(order) * side - (len(order) - 1) * _GAP) / 2
    shuffled = np.random.default_rng(0).permutation(len(view.xyz))
    for column, name in enumerate(order):
        place = (
            (left + column * (side + _GAP)) / _WIDTH,
            1 - (top + _GAP + side) / total,
            side / _WIDTH,
            side / total,
        )
        stacking = shuffled if name == "error" else None
        axes = figure.add_axes(place)
        pictures.bev(
            axes, view.xyz, layers[name], title=_TITLES[name], point_size=1.6, on_top=stacking
        )


def _draw_legend(
    figure: Figure, view: View, space: LabelSpace | None, with_error: bool, total: int
) -> None:
    height = 0.2 * _LEGEND_HEIGHT / total
    if space is not None and view.labels is not None:
        present = [i for i in range(len(space)) if _shown(view, i)]
        names = [space.names[i] for i in present]
        pictures.legend(
            figure, names, space.palette[present], anchor=(0.36 if with_error else 0.5, height)
        )
    if with_error:
        marks = (pictures.RIGHT, pictures.WRONG, pictures.UNLABELED)
        names = ["right", "wrong", "no truth"]
        pictures.legend(figure, names, marks, anchor=(0.85, height))


def _shown(view: View, class_id: int) -> bool:
    return any(
        labels is not None and bool((labels == class_id).any())
        for labels in (view.labels, view.truth)
    )
