# SPDX-License-Identifier: Apache-2.0
"""Chart of a robustness study: mIoU by severity, resilience rates, calibration error."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.evaluation import pictures
from pcseg_core.evaluation.report import percent
from pcseg_core.evaluation.robustness_report import SINGLE, MethodFigures, RobustnessReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_robustness(report: RobustnessReport, path: str | os.PathLike[str]) -> None:
    """Write the chart; the suffix of the path chooses the format."""
    figure = pictures.new_figure(1600, 900)
    method = report.methods[SINGLE]
    figure.text(0.03, 0.955, _headline(method), fontsize=16, weight="bold", color=pictures.INK)
    figure.text(0.03, 0.925, _second_line(report), fontsize=10.5, color=pictures.FAINT)
    _draw_mious(figure, report, method)
    _draw_resilience(figure, report)
    _draw_calibration(figure, method)
    pictures.save(figure, path)


def _headline(method: MethodFigures) -> str:
    mce = "" if method.mce is None else f", mCE {percent(method.mce)}"
    return f"mRR {percent(method.mrr)}{mce}, clean mIoU {percent(method.clean.miou)}"


def _second_line(report: RobustnessReport) -> str:
    sweeps = sum(report.sources.values())
    return (
        f"{report.checkpoint}  on  {', '.join(report.sources)}: {sweeps} sweeps, against the "
        f"{report.reference}; mCE against {report.baseline}"
    )


def _draw_mious(figure: Figure, report: RobustnessReport, method: MethodFigures) -> None:
    series = {
        severity: [
            np.nan if figures[severity].miou is None else float(figures[severity].miou or 0)
            for figures in method.corrupted.values()
        ]
        for severity in report.severities
    }
    ax = figure.add_axes((0.10, 0.12, 0.23, 0.74))
    pictures.bars(ax, list(method.corrupted), series, title="mIoU, single sweeps")


def _draw_resilience(figure: Figure, report: RobustnessReport) -> None:
    names = list(report.methods[SINGLE].corrupted)
    series = {
        name: [method.rr.get(corruption, np.nan) for corruption in names]
        for name, method in report.methods.items()
    }
    ax = figure.add_axes((0.43, 0.12, 0.23, 0.74))
    pictures.bars(ax, names, series, title="resilience rate")


def _draw_calibration(figure: Figure, method: MethodFigures) -> None:
    """Calibration error with ground truth, else the share of unchanged labels."""
    graded = method.clean.calibration_error is not None
    key = "calibration_error" if graded else "agreement"
    rows = {"clean": [method.clean]}
    rows |= {name: list(figures.values()) for name, figures in method.corrupted.items()}
    values = [_mean([getattr(figure, key) for figure in figures]) for figures in rows.values()]
    title = "expected calibration error" if graded else "labels as in the clean sweep"
    ax = figure.add_axes((0.75, 0.12, 0.23, 0.74))
    pictures.bars(ax, list(rows), {"single sweeps": values}, title=title)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")
