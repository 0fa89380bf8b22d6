# SPDX-License-Identifier: Apache-2.0
"""The ground near the vehicle, and which of it cameras see from elsewhere on the path."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.geometry import invert, transform

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

NEAR_M = 8.0
STEEP = np.tan(np.radians(14.0))  # below the sensor: fall per meter
_THICKNESS_M = 0.3
_DEPTH_M = (0.5, 25.0)  # from a camera; farther ground is seen at a grazing angle
_POINTS = 400  # of a sweep


def near_ground(sample: Sample) -> Float64:
    """(N, 3) points of the ground within 8 m and at least 14 degrees below the sensor [m].

    The ground is taken as flat: the points within 0.3 m of their median height. Down is that of the
    world frame, without poses that of the LiDAR frame, in which the points are. At most 400 points
    are taken, evenly spaced.

    Raises:
        InputError: the poses do not cover the sweep.
    """
    xyz = sample.cloud.xyz[sample.cloud.finite].astype(np.float64)
    pose = sample.T_world_lidar
    leveled = xyz if pose is None else xyz @ pose[:3, :3].T
    away, height = np.hypot(leveled[:, 0], leveled[:, 1]), leveled[:, 2]
    low = np.flatnonzero((away <= NEAR_M) & (height < -STEEP * away) & (away > 0))
    if not len(low):
        return xyz[low]
    ground = low[np.abs(height[low] - np.median(height[low])) <= _THICKNESS_M]
    found: Float64 = xyz[ground[:: max(1, -(-len(ground) // _POINTS))]]
    return found


def seen_from(xyz: Float64, frames: Iterable[CameraFrame]) -> Bool:
    """(N,) whether any image shows points (N, 3) of the LiDAR frame, not farther than 25 m.

    Nothing hides them here.
    """
    seen = np.zeros(len(xyz), bool)
    for frame in frames:
        in_camera = transform(frame.T_cam_lidar, xyz)
        depth = in_camera[:, 2]
        near = np.flatnonzero((depth > _DEPTH_M[0]) & (depth < _DEPTH_M[1]))
        uv, valid = frame.camera.project(in_camera[near])
        seen[near] |= valid & frame.camera.contains(uv.astype(np.float32))
    return seen


def ever_seen(xyz: Float64, sample: Sample, path: Float64) -> Bool:
    """(N,) whether the cameras of a sweep would see its points (N, 3) from anywhere on a path.

    Args:
        xyz: in the LiDAR frame of the sweep [m].
        sample: with poses and cameras.
        path: (K, 4, 4) T_world_lidar.

    Raises:
        InputError: the poses do not cover the sweep or one of its images.
    """
    here = sample.T_world_lidar
    assert here is not None
    reach = NEAR_M + _DEPTH_M[1] + 5.0
    close = np.linalg.norm(path[:, :3, 3] - here[:3, 3], axis=1) < reach
    seen = seen_from(xyz, sample.frames_at_sweep())
    for pose in path[close]:
        left = np.flatnonzero(~seen)
        if not len(left):
            break
        seen[left] = seen_from(transform(invert(pose) @ here, xyz[left]), sample.cameras)
    return seen
