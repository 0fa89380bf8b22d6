# SPDX-License-Identifier: Apache-2.0
"""Random sectors and changes of training clouds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.geometry import from_euler
from pcseg_core.labels import IGNORE

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
Rng = np.random.Generator


class AugmentConfig(Section):
    """Random changes of the training clouds."""

    rotate: bool = Field(True, description="Rotate about the vertical by any angle")
    flip: bool = Field(True, description="Mirror left and right with probability one half")
    scale: float = Field(0.05, ge=0, le=0.5, description="Largest relative change of scale")
    shift_z_m: float = Field(
        0.1, ge=0, le=2, description="Largest change of the mounting height [m]"
    )
    tilt_deg: float = Field(1.0, ge=0, le=15, description="Largest roll and pitch [deg]")
    jitter_m: float = Field(0.01, ge=0, le=0.5, description="Deviation of noise on every point [m]")
    drop: float = Field(0.2, ge=0, lt=1, description="Largest share of points left out")
    beam_drop: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Largest share of elevation bands left out of every other cloud: near ground "
        "resembles far ground, and one LiDAR another",
    )
    beam_deg: float = Field(0.4, gt=0, le=10, description="Height of an elevation band [deg]")
    intensity_gain: float = Field(
        0.1, ge=0, le=1, description="Largest relative change of intensity"
    )


class PairAugmentConfig(Section):
    """Random changes of clouds and images together; pairs stay exact."""

    cuboid_drop: float = Field(
        0.5, ge=0, le=1, description="Share of the clouds that lose a box of points"
    )
    cuboid_extent: float = Field(
        0.2, gt=0, le=1, description="Largest box, as share of the extent of the cloud"
    )
    crop: float = Field(0.5, ge=0, le=1, description="Share of the images that are cropped")
    crop_area: tuple[float, float] = Field(
        (0.3, 1.0), description="Smallest and largest crop, as share of the image area"
    )
    min_pairs: int = Field(
        200, ge=0, description="Crops and boxes that leave fewer pairs are not applied"
    )
    mirror: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the images whose mirrored features are used; doubles the cache",
    )
    merge: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the clouds that are joined with the sweep before or after, if there "
        "are poses",
    )


class ScenePicker:
    """Draws a scene, then one of its sweeps.

    A scene is drawn with the square root of its number of sweeps: the diversity of places decides
    how well a network transfers, so that many short scenes outweigh one long one.

    Args:
        scenes: scene of each sweep.
    """

    def __init__(self, scenes: list[str]) -> None:
        members: dict[str, list[int]] = {}
        for i, scene in enumerate(scenes):
            members.setdefault(scene, []).append(i)
        self.members = list(members.values())
        sizes = np.sqrt([len(sweeps) for sweeps in self.members])
        self.probability = sizes / sizes.sum()

    def draw(self, rng: Rng) -> int:
        """Position of a sweep."""
        members = self.members[rng.choice(len(self.members), p=self.probability)]
        return members[rng.integers(len(members))]


def sector_mask(xyz: Array, center_deg: float, width_deg: float) -> Bool:
    """(N,) bool: points (N, 3) in a sector around an azimuth."""
    if width_deg >= 360:
        return np.ones(len(xyz), bool)
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    away = np.abs((azimuth - center_deg + 180) % 360 - 180)
    mask: Bool = away <= width_deg / 2
    return mask


def labeled_sector(xyz: Array, labels: Array, width_deg: float, rng: Rng) -> Bool:
    """(N,) bool: a sector around a labeled point whose class is drawn evenly."""
    if width_deg >= 360:
        return np.ones(len(xyz), bool)
    present = np.unique(labels[labels != IGNORE])
    if len(present):
        members = np.flatnonzero(labels == rng.choice(present))
        x, y, _ = xyz[rng.choice(members)]
        center = np.degrees(np.arctan2(y, x)) + rng.uniform(-0.4, 0.4) * width_deg
    else:
        center = rng.uniform(-180, 180)
    return sector_mask(xyz, center, width_deg)


def keep_some(xyz: Array, config: AugmentConfig, rng: Rng) -> Bool:
    """(N,) bool: a random share of the points, and in half of the calls of the elevation bands."""
    kept: Bool = rng.random(len(xyz)) >= rng.uniform(0, config.drop)
    if rng.random() < 0.5:
        return kept
    elevation = np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))
    band = ((elevation + 90) / config.beam_deg).astype(np.intp)
    bands = rng.random(int(180 / config.beam_deg) + 2) >= rng.uniform(0, config.beam_drop)
    return kept & bands[band]


def augment_points(xyz: Array, config: AugmentConfig, rng: Rng) -> Array:
    """Rotate, mirror, tilt, scale, shift and jitter (N, 3) float32 points of one sweep."""
    yaw = rng.uniform(-np.pi, np.pi) if config.rotate else 0.0
    roll, pitch = np.radians(rng.uniform(-1, 1, 2) * config.tilt_deg)
    matrix = from_euler(roll, pitch, yaw)[:3, :3] * (1 + rng.uniform(-1, 1) * config.scale)
    if config.flip and rng.random() < 0.5:
        matrix = matrix @ np.diag([1.0, -1.0, 1.0])
    moved: Array = xyz @ matrix.T.astype(np.float32)
    moved[:, 2] += np.float32(rng.uniform(-1, 1) * config.shift_z_m)
    if config.jitter_m:
        moved += rng.standard_normal(moved.shape, dtype=np.float32) * np.float32(config.jitter_m)
    return moved


def augment_intensity(intensity: Array, config: AugmentConfig, rng: Rng) -> Array:
    """Scale (N,) float32 intensities by one factor."""
    gain = rng.uniform(-1, 1) * config.intensity_gain
    result: Array = np.clip(intensity * np.float32(1 + gain), 0, 1)
    return result


def draw_members(ids: Array, limit: int, rng: Rng) -> Array:
    """(N,) int64 ids with at most `limit` random members of each id, IGNORE elsewhere."""
    order = rng.permutation(len(ids))
    order = order[np.argsort(ids[order], kind="stable")]
    sorted_ids = ids[order]
    starts = np.flatnonzero(np.diff(sorted_ids, prepend=sorted_ids[:1] - 1))
    lengths = np.diff(np.append(starts, len(ids)))
    rank = np.arange(len(ids)) - np.repeat(starts, lengths)
    drawn = np.full(len(ids), IGNORE, np.int64)
    chosen = order[(rank < limit) & (sorted_ids != IGNORE)]
    drawn[chosen] = ids[chosen]
    return drawn


def thinned(xyz: Array, range_m: float, rng: Rng) -> Bool:
    """(N,) bool: points that stay if surfaces nearer than a range get the density of that range.

    The returns per area of a surface fall with the square of the range.
    """
    nearness = np.square(xyz).sum(1) / np.float32(range_m) ** 2
    kept: Bool = rng.random(len(xyz), dtype=np.float32) < nearness
    return kept
