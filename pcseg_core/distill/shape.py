# SPDX-License-Identifier: Apache-2.0
"""Shape of the surface around each point of a sweep: height above ground, normal, roughness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from pcseg_core.distill.ground import GroundMethod, find_ground

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_VOXEL_M = 0.2  # points of a voxel share their shape
_NEIGHBORS = 12  # occupied voxels around one, itself included
_GROUND_CELL_M = 1.0
_GROUND_REACH_M = 10.0


@dataclass(frozen=True)
class Shape:
    """Geometry of the N points of a sweep.

    Attributes:
        ground: (N,) bool, points of the ground.
        height: (N,) float32 height above the ground [m]; NaN far from any ground.
        upright: (N,) float32 in 0..1: 0 on a level surface, 1 on a vertical one; the sine of the
            angle between the normal and the vertical axis.
        flatness: (N,) float32 in 0..1, planarity of the neighborhood.
        spread: (N,) float32 deviation of the neighborhood from its plane [m].
        incidence: (N,) float32 in 0..1, sine of the angle between the ray and the surface; 1 where
            the ray meets the surface at a right angle.
        range: (N,) float32 distance from the sensor [m].
    """

    ground: Bool
    height: Float32
    upright: Float32
    flatness: Float32
    spread: Float32
    incidence: Float32
    range: Float32


def shape_of(xyz: Array, ground: GroundMethod = "auto") -> Shape:
    """Shape around each of (N, 3) finite points of a sweep, LiDAR frame, z up [m].

    Planes are fitted to the nearest occupied voxels of each occupied voxel. Their number is fixed,
    so that neighborhoods grow with the distance of the returns. Planarity is that of Demantke et
    al., 2011, with eigenvalues instead of deviations.
    """
    on_ground = find_ground(xyz, ground) if len(xyz) else np.zeros(0, bool)
    distance = np.linalg.norm(xyz, axis=1)
    centers, inverse = _voxel_centers(xyz)
    normal, values = _planes(centers)
    normal, values = normal[inverse], values[inverse]
    rays = xyz / np.maximum(distance, 1e-6)[:, None]
    largest = np.maximum(values[:, 2], 1e-9)
    return Shape(
        on_ground,
        _above_ground(xyz, on_ground),
        np.sqrt(np.clip(1 - normal[:, 2] ** 2, 0, 1)).astype(np.float32),
        ((values[:, 1] - values[:, 0]) / largest).astype(np.float32),
        np.sqrt(np.maximum(values[:, 0], 0)).astype(np.float32),
        np.abs((rays * normal).sum(1)).astype(np.float32),
        distance.astype(np.float32),
    )


def _voxel_centers(xyz: Array) -> tuple[Float32, npt.NDArray[np.intp]]:
    """(V, 3) means of the points in each occupied voxel, and the voxel of every point."""
    cells = np.floor(xyz / _VOXEL_M).astype(np.int64) + (1 << 20)
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = [np.bincount(inverse, axis, len(counts)) for axis in xyz.T]
    return (np.stack(sums, 1) / counts[:, None]).astype(np.float32), inverse


def _planes(points: Float32) -> tuple[Float32, Float32]:
    """Normals (V, 3) and variances (V, 3) in rising order of the neighborhoods of points."""
    if len(points) < 4:
        level = np.tile(np.array([0, 0, 1], np.float32), (len(points), 1))
        return level, np.zeros((len(points), 3), np.float32)
    count = min(_NEIGHBORS, len(points))
    _, near = cKDTree(points).query(points, count)
    local = points[near] - points[near].mean(1, keepdims=True)
    covariance = local.transpose(0, 2, 1) @ local / count
    values, vectors = np.linalg.eigh(covariance)
    return vectors[:, :, 0], values


def _above_ground(xyz: Array, ground: Bool) -> Float32:
    """(N,) height above the mean of the nearest cells of the ground [m]; NaN far from any."""
    if not ground.any():
        return np.full(len(xyz), np.nan, np.float32)
    cells = np.floor(xyz[ground, :2] / _GROUND_CELL_M).astype(np.int64) + (1 << 20)
    _, inverse, counts = np.unique(
        (cells[:, 0] << 21) | cells[:, 1], return_inverse=True, return_counts=True
    )
    sums = [np.bincount(inverse, axis, len(counts)) for axis in xyz[ground].T]
    middle = np.stack(sums, 1) / counts[:, None]
    away, near = cKDTree(middle[:, :2]).query(xyz[:, :2], min(3, len(middle)))
    away, near = away.reshape(len(xyz), -1), near.reshape(len(xyz), -1)
    closeness = 1 / np.maximum(away, 0.1)
    level = (middle[near, 2] * closeness).sum(1) / closeness.sum(1)
    height = np.where(away[:, 0] < _GROUND_REACH_M, xyz[:, 2] - level, np.nan)
    return height.astype(np.float32)
