# SPDX-License-Identifier: Apache-2.0
"""Measure methods on every sweep of a recording: accuracy, flicker, camera agreement, latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pcseg_core.data import account, evenly_spaced, readable
from pcseg_core.data.account import grouped
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import InputError
from pcseg_core.evaluation.methods import Method, Prediction, peak_rss_mb
from pcseg_core.evaluation.replay_report import ReplayFigures, ReplayReport, Scene, SweepFigures
from pcseg_core.geometry import transform
from pcseg_core.labels import LabelSpace, grouping, regroup, truth_of
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.metrics.flicker import Flicker, Pairing, Pairs
from pcseg_core.online.camera_fusion import CameraLabeler, label_by_cameras
from pcseg_core.online.pipeline import Sweep

if TYPE_CHECKING:
    from pcseg_core.data import Recording, Sample
    from pcseg_core.vision.pixel_classes import PixelClasses

Labels = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

AGREEMENT_SWEEPS = 20
"""Number of sweeps, evenly over the recording, whose images the teacher labels."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The labels, and optionally the camera teacher, that methods are compared with.

    Attributes:
        space: label space of the figures.
        labels_of: (index, sample) -> labels (N,) in that space, or None for an unlabeled sweep.
        labels_from: their source, for the report; None if there are no labels.
        teacher: labels the images, for the camera agreement; None for none.
        projection: how pixels become labels of points; its label space is not used.
    """

    space: LabelSpace
    labels_of: Callable[[int, Sample], Labels | None]
    labels_from: str | None
    teacher: PixelClasses | None = None
    projection: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)


def recorded_labels(recording: Recording, space: LabelSpace) -> GroundTruth:
    """The labels that a recording carries, if any."""
    labeled = recording.label_space is not None

    def labels_of(index: int, sample: Sample) -> Labels | None:
        return None if sample.labels is None or not labeled else truth_of(sample, space)

    return GroundTruth(space, labels_of, "the recording" if labeled else None)


def evaluate_replay(
    recording: Recording,
    methods: Sequence[Method],
    truth: GroundTruth,
    progress: Progress | None = None,
) -> ReplayReport:
    """Run all methods on every sweep and measure their labels.

    Args:
        recording: the recording; flicker needs its poses.
        methods: the first one gives the headline figures.
        truth: labels to compare with.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: no sweep can be read, or a label space does not group into that of `truth`.
    """
    run = _Run(recording, methods, truth)
    for index, sample in readable(recording):
        run.add(index, sample)
        if progress:
            progress(index + 1, len(recording))
    return run.report()


class _Measure:
    """Counts of one method."""

    def __init__(self, method: Method, space: LabelSpace, pairing: Pairing) -> None:
        self.method, self.space = method, space
        self.groups = grouping(method.label_space, space)
        self.confusion = Confusion(len(space))
        self.flicker = Flicker()
        self.pairing = pairing
        self.counts = np.zeros(len(space), np.int64)
        self.points = 0
        self.compared = self.agreed = 0

    def count(
        self, labels: Labels, truth: Labels | None, taught: Labels | None, pairs: Pairs | None
    ) -> tuple[float | None, float | None]:
        """Add a sweep; its accuracy and flicker, None where there is nothing to compare with."""
        accuracy = None
        self.points += len(labels)
        self.counts += np.bincount(labels[labels >= 0], minlength=len(self.space))
        if truth is not None and (truth >= 0).any():
            self.confusion.update(labels, truth)
            known = truth >= 0
            accuracy = float(np.mean(labels[known] == truth[known]))
        if taught is not None:
            both = (taught >= 0) & (labels >= 0)
            self.compared += int(both.sum())
            self.agreed += int((taught == labels)[both].sum())
        return accuracy, self.flicker.add(labels, pairs)

    def figures(self, sweeps: int, unread: int) -> ReplayFigures:
        """All figures over a recording of so many sweeps, some of which could not be read."""
        method, flicker, names = self.method, self.flicker.share, self.space.names
        dropped = dict(method.dropped)
        if unread and not method.live:
            dropped["unreadable"] = unread
        p50, p95 = method.latency_ms or (None, None)
        shares = (self.counts / max(self.counts.sum(), 1)).round(5).tolist()
        common = Figures.of(self.confusion, names, merge_of(self.space))
        present = dict(zip(names, self.confusion.present))
        common.iou = {name: iou if present[name] else None for name, iou in common.iou.items()}
        return ReplayFigures(
            **common.model_dump(),
            name=method.name,
            checkpoint=method.checkpoint,
            flicker=flicker,
            temporal_consistency=None if flicker is None else 1 - flicker,
            camera_agreement=self.agreed / self.compared if self.compared else None,
            latency_ms_p50=p50,
            latency_ms_p95=p95,
            drop_rate=sum(dropped.values()) / sweeps,
            unlabeled=1 - float(self.counts.sum()) / max(self.points, 1),
            rss_mb=round(peak_rss_mb(children=method.live), 1),
            dropped=dropped,
            class_shares=dict(zip(names, shares)),
        )


class _Run:
    """State of one evaluation."""

    def __init__(self, recording: Recording, methods: Sequence[Method], truth: GroundTruth) -> None:
        if not len(recording):
            raise InputError(f"{recording.name}: no sweeps to evaluate on")
        self.recording, self.truth = recording, truth
        pairing = Pairing()
        self.measures = [_Measure(method, truth.space, pairing) for method in methods]
        self.sweeps: list[SweepFigures] = []
        self.scene: Scene | None = None
        spread = evenly_spaced(len(recording), AGREEMENT_SWEEPS)
        self.taught = set(spread) if truth.teacher is not None else set()
        self.labeler = CameraLabeler(truth.teacher, truth.space) if truth.teacher else None

    def add(self, index: int, sample: Sample) -> None:
        sweep = Sweep.of(sample)
        truth = self.truth.labels_of(index, sample)
        xyz = sweep.deskewed().xyz
        taught = self._camera_labels(sweep, xyz) if index in self.taught else None
        predictions = [measure.method.predict(sweep) for measure in self.measures]
        pairs = self._pairs(sample, xyz, predictions)
        figures = SweepFigures(stamp_ns=sample.stamp_ns, points=len(sample.cloud))
        scene = Scene(sample.cloud.xyz, truth, {}, {})
        for measure, prediction in zip(self.measures, predictions):
            if prediction is None:
                continue
            name = measure.method.name
            labels = regroup(prediction.labels, measure.groups)
            matched = pairs.get(id(measure.pairing))
            scene.labels[name] = labels
            scene.changed[name] = _changes(labels, measure.flicker.last, matched)
            accuracy, flicker = measure.count(labels, truth, taught, matched)
            figures.note(name, accuracy, flicker, prediction.milliseconds)
        self.sweeps.append(figures)
        first_half = index <= len(self.recording) // 2
        if scene.labels and (self.scene is None or first_half):
            self.scene = scene

    def _pairs(
        self, sample: Sample, xyz: npt.NDArray[np.float32], predictions: list[Prediction | None]
    ) -> dict[int, Pairs | None]:
        """Points at the place of a point of the last predicted sweep, by the id of the pairing.

        Methods share a pairing as long as they miss no sweep.
        """
        pose = sample.T_world_lidar
        if pose is None:
            return {}
        pairings = {}
        for measure, prediction in zip(self.measures, predictions):
            if prediction is None:
                measure.pairing = copy.copy(measure.pairing)
            else:
                pairings[id(measure.pairing)] = measure.pairing
        world = transform(pose, xyz.astype(np.float64))
        return {key: pairing.add(world) for key, pairing in pairings.items()}

    def _camera_labels(self, sweep: Sweep, xyz: npt.NDArray[np.float32]) -> Labels | None:
        """The teacher's labels of the points (N,) that a camera sees."""
        if self.labeler is None or sweep.frames is None:
            return None
        images = [self.labeler.label(frame) for frame in sweep.frames()]
        labels, _ = label_by_cameras(xyz, images, self.truth.projection)
        return labels.astype(np.int64)

    def report(self) -> ReplayReport:
        recording, space = self.recording, self.truth.space
        if not self.sweeps:
            shown = [f"{count} x {reason}" for reason, count in grouped(recording.skipped)[:3]]
            reasons = "; ".join(shown)
            raise InputError(f"{recording.name}: no sweep can be read: {reasons or 'it has none'}")
        unread = len(recording) - len(self.sweeps)
        figures = [measure.figures(len(recording), unread) for measure in self.measures]
        live = any(measure.method.live for measure in self.measures)
        return ReplayReport(
            **figures[0].model_dump(),
            source=recording.name,
            transport="over DDS" if live else "offline, every sweep",
            label_space=space.name,
            classes=list(space.names),
            labels_from=self.truth.labels_from if figures[0].miou is not None else None,
            pose_source=recording.pose_source,
            sweeps=len(self.sweeps),
            points=sum(sweep.points for sweep in self.sweeps),
            others=figures[1:],
            skipped=dict(grouped(recording.skipped)),
            account=account(recording).entries(),
            notes=self._notes(labeled=figures[0].miou is not None),
            per_sweep=self.sweeps,
            scene=self.scene,
            palette=space.palette,
        )

    def _notes(self, labeled: bool) -> list[str]:
        """Reasons for missing figures, and remarks about the recording."""
        notes = list(account(self.recording).remarks)
        if self.truth.labels_from is None:
            notes.append("no mIoU: the recording carries no labels; give a folder by --labels")
        elif not labeled:
            notes.append(f"no mIoU: no sweep has labels in {self.truth.labels_from}")
        if self.recording.pose_source == "none":
            notes.append("no flicker: the recording has no poses (TF, Odometry or kiss-icp)")
        if self.taught and not any(measure.compared for measure in self.measures):
            notes.append("no agreement with cameras: no camera sees a point of a labeled sweep")
        return notes


def _changes(
    labels: Labels, last: npt.NDArray[np.int64] | None, pairs: Pairs | None
) -> npt.NDArray[np.int8]:
    """(N,) int8: 1 changed since the previous sweep, 0 same, -1 not compared."""
    changes = np.full(len(labels), -1, np.int8)
    if last is not None and pairs is not None:
        changes[pairs[0]] = labels[pairs[0]] != last[pairs[1]]
    return changes
