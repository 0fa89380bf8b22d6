# SPDX-License-Identifier: Apache-2.0
"""LiDARs: scan patterns, returns and intensities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.cloud import PointCloud
from pcseg_core.config import Section
from pcseg_core.geometry import Trajectory, invert
from pcseg_core.simulation.materials import GLOSS, REFLECTIVITY, Material
from pcseg_core.simulation.observe import Hits, observe
from pcseg_core.simulation.raycast import Rays, Tiles, grid_tiles, sorted_tiles
from pcseg_core.simulation.route import EPOCH_NS
from pcseg_core.simulation.scene import Scene

Array = npt.NDArray[Any]

FRAME = "lidar"  # frame_id of the clouds
_FULL_POWER_M = 12.0  # up to this range the gain of the receiver compensates the distance
_WEAKEST = 0.004  # detection threshold relative to a white target at `_FULL_POWER_M`


class LidarSpec(Section):
    """A LiDAR. Spinning ones rotate clockwise seen from above and start at the rear."""

    pattern: Literal["spinning", "solid-state"] = Field(
        default="spinning", description="Rotating beams, or a rosette that never repeats."
    )
    beams: int = Field(default=64, ge=1, le=256, description="Laser beams, one above the other.")
    columns: int = Field(
        default=2048, ge=16, le=8192, description="Firings of all beams per sweep."
    )
    fov_up_deg: float = Field(
        default=10.0, ge=-30, le=60, description="Elevation of the top beam [deg]."
    )
    fov_down_deg: float = Field(
        default=-25.0, ge=-60, le=30, description="Elevation of the lowest beam [deg]."
    )
    fov_side_deg: float = Field(
        default=110.0, gt=0, le=180, description="Solid-state only: horizontal field of view [deg]."
    )
    sweep_s: float = Field(default=0.1, gt=0, le=1, description="Duration of a sweep [s].")
    range_min_m: float = Field(default=1.0, ge=0.1, le=10, description="Nearest range [m].")
    range_max_m: float = Field(default=120.0, ge=5, le=300, description="Farthest range [m].")
    range_noise_m: float = Field(
        default=0.02, ge=0, le=1, description="Standard deviation of the measured range [m]."
    )
    dropout: float = Field(default=0.01, ge=0, le=1, description="Share of randomly lost returns.")
    intensity_noise: float = Field(
        default=0.12, ge=0, le=1, description="Relative standard deviation of the intensity."
    )
    organized: bool = Field(
        default=False, description="Keep beams x columns points, NaN without a return."
    )


@dataclass(frozen=True)
class Sweep:
    """A sweep with ground truth.

    Attributes:
        cloud: points in the sensor frame at their own time.
        label: (N,) int16 ids of the space "simulation", -1 without a return.
        instance: (N,) int32, -1 for none.
        exact_range: (N,) float32 without noise [m], NaN without a return.
    """

    cloud: PointCloud
    label: Array
    instance: Array
    exact_range: Array


class Lidar:
    """A LiDAR on a trajectory through a scene."""

    def __init__(self, spec: LidarSpec) -> None:
        self.spec = spec

    @cached_property
    def ring(self) -> Array:
        """(N,) uint16 beam of each firing, 0 the lowest."""
        return np.repeat(np.arange(self.spec.beams, dtype=np.uint16), self.spec.columns)

    @cached_property
    def time(self) -> Array:
        """(N,) float64 since the start of the sweep [s]; all beams of a column fire at once."""
        times = np.arange(self.spec.columns) * (self.spec.sweep_s / self.spec.columns)
        return np.tile(times, self.spec.beams)

    def directions(self, number: int) -> Array:
        """(N, 3) float64 unit vectors in the sensor frame; `number` counts the sweeps."""
        azimuth, elevation = self._rosette(number) if self._solid_state else self._turning()
        flat = np.cos(elevation)
        return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)

    @property
    def _solid_state(self) -> bool:
        return self.spec.pattern == "solid-state"

    def _turning(self) -> tuple[Array, Array]:
        spec = self.spec
        beam = np.radians(np.linspace(spec.fov_down_deg, spec.fov_up_deg, spec.beams))
        turn = np.pi - 2 * np.pi * (np.arange(spec.columns) + 0.5) / spec.columns
        elevation, azimuth = np.meshgrid(beam, turn, indexing="ij")
        return azimuth.ravel(), elevation.ravel()

    def _rosette(self, number: int) -> tuple[Array, Array]:
        """Two rotating prisms: a rosette that drifts from sweep to sweep."""
        spec = self.spec
        clock = (number + self.time / spec.sweep_s) * 2 * np.pi
        beam = self.ring / max(spec.beams, 1) * 0.35
        along, across = clock * 73.13 + beam, -clock * 42.17 + beam * 2.3
        x = (np.cos(along) + np.cos(across)) / 2
        y = (np.sin(along) + np.sin(across)) / 2
        up, down = np.radians(spec.fov_up_deg), np.radians(spec.fov_down_deg)
        return (x * np.radians(spec.fov_side_deg) / 2, (up + down) / 2 + y * (up - down) / 2)

    @cached_property
    def _grid(self) -> Tiles:
        return grid_tiles(self.directions(0), self.spec.beams, self.spec.columns)

    def sweep(
        self,
        scene: Scene,
        trajectory: Trajectory,
        stamp_ns: int,
        number: int,
        seed: int,
        frozen: bool = False,
    ) -> Sweep:
        """Measure one sweep that starts at `stamp_ns`.

        Args:
            trajectory: T_world_lidar.
            number: of the sweep, for patterns that change.
            seed: of noise and drop-out.
            frozen: measure all points at `stamp_ns`.
        """
        direction = self.directions(number)
        time = np.zeros_like(self.time) if frozen else self.time
        rays = self._rays(direction, time, trajectory, stamp_ns)
        middle_s = float(time.max() + time.min()) / 2
        hits = observe(scene, rays, (stamp_ns - EPOCH_NS) * 1e-9 + middle_s, self.spec.range_max_m)
        return self._measure(hits, direction, time, stamp_ns, np.random.default_rng(seed))

    def _rays(self, direction: Array, time: Array, trajectory: Trajectory, stamp_ns: int) -> Rays:
        moments, which = np.unique(time, return_inverse=True)
        poses = trajectory.at_many(stamp_ns + np.round(moments * 1e9).astype(np.int64))
        middle = poses[len(poses) // 2]
        world = np.einsum("nij,nj->ni", poses[which, :3, :3], direction)
        offset = poses[:, :3, 3] - middle[:3, 3]
        turn = invert(middle)[:3, :3] @ poses[:, :3, :3]
        angle = np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1))
        return Rays(
            middle[:3, 3],
            offset[which].astype(np.float32),
            world.astype(np.float32),
            (time - (time.max() + time.min()) / 2).astype(np.float32),
            middle[:3, :3].T,
            sorted_tiles(direction) if self._solid_state else self._grid,
            float(np.linalg.norm(offset, axis=1).max()),
            float(angle.max()),
        )

    def _measure(
        self, hits: Hits, direction: Array, time: Array, stamp_ns: int, rng: np.random.Generator
    ) -> Sweep:
        spec = self.spec
        power = returned_power(hits)
        power *= np.exp(rng.normal(0, spec.intensity_noise, len(power)))
        seen = np.isfinite(hits.range) & (hits.range >= spec.range_min_m)
        seen &= (power > _WEAKEST) & (rng.random(len(power)) >= spec.dropout)
        noisy = hits.range + rng.normal(0, 1, len(power)) * spec.range_noise_m
        with np.errstate(invalid="ignore"):
            xyz = (direction * noisy[:, None]).astype(np.float32)
        xyz[~seen] = np.nan
        intensity = np.where(seen, np.clip(power, 0, 1), 0.0)
        cloud = PointCloud(
            xyz,
            intensity.astype(np.float32),
            time,
            self.ring,
            FRAME,
            stamp_ns,
            spec.beams,
            spec.columns,
        )
        label, instance = np.where(seen, hits.label, -1), np.where(seen, hits.instance, -1)
        exact = np.where(seen, hits.range, np.nan).astype(np.float32)
        if spec.organized:
            return Sweep(cloud, label.astype(np.int16), instance.astype(np.int32), exact)
        # in firing order, as published by drivers
        order = np.flatnonzero(seen)
        order = order[np.argsort(time[order], kind="stable")]
        return Sweep(
            cloud.select(order),
            label[order].astype(np.int16),
            instance[order].astype(np.int32),
            exact[order],
        )


def returned_power(hits: Hits) -> Array:
    """(N,) intensity relative to a white target, by material, angle and distance; 0 for none.

    Lambertian surfaces return the cosine of the angle of incidence. The gain of the receiver
    compensates short distances; beyond, intensity falls with the square of the distance (compare
    Jutzi and Gross, 2009).
    """
    material = hits.material
    power = np.where(material >= 0, REFLECTIVITY[material], 0.0)
    power = np.where(hits.glass, REFLECTIVITY[Material.GLASS], power)
    tone = np.ones(len(power))
    tone[hits.solid] = 0.6 + 0.8 * hits.table["albedo"][hits.row[hits.solid]].mean(axis=1)
    retro = material == Material.SIGN
    cosine = np.abs(np.einsum("ij,ij->i", hits.normal, hits.rays.direction))
    gloss = GLOSS[material]
    shape = np.where(retro, 1.0, (1 - gloss) * cosine + 3 * gloss * cosine**16)
    falloff = (_FULL_POWER_M / np.maximum(hits.range, _FULL_POWER_M)) ** 1.4
    return power * np.where(retro, 1.0, tone) * shape * falloff
