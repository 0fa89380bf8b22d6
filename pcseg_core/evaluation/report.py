# SPDX-License-Identifier: Apache-2.0
"""Report of an evaluation, as JSON and as a table. All figures are fractions in 0..1."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pcseg_core.files import write_atomic
from pcseg_core.metrics.confusion import ScanCalibration
from pcseg_core.metrics.figures import Figures

if TYPE_CHECKING:
    from rich.table import Table

Row: TypeAlias = "tuple[str, str, Callable[[float | None], str]]"
"""Title, attribute of the figures, and how its value is written."""


class ScanFigures(BaseModel):
    """One scan: its name, number of points with truth, figures and inference time [ms]."""

    model_config = ConfigDict(extra="forbid")

    name: str
    points: int
    miou: float | None
    accuracy: float | None
    miou_merged_ground: float | None = None
    milliseconds: float


class ConfidenceFigures(BaseModel):
    """How well confidences tell the share of points that is right.

    Attributes:
        error_per_scan: expected calibration error with 10 bins, mean over the scans.
        points, confidence, accuracy: number of points, mean confidence and share of right points
            of each of the 10 bins, over all scans; None for bins without points.
    """

    model_config = ConfigDict(extra="forbid")

    error_per_scan: float
    points: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]

    @classmethod
    def of(cls, calibration: ScanCalibration) -> ConfidenceFigures | None:
        """The figures of scans; None without any point."""
        if not calibration.errors:
            return None
        total = calibration.total
        return cls(
            error_per_scan=float(np.mean(calibration.errors)),
            points=total.points.tolist(),
            confidence=[None if np.isnan(value) else value for value in total.confidence.tolist()],
            accuracy=[None if np.isnan(value) else value for value in total.accuracy.tolist()],
        )


class BoxFigures(BaseModel):
    """Predicted points of one class against 3D boxes.

    Attributes:
        boxes, points: number of boxes, and of the points in their cores.
        recall: share of the points in the cores of the boxes that are predicted as the class.
        inside: share of the points predicted as the class, in the annotated region, that lie in a
            box. Like a precision, but objects without a box count against it.
        found: share of boxes of which more than half of the points are predicted as the class.
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


class ClassQuality(BaseModel):
    """Panoptic quality of one class."""

    model_config = ConfigDict(extra="forbid")

    pq: float
    sq: float
    rq: float


class PanopticFigures(BaseModel):
    """Figures of instances; see `pcseg_core.metrics.panoptic`.

    Attributes:
        min_points: least points of an instance that counts.
        sweeps: number of sweeps with true instances.
        pq, sq, rq: means over the classes that occur.
        pq_things: the same over the classes with instances.
        classes: of each class that occurs.
        lstq, s_assoc, s_cls: of tracks; None if no sweep has a pose.
        id_switches: number of them; None without tracks.
        instances: true ones with more than `min_points` points in a sweep; None without tracks.
    """

    model_config = ConfigDict(extra="forbid")

    min_points: int
    sweeps: int
    pq: float
    sq: float
    rq: float
    pq_things: float | None
    classes: dict[str, ClassQuality]
    lstq: float | None
    s_assoc: float | None
    s_cls: float | None
    id_switches: int | None
    instances: int | None


@dataclass
class Example:
    """A scan for the picture: xyz (N, 3) float32 [m], true and predicted class ids (N,)."""

    name: str
    xyz: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]
    pred: npt.NDArray[np.int64]


class JsonReport(BaseModel):
    """Base of the reports.

    Attributes:
        palette: (C, 3) uint8 colors of the classes, for the picture.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    palette: npt.NDArray[np.uint8] | None = Field(default=None, exclude=True)

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, atomically."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)
        write_atomic(path, text + "\n")


class Report(Figures, JsonReport):
    """Report of an evaluation on labeled scans; the figures at the top are those of the pipeline.

    Attributes:
        confusion: points by true (rows) and predicted (columns) class.
        unpredicted: points of each true class that got no label.
        calibration_error: expected calibration error with 15 bins over all points.
        confidence, confidence_uncalibrated: of the checkpoint as it is used, and before its
            calibration; the second only if the checkpoint has one.
    """

    checkpoint: str
    source: str
    label_space: str
    classes: list[str]
    scans: int
    points: int
    iou_merged_ground: dict[str, float | None] | None = None
    confusion: list[list[int]]
    unpredicted: list[int]
    calibration_error: float | None = None
    confidence: ConfidenceFigures | None = None
    confidence_uncalibrated: ConfidenceFigures | None = None
    milliseconds_median: float
    baselines: dict[str, Figures] = Field(default_factory=dict)
    baselines_note: str | None = None
    per_scan: list[ScanFigures]
    boxes: BoxReport | None = None
    panoptic: PanopticFigures | None = None
    skipped: dict[str, int] = Field(default_factory=dict)
    example: Example | None = Field(default=None, exclude=True)

    def table(self) -> Table:
        """Table for a terminal, one column for the student and one for each baseline."""
        title = f"{self.source}: {self.scans} scans, {self.points:,} points"
        methods = {"student": self, **self.baselines}
        counts = np.array(self.confusion).sum(axis=1) + np.array(self.unpredicted)
        shares = dict(zip(self.classes, (counts / max(counts.sum(), 1)).tolist()))
        table = comparison_table(title, methods, SUMMARY, self.classes, shares)
        if self.confidence:
            before = self.confidence_uncalibrated
            text = f", {percent(before.error_per_scan)} before calibration" if before else ""
            error = percent(self.confidence.error_per_scan)
            table.caption = f"calibration error per scan, percent: {error}{text}"
        return table


def comparison_table(
    title: str,
    methods: Mapping[str, Figures],
    rows: Sequence[Row],
    classes: Sequence[str],
    shares: Mapping[str, float] | None = None,
) -> Table:
    """Table for a terminal: a column per method, summary rows, then the IoU of each class.

    Args:
        title: of the table.
        methods: name -> figures.
        rows: summary rows; one without any value is left out.
        classes: names of the classes.
        shares: class -> share of the points, shown in a column of its own; None shows none.
    """
    from rich.table import Table

    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for name in methods:
        table.add_column(name.replace("_", " "), justify="right")
    if shares is not None:
        table.add_column("points %", justify="right")
    for label, key, form in rows:
        values = [getattr(figures, key) for figures in methods.values()]
        if any(value is not None for value in values):
            table.add_row(label, *map(form, values))
    table.add_section()
    for name in classes:
        values = [figures.iou.get(name) for figures in methods.values()]
        if any(value is not None for value in values):
            share = [] if shares is None else [percent(shares[name] or None)]
            table.add_row(f"IoU {name} %", *map(percent, values), *share)
    return table


def box_table(boxes: BoxReport) -> Table:
    """Table of the figures against 3D boxes, for a terminal."""
    from rich.table import Table

    table = Table(title=f"{boxes.source}: 3D boxes of {boxes.scans} scans")
    for column in ("class", "boxes", "points", "recall %", "inside a box %", "boxes found %"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, figures in boxes.classes.items():
        shares = (figures.recall, figures.inside, figures.found)
        table.add_row(name, f"{figures.boxes}", f"{figures.points:,}", *map(percent, shares))
    return table


def panoptic_table(figures: PanopticFigures) -> Table:
    """Table of the figures of instances, for a terminal."""
    from rich.table import Table

    table = Table(
        title=f"instances of at least {figures.min_points} points, {figures.sweeps} sweeps"
    )
    for column in ("class", "PQ %", "SQ %", "RQ %"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, quality in figures.classes.items():
        table.add_row(name, *map(percent, (quality.pq, quality.sq, quality.rq)))
    table.add_section()
    table.add_row("mean", *map(percent, (figures.pq, figures.sq, figures.rq)))
    table.add_row("mean of things", percent(figures.pq_things), "", "")
    if figures.lstq is None:
        table.caption = "no LSTQ: tracks need poses"
    else:
        parts = f"S_assoc {percent(figures.s_assoc)}, S_cls {percent(figures.s_cls)}"
        table.caption = f"LSTQ {percent(figures.lstq)} ({parts}), {figures.id_switches} id switches"
    return table


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal, a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


SUMMARY: tuple[Row, ...] = (
    ("mIoU %", "miou", percent),
    ("accuracy %", "accuracy", percent),
    ("mIoU, one ground %", "miou_merged_ground", percent),
    ("accuracy, one ground %", "accuracy_merged_ground", percent),
)
