# SPDX-License-Identifier: Apache-2.0
"""Where the LiDAR and the cameras are, and were. No ROS imports.

Nothing is assumed: where a transform is not known, `TransformError` is raised.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.data.calibration import Calibration
from pcseg_core.errors import PcsegError
from pcseg_core.geometry import Trajectory, deskew, invert

Float64 = npt.NDArray[np.float64]
Result = TypeVar("Result")

SILENT_S = 1.0  # a source that is behind by more is not waited for
JUMP_NS = 1_000_000_000  # stamps that go back by more are a new start
_POSE_STEP_NS = 10_000_000  # a sweep is deskewed with a pose every 10 ms
_POLL_S = 0.005


class TransformError(PcsegError):
    """A transform is not known. `on_its_way`: it may be in a moment."""

    def __init__(self, message: str, on_its_way: bool = False) -> None:
        super().__init__(message)
        self.on_its_way = on_its_way


class Motion(Protocol):
    """Poses of the LiDAR in a frame that does not jump."""

    def pose(self, lidar: str, stamp_ns: int) -> Float64:
        """T_fixed_lidar (4, 4) at a stamp; TransformError where it is not known."""

    def camera(self, camera: str, image_ns: int, lidar: str, sweep_ns: int) -> Float64:
        """T_cam_lidar (4, 4) between two moments, of a camera that moves against the LiDAR."""


class Extrinsics(Protocol):
    """Places of frames that do not move against each other."""

    def static(self, target: str, source: str) -> Float64 | None:
        """T_target_source (4, 4); None where it moves; TransformError where it is not known."""


class Rig:
    """Answers where the sensors were, waiting a bounded time for what is on its way.

    Args:
        motion: poses of the platform; None for a rig that stands still.
        extrinsics: of the cameras that the calibration lacks; None where there is no TF.
        calibration: by camera name or image topic.
    """

    def __init__(
        self, motion: Motion | None, extrinsics: Extrinsics | None, calibration: Calibration | None
    ) -> None:
        self._motion = motion
        self._extrinsics = extrinsics
        self._cameras = {} if calibration is None else calibration.cameras
        self._changed = threading.Condition()

    @property
    def moves(self) -> bool:
        """Poses can be asked for."""
        return self._motion is not None

    def notify(self) -> None:
        """New transforms are there; any thread."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, question: Callable[[], Result], deadline_s: float) -> Result:
        """Ask again while the answer is on its way, until a time of the monotonic clock.

        Raises:
            TransformError: there is no answer.
        """
        while True:
            try:
                return question()
            except TransformError as error:
                remaining = deadline_s - time.monotonic()
                if remaining <= 0 or not error.on_its_way:
                    raise
            with self._changed:
                self._changed.wait(min(remaining, _POLL_S))

    def pose(self, lidar: str, stamp_ns: int) -> Float64:
        """T_fixed_lidar (4, 4).

        Raises:
            TransformError: it is not known, or nothing tells of motion.
        """
        if self._motion is None:
            raise TransformError("motion.source is none")
        return self._motion.pose(lidar, stamp_ns)

    def deskew(self, cloud: PointCloud) -> npt.NDArray[np.float32]:
        """(N, 3) points of a sweep with times, as they would be seen at its stamp.

        Raises:
            TransformError: a pose within the sweep is not known.
        """
        if cloud.time is None or not len(cloud):
            return cloud.xyz
        known = np.isfinite(cloud.time)
        first = cloud.stamp_ns + int(1e9 * cloud.time.min(where=known, initial=0.0))
        last = cloud.stamp_ns + int(1e9 * cloud.time.max(where=known, initial=0.0))
        if last == first:
            return cloud.xyz
        stamps = np.unique(np.append(np.arange(first, last, _POSE_STEP_NS), last))
        # The newest one first: while that is on its way, the others need no look.
        poses = [self.pose(cloud.frame_id, int(stamp)) for stamp in stamps[::-1]][::-1]
        moved = deskew(cloud.xyz, cloud.time, Trajectory(stamps, np.stack(poses)), cloud.stamp_ns)
        return np.asarray(moved, np.float32)

    def T_cam_lidar(
        self, camera: str, topic: str, frame: str, image_ns: int, lidar: str, sweep_ns: int
    ) -> Float64:
        """(4, 4): LiDAR frame at the sweep's stamp into the camera's frame at its image's.

        Args:
            camera, topic, frame: the camera's name, image topic and frame_id.
            image_ns: stamp of the image.
            lidar: frame_id of the sweep.
            sweep_ns: stamp of the sweep.

        Raises:
            TransformError: the extrinsic or the motion between the stamps is not known.
        """
        extrinsic = self._extrinsic(camera, topic, frame, lidar)
        if extrinsic is None:
            if self._motion is None:
                raise TransformError(
                    f"'{frame}' moves against '{lidar}', and motion.source is none"
                )
            return self._motion.camera(frame, image_ns, lidar, sweep_ns)
        if self._motion is None or image_ns == sweep_ns:
            return extrinsic
        then, now = self.pose(lidar, image_ns), self.pose(lidar, sweep_ns)
        moved: Float64 = extrinsic @ invert(then) @ now
        return moved

    def _extrinsic(self, camera: str, topic: str, frame: str, lidar: str) -> Float64 | None:
        calibrated = self._cameras.get(camera) or self._cameras.get(topic)
        if calibrated is not None:
            return calibrated.extrinsic()
        if self._extrinsics is None:
            raise TransformError(f"cameras.calibration has no camera '{camera}'")
        return self._extrinsics.static(frame, lidar)
