# SPDX-License-Identifier: Apache-2.0
"""Report of a replay, as JSON and as a table. Shares are fractions in 0..1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pcseg_core.data.account import Entry
from pcseg_core.evaluation.report import SUMMARY, JsonReport, comparison_table, percent
from pcseg_core.metrics.figures import Figures

if TYPE_CHECKING:
    from rich.table import Table


class ReplayFigures(Figures):
    """Figures of one method; None where one does not apply.

    Attributes:
        miou, accuracy, iou: against the labels of the recording; `iou` is None for classes that
            the truth lacks.
        flicker: share of points whose label differs from that of the previous sweep (live: the
            last one with labels) at the same place (10 cm).
        temporal_consistency: 1 - flicker.
        camera_agreement: share of the points seen by a camera whose class is the one that the
            teacher gives to their pixels.
        latency_ms_p50, latency_ms_p95: from sweep to labels in this process, or from arrival to
            publication in the node [ms].
        drop_rate: share of sweeps without labels.
        unlabeled: share of points without a label.
        rss_mb: highest resident memory of this process, all methods and the measurement included,
            or of the node's process [MB].
    """

    name: str
    checkpoint: str
    flicker: float | None = None
    temporal_consistency: float | None = None
    camera_agreement: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    drop_rate: float = 0.0
    unlabeled: float = 0.0
    rss_mb: float | None = None
    dropped: dict[str, int] = Field(default_factory=dict)
    class_shares: dict[str, float] = Field(default_factory=dict)


class SweepFigures(BaseModel):
    """One sweep: stamp, and by method the accuracy, flicker and latency [ms]."""

    model_config = ConfigDict(extra="forbid")

    stamp_ns: int
    points: int
    accuracy: dict[str, float] = Field(default_factory=dict)
    flicker: dict[str, float] = Field(default_factory=dict)
    milliseconds: dict[str, float] = Field(default_factory=dict)

    def note(
        self, method: str, accuracy: float | None, flicker: float | None, spent_ms: float | None
    ) -> None:
        """Store the known figures of a method."""
        if accuracy is not None:
            self.accuracy[method] = accuracy
        if flicker is not None:
            self.flicker[method] = flicker
        if spent_ms is not None:
            self.milliseconds[method] = round(spent_ms, 2)


@dataclass
class Scene:
    """A sweep for the picture.

    Attributes:
        xyz: (N, 3) float32 [m].
        truth: (N,) class ids, or None.
        labels: method -> (N,) class ids.
        changed: method -> (N,) int8: 1 where the label differs from that of the previous sweep, 0
            where it is the same, -1 where there is no point to compare with.
    """

    xyz: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64] | None
    labels: dict[str, npt.NDArray[np.int64]]
    changed: dict[str, npt.NDArray[np.int8]]


class ReplayReport(ReplayFigures, JsonReport):
    """Report of a replay.

    The figures at the top level are those of the first method; `others` are measured on the same
    sweeps in the same run.
    """

    source: str
    transport: str
    label_space: str
    classes: list[str]
    labels_from: str | None = None
    pose_source: str
    sweeps: int
    points: int
    others: list[ReplayFigures] = Field(default_factory=list)
    skipped: dict[str, int] = Field(default_factory=dict)
    account: dict[str, Entry] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    per_sweep: list[SweepFigures] = Field(default_factory=list)
    scene: Scene | None = Field(default=None, exclude=True)

    @property
    def methods(self) -> list[ReplayFigures]:
        """Figures of all methods, the first one first."""
        return [self, *self.others]

    def table(self) -> Table:
        """Table for a terminal, one column per method."""
        how = f"{self.sweeps} sweeps, {self.points:,} points, {self.transport}"
        methods = {figures.name: figures for figures in self.methods}
        return comparison_table(f"{self.source}: {how}", methods, _ROWS, self.classes)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


_ROWS = (
    *SUMMARY,
    ("flicker %", "flicker", percent),
    ("agrees with the cameras %", "camera_agreement", percent),
    ("latency p50, ms", "latency_ms_p50", _number),
    ("latency p95, ms", "latency_ms_p95", _number),
    ("dropped %", "drop_rate", percent),
    ("points without label %", "unlabeled", percent),
    ("memory, peak, MB", "rss_mb", _number),
)
