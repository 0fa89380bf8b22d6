# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms, interpolated trajectories and correction of motion within a sweep.

Poses are 4x4 float64 matrices; `T_a_b` maps points of frame b into frame a. Axes follow REP-103,
quaternions are (x, y, z, w), angles are radians, lengths meters and stamps integer nanoseconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Poses: TypeAlias = Callable[[npt.NDArray[np.int64]], Float64]
"""Stamps (K,) in ns -> poses (K, 4, 4); raises `PcsegError` for a stamp whose pose is unknown."""

# Number of poses to deskew a sweep with; matrix entries are linear between them. At 10 Hz they are
# 0.05 ms apart: a turn of 1 rad/s then moves a point at 100 m by less than 1e-6 m, and a step of
# 1 m/s in the speed by 1.3e-5 m. One slerp per point is far slower.
_DESKEW_POSES = 2048
MAX_DESKEW_NS = 20_000_000_000  # from the first point or the stamp to the last
_POSE_STEP_NS = 10_000_000  # between the poses that a sweep is deskewed with
MAX_TRANSLATION_M = 1e9  # coordinates of the earth are below 1e7 m
_CHUNK = 8192  # number of points whose matrices fit into the cache


def transform(T: Array, xyz: Array) -> Array:
    """Map points (..., 3) with one pose (4, 4) or one pose per point (..., 4, 4).

    Computes in and returns the dtype of `xyz` if it is a float type, else float64.
    """
    points = np.asarray(xyz)
    if not np.issubdtype(points.dtype, np.floating):
        points = points.astype(np.float64)
    pose = np.asarray(T).astype(points.dtype, copy=False)
    if pose.ndim == 2:
        moved: Array = points @ pose[:3, :3].T
        moved += pose[:3, 3]
        return moved
    rotated: Array = np.einsum("...ij,...j->...i", pose[..., :3, :3], points)
    result: Array = rotated + pose[..., :3, 3]
    return result


def elevation(xyz: Array) -> Array:
    """(N,) elevation of points (N, 3) above the horizontal plane of their frame [rad]."""
    result: Array = np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))
    return result


def invert(T: Array) -> Float64:
    """Inverse of rigid poses (..., 4, 4)."""
    pose = np.asarray(T, dtype=np.float64)
    inverse = np.zeros_like(pose)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, pose[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def compose(*Ts: Array) -> Float64:
    """Chain poses: `compose(T_a_b, T_b_c)` is `T_a_c`; without arguments the identity."""
    result = np.eye(4)
    for pose in Ts:
        result = result @ np.asarray(pose, dtype=np.float64)
    return result


def from_rotation(rotation: npt.ArrayLike, translation: npt.ArrayLike = (0.0, 0.0, 0.0)) -> Float64:
    """Poses (..., 4, 4) from rotation matrices (..., 3, 3) and translations (..., 3)."""
    matrix = np.asarray(rotation, dtype=np.float64)
    pose = np.zeros((*matrix.shape[:-2], 4, 4))
    pose[..., :3, :3] = matrix
    pose[..., :3, 3] = translation
    pose[..., 3, 3] = 1.0
    return pose


def from_quaternion(xyzw: npt.ArrayLike, translation: npt.ArrayLike = (0.0, 0.0, 0.0)) -> Float64:
    """Poses (..., 4, 4) from quaternions (..., 4) in the order x y z w, of any length but zero.

    Raises:
        InputError: a quaternion is zero or not finite (usually from an uninitialized message), or
            a translation is not finite or longer than 1e9 m.
    """
    q = np.asarray(xyzw, dtype=np.float64)
    rotations, places = _are_rotations(q), _are_places(translation)
    if q.shape[-1] != 4 or not np.all(rotations):
        shown = q[~rotations][:1] if q.ndim > 1 else q
        raise InputError(
            f"not a rotation: quaternion {shown.tolist()}; expected x y z w of length 1"
        )
    if not np.all(places):
        shown = np.asarray(translation)[~places][:3]
        raise InputError(f"not a place: translation of {shown.tolist()} m")
    rotation = Rotation.from_quat(q.reshape(-1, 4)).as_matrix()
    return from_rotation(rotation.reshape(*q.shape[:-1], 3, 3), translation)


def is_pose(xyzw: npt.ArrayLike, translation: npt.ArrayLike) -> bool:
    """Whether `from_quaternion` accepts a quaternion (4,) and a translation (3,)."""
    rotation = _are_rotations(np.asarray(xyzw, dtype=np.float64))
    return bool(rotation) and bool(np.all(_are_places(translation)))


def _are_rotations(q: Float64) -> npt.NDArray[np.bool_]:
    """(...,) bool: quaternions (..., 4) that are finite and not zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.linalg.norm(q, axis=-1)
    good: npt.NDArray[np.bool_] = (length > 1e-9) & np.isfinite(length)
    return good


def _are_places(translation: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(..., 3) bool: finite coordinates of at most 1e9 m."""
    near: npt.NDArray[np.bool_] = np.abs(translation) < MAX_TRANSLATION_M
    return near


def to_quaternion(T: Array) -> tuple[Float64, Float64]:
    """Quaternions (..., 4) x y z w with w >= 0, and translations (..., 3), of poses (..., 4, 4)."""
    pose = np.asarray(T, dtype=np.float64)
    q = Rotation.from_matrix(pose[..., :3, :3].reshape(-1, 3, 3)).as_quat()
    q = np.where(q[:, 3:] < 0, -q, q)
    return q.reshape(*pose.shape[:-2], 4), pose[..., :3, 3].copy()


def from_euler(
    roll: float, pitch: float, yaw: float, translation: npt.ArrayLike = (0.0, 0.0, 0.0)
) -> Float64:
    """Pose from rotations about the fixed x, y and z axes, in that order (the URDF convention)."""
    return from_rotation(Rotation.from_euler("xyz", (roll, pitch, yaw)).as_matrix(), translation)


class Trajectory:
    """Poses of a moving body at stamps, interpolated between them.

    Rotations are interpolated by slerp (Shoemake 1985), translations linearly. Shortly before the
    first and after the last pose, the motion of the nearest interval is extrapolated, since sweeps
    and images rarely start exactly at a pose. A pose depends on its two neighbors alone, bit for
    bit.

    Attributes:
        stamps_ns: (M,) int64, strictly increasing.
        poses: (M, 4, 4) float64, T_world_body at each stamp.
    """

    def __init__(
        self, stamps_ns: npt.ArrayLike, poses: npt.ArrayLike, max_gap_s: float = float("inf")
    ) -> None:
        """Check and store the poses.

        Args:
            stamps_ns: (M,) integer nanoseconds.
            poses: (M, 4, 4) T_world_body.
            max_gap_s: longest interval between two poses that is interpolated [s].

        Raises:
            InputError: no poses, shapes that differ, values that are not finite or not rigid, or
                stamps that do not increase.
        """
        self.stamps_ns = np.asarray(stamps_ns, dtype=np.int64)
        self.poses = np.asarray(poses, dtype=np.float64)
        self.max_gap_s = max_gap_s
        self._check()
        rotation = Rotation.from_matrix(self.poses[:, :3, :3])
        self._rotations, self._places = rotation.as_matrix(), self.poses[:, :3, 3]
        if len(self) > 1:  # older versions of scipy have no empty `Rotation`
            self._turns = (rotation[:-1].inv() * rotation[1:]).as_rotvec()  # from pose to pose
        self._mount: Float64 | None = None

    def mounted(self, T_body_sensor: Float64) -> Trajectory:
        """Trajectory of a sensor mounted on this body.

        The motion of the body is interpolated, not that of the sensor.

        Args:
            T_body_sensor: (4, 4).
        """
        sensor = copy.copy(self)
        sensor._mount = T_body_sensor if self._mount is None else self._mount @ T_body_sensor
        sensor.poses = self.poses @ T_body_sensor
        return sensor

    def _check(self) -> None:
        count = len(self.stamps_ns) if self.stamps_ns.ndim == 1 else 0
        if count == 0 or self.poses.shape != (count, 4, 4):
            raise InputError(
                f"trajectory: expected M >= 1 stamps and poses (M, 4, 4), got stamps "
                f"{self.stamps_ns.shape} and poses {self.poses.shape}"
            )
        rigid = is_rigid(self.poses)
        if not rigid.all():
            raise InputError(f"trajectory: pose {int(np.argmin(rigid))} is not a rigid transform")
        steps = np.diff(self.stamps_ns)
        if np.any(steps <= 0):
            at = int(np.argmax(steps <= 0))
            raise InputError(
                f"trajectory: stamps must increase, but {self.stamps_ns[at + 1]} ns follows "
                f"{self.stamps_ns[at]} ns (entry {at + 1}); sort the poses and drop repeated stamps"
            )

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def covers(self, stamp_ns: int, max_extrapolation_s: float = 0.15) -> bool:
        """Whether `at` has a pose for this stamp."""
        stamps = np.asarray([stamp_ns], dtype=np.int64)
        return self._uncovered(stamps, max_extrapolation_s) is None

    def at(self, stamp_ns: int, max_extrapolation_s: float = 0.15) -> Float64:
        """T_world_body (4, 4) at one stamp; raises as `at_many`."""
        pose: Float64 = self.at_many([stamp_ns], max_extrapolation_s)[0]
        return pose

    def at_many(self, stamps_ns: npt.ArrayLike, max_extrapolation_s: float = 0.15) -> Float64:
        """T_world_body (K, 4, 4) at stamps (K,), in any order.

        Raises:
            InputError: a stamp lies further outside the trajectory than `max_extrapolation_s`, or
                in a gap longer than `max_gap_s`.
        """
        stamps = np.asarray(stamps_ns, dtype=np.int64)
        problem = self._uncovered(stamps, max_extrapolation_s)
        if problem is not None:
            raise InputError(problem)
        if len(self) == 1:
            return np.repeat(self.poses, len(stamps), axis=0)
        left = self._interval(stamps)
        span = (self.stamps_ns[left + 1] - self.stamps_ns[left]).astype(np.float64)
        fraction = ((stamps - self.stamps_ns[left]) / span)[:, None]
        # As scipy's `Slerp`, which cannot extrapolate.
        turn = Rotation.from_rotvec(fraction * self._turns[left]).as_matrix()
        # At the stamp of a pose the result is that pose, whichever interval it is taken from.
        end = (fraction == 1.0)[..., None]
        rotation = np.where(end, self._rotations[left + 1], self._rotations[left] @ turn)
        place = (1.0 - fraction) * self._places[left] + fraction * self._places[left + 1]
        moved = from_rotation(rotation, place)
        return moved if self._mount is None else moved @ self._mount

    def relative(self, a_ns: int, b_ns: int) -> Float64:
        """T_a_b (4, 4): points in the body frame at stamp b into the body frame at stamp a."""
        return compose(invert(self.at(a_ns)), self.at(b_ns))

    def _interval(self, stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Index of the pose before each stamp; outside the ends that of the nearest interval."""
        after = np.searchsorted(self.stamps_ns, stamps, side="right")
        return np.clip(after - 1, 0, len(self) - 2)

    def _uncovered(self, stamps: npt.NDArray[np.int64], max_extrapolation_s: float) -> str | None:
        """Reason why a stamp has no pose; None if all have one."""
        if len(stamps) == 0:
            return None
        margin = int(max_extrapolation_s * 1e9)
        first, last = int(self.stamps_ns[0]), int(self.stamps_ns[-1])
        for stamp in (int(stamps.min()), int(stamps.max())):
            if not first - margin <= stamp <= last + margin:
                return (
                    f"no pose at {stamp} ns: the trajectory covers {first} to {last} ns and is "
                    f"extended by at most {max_extrapolation_s} s; check that poses and sensors "
                    "use the same clock"
                )
        if len(self) == 1 or not np.isfinite(self.max_gap_s):
            return None
        left = self._interval(stamps)
        inside = (stamps > self.stamps_ns[left]) & (stamps < self.stamps_ns[left + 1])
        gap = (self.stamps_ns[left + 1] - self.stamps_ns[left]) * 1e-9
        if np.any(inside & (gap > self.max_gap_s)):
            at = int(np.argmax(inside & (gap > self.max_gap_s)))
            return f"no pose at {int(stamps[at])} ns: it lies in a gap of {gap[at]:.2f} s"
        return None


def deskew(xyz: Array, time_s: Array, trajectory: Trajectory, stamp_ns: int) -> Array:
    """Correct the points of a sweep for the motion of the sensor.

    Args:
        xyz: (N, 3) points [m], each in the sensor frame at its own time; NaN and (0, 0, 0), which
            are no returns, stay.
        time_s: (N,) relative to `stamp_ns` [s]; a time that is not finite counts as 0.
        trajectory: poses of that sensor, T_world_sensor.
        stamp_ns: stamp of the sensor frame of the result.

    Returns:
        (N, 3) points in the sensor frame at `stamp_ns`, dtype of `xyz`.

    Raises:
        InputError: shapes differ, or the trajectory does not cover the sweep.
    """
    points = np.asarray(xyz)
    if points.ndim != 2 or points.shape[1] != 3 or np.shape(time_s) != (len(points),):
        raise InputError(
            f"deskew: expected points (N, 3) with times (N,), got {points.shape} and "
            f"{np.shape(time_s)}"
        )
    if len(points) == 0:
        result: Array = points.copy()
        return result
    times = np.nan_to_num(np.asarray(time_s, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    grid = np.linspace(times.min(), times.max(), _DESKEW_POSES)
    stamps = stamp_ns + np.round(grid * 1e9).astype(np.int64)
    poses = invert(trajectory.at(stamp_ns)) @ trajectory.at_many(stamps)
    moved = _blend(points, times, grid, poses)
    x, y, z = points.T
    moved[(x == 0) & (y == 0) & (z == 0)] = 0
    return moved


def undo_motion(xyz: Array, time_s: Array, poses: Poses, stamp_ns: int) -> npt.NDArray[np.float32]:
    """Deskew a sweep with poses from any source, one every 10 ms.

    Args:
        xyz: (N, 3) points [m], each in the sensor frame at its own time.
        time_s: (N,) relative to `stamp_ns` [s]; a time that is not finite counts as 0.
        poses: see `Poses`; called for the first and last stamp, then for all stamps, and not at all
            if all times are equal.
        stamp_ns: stamp of the sensor frame of the result.

    Returns:
        (N, 3) float32 points in the sensor frame at `stamp_ns`.

    Raises:
        InputError: shapes differ, or times and stamp span more than 20 s.
        PcsegError: from `poses`, for a stamp without a pose.
    """
    known = np.isfinite(time_s)
    first = stamp_ns + int(1e9 * np.min(time_s, where=known, initial=0.0))
    last = stamp_ns + int(1e9 * np.max(time_s, where=known, initial=0.0))
    if first == last:
        return np.asarray(xyz, np.float32)
    if last - first > MAX_DESKEW_NS:  # bounds the number of poses
        raise InputError(
            f"deskew: the times of the points span {1e-9 * (last - first):g} s, expected at most "
            f"{1e-9 * MAX_DESKEW_NS:g} s; check their unit"
        )
    poses(np.array([first, last], np.int64))  # fails before the many poses between are looked up
    stamps = np.unique(np.append(np.arange(first, last, _POSE_STEP_NS), last))
    moved = deskew(xyz, time_s, Trajectory(stamps, poses(stamps)), stamp_ns)
    return np.asarray(moved, np.float32)


def _blend(points: Array, times: Float64, grid: Float64, poses: Float64) -> Array:
    """Transform each point by the pose at its time, linear between poses on an even grid."""
    dtype = points.dtype if np.issubdtype(points.dtype, np.floating) else np.dtype(np.float64)
    spacing = grid[1] - grid[0]
    start = poses[:-1, :3].astype(dtype)
    step = np.diff(poses[:, :3], axis=0).astype(dtype)
    moved = np.empty(points.shape, dtype)
    for first in range(0, len(points), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        position = (times[chunk] - grid[0]) / (spacing if spacing > 0 else 1.0)
        left = np.minimum(position.astype(np.int64), len(start) - 1)
        matrix = step[left]
        matrix *= (position - left).astype(dtype)[:, None, None]
        matrix += start[left]
        moved[chunk] = transform(matrix, points[chunk])
    return moved


def is_rigid(poses: Float64) -> npt.NDArray[np.bool_]:
    """(M,) bool: finite, with a rotation that neither scales nor mirrors."""
    finite = np.isfinite(poses.reshape(-1, 16).sum(axis=1))
    rotation = np.where(finite[:, None, None], poses, 0.0)[:, :3, :3]
    drift = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max(axis=(1, 2))
    rigid: npt.NDArray[np.bool_] = (drift < 1e-2) & (np.linalg.det(rotation) > 0)
    return rigid
