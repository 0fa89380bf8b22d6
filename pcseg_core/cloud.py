# SPDX-License-Identifier: Apache-2.0
"""Point clouds, and reading them from sensor_msgs/PointCloud2.

The codec takes any object with the attributes of a PointCloud2 message: messages of rclpy,
rosbags and mcap alike. `pcseg_core.cloud_writer` writes clouds; its functions are exported here
too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud_layout import (
    Array,
    EncodedCloud,
    Field,
    PointCloud2Like,
    positions,
    structured,
)
from pcseg_core.cloud_writer import append_fields, encode_cloud, pack_rgb, unpack_rgb
from pcseg_core.errors import InputError
from pcseg_core.intensity import IntensityScale, guess_intensity_scale
from pcseg_core.point_time import TIME_NAMES, find_time_field, read_time, unit_of_name

__all__ = [
    "TIME_NAMES",
    "EncodedCloud",
    "Field",
    "IntensityScale",
    "PointCloud",
    "PointCloud2Like",
    "append_fields",
    "encode_cloud",
    "guess_intensity_scale",
    "pack_rgb",
    "read_cloud",
    "structured",
    "unpack_rgb",
]

INTENSITY_NAMES = ("intensity", "reflectivity", "reflectance", "i")
RING_NAMES = ("ring", "channel", "line")


TIME_PROBLEM = "point times left out"
# Share of the intensities that may exceed 1 before a cloud built in Python raises a warning.
_BRIGHT_SHARE = 0.05


@dataclass
class PointCloud:
    """A sweep, in the sensor frame.

    Attributes:
        xyz: (N, 3) float32 [m]; NaN or exactly (0, 0, 0) for points without a return.
        intensity: (N,) float32, 0 to 1 (the network clips outliers), or None.
        time: (N,) float64 relative to `stamp_ns` [s], NaN where unknown, or None.
        ring: (N,) uint16, index of the laser, or None.
        frame_id: name of the sensor frame.
        stamp_ns: header stamp, integer nanoseconds.
        height, width: organization, row-major, height * width = N; default 1 and N.
        extra: further fields by name, (N,) or (N, count).
        problems: (event, reason) of each part of the message that was left out.
        source: (N,) uint8, the LiDAR of each point of several united sweeps, or None.
        origins: (S, 3) float32, place of each LiDAR `source` in this frame [m], or None.
        last: (N,) bool, the last return of its beam; None if that is not known before it is asked
            for (`pcseg_core.returns.last_returns`).

    Arrays may be read-only views of a message: copy before writing into them.

    Raises:
        InputError: shapes that differ, or values that are not numbers.

    Warns:
        UserWarning: many intensities exceed 1; they are scaled wrongly.
    """

    xyz: npt.NDArray[np.float32]
    intensity: npt.NDArray[np.float32] | None = None
    time: npt.NDArray[np.float64] | None = None
    ring: npt.NDArray[np.uint16] | None = None
    frame_id: str = ""
    stamp_ns: int = 0
    height: int = 0
    width: int = 0
    extra: Mapping[str, Array] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    source: npt.NDArray[np.uint8] | None = None
    origins: npt.NDArray[np.float32] | None = None
    last: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        self.xyz = _numbers("xyz", self.xyz, np.float32)
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3:
            raise InputError(f"cloud: xyz must have shape (N, 3), got {self.xyz.shape}")
        if self.width == 0:
            self.height = max(self.height, 1)
            self.width = len(self) // self.height
        if self.height * self.width != len(self):
            raise InputError(
                f"cloud: {self.height} x {self.width} points expected, xyz holds {len(self)}"
            )
        self._convert("intensity", np.float32)
        self._convert("time", np.float64)
        self._convert("ring", np.uint16)
        self._convert("source", np.uint8)
        self._convert("last", np.bool_)
        if isinstance(self.extra, LazyFields):
            return
        for name, values in self.extra.items():
            if len(values) != len(self):
                raise InputError(f"cloud: {name} has {len(values)} entries for {len(self)} points")
        if self.intensity is not None:
            _warn_if_bright(self.intensity)

    def _convert(self, name: str, dtype: type) -> None:
        values = getattr(self, name)
        if values is None:
            return
        values = _numbers(name, values, dtype)
        if values.shape != (len(self),):
            raise InputError(f"cloud: {name} must have shape ({len(self)},), got {values.shape}")
        setattr(self, name, values)

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the point is a return: finite, and not exactly (0, 0, 0)."""
        x, y, z = self.xyz.T
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
            finite: npt.NDArray[np.bool_] = np.isfinite(x + y + z)
        finite &= (x != 0) | (y != 0) | (z != 0)
        return finite

    def select(self, index: Array) -> PointCloud:
        """Points by boolean mask (N,) or integer index (K,), unorganized."""
        index = np.asarray(index)
        chosen = self.xyz[index]
        return PointCloud(
            xyz=chosen,
            intensity=None if self.intensity is None else self.intensity[index],
            time=None if self.time is None else self.time[index],
            ring=None if self.ring is None else self.ring[index],
            frame_id=self.frame_id,
            stamp_ns=self.stamp_ns,
            height=1,
            width=len(chosen),
            extra={name: values[index] for name, values in self.extra.items()},
            problems=self.problems,
            source=None if self.source is None else self.source[index],
            origins=self.origins,
            last=None if self.last is None else self.last[index],
        )


class LazyFields(Mapping[str, Array]):
    """Fields of the right lengths, which are made when they are asked for."""


class MessageFields(LazyFields):
    """Fields of a message by name, converted to native arrays when they are asked for.

    Args:
        points: (height, width) structured array.
        names: names of the fields.
    """

    def __init__(self, points: Array, names: list[str]) -> None:
        self._points, self._names = points, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return _native(self._points[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _numbers(name: str, values: npt.ArrayLike, dtype: type) -> Array:
    """Values as an array of a type."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" and array.size:
        raise InputError(f"cloud: {name} must hold numbers, got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 becomes inf
        return array.astype(dtype, copy=False)


def _warn_if_bright(intensity: npt.NDArray[np.float32]) -> None:
    sample = intensity[:: max(1, len(intensity) // 1024)]
    share = np.count_nonzero(sample > 1) / max(1, len(sample))
    if share > _BRIGHT_SHARE:
        warnings.warn(
            f"cloud: {100 * share:.0f} % of the intensities exceed 1; the network expects 0 to 1 "
            "and clips the rest: divide them by the sensor's maximum, such as 255",
            stacklevel=4,
        )


def read_cloud(
    msg: PointCloud2Like,
    *,
    intensity_scale: float | IntensityScale | None = None,
    time_field: str = "auto",
    time_unit: str = "auto",
    stamp_reference: str = "auto",
) -> PointCloud:
    """Read a PointCloud2 message. Keeps the order and number of points, including NaN points.

    Arrays are read-only views of the message where type and alignment allow, copies elsewhere.
    Times that cannot be those of a sweep are left out; `PointCloud.problems` names the reason.

    Args:
        msg: message with x, y and z.
        intensity_scale: factor that maps the intensity to 0..1, such as 1/255, or the
            `IntensityScale` of the topic. None or 0 guesses it from this cloud alone.
        time_field: field with the time of each point; "auto" takes the first of `TIME_NAMES`,
            "auto:NAME" prefers NAME, "none" reads no times.
        time_unit: "s", "ms", "us" or "ns"; "auto" takes the suffix of the field's name, else s for
            floats and ns for integers, unless only another unit makes a possible sweep.
        stamp_reference: moment of the sweep that the header's stamp refers to. "start", "mid" and
            "end" shift the times accordingly; "auto" keeps relative times and converts absolute
            times to times relative to the stamp.

    Raises:
        InputError: x, y or z is missing, the layout is wrong (see `structured`), or a chosen time
            field is missing.
    """
    points = structured(msg)
    names = points.dtype.names or ()
    missing = [axis for axis in "xyz" if axis not in names]
    if missing:
        raise InputError(
            f"cloud: no field {', '.join(missing)} (fields: {', '.join(names) or 'none'}); a cloud "
            "needs x, y and z"
        )
    stamp_ns, frame_id = _header(msg)
    numbers = [name for name in names if not points.dtype[name].shape]
    time_name = find_time_field(numbers, time_field)
    intensity_name = next((name for name in INTENSITY_NAMES if name in numbers), None)
    ring_name = next((name for name in RING_NAMES if name in numbers), None)
    used = {"x", "y", "z", time_name, intensity_name, ring_name}
    cloud = PointCloud(
        xyz=_read_xyz(points),
        frame_id=frame_id,
        stamp_ns=stamp_ns,
        height=points.shape[0],
        width=points.shape[1],
        extra=MessageFields(points, [name for name in names if name not in used]),
    )
    if intensity_name is not None:
        if not isinstance(intensity_scale, IntensityScale):
            intensity_scale = IntensityScale(intensity_scale, sweeps=1)
        cloud.intensity = intensity_scale.apply(_native(points[intensity_name]))
    if time_name is not None:
        _read_times(cloud, points, time_name, time_unit, stamp_reference)
    if ring_name is not None:
        cloud.ring = _rings(_native(points[ring_name]))
    return cloud


def _read_times(
    cloud: PointCloud, points: Array, name: str, time_unit: str, stamp_reference: str
) -> None:
    unit = unit_of_name(name) if time_unit == "auto" else time_unit
    cloud.time, problem = read_time(_native(points[name]), unit, stamp_reference, cloud.stamp_ns)
    if problem:
        cloud.problems.append((TIME_PROBLEM, f"field '{name}': {problem}"))


def _header(msg: Any) -> tuple[int, str]:
    """Stamp [ns] and frame of a message, ROS 1 or 2; 0 and "" without a header."""
    header = getattr(msg, "header", None)
    if header is None:
        return 0, ""
    stamp = header.stamp
    seconds = getattr(stamp, "sec", None)
    if seconds is None:
        return int(stamp.secs) * 10**9 + int(stamp.nsecs), str(header.frame_id)
    return int(seconds) * 10**9 + int(stamp.nanosec), str(header.frame_id)


def _native(values: Array) -> Array:
    """Flatten (height, width, ...) to (N, ...), native and aligned, as a view where possible."""
    flat = values.reshape(-1, *values.shape[2:])
    copy = not flat.flags.aligned  # slow to compute with, and torch refuses such strides
    return flat.astype(flat.dtype.newbyteorder("="), copy=copy)


def _rings(values: Array) -> npt.NDArray[np.uint16]:
    """Indices of lasers (N,) of any number type; what is outside of uint16 becomes its bounds."""
    if values.dtype not in (np.uint8, np.uint16):
        values = np.clip(np.nan_to_num(values), 0, 65535)
    return values.astype(np.uint16, copy=False)


def _read_xyz(points: Array) -> npt.NDArray[np.float32]:
    if any(points.dtype[axis].shape for axis in "xyz"):
        raise InputError("cloud: fields x, y and z must hold one number a point (count 1)")
    together = positions(points)
    if together is not None:
        return _native(together)
    xyz = np.empty((points.size, 3), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 becomes inf
        for i, axis in enumerate("xyz"):
            xyz[:, i] = points[axis].reshape(-1)
    return xyz
