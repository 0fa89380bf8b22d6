# SPDX-License-Identifier: Apache-2.0
"""The camera teacher at run time: labels the images of sweeps in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.distill.evidence import PixelEvidence
from pcseg_core.labels import LabelSpace
from pcseg_core.online.camera_fusion import CameraLabeler, label_by_cameras
from pcseg_core.online.camera_observers import CameraObserver
from pcseg_core.online.pipeline import LabeledSweep, Sweep
from pcseg_ros.config import TeacherParameters
from pcseg_ros.inputs import NodeSweep
from pcseg_ros.worker import LatestWorker

if TYPE_CHECKING:
    from pcseg_core.vision.pixel_classes import PixelClasses


@dataclass
class PendingEvidence:
    """Camera evidence of a sweep, once the teacher's thread has it.

    Attributes:
        sweep: the sweep with its images.
        cloud: its points as the network sees them.
        space: classes of the evidence.
        evidence: pixel classes of the images; None until `finish`, and if labeling failed.
    """

    sweep: NodeSweep
    cloud: PointCloud
    space: LabelSpace
    evidence: list[PixelEvidence] | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    def finish(self, evidence: list[PixelEvidence] | None) -> None:
        """Set the evidence and wake up whoever waits for it."""
        self.evidence = evidence
        self._done.set()

    def wait(self, deadline_s: float) -> list[PixelEvidence] | None:
        """The evidence; None if there is none by a time of the monotonic clock."""
        self._done.wait(max(0.0, deadline_s - time.monotonic()))
        return self.evidence

    def labels(self) -> LabeledSweep:
        """The sweep labeled by the evidence alone."""
        labels, confidence = label_by_cameras(self.cloud.xyz, self.evidence or [])
        return LabeledSweep(self.cloud, labels.astype(np.int32), confidence, self.space)


class CameraTeacher(CameraObserver):
    """Labels the images of the newest sweep; a sweep waits for them until its deadline.

    Args:
        teacher: pixel classes.
        config: whether to fuse, and the deadline.
        wanted: there are subscribers of the teacher's labels.
        on_evidence: called in the thread with each finished sweep that has evidence.
        on_error: called in the thread with an error that left a sweep without evidence.
    """

    def __init__(
        self,
        teacher: PixelClasses,
        config: TeacherParameters,
        wanted: Callable[[], bool],
        on_evidence: Callable[[PendingEvidence], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._teacher = teacher
        self._config = config
        self._wanted = wanted
        self._on_evidence = on_evidence
        self._on_error = on_error
        self._worker: LatestWorker[PendingEvidence] | None = None

    def start(self) -> None:
        """Start the thread."""
        self._worker = LatestWorker(self._label, self._give_up, name="teacher")

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it still runs after `timeout_s`."""
        worker, self._worker = self._worker, None
        return worker is None or worker.stop(timeout_s)

    def observe(
        self, sweep: Sweep, cloud: PointCloud, space: LabelSpace
    ) -> Callable[[], list[PixelEvidence] | None]:
        """See `CameraObserver`; a sweep that the thread has not begun is replaced by this one."""
        assert isinstance(sweep, NodeSweep)
        if self._worker is None or not (self._config.fuse or self._wanted()):
            return list
        pending = PendingEvidence(sweep, cloud, space)
        self._worker.offer(pending)
        deadline_s = sweep.received.received_s + self._config.deadline_s
        return lambda: pending.wait(deadline_s)

    def _label(self, pending: PendingEvidence) -> None:
        frames = pending.sweep.frames
        labeler = CameraLabeler(self._teacher, pending.space)
        evidence = [] if frames is None else [labeler.label(frame) for frame in frames()]
        pending.finish(evidence)
        if evidence:
            self._on_evidence(pending)

    def _give_up(self, pending: PendingEvidence, error: Exception) -> None:
        pending.finish(None)
        self._on_error(error)
