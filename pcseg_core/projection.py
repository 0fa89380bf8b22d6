# SPDX-License-Identifier: Apache-2.0
"""Sweeps into images: pixels, depths, and which points the camera really sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.camera import CameraModel
from pcseg_core.geometry import transform

if TYPE_CHECKING:
    from pcseg_core.data.sample import Sample

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_EDGE_CELL_PX = 2  # depth edges are found on a grid of cells of this size


@dataclass
class Projection:
    """Where the N points of a sweep fall in one image.

    Attributes:
        uv: (N, 2) float32 pixel coordinates (integer = pixel centre); NaN where the point has no
            pixel. They round to an index inside the image wherever `in_image` holds.
        depth: (N,) float32, z in the camera frame, m; negative behind the camera, NaN for NaN.
        in_image: (N,) bool, in front of the camera and inside the image.
        visible: (N,) bool, in the image and not hidden behind a nearer surface.
        weight: (N,) float32, 0 to 1: trust in the pixel, low near the image's border and at depth
            edges, where a small error of calibration or time picks another surface; 0 where the
            point is not visible.
    """

    uv: Float32
    depth: Float32
    in_image: Bool
    visible: Bool
    weight: Float32

    def __len__(self) -> int:
        return len(self.uv)

    def pixels(self, mask: Bool | None = None) -> tuple[Array, Array]:
        """Row and column indices of the points in `mask` (default: the visible ones)."""
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
    border_px: float = 8.0,
    edge_px: int = 4,
    edge_weight: float = 0.25,
) -> Projection:
    """Project points into a camera and test which it sees.

    The test draws every point as a square into a depth buffer; a point is hidden when the buffer
    at its pixel is nearer by more than max(tolerance_m, tolerance_ratio * that nearer depth).

    Args:
        xyz: (N, 3) points in the LiDAR frame, m; NaN allowed.
        T_cam_lidar: (4, 4), LiDAR frame into camera frame.
        camera: model of the image.
        splat_radius_px: half side of the square; 0 draws one pixel. More for a LiDAR with few
            beams, whose near surfaces leave wide gaps in the image.
        min_depth: nearer points are left out, m.
        tolerance_m, tolerance_ratio: depth difference that still counts as the same surface.
        border_px: distance from the image border over which the weight rises from 0 to 1.
        edge_px: distance at which a depth edge still lowers the weight; 0 switches that off.
        edge_weight: lowest weight at a depth edge, 0 to 1.
    """
    xyz_cam = transform(T_cam_lidar, xyz)
    depth = xyz_cam[:, 2].astype(np.float32)
    front = np.flatnonzero(depth > min_depth)
    front_uv, valid = camera.project(xyz_cam[front])
    uv = np.full((len(depth), 2), np.nan, dtype=np.float32)
    uv[front] = front_uv
    inside = valid & camera.contains(uv[front])
    index = front[inside]

    in_image = np.zeros(len(depth), dtype=bool)
    in_image[index] = True
    visible = np.zeros_like(in_image)
    weight = np.zeros(len(depth), dtype=np.float32)
    size = (camera.height, camera.width)
    pixel = uv[index]
    nearest = _nearest(pixel, depth[index], size, splat_radius_px)
    hidden = depth[index] > nearest + np.maximum(tolerance_m, tolerance_ratio * nearest)
    seen = index[~hidden]
    visible[seen] = True
    weight[seen] = _border_weight(pixel[~hidden], size, border_px)
    if edge_px > 0:
        tolerance = np.maximum(tolerance_m, tolerance_ratio * depth[seen])
        jump = _depth_jump(pixel[~hidden], depth[seen], size, edge_px)
        weight[seen] *= np.clip(1.0 - (jump - tolerance) / (3.0 * tolerance), edge_weight, 1.0)
    return Projection(uv, depth, in_image, visible, weight)


def project_sample(sample: Sample, camera_index: int, **options: Any) -> Projection:
    """Project a sample's sweep into one of its cameras, with the motion between their stamps.

    `options` are those of `project_cloud`.
    """
    frame = sample.cameras[camera_index]
    return project_cloud(
        sample.cloud.xyz, sample.T_cam_lidar(camera_index), frame.camera, **options
    )


def _nearest(uv: Float32, depth: Float32, size: tuple[int, int], radius_px: int) -> Float32:
    """Nearest depth among the points within a square around each point's pixel."""
    # A wide splat needs no fine grid: two to four cells a radius bound the work.
    cell_px = max(1, radius_px // 2)
    reach = -(-radius_px // cell_px)
    return _window(uv, depth, size, cell_px, (reach, reach), np.minimum)


def _depth_jump(uv: Float32, depth: Float32, size: tuple[int, int], radius_px: int) -> Float32:
    """Largest depth difference, m, between each point and those left and right of its pixel.

    Along image columns nothing is compared: there the road, seen at a grazing angle, changes its
    depth as fast as an edge does.
    """
    reach = (0, -(-radius_px // _EDGE_CELL_PX))
    near = _window(uv, depth, size, _EDGE_CELL_PX, reach, np.minimum)
    far = _window(uv, depth, size, _EDGE_CELL_PX, reach, np.maximum)
    jump: Float32 = np.maximum(depth - near, far - depth)
    return jump


def _window(
    uv: Float32,
    depth: Float32,
    size: tuple[int, int],
    cell_px: int,
    reach: tuple[int, int],
    extreme: np.ufunc,
) -> Float32:
    """Extreme depth (np.minimum or np.maximum) of all points in a window around each point.

    Draws the points into a grid of cells, then looks at the cells up to `reach` (rows, columns)
    away. Looking only where points are is far cheaper than filtering the whole grid.
    """
    rows, columns = reach
    stride = -(-size[1] // cell_px) + 1 + 2 * columns
    height = -(-size[0] // cell_px) + 1 + 2 * rows
    empty = np.inf if extreme is np.minimum else -np.inf
    grid = np.full(height * stride, empty, dtype=np.float32)
    cell = np.rint(uv).astype(np.int64) // cell_px
    at = (cell[:, 1] + rows) * stride + cell[:, 0] + columns
    extreme.at(grid, at, depth)
    result = grid[at]
    for row in range(-rows, rows + 1):
        for column in range(-columns, columns + 1):
            extreme(result, grid.take(at + (row * stride + column)), out=result)
    return result


def _border_weight(uv: Float32, size: tuple[int, int], border_px: float) -> Float32:
    """0 at the outer edge of the image, 1 from `border_px` inwards."""
    u, v = uv[:, 0], uv[:, 1]
    height, width = size
    distance = np.minimum(
        np.minimum(u + 0.5, width - 0.5 - u), np.minimum(v + 0.5, height - 0.5 - v)
    )
    return np.clip(distance / max(border_px, 1e-6), 0.0, 1.0).astype(np.float32)
