# SPDX-License-Identifier: Apache-2.0
"""Passes of the native library over a sweep: points to voxels, logits to labels.

Arrays are checked here; sizes and indices again in C++.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pcseg_core.native import tensors
from pcseg_core.native.checks import require, require_int
from pcseg_core.native.library import best_isa, check, isa_names

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

INPUTS = ("x", "y", "z", "intensity", "one", "offset_x", "offset_y", "offset_z")
"""Input features of a point, by the library's index. Torch rounds the square root of "range"
differently from CPU to CPU."""

_DOES_NOT_FIT = 3  # status
_LANES = {"generic": 4, "avx2": 8, "avxvnni": 8}  # floats of a vector, of others 16 at most


class _VoxelizeArgs(ctypes.Structure):
    """Mirror of VoxelizeArgs in voxelize.cpp."""

    _fields_ = (
        ("position", c_void_p),
        ("batch", c_void_p),
        ("intensity", c_void_p),
        ("inputs", c_void_p),
        ("scales", c_void_p),
        ("keys", c_void_p),
        ("coords", c_void_p),
        ("counts", c_void_p),
        ("inverse", c_void_p),
        ("grid", c_void_p),
        ("means", c_void_p),
        ("n", c_int64),
        ("voxels", c_int64),
        ("beyond", c_int64),
        ("size", c_float * 3),
        ("limit", c_float),
        ("features", c_int32),
    )


class _ClassifyArgs(ctypes.Structure):
    """Mirror of ClassifyArgs in classify.cpp."""

    _fields_ = (
        ("logits", c_void_p),
        ("owner", c_void_p),
        ("winner", c_void_p),
        ("confidence", c_void_p),
        ("probabilities", c_void_p),
        ("rows", c_int64),
        ("step", c_int64),
        ("columns", c_int32),
        ("classes", c_int32),
        ("most_lanes", c_int32),
    )


class _SpreadArgs(ctypes.Structure):
    """Mirror of SpreadArgs in classify.cpp."""

    _fields_ = (
        ("inverse", c_void_p),
        ("winner", c_void_p),
        ("confidence", c_void_p),
        ("probabilities", c_void_p),
        ("labels", c_void_p),
        ("point_confidence", c_void_p),
        ("point_probabilities", c_void_p),
        ("n", c_int64),
        ("rows", c_int64),
        ("classes", c_int32),
    )


@dataclass(frozen=True, eq=False)
class Grouped:
    """Voxels of points, sorted by key.

    Attributes:
        keys: (M,) int64.
        counts: (M,) int64 points of each voxel.
        inverse: (N,) int64 voxel of each point; -1 for points that are not used.
        coords: (M, 4) int32 batch, x, y, z; empty for a sweep.
        grid: (N, 3) float32 position in voxels; empty for a sweep.
        means: (M, F) float32 mean input features of a sweep.
        beyond: number of finite points of a sweep farther than its range.
    """

    keys: Int64
    counts: Int64
    inverse: Int64
    coords: Int32
    grid: Float32
    means: Float32
    beyond: int


def group_points(
    position: Array, size: tuple[float, float, float], batch: Array | None
) -> Grouped | None:
    """Voxels of all points; None if a point is not finite or a voxel has no key.

    Args:
        position: (N, 3) float32.
        size: edges of a voxel, in the units of the position.
        batch: (N,) int64 sweep of each point; None for one sweep.
    """
    return _group(position, size, batch)


def group_sweep(
    xyz: Array,
    intensity: Array | None,
    size: tuple[float, float, float],
    max_range_m: float,
    features: Sequence[tuple[str, float]],
) -> Grouped | None:
    """Voxels of the returns within the range, and their mean input features.

    Args:
        xyz: (N, 3) float32 [m]; points that are not finite or exactly zero are not used.
        intensity: (N,) float32, clipped to 0..1, 0 for NaN; None for 0.
        size: edges of a voxel [m].
        max_range_m: distance of the farthest point that is used [m].
        features: name of each input feature, of `INPUTS`, and its divisor.

    Returns:
        None if a voxel within the range has no key.
    """
    return _group(xyz, size, None, intensity, max_range_m, features)


def _group(
    position: Array,
    size: tuple[float, float, float],
    batch: Array | None,
    intensity: Array | None = None,
    max_range_m: float | None = None,
    features: Sequence[tuple[str, float]] = (),
) -> Grouped | None:
    """One call; without a range all points are used, and coords and grid are returned."""
    require(position.ndim == 2 and position.shape[1] == 3, f"points (N, 3), got {position.shape}")
    for values, name in ((batch, "batch index"), (intensity, "intensity")):
        require(values is None or values.shape == position.shape[:1], f"one {name} for each point")
    position = np.ascontiguousarray(position, np.float32)
    batch = None if batch is None else np.ascontiguousarray(batch, np.int64)
    intensity = None if intensity is None else np.ascontiguousarray(intensity, np.float32)
    n = len(position)
    keys, counts, inverse = (np.empty(n, np.int64) for _ in range(3))
    rows = n if max_range_m is None else 0
    cells, places = np.empty((rows, 4), np.int32), np.empty((rows, 3), np.float32)
    means = np.empty((n, len(features)), np.float32)
    inputs = np.array([INPUTS.index(name) for name, _ in features], np.int32)
    scales = np.array([scale for _, scale in features], np.float32)
    given: tuple[Array | None, ...] = (position, batch, intensity, inputs, scales)
    written: tuple[Array, ...] = (keys, cells, counts, inverse, places, means)
    args = _VoxelizeArgs(
        *map(_pointer, given + written),
        n,
        0,
        0,
        (c_float * 3)(*size),
        -1.0 if max_range_m is None else max_range_m * max_range_m,
        len(features),
    )
    status = tensors.threaded_library().pcseg_voxelize(byref(args), torch.get_num_threads())
    if status == _DOES_NOT_FIT:
        return None
    check(status)
    m = args.voxels
    return Grouped(keys[:m], counts[:m], inverse, cells[:m], places, means[:m], args.beyond)


def classify(
    logits: Array, classes: int, owner: Array | None, probabilities: bool, isa: int | None = None
) -> tuple[Int32, Float32, Float32 | None]:
    """Softmax of each row and its first largest class.

    Args:
        logits: (M, K) float32.
        classes: number C of classes.
        owner: (K,) class of each column, whose probabilities are added; None for K = C.
        probabilities: also return the probabilities of all classes.
        isa: index of the instruction set; None for the fastest.

    Returns:
        (M,) class, -1 where the softmax is not finite; (M,) its probability, then 0; (M, C)
        probabilities, then 0, or None.
    """
    require_int(classes, "the number of classes", 1, 1 << 16)
    require(logits.ndim == 2, f"logits (M, K), got {logits.shape}")
    require(owner is None or owner.shape == logits.shape[1:], "one class for each column")
    logits = np.ascontiguousarray(logits, np.float32)
    owner = None if owner is None else np.ascontiguousarray(owner, np.int32)
    m = len(logits)
    winner, confidence = np.empty(m, np.int32), np.empty(m, np.float32)
    every = np.empty((m, classes), np.float32) if probabilities else None
    args = _ClassifyArgs(
        *map(_pointer, (logits, owner, winner, confidence, every)),
        m,
        logits.shape[1],
        logits.shape[1],
        classes,
        _LANES.get(isa_names()[best_isa() if isa is None else isa], 16),
    )
    check(tensors.threaded_library().pcseg_classify(byref(args), torch.get_num_threads()))
    return winner, confidence, every


def spread(
    inverse: Array, winner: Int32, confidence: Float32, probabilities: Float32 | None
) -> tuple[Int32, Float32, Float32 | None]:
    """The results of `classify` for points.

    Args:
        inverse: (N,) int64 row of each point; others than 0..M-1 give -1 and 0.
        winner, confidence, probabilities: (M,), (M,), (M, C) or None.
    """
    kind, shape = inverse.dtype, inverse.shape
    require(inverse.ndim == 1 and kind == np.int64, f"rows (N,) int64, got {shape} {kind}")
    require(winner.shape == confidence.shape, "one confidence for each class")
    require(probabilities is None or len(probabilities) == len(winner), "rows of one number")
    inverse = np.ascontiguousarray(inverse)
    n, classes = len(inverse), 0 if probabilities is None else probabilities.shape[1]
    labels, likely = np.empty(n, np.int32), np.empty(n, np.float32)
    every = None if probabilities is None else np.empty((n, classes), np.float32)
    args = _SpreadArgs(
        *map(_pointer, (inverse, winner, confidence, probabilities)),
        *map(_pointer, (labels, likely, every)),
        n,
        len(winner),
        classes,
    )
    check(tensors.threaded_library().pcseg_spread(byref(args), torch.get_num_threads()))
    return labels, likely, every


def _pointer(array: Array | None) -> int | None:
    return None if array is None or array.size == 0 else array.ctypes.data
