# SPDX-License-Identifier: Apache-2.0
"""Instances of things in one sweep: connected cells of the ground plane, per class."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import byref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pcseg_core.errors import InputError
from pcseg_core.native.library import check, optional_library, thread_count
from pcseg_core.native.structures import ClusterArgs, Points

_REACH_M = 150.0  # limits the grid; farther points are too sparse to be connected
_LEAST_CELL_M, _MOST_CLASSES = 1e-3, 1 << 14  # that the native library takes


@dataclass(frozen=True)
class Instances:
    """The instances of a sweep.

    Attributes:
        rows: (M,) rows of the points that have an instance, ascending.
        ids: (M,) the instance of each of them, from 1.
        count: number of instances.
    """

    rows: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint32]
    count: int


def cluster_instances(
    xyz: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    classes: Iterable[int],
    *,
    cell_m: float = 0.3,
    min_points: int = 10,
) -> npt.NDArray[np.uint32]:
    """Number the objects of a sweep, each of one class; see `find_instances`.

    Args:
        xyz, labels, cell_m, min_points: of `find_instances`.
        classes: ids of the classes with instances.

    Returns:
        (N,) ids from 1, 0 for points without an instance. They are not tracked over sweeps.

    Raises:
        InputError: shapes differ, or the cell is not positive.
    """
    classes = list(dict.fromkeys(classes))
    group = np.full(max(classes, default=-1) + 1, -1, np.int32)
    group[classes] = np.arange(len(classes))
    found = find_instances(xyz, labels, group, cell_m=cell_m, min_points=min_points)
    ids = np.zeros(len(labels), np.uint32)
    ids[found.rows] = found.ids
    return ids


def find_instances(
    xyz: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    group: npt.NDArray[Any],
    *,
    cell_m: float = 0.3,
    min_points: int = 10,
) -> Instances:
    """Find the objects of a sweep.

    Points of one group whose cells touch, corners included, are one instance: Euclidean clustering
    (Rusu 2009, section 6.2) on the ground plane, with a distance of one to two cells. Objects
    rarely overlap in the ground plane, and without the height the gaps between the beams, which
    grow with the distance, do not split them.

    Args:
        xyz: (N, 3) points, z up [m]; points that are not finite or beyond 150 m get no instance.
        labels: (N,) class ids.
        group: (C,) group of each class, from 0 in the order of the ids; -1 for classes without
            instances, as are those beyond C.
        cell_m: edge of a cell [m].
        min_points: minimum number of points of an instance.

    Raises:
        InputError: shapes differ, or the cell is not positive.
    """
    if len(xyz) != len(labels) or cell_m <= 0:
        raise InputError(f"instances: {len(xyz)} points, {len(labels)} labels, cell of {cell_m} m")
    xyz, labels = np.asarray(xyz), np.asarray(labels)
    library = optional_library()
    fits = xyz.dtype == np.float32 and cell_m >= _LEAST_CELL_M
    if library is None or not fits or max(len(group), group.max(initial=0)) >= _MOST_CLASSES:
        return _numpy_find(xyz, labels, group, cell_m, min_points)
    labels, group = (np.ascontiguousarray(values, np.int32) for values in (labels, group))
    rows, ids = np.empty(len(labels), np.int64), np.empty(len(labels), np.uint32)
    args = ClusterArgs(
        Points.of(xyz),
        *(values.ctypes.data for values in (labels, group, rows, ids)),
        min_points,
        cell_m,
        _REACH_M,
        len(group),
    )
    check(library.pcseg_cluster(byref(args)))
    return Instances(rows[: args.count], ids[: args.count], args.instances)


def _numpy_find(
    xyz: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    group: npt.NDArray[Any],
    cell_m: float,
    min_points: int,
) -> Instances:
    ids = np.zeros(len(labels), np.uint32)
    groups = np.full(len(labels), -1, np.int64)
    known = np.flatnonzero((labels >= 0) & (labels < len(group)))
    groups[known] = group[labels[known]]
    count = 0
    for number in np.unique(groups[groups >= 0]):
        members = np.flatnonzero(groups == number)
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
    rows = np.flatnonzero(ids)
    return Instances(rows, ids[rows], count)


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
    labels: npt.NDArray[Any], by_class: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """(N,) value of the class of each point.

    Args:
        labels: (N,) class ids, -1 for none.
        by_class: (C + 1,) value of each class, and of no class.
    """
    library = optional_library()
    if library is None:
        return by_class.take(labels, mode="wrap")
    values = np.empty(len(labels), np.uint8)
    labels, by_class = np.ascontiguousarray(labels, np.int32), np.ascontiguousarray(by_class)
    addresses = (array.ctypes.data for array in (labels, by_class, values))
    check(library.pcseg_point_values(*addresses, len(values), len(by_class) - 1, thread_count()))
    return values


def id_sums(
    ids: npt.NDArray[np.uint32], values: npt.NDArray[np.float32], first: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Number (count,) of the points of each id from the first one on, and the sum of their values.

    Args:
        ids: (N,) of points, 0 for none.
        values: (N,).
        first: at least 1.
        count: number of ids.
    """
    library = optional_library()
    if library is None:
        rows = np.flatnonzero((ids >= first) & (ids < first + count))
        at = ids[rows].astype(np.int64) - first
        numbers = np.bincount(at, minlength=count).astype(np.int64, copy=False)
        return numbers, np.asarray(np.bincount(at, values[rows], count), np.float64)
    ids, values = np.ascontiguousarray(ids, np.uint32), np.ascontiguousarray(values, np.float32)
    counts, sums = np.empty(count, np.int64), np.empty(count)
    addresses = counts.ctypes.data, sums.ctypes.data
    of_points = ids.ctypes.data, values.ctypes.data, len(ids)
    check(library.pcseg_id_sums(*of_points, first, count, *addresses))
    return counts, sums
