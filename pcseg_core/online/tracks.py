# SPDX-License-Identifier: Apache-2.0
"""Tracks of things: ids that stay over time, oriented boxes, and velocities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import invert
from pcseg_core.labels import LabelSpace
from pcseg_core.online import track_filter as filter_
from pcseg_core.online.boxes import Grouped, fit_headings, moved_points
from pcseg_core.online.free_space import FreeSpace
from pcseg_core.online.instances import cluster_instances, find_instances
from pcseg_core.online.thing_parts import (
    GROUP_OF,
    GROUPS,
    VEHICLES,
    Rectangles,
    beside,
    is_vehicle,
    join_parts,
    overlap,
)
from pcseg_core.online.track_hiding import survivors
from pcseg_core.online.track_motion import Evidence, Look, few_points, share_of
from pcseg_core.online.track_unions import different, drive_as_one, inherit, recover, unite

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.uint32]

_GAP_S = 1.0  # between sweeps: with more, or a step back, all tracks end
_JUMP_MPS = 70.0
_PART_POINTS = 6  # least number of a part of a thing
_MARGIN_M = 0.3  # around a predicted box; points within it can be those of the track
_SPLIT_SHARE = 0.1  # of the points of a cluster that a track must claim to get a part of it
_SPLIT_HITS = 2  # sweeps that a track was seen in before it splits clusters
_REST_M = 1.0  # from all boxes that split a cluster; farther points are another thing
_INSIDE_SHARE = 0.6  # of a thing in the box of a track, of which it then is a part
_CONFIRMED = 2  # sweeps that a track was seen in before it is reported


@dataclass(frozen=True)
class TrackRules:
    """What is tracked, and for how long.

    Attributes:
        classes: names of the classes; others, and those that a label space lacks, are not tracked.
        cell_m, min_points: of the instances of a sweep; see `cluster_instances`.
        coast_s: longest time that a track is predicted without being seen [s]; five times that for
            a standing vehicle that is hidden.
    """

    classes: tuple[str, ...] = ("vehicle", "person")
    cell_m: float = 0.3
    min_points: int = 10
    coast_s: float = 1.0

    def cluster(self, xyz: Array, labels: Array, space: LabelSpace) -> Ids:
        """(N,) instances of one sweep by itself; see `cluster_instances`."""
        chosen = [space.index(name) for name in self.classes if name in space.names]
        return cluster_instances(
            xyz, labels, chosen, cell_m=self.cell_m, min_points=self.min_points
        )


class Track(NamedTuple):
    """A thing that is tracked, in the LiDAR frame at the stamp of the sweep.

    Attributes:
        id: from 1; no other track ever has it.
        label: class id.
        T_lidar_box: (4, 4) pose of the center; x along the heading, z up.
        size: (3,) length, width and height [m] of what was seen of the thing so far.
        velocity: (3,) over ground, in axes of the LiDAR frame [m/s].
        seen: it has points in this sweep; otherwise it is predicted.
        age_s: time since it was seen first [s].
    """

    id: int
    label: int
    T_lidar_box: Float64
    size: Float64
    velocity: Float64
    seen: bool
    age_s: float


@dataclass(frozen=True)
class Tracked:
    """The things of a sweep.

    Attributes:
        instances: (N,) uint32 id of the track of each point, 0 for none. A thing that is seen for
            the first time has one too.
        tracks: those that were seen in two sweeps or more.
    """

    instances: Ids
    tracks: Sequence[Track]


class Tracker:
    """Tracks the things of sweeps one by one.

    Clusters in one predicted box of a vehicle are joined, and those that cover several boxes are
    split. Clusters and tracks are assigned to each other by the distance of their edges and by
    their extents, and those that are left by their overlap; each track is a Kalman filter of
    constant velocity. What is not assigned is a part of a track whose box it lies in, or
    begins a track. Tracks that are not seen are predicted for a while.
    """

    def __init__(self) -> None:
        self._tracks = filter_.none()
        self._next_id = 1
        self._before: tuple[int, Float64] | None = None
        self._space: LabelSpace | None = None
        self._evidence = Evidence()

    @property
    def count(self) -> int:
        """Number of tracks that are reported."""
        return int(np.count_nonzero(self._tracks["hits"] >= _CONFIRMED))

    @property
    def begun(self) -> int:
        """Number of ids that were given."""
        return self._next_id - 1

    def reset(self) -> None:
        """End all tracks; their ids are not used again."""
        self._tracks = filter_.none()
        self._evidence.reset()
        self._before = None

    def update(
        self,
        cloud: PointCloud,
        labels: Array,
        space: LabelSpace,
        pose: Array,
        rules: TrackRules,
        free: FreeSpace | None = None,
    ) -> Tracked:
        """Add a sweep.

        Args:
            cloud: deskewed, LiDAR frame.
            labels: (N,) class ids, IGNORE for none.
            space: their meaning.
            pose: (4, 4) T_fixed_lidar in a frame without jumps, z up.
            rules: what is tracked.
            free: free space of the sweep, if it is known.
        """
        step_s = self._step(cloud.stamp_ns, pose, space)
        tracks = drive_as_one(filter_.predict(self._tracks, step_s))
        things = _joined(
            _Things.of(cloud, labels, space, pose, rules), pose[:3, 3], rules.min_points
        )
        things, others = _split(_joined_in(things, tracks), tracks, rules.min_points)
        if len(others) < len(tracks):
            things, tracks = _joined_in(things, others), others
        found, look = things.found, Look(cloud, pose, free)
        few = few_points(found.grouped)
        gone, new = self._evidence.gone(look, tracks["id"]), self._evidence.new(few)
        still = (gone == 0)[:, None] & (new == 0)
        of_track, of_thing = recover(tracks, found, *filter_.assign(tracks, found, still))
        inherit(tracks, found, of_track, of_thing)
        ids = np.zeros(len(found), np.uint32)
        ids[of_thing] = tracks["id"][of_track]
        passed = np.maximum(gone[of_track], new[of_thing])
        filter_.correct(tracks, of_track, found, of_thing, passed, pose[:3, 3])
        _add_parts(ids, found, few, tracks.take(of_track))
        born = filter_.begin(found, np.flatnonzero(ids == 0), self._next_id)
        self._next_id += len(born)
        ids[ids == 0] = born["id"]
        tracks = survivors(filter_.with_(tracks, born), rules.coast_s, look)
        self._tracks, instead = filter_.without_copies(tracks)
        for one, other in instead.items():
            ids[ids == one] = other
        self._evidence.add(look, few, ids)
        instances = np.zeros(len(labels), np.uint32)
        instances[things.rows] = np.repeat(ids, found.grouped.counts)
        return Tracked(instances, self._report(pose))

    def _step(self, stamp_ns: int, pose: Array, space: LabelSpace) -> float:
        """Seconds since the sweep before; after a jump all tracks end."""
        before, self._before = self._before, (stamp_ns, np.array(pose, np.float64))
        changed, self._space = self._space is not space, space
        if before is not None and not changed:
            step_s = 1e-9 * (stamp_ns - before[0])
            way = math.dist(pose[:3, 3].tolist(), before[1][:3, 3].tolist())
            if 0 < step_s <= _GAP_S and way <= _JUMP_MPS * step_s:
                return step_s
        self._tracks = filter_.none()
        self._evidence.reset()
        return 0.0

    def _report(self, pose: Array) -> list[Track]:
        rows = self._tracks.compress(self._tracks["hits"] >= _CONFIRMED)
        T_lidar_fixed = invert(pose)
        boxes = np.zeros((len(rows), 4, 4))
        cos, sin = np.cos(rows["yaw"]), np.sin(rows["yaw"])
        boxes[:, 0, 0], boxes[:, 1, 0] = cos, sin
        boxes[:, 0, 1], boxes[:, 1, 1] = -sin, cos
        boxes[:, :2, 3] = rows["position"]
        boxes[:, 2, 3] = rows["bottom"] + rows["size"][:, 2] / 2
        boxes[:, [2, 3], [2, 3]] = 1.0
        velocity = rows["velocity"] @ T_lidar_fixed[:3, :2].T
        scalars = (rows[name].tolist() for name in ("id", "label", "missed_s", "age_s"))
        return [
            Track(id_, label, T_lidar_box, size, way, missed_s == 0, age_s)
            for id_, label, missed_s, age_s, T_lidar_box, size, way in zip(
                *scalars, T_lidar_fixed @ boxes, rows["size"].copy(), velocity
            )
        ]


@dataclass(frozen=True)
class _Things:
    """The things of a sweep, and where their points are in it.

    Attributes:
        rows: (M,) rows in the cloud of the points, in the order of `found.grouped`.
        labels: (N,) class of each point of the cloud.
        found: the things.
    """

    rows: Array
    labels: Array
    found: filter_.Measured

    @classmethod
    def of(
        cls, cloud: PointCloud, labels: Array, space: LabelSpace, pose: Array, rules: TrackRules
    ) -> _Things:
        """The clusters of a sweep."""
        group_of, least = _groups(space, rules.classes), min(rules.min_points, _PART_POINTS)
        clusters = find_instances(
            cloud.xyz, labels, group_of, cell_m=rules.cell_m, min_points=least
        )
        points = moved_points(cloud.xyz, clusters.rows, pose)
        grouped, order = Grouped.of(points, clusters.ids.astype(np.int64) - 1)
        rows = clusters.rows.take(order)
        own = labels.take(rows)
        groups, classes = group_of[own[grouped.starts]], grouped.most_frequent(own)
        found = filter_.Measured(grouped, fit_headings(grouped), groups, classes)
        return cls(rows, labels, found)

    @property
    def numbers(self) -> Array:
        """(M,) thing of each point."""
        return np.repeat(np.arange(len(self.found)), self.found.grouped.counts)

    def merged(self, numbers: Array) -> _Things:
        """Unions of these, by the number of each thing (I,), 0 and on; -1 for those left out."""
        one_each = numbers.max(initial=-1) + 1 == len(numbers)
        return self if one_each else self.regrouped(np.repeat(numbers, self.found.grouped.counts))

    def regrouped(self, numbers: Array) -> _Things:
        """Things that are unions, or parts, of these, by the number of each point (M,)."""
        old = self.found
        grouped, order = Grouped.of(old.grouped.points, numbers)
        of_thing = np.searchsorted(old.grouped.starts, order[grouped.starts], "right") - 1
        groups, classes, yaws = (
            values.take(of_thing) for values in (old.groups, old.labels, old.yaws)
        )
        rows = self.rows.take(order)
        changed = np.flatnonzero(grouped.counts != old.grouped.counts.take(of_thing))
        if len(changed):
            few, at = grouped.chosen(changed)
            classes[changed] = few.most_frequent(self.labels[rows[at]])
            yaws[changed] = fit_headings(few)
        return _Things(rows, self.labels, filter_.Measured(grouped, yaws, groups, classes))


def _groups(space: LabelSpace, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """(C + 1,) group of each class of a space, -1 for those that are not tracked."""
    found = np.full(len(space) + 1, -1, np.int64)
    for number, name in enumerate(space.names):
        if name in classes:
            found[number] = GROUP_OF.get(name, len(GROUPS) + number)
    return found


def _joined(things: _Things, sensor: Array, least: int) -> _Things:
    """Clusters that are parts of one thing become one; those of fewer points are left out."""
    numbers = join_parts(things.found.boxes, sensor)
    large = np.bincount(numbers, things.found.grouped.counts) >= least
    return things.merged(np.where(large, np.cumsum(large) - 1, -1)[numbers])


def _joined_in(things: _Things, tracks: Array) -> _Things:
    """Clusters in the box of one track of a vehicle become one."""
    vehicles = (tracks["hits"] >= _SPLIT_HITS) & is_vehicle(tracks["group"], tracks["size"])
    boxes = filter_.boxes_of(tracks.compress(vehicles)).wider(_MARGIN_M)
    if not len(boxes):
        return things
    share = overlap(boxes, things.found.boxes, of_others=True) * (things.found.groups == VEHICLES)
    alone = len(boxes) + np.arange(len(things.found))
    return things.merged(_dense(np.where(share.max(0) >= _INSIDE_SHARE, share.argmax(0), alone)))


def _dense(numbers: Array) -> Array:
    """The numbers with the same order and no gaps, from 0."""
    used = np.zeros(numbers.max(initial=-1) + 1, bool)
    used[numbers] = True
    return (np.cumsum(used) - 1).take(numbers)


def _split(things: _Things, tracks: Array, least: int) -> tuple[_Things, Array]:
    """Clusters that several tracks claim become a thing for each of them.

    Tracks that together are no larger than one thing are one; the newer of them ends.
    """
    old = np.flatnonzero(tracks["hits"] >= _SPLIT_HITS)
    known, found = tracks.take(old), things.found
    boxes = filter_.boxes_of(known)
    crowded = np.flatnonzero(beside(boxes, found.boxes, _MARGIN_M).sum(0) > 1)
    if not len(crowded):
        return things, tracks
    grouped = found.grouped
    shares = _claims(boxes, few_points(grouped, crowded), found.groups[crowded])
    enough = shares >= np.maximum(_SPLIT_SHARE, least / grouped.counts[crowded, None])
    numbers, following = things.numbers, len(found)
    copies: dict[int, int] = {}
    for number in np.flatnonzero(enough.sum(1) > 1):
        sharing, same = different(boxes, np.flatnonzero(enough[number]), known)
        copies |= same
        if len(sharing) == 1:
            continue
        first = grouped.starts[crowded[number]]
        members = slice(first, first + grouped.counts[crowded[number]])
        own, points = boxes.rows(sharing), grouped.points[members]
        owner = own.nearest(points)
        owner[own.outside(points).min(0) > _REST_M] = len(own)
        numbers[members] = following + owner
        following += len(own) + 1
    if following > len(found):
        things = things.regrouped(_dense(numbers))
    if not copies:
        return things, tracks
    for part, whole in copies.items():
        unite(tracks, int(old[whole]), int(old[part]))
    return things, np.delete(tracks, old[list(copies)])


def _claims(boxes: Rectangles, few: Float64, groups: Array) -> Float64:
    """(I, T) share of points (I, K, 3) of each cluster that are in the box of each track.

    Of several boxes the one counts that a point is deepest in.
    """
    distance = boxes.outside(few.reshape(-1, 3)).reshape(len(boxes), *few.shape[:2])
    distance[boxes.groups[:, None] != groups] = np.inf
    nearest = distance.min(0)
    share: Float64 = share_of((distance == nearest) & (nearest < _MARGIN_M)).T
    return share


def _add_parts(ids: Ids, things: filter_.Measured, few: Float64, seen: Array) -> None:
    """Things that no track was assigned to, and that lie in the box of one, get its id.

    Args:
        ids: (I,) of the tracks of the things, 0 for none.
        things: those of the sweep.
        few: (I, K, 3) some of their points.
        seen: (T,) STATE of the tracks.
    """
    free = np.flatnonzero(ids == 0)
    if not len(seen) or not len(free):
        return
    few = few.take(free, 0)
    inside = filter_.boxes_of(seen).outside(few.reshape(-1, 3)) < _MARGIN_M
    share = share_of(inside.reshape(len(seen), *few.shape[:2]))
    share[seen["group"][:, None] != things.groups.take(free)] = 0
    parts = share.max(0) >= _INSIDE_SHARE
    ids[free[parts]] = seen["id"][share.argmax(0)[parts]]
