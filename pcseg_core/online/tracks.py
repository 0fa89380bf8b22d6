# SPDX-License-Identifier: Apache-2.0
"""Tracks of things: ids that stay over time, oriented boxes, and velocities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import invert
from pcseg_core.labels import LabelSpace
from pcseg_core.online import track_filter as filter_
from pcseg_core.online.boxes import Grouped, fit_headings
from pcseg_core.online.instances import cluster_instances
from pcseg_core.online.thing_parts import GROUPS, Rectangles, is_one, join_parts

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.uint32]

_GAP_S = 1.0  # between sweeps: with more, or a step back, all tracks end
_JUMP_MPS = 70.0
_MARGIN_M = 0.3  # around a predicted box; points within it can be those of the track
_SPLIT_SHARE = 0.1  # of the points of a cluster that a track must claim to get a part of it
_FEW_POINTS = 40  # of each cluster that tracks claim
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
        coast_s: longest time that a track is predicted without being seen [s].
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


@dataclass(frozen=True)
class Track:
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

    Clusters that cover several predicted boxes are split. Clusters and tracks are assigned to each
    other by the distance of their edges and by their extents, and each track is a Kalman
    filter of constant velocity. What is not assigned is a part of a track whose box it lies in, or
    begins a track. Tracks that are not seen are predicted for a while.
    """

    def __init__(self) -> None:
        self._tracks = filter_.none()
        self._next_id = 1
        self._before: tuple[int, Float64] | None = None
        self._space: LabelSpace | None = None

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
        self._before = None

    def update(
        self, cloud: PointCloud, labels: Array, space: LabelSpace, pose: Array, rules: TrackRules
    ) -> Tracked:
        """Add a sweep.

        Args:
            cloud: deskewed, LiDAR frame.
            labels: (N,) class ids, IGNORE for none.
            space: their meaning.
            pose: (4, 4) T_fixed_lidar in a frame without jumps, z up.
            rules: what is tracked.
        """
        step_s = self._step(cloud.stamp_ns, pose, space)
        tracks = filter_.predict(self._tracks, step_s)
        things = _joined(_Things.of(cloud, labels, space, pose, rules), pose[:3, 3])
        things, tracks = _split(things, tracks, rules.min_points)
        found = _measured(things)
        of_track, of_thing = filter_.assign(tracks, found)
        ids = np.zeros(len(found), np.uint32)
        ids[of_thing] = tracks["id"][of_track]
        filter_.correct(tracks, of_track, found, of_thing)
        _add_parts(ids, found, tracks[of_track])
        born = filter_.begin(found, np.flatnonzero(ids == 0), self._next_id)
        self._next_id += len(born)
        ids[ids == 0] = born["id"]
        tracks = filter_.survivors(np.concatenate([tracks, born]), rules.coast_s)
        self._tracks, instead = filter_.without_copies(tracks)
        for one, other in instead.items():
            ids[ids == one] = other
        instances = np.zeros(len(labels), np.uint32)
        instances[things.rows] = ids[things.numbers]
        return Tracked(instances, self._report(pose))

    def _step(self, stamp_ns: int, pose: Array, space: LabelSpace) -> float:
        """Seconds since the sweep before; after a jump all tracks end."""
        before, self._before = self._before, (stamp_ns, np.array(pose, np.float64))
        changed, self._space = self._space is not space, space
        if before is not None and not changed:
            step_s = 1e-9 * (stamp_ns - before[0])
            way = float(np.linalg.norm(pose[:3, 3] - before[1][:3, 3]))
            if 0 < step_s <= _GAP_S and way <= _JUMP_MPS * step_s:
                return step_s
        self._tracks = filter_.none()
        return 0.0

    def _report(self, pose: Array) -> list[Track]:
        T = invert(pose)
        return [_track(row, T) for row in self._tracks if row["hits"] >= _CONFIRMED]


def _track(row: Array, T_lidar_fixed: Array) -> Track:
    box = np.eye(4)
    cos, sin = np.cos(row["yaw"]), np.sin(row["yaw"])
    box[:2, :2] = [[cos, -sin], [sin, cos]]
    box[:3, 3] = [*row["position"], row["bottom"] + row["size"][2] / 2]
    velocity = T_lidar_fixed[:3, :2] @ row["velocity"]
    return Track(
        int(row["id"]),
        int(row["label"]),
        T_lidar_fixed @ box,
        row["size"].copy(),
        velocity,
        row["missed_s"] == 0,
        float(row["age_s"]),
    )


@dataclass(frozen=True)
class _Things:
    """Points of things, and which of them belong together.

    Attributes:
        rows: (M,) their rows in the cloud.
        points: (M, 3) fixed frame [m].
        numbers: (M,) thing of each, 0 to I - 1.
        groups: (M,) group of classes of each.
        labels: (M,) class of each.
    """

    rows: Array
    points: Float64
    numbers: Array
    groups: Array
    labels: Array

    @classmethod
    def of(
        cls, cloud: PointCloud, labels: Array, space: LabelSpace, pose: Array, rules: TrackRules
    ) -> _Things:
        group_of = _groups(space, rules.classes)
        groups = group_of.take(labels, mode="wrap")
        rows = np.flatnonzero(groups >= 0)
        chosen = np.unique(group_of[group_of >= 0])
        near = np.asarray(cloud.xyz)[rows]
        ids = cluster_instances(
            near, groups[rows], chosen, cell_m=rules.cell_m, min_points=rules.min_points
        )
        kept = ids > 0
        rows = rows[kept]
        points = near[kept].astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
        return cls(rows, points, ids[kept].astype(np.int64) - 1, groups[rows], labels[rows])


def _groups(space: LabelSpace, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """(C + 1,) group of each class of a space, -1 for those that are not tracked."""
    found = np.full(len(space) + 1, -1, np.int64)
    for number, name in enumerate(space.names):
        if name in classes:
            known = [group for group, names in GROUPS.items() if name in names]
            found[number] = known[0] if known else len(GROUPS) + number
    return found


def _measured(things: _Things) -> filter_.Measured:
    """Boxes of the things, and their most frequent classes."""
    grouped, order = Grouped.of(things.points, things.numbers)
    labels = things.labels[order]
    classes = labels[grouped.starts]
    differs = np.flatnonzero(labels != np.repeat(classes, grouped.counts))
    numbers = np.repeat(np.arange(len(classes)), grouped.counts)
    for thing in np.unique(numbers[differs]):
        start = grouped.starts[thing]
        classes[thing] = np.bincount(labels[start : start + grouped.counts[thing]]).argmax()
    groups = things.groups[order][grouped.starts]
    return filter_.Measured(grouped, fit_headings(grouped), groups, classes)


def _joined(things: _Things, sensor: Array) -> _Things:
    """Clusters that are parts of one thing become one."""
    return replace(things, numbers=join_parts(_measured(things).boxes(), sensor)[things.numbers])


def _split(things: _Things, tracks: Array, least: int) -> tuple[_Things, Array]:
    """Clusters that several tracks claim become a thing for each of them.

    Tracks that together are no larger than one thing are one; the newer of them ends.
    """
    old = np.flatnonzero(tracks["hits"] >= _SPLIT_HITS)
    if not len(old) or not len(things.rows):
        return things, tracks
    boxes = filter_.boxes_of(tracks[old])
    grouped, order = Grouped.of(things.points, things.numbers)
    groups = things.groups[order][grouped.starts]
    shares = _claims(boxes, grouped, groups)
    enough = shares >= np.maximum(_SPLIT_SHARE, least / grouped.counts[:, None])
    numbers, following = things.numbers.copy(), len(groups)
    ended: list[int] = []
    for cluster in np.flatnonzero(enough.sum(1) > 1):
        sharing, copies = _different(boxes, np.flatnonzero(enough[cluster]), tracks["hits"][old])
        ended += copies
        start = grouped.starts[cluster]
        members = order[start : start + grouped.counts[cluster]]
        own = boxes.rows(sharing)
        owner = own.nearest(things.points[members])
        owner[own.outside(things.points[members]).min(0) > _REST_M] = len(own)
        numbers[members] = following + owner
        following += len(own) + 1
    _, numbers = np.unique(numbers, return_inverse=True)
    return replace(things, numbers=numbers), np.delete(tracks, old[ended])


def _different(boxes: Rectangles, rows: Array, hits: Array) -> tuple[list[int], list[int]]:
    """Rows of boxes of different things, oldest first, and of boxes that are parts of those."""
    different: list[int] = []
    parts: list[int] = []
    for row in rows[np.argsort(-hits[rows], kind="stable")].tolist():
        part = any(is_one(boxes, np.array([row, other])) for other in different)
        (parts if part else different).append(row)
    return different, parts


def _claims(boxes: Rectangles, grouped: Grouped, groups: Array) -> Float64:
    """(I, T) share of the points of each cluster that are in the box of each track, or nearest."""
    few = grouped.thinned(_FEW_POINTS)
    distance = boxes.outside(few.points)
    distance[boxes.groups[:, None] != np.repeat(groups, few.counts)] = np.inf
    nearest = distance.argmin(0)
    near = distance[nearest, np.arange(len(nearest))] < _MARGIN_M
    cluster = np.repeat(np.arange(len(groups)), few.counts)
    pairs = (cluster * len(boxes) + nearest)[near]
    counts = np.bincount(pairs, minlength=len(groups) * len(boxes)).reshape(len(groups), -1)
    return counts / few.counts[:, None]


def _add_parts(ids: Ids, things: filter_.Measured, seen: Array) -> None:
    """Things (I,) that no track was assigned to, and that lie in the box of one, get its id."""
    if not len(seen) or ids.all():
        return
    few = things.grouped.thinned(_FEW_POINTS)
    inside = filter_.boxes_of(seen).outside(few.points) < _MARGIN_M
    share = np.add.reduceat(inside, few.starts, axis=1, dtype=np.int64) / few.counts
    share[seen["group"][:, None] != things.groups] = 0
    parts = (ids == 0) & (share.max(0) >= _INSIDE_SHARE)
    ids[parts] = seen["id"][share.argmax(0)][parts]
