# SPDX-License-Identifier: Apache-2.0
"""Poses for recordings without poses: LiDAR odometry by kiss-icp, or a trajectory file.

Vizzo et al., "KISS-ICP: In Defense of Point-to-Point ICP", RA-L 2023.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError, require
from pcseg_core.files import atomic_path, user_cache
from pcseg_core.geometry import Trajectory, deskew, from_quaternion, invert

MIN_RANGE_M = 1.0  # nearer returns are mostly from the robot itself
MAX_RANGE_M = 100.0
_MAX_STAMP_S = 9e9  # in nanoseconds it fits 64 bits


def estimate_trajectory(
    sweeps: Iterable[PointCloud], max_range_m: float | None = None
) -> Trajectory:
    """Estimate T_world_lidar at the stamps of consecutive sweeps; the first pose is the identity.

    Sweeps with per-point times are deskewed first, with the velocity between the two previous
    sweeps.

    Args:
        sweeps: in the order of their stamps; points that are not finite are ignored.
        max_range_m: maximum range of the points [m]; the voxels of the map have a hundredth of it.
            None takes 1.5 times the range of 99 % of the first sweep, at most 100 m.

    Raises:
        InputError: no sweeps, or a sweep without finite points.
        MissingDependency: kiss-icp is not installed.
    """
    odometry: Any = None
    stamps: list[int] = []
    poses: list[npt.NDArray[np.float64]] = []
    for sweep in sweeps:
        usable = sweep.select(sweep.finite)
        if not len(usable):
            raise InputError(f"odometry: the sweep at {sweep.stamp_ns} ns has no finite points")
        if odometry is None:
            odometry = _kiss_icp(max_range_m or _usual_range(usable.xyz))
        points = _without_motion(usable, stamps, poses)
        odometry.register_frame(points.astype(np.float64), np.empty(0))
        stamps.append(sweep.stamp_ns)
        poses.append(np.array(odometry.last_pose))
    if not poses:
        raise InputError("odometry: no sweeps to estimate poses from")
    return Trajectory(np.array(stamps, dtype=np.int64), np.stack(poses))


def cached_trajectory(
    key: str, sweeps: Iterable[PointCloud], folder: Path | None = None
) -> Trajectory:
    """`estimate_trajectory` with a cache on disk.

    Args:
        key: identifies the sweeps: path, size and modification time of the recording, and topic.
        sweeps: read only without a cached estimate.
        folder: of the cache; None takes $XDG_CACHE_HOME/pcseg/odometry.
    """
    place = folder or user_cache("odometry")
    path = place / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return Trajectory(stored["stamps_ns"], stored["poses"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            path.unlink()  # damaged
    trajectory = estimate_trajectory(sweeps)
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, stamps_ns=trajectory.stamps_ns, poses=trajectory.poses)
    except InputError:  # an unwritable cache costs time only
        pass
    return trajectory


def read_tum(path: str | Path) -> Trajectory:
    """Read T_world_lidar from a file in TUM format: lines "seconds tx ty tz qx qy qz qw".

    Raises:
        InputError: the file is missing, a line is not 8 numbers, or stamps do not increase.
    """
    stamps, places, turns = [], [], []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the poses: {error}") from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            values = [float(word) for word in words]
            stamps.append(_nanoseconds(words[0]))
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path}, line {number}: not numbers ({error})") from error
        if len(values) != 8:
            raise InputError(
                f"{path}, line {number}: {len(values)} values; expected 8 (TUM format)"
            )
        places.append(values[1:4])
        turns.append(values[4:])
    if not stamps:
        raise InputError(f"{path}: no poses in it; expected lines of stamp, position, quaternion")
    try:
        return Trajectory(stamps, from_quaternion(np.array(turns), np.array(places)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _nanoseconds(seconds: str) -> int:
    """Nanoseconds of a decimal number of seconds, without rounding to a float."""
    if not abs(float(seconds)) < _MAX_STAMP_S:
        raise OverflowError(f"{seconds[:40]} is no number of seconds of a clock")
    whole, _, fraction = seconds.partition(".")
    if not whole.lstrip("+-").isdigit() or (fraction and not fraction.isdigit()):
        return round(float(seconds) * 1e9)  # an exponent
    part = int(fraction[:9].ljust(9, "0")) if fraction else 0
    return int(whole) * 1_000_000_000 + (-part if whole.startswith("-") else part)


def _kiss_icp(max_range_m: float) -> Any:
    parser = require("kiss_icp.config.parser", "odometry")
    config = parser.load_config(None)
    config.data.deskew = False  # we deskew, to get the pose at the header stamp
    config.data.min_range = MIN_RANGE_M
    config.data.max_range = max_range_m
    config.mapping.voxel_size = max_range_m / 100.0
    return require("kiss_icp.kiss_icp", "odometry").KissICP(config=config)


def _usual_range(xyz: npt.NDArray[Any]) -> float:
    ranges = np.linalg.norm(xyz, axis=1)
    return float(np.clip(1.5 * np.percentile(ranges, 99), 5.0, MAX_RANGE_M))


def _without_motion(
    sweep: PointCloud, stamps: list[int], poses: list[npt.NDArray[np.float64]]
) -> npt.NDArray[Any]:
    """Points deskewed to the stamp of the sweep, if their times and a velocity are known."""
    if sweep.time is None or len(poses) < 2:
        return sweep.xyz
    interval = stamps[-1] - stamps[-2]
    step = invert(poses[-2]) @ poses[-1]
    around = [sweep.stamp_ns - interval, sweep.stamp_ns, sweep.stamp_ns + interval]
    motion = Trajectory(around, np.stack([invert(step), np.eye(4), step]))
    return deskew(sweep.xyz, sweep.time, motion, sweep.stamp_ns)
