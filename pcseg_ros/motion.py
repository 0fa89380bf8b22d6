# SPDX-License-Identifier: Apache-2.0
"""Motion of the platform, from nav_msgs/Odometry or from tf2. No ROS imports."""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.geometry import Trajectory
from pcseg_ros.rig import JUMP_NS, SILENT_S, Extrinsics, TransformError

Float64 = npt.NDArray[np.float64]

_KEPT_NS = 10_000_000_000
_GAP_NS = 1_000_000_000  # poses that are farther apart are not interpolated between


class TfMotion:
    """Poses by lookups in tf2.

    Args:
        buffer: a `pcseg_ros.transforms.TransformBuffer`.
        fixed: frame without jumps.
    """

    def __init__(self, buffer: Any, fixed: str) -> None:
        self._buffer = buffer
        self._fixed = fixed

    def pose(self, lidar: str, stamp_ns: int) -> Float64:
        """T_fixed_lidar (4, 4)."""
        found: Float64 = self._buffer.pose(self._fixed, lidar, stamp_ns)
        return found

    def camera(self, camera: str, image_ns: int, lidar: str, sweep_ns: int) -> Float64:
        """T_cam_lidar (4, 4) through the fixed frame."""
        found: Float64 = self._buffer.between(camera, image_ns, lidar, sweep_ns, self._fixed)
        return found


class OdometryMotion:
    """Poses of the last ten seconds of Odometry, interpolated and never extrapolated.

    Args:
        T_body_lidar: place of the LiDAR in the frame that Odometry is about; None takes it from
            `extrinsics`, unless the LiDAR is that frame.
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
        """Take T_odom_body of a moment. Stamps that jump back start anew; older ones are left."""
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

    def pose(self, lidar: str, stamp_ns: int) -> Float64:
        """T_odom_lidar (4, 4)."""
        body, stamps, poses = self._around(stamp_ns)
        T_odom_body = Trajectory(stamps, np.stack(poses)).at(stamp_ns)
        moved: Float64 = T_odom_body @ self._place(body, lidar)
        return moved

    def camera(self, camera: str, image_ns: int, lidar: str, sweep_ns: int) -> Float64:
        """Odometry knows nothing of cameras that move."""
        raise TransformError(f"'{camera}' moves against '{lidar}', which odometry tells nothing of")

    def _around(self, stamp_ns: int) -> tuple[str, list[int], list[Float64]]:
        """The poses before and after a stamp."""
        with self._lock:
            if not self._stamps:
                raise TransformError("no Odometry received")
            after = bisect_left(self._stamps, stamp_ns)
            if after == len(self._stamps):
                behind = stamp_ns - self._stamps[-1]
                raise TransformError(
                    f"Odometry ends {1e-9 * behind:.3f} s before", behind < SILENT_S * 1e9
                )
            first = after if self._stamps[after] == stamp_ns else after - 1
            if first < 0:
                raise TransformError("Odometry begins later")
            if self._stamps[after] - self._stamps[first] > _GAP_NS:
                raise TransformError("Odometry has a gap there")
            chosen = slice(first, after + 1)
            return self._body, self._stamps[chosen], self._poses[chosen]

    def _place(self, body: str, lidar: str) -> Float64:
        if self._T_body_lidar is not None:
            return self._T_body_lidar
        if body.lstrip("/") == lidar.lstrip("/"):
            return np.eye(4)
        found = None if self._extrinsics is None else self._extrinsics.static(body, lidar)
        if found is None:
            raise TransformError(
                f"Odometry is about '{body}': give T_body_lidar of '{lidar}' in cameras.calibration"
            )
        return found
