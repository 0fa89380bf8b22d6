# SPDX-License-Identifier: Apache-2.0
"""LiDARs: scan patterns, returns and intensities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationInfo, field_validator, model_validator

from pcseg_core.cloud import PointCloud
from pcseg_core.config import Section
from pcseg_core.geometry import Trajectory, from_euler, invert
from pcseg_core.simulation import footprint
from pcseg_core.simulation.observe import Hits, observe, past_leaves
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
    returns: int = Field(
        default=1,
        ge=1,
        le=2,
        description="Returns of a beam. 2: the strongest and the last one, if an edge cuts the "
        "footprint of the beam; field `return_type`.",
    )
    divergence_mrad: tuple[float, float] = Field(
        default=(3.0, 1.5),
        description="Two returns only: horizontal and vertical width of a beam, full angle at "
        "1/e^2 [mrad]. Default: Velodyne VLS-128.",
    )
    separation_m: float = Field(
        default=1.0,
        ge=0.1,
        le=5,
        description="Two returns only: nearer surfaces give one return [m]. Default: Velodyne "
        "VLS-128.",
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
        description="Spinning with one return only: share of the returns at depth edges that lie "
        "between both surfaces.",
    )
    receiver: Receiver = Field(
        default_factory=Receiver, description="How returned light becomes an intensity."
    )

    @model_validator(mode="after")
    def _one_elevation_per_beam(self) -> LidarSpec:
        if self.elevations_deg and len(self.elevations_deg) != self.beams:
            raise ValueError(f"{len(self.elevations_deg)} elevations for {self.beams} beams")
        return self

    @field_validator("returns")
    @classmethod
    def _one_return_if_organized(cls, returns: int, info: ValidationInfo) -> int:
        if returns > 1 and info.data.get("organized"):
            raise ValueError("an organized cloud has one point per firing; choose organized=false")
        return returns

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
        "returns": main.returns,
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


@dataclass(frozen=True)
class _Returns:
    """Returns before noise.

    Attributes:
        beam: (M,) index of the firing.
        ray: (M,) index of the ray that hit the surface.
        range: (M,) exact [m], NaN for none.
        power: (M,) that came back.
        kind: (M,) uint8 of `ReturnType`; None if each beam has one return.
    """

    beam: Array
    ray: Array
    range: Array
    power: Array
    kind: Array | None = None


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

    def _cast_directions(self, number: int) -> Array:
        """Directions of the rays of a sweep: the axes of the beams, or bundles."""
        axes = self.directions(number)
        if self.spec.returns == 1:
            return axes
        return footprint.bundle(axes, self.spec.columns, self.spec.divergence_mrad)

    @cached_property
    def _grid(self) -> Tiles:
        directions = self._cast_directions(0)
        return grid_tiles(directions, len(directions) // self.spec.columns, self.spec.columns)

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
        rng = np.random.default_rng(seed)
        time = np.zeros_like(self.time) if frozen else self.time
        direction = self._cast_directions(number)
        rays = self._rays(direction, np.resize(time, len(direction)), trajectory, stamp_ns)
        middle_s = float(time.max() + time.min()) / 2
        hits = observe(scene, rays, (stamp_ns - EPOCH_NS) * 1e-9 + middle_s, self.spec.range_max_m)
        if self.spec.returns > 1:
            hits = past_leaves(hits, self.spec.range_max_m)
        found = self._single(hits, rng) if self.spec.returns == 1 else self._dual(hits, rng)
        return self._report(found, hits, time, stamp_ns, number, rng)

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

    def _single(self, hits: Hits, rng: np.random.Generator) -> _Returns:
        """One return of each firing, of the ray along its axis."""
        spec = self.spec
        power = spec.receiver.power(hits)
        power *= np.exp(rng.normal(0, spec.intensity_noise, len(power)))
        found = self._ranges(hits, rng)
        seen = np.isfinite(found) & (found >= spec.range_min_m)
        seen &= (power > spec.receiver.weakest) & (rng.random(len(power)) >= spec.dropout)
        rays = np.arange(len(found))
        return _Returns(rays, rays, np.where(seen, found, np.nan), power)

    def _dual(self, hits: Hits, rng: np.random.Generator) -> _Returns:
        """The strongest and the last return of each firing."""
        spec = self.spec
        ranges = self._ranges(hits, rng)
        surface = footprint.split(hits, ranges, spec.columns, spec.separation_m)
        gain = np.exp(rng.normal(0, spec.intensity_noise, surface.shape))
        gain *= rng.random(surface.shape) >= spec.dropout
        echoes = footprint.strongest_and_last(
            surface, spec.receiver.power(hits), gain, spec.columns, spec.receiver.weakest
        )
        found = ranges[echoes.ray]
        found[found < spec.range_min_m] = np.nan
        return _Returns(echoes.beam, echoes.ray, found, echoes.power, echoes.kind)

    def _report(
        self,
        found: _Returns,
        hits: Hits,
        time: Array,
        stamp_ns: int,
        number: int,
        rng: np.random.Generator,
    ) -> Sweep:
        spec, beam = self.spec, found.beam
        noisy = found.range + rng.normal(0, 1, len(beam)) * spec.range_noise_m
        seen = np.isfinite(found.range)
        ring, at = self.ring[beam], time[beam]
        intensity = np.where(seen, spec.receiver.reported(found.power, ring), 0.0)
        height, width = (spec.beams, spec.columns) if found.kind is None else (1, len(beam))
        cloud = PointCloud(
            (self.directions(number)[beam] * noisy[:, None]).astype(np.float32),
            intensity.astype(np.float32),
            at,
            ring,
            spec.name,
            stamp_ns,
            height,
            width,
            extra={} if found.kind is None else {"return_type": found.kind},
        )
        label = np.where(seen, hits.label[found.ray], -1).astype(np.int16)
        instance = np.where(seen, hits.instance[found.ray], -1).astype(np.int32)
        exact = found.range.astype(np.float32)
        if spec.organized:
            return Sweep(cloud, label, instance, exact)
        # in firing order, as published by drivers
        order = np.flatnonzero(seen)
        order = order[np.argsort(at[order], kind="stable")]
        return Sweep(cloud.select(order), label[order], instance[order], exact[order])

    def _ranges(self, hits: Hits, rng: np.random.Generator) -> Array:
        """(N,) ranges without noise [m], of rough surfaces and with mixed returns at edges."""
        town, found = hits.scene.ground.streets.town, hits.range
        if town.rough:
            found = found + shifts(hits, town, self.spec.receiver.seed, rng)
        if self.spec.mixed and self.spec.returns == 1 and not self._solid_state:
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
