# SPDX-License-Identifier: Apache-2.0
"""File formats shared by KITTI raw, KITTI object and SemanticKITTI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.images import image_size
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_rotation, is_rigid

Float64 = npt.NDArray[np.float64]

LIDAR_FRAME = "velodyne"
EARTH_RADIUS_M = 6378137.0  # WGS84 equatorial, as in KITTI's development kit


def numbered(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder with numbers as names, sorted; empty without the folder."""
    return sorted(path for path in folder.glob(f"*{suffix}") if path.stem.isdigit())


def read_calibration(path: Path) -> dict[str, Float64]:
    """Read lines "name: numbers"; lines without numbers (dates) are skipped.

    Raises:
        InputError: the file is missing.
    """
    values: dict[str, Float64] = {}
    for line in read_text(path).splitlines():
        name, _, numbers = line.partition(":")
        try:
            values[name.strip()] = np.array(numbers.split(), dtype=np.float64)
        except ValueError:
            continue
    return values


def entry(values: dict[str, Float64], name: str, count: int, path: Path) -> Float64:
    """One entry of a calibration; raises InputError unless it has `count` finite values."""
    if name not in values:
        raise InputError(
            f"{path}: no entry '{name}'; the calibration is missing or of another kind"
        )
    if values[name].size != count or not np.isfinite(values[name]).all():
        raise InputError(
            f"{path}: '{name}' has {values[name].size} values; expected {count} finite ones"
        )
    return values[name]


def rotation_entry(values: dict[str, Float64], name: str, path: Path) -> Float64:
    """(4, 4) of an entry with 9 values; raises InputError unless they are a rotation."""
    T = np.eye(4)
    T[:3, :3] = entry(values, name, 9, path).reshape(3, 3)
    return _rigid(T, name, path)


def pose_entry(values: dict[str, Float64], name: str, path: Path) -> Float64:
    """(4, 4) of an entry with the 12 values of a 3x4 matrix; raises as `rotation_entry`."""
    return _rigid(pose_of_row(entry(values, name, 12, path)), name, path)


def _rigid(T: Float64, name: str, path: Path) -> Float64:
    if not is_rigid(T[None])[0]:
        raise InputError(
            f"{path}: '{name}' is {T[:3].tolist()}, which is no rotation with a translation; "
            "give the calibration of this recording"
        )
    return T


def pose_of_row(row: Float64) -> Float64:
    """(4, 4) from the 12 values of a 3x4 matrix, row by row."""
    T = np.eye(4)
    T[:3] = row.reshape(3, 4)
    return T


def trajectory(stamps_ns: npt.ArrayLike, poses: Float64, path: Path) -> Trajectory:
    """The trajectory of the poses (M, 4, 4) of a file, which its errors name."""
    try:
        return Trajectory(stamps_ns, poses)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_poses(path: Path) -> Float64:
    """(M, 4, 4) poses, 12 values per line.

    Raises:
        InputError: the file is missing, empty, or a line is not 12 finite numbers.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        values = _numbers(line, path, number)
        if values.size != 12 or not np.isfinite(values).all():
            raise InputError(
                f"{path}, line {number}: {values.size} values; expected 12 finite ones of a pose"
            )
        rows.append(pose_of_row(values))
    if not rows:
        raise InputError(f"{path}: no poses in it; expected 12 numbers a line")
    return np.stack(rows)


def read_stamps(path: Path) -> npt.NDArray[np.int64]:
    """(M,) int64 nanoseconds from lines such as "2011-09-26 13:10:51.158069617".

    A blank line (a missing sweep in KITTI) becomes 0.

    Raises:
        InputError: the file is missing or a line is not a date and time.
    """
    lines = read_text(path).splitlines()
    try:
        dates = [np.datetime64(line.strip() or "1970-01-01", "ns") for line in lines]
    except ValueError as error:
        raise InputError(
            f"{path}: a line is not 'YYYY-MM-DD HH:MM:SS.fraction' ({error})"
        ) from error
    return np.array(dates, dtype="datetime64[ns]").astype(np.int64)


def read_sweep(path: Path, stamp_ns: int) -> PointCloud:
    """Read a .bin of float32 x, y, z, reflectance (0..1).

    Raises:
        InputError: missing, truncated, empty, or without a finite point.
    """
    cells = read_floats(path, 4)
    return PointCloud(
        xyz=np.ascontiguousarray(cells[:, :3]),
        intensity=np.ascontiguousarray(cells[:, 3]),
        frame_id=LIDAR_FRAME,
        stamp_ns=int(stamp_ns),
    )


def read_floats(path: Path, columns: int) -> npt.NDArray[np.float32]:
    """Read a .bin of float32 rows whose first three columns are x, y, z: (N, columns).

    Raises:
        InputError: missing, truncated, empty, or without a finite point.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the sweep: {error.strerror or error}") from error
    fault = sweep_fault(len(data), columns)
    if fault:
        raise InputError(f"{path}: {fault}")
    cells = np.frombuffer(data, dtype="<f4").reshape(-1, columns)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
        finite = np.isfinite(cells[:, :3].sum(axis=1))
    if not (finite & (cells[:, :3] != 0).any(axis=1)).any():  # exact zeros are no returns
        raise InputError(f"{path}: none of its {len(cells)} points is finite")
    return cells


def sweep_fault(size: int, columns: int) -> str:
    """Reason why a file of `size` bytes cannot be a sweep; empty if it can."""
    step = 4 * columns
    if size == 0:
        return "the sweep is empty"
    if size % step:
        return f"the sweep is truncated: {size} bytes are no multiple of {step} a point"
    return ""


def file_fault(path: Path, columns: int) -> str:
    """Reason why a file cannot be a sweep, by its size; empty if it can."""
    try:
        return sweep_fault(path.stat().st_size, columns)
    except OSError as error:  # such as a link to nothing
        return f"the sweep cannot be read: {error.strerror or error}"


def projective_camera(P: Float64, width: int, height: int) -> tuple[CameraModel, Float64]:
    """Split a 3x4 projection of rectified camera 0 into intrinsics and extrinsics.

    P = K [I | t]: the camera has the matrix K and T_cam_rect0 = [I | t].

    Returns:
        The model without distortion, and T_cam_rect0 (4, 4).

    Raises:
        InputError: the projection is singular, or its focal lengths are not positive.
    """
    K = P[:3, :3]
    T = np.eye(4)
    try:
        T[:3, 3] = np.linalg.solve(K, P[:3, 3])
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"the projection {P.tolist()} is singular; expected focal lengths on its diagonal, so "
            "give the calibration of these images"
        ) from error
    model = CameraModel.pinhole(
        float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]), width, height
    )
    return model, T


def camera_of_image(P: Float64, image: Path) -> tuple[CameraModel, Float64]:
    """`projective_camera` with the size of an image."""
    width, height = image_size(image)
    return projective_camera(P, width, height)


def oxts_poses(rows: Float64) -> Float64:
    """(M, 4, 4) T_world_imu from GPS/IMU packets; the world is x east, y north, z up.

    Mercator projection, scaled at the latitude of the first packet, as in KITTI's development kit
    (Geiger et al., "Vision meets Robotics", 2013). The first position is the origin.

    Args:
        rows: (M >= 1, 6) of `oxts_packet`.
    """
    latitude, longitude, altitude = rows.T[:3]
    scale = np.cos(np.radians(latitude[0]))
    east = scale * EARTH_RADIUS_M * np.radians(longitude)
    north = scale * EARTH_RADIUS_M * np.log(np.tan(np.radians(90.0 + latitude) / 2))
    place = np.stack([east, north, altitude], axis=1)
    rotation = Rotation.from_euler("xyz", rows[:, 3:]).as_matrix()  # roll, pitch, yaw
    return from_rotation(rotation, place - place[0])


def oxts_packet(path: Path) -> Float64:
    """(6,) latitude, longitude [deg], altitude [m], roll, pitch, yaw [rad].

    Raises:
        InputError: the file is missing or does not start with six finite numbers.
    """
    values = _numbers(read_text(path), path, 1)
    if values.size < 6 or not np.isfinite(values[:6]).all() or abs(values[0]) >= 90:
        raise InputError(
            f"{path}: expected latitude, longitude, altitude, roll, pitch and yaw at its start"
        )
    return values[:6]


def _numbers(line: str, path: Path, number: int) -> Float64:
    try:
        values: Float64 = np.array(line.split(), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: not numbers ({error})") from error
    return values


def read_text(path: Path) -> str:
    """The text of a file, without the last newlines; raises InputError if it is not readable."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read it: {error}") from error
