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
from pcseg_core.native.structures import CostArgs, PartArgs, address

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

GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
"""The group of each of these classes."""

# Largest length and width of one thing [m], from a height on. People are small: parts of one are
# not apart, and two who touch are no larger than one who strides.
_LARGEST = {TWO_WHEELERS: ((0.0, 2.4, 1.1),), VEHICLES: ((0.0, 5.4, 2.4), (2.6, 13.0, 3.2))}
_LIMITS = np.array([(group, *one) for group, every in _LARGEST.items() for one in every])
BEHIND_M = 1.3  # between parts of which one is behind the other: windshield behind bonnet
_FACES_M = 1.8  # between faces of a vehicle: bumper and windshield
_BESIDE_M = 0.5  # between others
_LOW_M = 1.2  # height of bicycles
_LONG_M = 1.1  # least length of a bicycle, and width of a face
_STEP_M = 0.3  # between the lower ends of parts of a car that are as low
_MOST_PAIRS = 200  # of clusters that are compared: the labels of a bad network have many
_THIN_M = 0.2  # least extent of a box that points are compared with
_THIN_SIDE_M = 0.4  # the same of boxes that overlap
_TIE_M = 0.05  # how far beyond a box a point may be to be in it rather than at the edge of another
_ENDS_X, _ENDS_Y = np.array([[-0.5, 0.5, 0.5, -0.5], [-0.5, -0.5, 0.5, 0.5]])  # of a unit box
_QUARTER = np.array([[0.0, -1.0], [1.0, 0.0]])  # turns rows by a right angle
_BEHIND_SHARE = 0.5  # of the smaller angle in which both are seen
_FACES_SHARE = 0.6  # of the larger one
_RISE_M = 0.1  # of the middle of a face to that of the one behind it; bicycles are alike


@dataclass(frozen=True)
class Rectangles:
    """Boxes from above.

    Attributes:
        table: (K, 9) center in the fixed frame [m], heading [rad], its cosine and sine, extents
            along the heading and across it, and heights of the bottom and the top [m].
        groups: (K,) int64 group of classes.
    """

    table: Float64
    groups: Array

    @classmethod
    def of(
        cls, center: Array, yaw: Array, size: Array, bottom: Array, top: Array, groups: Array
    ) -> Rectangles:
        """Boxes with centers (K, 2), headings (K,), extents (K, 2) and heights (K,)."""
        table = np.empty((len(yaw), 9))
        table[:, :2], table[:, 2], table[:, 5:7] = center, yaw, size
        np.cos(yaw, out=table[:, 3])
        np.sin(yaw, out=table[:, 4])
        table[:, 7], table[:, 8] = bottom, top
        return cls(table, np.ascontiguousarray(groups, np.int64))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def center(self) -> Float64:
        """(K, 2) fixed frame [m]."""
        return self.table[:, :2]

    @property
    def yaw(self) -> Float64:
        """(K,) heading [rad]."""
        return self.table[:, 2]

    @property
    def size(self) -> Float64:
        """(K, 2) along the heading, and across it [m]."""
        return self.table[:, 5:7]

    @property
    def bottom(self) -> Float64:
        """(K,) height [m]."""
        return self.table[:, 7]

    @property
    def top(self) -> Float64:
        """(K,) height [m]."""
        return self.table[:, 8]

    def rows(self, chosen: Array | list[int]) -> Rectangles:
        """Some of the boxes."""
        return Rectangles(self.table.take(chosen, 0), self.groups.take(chosen))

    def and_(self, others: Rectangles) -> Rectangles:
        """These, followed by others."""
        tables, groups = (self.table, others.table), (self.groups, others.groups)
        return Rectangles(np.concatenate(tables), np.concatenate(groups))

    def wider(self, margin_m: float) -> Rectangles:
        """The boxes with a margin around them."""
        table = self.table.copy()
        table[:, 5:7] += 2 * margin_m
        return Rectangles(table, self.groups)

    @cached_property
    def corners(self) -> Float64:
        """(K, 4, 2) fixed frame."""
        x, y = _ENDS_X * self.size[:, :1], _ENDS_Y * self.size[:, 1:]
        cos, sin = self.table[:, 3:4], self.table[:, 4:5]
        found = np.empty((len(self), 4, 2))
        found[..., 0] = x * cos - y * sin + self.center[:, :1]
        found[..., 1] = x * sin + y * cos + self.center[:, 1:]
        return found

    @property
    def _listed(self) -> tuple[int, int]:
        """For the native library."""
        return address(self.table), len(self)

    def _from_center(self, points: Array) -> tuple[Float64, Float64]:
        """Distance (K, M) of points (M, 2 or 3) from the centers, along and across boxes [m]."""
        x = points[:, 0] - self.center[:, :1]
        y = points[:, 1] - self.center[:, 1:]
        cos, sin = self.table[:, 3:4], self.table[:, 4:5]
        return np.abs(x * cos + y * sin), np.abs(y * cos - x * sin)

    def outside(self, points: Array) -> Float64:
        """Distance (K, M) of points (M, 2 or 3) from the boxes, negative inside [m]."""
        library = optional_library()
        if library is not None:
            points = np.ascontiguousarray(points, np.float64)
            found = np.empty((len(self), len(points)))
            sizes = points.ctypes.data, *points.shape
            check(library.pcseg_outside(*self._listed, *sizes, address(found)))
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
            sizes = points.ctypes.data, *points.shape, _THIN_M, _TIE_M
            check(library.pcseg_nearest_box(*self._listed, *sizes, address(owner)))
            return owner
        half = np.maximum(self.size, _THIN_M)[:, None] / 2
        along, across = self._from_center(points)
        beyond = np.maximum(np.maximum(along - half[..., 0], across - half[..., 1]), 0)
        relative = np.hypot(along / half[..., 0], across / half[..., 1])
        found: npt.NDArray[np.int64] = (beyond + _TIE_M * relative).argmin(0)
        return found


def _apart(boxes: Rectangles, others: Rectangles) -> tuple[Float64, Float64]:
    """Distances (2, T, I) of centers, and extents of the others, along and across the boxes [m]."""
    turned = others.yaw - boxes.yaw[:, None]
    along, across = np.abs(np.cos(turned)), np.abs(np.sin(turned))
    x, y = np.moveaxis(others.center - boxes.center[:, None], -1, 0)
    cos, sin = boxes.table[:, 3:4], boxes.table[:, 4:5]
    length, width = others.size.T
    distance = np.abs(np.stack([x * cos + y * sin, y * cos - x * sin]))
    return distance, np.stack([along * length + across * width, across * length + along * width])


def overlap(boxes: Rectangles, others: Rectangles, of_others: bool = False) -> Float64:
    """Share (T, I) of the smaller one, of boxes and others, or of the others, that is in both.

    Along and across the boxes. Thin ones are taken for thicker ones: only one side of many things
    is seen.
    """
    library = optional_library()
    if library is not None:
        share = np.empty((len(boxes), len(others)))
        settings = _THIN_SIDE_M, of_others, address(share)
        check(library.pcseg_overlap(*boxes._listed, *others._listed, *settings))
        return share
    distance, size = _apart(boxes, others)
    own, size = (np.maximum(extents, _THIN_SIDE_M) for extents in (boxes.size.T[..., None], size))
    smaller = np.minimum(own, size)
    common = np.maximum(np.minimum((own + size) / 2 - distance, smaller), 0.0)
    return np.asarray((common / (size if of_others else smaller)).prod(0))


def beside(boxes: Rectangles, others: Rectangles, margin_m: float) -> Mask:
    """(T, I) bool: a part of the other, of the same group, can be in a box, or beside it."""
    library = optional_library()
    if library is not None:
        found = np.empty((len(boxes), len(others)), bool)
        check(library.pcseg_beside(*boxes._listed, *others._listed, margin_m, address(found)))
    else:
        distance, size = _apart(boxes, others)
        found = (distance <= (boxes.size.T[..., None] + size) / 2 + margin_m).all(0)
    found &= boxes.groups[:, None] == others.groups
    return found


def native_costs(
    tracks: Rectangles, things: Rectangles, variance: Float64, settings: tuple[float, ...]
) -> Float64 | None:
    """Squared normalized distance (T, I) of things from tracks; None without the native library.

    Infinite beyond the gate.

    Args:
        tracks, things: their boxes.
        variance: (T,) of the position of each track, and of a measured edge [m^2].
        settings: excess, most excess, middle and gate of `track_filter`.
    """
    library = optional_library()
    if library is None:
        return None
    cost = np.empty((len(tracks), len(things)))
    arrays = map(address, (tracks.table, things.table, variance, cost))
    args = CostArgs(*arrays, *cost.shape, *settings)
    check(library.pcseg_track_costs(byref(args)))
    return cost


def is_one(boxes: Rectangles, chosen: Array, solid: bool = False) -> bool:
    """Boxes (rows) of one group are together not larger than one thing of that group.

    Low ones that are not known to be solid can be bicycles.
    """
    limits = _LARGEST.get(int(boxes.groups[chosen[0]]), ())
    bottom, top = boxes.bottom[chosen].tolist(), boxes.top[chosen].tolist()
    height = max(top) - min(bottom)
    if not solid and height < _LOW_M and _side_by_side(boxes.size[chosen].tolist(), bottom):
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
    along, across, height = size.T
    length, width = np.maximum(along, across), np.minimum(along, across)
    one = np.zeros(len(size), bool)
    for least, most, wide in _LARGEST[VEHICLES]:
        one |= (height >= least) & (length <= most) & (width <= wide)
    return one


def join_parts(boxes: Rectangles, sensor: Array) -> npt.NDArray[np.int64]:
    """Number (K,) of the thing that each cluster is a part of.

    The parts of a vehicle are apart where beams graze it, pass its windows, or are blocked.
    Clusters are joined if they are near each other and together not larger than one thing. The
    faces of a vehicle, each as wide as it, rise from the nearest one on.
    """
    library = optional_library()
    if library is not None:
        return _native_join(library, boxes, sensor)
    things = np.arange(len(boxes))
    gap = gaps(boxes, boxes, _FACES_M)
    possible = np.triu((gap < _FACES_M) & (boxes.groups[:, None] == boxes.groups), 1)
    if not possible.any():
        return things
    behind, faces = _seen_together(boxes, sensor)
    near = np.select([faces, behind], [_FACES_M, BEHIND_M], _BESIDE_M)
    solid = faces & (_rise(boxes, sensor) > _RISE_M)
    pairs = np.argwhere(possible & (gap < near))
    for one, two in pairs[np.argsort(gap[tuple(pairs.T)], kind="stable")][:_MOST_PAIRS]:
        if things[one] != things[two]:
            both = np.flatnonzero((things == things[one]) | (things == things[two]))
            if is_one(boxes, both, solid[one, two]):
                things[both] = things[one]
    numbers: npt.NDArray[np.int64] = np.unique(things, return_inverse=True)[1]
    return numbers


def _native_join(library: Any, boxes: Rectangles, sensor: Array) -> npt.NDArray[np.int64]:
    numbers = np.empty(len(boxes), np.int64)
    args = PartArgs(
        *map(address, (boxes.table, boxes.groups, _LIMITS, numbers)),
        *(len(boxes), len(_LIMITS), _MOST_PAIRS, (c_double * 2)(*sensor[:2].tolist())),
        *(BEHIND_M, _BESIDE_M, _BEHIND_SHARE, _LOW_M, _LONG_M, _STEP_M),
        *(VEHICLES, _FACES_M, _FACES_SHARE, _RISE_M),
    )
    check(library.pcseg_join_parts(byref(args)))
    return numbers


def _side_by_side(sizes: list[list[float]], bottoms: list[float]) -> bool:
    """Low boxes that begin at one height: bicycles, rather than a bonnet and a windshield."""
    long = [bottom for size, bottom in zip(sizes, bottoms) if max(size) > _LONG_M]
    return len(long) > 1 and max(long) - min(long) < _STEP_M


def gaps(boxes: Rectangles, others: Rectangles, most_m: float) -> Float64:
    """Distance (K, L) between boxes and others, by the corners of both; infinite from a most on."""
    gap = np.empty((len(boxes), len(others)))
    library = optional_library()
    if library is not None:
        check(library.pcseg_gaps(*boxes._listed, *others._listed, most_m, address(gap)))
    elif gap.size:
        one = boxes.outside(others.corners.reshape(-1, 2)).reshape(len(boxes), -1, 4)
        two = others.outside(boxes.corners.reshape(-1, 2)).reshape(len(others), -1, 4)
        np.minimum(one.min(2), two.min(2).T, out=gap)
        gap[gap >= most_m] = np.inf
    return gap


def _seen_together(boxes: Rectangles, sensor: Array) -> tuple[Mask, Mask]:
    """(K, K) bool: a large part of the angle of one, seen from the sensor, is that of the other.

    And of both, which are faces of a vehicle by their widths.
    """
    rays = boxes.corners - sensor[:2]
    middle = boxes.center - sensor[:2]
    facing = np.arctan2(middle[:, 1], middle[:, 0])
    spread = np.arctan2(rays[..., 1], rays[..., 0]) - facing[:, None]
    spread = (spread + np.pi) % (2 * np.pi) - np.pi
    low, high = spread.min(1), spread.max(1)
    turn = (facing - facing[:, None] + np.pi) % (2 * np.pi) - np.pi
    common = np.minimum(high[:, None], turn + high) - np.maximum(low[:, None], turn + low)
    angle = high - low
    behind = common >= _BEHIND_SHARE * np.minimum(angle[:, None], angle)
    face = (boxes.size.max(1) > _LONG_M) & (boxes.groups == VEHICLES)
    alike = common >= _FACES_SHARE * np.maximum(angle[:, None], angle)
    return behind, alike & face & face[:, None]


def _rise(boxes: Rectangles, sensor: Array) -> Float64:
    """(K, K) by which the middle of the box that is farther from the sensor is higher [m]."""
    x, y = (boxes.center - sensor[:2]).T
    away, middle = np.hypot(x, y), (boxes.bottom + boxes.top) / 2
    higher = middle - middle[:, None]
    return np.where(away > away[:, None], higher, -higher)
