# SPDX-License-Identifier: Apache-2.0
"""The beam of each point of a sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud

Array = npt.NDArray[Any]

_SENSORS = (4, 8, 16, 32, 40, 64, 80, 128, 256)  # numbers of beams on the market
_BANDS = 64  # beams of a cloud that does not tell its own


def beams_of(cloud: PointCloud) -> tuple[Array, int]:
    """Beam of each point (N,) int64, and the number of beams of the sensor.

    In this order: the ring field, with the number of beams of the next larger sensor on the
    market; the turns of a cloud that is stored beam by beam, as in KITTI; 64 equal bands of
    elevation.
    """
    found = cloud.ring.astype(np.int64) if cloud.ring is not None else _turns(cloud)
    if found is None:
        return _bands(cloud), _BANDS
    used = found[cloud.finite]
    highest = int(used.max(initial=0)) + 1
    return found, next((count for count in _SENSORS if count >= highest), highest)


def _turns(cloud: PointCloud) -> Array | None:
    """Number of full turns before each point (N,); None if the beams do not follow each other."""
    if len(cloud) < _BANDS or not cloud.finite.all():
        return None
    x, y, z = cloud.xyz.T.astype(np.float64)
    step = np.diff(np.arctan2(y, x) % (2 * np.pi), prepend=0.0)
    turns = np.cumsum((step < -np.pi).astype(np.int64) - (step > np.pi))
    turns = np.maximum.accumulate(np.maximum(turns, 0))
    count = int(turns[-1]) + 1
    if not 8 <= count <= _SENSORS[-1]:
        return None
    points = np.bincount(turns, minlength=count)
    elevation = np.arctan2(z, np.hypot(x, y))
    mean = np.bincount(turns, weights=elevation, minlength=count) / np.maximum(points, 1)
    falling = np.mean(np.diff(mean[points > 0]) < 0)
    return turns if max(falling, 1 - falling) > 0.9 else None


def _bands(cloud: PointCloud) -> Array:
    """Elevation band (N,) of each point, 0 the lowest, between the outermost points but 0.5 %."""
    finite = cloud.finite
    x, y, z = cloud.xyz[finite].T.astype(np.float64)
    elevation = np.arctan2(z, np.hypot(x, y))
    low, high = np.quantile(elevation, (0.005, 0.995)) if len(elevation) else (0.0, 0.0)
    share = (elevation - low) / max(high - low, 1e-9)
    bands = np.zeros(len(cloud), np.int64)
    bands[finite] = np.clip((share * _BANDS).astype(np.int64), 0, _BANDS - 1)
    return bands
