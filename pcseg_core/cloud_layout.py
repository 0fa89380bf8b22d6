# SPDX-License-Identifier: Apache-2.0
"""Memory layout of sensor_msgs/PointCloud2, without its ROS package.

A cloud has at most `MAX_POINTS` points of at most `MAX_POINT_STEP` bytes, and at most `MAX_FIELDS`
fields that cover each byte of a point `MAX_OVERLAP` times on average.
"""

from __future__ import annotations

import array
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]

# Numbers of sensor_msgs/PointField.
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
DATATYPES = {code: number for number, code in TYPES.items()}

# Beyond these the header is garbage or the cloud is made to exhaust the memory.
MAX_POINT_STEP = 1 << 20  # bytes
MAX_POINTS = 1 << 25
MAX_FIELDS = 256
MAX_OVERLAP = 4  # drivers share the bytes of unions, such as rgb and rgba


class PointCloud2Like(Protocol):
    """Attributes of a PointCloud2 that the codec reads; `header` and `is_dense` are optional."""

    height: int
    width: int
    fields: Any
    is_bigendian: bool
    point_step: int
    row_step: int

    @property
    def data(self) -> Any: ...


@dataclass
class Field:
    """A field of an encoded cloud; the same attributes as sensor_msgs/PointField."""

    name: str
    offset: int
    datatype: int
    count: int = 1


@dataclass
class EncodedCloud:
    """A PointCloud2 message without its header; `buffer` holds the bytes of its data."""

    height: int
    width: int
    fields: list[Field]
    is_bigendian: bool
    point_step: int
    row_step: int
    buffer: array.array[int]
    is_dense: bool

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """(bytes,) uint8, the memory of the buffer."""
        return _bytes(self.buffer)


def structured(msg: PointCloud2Like) -> Array:
    """View the points of a message as a structured array (height, width), without a copy.

    The dtype has one entry per field, at its offset and in the message's byte order; a field with
    a count above 1 is a sub-array. Unnamed fields (padding) and repeated names are skipped. The
    view is read-only.

    Raises:
        InputError: a datatype is unknown, a field reaches beyond point_step, rows are shorter
            than their points, data is shorter than row_step * height, or a bound of this module is
            exceeded.
    """
    height, width = _shape(msg)
    dtype = _dtype(msg)
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
    if height * width > MAX_POINTS:
        raise InputError(f"cloud: {height} x {width} points, expected at most {MAX_POINTS}")
    view = np.ndarray((height, width), dtype, buffer=data.data, strides=(row, step))
    view.flags.writeable = False
    result: Array = view
    return result


def overlay(points: Array, code: Any, offset: int) -> Array:
    """View the bytes at `offset` of every point as one field of type `code`."""
    dtype = np.dtype(
        {"names": ["v"], "formats": [code], "offsets": [offset], "itemsize": points.dtype.itemsize}
    )
    return points.view(dtype)["v"]


def positions(points: Array) -> Array | None:
    """x, y and z (height, width, 3) float32 without a copy; None if they do not lie like that."""
    fields = points.dtype.fields
    if fields is None or not all(axis in fields for axis in "xyz"):
        return None
    types, offsets = zip(*(fields[axis][:2] for axis in "xyz"))
    together = offsets == (offsets[0], offsets[0] + 4, offsets[0] + 8)
    if types != (np.dtype(np.float32),) * 3 or not together:
        return None
    return overlay(points, (np.float32, (3,)), offsets[0])


def _dtype(msg: PointCloud2Like) -> np.dtype[Any]:
    step = int(msg.point_step)
    order = ">" if msg.is_bigendian else "<"
    if len(msg.fields) > MAX_FIELDS:
        raise InputError(f"cloud: {len(msg.fields)} fields, expected at most {MAX_FIELDS}")
    names: list[str] = []
    formats: list[Any] = []
    offsets: list[int] = []
    for f in msg.fields:
        code = TYPES.get(int(f.datatype))
        if code is None:
            raise InputError(
                f"cloud: field '{f.name}' has the unknown datatype {f.datatype}; expected 1 to 8 "
                "(INT8 to FLOAT64 of sensor_msgs/PointField)"
            )
        count = max(1, int(f.count))  # some drivers write 0 for 1
        end = int(f.offset) + np.dtype(code).itemsize * count
        if int(f.offset) < 0 or end > step:
            raise InputError(
                f"cloud: field '{f.name}' covers bytes {f.offset} to {end}, outside "
                f"point_step = {step}"
            )
        if f.name and f.name not in names:
            names.append(f.name)
            formats.append(order + code if count == 1 else (order + code, (count,)))
            offsets.append(int(f.offset))
    covered = sum(np.dtype(code).itemsize for code in formats)
    if covered > MAX_OVERLAP * step:
        raise InputError(
            f"cloud: its fields cover {covered} bytes of points of {step} bytes; they overlap, "
            f"expected at most {MAX_OVERLAP} fields over a byte"
        )
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})


def _shape(msg: PointCloud2Like) -> tuple[int, int]:
    height, width = int(msg.height), int(msg.width)
    if height < 0 or width < 0 or not 0 <= int(msg.point_step) <= MAX_POINT_STEP:
        raise InputError(
            f"cloud: impossible size: height {height}, width {width}, point_step {msg.point_step}"
        )
    return height, width


def _row_step(msg: PointCloud2Like, height: int, width: int) -> int:
    row, needed = int(msg.row_step), width * int(msg.point_step)
    if row >= needed:
        return row
    if height <= 1:  # drivers of unorganized clouds often leave row_step at 0
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
