# SPDX-License-Identifier: Apache-2.0
"""Depth edges of a sweep: places where the range jumps between neighboring points.

The nearer surface hides the other: an edge lies beside its last point, half a step of azimuth or
elevation further. Points before the empty sky are edges too. The step is that of the sensor: the
directions of the two points differ by more, once they are deskewed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from pcseg_core.beams import beams_of
from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import transform

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

NEAREST_M = 2.0  # nearer points may be of the vehicle itself
_JUMP_M = 0.4  # smallest jump of the range
_JUMP_RATIO = 0.04  # and relative to the range
_STEEPER = 3.0  # a jump exceeds the change on the surfaces beside it this many times
_MIN_POINTS = 20  # of a beam
_MAX_COLUMNS = 2048
_SKY_STEPS = 4.0  # steps of azimuth without a return before the sky
_WIDEST_SKY = np.radians(40)  # a wider gap is the end of the field of view
# An edge of another sweep is that of the same place up to this distance, and more per range.
_SAME_M = 0.2
_SAME_RATIO = 0.01


@dataclass(frozen=True)
class DepthEdges:
    """Edges of one sweep, in its frame.

    Attributes:
        xyz: (N, 3) float64 [m].
        across: (N, 3) float64 unit vectors across the edges and the rays.
        weight: (N,) float64 in 0 to 1, by the size of the jump.
        static: (N,) bool: known to be of something that does not move, in a deskewed sweep.
    """

    xyz: Float64
    across: Float64
    weight: Float64
    static: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, index: Array) -> DepthEdges:
        """Edges by mask or index."""
        xyz, across = self.xyz[index], self.across[index]
        return DepthEdges(xyz, across, self.weight[index], self.static[index])

    def seen_again(self, other: DepthEdges, T_other_own: Float64) -> DepthEdges:
        """The edges; static are those where another sweep has an edge too.

        Args:
            other: edges of a sweep some tenths of a second before or after.
            T_other_own: (4, 4) from the sweep of these edges to the other one.
        """
        if not len(other) or not len(self):
            return self
        away, _ = cKDTree(other.xyz).query(transform(T_other_own, self.xyz))
        near = away < _SAME_M + _SAME_RATIO * np.linalg.norm(self.xyz, axis=1)
        return replace(self, static=near)


@dataclass(frozen=True)
class _Points:
    """Returns of a sweep as measured, sorted by beam and azimuth.

    `xyz` and `shift` are (M, 3), the rest is (M,). Deskewing adds `shift` to `xyz`.
    """

    xyz: Float64
    shift: Float64
    range_m: Float64
    azimuth: Float64
    beam: Array


def depth_edges(cloud: PointCloud, xyz: Array | None = None) -> DepthEdges:
    """The depth edges of a sweep.

    Args:
        cloud: the sweep. Beams are those of `pcseg_core.beams.beams_of`.
        xyz: (N, 3) its deskewed points; None takes those of the cloud. Of the united sweeps of
            several LiDARs the first one counts.
    """
    if cloud.source is not None:
        return _of_first_lidar(cloud, cloud.xyz if xyz is None else xyz)
    points = _sorted(cloud, cloud.xyz if xyz is None else xyz)
    if len(points.beam) < _MIN_POINTS:
        empty = np.zeros((0, 3))
        return _edges(empty, empty, np.zeros(0))
    step = _azimuth_step(points)
    parts = [*_along_beams(points, step), *_between_beams(points, step)]
    return _edges(
        np.concatenate([part.xyz for part in parts]),
        np.concatenate([part.across for part in parts]),
        np.concatenate([part.weight for part in parts]),
    )


def _edges(xyz: Float64, across: Float64, weight: Float64) -> DepthEdges:
    return DepthEdges(xyz, across, weight, np.zeros(len(xyz), bool))


def _of_first_lidar(cloud: PointCloud, xyz: Array) -> DepthEdges:
    """Edges of the first of several LiDARs: beams and ranges are those from its own place."""
    first = np.flatnonzero(cloud.source == 0)
    origin = np.zeros(3, np.float32) if cloud.origins is None else cloud.origins[0]
    chosen = cloud.select(first)
    alone = replace(chosen, xyz=chosen.xyz - origin, source=None, origins=None)
    edges = depth_edges(alone, xyz[first] - origin)
    return replace(edges, xyz=edges.xyz + origin)


def _sorted(cloud: PointCloud, xyz: Array) -> _Points:
    beam = beams_of(cloud)[0]
    measured = np.where(cloud.finite[:, None], cloud.xyz, 0.0).astype(np.float64)
    range_m = np.linalg.norm(measured, axis=1)
    azimuth = np.arctan2(measured[:, 1], measured[:, 0])
    kept = np.flatnonzero(range_m > NEAREST_M)
    kept = kept[np.lexsort((azimuth[kept], beam[kept]))]
    shift = xyz[kept] - measured[kept]
    return _Points(measured[kept], shift, range_m[kept], azimuth[kept], beam[kept])


def _azimuth_step(points: _Points) -> float:
    """Usual step of azimuth between neighbors in a beam [rad]."""
    steps = np.diff(points.azimuth)[np.diff(points.beam) == 0]
    return max(float(np.median(steps)) if len(steps) else 0.0, 2 * np.pi / 8192)


def _along_beams(points: _Points, step: float) -> list[DepthEdges]:
    """Edges between neighbors of the same beam, and beside gaps before the sky."""
    same = np.diff(points.beam) == 0
    gap = np.diff(points.azimuth)
    jump = np.where(same & (gap < 2.5 * step), np.diff(points.range_m), np.nan)
    first = np.flatnonzero(_is_edge(jump[None], points.range_m[None])[0])
    half = 0.5 * step * np.maximum(np.round(gap[first] / step), 1.0)
    at, sign, weight = _nearer(points, first, first + 1)
    found = [_turned(points, at, sign * half, weight)]
    before = np.flatnonzero(same & (gap > _SKY_STEPS * step) & (gap < _WIDEST_SKY))
    for at, turn in ((before, 0.5 * step), (before + 1, -0.5 * step)):
        found.append(_turned(points, at, np.full(len(at), turn), np.ones(len(at))))
    return found


def _between_beams(points: _Points, step: float) -> list[DepthEdges]:
    """Edges between neighbors of adjacent beams, and above which the sky begins."""
    index = _range_image(points, step)
    known = index >= 0
    ranges = np.where(known, points.range_m[index], np.nan)
    row, column = np.nonzero(_is_edge(np.diff(ranges, axis=0).T, ranges.T).T)
    half = 0.5 * np.diff(_elevations(points, index))
    at, sign, weight = _nearer(points, index[row, column], index[row + 1, column])
    found = [_raised(points, at, sign * half[row], weight)]
    # Two columns around must be empty: single points get lost everywhere.
    empty = ndimage.minimum_filter((~known).astype(np.uint8), size=(1, 5), mode="wrap") > 0
    row, column = np.nonzero(known[:-1] & empty[1:])
    found.append(_raised(points, index[row, column], half[row], np.ones(len(row))))
    return found


def _range_image(points: _Points, step: float) -> npt.NDArray[np.int64]:
    """(beams, columns) index of a point, -1 for none; the lowest beam is first."""
    columns = int(np.clip(2 * np.pi / step * 0.9, 16, _MAX_COLUMNS))
    beams, counts = np.unique(points.beam, return_counts=True)
    beams = beams[counts >= _MIN_POINTS]
    elevation = np.arcsin(points.xyz[:, 2] / points.range_m)
    middle = [float(np.median(elevation[points.beam == beam])) for beam in beams]
    row_of = np.full(int(points.beam.max()) + 1, -1)
    row_of[beams[np.argsort(middle)]] = np.arange(len(beams))
    row = row_of[points.beam]
    column = ((points.azimuth + np.pi) / (2 * np.pi) * columns).astype(np.int64) % columns
    image = np.full((len(beams), columns), -1, dtype=np.int64)
    kept = np.flatnonzero(row >= 0)
    image[row[kept], column[kept]] = kept
    return image


def _elevations(points: _Points, index: npt.NDArray[np.int64]) -> Float64:
    """(beams,) median elevation of each row of a range image [rad]."""
    elevation = np.arcsin(points.xyz[:, 2] / points.range_m)
    return np.array([np.median(elevation[row[row >= 0]]) for row in index])


def _is_edge(jump: Float64, ranges: Float64) -> npt.NDArray[np.bool_]:
    """(R, M - 1) bool: jumps between columns of ranges (R, M) that no smooth surface has.

    On a slanted surface the jumps beside are as large. Beside a thin object one of them is large.
    """
    size = np.abs(jump)
    unknown = np.full((len(size), 1), np.nan)
    beside = np.fmin(np.hstack([unknown, size[:, :-1]]), np.hstack([size[:, 1:], unknown]))
    nearer = np.fmin(ranges[:, :-1], ranges[:, 1:])
    smooth = np.where(np.isfinite(beside), beside, np.inf)
    edge: npt.NDArray[np.bool_] = (
        size > np.maximum(_JUMP_M, _JUMP_RATIO * nearer) + _STEEPER * smooth
    )
    return edge


def _nearer(points: _Points, first: Array, second: Array) -> tuple[Array, Float64, Float64]:
    """Of pairs of points: the nearer one, the sign of the way to the other, and the weight."""
    one, other = points.range_m[first], points.range_m[second]
    weight = np.minimum(5.0 * np.abs(other - one) / np.minimum(one, other), 1.0)
    return np.where(one <= other, first, second), np.where(one <= other, 1.0, -1.0), weight


def _turned(points: _Points, at: Array, turn: Float64, weight: Float64) -> DepthEdges:
    """Edges beside points, along the azimuth [rad]."""
    x, y, z = points.xyz[at].T
    cos, sin = np.cos(turn), np.sin(turn)
    edge = np.stack([x * cos - y * sin, x * sin + y * cos, z], axis=1)
    return _edges(edge + points.shift[at], _azimuthal(edge), weight)


def _raised(points: _Points, at: Array, turn: Float64, weight: Float64) -> DepthEdges:
    """Edges beside points, along the elevation [rad]."""
    xyz = points.xyz[at]
    up = _upward(xyz)
    edge = xyz * np.cos(turn)[:, None] + up * (points.range_m[at] * np.sin(turn))[:, None]
    return _edges(edge + points.shift[at], up, weight)


def _azimuthal(xyz: Float64) -> Float64:
    """(N, 3) unit vectors along increasing azimuth."""
    flat = np.maximum(np.hypot(xyz[:, 0], xyz[:, 1]), 1e-9)
    return np.stack([-xyz[:, 1] / flat, xyz[:, 0] / flat, np.zeros(len(xyz))], axis=1)


def _upward(xyz: Float64) -> Float64:
    """(N, 3) unit vectors along increasing elevation."""
    ray = xyz / np.linalg.norm(xyz, axis=1, keepdims=True)
    return np.cross(ray, _azimuthal(xyz))
