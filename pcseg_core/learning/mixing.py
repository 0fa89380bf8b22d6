# SPDX-License-Identifier: Apache-2.0
"""Sectors of two sweeps as one: PolarMix and LaserMix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pcseg_core.config import Section
from pcseg_core.geometry import elevation, from_euler
from pcseg_core.labels import IGNORE

Array = npt.NDArray[Any]
Rng = np.random.Generator


class MixConfig(Section):
    """Sectors with parts of other scenes. Only labels and confidences move along: points of other
    sweeps have no image features and no targets of a 3D teacher.
    """

    polar: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the sectors in which a range of azimuths is from another scene "
        "(PolarMix)",
    )
    laser: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the sectors whose elevations are in turn from two scenes (LaserMix)",
    )
    laser_bands: int = Field(
        6, ge=2, le=32, description="LaserMix: largest number of bands of elevations"
    )
    things: int = Field(
        0, ge=0, le=50, description="Most things of other sweeps that are put into a sector"
    )
    thing_share: float = Field(
        0.33,
        ge=0,
        le=1,
        description="A class has things if at least this share of its labels is in clusters that "
        "have the size of a thing: persons, poles and vehicles, not walls",
    )
    thing_scale: float = Field(
        0.0, ge=0, le=0.5, description="Largest relative change of the size of a thing"
    )

    @model_validator(mode="after")
    def _one_kind_per_sector(self) -> MixConfig:
        if self.polar + self.laser > 1:
            raise ValueError("polar and laser are shares of the sectors; expected a sum up to 1")
        return self


@dataclass
class Cloud:
    """Labeled points of a sector, maybe of several sweeps, in the frame of the sensor.

    Attributes:
        xyz: (N, 3) float32 [m].
        intensity: (N,) float32 in 0..1.
        label: (N,) int64, IGNORE where not trained on.
        confidence: (N,) float32 in 0..1.
        origin: (N,) int64 position in the sweep of the sector, IGNORE for points of others.
    """

    xyz: Array
    intensity: Array
    label: Array
    confidence: Array
    origin: Array

    def take(self, rows: Array) -> Cloud:
        """The points at rows, (K,) positions or (N,) bool."""
        return Cloud(*(part[rows] for part in vars(self).values()))

    def joined(self, other: Cloud) -> Cloud:
        """The points of both; those of the other get no origin."""
        other = replace(other, origin=np.full(len(other.xyz), IGNORE, np.int64))
        pairs = zip(vars(self).values(), vars(other).values())
        return Cloud(*(np.concatenate(pair) for pair in pairs))


def turned(cloud: Cloud, angle_deg: float) -> Cloud:
    """The cloud, rotated about the vertical axis of the sensor."""
    rotation = from_euler(0.0, 0.0, np.radians(angle_deg))[:3, :3].astype(np.float32)
    return replace(cloud, xyz=cloud.xyz @ rotation.T)


def mix_azimuths(first: Cloud, second: Cloud, middle: float, width: float, rng: Rng) -> Cloud:
    """Replace a quarter to three quarters of a sector by the same azimuths of another sweep.

    Xiao et al., PolarMix, NeurIPS 2022 (arXiv 2208.00223), scene-level swapping.

    Args:
        first: points of a sector.
        second: points of another sweep, turned so that its sector is the same.
        middle: azimuth of the middle of the sector [deg].
        width: of the sector [deg].
        rng: random numbers.
    """
    width = min(width, 360.0)
    extent = rng.uniform(0.25, 0.75) * width
    start = rng.uniform(0, width - extent)

    def inside(cloud: Cloud) -> Array:
        azimuth = np.degrees(np.arctan2(cloud.xyz[:, 1], cloud.xyz[:, 0]))
        angle = (azimuth - middle + width / 2) % 360
        chosen: Array = (angle >= start) & (angle < start + extent)
        return chosen

    return first.take(~inside(first)).joined(second.take(inside(second)))


def mix_elevations(first: Cloud, second: Cloud, bands: int, rng: Rng) -> Cloud:
    """Take the elevations of a sector in turn from two sweeps, in bands of one height.

    Kong et al., LaserMix, CVPR 2023 (arXiv 2207.00026), intertwining along the inclination.

    Args:
        first: points of a sector.
        second: points of another sweep, turned so that its sector is the same.
        bands: largest number of bands between the lowest and the highest points; at least 2.
        rng: random numbers.
    """
    elevations = [elevation(cloud.xyz) for cloud in (first, second)]
    both = np.concatenate(elevations)
    if not len(both):
        return first
    low, high = np.percentile(both, (1, 99))
    count = rng.integers(2, bands + 1)
    height = max((high - low) / count, 1e-6)
    turn = rng.integers(2)
    of_first, of_second = (
        np.floor((angle - low) / height).clip(0, count - 1) % 2 == turn for angle in elevations
    )
    return first.take(of_first).joined(second.take(~of_second))
