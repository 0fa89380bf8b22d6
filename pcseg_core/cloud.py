# SPDX-License-Identifier: Apache-2.0
"""Point clouds, and the byte codec of sensor_msgs/PointCloud2.

The codec takes any object with the attributes of a PointCloud2 message, so that one function
serves rclpy, rosbags and mcap messages alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]

# Numbers of sensor_msgs/PointField.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_DATATYPES = {code: number for number, code in _TYPES.items()}

INTENSITY_NAMES = ("intensity", "reflectivity", "reflectance", "i")
RING_NAMES = ("ring", "channel", "line")
TIME_NAMES = ("t", "time", "timestamp", "time_stamp", "time_offset", "offset_time")

_UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# Points of one message are recorded within this span, s. A unit that puts them outside is wrong.
_SPAN_S = (5e-4, 2.0)
# Fewer points than this say nothing about the unit of their times.
_MIN_POINTS_FOR_UNIT = 100


class PointFieldLike(Protocol):
    """One field of a PointCloud2, as in sensor_msgs/PointField."""

    name: str
    offset: int
    datatype: int
    count: int


class PointCloud2Like(Protocol):
    """What the codec needs of a PointCloud2; `header` and `is_dense` are used where present."""

    height: int
    width: int
    fields: Any
    is_bigendian: bool
    point_step: int
    row_step: int
    data: Any


@dataclass
class PointCloud:
    """A sweep, in the sensor frame.

    Attributes:
        xyz: (N, 3) float32, m. Points without a return keep their slot as NaN.
        intensity: (N,) float32, 0 to 1, or None.
        time: (N,) float64, s relative to `stamp_ns`, or None.
        ring: (N,) uint16, index of the laser, or None.
        frame_id: name of the sensor frame.
        stamp_ns: header stamp, integer nanoseconds.
        height, width: organisation, row-major; height * width = N. 0 stands for 1 and N.
        extra: further fields by name, (N,) or (N, count).

    Arrays may be read-only views of a message: copy before writing into them.
    """

    xyz: npt.NDArray[np.float32]
    intensity: npt.NDArray[np.float32] | None = None
    time: npt.NDArray[np.float64] | None = None
    ring: npt.NDArray[np.uint16] | None = None
    frame_id: str = ""
    stamp_ns: int = 0
    height: int = 0
    width: int = 0
    extra: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.xyz = np.asarray(self.xyz, dtype=np.float32)
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3:
            raise InputError(f"cloud: xyz must have shape (N, 3), got {self.xyz.shape}")
        if self.height == 0 and self.width == 0:
            self.height, self.width = 1, len(self)
        if self.height * self.width != len(self):
            raise InputError(
                f"cloud: {self.height} x {self.width} points expected, xyz holds {len(self)}"
            )
        self._convert("intensity", np.float32)
        self._convert("time", np.float64)
        self._convert("ring", np.uint16)
        for name, values in self.extra.items():
            if len(values) != len(self):
                raise InputError(f"cloud: {name} has {len(values)} entries for {len(self)} points")

    def _convert(self, name: str, dtype: type) -> None:
        values = getattr(self, name)
        if values is None:
            return
        values = np.asarray(values, dtype=dtype)
        if values.shape != (len(self),):
            raise InputError(
                f"cloud: {name} must have shape ({len(self)},), got {values.shape}"
            )
        setattr(self, name, values)

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the point has a position."""
        x, y, z = self.xyz.T
        return np.isfinite(x + y + z)

    def select(self, index: Array) -> PointCloud:
        """Points by boolean mask (N,) or integer index (K,), unorganised."""
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
        )


@dataclass
class Field:
    """A field of an encoded cloud; the same attributes as sensor_msgs/PointField."""

    name: str
    offset: int
    datatype: int
    count: int = 1


@dataclass
class EncodedCloud:
    """The parts of a PointCloud2 message but its header; `data` is (bytes,) uint8, contiguous."""

    height: int
    width: int
    fields: list[Field]
    is_bigendian: bool
    point_step: int
    row_step: int
    data: npt.NDArray[np.uint8]
    is_dense: bool


def structured(msg: PointCloud2Like) -> Array:
    """View a message's points as a structured array, (height, width), without copying.

    The dtype has one entry per field, at its own offset and in the message's byte order; a field
    with a count above 1 is a sub-array. Unnamed fields (padding) and repeats of a name are left
    out. The view is read-only.

    Raises:
        InputError: a datatype is unknown, a field reaches beyond point_step, rows are shorter
            than their points, or data is shorter than row_step * height.
    """
    dtype = _dtype(msg)
    height, width = _shape(msg)
    step = int(msg.point_step)
    data = _bytes(msg.data)
    row = _row_step(msg, height, width)
    if height * width == 0:
        return np.zeros((height, width), dtype)
    if len(data) < row * height:
        raise InputError(
            f"cloud: data has {len(data)} bytes, expected row_step * height = {row} * {height} = "
            f"{row * height}; the message is truncated or its header is wrong"
        )
    view = np.ndarray((height, width), dtype, buffer=data.data, strides=(row, step))
    view.flags.writeable = False
    return view


def read_cloud(
    msg: PointCloud2Like,
    *,
    intensity_scale: float | None = None,
    time_field: str = "auto",
    time_unit: str = "auto",
    stamp_is: str = "auto",
) -> PointCloud:
    """Read a PointCloud2 message. All points keep their slot, NaN points included.

    Fields are views of the message where type and layout allow, copies elsewhere; both may be
    read-only.

    Args:
        msg: message with x, y and z.
        intensity_scale: factor that brings the intensity to 0..1 (for example 1/255); None guesses
            it from this cloud's type and largest value (see `guess_intensity_scale`), so give it
            for a sensor whose floats exceed 1.
        time_field: field with the time of each point; "auto" takes the first of `TIME_NAMES`,
            "none" reads no times.
        time_unit: "s", "ms", "us" or "ns"; "auto" takes s for floats and ns for integers, unless
            only another unit gives a possible epoch or a possible duration of a sweep.
        stamp_is: which moment of the sweep the header's stamp marks: "start", "mid" or "end" shift
            the times accordingly; "auto" keeps relative times as they are written, and relates
            absolute times to the stamp.

    Raises:
        InputError: there is no x, y or z, or the layout is wrong (see `structured`), or a chosen
            time field is missing or has no possible unit.
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
    time_name = _time_name(names, time_field)
    intensity_name = next((n for n in INTENSITY_NAMES if n in names), None)
    ring_name = next((n for n in RING_NAMES if n in names and _is_integer(points[n])), None)
    used = {"x", "y", "z", time_name, intensity_name, ring_name}
    height, width = points.shape
    return PointCloud(
        xyz=_read_xyz(points),
        intensity=_read_intensity(points, intensity_name, intensity_scale),
        time=_read_time(points, time_name, time_unit, stamp_is, stamp_ns),
        ring=None if ring_name is None else _native(points[ring_name]).astype(np.uint16, copy=False),
        frame_id=frame_id,
        stamp_ns=stamp_ns,
        height=height,
        width=width,
        extra={name: _native(points[name]) for name in names if name not in used},
    )


def guess_intensity_scale(values: Array) -> float:
    """Factor to 0..1 for intensities as drivers write them.

    uint8 is divided by 255 and uint16 by 65535. Other types are 0..1, 0..255 or 0..65535,
    whichever is the smallest that holds the largest finite value.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return 1.0 / np.iinfo(values.dtype).max
    largest = np.max(values, initial=0.0, where=np.isfinite(values))
    return next((1.0 / top for top in (1.0, 255.0) if largest <= top), 1.0 / 65535.0)


def append_fields(
    msg: PointCloud2Like, fields: Mapping[str, npt.ArrayLike], replace: bool = True
) -> EncodedCloud:
    """Give every point of a cloud further fields.

    All fields, their order and bytes, the byte order and the organisation stay as they are; new
    fields follow, each aligned to its size. Padding at the ends of rows goes.

    Args:
        msg: a PointCloud2 message.
        fields: name -> values (N,), (height, width) or (N, count), of a PointField type.
        replace: an existing field of the same name is overwritten; else it is an error.

    Raises:
        InputError: values of the wrong length or type, or the layout of `msg` is wrong.
    """
    points = structured(msg)
    height, width = points.shape
    existing = [Field(f.name, int(f.offset), int(f.datatype), max(1, int(f.count))) for f in msg.fields]
    columns = {name: _column(name, values, points.size) for name, values in fields.items()}
    clash = [f.name for f in existing if f.name in columns]
    if clash and not replace:
        raise InputError(f"cloud: it already has the field {', '.join(clash)}")
    kept = [f for f in existing if f.name not in columns]
    old_step = int(msg.point_step)
    added, step = _layout(columns, start=old_step)
    big = bool(msg.is_bigendian)
    out = np.zeros((height, width), dtype=np.dtype((np.void, step)))
    _copy_bytes(points, out, old_step)
    _write(out, added, columns, big)
    return EncodedCloud(
        height, width, kept + added, big, step, step * width, _flat(out), _is_dense(points)
    )


def encode_cloud(
    fields: Mapping[str, npt.ArrayLike], height: int | None = None, width: int | None = None
) -> EncodedCloud:
    """Encode arrays as a little-endian cloud, each field aligned to its size.

    Args:
        fields: name -> values (N,), (height, width) or (N, count), in the order of the fields.
        height, width: organisation; 1 and N when left out.

    Raises:
        InputError: no fields, lengths that differ, or a type that PointField lacks.
    """
    if not fields:
        raise InputError("cloud: no fields to encode; give at least x, y and z")
    if height is None or width is None:
        height, width = 1, len(np.asarray(next(iter(fields.values()))))
    columns = {name: _column(name, v, height * width) for name, v in fields.items()}
    layout, step = _layout(columns, start=0)
    step = _align(step, max(c.dtype.itemsize for c in columns.values()))
    out = np.zeros((height, width), dtype=np.dtype((np.void, step)))
    _write(out, layout, columns, big=False)
    finite = [np.isfinite(columns[a]).all() for a in "xyz" if a in columns]
    return EncodedCloud(
        height, width, layout, False, step, step * width, _flat(out), bool(all(finite))
    )


def pack_rgb(colors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Colours (N, 3) uint8 as the float32 field `rgb`, whose bits are 0x00RRGGBB."""
    rgb = np.asarray(colors, dtype=np.uint8).astype(np.uint32)
    packed = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    return packed.view(np.float32)


def unpack_rgb(values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Colours (N, 3) uint8 from the field `rgb` (float32) or `rgba` (uint32)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.stack([bits >> 16, bits >> 8, bits], axis=-1).astype(np.uint8)


# --- layout of a message ---------------------------------------------------------------------


def _dtype(msg: PointCloud2Like) -> np.dtype[Any]:
    step = int(msg.point_step)
    order = ">" if msg.is_bigendian else "<"
    names: list[str] = []
    formats: list[Any] = []
    offsets: list[int] = []
    for f in msg.fields:
        code = _TYPES.get(int(f.datatype))
        if code is None:
            raise InputError(
                f"cloud: field '{f.name}' has the unknown datatype {f.datatype}; expected 1 to 8 "
                "(INT8 to FLOAT64 of sensor_msgs/PointField)"
            )
        count = max(1, int(f.count))  # some drivers write 0 for 1
        end = int(f.offset) + np.dtype(code).itemsize * count
        if int(f.offset) < 0 or end > step:
            raise InputError(
                f"cloud: field '{f.name}' ends at byte {end}, beyond point_step = {step}"
            )
        if f.name and f.name not in names:
            names.append(f.name)
            formats.append(order + code if count == 1 else (order + code, (count,)))
            offsets.append(int(f.offset))
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})


def _shape(msg: PointCloud2Like) -> tuple[int, int]:
    height, width = int(msg.height), int(msg.width)
    if height < 0 or width < 0 or int(msg.point_step) < 0:
        raise InputError(
            f"cloud: negative size: height {height}, width {width}, point_step {msg.point_step}"
        )
    return height, width


def _row_step(msg: PointCloud2Like, height: int, width: int) -> int:
    row, needed = int(msg.row_step), width * int(msg.point_step)
    if row >= needed:
        return row
    if height <= 1:  # drivers of unorganised clouds often leave row_step at 0
        return needed
    raise InputError(
        f"cloud: row_step = {row} is shorter than width * point_step = {width} * {msg.point_step}"
    )


def _bytes(data: Any) -> npt.NDArray[np.uint8]:
    """View bytes, array.array, memoryview or NumPy data as uint8, copying only lists."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    try:
        return np.frombuffer(data, dtype=np.uint8)
    except TypeError:
        return np.asarray(data, dtype=np.uint8)
    except ValueError:  # an empty buffer
        return np.zeros(0, dtype=np.uint8)


def _header(msg: Any) -> tuple[int, str]:
    """Stamp [ns] and frame of a message; 0 and "" when it has no header. ROS 1 names work too."""
    header = getattr(msg, "header", None)
    if header is None:
        return 0, ""
    stamp = header.stamp
    seconds = getattr(stamp, "sec", None)
    if seconds is None:
        return int(stamp.secs) * 10**9 + int(stamp.nsecs), str(header.frame_id)
    return int(seconds) * 10**9 + int(stamp.nanosec), str(header.frame_id)


# --- reading ---------------------------------------------------------------------------------


def _native(values: Array) -> Array:
    """Flatten (height, width, ...) to (N, ...) in native byte order, as a view where possible."""
    flat = values.reshape(-1, *values.shape[2:])
    return flat.astype(flat.dtype.newbyteorder("="), copy=False)


def _is_integer(values: Array) -> bool:
    return values.dtype.kind in "iu" and values.ndim == 2


def _read_xyz(points: Array) -> npt.NDArray[np.float32]:
    fields = points.dtype.fields
    assert fields is not None
    (tx, ox), (ty, oy), (tz, oz) = (fields[axis][:2] for axis in "xyz")
    f32 = np.dtype("<f4")
    packed = tx == ty == tz == f32 and oy == ox + 4 and oz == ox + 8
    if packed and sys.byteorder == "little" and points.size:
        triple = np.dtype(
            {"names": ["xyz"], "formats": [("<f4", (3,))], "offsets": [ox],
             "itemsize": points.dtype.itemsize}
        )  # fmt: skip
        view = points.view(triple)["xyz"].reshape(-1, 3)
        if view.flags.aligned and np.shares_memory(view, points):
            return view
        return np.array(view, dtype=np.float32, order="C")
    xyz = np.empty((points.size, 3), dtype=np.float32)
    for i, axis in enumerate("xyz"):
        if points[axis].ndim != 2:
            raise InputError(f"cloud: field {axis} must hold one number a point")
        xyz[:, i] = points[axis].reshape(-1)
    return xyz


def _read_intensity(
    points: Array, name: str | None, scale: float | None
) -> npt.NDArray[np.float32] | None:
    if name is None or points[name].ndim != 2:
        return None
    values = _native(points[name])
    factor = guess_intensity_scale(values) if scale is None else scale
    if factor == 1.0:
        return values.astype(np.float32, copy=False)
    return values.astype(np.float32) * np.float32(factor)


def _time_name(names: Iterable[str], time_field: str) -> str | None:
    if time_field == "none":
        return None
    if time_field == "auto":
        return next((name for name in TIME_NAMES if name in names), None)
    if time_field not in names:
        raise InputError(
            f"cloud: no time field '{time_field}' (fields: {', '.join(names)}); set time_field to "
            "one of them, to 'auto' or to 'none'"
        )
    return time_field


def _read_time(
    points: Array, name: str | None, unit: str, stamp_is: str, stamp_ns: int
) -> npt.NDArray[np.float64] | None:
    """Times in s relative to the stamp."""
    if unit not in ("auto", *_UNITS_S) or stamp_is not in ("auto", "start", "mid", "end"):
        raise InputError(
            f"cloud: time_unit must be auto, s, ms, us or ns, and stamp_is auto, start, mid or end;"
            f" got {unit} and {stamp_is}"
        )
    if name is None:
        return None
    values = _native(points[name]).astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(len(values))
    first, last = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    if unit == "auto":
        unit = _guess_unit(name, points[name].dtype, first, last, int(finite.sum()))
    scale = _UNITS_S[unit]
    start, span = first * scale, (last - first) * scale
    offset = (values - first) * scale  # relative to the first point: no precision is lost
    if stamp_is != "auto":
        return offset - {"start": 0.0, "mid": 0.5, "end": 1.0}[stamp_is] * span
    if abs(start) <= _MAX_RELATIVE_S:
        return offset + start
    # Absolute times. When the clock is not the stamp's, all they tell is the order within the
    # sweep, and drivers mostly stamp its start.
    lead = start - stamp_ns * 1e-9 if unit == "s" else (first - stamp_ns * 1e-9 / scale) * scale
    return offset + (lead if abs(lead) <= _SPAN_S[1] else 0.0)


# Times further than this from zero are readings of a clock, not offsets from the stamp, s.
_MAX_RELATIVE_S = 10.0
# A clock reading lies between 2001 and 2100 in exactly one unit.
_EPOCH_S = (1e9, 4.1e9)


def _guess_unit(name: str, dtype: np.dtype[Any], first: float, last: float, count: int) -> str:
    for unit, scale in _UNITS_S.items():
        if _EPOCH_S[0] <= first * scale <= _EPOCH_S[1] and dtype.itemsize == 8:
            return unit
    default = "s" if dtype.kind == "f" else "ns"
    span = last - first
    if span == 0 or count < _MIN_POINTS_FOR_UNIT:
        return default
    possible = [u for u, s in _UNITS_S.items() if _SPAN_S[0] <= span * s <= _SPAN_S[1]]
    if default in possible:
        return default
    if not possible:
        raise InputError(
            f"cloud: times in field '{name}' span {span:g}, which is no sweep in s, ms, us or ns; "
            "set time_unit, or time_field to 'none'"
        )
    return possible[-1]


# --- writing ---------------------------------------------------------------------------------


def _column(name: str, values: npt.ArrayLike, count: int) -> Array:
    """Values as (N,) or (N, c) of a PointField type."""
    array = np.asarray(values)
    code = array.dtype.kind + str(array.dtype.itemsize)
    if code not in _DATATYPES:
        raise InputError(
            f"cloud: field '{name}' is {array.dtype}; PointCloud2 has int8 to int32, uint8 to "
            "uint32, float32 and float64"
        )
    if array.shape[:1] == (count,) and array.ndim <= 2:
        return array
    if array.ndim == 2 and array.size == count:
        return array.reshape(-1)
    raise InputError(f"cloud: field '{name}' has shape {array.shape} for {count} points")


def _align(offset: int, size: int) -> int:
    return -(-offset // size) * size


def _layout(columns: Mapping[str, Array], start: int) -> tuple[list[Field], int]:
    """Place columns after `start`; give their fields and where the last one ends."""
    fields = []
    for name, column in columns.items():
        count = column.shape[1] if column.ndim == 2 else 1
        start = _align(start, column.dtype.itemsize)
        code = _DATATYPES[column.dtype.kind + str(column.dtype.itemsize)]
        fields.append(Field(name, start, code, count))
        start += column.dtype.itemsize * count
    return fields, start


def _copy_bytes(points: Array, out: Array, step: int) -> None:
    """Copy the first `step` bytes of every point."""
    if step == 0 or points.size == 0:
        return
    head = np.dtype({"names": ["b"], "formats": [f"V{step}"], "offsets": [0],
                     "itemsize": out.dtype.itemsize})  # fmt: skip
    out.view(head)["b"] = points.view(np.dtype((np.void, step)))


def _write(out: Array, fields: list[Field], columns: Mapping[str, Array], big: bool) -> None:
    order = ">" if big else "<"
    for f in fields:
        column = columns[f.name]
        code = order + _TYPES[f.datatype]
        one: Any = code if column.ndim == 1 else (code, column.shape[1:])
        dtype = np.dtype({"names": ["v"], "formats": [one], "offsets": [f.offset],
                          "itemsize": out.dtype.itemsize})  # fmt: skip
        out.view(dtype)["v"] = column.reshape(*out.shape, *column.shape[1:])


def _flat(out: Array) -> npt.NDArray[np.uint8]:
    return out.reshape(-1).view(np.uint8) if out.size else np.zeros(0, dtype=np.uint8)


def _is_dense(points: Array) -> bool:
    names = points.dtype.names or ()
    axes = [points[a] for a in "xyz" if a in names and points[a].dtype.kind == "f"]
    return all(bool(np.isfinite(axis).all()) for axis in axes)
