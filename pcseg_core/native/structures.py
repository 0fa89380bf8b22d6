# SPDX-License-Identifier: Apache-2.0
"""Arguments of the native library that hold clouds, range images and grids.

Each class mirrors the structure of its name in C++. They point to arrays, which the caller keeps.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]
_NOTHING = ctypes.c_char * 0


def address(array: Array) -> int:
    """Where a writable C-contiguous array begins; in a third of the time of `array.ctypes.data`."""
    return ctypes.addressof(_NOTHING.from_buffer(array))  # type: ignore[arg-type]


class Column(ctypes.Structure):
    """Values of the points of a cloud, and where they are in a record."""

    _fields_ = (
        ("start", c_void_p),
        ("row_step", c_int64),
        ("step", c_int64),
        ("bytes", c_int32),
        ("offset", c_int32),
    )


class RecordsArgs(ctypes.Structure):
    """Columns that become records."""

    _fields_ = (
        ("columns", POINTER(Column)),
        ("out", c_void_p),
        ("height", c_int64),
        ("width", c_int64),
        ("step", c_int32),
        ("count", c_int32),
    )


class Part(ctypes.Structure):
    """Some of the records of a cloud."""

    _fields_ = (("chosen", c_void_p), ("out", c_void_p), ("count", c_int64))


class Points(ctypes.Structure):
    """Points of float32 anywhere in memory."""

    _fields_ = (("xyz", c_void_p), ("step", c_int64), ("axis_step", c_int64), ("n", c_int64))

    @classmethod
    def of(cls, xyz: Array) -> Points:
        """Points (N, 3), or (N, 2) where heights are not read.

        Raises:
            InputError: they are not float32.
        """
        if xyz.ndim != 2 or xyz.dtype != np.float32:
            raise InputError(
                f"native library: expected points float32, got {xyz.dtype} {xyz.shape}"
            )
        return cls(xyz.ctypes.data, *xyz.strides, len(xyz))


class ChooseArgs(ctypes.Structure):
    """Which points a cloud has."""

    _fields_ = (
        ("points", Points),
        ("labels", c_void_p),
        ("confidence", c_void_p),
        ("least", c_void_p),
        ("chosen", c_void_p),
        ("classes", c_int32),
        ("returns", c_int32),
        ("limit", c_float),
    )


class AutowareArgs(ctypes.Structure):
    """What points of Autoware are written from."""

    _fields_ = (
        ("points", Points),
        ("labels", c_void_p),
        ("confidence", c_void_p),
        ("likely", c_void_p),
        ("ids", c_void_p),
        ("out", c_void_p),
        ("step", c_int64),
        ("columns", c_int32),
        ("classes", c_int32),
    )


class ImageArgs(ctypes.Structure):
    """The points of a range image."""

    _fields_ = (
        ("points", Points),
        ("chosen", c_void_p),
        ("image", c_void_p),
        ("origin", c_float * 3),
        ("farthest", c_int32),
    )


class View(ctypes.Structure):
    """Range images of one LiDAR."""

    _fields_ = (
        ("reach", c_void_p),
        ("nearest", c_void_p),
        ("farthest", c_void_p),
        ("origin", c_float * 3),
    )


class Views(ctypes.Structure):
    """Range images of all LiDARs."""

    _fields_ = (("views", POINTER(View)), ("count", c_int32), ("margin_m", c_float))


class Seen(ctypes.Structure):
    """Beams of a sweep, and the pose of other points in its frame."""

    _fields_ = (("free", Views), ("pose", c_float * 12))


class ClusterArgs(ctypes.Structure):
    """The points of instances."""

    _fields_ = (
        ("points", Points),
        ("labels", c_void_p),
        ("group", c_void_p),
        ("rows", c_void_p),
        ("ids", c_void_p),
        ("min_points", c_int64),
        ("cell_m", c_float),
        ("reach_m", c_float),
        ("classes", c_int32),
        ("count", c_int64),
        ("instances", c_int64),
    )


class GroupArgs(ctypes.Structure):
    """Points that are brought into the order of their things."""

    _fields_ = (
        ("points", c_void_p),
        ("numbers", c_void_p),
        ("sorted", c_void_p),
        ("order", c_void_p),
        ("starts", c_void_p),
        ("counts", c_void_p),
        ("n", c_int64),
        ("things", c_int64),
    )


class GroupedArgs(ctypes.Structure):
    """Points in the order of their things."""

    _fields_ = (
        ("points", c_void_p),
        ("starts", c_void_p),
        ("counts", c_void_p),
        ("n", c_int64),
        ("things", c_int64),
    )


class CostArgs(ctypes.Structure):
    """Boxes of tracks and of things that may belong together."""

    _fields_ = (
        ("tracks", c_void_p),
        ("things", c_void_p),
        ("variance", c_void_p),
        ("cost", c_void_p),
        ("count", c_int64),
        ("seen", c_int64),
        ("excess_m", c_double),
        ("most_excess", c_double),
        ("middle_m", c_double),
        ("most", c_double),
    )


class PartArgs(ctypes.Structure):
    """Boxes that may be parts of things."""

    _fields_ = (
        ("boxes", c_void_p),
        ("groups", c_void_p),
        ("limits", c_void_p),
        ("numbers", c_void_p),
        ("count", c_int64),
        ("limit_count", c_int64),
        ("most_pairs", c_int64),
        ("sensor", c_double * 2),
        ("behind_m", c_double),
        ("beside_m", c_double),
        ("behind_share", c_double),
        ("low_m", c_double),
        ("long_m", c_double),
        ("step_m", c_double),
        ("face_group", c_int64),
        ("faces_m", c_double),
        ("faces_share", c_double),
        ("rise_m", c_double),
    )


class GridArgs(ctypes.Structure):
    """What an occupancy grid is drawn from."""

    _fields_ = (
        ("points", Points),
        ("labels", c_void_p),
        ("weight", c_void_p),
        ("costs", c_void_p),
        ("found", c_void_p),
        ("below", POINTER(c_float)),
        ("free", Views),
        ("rotation", c_float * 9),
        ("offset", c_float * 2),
        ("corner", c_double * 2),
        ("edge", c_double),
        ("min_share", c_double),
        ("max_height_m", c_float),
        ("clearance_m", c_float),
        ("side", c_int32),
        ("classes", c_int32),
    )
