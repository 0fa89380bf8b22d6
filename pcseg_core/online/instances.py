# SPDX-License-Identifier: Apache-2.0
"""Instances of things in one sweep: connected cells of the ground plane, per class."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import byref
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pcseg_core.errors import InputError
from pcseg_core.native.library import check, optional_library, thread_count
from pcseg_core.native.structures import ClusterArgs, Points, ValuesArgs

_REACH_M = 150.0  # limits the grid; farther points are too sparse to be connected
_LEAST_CELL_M, _MOST_CLASSES = 1e-3, 1 << 14  # that the native library takes


def cluster_instances(
    xyz: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    classes: Iterable[int],
    *,
    cell_m: float = 0.3,
    min_points: int = 10,
) -> npt.NDArray[np.uint32]:
    """Number the objects of a sweep.

    Points of one class whose cells touch, corners included, are one instance: Euclidean clustering
    (Rusu 2009, section 6.2) on the ground plane, with a distance of one to two cells. Objects
    rarely overlap in the ground plane, and without the height the gaps between the beams, which
    grow with the distance, do not split them.

    Args:
        xyz: (N, 3) points, z up [m]; points that are not finite or beyond 150 m get no instance.
        labels: (N,) class ids.
        classes: ids of the classes with instances.
        cell_m: edge of a cell [m].
        min_points: minimum number of points of an instance.

    Returns:
        (N,) ids from 1, 0 for points without an instance. They are not tracked over sweeps.

    Raises:
        InputError: shapes differ, or the cell is not positive.
    """
    if len(xyz) != len(labels) or cell_m <= 0:
        raise InputError(f"instances: {len(xyz)} points, {len(labels)} labels, cell of {cell_m} m")
    xyz, labels, classes = np.asarray(xyz), np.asarray(labels), list(dict.fromkeys(classes))
    library = optional_library()
    fits = xyz.dtype == np.float32 and cell_m >= _LEAST_CELL_M
    if library is None or not fits or not all(0 <= c < _MOST_CLASSES for c in classes):
        return _numpy_cluster(xyz, labels, classes, cell_m, min_points)
    group = np.full(max(classes, default=-1) + 1, -1, np.int32)
    group[classes] = np.arange(len(classes))
    labels = np.ascontiguousarray(labels, np.int32)
    ids = np.empty(len(labels), np.uint32)
    args = ClusterArgs(
        Points.of(xyz),
        *(values.ctypes.data for values in (labels, group, ids)),
        min_points,
        cell_m,
        _REACH_M,
        len(group),
    )
    check(library.pcseg_cluster(byref(args)))
    return ids


def _numpy_cluster(
    xyz: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    classes: Iterable[int],
    cell_m: float,
    min_points: int,
) -> npt.NDArray[np.uint32]:
    ids = np.zeros(len(labels), np.uint32)
    count = 0
    for class_id in classes:
        members = np.flatnonzero(labels == class_id)
        plane = xyz[members, :2]
        near = (np.abs(plane) < _REACH_M).all(axis=1)  # False for NaN
        members, plane = members[near], plane[near]
        if not len(members):
            continue
        found = _connected(plane, cell_m)
        large = np.bincount(found) >= min_points
        numbers = np.cumsum(large, dtype=np.uint32) + np.uint32(count)
        ids[members] = np.where(large, numbers, 0)[found]
        count = int(numbers[-1])
    return ids


def _connected(plane: npt.NDArray[Any], cell_m: float) -> npt.NDArray[np.int64]:
    """(M,) index of the connected region of each point (M, 2), from 0."""
    cells = np.floor(plane / cell_m).astype(np.int64)
    cells -= cells.min(axis=0)
    grid = np.zeros(cells.max(axis=0) + 1, dtype=bool)
    grid[cells[:, 0], cells[:, 1]] = True
    regions, _ = ndimage.label(grid, structure=np.ones((3, 3)))
    found: npt.NDArray[np.int64] = regions[cells[:, 0], cells[:, 1]].astype(np.int64) - 1
    return found


def point_values(
    labels: npt.NDArray[Any],
    by_class: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.uint32] | None = None,
    by_instance: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """(N,) value of the instance of each point, or of its class where it has none.

    Args:
        labels: (N,) class ids, -1 for none.
        by_class: (C + 1,) value of each class, and of no class.
        instances: (N,) from 1, 0 for none; None if no point has one.
        by_instance: (I + 1,) value of each instance; that of 0 is not used.
    """
    library = optional_library()
    if library is None:
        values = by_class.take(labels, mode="wrap")
        if instances is not None and by_instance is not None:
            rows = np.flatnonzero(instances)
            values[rows] = by_instance.take(instances[rows])
        return values
    values = np.empty(len(labels), np.uint8)
    arrays = (
        np.ascontiguousarray(labels, np.int32),
        np.ascontiguousarray(by_class),
        None if instances is None else np.ascontiguousarray(instances, np.uint32),
        None if by_instance is None else np.ascontiguousarray(by_instance),
        values,
    )
    addresses = [None if array is None else array.ctypes.data for array in arrays]
    count = 0 if by_instance is None else len(by_instance)
    args = ValuesArgs(*addresses, len(values), len(by_class) - 1, count)
    check(library.pcseg_point_values(byref(args), thread_count()))
    return values
