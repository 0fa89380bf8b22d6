# SPDX-License-Identifier: Apache-2.0
"""LiDARs: scan patterns, returns and intensities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pcseg_core.cloud import PointCloud
from pcseg_core.config import Section
from pcseg_core.geometry import Trajectory, from_euler, invert
from pcseg_core.simulation.observe import Hits, observe
from pcseg_core.simulation.raycast import Rays, Tiles, grid_tiles, sorted_tiles
from pcseg_core.simulation.receiver import Receiver
from pcseg_core.simulation.roughness import shifts
from pcseg_core.simulation.route import EPOCH_NS
from pcseg_core.simulation.scene import Scene

Array = npt.NDArray[Any]

FRAME = "lidar"  # frame_id of the clouds
_EDGE_M = 0.4  # step between neighboring returns that a beam may straddle


class LidarSpec(Section):
    """A LiDAR. Spinning ones rotate clockwise seen from above and start at the rear."""

    name: str = Field(default=FRAME, description="Frame of its clouds.")
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
    elevations_deg: tuple[float, ...] = Field(
        default=(),
        description="Spinning only: elevations of the beams, ascending [deg]; even by default.",
    )
    height_m: float = Field(default=1.85, ge=0.2, le=5, description="Above the road [m].")
    tilt_deg: tuple[float, float] = Field(
        default=(0.0, 0.0), description="Roll and pitch of the mounting [deg]."
    )
    place_m: tuple[float, float] = Field(
        default=(0.0, 0.0), description="Forward and left of the middle of the vehicle [m]."
    )
    yaw_deg: float = Field(default=0.0, description="Heading, counterclockwise from forward [deg].")
    phase: float = Field(
        default=0.0, ge=0, lt=1, description="Start of its sweeps, as a share of a sweep."
    )
    mixed: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Spinning only: share of the returns at depth edges that lie between both "
        "surfaces.",
    )
    receiver: Receiver = Field(
        default_factory=Receiver, description="How returned light becomes an intensity."
    )

    @model_validator(mode="after")
    def _one_elevation_per_beam(self) -> LidarSpec:
        if self.elevations_deg and len(self.elevations_deg) != self.beams:
            raise ValueError(f"{len(self.elevations_deg)} elevations for {self.beams} beams")
        return self

    @property
    def T_body_lidar(self) -> Array:
        """(4, 4) LiDAR frame to vehicle."""
        roll, pitch = np.radians(self.tilt_deg)
        pose: Array = from_euler(roll, pitch, np.radians(self.yaw_deg))
        pose[:3, 3] = *self.place_m, self.height_m
        return pose


def further_lidars(main: LidarSpec, count: int) -> tuple[LidarSpec, ...]:
    """Smaller LiDARs at the bumper that see what is close to the vehicle, at other phases.

    Args:
        main: the LiDAR on the roof.
        count: 1 in the middle, or 2 at the corners; 0 for none.
    """
    small = {
        "beams": max(main.beams // 2, 1),
        "columns": max(main.columns // 2, 16),
        "sweep_s": main.sweep_s,
        "fov_up_deg": 15.0,
        "fov_down_deg": -40.0,
        "height_m": 0.8,
        "range_max_m": 60.0,
        "range_noise_m": main.range_noise_m,
        "organized": main.organized,
    }
    places = {
        0: (),
        1: (("lidar_front", (2.3, 0.0), 0.0, 0.3),),
        2: (("lidar_left", (2.0, 0.85), 45.0, 0.3), ("lidar_right", (2.0, -0.85), -45.0, 0.4)),
    }[count]
    return tuple(
        LidarSpec.model_validate(
            {**small, "name": name, "place_m": place, "yaw_deg": yaw, "phase": phase}
        )
        for name, place, yaw, phase in places
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
        even = np.linspace(spec.fov_down_deg, spec.fov_up_deg, spec.beams)
        beam = np.radians(spec.elevations_deg or even)
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
        power = spec.receiver.power(hits)
        power *= np.exp(rng.normal(0, spec.intensity_noise, len(power)))
        exact_range = self._ranges(hits, rng)
        seen = np.isfinite(exact_range) & (exact_range >= spec.range_min_m)
        seen &= (power > spec.receiver.weakest) & (rng.random(len(power)) >= spec.dropout)
        noisy = exact_range + rng.normal(0, 1, len(power)) * spec.range_noise_m
        with np.errstate(invalid="ignore"):
            xyz = (direction * noisy[:, None]).astype(np.float32)
        xyz[~seen] = np.nan
        intensity = np.where(seen, spec.receiver.reported(power, self.ring), 0.0)
        cloud = PointCloud(
            xyz,
            intensity.astype(np.float32),
            time,
            self.ring,
            spec.name,
            stamp_ns,
            spec.beams,
            spec.columns,
        )
        label, instance = np.where(seen, hits.label, -1), np.where(seen, hits.instance, -1)
        exact = np.where(seen, exact_range, np.nan).astype(np.float32)
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

    def _ranges(self, hits: Hits, rng: np.random.Generator) -> Array:
        """(N,) ranges without noise [m], of rough surfaces and with mixed returns at edges."""
        town, found = hits.scene.ground.streets.town, hits.range
        if town.rough:
            found = found + shifts(hits, town, self.spec.receiver.seed, rng)
        if self.spec.mixed and not self._solid_state:
            found = self._mixed(found, rng)
        return found

    def _mixed(self, found: Array, rng: np.random.Generator) -> Array:
        """Move some of the returns at edges to the farther surface of the next column."""
        grid = found.reshape(self.spec.beams, self.spec.columns)
        with np.errstate(invalid="ignore"):
            farther = np.roll(grid, -1, axis=1) - grid
        edge = np.isfinite(farther) & (farther > _EDGE_M)
        chosen = edge & (rng.random(grid.shape) < self.spec.mixed)
        share = rng.random(grid.shape)
        with np.errstate(invalid="ignore"):
            mixed: Array = np.where(chosen, grid + share * farther, grid)
        return mixed.ravel()
