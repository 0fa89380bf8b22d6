# SPDX-License-Identifier: Apache-2.0
"""Several returns of one beam: which of them is the last.

The numbers that drivers write into such a field differ: in `return_type`, 4 is the last return for
Autoware's older drivers and a first one for Nebula. So a field with different numbers only tells
that there are several returns; which one is the last follows from the points: the farthest in its
direction.
"""

from __future__ import annotations

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

_STEP_RAD = np.radians(0.02)  # directions that differ by less are of one beam
_ROW = 1 << 20  # more than the azimuths of a turn
_SAME_M = 0.01


def last_returns(cloud: PointCloud) -> npt.NDArray[np.bool_] | None:
    """(N,) bool: no other point of the same LiDAR lies behind this one in its direction.

    None if no field tells of several returns: each beam then has one. What is found is kept in
    `cloud.last`.

    Args:
        cloud: not deskewed, or with `last` known.
    """
    if cloud.last is not None:
        return cloud.last
    name = next((name for name in RETURN_NAMES if name in cloud.extra), None)
    values = None if name is None else cloud.extra[name]
    if values is None or values.ndim != 1 or not len(values) or (values == values[0]).all():
        return None
    cloud.last = _farthest(cloud)
    return cloud.last


def _farthest(cloud: PointCloud) -> npt.NDArray[np.bool_]:
    points = cloud.xyz if cloud.xyz.dtype == np.float32 else cloud.xyz.astype(np.float32)
    if cloud.source is not None and cloud.origins is not None:
        points = points - cloud.origins[cloud.source]
    known = np.flatnonzero(cloud.finite)
    x, y, z = points[known].T.astype(np.float64)
    ground = np.hypot(x, y)
    column = np.floor((np.arctan2(y, x) + np.pi) / _STEP_RAD).astype(np.int64)
    row = np.floor((np.arctan2(z, ground) + np.pi) / _STEP_RAD).astype(np.int64)
    beam = row * _ROW + column
    if cloud.source is not None:
        beam += cloud.source[known].astype(np.int64) * _ROW**2
    distance = np.sqrt(ground * ground + z * z)
    order = np.lexsort((distance, beam))
    ends = np.append(np.flatnonzero(np.diff(beam[order])), len(order) - 1) if len(order) else order
    group = np.cumsum(np.append(0, np.diff(beam[order]) != 0))
    last = np.ones(len(cloud), bool)
    last[known[order]] = distance[order] >= distance[order[ends]][group] - _SAME_M
    return last
