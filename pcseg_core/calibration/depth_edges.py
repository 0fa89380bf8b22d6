# SPDX-License-Identifier: Apache-2.0
"""Depth edges of a sweep: places where the range jumps between neighboring points.

An edge lies halfway between the directions of the two points, at the range of the nearer one:
the nearer surface hides the other. Points before the empty sky are edges too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pcseg_core.beams import beams_of
from pcseg_core.cloud import PointCloud

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


@dataclass(frozen=True)
class DepthEdges:
    """Edges of one sweep, in its frame.

    Attributes:
        xyz: (N, 3) float64 [m].
        across: (N, 3) float64 unit vectors across the edges and the rays.
        weight: (N,) float64 in 0 to 1, by the size of the jump.
    """

    xyz: Float64
    across: Float64
    weight: Float64

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, index: Array) -> DepthEdges:
        """Edges by mask or index."""
        return DepthEdges(self.xyz[index], self.across[index], self.weight[index])


@dataclass(frozen=True)
class _Points:
    """Returns of a sweep, sorted by beam and azimuth: `xyz` (M, 3), the rest (M,)."""

    xyz: Float64
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
        return DepthEdges(empty, empty, np.zeros(0))
    step = _azimuth_step(points)
    parts = [*_along_beams(points, step), *_between_beams(points, step)]
    return DepthEdges(
        np.concatenate([part.xyz for part in parts]),
        np.concatenate([part.across for part in parts]),
        np.concatenate([part.weight for part in parts]),
    )


def _of_first_lidar(cloud: PointCloud, xyz: Array) -> DepthEdges:
    """Edges of the first of several LiDARs: beams and ranges are those from its own place."""
    first = np.flatnonzero(cloud.source == 0)
    origin = np.zeros(3, np.float32) if cloud.origins is None else cloud.origins[0]
    chosen = cloud.select(first)
    alone = replace(chosen, xyz=chosen.xyz - origin, source=None, origins=None)
    edges = depth_edges(alone, xyz[first] - origin)
    return DepthEdges(edges.xyz + origin, edges.across, edges.weight)


def _sorted(cloud: PointCloud, xyz: Array) -> _Points:
    beam = beams_of(cloud)[0]
    measured = np.linalg.norm(np.where(cloud.finite[:, None], cloud.xyz, 0.0), axis=1)
    kept = np.flatnonzero(measured > NEAREST_M)
    azimuth = np.arctan2(cloud.xyz[kept, 1], cloud.xyz[kept, 0])  # as measured: even in a beam
    order = np.lexsort((azimuth, beam[kept]))
    kept = kept[order]
    moved = xyz[kept].astype(np.float64)
    return _Points(
        moved, np.linalg.norm(moved, axis=1), azimuth[order].astype(np.float64), beam[kept]
    )


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
    found = [_halfway(points, first, first + 1, _azimuthal(points.xyz[first]))]
    before = np.flatnonzero(same & (gap > _SKY_STEPS * step) & (gap < _WIDEST_SKY))
    for at, turn in ((before, 0.5 * step), (before + 1, -0.5 * step)):
        xyz = points.xyz[at]
        x = xyz[:, 0] * np.cos(turn) - xyz[:, 1] * np.sin(turn)
        y = xyz[:, 0] * np.sin(turn) + xyz[:, 1] * np.cos(turn)
        edge = np.stack([x, y, xyz[:, 2]], axis=1)
        found.append(DepthEdges(edge, _azimuthal(edge), np.ones(len(at))))
    return found


def _between_beams(points: _Points, step: float) -> list[DepthEdges]:
    """Edges between neighbors of adjacent beams, and above which the sky begins."""
    index = _range_image(points, step)
    known = index >= 0
    ranges = np.where(known, points.range_m[index], np.nan)
    row, column = np.nonzero(_is_edge(np.diff(ranges, axis=0).T, ranges.T).T)
    first, second = index[row, column], index[row + 1, column]
    found = [_halfway(points, first, second, _upward(points.xyz[first]))]
    # Two columns around must be empty: single points get lost everywhere.
    empty = ndimage.minimum_filter((~known).astype(np.uint8), size=(1, 5), mode="wrap") > 0
    row, column = np.nonzero(known[:-1] & empty[1:])
    below = points.xyz[index[row, column]]
    half = 0.5 * np.diff(_elevations(points, index))[row]
    up = _upward(below)
    edge = (
        below * np.cos(half)[:, None] + up * (np.linalg.norm(below, axis=1) * np.sin(half))[:, None]
    )
    found.append(DepthEdges(edge, up, np.ones(len(row))))
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


def _halfway(points: _Points, first: Array, second: Array, across: Float64) -> DepthEdges:
    """Edges between pairs of points, at the range of the nearer ones."""
    one, other = points.range_m[first], points.range_m[second]
    middle = points.xyz[first] / one[:, None] + points.xyz[second] / other[:, None]
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    nearer = np.minimum(one, other)
    weight = np.minimum(5.0 * np.abs(other - one) / nearer, 1.0)
    return DepthEdges(middle * nearer[:, None], across, weight)


def _azimuthal(xyz: Float64) -> Float64:
    """(N, 3) unit vectors along increasing azimuth."""
    flat = np.maximum(np.hypot(xyz[:, 0], xyz[:, 1]), 1e-9)
    return np.stack([-xyz[:, 1] / flat, xyz[:, 0] / flat, np.zeros(len(xyz))], axis=1)


def _upward(xyz: Float64) -> Float64:
    """(N, 3) unit vectors along increasing elevation."""
    ray = xyz / np.linalg.norm(xyz, axis=1, keepdims=True)
    return np.cross(ray, _azimuthal(xyz))
