# SPDX-License-Identifier: Apache-2.0
"""Free space of a sweep: what its beams passed through."""

from __future__ import annotations

from ctypes import byref, c_float
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import PointCloud
from pcseg_core.native.library import check, optional_library, thread_count
from pcseg_core.native.structures import ImageArgs, Points, View, Views, address
from pcseg_core.returns import beam_source, last_returns

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_COLUMNS, _ROWS = 1024, 128
_SPARSE = 40_000  # points, such as 32 beams x 1024 columns
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
    """Every second point, which still covers every cell; all if they are returns of one beam.

    All of a sparse sweep as well: from one of its columns to the next there may be two cells.
    """
    whole = count <= _SPARSE or (beams is not None and beams.last is not None)
    return slice(0, count, 1 if whole else 2)


class FreeSpace:
    """What the beams of a sweep passed, of each LiDAR apart."""

    def __init__(self, points: Array, beams: Beams | None = None) -> None:
        """Build from points (3, N) float32, LiDAR frame [m].

        Args:
            points: the points of the sweep; those that are no returns are left out.
            beams: of these points; None if each starts at the origin and has one return. Beams end
                at their last return. The places of other returns are not passed.
        """
        if beams is None:
            beams = Beams(None, np.zeros((1, 3), np.float32), None)
        self._views = []
        for number, origin in enumerate(np.asarray(beams.origins, np.float32)):
            own = None if beams.source is None else beams.source == number
            if own is None or own.any():
                self._views.append(_Images(points, origin, own, beams.last))
        self._listed = (View * len(self._views))(*(view.structure for view in self._views))

    @classmethod
    def of(cls, cloud: PointCloud) -> FreeSpace:
        """What the beams of a sweep passed, from as many of its points as cover every cell."""
        beams = Beams.of(cloud)
        seen = half(len(cloud), beams)
        return cls(cloud.xyz[seen].T, None if beams is None else beams.take(seen))

    def passed(self, points: Array, margin_m: float) -> npt.NDArray[np.bool_]:
        """(M,) bool: all returns around the direction of a point (3, M) are beyond it by a margin.

        One LiDAR that tells so is enough. False in directions without returns, where free space is
        unknown.
        """
        library, points = optional_library(), np.asarray(points, np.float32)
        if library is None:
            found = np.zeros(points.shape[1], bool)
            for view in self._views:
                found |= view.passed(points, margin_m)
            return found
        found = np.empty(points.shape[1], bool)
        views, structure = self.views(margin_m), Points.of(points.T)
        check(library.pcseg_passed(byref(views), byref(structure), address(found), 1))
        return found

    def behind(self, points: Array, margin_m: float) -> npt.NDArray[np.bool_]:
        """(M,) bool: for each LiDAR, a return around the direction of a point (3, M) is nearer."""
        library, points = optional_library(), np.asarray(points, np.float32)
        if library is None:
            found = np.ones(points.shape[1], bool)
            for view in self._views:
                found &= view.behind(points, margin_m)
            return found
        found = np.empty(points.shape[1], bool)
        views, structure = self.views(margin_m), Points.of(points.T)
        check(library.pcseg_behind(byref(views), byref(structure), address(found)))
        return found

    def views(self, margin_m: float) -> Views:
        """The range images for the native library; they live as long as this object."""
        return Views(self._listed, len(self._listed), margin_m)


class _Images:
    """Range images of one LiDAR, in cells of 0.35 by about 0.5 degrees.

    Args:
        points: (3, N) of all LiDARs [m].
        origin: (3,) place of this one [m].
        own: (N,) bool, its points; None if all are.
        last: (N,) bool; None if all are last returns.
    """

    def __init__(
        self,
        points: Array,
        origin: Float32,
        own: npt.NDArray[np.bool_] | None,
        last: npt.NDArray[np.bool_] | None,
    ) -> None:
        self._origin = origin
        self._before: tuple[Float32, Float32] | None = None  # nearest and farthest other return
        if last is not None and not last.all():
            other = ~last if own is None else ~last & own
            self._before = (
                _range_image(points, origin, other, farthest=False),
                _range_image(points, origin, other, farthest=True),
            )
            own = last if own is None else last & own
        self._reach = _range_image(points, origin, own, farthest=False)

    @property
    def structure(self) -> View:
        """For the native library."""
        images = (self._reach, *(self._before or ()))
        addresses = [address(image) for image in images] + [None] * (3 - len(images))
        return View(*addresses, (c_float * 3)(*self._origin.tolist()))

    def behind(self, points: Array, margin_m: float) -> npt.NDArray[np.bool_]:
        """See `FreeSpace.behind`."""
        points = points - self._origin[:, None]
        cell, distance = _cells(points)
        finite = np.isfinite(distance) & np.isfinite(points[2])
        found: npt.NDArray[np.bool_] = finite & (self._reach[cell] + margin_m < distance)
        return found

    def passed(self, points: Array, margin_m: float) -> npt.NDArray[np.bool_]:
        """See `FreeSpace.passed`."""
        cell, distance = _cells(points - self._origin[:, None])
        reach = self._reach[cell]
        passed: npt.NDArray[np.bool_] = (distance + margin_m < reach) & np.isfinite(reach)
        if self._before is not None:
            nearest, farthest = (image[cell] for image in self._before)
            passed &= (distance + margin_m < nearest) | (distance - margin_m > farthest)
        return passed


def _range_image(
    points: Array, origin: Float32, chosen: npt.NDArray[np.bool_] | None, farthest: bool
) -> Float32:
    """Flat image of the nearest, or farthest, return in each cell and those around it.

    Args:
        points: (3, N) [m]; other than returns are left out.
        origin: (3,) of the distances [m].
        chosen: (N,) bool, points that are drawn; None for all.
        farthest: of the returns.
    """
    library = optional_library()
    if library is None:
        return _numpy_range_image(points, origin, chosen, farthest)
    points = np.asarray(points, np.float32)
    image = np.empty(_COLUMNS * _ROWS, np.float32)
    mask = None if chosen is None else np.ascontiguousarray(chosen)
    args = ImageArgs(
        Points.of(points.T),
        None if mask is None else mask.ctypes.data,
        image.ctypes.data,
        (c_float * 3)(*origin.tolist()),
        farthest,
    )
    check(library.pcseg_range_image(byref(args), thread_count()))
    return image


def _numpy_range_image(
    points: Array, origin: Float32, chosen: npt.NDArray[np.bool_] | None, farthest: bool
) -> Float32:
    with np.errstate(invalid="ignore", over="ignore"):
        used = np.isfinite(points.sum(0)) & points.any(0)
    cell, distance = _cells(points[:, used if chosen is None else used & chosen] - origin[:, None])
    sign = np.float32(-1 if farthest else 1)
    nearest = np.full(_COLUMNS * _ROWS, np.inf, np.float32)
    np.minimum.at(nearest, cell, sign * distance)
    eroded = _erode(nearest.reshape(_ROWS, _COLUMNS)).ravel()
    return -eroded if farthest else eroded


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
