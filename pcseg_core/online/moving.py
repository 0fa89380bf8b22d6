# SPDX-License-Identifier: Apache-2.0
"""What moves: instances of things against the free space of sweeps before, or after, theirs.

An instance moves if it has points at places that were seen free and that no thing covered (it has
come), or if a thing of another sweep, whose place is seen free now, was right beside it (it has
gone on). What stays covers the places that it covered before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from ctypes import byref, c_float
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import invert
from pcseg_core.labels import IGNORE, MOVING, STATIC, UNKNOWN, LabelSpace
from pcseg_core.native.library import check, optional_library
from pcseg_core.native.structures import Points, Seen
from pcseg_core.online.free_space import FreeSpace
from pcseg_core.online.instances import Instances, find_instances, point_values

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Item = TypeVar("Item")

THINGS = frozenset(
    (
        *("vehicle", "car", "truck", "bus", "van", "trailer", "other-vehicle", "train"),
        *("construction_vehicle", "bicycle", "motorcycle", "rider", "bicyclist", "cyclist"),
        *("motorcyclist", "person", "pedestrian", "animal"),
    )
)
"""Names of the classes of which instances can move; all others are taken for static."""

SPACING_S = 0.09
"""Least time between the sweeps that are compared."""
NEIGHBORS = 5
"""Number of sweeps before, or after, that a sweep is compared with."""

_MARGIN_M = 0.4  # by which beams must reach beyond a place that they passed
_SWEEPS_FREE = 0.4  # share of the sweeps that must have seen the place of a point free, at least 2
_SHARE_NEW = 0.05  # of such points, where no thing was before, of an instance that has come,
_LEAST_NEW = 3  # and number of them
_SHARE_GONE = 0.4  # of the points of an instance that has gone on
_NEXT_S = 0.25  # to the sweeps in which what has gone on is looked for
_NEXT_CELL_M = 2.0  # in a neighboring cell of which it is found
_SAME_CELL_M = 0.15  # the same for points of an instance that stays
_SHARE_SAME = 0.5
_STAY_S = 0.24  # least time in which what moves leaves its place
_MOST_POINTS = 3000  # of all things of a sweep that are compared
_GAP_S = 1.0  # between sweeps: with more, or a step back, the comparison starts anew
_JUMP_MPS = 70.0
_ROW = 1 << 24  # cells along y
_AROUND = np.add.outer(np.array([-_ROW, 0, _ROW]), np.array([-1, 0, 1])).ravel()


@dataclass(frozen=True)
class Things:
    """The instances of things of a sweep, and what its beams passed.

    Attributes:
        points: (3, M) float32 points of instances, thinned, LiDAR frame [m].
        ids: (M,) instance of each, from 1.
        size: (I + 1,) number of the points of each, at least 1.
        free: free space of the sweep.
        pose: (4, 4) T_world_lidar.
        stamp_ns: of the sweep.
    """

    points: Float32
    ids: npt.NDArray[np.int64]
    size: Array
    free: FreeSpace
    pose: Array
    stamp_ns: int

    @classmethod
    def of(
        cls, cloud: PointCloud, instances: Instances, pose: Array, free: FreeSpace | None = None
    ) -> Things:
        """Those of a cloud with its instances, and with its free space if that is known."""
        step = max(1, -(-len(instances.rows) // _MOST_POINTS))
        rows, ids = instances.rows[::step], instances.ids[::step].astype(np.int64)
        size = np.maximum(np.bincount(ids, minlength=instances.count + 1), 1)
        points = np.array([axis[rows] for axis in cloud.xyz.T], np.float32)
        return cls(points, ids, size, free or FreeSpace.of(cloud), pose, cloud.stamp_ns)

    def count(self, chosen: Array) -> Array:
        """(I + 1,) points of each instance that are chosen, a mask (M,)."""
        return np.bincount(self.ids[chosen], minlength=len(self.size))

    @cached_property
    def T_lidar_world(self) -> Array:
        """(4, 4) inverse of the pose."""
        return invert(self.pose)

    def share(self, chosen: Array) -> Array:
        """(I + 1,) share of the points of each instance that are chosen, a mask (M,)."""
        result: Array = self.count(chosen) / self.size
        return result

    def seen_from(self, other: Things) -> Float32:
        """(3, M) the points in the LiDAR frame of another sweep."""
        return moved(other.T_lidar_world @ self.pose, self.points)


def moved(T: Array, points: Float32) -> Float32:
    """Points (3, M) in another frame, by the pose (4, 4) of theirs in it."""
    single = T.astype(np.float32)
    found: Float32 = single[:3, :3] @ points
    found += single[:3, 3:]
    return found


def instances_of(cloud: PointCloud, labels: Array, space: LabelSpace) -> Instances:
    """The instances of `THINGS`, each of one class."""
    group, classes = np.full(len(space), -1), movable(space)
    group[classes] = classes
    return find_instances(cloud.xyz, labels, group)


def movable(space: LabelSpace) -> list[int]:
    """Ids of the classes of which instances can move."""
    return [number for number, name in enumerate(space.names) if name in THINGS]


def compare(now: Things, *sides: Sequence[Things]) -> UInt8:
    """(I + 1,) UNKNOWN, STATIC or MOVING for each instance of a sweep; UNKNOWN for 0.

    Args:
        now: the sweep.
        sides: sweeps before it, and sweeps after it. An instance moves if one side tells that it
            has come, or that it has gone on and none that it stays; it is static if one tells
            that it stays and it does not move.
    """
    come, gone, stays = np.zeros((3, len(now.size)), bool)
    for others in sides:
        if not len(now.ids) or not others:
            continue
        free = _times_passed(now, others)
        farthest = max(others, key=lambda other: _apart_s(now, other))
        same = near(now.points, farthest.seen_from(now), _SAME_CELL_M)
        # Beams pass the parts of a bicycle that stands: its points are free, but not new.
        new = ~same & (free >= max(2, _SWEEPS_FREE * len(others)))
        come |= now.count(new) >= np.maximum(_LEAST_NEW, _SHARE_NEW * now.size)
        if _apart_s(now, farthest) >= _STAY_S:
            stays |= now.share(same) >= _SHARE_SAME
        for other in others:
            if _apart_s(now, other) <= _NEXT_S:
                gone |= _gone_on(now, other)
    verdict = np.full(len(now.size), UNKNOWN, np.uint8)
    verdict[stays] = STATIC
    verdict[come | (gone & ~stays)] = MOVING
    verdict[0] = UNKNOWN
    return verdict


def _apart_s(one: Things, other: Things) -> float:
    return 1e-9 * abs(one.stamp_ns - other.stamp_ns)


def _times_passed(now: Things, others: Sequence[Things]) -> npt.NDArray[np.int32]:
    """(M,) number of other sweeps whose beams passed the place of each point."""
    library = optional_library()
    counts = np.zeros(len(now.ids), np.int32)
    if library is None:
        for other in others:
            counts += other.free.passed(now.seen_from(other), _MARGIN_M)
        return counts
    T_other_now = np.array([other.T_lidar_world for other in others]) @ now.pose
    poses = T_other_now[:, :3].reshape(-1, 12).tolist()
    views = [other.free.views(_MARGIN_M) for other in others]
    listed = [Seen(free, (c_float * 12)(*T)) for free, T in zip(views, poses)]
    seen = (Seen * len(others))(*listed)
    points = Points.of(now.points.T)
    check(library.pcseg_times_passed(seen, len(seen), byref(points), counts.ctypes.data))
    return counts


def _gone_on(now: Things, other: Things) -> npt.NDArray[np.bool_]:
    """(I + 1,) bool: near a thing of another sweep whose place is seen free, and not staying."""
    there = other.seen_from(now)
    gone = other.share(now.free.passed(there, _MARGIN_M)) >= _SHARE_GONE
    left = gone[other.ids]
    if not left.any():
        return np.zeros(len(now.size), bool)
    beside = now.share(near(now.points, there[:, left], _NEXT_CELL_M)) > 0
    found: npt.NDArray[np.bool_] = beside & (_stays(now, there) < _SHARE_SAME)
    return found


def _stays(now: Things, there: Float32) -> Array:
    """(I + 1,) share of the points of each instance beside a thing of another sweep."""
    return now.share(near(now.points, there, _SAME_CELL_M))


def near(points: Float32, others: Float32, cell_m: float) -> npt.NDArray[np.bool_]:
    """(M,) bool: one of the other points is in the same cell of the ground plane, or beside it."""
    library = optional_library()
    if library is not None:
        found = np.empty(points.shape[1], bool)
        structures = [byref(Points.of(part.T)) for part in (points, others)]
        check(library.pcseg_near(*structures, cell_m, found.ctypes.data))
        return found
    around = (_AROUND + np.unique(cells(others, cell_m))[:, None]).ravel()
    return np.isin(cells(points, cell_m), around)


def cells(points: Float32, cell_m: float) -> npt.NDArray[np.int64]:
    """(M,) number of the cell of the ground plane that each point (3, M) is in."""
    cell = np.floor(points[:2] / np.float32(cell_m)).astype(np.int64)
    keys: npt.NDArray[np.int64] = cell[0] * _ROW + cell[1]
    return keys


class MovingThings:
    """Finds what moves in sweeps one by one."""

    def __init__(self) -> None:
        self._before: deque[Things] = deque(maxlen=NEIGHBORS)

    def reset(self) -> None:
        """Forget earlier sweeps."""
        self._before.clear()

    def update(
        self,
        cloud: PointCloud,
        labels: Array,
        space: LabelSpace,
        pose: Array,
        free: FreeSpace | None = None,
    ) -> UInt8:
        """Add a sweep.

        Args:
            cloud: deskewed, LiDAR frame.
            labels: (N,) class ids, IGNORE for none.
            space: their meaning.
            pose: (4, 4) T_world_lidar in a frame without jumps.
            free: free space of the sweep, if it is known.

        Returns:
            (N,) UNKNOWN, STATIC or MOVING; see `field_of`.
        """
        instances = instances_of(cloud, labels, space)
        now = Things.of(cloud, instances, pose, free)
        if self._before and _jumped(self._before[-1], now):
            self.reset()
        verdict = compare(now, self._before)
        if not self._before or now.stamp_ns - self._before[-1].stamp_ns >= SPACING_S * 1e9:
            self._before.append(now)
        return field_of(labels, space, instances, verdict)


@dataclass(frozen=True)
class Placed:
    """A labeled sweep and its pose.

    Attributes:
        cloud: deskewed, LiDAR frame.
        labels: (N,) class ids, IGNORE for none.
        space: their meaning.
        pose: (4, 4) T_world_lidar; None if it is unknown.
        scene: sweeps of one scene share the world frame.
    """

    cloud: PointCloud
    labels: Array
    space: LabelSpace
    pose: Array | None
    scene: str = ""


def with_moving(sweeps: Iterable[tuple[Item, Placed]]) -> Iterator[tuple[Item, UInt8]]:
    """Each item with the field `moving` of its sweep, from sweeps before and after it.

    Args:
        sweeps: items and their sweeps in the order of time; a few are held in memory.
    """
    window: deque[_Waiting[Item]] = deque()
    begun = 0  # position in the window of the first item that was not given out
    for item, sweep in sweeps:
        waiting = _Waiting.of(item, sweep)
        if window and not waiting.follows(window[-1]):
            yield from (one.judged(window) for one in list(window)[begun:])
            window.clear()
            begun = 0
        window.append(waiting)
        if len(window) - begun > NEIGHBORS:
            yield window[begun].judged(window)
            begun += 1
        if begun > NEIGHBORS:
            window.popleft()
            begun -= 1
    yield from (one.judged(window) for one in list(window)[begun:])


@dataclass(frozen=True)
class _Waiting(Generic[Item]):
    """An item whose following sweeps are awaited."""

    item: Item
    sweep: Placed
    instances: Instances
    things: Things | None

    @classmethod
    def of(cls, item: Item, sweep: Placed) -> _Waiting[Item]:
        instances = instances_of(sweep.cloud, sweep.labels, sweep.space)
        pose = sweep.pose
        things = None if pose is None else Things.of(sweep.cloud, instances, pose)
        return cls(item, sweep, instances, things)

    def follows(self, before: _Waiting[Item]) -> bool:
        if self.things is None or before.things is None or self.sweep.scene != before.sweep.scene:
            return False
        return not _jumped(before.things, self.things)

    def judged(self, window: Iterable[_Waiting[Item]]) -> tuple[Item, UInt8]:
        if self.things is None:
            return self.item, np.full(len(self.sweep.labels), UNKNOWN, np.uint8)
        known = [other.things for other in window if other.things is not None]
        at = next(k for k, things in enumerate(known) if things is self.things)
        verdict = compare(self.things, known[:at], known[at + 1 :])
        return self.item, field_of(self.sweep.labels, self.sweep.space, self.instances, verdict)


def field_of(labels: Array, space: LabelSpace, instances: Instances, verdict: UInt8) -> UInt8:
    """(N,) the value of each point from the verdict on its instance, and its class.

    Points of classes other than `THINGS` are static. Without such classes all is unknown.
    """
    things = movable(space)
    by_class = np.full(len(space) + 1, STATIC if things else UNKNOWN, np.uint8)
    by_class[[IGNORE, *things]] = UNKNOWN
    values = point_values(labels, by_class)
    values[instances.rows] = verdict.take(instances.ids)
    return values


def _jumped(before: Things, now: Things) -> bool:
    step_s = 1e-9 * (now.stamp_ns - before.stamp_ns)
    if not 0 < step_s <= _GAP_S:
        return True
    return math.dist(now.pose[:3, 3].tolist(), before.pose[:3, 3].tolist()) > _JUMP_MPS * step_s
