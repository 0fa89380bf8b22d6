# SPDX-License-Identifier: Apache-2.0
"""Tracks that turn out to be of one vehicle: the id of the older one stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.online import track_filter as filter_
from pcseg_core.online.thing_parts import VEHICLES, gaps, is_no_larger, is_vehicle

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

_YOUNG = 5  # sweeps that a track was seen in up to which it can turn out to be part of another
_COVERED = 0.3  # of the smaller one, of the box of a track and of a thing with which it is one
_INSIDE = 0.6  # the same, from which on both are one whatever their extents
_DRIVES_MPS = 2.0
_KNOWN = 3  # sweeps that a track was seen in from which its velocity counts
_FOLLOWS_M = 1.3  # vehicles that drive keep a larger distance
_WIDE_M = 1.1  # across the velocity; no bicycle is as wide
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


def drive_as_one(tracks: Array) -> Array:
    """The tracks, those that drive as parts of one vehicle united.

    Bumper and windshield, of which the sensor sees nothing between, have the same velocity.
    Vehicles that drive as near to each other as these do not.
    """
    drives = np.hypot(*tracks["velocity"].T) > _DRIVES_MPS
    drives &= (tracks["group"] == VEHICLES) & (tracks["hits"] >= _KNOWN)
    rows = older_first(tracks, np.flatnonzero(drives))
    near = np.triu(gaps(filter_.boxes_of(tracks[rows])) < _FOLLOWS_M, 1)
    ended: list[int] = []
    for one, two in rows[np.argwhere(near)].tolist():
        apart = tracks["velocity"][one] - tracks["velocity"][two]
        if not {one, two} & {*ended} and np.hypot(*apart) < _DRIVES_MPS:
            low, high = _around(tracks[[one, two]])
            fits = is_no_larger((high - low)[None])
            wide = tracks["size"][[one, two], 1].min() > _WIDE_M
            if fits[0] and (wide or is_vehicle(tracks["group"][[one]], (high - low)[None])[0]):
                unite(tracks, one, two)
                ended.append(two)
    return np.delete(tracks, ended) if ended else tracks


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
    seen = things.boxes.rows(of_thing)
    share = filter_.overlap(filter_.boxes_of(tracks[lost]), seen)
    size = np.stack([*seen.size.T, seen.top - seen.bottom], 1)
    for old, new in np.argwhere((share >= _COVERED) & (share == share.max(0))):
        one, two = lost[old], of_track[new]
        if tracks["missed_s"][one] == np.inf or older_first(tracks, np.array([one, two]))[0] != one:
            continue
        thing = tracks[[two, one]]
        thing["position"][0], thing["yaw"][0] = seen.center[new], seen.yaw[new]
        thing["size"][0], thing["bottom"][0] = size[new], seen.bottom[new]
        low, high = _around(thing)
        if share[old, new] >= _INSIDE or is_no_larger((high - low)[None])[0]:
            for name in ("id", "age_s", "label", "agreed"):
                tracks[name][[one, two]] = tracks[name][[two, one]]
            tracks["hits"][two] = max(tracks["hits"][two], tracks["hits"][one])
            tracks["missed_s"][one] = np.inf


def unite(tracks: Array, whole: int, part: int) -> None:
    """Enlarge the box of a track by that of another; if they differ, the motion is unknown."""
    pair = tracks[[whole, part]]
    low, high = _around(pair)
    x, y = (low + high)[:2] / 2
    cos, sin = np.cos(pair["yaw"][0]), np.sin(pair["yaw"][0])
    tracks["position"][whole] = x * cos - y * sin, x * sin + y * cos
    tracks["size"][whole], tracks["bottom"][whole] = high - low, low[2]
    if np.hypot(*(pair["velocity"][0] - pair["velocity"][1])) > _DRIVES_MPS:
        filter_.measure_anew(tracks, whole)


def _around(tracks: Array) -> tuple[Float64, Float64]:
    """Lowest and highest coordinates (3,) of the boxes of tracks in the axes of the first one."""
    boxes = filter_.boxes_of(tracks)
    cos, sin = np.cos(boxes.yaw[0]), np.sin(boxes.yaw[0])
    corners = boxes.corners.reshape(-1, 2) @ [[cos, -sin], [sin, cos]]
    low, high = np.append(corners.min(0), boxes.bottom.min()), np.append(corners.max(0), 0.0)
    high[2] = boxes.top.max()
    return low, high
