# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, as JSON and as a table. All figures are fractions in 0..1."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pcseg_core.files import write_atomic
from pcseg_core.metrics.figures import Figures

if TYPE_CHECKING:
    from rich.table import Table


class ScanFigures(BaseModel):
    """One scan: its name, points with truth, figures and the time the model took [ms]."""

    model_config = ConfigDict(extra="forbid")

    name: str
    points: int
    miou: float | None
    accuracy: float | None
    miou_merged_ground: float | None = None
    milliseconds: float


class BoxFigures(BaseModel):
    """Points against 3D boxes of one class, where there are no labels per point.

    `recall` is the share of points in the core of the boxes that carry the class. `inside` is the
    share of points of that class, where boxes were annotated, that lie in a box: like a
    precision, but objects that nobody boxed count against it. `found` is the share of boxes of
    which more than half of the points carry the class.
    """

    model_config = ConfigDict(extra="forbid")

    boxes: int
    points: int
    recall: float | None
    inside: float | None
    found: float | None


class BoxReport(BaseModel):
    """Figures against the 3D boxes of one source, by class name."""

    model_config = ConfigDict(extra="forbid")

    source: str
    scans: int
    classes: dict[str, BoxFigures]


@dataclass
class Example:
    """A scan kept for pictures: xyz (N, 3) f32 [m], truth and prediction (N,) in the space."""

    name: str
    xyz: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]
    pred: npt.NDArray[np.int64]


class Report(BaseModel):
    """A whole evaluation. `confusion` has true classes as rows and predicted ones as columns;
    `unpredicted` counts the points of each true class that got no label."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    checkpoint: str
    source: str
    label_space: str
    classes: list[str]
    scans: int
    points: int
    miou: float | None
    accuracy: float | None
    miou_merged_ground: float | None = None
    accuracy_merged_ground: float | None = None
    iou: dict[str, float | None]
    iou_merged_ground: dict[str, float | None] | None = None
    confusion: list[list[int]]
    unpredicted: list[int]
    calibration_error: float | None = None
    milliseconds_median: float
    baselines: dict[str, Figures] = Field(default_factory=dict)
    baselines_note: str | None = None
    per_scan: list[ScanFigures]
    boxes: BoxReport | None = None
    skipped: dict[str, int] = Field(default_factory=dict)
    example: Example | None = Field(default=None, exclude=True)
    palette: Any = Field(default=None, exclude=True)

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)
        write_atomic(path, text + "\n")

    def table(self) -> Table:
        """Table for a terminal: per-class IoU of the student and of the baselines."""
        from rich.table import Table

        table = Table(title=f"{self.source}: {self.scans} scans, {self.points:,} points")
        table.add_column("IoU %", no_wrap=True)
        table.add_column("points %", justify="right")
        for name in ("student", *self.baselines):
            table.add_column(name.replace("_", " "), justify="right")
        counts = np.array(self.confusion).sum(axis=1) + np.array(self.unpredicted)
        share = counts / max(counts.sum(), 1)
        for index, name in enumerate(self.classes):
            others = [percent(figures.iou[name]) for figures in self.baselines.values()]
            present = percent(share[index]) if counts[index] else "-"
            table.add_row(name, present, percent(self.iou[name]), *others)
        table.add_section()
        for title, key in _SUMMARY:
            others = [percent(getattr(figures, key)) for figures in self.baselines.values()]
            table.add_row(title, "", f"[bold]{percent(getattr(self, key))}[/]", *others)
        return table


def box_table(boxes: BoxReport) -> Table:
    """Table of the figures against 3D boxes."""
    from rich.table import Table

    table = Table(title=f"{boxes.source}: 3D boxes of {boxes.scans} scans")
    for column in ("class", "boxes", "points", "recall %", "inside a box %", "boxes found %"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, figures in boxes.classes.items():
        shares = (figures.recall, figures.inside, figures.found)
        table.add_row(name, f"{figures.boxes}", f"{figures.points:,}", *map(percent, shares))
    return table


_SUMMARY = (
    ("mIoU", "miou"),
    ("accuracy", "accuracy"),
    ("mIoU, one ground", "miou_merged_ground"),
    ("accuracy, one ground", "accuracy_merged_ground"),
)


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal, a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"
