# SPDX-License-Identifier: Apache-2.0
"""Judge checkpoints by the replay of a recorded drive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data import readable
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig, camera_evidence, label_points
from pcseg_core.errors import InputError
from pcseg_core.evaluation.contenders import Answer, Contender, Live, Moment, peak_rss_mb
from pcseg_core.evaluation.replay_report import ReplayFigures, ReplayReport, Scene, SweepFigures
from pcseg_core.geometry import transform
from pcseg_core.labels import LabelSpace, grouping, regroup, truth_of
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.flicker import Flicker, Pairing, Pairs

if TYPE_CHECKING:
    from pcseg_core.data import Recording, Sample
    from pcseg_core.vision.pixel_classes import PixelClasses

Labels = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

AGREEMENT_SWEEPS = 20
"""Sweeps, evenly over the drive, whose images the teacher labels: it takes its time."""


@dataclass(frozen=True, eq=False)
class Judges:
    """What contenders are measured against, beside each other.

    Attributes:
        space: label space of the figures.
        truth: labels (N,) of a sweep in that space, or None; by index and sample.
        labels_from: where they are from, for the report; None if there are none.
        teacher: labels the images, or None.
        teaching: how pixels become labels of points; its label space is not used.
    """

    space: LabelSpace
    truth: Callable[[int, Sample], Labels | None]
    labels_from: str | None
    teacher: PixelClasses | None = None
    teaching: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)


def own_labels(recording: Recording, space: LabelSpace) -> Judges:
    """Judges by the labels that a recording carries, if it does."""
    labeled = recording.label_space is not None

    def truth(index: int, sample: Sample) -> Labels | None:
        return None if sample.labels is None or not labeled else truth_of(sample, space)

    return Judges(space, truth, "the recording" if labeled else None)


def evaluate_replay(
    recording: Recording,
    contenders: Sequence[Contender],
    judges: Judges,
    progress: Progress | None = None,
) -> ReplayReport:
    """Show every sweep to every contender and measure their labels.

    Args:
        recording: the recording; with poses, flicker is measured.
        contenders: the first one is the one that was asked for.
        judges: what they are measured against.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: no sweep can be read, or a label space does not group into that of the judges.
    """
    run = _Run(recording, contenders, judges)
    for index, sample in readable(recording):
        run.add(index, sample)
        if progress:
            progress(index + 1, len(recording))
    return run.report()


class _Measure:
    """Counts of one contender."""

    def __init__(self, contender: Contender, space: LabelSpace) -> None:
        self.contender = contender
        self.groups = grouping(contender.label_space, space)
        self.confusion = Confusion(len(space))
        self.flicker = Flicker()
        self.pairing = Pairing()  # of the sweeps that it answered
        self.counts = np.zeros(len(space), np.int64)
        self.points = 0
        self.taught = self.agreed = 0
        self.milliseconds: list[float] = []
        self.dropped = 0

    def figures(self, space: LabelSpace, live: bool, sweeps: int) -> ReplayFigures:
        confusion, flicker = self.confusion, self.flicker.share
        known = confusion.points > 0
        iou = zip(space.names, confusion.iou, confusion.present)
        p50, p95, dropped = self._latency()
        return ReplayFigures(
            name=self.contender.name,
            checkpoint=self.contender.checkpoint,
            miou=confusion.miou if known else None,
            accuracy=confusion.accuracy if known else None,
            iou={name: float(value) if here else None for name, value, here in iou if known},
            flicker=flicker,
            temporal_consistency=None if flicker is None else 1 - flicker,
            camera_agreement=self.agreed / self.taught if self.taught else None,
            latency_ms_p50=p50,
            latency_ms_p95=p95,
            drop_rate=sum(dropped.values()) / sweeps,
            unlabeled=1 - float(self.counts.sum()) / max(self.points, 1),
            rss_mb=round(peak_rss_mb(children=live), 1),
            dropped=dropped,
            class_shares=dict(
                zip(space.names, (self.counts / max(self.counts.sum(), 1)).round(5).tolist())
            ),
        )

    def _latency(self) -> tuple[float | None, float | None, dict[str, int]]:
        """Median and 95th percentile [ms], and drops by reason."""
        if isinstance(self.contender, Live):
            stages = self.contender.result.stages_ms
            p50, p95 = stages.get("latency", (None, None))
            return p50, p95, dict(self.contender.result.dropped)
        dropped = {"unreadable": self.dropped} if self.dropped else {}
        if not self.milliseconds:
            return None, None, dropped
        p50, p95 = np.percentile(self.milliseconds, (50, 95)).round(2).tolist()
        return p50, p95, dropped


class _Run:
    """State of one evaluation."""

    def __init__(
        self, recording: Recording, contenders: Sequence[Contender], judges: Judges
    ) -> None:
        if not len(recording):
            raise InputError(f"{recording.name}: no sweeps to evaluate on")
        self.recording, self.judges = recording, judges
        self.measures = [_Measure(contender, judges.space) for contender in contenders]
        self.live = any(isinstance(contender, Live) for contender in contenders)
        self.pairing = Pairing()
        self.sweeps: list[SweepFigures] = []
        self.scene: Scene | None = None
        last = len(recording) - 1
        spread = np.linspace(0, last, min(AGREEMENT_SWEEPS, len(recording))).round().astype(int)
        self.taught = set(spread.tolist()) if judges.teacher is not None else set()
        self.groups = None
        if judges.teacher is not None:
            self.groups = grouping(judges.teacher.label_space, judges.space)

    def add(self, index: int, sample: Sample) -> None:
        moment, judges = Moment(sample), self.judges
        truth = judges.truth(index, sample)
        taught = self._teach(sample) if index in self.taught else None
        shared = None if self.live else self._pair(moment, self.pairing)
        figures = SweepFigures(stamp_ns=sample.stamp_ns, points=len(sample.cloud))
        labels: dict[str, Labels] = {}
        changed: dict[str, npt.NDArray[np.int8]] = {}
        keep = (
            self.scene is None or index <= len(self.recording) // 2
        )  # the middle, if it is answered
        for measure in self.measures:
            answer = measure.contender.answer(moment)
            name = measure.contender.name
            if answer is None:
                measure.dropped += 1
                continue
            pairs = self._pair(moment, measure.pairing) if self.live else shared
            given = regroup(answer.labels, measure.groups)
            labels[name] = given
            if keep:
                changed[name] = _changes(given, measure.flicker.last, pairs)
            self._count(measure, answer, given, truth, taught, pairs, figures)
        self.sweeps.append(figures)
        if keep and labels:
            self.scene = Scene(sample.cloud.xyz, truth, labels, changed)

    def _count(
        self,
        measure: _Measure,
        answer: Answer,
        given: Labels,
        truth: Labels | None,
        taught: Labels | None,
        pairs: Pairs | None,
        figures: SweepFigures,
    ) -> None:
        name = measure.contender.name
        measure.points += len(given)
        measure.counts += np.bincount(given[given >= 0], minlength=len(self.judges.space))
        if truth is not None and (truth >= 0).any():
            measure.confusion.update(given, truth)
            known = truth >= 0
            figures.accuracy[name] = float(np.mean(given[known] == truth[known]))
        if taught is not None:
            seen = (taught >= 0) & (given >= 0)
            measure.taught += int(seen.sum())
            measure.agreed += int((taught == given)[seen].sum())
        flicker = measure.flicker.add(given, pairs)
        if flicker is not None:
            figures.flicker[name] = flicker
        if answer.milliseconds is not None:
            measure.milliseconds.append(answer.milliseconds)
            figures.milliseconds[name] = round(answer.milliseconds, 2)

    def _pair(self, moment: Moment, pairing: Pairing) -> Pairs | None:
        """Points at the place of one of the sweep before, the last one that was answered."""
        pose = moment.sample.T_world_lidar
        if pose is None:
            return None
        return pairing.add(transform(pose, moment.still.astype(np.float64)))

    def _teach(self, sample: Sample) -> Labels | None:
        judges = self.judges
        if judges.teacher is None or self.groups is None or not sample.cameras:
            return None
        evidence = camera_evidence(
            sample, judges.teacher, self.groups, len(judges.space), judges.teaching
        )
        labels, _ = label_points(evidence, len(sample.cloud))
        return labels.astype(np.int64)

    def report(self) -> ReplayReport:
        recording, space = self.recording, self.judges.space
        if not self.sweeps:
            reasons = "; ".join(reason for reason, _ in recording.skipped.most_common(3))
            raise InputError(
                f"{recording.name}: no sweep can be read: {reasons or 'there is none'}"
            )
        unread = len(recording) - len(self.sweeps)
        for measure in self.measures:
            measure.dropped += unread
        figures = [measure.figures(space, self.live, len(recording)) for measure in self.measures]
        return ReplayReport(
            **figures[0].model_dump(),
            source=recording.name,
            transport="over DDS" if self.live else "offline, every sweep",
            label_space=space.name,
            classes=list(space.names),
            labels_from=self.judges.labels_from if figures[0].miou is not None else None,
            pose_source=recording.pose_source,
            sweeps=len(self.sweeps),
            points=sum(sweep.points for sweep in self.sweeps),
            others=figures[1:],
            skipped=dict(Counter(recording.skipped)),
            notes=self._notes(),
            per_sweep=self.sweeps,
            scene=self.scene,
            palette=space.palette,
        )

    def _notes(self) -> list[str]:
        """Why figures are missing."""
        notes = []
        if self.judges.labels_from is None:
            notes.append("no mIoU: the recording carries no labels; give a folder by --labels")
        if self.recording.pose_source == "none":
            notes.append("no flicker: the recording has no poses (TF, Odometry or kiss-icp)")
        if self.taught and not any(measure.taught for measure in self.measures):
            notes.append("no agreement with cameras: no point of a labeled sweep is seen by one")
        return notes


def _changes(labels: Labels, last: Any, pairs: Pairs | None) -> npt.NDArray[np.int8]:
    """(N,) int8: 1 changed since the sweep before, 0 the same, -1 nothing to compare with."""
    changes = np.full(len(labels), -1, np.int8)
    if last is not None and pairs is not None:
        changes[pairs[0]] = labels[pairs[0]] != last[pairs[1]]
    return changes
