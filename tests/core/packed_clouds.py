# SPDX-License-Identifier: Apache-2.0
"""Point clouds as plain messages, packed byte by byte, independent of the codec under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

F32, F64, U8, U16, U32 = 7, 8, 2, 4, 6
CODES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
STAMP = 1_700_000_000_123_456_789
XYZ = [("x", 0, F32), ("y", 4, F32), ("z", 8, F32)]


@dataclass
class Message:
    """A PointCloud2 as a plain object; nothing of ROS."""

    fields: list[Any]
    data: Any
    height: int = 1
    width: int = 1
    point_step: int = 12
    row_step: int = 12
    is_bigendian: bool = False
    is_dense: bool = True
    header: Any = None


def header(stamp_ns: int = STAMP, frame_id: str = "lidar") -> Any:
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return SimpleNamespace(stamp=stamp, frame_id=frame_id)


def message(
    layout: list[tuple[str, int, int]],
    columns: dict[str, Any],
    step: int,
    height: int = 1,
    row_padding: int = 0,
    big: bool = False,
    stamp_ns: int = STAMP,
) -> Message:
    """Pack columns with `struct`, byte by byte, independent of the code under test."""
    letters = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}
    count = len(next(iter(columns.values())))
    width = count // height
    row_step = width * step + row_padding
    data = bytearray(b"\xee" * (row_step * height))
    for name, offset, datatype in layout:
        for i, value in enumerate(columns[name]):
            at = i // width * row_step + i % width * step + offset
            number = float(value) if datatype >= F32 else int(value)
            struct.pack_into((">" if big else "<") + letters[datatype], data, at, number)
    fields = [SimpleNamespace(name=n, offset=o, datatype=d, count=1) for n, o, d in layout]
    return Message(fields, bytes(data), height, width, step, row_step, big, True, header(stamp_ns))


def xyz_columns(count: int) -> dict[str, np.ndarray]:
    values = np.arange(3 * count, dtype=np.float32).reshape(count, 3) / 8 - 2
    return {axis: values[:, i] for i, axis in enumerate("xyz")}


def xyz_of(columns: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float32)


VELODYNE = [*XYZ, ("intensity", 12, F32), ("ring", 16, U16), ("time", 18, F32)]  # 22 bytes
