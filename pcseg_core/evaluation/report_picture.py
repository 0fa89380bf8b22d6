# SPDX-License-Identifier: Apache-2.0
"""Picture of an evaluation: IoU of pipeline and baselines, confusion, reliability, a scan."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.evaluation import pictures
from pcseg_core.evaluation.report import ConfidenceFigures, Example, Report, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXTENT_M = 40.0


def render(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the picture of a report of `evaluate`; one read from JSON is drawn without a scan."""
    figure = pictures.new_figure(1600, 1200)
    figure.text(0.03, 0.972, _headline(report), fontsize=16, weight="bold", color=pictures.INK)
    figure.text(0.03, 0.95, _second_line(report), fontsize=10.5, color=pictures.FAINT)
    _draw_bars(figure, report)
    _draw_confusion(figure, report)
    _draw_reliability(figure, report)
    if report.example is not None:
        _draw_scan(figure, report, report.example)
    pictures.save(figure, path)


def _headline(report: Report) -> str:
    text = f"{percent(report.miou)} mIoU, {percent(report.accuracy)} % of points right"
    if report.miou_merged_ground is not None:
        text += f", {percent(report.miou_merged_ground)} mIoU with the ground merged"
    return text


def _second_line(report: Report) -> str:
    scans = f"{report.scans} scan{'s' if report.scans != 1 else ''}"
    return f"{report.checkpoint}  on  {report.source}: {scans}, {report.points:,} labeled points"


def _draw_bars(figure: Figure, report: Report) -> None:
    """IoU of the classes present in the truth, in descending order after their mean."""
    ious = {name: value for name, value in report.iou.items() if _occurs(report, name)}
    order = sorted(ious, key=lambda name: -(ious[name] or 0))
    methods = {"this checkpoint": (report.miou, report.iou)}
    for name, figures in report.baselines.items():
        methods[name.replace("_", " ")] = (figures.miou, figures.iou)
    series = {
        method: [_number(miou), *(_number(iou[name]) for name in order)]
        for method, (miou, iou) in methods.items()
    }
    axes = figure.add_axes((0.085, 0.575, 0.27, 0.335))
    pictures.bars(axes, ["mean", *order], series, title="IoU by class, percent")


def _draw_confusion(figure: Figure, report: Report) -> None:
    names = list(report.classes)
    matrix = np.array(report.confusion)
    if any(report.unpredicted):
        matrix = np.hstack([matrix, np.array(report.unpredicted)[:, None]])
        names.append("no label")
    axes = figure.add_axes((0.425, 0.585, 0.32, 0.325))
    title = "Predicted class by true class, percent"
    pictures.confusion(axes, matrix, names, title=title)


def _draw_reliability(figure: Figure, report: Report) -> None:
    """Share of right points over the confidence, also before calibration."""
    methods = {
        "confidence": report.confidence,
        "before calibration": report.confidence_uncalibrated,
    }
    series = {
        f"{name}, error {percent(figures.error_per_scan)} %": _bins(figures)
        for name, figures in methods.items()
        if figures is not None
    }
    if series:
        axes = figure.add_axes((0.795, 0.605, 0.19, 0.285))
        pictures.reliability(axes, series, title="Right points by confidence")


def _bins(figures: ConfidenceFigures) -> tuple[list[float], list[float]]:
    return [_number(v) for v in figures.confidence], [_number(v) for v in figures.accuracy]


def _draw_scan(figure: Figure, report: Report, example: Example) -> None:
    palette = np.asarray(report.palette, np.uint8)
    shuffled = np.random.default_rng(0).permutation(len(example.xyz))  # neither color on top
    panels = (
        (f"Truth, scan {example.name}", pictures.label_colors(example.truth, palette), None),
        ("Prediction, LiDAR only", pictures.label_colors(example.pred, palette), None),
        ("Right and wrong", pictures.error_colors(example.pred, example.truth), shuffled),
    )
    for column, (title, colors, stacking) in enumerate(panels):
        axes = figure.add_axes((0.02 + 0.325 * column, 0.055, 0.31, 0.413))
        pictures.bev(axes, example.xyz, colors, extent_m=_EXTENT_M, title=title, on_top=stacking)
    names = [name for name in report.classes if _occurs(report, name)]
    shades = [tuple(palette[report.classes.index(name)] / 255) for name in names]
    pictures.legend(figure, names, shades, anchor=(0.33, 0.008))
    marks = (pictures.RIGHT, pictures.WRONG, pictures.UNLABELED)
    pictures.legend(figure, ("right", "wrong", "no truth"), marks, anchor=(0.83, 0.008))


def _occurs(report: Report, name: str) -> bool:
    index = report.classes.index(name)
    return sum(report.confusion[index]) + report.unpredicted[index] > 0


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
