# SPDX-License-Identifier: Apache-2.0
"""Several returns of one beam: which of them is the last.

The numbers that drivers write into such a field differ: in `return_type`, 4 is the last return for
Autoware's older drivers and a first one for Nebula. So a field with different numbers only tells
that there are several returns; which one is the last follows from the points: the farthest in its
direction.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud

Array = npt.NDArray[Any]

RETURN_NAMES = (
    "return_type",  # Autoware (Velodyne, Hesai, RoboSense), Nebula
    "return_mode",
    "return_number",  # LAS
    "return_index",
    "return_id",
    "return",
    "is_2nd_return",  # Seyond
    "echo",  # SICK
    "tag",  # Livox: bits 4 and 5 number the returns
)
"""Names of fields that tell the returns of a beam apart."""


class ReturnType(IntEnum):
    """Numbers of the field `return_type` as Autoware's PointXYZIRCAEDT and PointXYZIRADRT have it.

    Simulated clouds are written with them. They are not read, see above.
    """

    DUAL_STRONGEST_FIRST = 3
    DUAL_STRONGEST_LAST = 4
    DUAL_WEAK_FIRST = 5
    DUAL_WEAK_LAST = 6
    DUAL_ONLY = 7  # the only return of its beam


_STEP_RAD = np.radians(0.1)  # returns of a beam differ by less: lasers are not in the middle
_TICK_S = 1e-6  # a laser fires once in this time
_COS_NEAR = np.cos(np.radians(0.5))  # drivers may give one time to several firings
_ROW = 1 << 24  # more than the firings of a sweep in ticks
_RINGS = 1 << 16
_SAME_M = 0.01


def last_returns(cloud: PointCloud) -> npt.NDArray[np.bool_] | None:
    """(N,) bool: no other return of the same beam is farther away.

    None if no field tells of several returns, and no two LiDARs are at one place (some drivers have
    a topic for each return): each beam then has one. Returns of a beam have one ring and time, or
    nearly one direction if these are not known. What is found is kept in `cloud.last`.

    Args:
        cloud: not deskewed, or with `last` known.
    """
    if cloud.last is None and _has_several(cloud):
        cloud.last = _farthest(cloud)
    return cloud.last


def beam_source(cloud: PointCloud) -> npt.NDArray[np.int64]:
    """(N,) number of the place where the beam of each point starts."""
    if cloud.source is None or cloud.origins is None:
        return np.zeros(len(cloud), np.int64)
    _, place = np.unique(cloud.origins, axis=0, return_inverse=True)
    numbers: npt.NDArray[np.int64] = place.reshape(-1)[cloud.source]
    return numbers


def _has_several(cloud: PointCloud) -> bool:
    name = next((name for name in RETURN_NAMES if name in cloud.extra), None)
    values = None if name is None else cloud.extra[name]
    if values is not None and values.ndim == 1 and len(values) and (values != values[0]).any():
        return True
    if cloud.source is None or cloud.origins is None:
        return False
    present = cloud.origins[np.unique(cloud.source)]
    return len(np.unique(present, axis=0)) < len(present)


def _farthest(cloud: PointCloud) -> npt.NDArray[np.bool_]:
    known = np.flatnonzero(cloud.finite)
    points = cloud.xyz[known].astype(np.float64)
    if cloud.source is not None and cloud.origins is not None:
        points -= cloud.origins[cloud.source[known]]
    distance = np.linalg.norm(points, axis=1)
    lidar = beam_source(cloud)[known] * _ROW**2
    found = np.ones(len(known), bool)
    if cloud.ring is not None and cloud.time is not None and np.ptp(cloud.time[known]) > 0:
        tick = np.rint((cloud.time[known] - cloud.time[known].min()) / _TICK_S).astype(np.int64)
        # Points come in the order of firing: numbers that rise with time are sorted soonest.
        beam = lidar + tick * _RINGS + cloud.ring[known]
        shared, farthest = _ends(beam, distance)
        along = np.einsum("ij,ij->i", points[shared], points[farthest])
        near = along >= _COS_NEAR * distance[shared] * distance[farthest]
        found[shared] = ~near | (distance[shared] >= distance[farthest] - _SAME_M)
    else:
        for shift in (0.0, 0.5):  # so that no border separates the returns of a beam
            beam = lidar + _directions(
                points, None if cloud.ring is None else cloud.ring[known], shift
            )
            shared, farthest = _ends(beam, distance)
            found[shared] &= distance[shared] >= distance[farthest] - _SAME_M
    last = np.ones(len(cloud), bool)
    last[known] = found
    return last


def _directions(
    points: Array, ring: npt.NDArray[np.uint16] | None, shift: float
) -> npt.NDArray[np.int64]:
    """(M,) cell of each direction: by azimuth, and by ring or elevation."""
    x, y, z = points.T
    column = np.floor(np.arctan2(y, x) / _STEP_RAD + shift).astype(np.int64) % _ROW
    row = np.floor(np.arctan2(z, np.hypot(x, y)) / _STEP_RAD + shift).astype(np.int64) % _ROW
    if ring is not None:
        row = ring.astype(np.int64)
    cell: npt.NDArray[np.int64] = row * _ROW + column
    return cell


def _ends(
    group: npt.NDArray[np.int64], distance: Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Points that share their group (K,), and the farthest member of the group of each (K,)."""
    order = np.argsort(group, kind="stable")
    again = np.zeros(len(order) + 1, bool)
    again[1:-1] = np.diff(group[order]) == 0
    shared = order[again[1:] | again[:-1]]
    shared = shared[np.lexsort((distance[shared], group[shared]))]
    change = np.append(np.diff(group[shared]) != 0, True)[: len(shared)]
    ends = np.flatnonzero(change)
    farthest: npt.NDArray[np.int64] = shared[np.repeat(ends, np.diff(ends, prepend=-1))]
    return shared, farthest
