# SPDX-License-Identifier: Apache-2.0
"""Poses of the LiDAR and the cameras, at the stamps of their messages. No ROS imports.

No transform is ever assumed: if one is unknown, `TransformError` is raised.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pcseg_core.data.calibration import Calibration
from pcseg_core.data.tf_tree import MAX_POSE_GAP_S
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.geometry import Trajectory, compose, invert

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Result = TypeVar("Result")

SILENT_S = 1.0  # transforms of a source that lags by more are not waited for
JUMP_NS = 1_000_000_000  # stamps that go back by more are a restart
_KEPT_NS = 10_000_000_000
_POLL_S = 0.005


class TransformError(PcsegError):
    """A transform is unknown. `expected`: it may arrive soon."""

    def __init__(self, message: str, expected: bool = False) -> None:
        super().__init__(message)
        self.expected = expected


class Motion(Protocol):
    """Poses of the LiDAR in a frame without jumps."""

    def poses(self, lidar: str, stamps_ns: Int64) -> Float64:
        """T_fixed_lidar (K, 4, 4) at stamps (K,), or TransformError; looks for the newest first."""

    def camera(self, camera: str, image_ns: int, lidar: str, sweep_ns: int) -> Float64:
        """T_cam_lidar (4, 4) between two moments, for a camera that moves against the LiDAR."""


class Extrinsics(Protocol):
    """Transforms between frames that do not move against each other."""

    def static(self, target: str, source: str) -> Float64 | None:
        """T_target_source (4, 4); None if it moves; TransformError if it is unknown."""


class SensorPoses:
    """Poses of the sensors of a platform; waits a bounded time for transforms that are late.

    Args:
        motion: poses of the platform; None for one that stands still.
        extrinsics: places of cameras that the calibration does not hold; None without TF.
        calibration: by camera name or image topic.
    """

    def __init__(
        self, motion: Motion | None, extrinsics: Extrinsics | None, calibration: Calibration | None
    ) -> None:
        self._motion = motion
        self._extrinsics = extrinsics
        self._cameras = {} if calibration is None else calibration.cameras
        self._calibration = calibration
        self._changed = threading.Condition()

    @property
    def moves(self) -> bool:
        """The motion of the platform is known or can become known."""
        return self._motion is not None

    def notify(self) -> None:
        """Wake up whoever waits: there are new transforms; any thread."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, question: Callable[[], Result], deadline_s: float) -> Result:
        """Ask until there is an answer, or until a time of the monotonic clock.

        Raises:
            TransformError: there is no answer.
        """
        while True:
            try:
                return question()
            except TransformError as error:
                remaining = deadline_s - time.monotonic()
                if remaining <= 0 or not error.expected:
                    raise
            with self._changed:
                self._changed.wait(min(remaining, _POLL_S))

    def poses(self, lidar: str, stamps_ns: Int64) -> Float64:
        """T_fixed_lidar (K, 4, 4) at stamps (K,), in any order.

        Raises:
            TransformError: one is unknown, or there is no source of motion.
        """
        if self._motion is None:
            raise TransformError("motion.source is none")
        return self._motion.poses(lidar, stamps_ns)

    def T_cam_lidar(
        self, camera: str, topic: str, frame: str, image_ns: int, lidar: str, sweep_ns: int
    ) -> Float64:
        """(4, 4): LiDAR frame at the sweep's stamp to the camera's frame at its image's stamp.

        Composed as `pcseg_core.data.sample.Sample.T_cam_lidar` does it, to the last bit.

        Args:
            camera, topic, frame: the camera's name, image topic and frame_id.
            image_ns: stamp of the image.
            lidar: frame_id of the sweep.
            sweep_ns: stamp of the sweep.

        Raises:
            TransformError: the extrinsic or the motion between the stamps is unknown.
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
        image, sweep = self._pose(lidar, image_ns), self._pose(lidar, sweep_ns)
        moved: Float64 = extrinsic @ compose(invert(image), sweep)
        return moved

    def T_united_lidar(self, united: str, topic: str, frame: str) -> Float64:
        """(4, 4): frame of one of several LiDARs to that of the united sweep.

        Args:
            united: frame of the united sweep.
            topic, frame: of the LiDAR.

        Raises:
            TransformError: it is unknown, or the frames move against each other.
        """
        if frame.lstrip("/") == united.lstrip("/"):
            return np.eye(4)
        given = None if self._calibration is None else self._calibration.lidar(topic, frame)
        if given is not None:
            return given
        if self._extrinsics is None:
            raise TransformError(f"cameras.calibration has no LiDAR '{topic}' or '{frame}'")
        found = self._extrinsics.static(united, frame)
        if found is None:
            raise TransformError(f"'{frame}' moves against '{united}'; expected a fixed LiDAR")
        return found

    def _pose(self, lidar: str, stamp_ns: int) -> Float64:
        pose: Float64 = self.poses(lidar, np.array([stamp_ns], np.int64))[0]
        return pose

    def _extrinsic(self, camera: str, topic: str, frame: str, lidar: str) -> Float64 | None:
        calibrated = self._cameras.get(camera) or self._cameras.get(topic)
        if calibrated is not None:
            return calibrated.extrinsic()
        if self._extrinsics is None:
            raise TransformError(f"cameras.calibration has no camera '{camera}'")
        return self._extrinsics.static(frame, lidar)


class OdometryMotion:
    """Poses from the last ten seconds of Odometry, interpolated but never extrapolated.

    Args:
        T_body_lidar: pose of the LiDAR in the body frame of Odometry; None takes it from
            `extrinsics`, unless the LiDAR is the body.
        extrinsics: static transforms, or None.
    """

    def __init__(self, T_body_lidar: Float64 | None, extrinsics: Extrinsics | None) -> None:
        self._T_body_lidar = T_body_lidar
        self._extrinsics = extrinsics
        self._lock = threading.Lock()
        self._body = ""
        self._stamps: list[int] = []
        self._poses: list[Float64] = []

    def add(self, body: str, stamp_ns: int, pose: Float64) -> None:
        """Add T_odom_body at a stamp. A jump back restarts; other older stamps are ignored."""
        with self._lock:
            if self._stamps and stamp_ns <= self._stamps[-1]:
                if stamp_ns > self._stamps[-1] - JUMP_NS:
                    return
                self._stamps.clear()
                self._poses.clear()
            self._body = body
            self._stamps.append(stamp_ns)
            self._poses.append(pose)
            old = bisect_left(self._stamps, stamp_ns - _KEPT_NS)
            del self._stamps[:old], self._poses[:old]

    def reset(self) -> None:
        """Forget all poses."""
        with self._lock:
            self._stamps.clear()
            self._poses.clear()

    def poses(self, lidar: str, stamps_ns: Int64) -> Float64:
        """See `Motion`. The motion of the body is interpolated, as in recordings."""
        place = self._place(self._body, lidar)  # first: without it no pose is waited for
        try:
            trajectory = self._around(int(stamps_ns.min()), int(stamps_ns.max()))
            moving = trajectory if place is None else trajectory.mounted(place)
            return moving.at_many(stamps_ns)
        except InputError as error:
            raise TransformError(f"Odometry: {error}") from None

    def camera(self, camera: str, image_ns: int, lidar: str, sweep_ns: int) -> Float64:
        """Always TransformError: Odometry has no poses of cameras."""
        raise TransformError(f"'{camera}' moves against '{lidar}': Odometry cannot give its pose")

    def _around(self, first_ns: int, last_ns: int) -> Trajectory:
        """Poses of the body, from the one before a stamp to the one after another."""
        with self._lock:
            if not self._stamps:
                raise TransformError("no Odometry received")
            behind = last_ns - self._stamps[-1]
            if behind > 0:
                raise TransformError(
                    f"Odometry ends {1e-9 * behind:.3f} s before", behind < SILENT_S * 1e9
                )
            if first_ns < self._stamps[0]:
                raise TransformError("Odometry begins later")
            begin = max(bisect_left(self._stamps, first_ns) - 1, 0)
            chosen = slice(begin, bisect_right(self._stamps, last_ns) + 1)
            stamps, poses = self._stamps[chosen], np.stack(self._poses[chosen])
            return Trajectory(stamps, poses, max_gap_s=MAX_POSE_GAP_S)

    def _place(self, body: str, lidar: str) -> Float64 | None:
        """T_body_lidar (4, 4); None if the LiDAR is the body."""
        if self._T_body_lidar is not None:
            return self._T_body_lidar
        if not self._stamps:
            raise TransformError("no Odometry received")
        if body.lstrip("/") == lidar.lstrip("/"):
            return None
        found = None if self._extrinsics is None else self._extrinsics.static(body, lidar)
        if found is None:
            raise TransformError(
                f"Odometry has poses of '{body}': give T_body_lidar of '{lidar}' in "
                "cameras.calibration"
            )
        return found
