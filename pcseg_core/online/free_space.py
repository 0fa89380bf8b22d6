# SPDX-License-Identifier: Apache-2.0
"""Free space of a sweep: what its beams passed through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.returns import beam_source, last_returns

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_COLUMNS, _ROWS = 1024, 128
_SLOPE = 0.7  # largest height over ground distance: 35 degrees up and down


@dataclass(frozen=True)
class Beams:
    """Where the beams of a cloud start, and which of their returns are the last.

    Attributes:
        source: (N,) place of the LiDAR of each point; None if all start at the origin.
        origins: (S, 3) these places [m].
        last: (N,) bool; None if each beam has one return.
    """

    source: Array | None
    origins: Array
    last: npt.NDArray[np.bool_] | None

    @classmethod
    def of(cls, cloud: PointCloud) -> Beams | None:
        """Those of a cloud; None if each starts at the origin and has one return."""
        last = last_returns(cloud)
        if cloud.source is None or cloud.origins is None:
            return None if last is None else cls(None, np.zeros((1, 3), np.float32), last)
        places = np.unique(cloud.origins, axis=0)
        return cls(beam_source(cloud), places, last)

    def take(self, rows: Array | slice) -> Beams:
        """Those of some of the points."""
        source = None if self.source is None else self.source[rows]
        return Beams(source, self.origins, None if self.last is None else self.last[rows])


def half(count: int, beams: Beams | None) -> slice:
    """Every second point, which still covers every cell; all if they are returns of one beam."""
    return slice(0, count, 1 if beams is not None and beams.last is not None else 2)


class FreeSpace:
    """What the beams of a sweep passed, of each LiDAR apart."""

    def __init__(self, points: Array, beams: Beams | None = None) -> None:
        """Build from points (3, N) float32, finite, LiDAR frame [m].

        Args:
            points: the returns.
            beams: of these points; None if each starts at the origin and has one return. Beams end
                at their last return. The places of other returns are not passed.
        """
        if beams is None:
            self._views = [(np.zeros((3, 1), np.float32), _View(points, None))]
            return
        self._views = []
        for number, origin in enumerate(np.asarray(beams.origins, np.float32)):
            own = slice(None) if beams.source is None else beams.source == number
            start, part = origin[:, None], points[:, own]
            if part.shape[1]:
                last = None if beams.last is None else beams.last[own]
                self._views.append((start, _View(part - start, last)))

    def passed(self, points: Array, margin_m: float) -> npt.NDArray[np.bool_]:
        """(M,) bool: all returns around the direction of a point (3, M) are beyond it by a margin.

        One LiDAR that tells so is enough. False in directions without returns, where free space is
        unknown.
        """
        found = np.zeros(points.shape[1], bool)
        for start, view in self._views:
            found |= view.passed(points - start, margin_m)
        return found


class _View:
    """Range images of one LiDAR, in cells of 0.35 by about 0.5 degrees.

    Args:
        points: (3, N) relative to the LiDAR [m].
        last: (N,) bool, or None if all are last returns.
    """

    def __init__(self, points: Array, last: npt.NDArray[np.bool_] | None) -> None:
        cell, distance = _cells(points)
        self._before: tuple[Float32, Float32] | None = None  # nearest and farthest other return
        if last is not None and not last.all():
            other = ~last
            ends = [_image(cell[other], sign * distance[other]) for sign in (1, -1)]
            self._before = ends[0], -ends[1]
            cell, distance = cell[last], distance[last]
        self._reach = _image(cell, distance)

    def passed(self, points: Array, margin_m: float) -> npt.NDArray[np.bool_]:
        """See `FreeSpace.passed`."""
        cell, distance = _cells(points)
        reach = self._reach[cell]
        passed: npt.NDArray[np.bool_] = (distance + margin_m < reach) & np.isfinite(reach)
        if self._before is not None:
            nearest, farthest = (image[cell] for image in self._before)
            passed &= (distance + margin_m < nearest) | (distance - margin_m > farthest)
        return passed


def _image(cell: Array, distance: Array) -> Float32:
    """Flat range image of the nearest return in each cell and those around it."""
    nearest = np.full(_COLUMNS * _ROWS, np.inf, np.float32)
    np.minimum.at(nearest, cell, distance)
    return _erode(nearest.reshape(_ROWS, _COLUMNS)).ravel()


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
