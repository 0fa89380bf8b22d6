# SPDX-License-Identifier: Apache-2.0
"""Picture of a replay: classes, figures over time, and a bird's-eye view of one sweep."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.evaluation import pictures
from pcseg_core.evaluation.replay_report import ReplayFigures, ReplayReport, Scene
from pcseg_core.evaluation.report import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXTENT_M = 40.0
_SHADES = (pictures.ACCENT, "#b4bec9", "#f0a202", "#8b949e", "#2a9d8f")
_CHANGED = np.array([pictures.UNLABELED, pictures.RIGHT, pictures.WRONG])  # -1, 0, 1


def render_replay(report: ReplayReport, path: str | os.PathLike[str]) -> None:
    """Write the picture of a report of `evaluate_replay`."""
    figure = pictures.new_figure(1600, 1180)
    figure.text(0.03, 0.968, _headline(report), fontsize=16, weight="bold", color=pictures.INK)
    figure.text(0.03, 0.944, _second_line(report), fontsize=10.5, color=pictures.FAINT)
    _draw_classes(figure, report)
    _draw_series(figure, report)
    if report.scene is not None and report.scene.labels:
        _draw_scene(figure, report, report.scene)
    pictures.save(figure, path)


def _headline(report: ReplayReport) -> str:
    parts = []
    if report.miou is not None:
        parts.append(f"{percent(report.miou)} % mIoU")
    if report.flicker is not None:
        parts.append(f"{percent(report.flicker)} % of the points change label between sweeps")
    if report.latency_ms_p50 is not None:
        parts.append(f"{report.latency_ms_p50:.0f} ms a sweep")
    if report.drop_rate:
        parts.append(f"{percent(report.drop_rate)} % dropped")
    return ", ".join(parts) or f"{report.sweeps} sweeps labeled"


def _second_line(report: ReplayReport) -> str:
    how = f"{report.checkpoint}" + (f" ({report.name})" if report.name != report.checkpoint else "")
    return (
        f"{how}  on  {report.source}: {report.sweeps} sweeps, "
        f"{report.points:,} points, {report.transport}"
    )


def _draw_classes(figure: Figure, report: ReplayReport) -> None:
    """IoU of the classes; without truth the shares of the predicted classes."""
    axes = figure.add_axes((0.085, 0.585, 0.36, 0.315))
    if report.labels_from:
        names = [name for name in report.classes if report.iou.get(name) is not None]
        names.sort(key=lambda name: -(report.iou[name] or 0))
        series = {
            f.name: [_mean(f), *(_value(f.iou.get(n)) for n in names)] for f in report.methods
        }
        pictures.bars(axes, ["mean", *names], series, title="IoU by class, percent")
        return
    names = sorted(report.classes, key=lambda name: -report.class_shares.get(name, 0))
    shares = {f.name: [f.class_shares.get(n, 0.0) for n in names] for f in report.methods}
    pictures.bars(axes, names, shares, title="Share of the points by class, percent")


def _draw_series(figure: Figure, report: ReplayReport) -> None:
    """Accuracy, flicker and latency of each sweep, as far as they are known."""
    seconds = np.array([s.stamp_ns for s in report.per_sweep], np.float64) * 1e-9
    seconds -= seconds[0]
    kinds = [
        ("accuracy", "Accuracy, percent", 100.0, None),
        ("flicker", "Points that change label, percent", 100.0, 0.0),
        ("milliseconds", "Latency, ms", 1.0, 0.0),
    ]
    shown = [kind for kind in kinds if any(getattr(s, kind[0]) for s in report.per_sweep)]
    height = 0.335 / max(len(shown), 1)
    for row, (key, title, factor, lowest) in enumerate(shown):
        bottom = 0.91 - (row + 1) * height + 0.035
        axes = figure.add_axes((0.55, bottom, 0.42, height - 0.06))
        for shade, method in zip(_SHADES, report.methods):
            values = [getattr(s, key).get(method.name, np.nan) for s in report.per_sweep]
            numbers = factor * np.array(values, np.float64)
            axes.plot(seconds, numbers, color=shade, linewidth=1.6, label=method.name)
        axes.set_ylim(bottom=lowest)
        axes.set_xlim(0, max(seconds[-1], 0.1))
        axes.set_title(title, loc="left", fontsize=10.5, color=pictures.INK)
        axes.tick_params(length=0, colors=pictures.INK, labelsize=8)
        axes.grid(color="#eaeef2", linewidth=0.8)
        axes.spines[:].set_visible(False)
        if row == 0:
            axes.legend(
                frameon=False,
                fontsize=8.5,
                loc="lower right",
                ncols=4,
                bbox_to_anchor=(1.0, 1.0),
                labelcolor=pictures.INK,
            )
        if row == len(shown) - 1:
            axes.set_xlabel("seconds of the recording", fontsize=8.5, color=pictures.FAINT)


def _draw_scene(figure: Figure, report: ReplayReport, scene: Scene) -> None:
    palette = np.asarray(report.palette, np.uint8)
    finite = np.isfinite(scene.xyz).all(1)
    first, *others = scene.labels
    panels = [(f"Labels: {first}", scene.labels[first])]
    if scene.truth is not None:
        panels.insert(0, ("Truth", scene.truth))
    elif others:
        panels.append((f"Labels: {others[0]}", scene.labels[others[0]]))
    drawn: list[tuple[str, pictures.Colors, pictures.Colors | None]]
    drawn = [(t, pictures.label_colors(v[finite], palette), None) for t, v in panels]
    shuffled = np.random.default_rng(0).permutation(int(finite.sum())).astype(np.float64)
    for name in (first, *others)[: 3 - len(drawn)]:
        state = scene.changed[name][finite]
        on_top = shuffled + len(state) * state.astype(np.float64)  # changed, same, not compared
        title = f"Changed since the previous sweep: {name}"
        drawn.append((title, _CHANGED[state + 1], on_top))
    for column, (title, colors, stacking) in enumerate(drawn):
        axes = figure.add_axes((0.02 + 0.325 * column, 0.055, 0.31, 0.42))
        pictures.bev(
            axes, scene.xyz[finite], colors, extent_m=_EXTENT_M, title=title, on_top=stacking
        )
    given = [scene.labels[first], *([scene.truth] if scene.truth is not None else [])]
    shown = [k for k in range(len(palette)) if any((v == k).any() for v in given)]
    names = [report.classes[k] for k in shown]
    shades = [tuple(palette[k] / 255) for k in shown]
    pictures.legend(figure, names, shades, anchor=(0.33, 0.008))
    marks = (pictures.RIGHT, pictures.WRONG, pictures.UNLABELED)
    pictures.legend(figure, ("same", "changed", "not compared"), marks, anchor=(0.83, 0.008))


def _mean(figures: ReplayFigures) -> float:
    return _value(figures.miou)


def _value(number: float | None) -> float:
    return float("nan") if number is None else number
