# SPDX-License-Identifier: Apache-2.0
"""What a replay found, as JSON and as a table. Shares are fractions in 0..1."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pcseg_core.evaluation.report import percent
from pcseg_core.files import write_atomic

if TYPE_CHECKING:
    from rich.table import Table


class ReplayFigures(BaseModel):
    """Figures of one contender; None where one does not apply.

    `miou`, `accuracy` and `iou` are against the labels of the recording. `flicker` is the share of
    points whose label differs from that of the sweep before at the same place (10 cm), live of
    the sweep answered before;
    `temporal_consistency` is what it lacks to 1. `camera_agreement` is the share of the points
    seen by a camera that get the class that the teacher gives to their pixels. `latency` is from
    sweep to labels: in this process, or in the node from arrival to publication. `drop_rate` is
    the share of sweeps that got no answer, `unlabeled` of points without a label. `rss_mb` is the
    highest resident memory: of this process, all contenders and the measuring included, or of the
    node's process when live.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    checkpoint: str
    miou: float | None = None
    accuracy: float | None = None
    iou: dict[str, float | None] = Field(default_factory=dict)
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
    """One sweep: stamp, and by contender the accuracy, flicker and latency [ms]."""

    model_config = ConfigDict(extra="forbid")

    stamp_ns: int
    points: int
    accuracy: dict[str, float] = Field(default_factory=dict)
    flicker: dict[str, float] = Field(default_factory=dict)
    milliseconds: dict[str, float] = Field(default_factory=dict)


@dataclass
class Scene:
    """A sweep kept for the picture.

    Attributes:
        xyz: (N, 3) f32 [m]; truth: (N,) or None; labels: contender -> (N,), in the space.
        changed: contender -> (N,) int8: 1 where the label differs from the sweep before, 0 where
            it is the same, -1 where there is no point to compare with.
    """

    xyz: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64] | None
    labels: dict[str, npt.NDArray[Any]]
    changed: dict[str, npt.NDArray[np.int8]]


class ReplayReport(ReplayFigures):
    """A whole replay. The figures at the top are those of the contender that was asked for;
    `others` are measured beside it, on the same sweeps in the same run."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

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
    notes: list[str] = Field(default_factory=list)
    per_sweep: list[SweepFigures] = Field(default_factory=list)
    scene: Scene | None = Field(default=None, exclude=True)
    palette: Any = Field(default=None, exclude=True)

    @property
    def contenders(self) -> list[ReplayFigures]:
        """All of them, the one that was asked for first."""
        return [self, *self.others]

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)
        write_atomic(path, text + "\n")

    def table(self) -> Table:
        """Table for a terminal, one column for each contender."""
        from rich.table import Table

        how = f"{self.sweeps} sweeps, {self.points:,} points, {self.transport}"
        table = Table(title=f"{self.source}: {how}")
        table.add_column("", no_wrap=True)
        for figures in self.contenders:
            table.add_column(figures.name, justify="right")
        for title, key, form in _ROWS:
            values = [getattr(figures, key) for figures in self.contenders]
            if any(value is not None for value in values):
                table.add_row(title, *map(form, values))
        if self.labels_from:
            table.add_section()
            for name in self.classes:
                values = [figures.iou.get(name) for figures in self.contenders]
                if any(value is not None for value in values):
                    table.add_row(f"IoU {name} %", *map(percent, values))
        return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


_ROWS = (
    ("mIoU %", "miou", percent),
    ("accuracy %", "accuracy", percent),
    ("flicker %", "flicker", percent),
    ("agrees with the cameras %", "camera_agreement", percent),
    ("latency p50, ms", "latency_ms_p50", _number),
    ("latency p95, ms", "latency_ms_p95", _number),
    ("dropped %", "drop_rate", percent),
    ("points without label %", "unlabeled", percent),
    ("memory, peak, MB", "rss_mb", _number),
)
