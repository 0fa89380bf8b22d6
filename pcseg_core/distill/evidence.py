# SPDX-License-Identifier: Apache-2.0
"""Class evidence of the pixels of an image and of the points of a sweep; world voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcseg_core.camera import CameraModel
from pcseg_core.geometry import transform


@dataclass(frozen=True, eq=False)
class PixelEvidence:
    """Class evidence of the pixels of one image.

    Attributes:
        probabilities: (C, h, w) float32, over the whole image, at any resolution. What they lack
            to 1 (sky, unknown things) is no evidence for any class.
        camera: model of the image.
        T_cam_lidar: (4, 4), LiDAR frame at the sweep's stamp to camera frame at the image's stamp.
    """

    probabilities: np.ndarray
    camera: CameraModel
    T_cam_lidar: np.ndarray


@dataclass
class Evidence:
    """Class evidence of the points of one sweep that a camera saw.

    Attributes:
        index: (M,) int32 positions of the seen points in the sweep.
        weights: (M,) float32 weight of each point's pixels, summed over cameras.
        sums: (M, C) float32 weighted class probabilities, summed over cameras.
    """

    index: np.ndarray
    weights: np.ndarray
    sums: np.ndarray


def places_of(keys: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) place of each key in sorted keys (at least one), and (N,) bool whether it is there."""
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return place, known[place] == keys


def world_keys(xyz: np.ndarray, pose: np.ndarray, voxel: float) -> np.ndarray:
    """(N,) int64 packed world voxel of each point; -1 for non-finite points."""
    finite = np.isfinite(xyz).all(1)
    cells = np.floor(transform(pose, np.where(finite[:, None], xyz, 0.0)) / voxel).astype(np.int64)
    cells += 1 << 20
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    return np.where(finite & ((cells >= 0) & (cells < 1 << 21)).all(1), keys, -1)
