# SPDX-License-Identifier: Apache-2.0
"""Headings and extents of things in the ground plane, for all things of a sweep at once."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.native.library import check, optional_library
from pcseg_core.native.structures import GroupArgs, GroupedArgs, Points, address

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_COARSE, _FINE = 18, 7  # headings of a right angle that are tried, and then around the best
_STEP = np.pi / 2 / _COARSE
_NEAREST_M = 0.05  # distance to an edge below which a point counts no more
_MOST_POINTS = 40  # of a thing that choose its heading


@dataclass(frozen=True)
class Grouped:
    """Points in the order of the thing that they belong to.

    Attributes:
        points: (M, 3) C-contiguous [m].
        starts: (I,) row of the first point of each thing.
        counts: (I,) number of its points, at least 1.
    """

    points: Float64
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, points: Float64, numbers: Array) -> tuple[Grouped, npt.NDArray[np.int64]]:
        """Points (M, 3) by their thing (M,), 0 to I - 1, each of which has a point; -1 for none.

        Returns:
            The points of things, and their rows (K,) in the order that they were brought into.
        """
        things = int(numbers.max(initial=-1)) + 1
        library = optional_library()
        if library is None:
            return cls._sorted(points, numbers, things)
        points = np.ascontiguousarray(points, np.float64)
        numbers = np.ascontiguousarray(numbers, np.int64)
        starts, counts, order = (np.empty(n, np.int64) for n in (things, things, len(points)))
        by_thing = np.empty_like(points)
        own = map(address, (by_thing, order, starts, counts))
        args = GroupArgs(points.ctypes.data, numbers.ctypes.data, *own, len(points), things)
        check(library.pcseg_group(byref(args)))
        used = int(starts[-1] + counts[-1]) if things else 0
        return cls(by_thing[:used], starts, counts), order[:used]

    @classmethod
    def _sorted(
        cls, points: Float64, numbers: Array, things: int
    ) -> tuple[Grouped, npt.NDArray[np.int64]]:
        order = np.argsort(numbers, kind="stable")
        order = order[np.count_nonzero(numbers < 0) :]
        counts = np.bincount(numbers[order], minlength=things)
        return cls(points[order], np.cumsum(counts) - counts, counts), order

    def chosen(self, things: Array) -> tuple[Grouped, npt.NDArray[np.int64]]:
        """Some of the things, ascending; and the rows of their points."""
        taken = np.zeros(len(self.counts), bool)
        taken[things] = True
        rows = np.flatnonzero(np.repeat(taken, self.counts))
        counts = self.counts[things]
        return Grouped(self.points.take(rows, 0), np.cumsum(counts) - counts, counts), rows

    def thinned(self, most: int) -> Grouped:
        """Every k-th point of the things that have more points than `most`."""
        place = np.arange(len(self.points)) - np.repeat(self.starts, self.counts)
        step = np.repeat(-(-self.counts // most), self.counts)
        kept = place % step == 0
        counts = np.add.reduceat(kept, self.starts, dtype=np.int64)
        starts = np.cumsum(counts) - counts
        return Grouped(self.points[kept], starts, counts)

    def extents(self, yaws: Float64) -> tuple[Float64, Float64]:
        """Lowest and highest coordinates (I, 3) along a heading (I,), across it, and upward."""
        cos, sin = np.cos(yaws), np.sin(yaws)
        library = optional_library()
        if library is None:
            return self._numpy_extents(cos, sin)
        low, high = np.empty((2, len(self.counts), 3))
        args, arrays = self.arguments(), map(address, (cos, sin, low, high))
        check(library.pcseg_extents(byref(args), *arrays))
        return low, high

    def _numpy_extents(self, cos: Float64, sin: Float64) -> tuple[Float64, Float64]:
        cos, sin = np.repeat(cos, self.counts), np.repeat(sin, self.counts)
        turned = self.points.copy()
        turned[:, 0] = self.points[:, 0] * cos + self.points[:, 1] * sin
        turned[:, 1] = self.points[:, 1] * cos - self.points[:, 0] * sin
        low = np.minimum.reduceat(turned, self.starts)
        return low, np.maximum.reduceat(turned, self.starts)

    def boxes(self, yaws: Float64) -> Float64:
        """(I, 9) boxes with headings (I,) around the things, as `Rectangles.table` has them."""
        cos, sin = np.cos(yaws), np.sin(yaws)
        library = optional_library()
        table = np.empty((len(yaws), 9))
        if library is not None:
            args, arrays = self.arguments(), map(address, (yaws, cos, sin, table))
            check(library.pcseg_boxes(byref(args), *arrays))
            return table
        low, high = self._numpy_extents(cos, sin)
        x, y = (low + high)[:, :2].T / 2
        table[:, 0], table[:, 1], table[:, 2] = x * cos - y * sin, x * sin + y * cos, yaws
        table[:, 3], table[:, 4], table[:, 5:7] = cos, sin, (high - low)[:, :2]
        table[:, 7], table[:, 8] = low[:, 2], high[:, 2]
        return table

    def most_frequent(self, labels: Array) -> npt.NDArray[np.int64]:
        """Class (I,) that most points of each thing have; labels (M,) from 0."""
        classes, things = int(labels.max(initial=0)) + 1, len(self.counts)
        library = optional_library()
        if library is None:
            pairs = np.repeat(np.arange(things) * classes, self.counts) + labels
            counts = np.bincount(pairs, minlength=things * classes)
            return np.asarray(counts.reshape(things, classes).argmax(1), np.int64)
        found = np.empty(things, np.int64)
        args, labels = self.arguments(), np.ascontiguousarray(labels, np.int32)
        check(library.pcseg_most_frequent(byref(args), labels.ctypes.data, classes, address(found)))
        return found

    def arguments(self) -> GroupedArgs:
        """For the native library."""
        arrays = map(address, (self.points, self.starts, self.counts))
        return GroupedArgs(*arrays, len(self.points), len(self.counts))


def moved_points(xyz: Float32, rows: npt.NDArray[np.int64], pose: Float64) -> Float64:
    """(M, 3) the points of some rows (M,) of a cloud (N, 3) in another frame, T_other_cloud."""
    library = optional_library()
    if library is None:
        return np.asarray(xyz[rows].astype(np.float64) @ pose[:3, :3].T + pose[:3, 3])
    points, moved = Points.of(xyz), np.empty((len(rows), 3))
    T, rows = np.array(pose[:3], np.float64), np.ascontiguousarray(rows, np.int64)
    addresses = rows.ctypes.data, len(rows), address(T), address(moved)
    check(library.pcseg_move_points(byref(points), *addresses))
    return moved


def fit_headings(things: Grouped) -> Float64:
    """Heading (I,) of the rectangle around each thing, 0 to pi/2 [rad].

    Search over the headings for the rectangle whose edges are nearest to the points, which also
    holds for things of which one or two sides are seen: Zhang et al., "Efficient L-Shape Fitting
    for Vehicle Detection Using Laser Scanners", IV 2017, algorithms 2 and 4 (closeness). The
    native library searches where it was built, numpy otherwise, ten times slower.
    """
    if not len(things.counts):
        return np.zeros(0)
    library = optional_library()
    if library is None:
        return _search(things)
    args, found = things.arguments(), np.empty(len(things.counts))
    settings = _MOST_POINTS, _COARSE, _FINE, _NEAREST_M
    check(library.pcseg_fit_headings(byref(args), *settings, address(found)))
    return np.asarray(found % (np.pi / 2))


def _search(things: Grouped) -> Float64:
    few = things.thinned(_MOST_POINTS)
    tried = np.arange(_COARSE)[:, None] * _STEP + np.zeros(len(few.counts))
    best = _best(few, tried)
    near = _STEP * np.linspace(-0.5, 0.5, _FINE)[:, None] + best
    return np.asarray(_best(few, near) % (np.pi / 2))


def _best(things: Grouped, tried: Float64) -> Float64:
    """The heading (I,) of those tried (A, I) with the highest closeness."""
    plane = things.points[:, :2] - np.repeat(things.points[things.starts, :2], things.counts, 0)
    x, y = plane.T.astype(np.float32)
    cos, sin = (
        np.repeat(part(tried).astype(np.float32), things.counts, axis=1)
        for part in (np.cos, np.sin)
    )
    to_edge = np.minimum(
        _to_nearer_edge(x * cos + y * sin, things), _to_nearer_edge(y * cos - x * sin, things)
    )
    weight = 1 / np.maximum(to_edge, np.float32(_NEAREST_M))
    closeness = np.add.reduceat(weight, things.starts, axis=1)
    found: Float64 = np.take_along_axis(tried, closeness.argmax(0)[None], 0)[0]
    return found


def _to_nearer_edge(along: Float32, things: Grouped) -> Float32:
    """(A, M) distance to that end of each thing that its points are nearer to in all."""

    def spread(values: Array) -> Array:
        return np.repeat(values, things.counts, axis=1)

    low = along - spread(np.minimum.reduceat(along, things.starts, axis=1))
    high = spread(np.maximum.reduceat(along, things.starts, axis=1)) - along
    nearer_low = np.add.reduceat(low - high, things.starts, axis=1) <= 0
    return np.where(spread(nearer_low), low, high)
