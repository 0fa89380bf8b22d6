# SPDX-License-Identifier: Apache-2.0
"""Tracks that turn out to be of one vehicle: the id of the older one stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.online import track_filter as filter_
from pcseg_core.online.thing_parts import VEHICLES, apart, gaps, is_no_larger, is_vehicle

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_YOUNG = 5  # sweeps that a track was seen in up to which it can turn out to be part of another
_COVERED = 0.3  # of the smaller one, of the box of a track and of a thing with which it is one
_INSIDE = 0.6  # the same, from which on both are one whatever their extents
_DRIVES_MPS = 2.0
_FOLLOWS_M = 1.3  # vehicles that drive keep a larger distance
_ASIDE_M = 0.5  # by which a part of a vehicle may be beside the rest
_WIDE_M = 1.3  # across the velocity; no bicycle is as wide
_SPREAD = 3.0  # standard deviations by which different velocities are apart
_SURE = 2.0  # the same of the speed of a vehicle that drives


def older_first(tracks: Array, rows: Array) -> Array:
    """Rows of tracks by the sweeps that each was seen in, then by its extents."""
    area = tracks["size"][rows, :2].prod(1)
    return rows[np.lexsort((tracks["id"][rows], -area, -tracks["hits"][rows]))]


def part_ways(pair: Array) -> bool:
    """The velocities of two tracks are those of two vehicles."""
    spread = float(np.sqrt(pair["variance"][:, 2].sum()))
    return _apart_mps(pair) > max(_DRIVES_MPS, _SPREAD * spread)


def _apart_mps(pair: Array) -> float:
    return float(np.hypot(*(pair["velocity"][0] - pair["velocity"][1])))


def drive_as_one(tracks: Array) -> Array:
    """The tracks, those that drive as parts of one vehicle united.

    Bumper and windshield, of which the sensor sees nothing between, have the same velocity.
    Vehicles that drive as near to each other as these do not.
    """
    rows = older_first(tracks, np.flatnonzero(_drive(tracks)))
    near = np.triu(gaps(filter_.boxes_of(tracks[rows])) < _FOLLOWS_M, 1)
    ended: list[int] = []
    for one, two in rows[np.argwhere(near)].tolist():
        pair = tracks[[one, two]]
        if not {one, two} & {*ended} and _apart_mps(pair) < _DRIVES_MPS and _is_one_car(pair):
            unite(tracks, one, two)
            ended.append(two)
    return np.delete(tracks, ended) if ended else tracks


def take_parts(tracks: Array, of_track: Array, things: filter_.Measured, ids: Array) -> None:
    """Things (I,) without id right before or behind a vehicle that drives, and seen, get its id.

    Vehicles that drive keep a distance: these are parts of it, hidden until now.
    """
    rows = of_track[_drive(tracks[of_track])]
    new = np.flatnonzero((ids == 0) & (things.groups == VEHICLES))
    if not len(rows) or not len(new):
        return
    parts = filter_.begin(things, new, 0)
    boxes, others = filter_.boxes_of(tracks[rows]), things.boxes.rows(new)
    distance, size = apart(boxes, others)
    half = (boxes.size.T[..., None] + size) / 2
    near = distance[0] - half[0] < _FOLLOWS_M
    near &= distance[1] + half[1] < np.maximum(boxes.size[:, 1:], size[1]) + _ASIDE_M
    for whole, part in np.argwhere(near):
        pair = np.stack([tracks[rows[whole]], parts[part]])
        if not ids[new[part]] and _is_one_car(pair):
            unite(pair, 0, 1)
            tracks[rows[whole]], ids[new[part]] = pair[0], pair["id"][0]


def inherit(tracks: Array, things: filter_.Measured, of_track: Array, of_thing: Array) -> None:
    """Young tracks take the ids of older ones, not seen, that were expected where their things are.

    Vehicles do not stand in each other: both are one, which was first seen in parts. The
    older track ends; the motion stays that of the younger one, which fits better.
    """
    vehicles = tracks["group"] == VEHICLES
    lost = np.setdiff1d(np.flatnonzero(vehicles), of_track)
    young = (vehicles & (tracks["hits"] <= _YOUNG))[of_track]
    of_track, of_thing = of_track[young], of_thing[young]
    if not len(lost) or not len(of_track):
        return
    share = filter_.overlap(filter_.boxes_of(tracks[lost]), things.boxes.rows(of_thing))
    seen = filter_.begin(things, of_thing, 0)
    for old, new in np.argwhere((share >= _COVERED) & (share == share.max(0))):
        one, two = lost[old], of_track[new]
        if tracks["missed_s"][one] == np.inf or older_first(tracks, np.array([one, two]))[0] != one:
            continue
        low, high = _around(np.stack([seen[new], tracks[one]]))
        if share[old, new] >= _INSIDE or is_no_larger((high - low)[None])[0]:
            for name in ("id", "age_s", "label", "agreed"):
                tracks[name][[one, two]] = tracks[name][[two, one]]
            tracks["hits"][two] = max(tracks["hits"][two], tracks["hits"][one])
            tracks["missed_s"][one] = np.inf


def _drive(tracks: Array) -> Mask:
    """(K,) bool: vehicles that drive for sure."""
    spread = np.sqrt(tracks["variance"][:, 2])
    drive: Mask = np.hypot(*tracks["velocity"].T) > np.maximum(_DRIVES_MPS, _SURE * spread)
    return drive & (tracks["group"] == VEHICLES)


def _is_one_car(pair: Array) -> bool:
    """Two tracks, the first of which drives, are together no larger than a vehicle.

    Nor are they two bicycles side by side, which are lower than a vehicle and less wide.
    """
    low, high = _around(pair)
    size = (high - low)[None]
    wide = pair["size"][0, 1] > _WIDE_M
    return bool(is_no_larger(size)[0] and (wide or is_vehicle(pair["group"][:1], size)[0]))


def unite(tracks: Array, whole: int, part: int) -> None:
    """Enlarge the box of a track by that of another; if they differ, the motion is unknown."""
    pair = tracks[[whole, part]]
    low, high = _around(pair)
    x, y = (low + high)[:2] / 2
    cos, sin = np.cos(pair["yaw"][0]), np.sin(pair["yaw"][0])
    tracks["position"][whole] = x * cos - y * sin, x * sin + y * cos
    tracks["size"][whole], tracks["bottom"][whole] = high - low, low[2]
    if _apart_mps(pair) > _DRIVES_MPS:
        filter_.measure_anew(tracks, whole)


def _around(tracks: Array) -> tuple[Float64, Float64]:
    """Lowest and highest coordinates (3,) of the boxes of tracks in the axes of the first one."""
    boxes = filter_.boxes_of(tracks)
    cos, sin = np.cos(boxes.yaw[0]), np.sin(boxes.yaw[0])
    corners = boxes.corners.reshape(-1, 2) @ [[cos, -sin], [sin, cos]]
    low, high = np.append(corners.min(0), boxes.bottom.min()), np.append(corners.max(0), 0.0)
    high[2] = boxes.top.max()
    return low, high
