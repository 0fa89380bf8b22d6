# SPDX-License-Identifier: Apache-2.0
"""Bayes fusion of class evidence over the sweeps and cameras of a scene.

World voxels hold the probability of each class. Every observation updates them by Bayes' rule,
p <- p l / sum(p l). Moving objects would smear their class along their path, so points at a place
that another sweep sees through are fused within their own sweep only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.distill.evidence import Evidence, world_keys
from pcseg_core.geometry import invert, transform
from pcseg_core.labels import IGNORE

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class ConsolidationConfig(Section):
    """Voxels, noise of single observations, and the detection of moving points."""

    renamed: ClassVar[dict[str, str]] = {"doubt": "observation_noise"}

    voxel_m: float = Field(
        0.0, ge=0, le=2, description="Edge of the world voxels [m]; 0 fuses nothing"
    )
    observation_noise: float = Field(
        0.5, gt=0, lt=1, description="Uniform mixing weight of each observation (label smoothing)"
    )
    margin_m: float = Field(
        0.6, gt=0, description="A place is empty if another sweep measures this far beyond it [m]"
    )
    margin_ratio: float = Field(
        0.03, ge=0, lt=1, description="The same as a share of the distance; the larger one counts"
    )
    cell_deg: float = Field(
        1.5, gt=0.05, le=10, description="Cell of the range images that find empty places [deg]"
    )
    window: int = Field(
        60, ge=2, description="Sweeps fused together; longer scenes are split into such windows"
    )
    neighbors: int = Field(
        4, ge=1, description="Sweeps before, and as many after, that are tested for empty places"
    )


def consolidate(
    clouds: Sequence[npt.NDArray[np.floating]],
    poses: Sequence[npt.NDArray[np.float64]],
    evidence: Sequence[Evidence],
    config: ConsolidationConfig,
) -> list[Float32]:
    """Class probabilities of all points of a scene after all its observations.

    Args:
        clouds: (N_i, 3) finite points of each sweep in its LiDAR frame, deskewed [m].
        poses: (4, 4) T_world_lidar of each sweep, in the order of time.
        evidence: class evidence of each sweep.
        config: voxels, noise and motion.

    Returns:
        Per sweep (N_i, C) probabilities that sum to 1; zeros for points in voxels without evidence.
    """
    found: list[Float32] = []
    for first in range(0, len(clouds), config.window):
        part = slice(first, first + config.window)
        found += _consolidate(clouds[part], poses[part], evidence[part], config)
    return found


def _consolidate(
    clouds: Sequence[npt.NDArray[np.floating]],
    poses: Sequence[npt.NDArray[np.float64]],
    evidence: Sequence[Evidence],
    config: ConsolidationConfig,
) -> list[Float32]:
    moving = moving_points(clouds, poses, config)
    start = invert(poses[0])  # world coordinates may be too large for the keys of voxels
    keys = [world_keys(xyz, start @ pose, config.voxel_m) for xyz, pose in zip(clouds, poses)]
    voxels, rows = _rows(keys, moving)
    logs, seen = _fuse(rows, evidence, voxels, config.observation_noise)
    odds = np.exp(logs - logs.max(1, keepdims=True))
    fused = np.where(seen[:, None], odds / odds.sum(1, keepdims=True), 0).astype(np.float32)
    return [fused[r] for r in rows]


def likeliest(probabilities: Float32) -> tuple[npt.NDArray[np.int16], Float32]:
    """(N,) labels, IGNORE for rows of zeros, and their probability, from (N, C)."""
    best = probabilities.argmax(1)
    confidence: Float32 = probabilities[np.arange(len(best)), best]
    return np.where(confidence > 0, best, IGNORE).astype(np.int16), confidence


def moving_points(
    clouds: Sequence[npt.NDArray[np.floating]],
    poses: Sequence[npt.NDArray[np.float64]],
    config: ConsolidationConfig,
) -> list[Bool]:
    """Points at places that a sweep before or after sees through.

    A sweep sees through a place if it measured something in that direction (3 x 3 cells of its
    range image) and all of it lies beyond the place by more than a margin. Thin and porous objects
    let single rays through, but not all rays around them.

    Args:
        clouds: (N_i, 3) finite points of each sweep in its LiDAR frame, deskewed [m].
        poses: (4, 4) T_world_lidar of each sweep, in the order of time.
        config: margins, cells and number of neighbors.

    Returns:
        Per sweep (N_i,) bool.
    """
    images = [_nearest_around(xyz, config.cell_deg) for xyz in clouds]
    found = []
    for i, (xyz, pose) in enumerate(zip(clouds, poses)):
        empty = np.zeros(len(xyz), bool)
        for j in range(max(0, i - config.neighbors), min(len(clouds), i + config.neighbors + 1)):
            if j != i:
                there = transform(invert(poses[j]) @ pose, xyz)
                empty |= _seen_through(there, images[j], config)
        found.append(empty)
    return found


def _seen_through(
    xyz: npt.NDArray[np.floating], image: Float32, config: ConsolidationConfig
) -> Bool:
    distance = np.linalg.norm(xyz, axis=1)
    margin = np.maximum(config.margin_m, config.margin_ratio * distance)
    nearest = image[_cells(xyz, config.cell_deg)]
    result: Bool = np.isfinite(nearest) & (nearest > distance + margin)
    return result


def _nearest_around(xyz: npt.NDArray[np.floating], cell_deg: float) -> Float32:
    """Range image of the nearest return in each cell and the eight around it; inf for none."""
    rows, columns = _shape(cell_deg)
    image = np.full((rows, columns), np.inf, np.float32)
    np.minimum.at(image, _cells(xyz, cell_deg), np.linalg.norm(xyz, axis=1).astype(np.float32))
    around = np.minimum(np.minimum(np.roll(image, 1, 1), np.roll(image, -1, 1)), image)
    padded = np.pad(around, ((1, 1), (0, 0)), constant_values=np.inf)
    nearest: Float32 = np.minimum(np.minimum(padded[:-2], padded[2:]), around)
    return nearest


def _shape(cell_deg: float) -> tuple[int, int]:
    return int(np.ceil(180 / cell_deg)) + 1, max(3, round(360 / cell_deg))


def _cells(
    xyz: npt.NDArray[np.floating], cell_deg: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Row by elevation and column by azimuth of each point's direction."""
    _, columns = _shape(cell_deg)
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0]) / (2 * np.pi) + 0.5
    elevation = np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))) + 90
    return (elevation / cell_deg).astype(np.intp), (azimuth * columns).astype(np.intp) % columns


def _rows(
    keys: Sequence[npt.NDArray[np.int64]], moving: Sequence[Bool]
) -> tuple[int, list[npt.NDArray[np.int64]]]:
    """Number of voxels, and the voxel of every point; moving points have voxels per sweep."""
    places, place = np.unique(np.concatenate(keys), return_inverse=True)
    owner = np.concatenate([np.where(m, i + 1, 0) for i, m in enumerate(moving)])
    voxels, row = np.unique(owner * len(places) + place, return_inverse=True)
    return len(voxels), np.split(row, np.cumsum([len(k) for k in keys])[:-1])


def _fuse(
    rows: Sequence[npt.NDArray[np.int64]], evidence: Sequence[Evidence], voxels: int, noise: float
) -> tuple[npt.NDArray[np.float64], Bool]:
    """(V, C) log probabilities up to a constant, and which voxels have evidence."""
    classes = evidence[0].sums.shape[1]
    logs, seen = np.zeros((voxels, classes)), np.zeros(voxels, bool)
    for own, seen_by in zip(rows, evidence):
        # Points of one voxel in one sweep are one observation: their errors are not independent.
        at, inverse = np.unique(own[seen_by.index], return_inverse=True)
        sums = np.stack([np.bincount(inverse, c, len(at)) for c in seen_by.sums.T], axis=1)
        weights = np.bincount(inverse, seen_by.weights, len(at))
        likelihood = (1 - noise) * sums / weights[:, None] + noise / classes
        logs[at] += np.minimum(1, weights)[:, None] * np.log(likelihood)
        seen[at] = True
    return logs, seen
