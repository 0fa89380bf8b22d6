# SPDX-License-Identifier: Apache-2.0
"""Tracks that turn out to be of one vehicle: the id of the older one stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.online import track_filter as filter_
from pcseg_core.online.thing_parts import (
    BEHIND_M,
    VEHICLES,
    Rectangles,
    gaps,
    is_no_larger,
    is_one,
    is_vehicle,
    overlap,
)

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

_OVERLAP = 0.3  # of the smaller box, of a track and a thing that are none of others
_COVERED = 0.3  # of the smaller one, of the box of a track and of a thing with which it is one
_INSIDE = 0.6  # the same, from which on both are one whatever their extents
_DRIVES_MPS = 2.0
_KNOWN = 3  # sweeps that a track was seen in from which its velocity counts
_FOLLOWS_M = 1.3  # vehicles that drive keep a larger distance
_WIDE_M = 1.1  # across the velocity; no bicycle is as wide
_WIDEST_M = 2.8  # of a vehicle across its velocity
_SPREAD = 3.0  # standard deviations by which different velocities are apart


def older_first(tracks: Array, rows: Array) -> Array:
    """Rows of tracks by the sweeps that each was seen in, then by its extents."""
    area = tracks["size"][rows, :2].prod(1)
    return rows[np.lexsort((tracks["id"][rows], -area, -tracks["hits"][rows]))]


def part_ways(one: Array, other: Array) -> bool:
    """The velocities of two tracks are those of two vehicles."""
    apart = float(np.linalg.norm(one["velocity"] - other["velocity"]))
    spread = float(np.sqrt(one["variance"][2] + other["variance"][2]))
    return apart > max(_DRIVES_MPS, _SPREAD * spread)


def different(boxes: Rectangles, rows: Array, tracks: Array) -> tuple[list[int], dict[int, int]]:
    """Rows of boxes of different things, oldest first; and of parts, with those they belong to.

    What was seen apart for long is no part.
    """
    different: list[int] = []
    parts: dict[int, int] = {}
    for row in older_first(tracks, rows).tolist():
        whole = next(
            (
                one
                for one in different
                if tracks["hits"][row] <= filter_.APART
                and is_one(boxes, np.array([one, row]))
                and not part_ways(tracks[one], tracks[row])
            ),
            None,
        )
        if whole is None:
            different.append(row)
        else:
            parts[row] = whole
    return different, parts


def drive_as_one(tracks: Array) -> Array:
    """The tracks, those that drive as parts of one vehicle united.

    Bumper and windshield, of which the sensor sees nothing between, have the same velocity.
    Vehicles that drive as near to each other as these do not.
    """
    drives = np.hypot(*tracks["velocity"].T) > _DRIVES_MPS
    drives &= (tracks["group"] == VEHICLES) & (tracks["hits"] >= _KNOWN)
    rows = np.flatnonzero(drives)
    boxes = filter_.boxes_of(tracks.take(rows))
    others = np.count_nonzero(gaps(boxes, boxes, _FOLLOWS_M) < _FOLLOWS_M, axis=1) > 1
    if not others.any():
        return tracks
    rows = older_first(tracks, rows[others])
    boxes = filter_.boxes_of(tracks.take(rows))
    near = np.triu(gaps(boxes, boxes, _FOLLOWS_M) < _FOLLOWS_M, 1)
    ended: list[int] = []
    for one, two in rows[np.argwhere(near)].tolist():
        apart = tracks["velocity"][one] - tracks["velocity"][two]
        known = tracks["hits"][two] > filter_.APART
        if not known and not {one, two} & {*ended} and np.hypot(*apart) < _DRIVES_MPS:
            low, high = _around(filter_.boxes_of(tracks[[one, two]]))
            fits = is_no_larger((high - low)[None])
            fits &= (high - low)[1] <= _WIDEST_M
            wide = tracks["size"][[one, two], 1].min() > _WIDE_M
            if fits[0] and (wide or is_vehicle(tracks["group"][[one]], (high - low)[None])[0]):
                unite(tracks, one, two)
                ended.append(two)
    return np.delete(tracks, ended) if ended else tracks


def recover(
    tracks: Array, things: filter_.Measured, of_track: Array, of_thing: Array
) -> tuple[Array, Array]:
    """Add tracks and things that are left to those that are assigned: rows (K,) of both.

    They belong together if their boxes overlap, because vehicles do not stand in each other: such
    a thing is not where the track was expected because other parts of it are seen than before, so
    that its velocity is measured anew. What is beside a vehicle that is not seen, and with it no
    larger than one, is another part of it.
    """
    lost, free = _others(len(tracks), of_track), _others(len(things), of_thing)
    if not len(lost) or not len(free):
        return of_track, of_thing
    own, seen = filter_.boxes_of(tracks.take(lost)), things.boxes.rows(free)
    share = overlap(own, seen)
    cost = np.where(share < _OVERLAP, np.inf, 1 - share)
    cost[own.groups[:, None] != seen.groups] = np.inf
    gap = gaps(own, seen, BEHIND_M)
    beside = (gap < BEHIND_M) & (own.groups[:, None] == VEHICLES) & (seen.groups == VEHICLES)
    beside &= (gap == gap.min(0)) & (cost.min(0) == np.inf)
    for one, two in np.argwhere(beside).tolist():
        if is_one(own.rows([one]).and_(seen.rows([two])), np.arange(2)):
            cost[one, two] = 1 + BEHIND_M + gap[one, two]
    rows, columns = filter_.pairs(cost)
    meet = cost[rows, columns] <= 1
    filter_.measure_anew(tracks, lost[rows[meet]])
    for one, two in zip(rows[~meet].tolist(), columns[~meet].tolist()):
        _enlarge(tracks, int(lost[one]), *_around(own.rows([one]).and_(seen.rows([two]))))
    return np.concatenate([of_track, lost[rows]]), np.concatenate([of_thing, free[columns]])


def _others(count: int, rows: Array) -> Array:
    """Rows below a count that are none of these."""
    other = np.ones(count, bool)
    other[rows] = False
    return np.flatnonzero(other)


def inherit(tracks: Array, things: filter_.Measured, of_track: Array, of_thing: Array) -> None:
    """Tracks take the ids of older ones, not seen, that were expected where their things are.

    Vehicles do not stand in each other: both are one, which was first seen in parts. The
    older track ends; the motion stays that of the younger one, which fits better.
    """
    vehicles = tracks["group"] == VEHICLES
    lost = _others(len(tracks), of_track)
    lost = lost[vehicles[lost]]
    of_vehicle = vehicles[of_track]
    of_track, of_thing = of_track[of_vehicle], of_thing[of_vehicle]
    if not len(lost) or not len(of_track):
        return
    own, seen = filter_.boxes_of(tracks.take(lost)), things.boxes.rows(of_thing)
    share = overlap(own, seen)
    covered = share >= _COVERED
    if not covered.any():
        return
    for old, new in np.argwhere(covered & (share == share.max(0))).tolist():
        one, two = lost[old], of_track[new]
        if tracks["missed_s"][one] == np.inf or older_first(tracks, np.array([one, two]))[0] != one:
            continue
        low, high = _around(seen.rows([new]).and_(own.rows([old])))
        if share[old, new] >= _INSIDE or is_no_larger((high - low)[None])[0]:
            for name in ("id", "age_s", "label", "agreed"):
                tracks[name][[one, two]] = tracks[name][[two, one]]
            tracks["hits"][two] = max(tracks["hits"][two], tracks["hits"][one])
            tracks["missed_s"][one] = np.inf


def unite(tracks: Array, whole: int, part: int) -> None:
    """Enlarge the box of a track by that of another; if they differ, the motion is unknown."""
    pair = tracks[[whole, part]]
    _enlarge(tracks, whole, *_around(filter_.boxes_of(pair)))
    if np.hypot(*(pair["velocity"][0] - pair["velocity"][1])) > _DRIVES_MPS:
        filter_.measure_anew(tracks, whole)


def _enlarge(tracks: Array, row: int, low: Float64, high: Float64) -> None:
    """Set the box of a track to extents (3,) of `_around`."""
    x, y = (low + high)[:2] / 2
    cos, sin = np.cos(tracks["yaw"][row]), np.sin(tracks["yaw"][row])
    tracks["position"][row] = x * cos - y * sin, x * sin + y * cos
    tracks["size"][row], tracks["bottom"][row] = high - low, low[2]


def _around(boxes: Rectangles) -> tuple[Float64, Float64]:
    """Lowest and highest coordinates (3,) of boxes in the axes of the first one."""
    cos, sin = np.cos(boxes.yaw[0]), np.sin(boxes.yaw[0])
    corners = boxes.corners.reshape(-1, 2) @ [[cos, -sin], [sin, cos]]
    low, high = np.append(corners.min(0), boxes.bottom.min()), np.append(corners.max(0), 0.0)
    high[2] = boxes.top.max()
    return low, high
