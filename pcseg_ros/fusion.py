# SPDX-License-Identifier: Apache-2.0
"""What a sweep is joined with: motion, images, the camera teacher, and the sweeps before it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rclpy.node import Node

from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame
from pcseg_core.errors import PcsegError
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.online.temporal import TemporalBuffer
from pcseg_core.projection import project_cloud
from pcseg_ros import diagnostics
from pcseg_ros.config import NodeConfig
from pcseg_ros.inputs import Inputs, Sweep
from pcseg_ros.outputs import CameraView, LabeledSweep, SweepOutputs
from pcseg_ros.rig import TransformError
from pcseg_ros.statistics import SweepStatistics
from pcseg_ros.worker import LatestWorker

if TYPE_CHECKING:
    from pcseg_ros.teacher import Look, TeacherThread

LOG_PERIOD_S = 5.0
Labels = tuple[npt.NDArray[Any], npt.NDArray[np.float32]]


class DroppedError(PcsegError):
    """A sweep goes no further; the message is the reason that is counted."""


class Drawing(NamedTuple):
    """A sweep to be drawn over its images."""

    labeled: LabeledSweep
    sweep: Sweep
    cloud: PointCloud


class SweepFusion:
    """Joins one sweep at a time; all but `forget` in the inference thread.

    Args:
        node: for its log.
        inputs: cameras and motion.
        outputs: where the teacher's labels go.
        statistics: where is counted what had to be left out.
        teacher: a `pcseg_core.vision.pixel_classes.PixelClasses`, or None.
        config: parameters that do not change.
    """

    def __init__(
        self,
        node: Node,
        inputs: Inputs,
        outputs: SweepOutputs,
        statistics: SweepStatistics,
        teacher: Any,
        config: NodeConfig,
    ) -> None:
        self._node = node
        self._inputs = inputs
        self._outputs = outputs
        self._statistics = statistics
        self._config = config
        self._teacher = teacher
        self._thread: TeacherThread | None = None
        self._drawer: LatestWorker[Drawing] | None = None
        self._buffer: TemporalBuffer | None = None
        self._forget = False

    def start(self) -> None:
        """Start the threads of the teacher and of the overlays, where there are images."""
        if self._inputs.cameras:
            self._drawer = LatestWorker(self._draw, self._on_drawing, name="overlays")
        if self._teacher is not None:
            from pcseg_ros.teacher import TeacherThread  # brings torch

            self._thread = TeacherThread(self._teacher, self._publish_teacher, self._on_teacher)

    def stop(self, timeout_s: float) -> bool:
        """End the threads; False if one is still busy after `timeout_s`."""
        threads = (self._thread, self._drawer)
        self._thread = self._drawer = None
        ended = [thread.stop(timeout_s) for thread in threads if thread is not None]
        return all(ended)

    def forget(self) -> None:
        """The sweeps before count no more; any thread."""
        self._forget = True

    def counters(self) -> dict[str, int]:
        """What happened to the evidence of the sweeps before, in words; any thread."""
        counts = {} if self._buffer is None else dict(self._buffer.counters)
        return {f"smoothing {k.replace('_', ' ')}": v for k, v in counts.items()}

    def locate(self, cloud: PointCloud) -> Any:
        """T_fixed_lidar (4, 4) at the sweep's stamp; None where it is not known, or not needed.

        The points of the cloud are deskewed.

        Raises:
            DroppedError: it is not known, and required.
        """
        rig, motion = self._inputs.rig, self._config.motion
        if not rig.moves or not (self._config.temporal.enabled or motion.deskew):
            return None
        deadline_s = time.monotonic() + motion.timeout_s
        try:
            pose = rig.wait(lambda: rig.pose(cloud.frame_id, cloud.stamp_ns), deadline_s)
            if motion.deskew:
                cloud.xyz = rig.wait(lambda: rig.deskew(cloud), deadline_s)
            return pose
        except TransformError as error:
            self._complain(diagnostics.NO_MOTION, error)
            if motion.required:
                raise DroppedError(diagnostics.NO_MOTION) from None
            return None

    def look(self, sweep: Sweep, cloud: PointCloud, space: LabelSpace) -> Look | None:
        """Let the teacher look at the images, if anybody wants to know what it sees."""
        wanted = self._config.teacher.fuse or self._outputs.teacher_wanted()
        if self._thread is None or not sweep.images or not wanted:
            return None
        from pcseg_ros.teacher import Look

        look = Look(sweep, cloud, lambda: self._frames(sweep, cloud, list(sweep.images)), space)
        self._thread.offer(look)
        return look if self._config.teacher.fuse else None

    def needs_probabilities(self, pose: Any, look: Look | None) -> bool:
        """Labels alone are not enough to fuse with."""
        return look is not None or self._smooths(pose)

    def fuse(self, result: Any, cloud: PointCloud, sweep: Sweep, pose: Any, look: Any) -> Labels:
        """Labels and confidence of a segmentation, joined with the images and the past."""
        labels, confidence = result.labels, result.confidence
        probabilities = result.probabilities
        if look is not None:
            evidence = look.wait(sweep.received_s + self._config.teacher.deadline_s)
            if evidence is None:
                self._statistics.note(diagnostics.NO_EVIDENCE)
            elif evidence:
                from pcseg_core.online.camera_fusion import CameraFusionConfig, fuse_cameras

                trust = CameraFusionConfig(camera_weight=self._config.teacher.camera_weight)
                probabilities = fuse_cameras(cloud.xyz, probabilities, evidence, trust)
                labels = np.where(labels == IGNORE, IGNORE, probabilities.argmax(axis=1))
                confidence = probabilities.max(axis=1)
        if self._smooths(pose):
            classes = probabilities.shape[1]
            if self._buffer is None or self._buffer.classes != classes:
                self._buffer = TemporalBuffer(self._config.temporal, classes)
            elif self._forget:
                self._buffer.reset()  # a new one would scatter its large tables over the memory
            self._forget = False
            return self._buffer.update(cloud.xyz, probabilities, pose, cloud.stamp_ns)
        return labels, confidence

    def show(self, labeled: LabeledSweep, sweep: Sweep, cloud: PointCloud) -> None:
        """Let the overlays be drawn that somebody subscribes; the next sweep does not wait."""
        if self._drawer is not None and sweep.images and self._outputs.wanted_overlays():
            self._drawer.offer(Drawing(labeled, sweep, cloud))

    def _smooths(self, pose: Any) -> bool:
        return self._config.temporal.enabled and pose is not None

    def _frames(self, sweep: Sweep, cloud: PointCloud, names: list[str]) -> list[CameraFrame]:
        """The decoded images whose camera's place is known."""
        frames = []
        deadline_s = time.monotonic() + self._config.motion.timeout_s
        for name in names:
            camera = self._inputs.cameras[name]
            try:
                frames.append(camera.frame(sweep.images[name], cloud, self._inputs.rig, deadline_s))
            except PcsegError as error:
                self._complain(f"camera {name} left out", error)
        return frames

    def _draw(self, drawing: Drawing) -> None:
        """Overlays' thread."""
        labeled, sweep, cloud = drawing
        names = [name for name in self._outputs.wanted_overlays() if name in sweep.images]
        for frame in self._frames(sweep, cloud, names):
            projection = project_cloud(cloud.xyz, frame.T_cam_lidar, frame.camera)
            view = CameraView(frame.image, projection, sweep.images[frame.name].header)
            self._outputs.publish_overlay(frame.name, labeled, view)

    def _on_drawing(self, drawing: Drawing, error: Exception) -> None:
        if self._node.context.ok():
            self._complain("overlay failed", error)

    def _publish_teacher(self, look: Look) -> None:
        """Teacher's thread."""
        if look.evidence and self._outputs.teacher_wanted():
            from pcseg_ros.teacher import projected_labels

            labels, confidence = projected_labels(look.cloud.xyz, look.evidence)
            sweep = LabeledSweep(look.sweep.msg, look.cloud.xyz, labels, confidence, look.space)
            self._outputs.publish_teacher(sweep, self._config)

    def _on_teacher(self, error: Exception) -> None:
        if self._node.context.ok():
            self._complain("teacher failed", error)

    def _complain(self, event: str, error: Exception) -> None:
        """Count what costs no sweep, and log why."""
        self._statistics.note(event)
        self._node.get_logger().warning(f"{event}: {error}", throttle_duration_sec=LOG_PERIOD_S)
