# SPDX-License-Identifier: Apache-2.0
"""Compare the replayed student, the teacher and the bundled checkpoint with exact truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data import Recording, Sample
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import PcsegError
from pcseg_core.evaluation.live import ReplayResult
from pcseg_core.labels import LabelSpace, grouping, regroup, truth_of
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.online.camera_fusion import CameraLabeler, label_by_cameras
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.progress import tracked
from pcseg_core.vision.pixel_classes import PixelClasses

SEEN, UNSEEN, ALL = "seen", "unseen", "all"
Labels = npt.NDArray[np.int64]


@dataclass
class Scores:
    """Confusions by method, and by points: seen by a camera, unseen, all.

    Attributes:
        space: classes that are compared.
        confusions: (method, points) -> confusion.
        sweeps: number of measured sweeps.
        seen_share: share of the points that a camera sees, 0..1.
    """

    space: LabelSpace
    confusions: dict[tuple[str, str], Confusion] = field(default_factory=dict)
    sweeps: int = 0
    seen_share: float = 0.0

    def add(self, method: str, labels: Labels, truth: Labels, seen: npt.NDArray[np.bool_]) -> None:
        """Count the points of a sweep; `seen` (N,) are those that a camera sees."""
        parts = {SEEN: seen, UNSEEN: ~seen, ALL: np.ones(len(seen), bool)}
        for points, mask in parts.items():
            confusion = self.confusions.setdefault((method, points), Confusion(len(self.space)))
            confusion.update(labels[mask], truth[mask])

    def miou(self, method: str, points: str) -> float:
        """Mean IoU over the classes present, 0..1."""
        return self.confusions[method, points].miou

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values; the IoU of classes without points is None."""
        figures: dict[str, Any] = {}
        for (method, points), confusion in self.confusions.items():
            iou = {
                name: round(float(value), 4) if here else None
                for name, value, here in zip(self.space.names, confusion.iou, confusion.present)
            }
            figures.setdefault(method, {})[points] = {
                "miou": round(confusion.miou, 4),
                "accuracy": round(confusion.accuracy, 4),
                "points": confusion.points,
                "iou": iou,
            }
        return figures


def project_teacher(sample: Sample, teacher: PixelClasses, config: PseudoLabelConfig) -> Labels:
    """(N,) labels of the points that a camera of this sweep sees, IGNORE for the others."""
    labeler, sweep = CameraLabeler(teacher, LabelSpace.load(config.label_space)), Sweep.of(sample)
    images = [labeler.label(frame) for frame in sample.frames_at_sweep()]
    labels, _ = label_by_cameras(sweep.deskewed().xyz, images, config)
    return labels.astype(np.int64)


def measure(
    recording: Recording,
    replayed: ReplayResult,
    student: LabelSpace,
    teacher: PixelClasses,
    bundled: Pipeline,
    config: PseudoLabelConfig,
) -> Scores:
    """Compare student, teacher and bundled checkpoint on the sweeps that came back labeled.

    "Seen" are the points that the teacher labels: the points that all three methods label.

    Args:
        recording: labeled recording that was replayed.
        replayed: labels of the student.
        student: classes of the student.
        teacher: labels the images.
        bundled: pipeline of the bundled checkpoint.
        config: how pixels become labels of points.

    Raises:
        PcsegError: no sweep came back labeled.
    """
    space = LabelSpace.load(config.label_space)
    scores = Scores(space)
    counts = np.zeros(2)
    for index in tracked(range(len(recording)), "measuring", len(recording)):
        sample = recording[index]
        labels = replayed.labels.get(sample.cloud.stamp_ns)
        if labels is None:
            continue
        truth = truth_of(sample, space)
        taught = project_teacher(sample, teacher, config)
        seen = taught >= 0
        counts += (seen.sum(), len(seen))
        scores.sweeps += 1
        scores.add("teacher", taught, truth, seen)
        scores.add("student", regroup(labels, grouping(student, space)), truth, seen)
        labeled = bundled.process(Sweep.of(sample))
        given = regroup(labeled.labels, grouping(labeled.label_space, space))
        scores.add("bundled", given, truth, seen)
    if not scores.sweeps:
        raise PcsegError(f"{recording.name}: none of its {len(recording)} sweeps came back labeled")
    scores.seen_share = float(counts[0] / counts[1])
    return scores
