# SPDX-License-Identifier: Apache-2.0
"""Free space of a sweep: what its beams passed through."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_COLUMNS, _ROWS = 1024, 128
_SLOPE = 0.7  # largest height over ground distance: 35 degrees up and down


class FreeSpace:
    """Range image of the nearest returns, in cells of 0.35 by about 0.5 degrees."""

    def __init__(self, points: Array) -> None:
        """Build from points (3, N) float32, finite, LiDAR frame [m]."""
        cell, distance = _cells(points)
        nearest = np.full(_COLUMNS * _ROWS, np.inf, np.float32)
        np.minimum.at(nearest, cell, distance)
        self._reach = _erode(nearest.reshape(_ROWS, _COLUMNS)).ravel()

    def passed(self, points: Array, margin_m: float) -> npt.NDArray[np.bool_]:
        """(M,) bool: all returns around the direction of a point (3, M) are beyond it by a margin.

        False in directions without returns, where free space is unknown.
        """
        cell, distance = _cells(points)
        reach = self._reach[cell]
        passed: npt.NDArray[np.bool_] = (distance + margin_m < reach) & np.isfinite(reach)
        return passed


def _cells(points: Array) -> tuple[npt.NDArray[np.int32], Float32]:
    """(N,) cell and (N,) horizontal distance of each point."""
    x, y, z = points
    ground = np.sqrt(x * x + y * y)
    azimuth = np.arctan2(y, x)
    column = ((azimuth + np.float32(np.pi)) * np.float32(_COLUMNS / (2 * np.pi))).astype(np.int32)
    slope = z / np.maximum(ground, np.float32(1e-3))
    level = (slope + np.float32(_SLOPE)) * np.float32(_ROWS / (2 * _SLOPE))
    row = np.clip(level, 0, _ROWS - 1).astype(np.int32)
    return row * _COLUMNS + (column & (_COLUMNS - 1)), ground


def _erode(image: Float32) -> Float32:
    """Minimum over the 3 x 3 cells around each; columns wrap around."""
    wide = np.minimum(np.minimum(np.roll(image, 1, 1), np.roll(image, -1, 1)), image)
    low = wide.copy()
    np.minimum(low[1:], wide[:-1], out=low[1:])
    np.minimum(low[:-1], wide[1:], out=low[:-1])
    result: Float32 = low
    return result
