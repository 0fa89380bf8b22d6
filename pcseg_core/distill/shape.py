# SPDX-License-Identifier: Apache-2.0
"""Shape of the surface around each point of a sweep: height above ground, normal, roughness."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from pcseg_core.distill.ground import GroundMethod, find_ground

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
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
        spread: (N,) float32 deviation of the neighborhood from its plane [m].
        incidence: (N,) float32 in 0..1, sine of the angle between the ray and the surface; 1 where
            the ray meets the surface at a right angle.
        range: (N,) float32 distance from the sensor [m].
        brightness: (N,) float32 mean intensity of the neighborhood.
    """

    ground: Bool
    height: Float32
    upright: Float32
    spread: Float32
    incidence: Float32
    range: Float32
    brightness: Float32

    def at(self, points: Int64) -> Shape:
        """The shape at some points."""
        return Shape(*(getattr(self, entry.name)[points] for entry in fields(self)))


def shape_of(xyz: Array, intensity: Array, ground: GroundMethod = "auto") -> Shape:
    """Shape around each point of a sweep.

    Planes are fitted to the nearest occupied voxels of each occupied voxel. Their number is fixed,
    so that neighborhoods grow with the distance of the returns.

    Args:
        xyz: (N, 3) finite points, LiDAR frame, z up [m].
        intensity: (N,) of any scale.
        ground: how the ground is found.
    """
    on_ground = find_ground(xyz, ground) if len(xyz) else np.zeros(0, bool)
    distance = np.linalg.norm(xyz, axis=1)
    middle, inverse = _voxel_means(np.column_stack([xyz, intensity]), xyz)
    near = _neighbors(middle[:, :3])
    normal, values = _planes(middle[near, :3])
    brightness = middle[near, 3].mean(1)
    normal, values = normal[inverse], values[inverse]
    rays = xyz / np.maximum(distance, 1e-6)[:, None]
    return Shape(
        on_ground,
        _above_ground(xyz, on_ground),
        np.sqrt(np.clip(1 - normal[:, 2] ** 2, 0, 1)).astype(np.float32),
        np.sqrt(np.maximum(values[:, 0], 0)).astype(np.float32),
        np.abs((rays * normal).sum(1)).astype(np.float32),
        distance.astype(np.float32),
        brightness[inverse].astype(np.float32),
    )


def _voxel_means(values: Array, xyz: Array) -> tuple[Float32, Int64]:
    """(V, D) means of the values (N, D) in each occupied voxel, and the voxel of every point."""
    cells = np.floor(xyz / _VOXEL_M).astype(np.int64) + (1 << 20)
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = [np.bincount(inverse, column, len(counts)) for column in values.T]
    return (np.stack(sums, 1) / counts[:, None]).astype(np.float32), inverse


def _neighbors(points: Float32) -> Int64:
    """(V, K) indices of the nearest points of each of (V, 3), itself included."""
    if len(points) == 0:
        return np.zeros((0, 1), np.int64)
    count = min(_NEIGHBORS, len(points))
    _, near = cKDTree(points).query(points, count)
    return np.asarray(near, np.int64).reshape(len(points), count)


def _planes(patches: Float32) -> tuple[Float32, Float32]:
    """Normals (V, 3) and variances (V, 3) in rising order of patches (V, K, 3)."""
    local = patches - patches.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(local.transpose(0, 2, 1) @ local / max(1, patches.shape[1]))
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
