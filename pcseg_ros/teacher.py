# SPDX-License-Identifier: Apache-2.0
"""The camera teacher at run time: what the images say of a sweep, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame
from pcseg_core.distill.pseudo_labels import Evidence, label_points, sample_map
from pcseg_core.labels import LabelSpace
from pcseg_core.online.camera_fusion import CameraLabeler, PixelEvidence
from pcseg_core.projection import project_cloud
from pcseg_ros.worker import LatestWorker


@dataclass
class Look:
    """A sweep for the teacher.

    Attributes:
        sweep: the sweep as it came in.
        cloud: its points.
        frames: gives the images, with the place of each camera at the image's time.
        space: classes that the evidence is wanted in.
        evidence: what the images said, once it is there.
    """

    sweep: Any
    cloud: PointCloud
    frames: Callable[[], list[CameraFrame]]
    space: LabelSpace
    evidence: list[PixelEvidence] | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    def finish(self, evidence: list[PixelEvidence] | None) -> None:
        """The teacher has looked, or could not."""
        self.evidence = evidence
        self._done.set()

    def wait(self, deadline_s: float) -> list[PixelEvidence] | None:
        """The evidence; None if there is none at a time of the monotonic clock."""
        self._done.wait(max(0.0, deadline_s - time.monotonic()))
        return self.evidence


class TeacherThread:
    """Looks at the newest sweep that was offered; the student never waits for an older one.

    Args:
        teacher: a `pcseg_core.vision.pixel_classes.PixelClasses`.
        on_look: called in the thread with every look that has evidence.
        on_error: called in the thread with what kept a look from having it.
    """

    def __init__(
        self, teacher: Any, on_look: Callable[[Look], None], on_error: Callable[[Exception], None]
    ) -> None:
        self._teacher = teacher
        self._on_look = on_look
        self._on_error = on_error
        self._worker = LatestWorker(self._look, self._give_up, name="teacher")

    def offer(self, look: Look) -> None:
        """Give the thread a sweep; one that still waits is passed over."""
        self._worker.offer(look)

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it is still busy after `timeout_s`."""
        return self._worker.stop(timeout_s)

    def _look(self, look: Look) -> None:
        labeler = CameraLabeler(self._teacher, look.space)
        frames = look.frames()
        evidence = [labeler.label(frame) for frame in frames]
        look.finish(evidence)
        if evidence:
            self._on_look(look)

    def _give_up(self, look: Look, error: Exception) -> None:
        look.finish(None)
        self._on_error(error)


def projected_labels(
    xyz: npt.NDArray[Any], evidence: Sequence[PixelEvidence]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """What the images alone say of the points: labels (N,), -1 where unseen, and confidence (N,).

    Votes of the cameras are weighted as for pseudo labels in training.
    """
    sums = np.zeros((len(xyz), len(evidence[0].probabilities)), np.float32)
    weights = np.zeros(len(xyz), np.float32)
    for image in evidence:
        projection = project_cloud(xyz, image.T_cam_lidar, image.camera, border_px=5.0)
        seen = np.flatnonzero(projection.visible & (projection.weight > 0))
        weight = projection.weight[seen]
        size = (image.camera.width, image.camera.height)
        votes = sample_map(image.probabilities, projection.uv[seen], size)
        sums[seen] += weight[:, None] * votes
        weights[seen] += weight
    index = np.flatnonzero(weights > 0).astype(np.int32)
    return label_points(Evidence(index, weights[index], sums[index]), len(xyz))
