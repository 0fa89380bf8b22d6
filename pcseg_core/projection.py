# SPDX-License-Identifier: Apache-2.0
"""Projection of sweeps into images, with an occlusion test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.geometry import transform
from pcseg_core.native.library import HighestArgs, check, optional_library

if TYPE_CHECKING:
    from pcseg_core.data.sample import Sample

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_CHUNK = 8192  # number of points whose intermediate results fit into the cache
_EDGE_CELL_PX = 2  # depth edges are found on a grid of cells of this size


@dataclass
class Projection:
    """Pixels of the N points of a sweep in one image.

    Attributes:
        uv: (N, 2) float32 pixel coordinates (integer = pixel center); NaN for points without a
            pixel. Where `in_image` holds they round to an index inside the image.
        depth: (N,) float32, z in the camera frame [m]; negative behind the camera, NaN for NaN.
        in_image: (N,) bool, in front of the camera and inside the image.
        visible: (N,) bool, in the image and not occluded.
        weight: (N,) float32 confidence in the pixel, 0 to 1. It is low near the image border and at
            depth edges, where a small error of calibration or time picks another surface; 0 for
            points that are not visible.
    """

    uv: Float32
    depth: Float32
    in_image: Bool
    visible: Bool
    weight: Float32

    def __len__(self) -> int:
        return len(self.uv)

    def pixels(self, mask: Bool | None = None) -> tuple[Array, Array]:
        """Row and column indices of the points in `mask` (default: the visible points)."""
        chosen = self.uv[self.visible if mask is None else mask]
        index = np.rint(chosen).astype(np.int64)
        return index[:, 1], index[:, 0]


def project_cloud(
    xyz: Array,
    T_cam_lidar: Array,
    camera: CameraModel,
    *,
    splat_radius_px: int = 2,
    min_depth: float = 0.3,
    tolerance_m: float = 0.3,
    tolerance_ratio: float = 0.03,
    clearance_m: float = 1.0,
    border_px: float = 8.0,
    edge_px: int = 4,
    edge_weight: float = 0.25,
) -> Projection:
    """Project points into a camera and test which are visible.

    The test draws every point as a square into a depth buffer. A point is occluded if another
    point drawn over its pixel is nearer by more than max(tolerance_m, tolerance_ratio * nearer
    depth). Between pixels some distance apart, the depth may also differ by as much as on a plane
    that passes the camera at `clearance_m`. Road and walls seen at a grazing angle therefore do
    not occlude themselves.

    Args:
        xyz: (N, 3) points in the LiDAR frame [m]; NaN allowed.
        T_cam_lidar: (4, 4), LiDAR frame into camera frame.
        camera: model of the image.
        splat_radius_px: half side of the square; 0 draws one pixel. Increase it for a LiDAR with
            few beams, whose points leave wide gaps in the image.
        min_depth: nearer points are ignored [m].
        tolerance_m, tolerance_ratio: depth difference within one surface.
        clearance_m: distance at which surfaces pass the camera, for example its height [m].
        border_px: distance from the image border over which the weight rises from 0 to 1.
        edge_px: distance at which a depth edge still lowers the weight; 0 turns it off.
        edge_weight: lowest weight at a depth edge, 0 to 1.
    """
    uv, depth, index = _pixels(xyz, T_cam_lidar, camera, min_depth)
    inner_uv, inner_depth = uv.take(index, axis=0), depth.take(index)
    grid = _Grid((camera.height, camera.width), min(camera.K[0, 0], camera.K[1, 1]) * clearance_m)
    hidden = _hidden(grid, inner_uv, inner_depth, splat_radius_px, tolerance_m, tolerance_ratio)
    visible = np.flatnonzero(~hidden)
    seen, seen_uv = index.take(visible), inner_uv.take(visible, axis=0)
    certain = _border_weight(seen_uv, grid.size, border_px)
    if edge_px > 0:
        seen_depth = inner_depth.take(visible)
        tolerance = np.maximum(tolerance_m, tolerance_ratio * seen_depth)
        jump = _depth_jump(grid, seen_uv, seen_depth, edge_px)
        certain *= np.clip(1.0 - (jump - tolerance) / (3.0 * tolerance), edge_weight, 1.0)
    weight = np.zeros(len(depth), dtype=np.float32)
    weight[seen] = certain
    return Projection(uv, depth, _mask(depth, index), _mask(depth, seen), weight)


def _pixels(
    xyz: Array, T_cam_lidar: Array, camera: CameraModel, min_depth: float
) -> tuple[Float32, Float32, npt.NDArray[np.intp]]:
    """Pixels and depths as in `Projection`, and the points inside the image."""
    points = np.asarray(xyz)
    uv = np.full((len(points), 2), np.nan, dtype=np.float32)
    depth = np.empty(len(points), dtype=np.float32)
    found = []
    for first in range(0, len(points), _CHUNK):
        part = slice(first, first + _CHUNK)
        xyz_cam = transform(T_cam_lidar, points[part])
        depth[part] = xyz_cam[:, 2]
        front = np.flatnonzero(depth[part] > min_depth)
        exact_uv, valid = camera.project(xyz_cam.take(front, axis=0))
        front_uv = exact_uv.astype(np.float32)
        _pairs(uv[part])[front] = _pairs(front_uv)
        found.append(first + front[valid & camera.contains(front_uv)])
    return uv, depth, np.concatenate(found) if found else np.empty(0, np.intp)


def _pairs(uv: Float32) -> npt.NDArray[np.complex64]:
    """(N,) view of coordinates (N, 2): numpy copies single numbers several times faster."""
    return uv.view(np.complex64)[:, 0]


def project_sample(sample: Sample, camera_index: int, **options: Any) -> Projection:
    """Project the sweep of a sample into one of its cameras.

    With a trajectory, the points are corrected for the motion between their own time and that of
    the image; without one, the platform is assumed to stand still. `options` are those of
    `project_cloud`.

    Raises:
        InputError: the trajectory does not cover the sweep or the image.
    """
    camera = sample.cameras[camera_index].camera
    return project_cloud(sample.deskewed(), sample.T_cam_lidar(camera_index), camera, **options)


@dataclass(frozen=True)
class _Grid:
    """Grid of an image to draw points into.

    Attributes:
        size: height and width of the image [px].
        slope_px_m: focal length times clearance. On a plane that passes the camera at this
            distance, inverse depth changes by at most 1 / slope_px_m per pixel.
    """

    size: tuple[int, int]
    slope_px_m: float

    def highest(self, uv: Float32, values: Float32, cell_px: int, reach: int) -> Float32:
        """Highest value drawn within `reach` cells of each point's pixel.

        Values are inverse depths, reduced over the distance by the slope of a plane. Reading only
        the cells around points is far cheaper than filtering the whole grid.
        """
        height, width = (-(-length // cell_px) + 1 + 2 * reach for length in self.size)
        steps = np.arange(-reach, reach + 1)
        # Positions are rounded to cells: points may be farther apart than their cells.
        distance_px = np.hypot(steps[:, None], steps) * cell_px + cell_px
        distance_px[reach, reach] -= 1
        penalty = (distance_px / self.slope_px_m).astype(np.float32)
        library = optional_library()
        if library is None:
            return _numpy_highest(uv, values, penalty, (height, width), cell_px)
        uv, values = (np.ascontiguousarray(array, np.float32) for array in (uv, values))
        result = np.empty_like(values)
        arrays = (uv, values, penalty, result)
        sizes = (len(uv), height, width, cell_px, reach)
        check(library.pcseg_highest(HighestArgs(*(a.ctypes.data for a in arrays), *sizes)))
        return result


def _numpy_highest(
    uv: Float32, values: Float32, penalty: Float32, size: tuple[int, int], cell_px: int
) -> Float32:
    """`_Grid.highest` in numpy; `size` is that of the grid in cells."""
    (height, width), reach = size, len(penalty) // 2
    cells = np.full(height * width, -np.inf, dtype=np.float32)
    cell = np.rint(uv).astype(np.int64) // cell_px + reach
    at = cell[:, 1] * width + cell[:, 0]
    np.maximum.at(cells, at, values)
    result: Float32 = values.copy()
    for (row, column), loss in np.ndenumerate(penalty):
        there = cells.take(at + ((row - reach) * width + column - reach))
        there -= loss
        np.maximum(result, there, out=result)
    return result


def _hidden(
    grid: _Grid,
    uv: Float32,
    depth: Float32,
    radius_px: int,
    tolerance_m: float,
    tolerance_ratio: float,
) -> Bool:
    """(M,) bool: another point around the same pixel is clearly nearer."""
    # Two or three cells per radius are enough and bound the work.
    cell_px = max(1, radius_px // 2)
    behind = depth + np.maximum(tolerance_m, tolerance_ratio * depth).astype(np.float32)
    limit = grid.highest(uv, 1.0 / behind, cell_px, round(radius_px / cell_px))
    hidden: Bool = 1.0 / depth < limit
    return hidden


def _depth_jump(grid: _Grid, uv: Float32, depth: Float32, radius_px: int) -> Float32:
    """Largest depth difference to points around the same pixel, minus that of a plane [m]."""
    reach = -(-radius_px // _EDGE_CELL_PX)
    nearest = 1.0 / grid.highest(uv, 1.0 / depth, _EDGE_CELL_PX, reach)
    farthest = -1.0 / np.minimum(grid.highest(uv, -1.0 / depth, _EDGE_CELL_PX, reach), -1e-6)
    jump: Float32 = np.maximum(depth - nearest, farthest - depth)
    return jump


def _mask(like: Array, index: Array) -> Bool:
    mask = np.zeros(len(like), dtype=bool)
    mask[index] = True
    return mask


def _border_weight(uv: Float32, size: tuple[int, int], border_px: float) -> Float32:
    """0 at the border of the image, 1 from `border_px` inwards."""
    u, v = uv[:, 0], uv[:, 1]
    height, width = size
    distance = np.minimum(
        np.minimum(u + 0.5, width - 0.5 - u), np.minimum(v + 0.5, height - 0.5 - v)
    )
    result: Float32 = np.clip(distance / max(border_px, 1e-6), 0.0, 1.0).astype(np.float32)
    return result
