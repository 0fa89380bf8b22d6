# SPDX-License-Identifier: Apache-2.0
"""Measure a pipeline, and baselines, on labeled sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError
from pcseg_core.evaluation.panoptic import InstanceMeasure
from pcseg_core.evaluation.report import ConfidenceFigures, Example, Report, ScanFigures
from pcseg_core.labels import LabelSpace, grouping, regroup, truth_of
from pcseg_core.metrics.confusion import Calibration, Confusion, ScanCalibration
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.online.pipeline import Pipeline, Sweep

if TYPE_CHECKING:
    from pcseg_core.cloud import PointCloud
    from pcseg_core.data import Recording, Sample

Labels = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

# A baseline gives class ids (N,) of the pipeline's label space for a cloud of N points.
Baseline = Callable[["PointCloud"], npt.NDArray[np.integer]]


def evaluate(
    pipeline: Pipeline,
    recording: Recording,
    *,
    space: str = "street",
    baselines: Mapping[str, Baseline] | None = None,
    checkpoint: str = "",
    progress: Progress | None = None,
) -> Report:
    """Measure on every sweep of a labeled recording.

    Predictions and labels are compared in one label space that both group into. Points whose
    label has no group there are left out; points without prediction count as wrong. Sweeps
    without labels are counted in `skipped`.

    Args:
        pipeline: labels the sweeps. With `Segmenter.keep_uncalibrated` the confidence before
            calibration is measured too.
        recording: samples with labels, of any number and of any sizes.
        space: name of the label space to measure in.
        baselines: further methods to measure on the same points, by name.
        checkpoint: name of the model for the report.
        progress: called with (scans done, scans in all).

    Raises:
        InputError: no labeled scans, a scan that cannot be read or whose labels are of another
            length, or label spaces without a grouping into `space`.
    """
    run = _Run(pipeline, recording, LabelSpace.load(space), dict(baselines or {}))
    pipeline.match_intensities(recording)
    for index in range(len(recording)):
        run.add(index)
        if progress:
            progress(index + 1, len(recording))
    return run.report(checkpoint)


class _Run:
    """State of one evaluation: a confusion matrix per scan and one per baseline."""

    def __init__(
        self,
        pipeline: Pipeline,
        recording: Recording,
        space: LabelSpace,
        baselines: dict[str, Baseline],
    ) -> None:
        if len(recording) == 0:
            raise InputError(f"{recording.name}: no scans to evaluate on")
        self.pipeline, self.recording = pipeline, recording
        self.space, self.baselines = space, baselines
        self.merge = merge_of(space)
        self.to_space = grouping(pipeline.label_space, space)
        self.instances = InstanceMeasure(pipeline.label_space, space)
        self.calibration = Calibration()
        self.confidence, self.uncalibrated = ScanCalibration(), ScanCalibration()
        self.scans: list[ScanFigures] = []
        self.indices: list[int] = []  # of the scans in the recording
        self.skipped: Counter[str] = Counter(getattr(recording, "skipped", {}))
        self.total = Confusion(len(space))
        self.baseline_totals = {name: Confusion(len(space)) for name in baselines}

    def add(self, index: int) -> None:
        sample = self.recording[index]
        if sample.labels is None:
            self.skipped["sweep without labels"] += 1
            return
        truth = truth_of(sample, self.space)
        rules = None if sample.instances is None else self.instances.rules
        labeled = self.pipeline.process(Sweep.of(sample), tracks=rules)
        pred = regroup(labeled.labels, self.to_space)
        if rules is not None:
            self.instances.add(sample, labeled, pred, truth)
        confusion = Confusion(len(self.space))
        confusion.update(pred, truth)
        both = (truth >= 0) & (pred >= 0)
        right = (pred == truth)[both]
        self.calibration.update(labeled.confidence[both], right)
        self.confidence.add(labeled.confidence[both], right)
        if labeled.uncalibrated is not None:
            self.uncalibrated.add(labeled.uncalibrated[both], right)
        self._note_scan(sample, confusion, sum(labeled.stages_ms.values()))
        self.indices.append(index)
        self.total = self.total + confusion
        for name, baseline in self.baselines.items():
            labels = regroup(baseline(sample.cloud), self.to_space)
            self.baseline_totals[name].update(labels, truth)

    def _note_scan(self, sample: Sample, confusion: Confusion, milliseconds: float) -> None:
        figures = Figures.of(confusion, self.space.names, self.merge)
        self.scans.append(
            ScanFigures(
                name=sample.name,
                points=confusion.points,
                miou=figures.miou,
                accuracy=figures.accuracy,
                miou_merged_ground=figures.miou_merged_ground,
                milliseconds=round(milliseconds, 2),
            )
        )

    def report(self, checkpoint: str) -> Report:
        names = self.space.names
        if not self.scans:
            raise InputError(
                f"{self.recording.name}: none of its {len(self.recording)} sweeps has labels"
            )
        if not self.total.points:
            raise InputError(
                f"{self.recording.name}: no point has a label that groups into {self.space.name!r}"
            )
        figures = Figures.of(self.total, names, self.merge)
        merged = None
        if self.merge:
            merged = Figures.of(self.merge.apply(self.total), self.merge.names, None).iou
        return Report(
            checkpoint=checkpoint,
            source=self.recording.name,
            label_space=self.space.name,
            classes=list(names),
            scans=len(self.scans),
            points=self.total.points,
            **figures.model_dump(),
            iou_merged_ground=merged,
            confusion=self.total.matrix.tolist(),
            unpredicted=self.total.unpredicted.tolist(),
            calibration_error=self.calibration.error if self.total.matrix.any() else None,
            confidence=ConfidenceFigures.of(self.confidence),
            confidence_uncalibrated=ConfidenceFigures.of(self.uncalibrated),
            milliseconds_median=float(np.median([scan.milliseconds for scan in self.scans])),
            baselines={
                name: Figures.of(confusion, names, self.merge)
                for name, confusion in self.baseline_totals.items()
            },
            per_scan=self.scans,
            skipped=dict(self.skipped),
            panoptic=self.instances.figures(),
            example=self._example(),
            palette=self.space.palette,
        )

    def _example(self) -> Example:
        """The scan of median mIoU, labeled again because scans are not kept."""
        ranking = np.argsort([scan.miou if scan.miou is not None else -1 for scan in self.scans])
        sample = self.recording[self.indices[ranking[len(ranking) // 2]]]
        pred = regroup(self.pipeline.process(Sweep.of(sample)).labels, self.to_space)
        return Example(sample.name, sample.cloud.xyz, truth_of(sample, self.space), pred)
