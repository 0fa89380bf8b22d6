# SPDX-License-Identifier: Apache-2.0
"""Lost beams: some beams missing, and another sensor with fewer beams."""

from __future__ import annotations

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.corruptions.corrupted import (
    Array,
    Corrupted,
    LabeledCloud,
    Rng,
    Severity,
    corrupted,
)

_SENSORS = (4, 8, 16, 32, 40, 64, 80, 128, 256)  # numbers of beams on the market
_BANDS = 64  # beams of a cloud that does not tell its own
_QUARTERS: dict[Severity, int] = {"light": 1, "moderate": 2, "heavy": 3}
_STEP: dict[Severity, float] = {"light": 4, "moderate": 2, "heavy": 1.33}
# First and last beam that may be lost, of sensors whose definition is published.
_LOST_BETWEEN = {64: (4, 58), 32: (2, 28)}


def beam_missing(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """A quarter, half or three quarters of the beams are drawn, with replacement, and lost.

    Of 64 beams 16, 32 or 48 are drawn from 4 to 58, of 32 beams 8, 16 or 24 from 2 to 28, of
    other sensors the same shares. Drawn twice is lost once, so that fewer go.
    """
    beam, count = beams_of(scene.cloud)
    first, last = _LOST_BETWEEN.get(count, (round(count / 16), round(count * 0.9)))
    drawn = rng.integers(first, last + 1, 3 * count // 4)
    lost = drawn[: _QUARTERS[severity] * count // 4]
    return corrupted(scene.cloud, keep=~np.isin(beam, lost))


def cross_sensor(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """A quarter, half or three quarters of the beams go evenly, then every second point.

    Beams 1, 1 + step, ... go, for steps of 4, 2 and 1.33. Every second point of each beam goes:
    in clouds that are stored beam by beam, every second point.
    """
    beam, count = beams_of(scene.cloud)
    lost = np.arange(1, count, _STEP[severity]).astype(np.int64)
    keep = ~np.isin(beam, lost)
    left = np.flatnonzero(keep)
    keep[left[_rank(beam[left]) % 2 == 1]] = False
    return corrupted(scene.cloud, keep=keep)


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


def _rank(beam: Array) -> Array:
    """Position (N,) of each point among those of its beam."""
    order = np.argsort(beam, kind="stable")
    starts = np.flatnonzero(np.diff(beam[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(beam)))
    rank = np.empty(len(beam), np.int64)
    rank[order] = np.arange(len(beam)) - np.repeat(starts, lengths)
    return rank
