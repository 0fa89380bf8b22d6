# SPDX-License-Identifier: Apache-2.0
"""Which clusters, and which tracks, are parts of one thing."""

from __future__ import annotations

from ctypes import byref, c_double
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.native.library import check, optional_library
from pcseg_core.native.structures import CostArgs, PartArgs

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PEOPLE, TWO_WHEELERS, VEHICLES = range(3)
"""Groups of classes that are taken for each other: parts of a thing may have labels of two."""

GROUPS = {
    PEOPLE: ("person", "pedestrian"),
    TWO_WHEELERS: ("bicycle", "motorcycle", "rider", "bicyclist", "cyclist", "motorcyclist"),
    VEHICLES: (
        *("vehicle", "car", "truck", "bus", "van", "trailer", "other-vehicle", "train"),
        "construction_vehicle",
    ),
}

# Largest length and width of one thing [m], from a height on. People are small: parts of one are
# not apart, and two who touch are no larger than one who strides.
_LARGEST = {TWO_WHEELERS: ((0.0, 2.4, 1.1),), VEHICLES: ((0.0, 5.4, 2.4), (2.6, 13.0, 3.2))}
_LIMITS = np.array([(group, *one) for group, every in _LARGEST.items() for one in every])
BEHIND_M = 1.3  # between parts of which one is behind the other: windshield behind bonnet
_BESIDE_M = 0.5  # between others
_LOW_M = 1.2  # height of bicycles
_LONG_M = 1.1  # least length of a bicycle
_STEP_M = 0.3  # between the lower ends of parts of a car that are as low
_MOST_PAIRS = 200  # of clusters that are compared: the labels of a bad network have many
_THIN_M = 0.2  # least extent of a box that points are compared with
_TIE_M = 0.05  # how far beyond a box a point may be to be in it rather than at the edge of another
_ENDS_X, _ENDS_Y = np.array([[-0.5, 0.5, 0.5, -0.5], [-0.5, -0.5, 0.5, 0.5]])  # of a unit box
_QUARTER = np.array([[0.0, -1.0], [1.0, 0.0]])  # turns rows by a right angle
_BEHIND_SHARE = 0.5  # of the smaller angle in which both are seen


@dataclass(frozen=True)
class Rectangles:
    """Boxes from above.

    Attributes:
        center: (K, 2) fixed frame [m].
        yaw: (K,) heading [rad].
        size: (K, 2) along the heading, and across it [m].
        bottom, top: (K,) heights [m].
        groups: (K,) group of classes.
    """

    center: Float64
    yaw: Float64
    size: Float64
    bottom: Float64
    top: Float64
    groups: Array

    def __len__(self) -> int:
        return len(self.yaw)

    def rows(self, chosen: Array | list[int]) -> Rectangles:
        """Some of the boxes."""
        parts = self.center, self.yaw, self.size, self.bottom, self.top, self.groups
        return Rectangles(*(part[chosen] for part in parts))

    def and_(self, others: Rectangles) -> Rectangles:
        """These, followed by others."""
        return Rectangles(
            np.concatenate([self.center, others.center]),
            np.concatenate([self.yaw, others.yaw]),
            np.concatenate([self.size, others.size]),
            np.concatenate([self.bottom, others.bottom]),
            np.concatenate([self.top, others.top]),
            np.concatenate([self.groups, others.groups]),
        )

    @cached_property
    def table(self) -> Float64:
        """(K, 7) center, heading, its cosine and sine, and extents, for the native library."""
        found = np.empty((len(self), 7))
        found[:, :2], found[:, 2], found[:, 5:] = self.center, self.yaw, self.size
        found[:, 3], found[:, 4] = np.cos(self.yaw), np.sin(self.yaw)
        return found

    @cached_property
    def corners(self) -> Float64:
        """(K, 4, 2) fixed frame."""
        x, y = _ENDS_X * self.size[:, :1], _ENDS_Y * self.size[:, 1:]
        cos, sin = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        found = np.empty((len(self), 4, 2))
        found[..., 0] = x * cos - y * sin + self.center[:, :1]
        found[..., 1] = x * sin + y * cos + self.center[:, 1:]
        return found

    def _from_center(self, points: Array) -> tuple[Float64, Float64]:
        """Distance (K, M) of points (M, 2 or 3) from the centers, along and across boxes [m]."""
        x = points[:, 0] - self.center[:, :1]
        y = points[:, 1] - self.center[:, 1:]
        cos, sin = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        return np.abs(x * cos + y * sin), np.abs(y * cos - x * sin)

    def outside(self, points: Array) -> Float64:
        """Distance (K, M) of points (M, 2 or 3) from the boxes, negative inside [m]."""
        library = optional_library()
        if library is not None:
            points = np.ascontiguousarray(points, np.float64)
            found = np.empty((len(self), len(points)))
            own, (count, columns) = self.table, points.shape
            sizes = points.ctypes.data, count, columns
            check(library.pcseg_outside(own.ctypes.data, len(own), *sizes, found.ctypes.data))
            return found
        along, across = self._from_center(points)
        along -= self.size[:, :1] / 2
        across -= self.size[:, 1:] / 2
        distance: Float64 = np.maximum(along, across, out=along)
        return distance

    def nearest(self, points: Array) -> npt.NDArray[np.int64]:
        """The box (M,) that each point is in; of several, relative to their sizes, the nearest."""
        library = optional_library()
        if library is not None and len(self):
            points = np.ascontiguousarray(points, np.float64)
            owner = np.empty(len(points), np.int64)
            own, (count, columns) = self.table, points.shape
            sizes = points.ctypes.data, count, columns, _THIN_M, _TIE_M
            check(library.pcseg_nearest_box(own.ctypes.data, len(own), *sizes, owner.ctypes.data))
            return owner
        half = np.maximum(self.size, _THIN_M)[:, None] / 2
        along, across = self._from_center(points)
        beyond = np.maximum(np.maximum(along - half[..., 0], across - half[..., 1]), 0)
        relative = np.hypot(along / half[..., 0], across / half[..., 1])
        found: npt.NDArray[np.int64] = (beyond + _TIE_M * relative).argmin(0)
        return found


def apart(boxes: Rectangles, others: Rectangles) -> tuple[Float64, Float64]:
    """Distances (2, T, I) of centers, and extents of the others, along and across the boxes [m]."""
    library = optional_library()
    if library is not None:
        one, two = boxes.table, others.table
        distance, size = np.empty((2, 2, len(one), len(two)))
        tables = one.ctypes.data, len(one), two.ctypes.data, len(two)
        check(library.pcseg_apart(*tables, distance.ctypes.data, size.ctypes.data))
        return distance, size
    turned = others.yaw - boxes.yaw[:, None]
    along, across = np.abs(np.cos(turned)), np.abs(np.sin(turned))
    x, y = np.moveaxis(others.center - boxes.center[:, None], -1, 0)
    cos, sin = np.cos(boxes.yaw)[:, None], np.sin(boxes.yaw)[:, None]
    length, width = others.size.T
    distance = np.abs(np.stack([x * cos + y * sin, y * cos - x * sin]))
    return distance, np.stack([along * length + across * width, across * length + along * width])


def native_costs(
    tracks: Rectangles, things: Rectangles, variance: Float64, settings: tuple[float, float, float]
) -> Float64 | None:
    """Squared normalized distance (T, I) of things from tracks; None without the native library.

    Args:
        tracks, things: their boxes.
        variance: (T,) of the position of each track, and of a measured edge [m^2].
        settings: excess, most excess and middle of `track_filter`.
    """
    library = optional_library()
    if library is None:
        return None
    cost = np.empty((len(tracks), len(things)))
    arrays = (array.ctypes.data for array in (tracks.table, things.table, variance, cost))
    args = CostArgs(*arrays, *cost.shape, *settings)
    check(library.pcseg_track_costs(byref(args)))
    return cost


def is_one(boxes: Rectangles, chosen: Array) -> bool:
    """Boxes (rows) of one group are together not larger than one thing of that group."""
    limits = _LARGEST.get(int(boxes.groups[chosen[0]]), ())
    bottom, top = boxes.bottom[chosen].tolist(), boxes.top[chosen].tolist()
    height = max(top) - min(bottom)
    if height < _LOW_M and _side_by_side(boxes.size[chosen].tolist(), bottom):
        return False
    # Extents of all corners along the axes of each box.
    corners, axes = boxes.corners[chosen].reshape(-1, 2), boxes.table[chosen, 3:5]
    along, across = axes @ corners.T, axes @ (corners @ _QUARTER).T
    lengths = (along.max(1) - along.min(1)).tolist(), (across.max(1) - across.min(1)).tolist()
    return any(
        height >= least and any(max(two) <= most and min(two) <= wide for two in zip(*lengths))
        for least, most, wide in limits
    )


def is_vehicle(groups: Array, size: Float64) -> Mask:
    """Boxes (K,) of extents (K, 3) that are those of one car, bus or truck, or smaller.

    Lower ones can be several bicycles.
    """
    found: Mask = is_no_larger(size) & (size[:, 2] >= _LOW_M) & (groups == VEHICLES)
    return found


def is_no_larger(size: Float64) -> Mask:
    """Extents (K, 3) that are no larger than those of one car, bus or truck."""
    (width, length), height = np.sort(size[:, :2], axis=1).T, size[:, 2]
    one = np.zeros(len(size), bool)
    for least, most, wide in _LARGEST[VEHICLES]:
        one |= (height >= least) & (length <= most) & (width <= wide)
    return one


def join_parts(boxes: Rectangles, sensor: Array) -> npt.NDArray[np.int64]:
    """Number (K,) of the thing that each cluster is a part of.

    The parts of a vehicle are apart where beams graze it, pass its windows, or are blocked.
    Clusters are joined if they are near each other and together not larger than one thing.
    """
    library = optional_library()
    if library is not None:
        return _native_join(library, boxes, sensor)
    things = np.arange(len(boxes))
    gap = gaps(boxes, boxes)
    possible = np.triu((gap < BEHIND_M) & (boxes.groups[:, None] == boxes.groups), 1)
    if not possible.any():
        return things
    near = np.where(_one_behind_other(boxes, sensor), BEHIND_M, _BESIDE_M)
    pairs = np.argwhere(possible & (gap < near))
    for one, two in pairs[np.argsort(gap[tuple(pairs.T)], kind="stable")][:_MOST_PAIRS]:
        if things[one] != things[two]:
            both = np.flatnonzero((things == things[one]) | (things == things[two]))
            if is_one(boxes, both):
                things[both] = things[one]
    numbers: npt.NDArray[np.int64] = np.unique(things, return_inverse=True)[1]
    return numbers


def _native_join(library: Any, boxes: Rectangles, sensor: Array) -> npt.NDArray[np.int64]:
    numbers = np.empty(len(boxes), np.int64)
    groups = np.ascontiguousarray(boxes.groups, np.int64)
    heights = (np.ascontiguousarray(height, np.float64) for height in (boxes.bottom, boxes.top))
    arrays = boxes.table, *heights, groups, _LIMITS, numbers
    args = PartArgs(
        *(array.ctypes.data for array in arrays),
        *(len(boxes), len(_LIMITS), _MOST_PAIRS, (c_double * 2)(*sensor[:2].tolist())),
        *(BEHIND_M, _BESIDE_M, _BEHIND_SHARE, _LOW_M, _LONG_M, _STEP_M),
    )
    check(library.pcseg_join_parts(byref(args)))
    return numbers


def _side_by_side(sizes: list[list[float]], bottoms: list[float]) -> bool:
    """Low boxes that begin at one height: bicycles, rather than a bonnet and a windshield."""
    long = [bottom for size, bottom in zip(sizes, bottoms) if max(size) > _LONG_M]
    return len(long) > 1 and max(long) - min(long) < _STEP_M


def gaps(boxes: Rectangles, others: Rectangles) -> Float64:
    """Distance (K, L) between boxes and others, by the corners of both [m]."""
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    one = boxes.outside(others.corners.reshape(-1, 2)).reshape(len(boxes), -1, 4)
    two = others.outside(boxes.corners.reshape(-1, 2)).reshape(len(others), -1, 4)
    nearer: Float64 = np.minimum(one.min(2), two.min(2).T)
    return nearer


def _one_behind_other(boxes: Rectangles, sensor: Array) -> Mask:
    """(K, K) bool: a large part of the angle of one, seen from the sensor, is that of the other."""
    rays = boxes.corners - sensor[:2]
    middle = boxes.center - sensor[:2]
    facing = np.arctan2(middle[:, 1], middle[:, 0])
    spread = np.arctan2(rays[..., 1], rays[..., 0]) - facing[:, None]
    spread = (spread + np.pi) % (2 * np.pi) - np.pi
    low, high = spread.min(1), spread.max(1)
    turn = (facing - facing[:, None] + np.pi) % (2 * np.pi) - np.pi
    common = np.minimum(high[:, None], turn + high) - np.maximum(low[:, None], turn + low)
    smaller = np.minimum((high - low)[:, None], high - low)
    return np.asarray(common >= _BEHIND_SHARE * smaller)
