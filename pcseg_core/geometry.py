# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms, interpolated trajectories and correction of motion within a sweep.

Poses are 4x4 float64 matrices; `T_a_b` maps points of frame b into frame a. Axes follow REP-103,
quaternions are (x, y, z, w), angles are radians, lengths meters and stamps integer nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Poses: TypeAlias = Callable[[npt.NDArray[np.int64]], Float64]
"""Stamps (K,) in ns -> poses (K, 4, 4); raises `PcsegError` for a stamp whose pose is unknown."""

# A sweep is deskewed with this many poses, linear in the matrix entries between them. At 10 Hz
# they lie 0.05 ms apart: there, a turn of 1 rad/s bends a 100 m ray by less than 1e-6 m, and a jump
# of 1 m/s in the trajectory's speed is cut by 1.3e-5 m. A slerp for each point is far slower.
_DESKEW_POSES = 2048
_POSE_STEP_NS = 10_000_000  # between the poses that a sweep is deskewed with
_CHUNK = 8192  # points whose matrices fit in the cache


def transform(T: Array, xyz: Array) -> Array:
    """Map points (..., 3) with a pose (4, 4), or each with its own (..., 4, 4).

    Keeps the dtype of `xyz` when it is a float type; the arithmetic is done in that type.
    """
    points = np.asarray(xyz)
    if not np.issubdtype(points.dtype, np.floating):
        points = points.astype(np.float64)
    pose = np.asarray(T).astype(points.dtype, copy=False)
    if pose.ndim == 2:
        moved: Array = points @ pose[:3, :3].T + pose[:3, 3]
        return moved
    rotated: Array = np.einsum("...ij,...j->...i", pose[..., :3, :3], points)
    return rotated + pose[..., :3, 3]


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
    """Chain poses: `compose(T_a_b, T_b_c)` is `T_a_c`; no pose at all is the identity."""
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
        InputError: a quaternion is zero or not finite (an uninitialized message, usually).
    """
    q = np.asarray(xyzw, dtype=np.float64)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if q.shape[-1] != 4 or not np.all(norm > 1e-9):
        raise InputError(f"not a rotation: quaternion {q.tolist()}; expected x y z w of length 1")
    return from_rotation(_quaternion_matrix(q / norm), translation)


def to_quaternion(T: Array) -> tuple[Float64, Float64]:
    """Quaternions (..., 4) x y z w with w >= 0, and translations (..., 3), of poses (..., 4, 4)."""
    pose = np.asarray(T, dtype=np.float64)
    r = pose[..., :3, :3]
    # Rows of 4 q q^T (Shepperd 1978); the row with the largest diagonal is the well-conditioned
    # multiple of q.
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    both, turn = r + np.swapaxes(r, -1, -2), r - np.swapaxes(r, -1, -2)
    xy, xz, yz = both[..., 0, 1], both[..., 0, 2], both[..., 1, 2]
    wx, wy, wz = turn[..., 2, 1], turn[..., 0, 2], turn[..., 1, 0]
    outer = np.stack(
        [
            np.stack([1 + xx - yy - zz, xy, xz, wx], axis=-1),
            np.stack([xy, 1 - xx + yy - zz, yz, wy], axis=-1),
            np.stack([xz, yz, 1 - xx - yy + zz, wz], axis=-1),
            np.stack([wx, wy, wz, 1 + xx + yy + zz], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    q = np.where(q[..., 3:] < 0, -q, q)
    return q, pose[..., :3, 3].copy()


def from_euler(
    roll: float, pitch: float, yaw: float, translation: npt.ArrayLike = (0.0, 0.0, 0.0)
) -> Float64:
    """Pose from rotations about the fixed x, y and z axes, in that order (the URDF convention)."""
    cr, cp, cy = np.cos([roll, pitch, yaw])
    sr, sp, sy = np.sin([roll, pitch, yaw])
    rotation = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return from_rotation(rotation, translation)


class Trajectory:
    """A moving body: poses at stamps, interpolated between them.

    Rotations by slerp (Shoemake 1985), translations linearly. Just outside its ends the motion of
    the last interval goes on for a short time, since a sweep or an image rarely starts exactly at
    a pose.

    Attributes:
        stamps_ns: (M,) int64, strictly increasing.
        poses: (M, 4, 4) float64, T_world_body at each stamp.
    """

    def __init__(
        self, stamps_ns: npt.ArrayLike, poses: npt.ArrayLike, max_gap_s: float = float("inf")
    ) -> None:
        """Check and keep the poses.

        Args:
            stamps_ns: (M,) integer nanoseconds.
            poses: (M, 4, 4) T_world_body.
            max_gap_s: longest interval between two poses that is interpolated, s.

        Raises:
            InputError: no poses, shapes that differ, values that are not finite or not rigid, or
                stamps that do not increase.
        """
        self.stamps_ns = np.asarray(stamps_ns, dtype=np.int64)
        self.poses = np.asarray(poses, dtype=np.float64)
        self.max_gap_s = max_gap_s
        self._check()
        self._quaternions, self._translations = to_quaternion(self.poses)
        self._mount: Float64 | None = None

    def mounted(self, T_body_sensor: Float64) -> Trajectory:
        """Trajectory of a sensor at a fixed place on this body.

        The motion of the body is interpolated, not that of the sensor.

        Args:
            T_body_sensor: (4, 4).
        """
        sensor = Trajectory(self.stamps_ns, self.poses, self.max_gap_s)
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
        rigid = _is_rigid(self.poses)
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
        """Tell whether `at` gives a pose for this stamp."""
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
        start, end = self._translations[left], self._translations[left + 1]
        rotation = slerp(self._quaternions[left], self._quaternions[left + 1], fraction[:, 0])
        # This form gives a pose itself at its stamp, whichever interval is taken.
        place = (1.0 - fraction) * start + fraction * end
        moved = from_rotation(_quaternion_matrix(rotation), place)
        return moved if self._mount is None else moved @ self._mount

    def relative(self, a_ns: int, b_ns: int) -> Float64:
        """T_a_b (4, 4): points in the body frame at stamp b into the body frame at stamp a."""
        return compose(invert(self.at(a_ns)), self.at(b_ns))

    def _interval(self, stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Index of the pose before each stamp; the nearest interval outside the ends."""
        after = np.searchsorted(self.stamps_ns, stamps, side="right")
        return np.clip(after - 1, 0, len(self) - 2)

    def _uncovered(self, stamps: npt.NDArray[np.int64], max_extrapolation_s: float) -> str | None:
        """Say which stamp has no pose and why; None when all have one."""
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


def slerp(a: Array, b: Array, fraction: Array) -> Float64:
    """Interpolate unit quaternions (K, 4) by fractions (K,) along the shorter arc."""
    dot = np.sum(a * b, axis=-1)
    b = np.where((dot < 0)[..., None], -b, b)
    angle = np.arccos(np.clip(np.abs(dot), 0.0, 1.0))
    small = angle < 1e-6  # there, linear interpolation is exact to rounding
    sine = np.where(small, 1.0, np.sin(angle))
    weight_a = np.where(small, 1.0 - fraction, np.sin((1.0 - fraction) * angle) / sine)
    weight_b = np.where(small, fraction, np.sin(fraction * angle) / sine)
    q = weight_a[..., None] * a + weight_b[..., None] * b
    normalized: Float64 = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return normalized


def deskew(xyz: Array, time_s: Array, trajectory: Trajectory, stamp_ns: int) -> Array:
    """Move every point of a sweep to where the sensor would have seen it at one stamp.

    Args:
        xyz: (N, 3) points [m], each in the sensor frame of its own moment; NaN stays NaN.
        time_s: (N,) s relative to `stamp_ns`; a time that is not finite counts as 0.
        trajectory: poses of that sensor, T_world_sensor.
        stamp_ns: the moment, and sensor frame, that the result refers to.

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
        return points.copy()
    times = np.nan_to_num(np.asarray(time_s, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    grid = np.linspace(times.min(), times.max(), _DESKEW_POSES)
    stamps = stamp_ns + np.round(grid * 1e9).astype(np.int64)
    poses = invert(trajectory.at(stamp_ns)) @ trajectory.at_many(stamps)
    return _blend(points, times, grid, poses)


def undo_motion(xyz: Array, time_s: Array, poses: Poses, stamp_ns: int) -> npt.NDArray[np.float32]:
    """Deskew a sweep with poses from any source, one every 10 ms.

    Args:
        xyz: (N, 3) points [m], each in the sensor frame of its own moment.
        time_s: (N,) s relative to `stamp_ns`; a time that is not finite counts as 0.
        poses: see `Poses`; asked once for all stamps, and not at all where all times are equal.
        stamp_ns: the moment, and sensor frame, that the result refers to.

    Returns:
        (N, 3) float32 points in the sensor frame at `stamp_ns`.

    Raises:
        InputError: shapes differ.
        PcsegError: whatever `poses` raises for a stamp that it does not know.
    """
    known = np.isfinite(time_s)
    first = stamp_ns + int(1e9 * np.min(time_s, where=known, initial=0.0))
    last = stamp_ns + int(1e9 * np.max(time_s, where=known, initial=0.0))
    if first == last:
        return np.asarray(xyz, np.float32)
    stamps = np.unique(np.append(np.arange(first, last, _POSE_STEP_NS), last))
    moved = deskew(xyz, time_s, Trajectory(stamps, poses(stamps)), stamp_ns)
    return np.asarray(moved, np.float32)


def _blend(points: Array, times: Float64, grid: Float64, poses: Float64) -> Array:
    """Apply to each point the pose at its time, linear between the poses on an even grid."""
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


def _is_rigid(poses: Float64) -> npt.NDArray[np.bool_]:
    """(M,) bool: finite, with a rotation that neither stretches nor mirrors."""
    finite = np.isfinite(poses.reshape(-1, 16).sum(axis=1))
    rotation = np.where(finite[:, None, None], poses, 0.0)[:, :3, :3]
    drift = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max(axis=(1, 2))
    rigid: npt.NDArray[np.bool_] = (drift < 1e-2) & (np.linalg.det(rotation) > 0)
    return rigid


def _quaternion_matrix(q: Float64) -> Float64:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4)."""
    x, y, z, w = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
