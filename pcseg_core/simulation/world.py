# SPDX-License-Identifier: Apache-2.0
"""A drive through a simulated town: scene, trajectory and sensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.geometry import Trajectory, invert
from pcseg_core.labels import MOVING, STATIC, UNKNOWN
from pcseg_core.simulation.cameras import Camera, CameraSpec, Picture
from pcseg_core.simulation.ground import Ground
from pcseg_core.simulation.lidar import Lidar, LidarSpec, Sweep
from pcseg_core.simulation.observe import Probe
from pcseg_core.simulation.route import (
    EPOCH_NS,
    MARGIN_S,
    POSE_RATE_HZ,
    Route,
    distances,
    drive_along,
    plan_route,
    sensor_trajectory,
)
from pcseg_core.simulation.scene import Scene, build_scene
from pcseg_core.simulation.streets import Streets
from pcseg_core.simulation.towns import TOWNS, draw_weather
from pcseg_core.simulation.variety import style_of

Array = npt.NDArray[Any]

_MOVES_MPS = 0.1
_START_M = 25.0  # distance on the route at time 0


@dataclass(frozen=True)
class Course:
    """Motion of the recording vehicle.

    Attributes:
        duration_s: of the drive.
        speed_mps: on straight roads; lower in turns.
        turns: probability of turning at a crossing.
    """

    duration_s: float
    speed_mps: float = 8.0
    turns: float = 0.6


@dataclass
class World:
    """A simulated town and one drive through it; the same arguments give the same world.

    Attributes:
        seed: of everything that is drawn by chance.
        town: name of a style, see `towns.TOWNS`.
        course: motion of the vehicle.
        lidar, cameras: the sensors.
        further: more LiDARs.
    """

    seed: int
    town: str
    course: Course
    lidar: LidarSpec = field(default_factory=lambda: LidarSpec())
    cameras: Sequence[CameraSpec] = ()
    further: Sequence[LidarSpec] = ()

    def __reduce__(self) -> Any:
        """Pickle the parameters; every process builds each world once."""
        sensors = (self.lidar, tuple(self.cameras), tuple(self.further))
        parts = (self.seed, self.town, self.course, *sensors)
        return _shared, parts

    @property
    def T_body_lidar(self) -> Array:
        """(4, 4) LiDAR frame to vehicle."""
        return self.lidar.T_body_lidar

    @property
    def lidars(self) -> tuple[LidarSpec, ...]:
        """All LiDARs, that of the trajectory first."""
        return (self.lidar, *self.further)

    def T_lidar_other(self, number: int) -> Array:
        """(4, 4) frame of one of the LiDARs to that of the first."""
        other: Array = invert(self.T_body_lidar) @ self.lidars[number].T_body_lidar
        return other

    @property
    def lidar_frame(self) -> str:
        """frame_id of the clouds."""
        return self.lidar.name

    def T_cam_lidar(self, camera: int) -> Array:
        """(4, 4) exact extrinsic of a camera."""
        exact: Array = invert(self._cameras[camera].T_body_cam) @ self.T_body_lidar
        return exact

    @cached_property
    def _cameras(self) -> list[Camera]:
        return [Camera(spec) for spec in self.cameras]

    @cached_property
    def _lidars(self) -> list[Lidar]:
        return [Lidar(spec) for spec in self.lidars]

    @cached_property
    def _ground(self) -> Ground:
        rng = np.random.default_rng([self.seed, 0])
        style = style_of(self.town, self.seed)
        reach = self.course.speed_mps * self.course.duration_s + 300
        return Ground(Streets(style, rng, reach), rng, style.relief_m)

    @cached_property
    def _way(self) -> tuple[Route, Array, Array]:
        """Route, times [s] of poses, and distance along the route at each [m]."""
        rng = np.random.default_rng([self.seed, 3])
        length = self.course.speed_mps * (self.course.duration_s + 2 * MARGIN_S) + _START_M + 60
        route = plan_route(self._ground.streets, rng, length, self.course.turns)
        steps = int(np.ceil((self.course.duration_s + 2 * MARGIN_S) * POSE_RATE_HZ)) + 1
        times = np.arange(steps) / POSE_RATE_HZ - MARGIN_S
        start = _START_M + float(rng.uniform(0, 30))
        return route, times, distances(route, self.course.speed_mps, start, times)

    @cached_property
    def trajectory(self) -> Trajectory:
        """Exact T_world_lidar; sensors move along its interpolation."""
        route, times, along = self._way
        rng = np.random.default_rng([self.seed, 4])
        body = drive_along(route, self._ground, along, times, rng)
        return sensor_trajectory(body, times, self.T_body_lidar)

    @cached_property
    def scene(self) -> Scene:
        """The scene; built on first use in about a second."""
        weather = draw_weather(np.random.default_rng([self.seed, 5]))
        return build_scene(weather, self._ground, *self._way, seed=self.seed)

    def sweep(self, stamp_ns: int, number: int, frozen: bool = False, lidar: int = 0) -> Sweep:
        """Measure a sweep of a LiDAR that starts at a stamp; see `Lidar.sweep`."""
        noise = _seed(self.seed, 6, number, *([lidar] if lidar else []))
        path = self.trajectory.mounted(self.T_lidar_other(lidar)) if lidar else self.trajectory
        return self._lidars[lidar].sweep(self.scene, path, stamp_ns, number, noise, frozen)

    def moving(self, stamp_ns: int, sweep: Sweep) -> Array:
        """(N,) uint8 UNKNOWN, STATIC or MOVING for the points of a sweep."""
        time_s = drive_time(stamp_ns)
        ids = [mover.ids for mover in self.scene.movers if mover.speed_mps(time_s) > _MOVES_MPS]
        moves = np.isin(sweep.instance, np.concatenate([np.empty(0, int), *ids]))
        found = np.where(moves, MOVING, STATIC)
        return np.where(sweep.label < 0, UNKNOWN, found).astype(np.uint8)

    def picture(self, camera: int, stamp_ns: int) -> Picture:
        """Render an image of a camera at a stamp."""
        noise = _seed(self.seed, 7, camera, (stamp_ns - EPOCH_NS) % 2**62)
        pose = self.camera_pose(camera, stamp_ns)
        return self._cameras[camera].take(self.scene, pose, drive_time(stamp_ns), noise)

    def camera_pose(self, camera: int, stamp_ns: int) -> Array:
        """(4, 4) exact T_world_cam at a stamp."""
        pose: Array = self.trajectory.at(stamp_ns) @ invert(self.T_cam_lidar(camera))
        return pose

    def camera_model(self, camera: int) -> Any:
        """`CameraModel` of a camera."""
        return self._cameras[camera].model

    def probe(self) -> Probe:
        """Free rays through the scene."""
        return Probe(self.scene)


@lru_cache(maxsize=4)
def _shared(*parts: Any) -> World:
    return World(*parts)


def drive_time(stamp_ns: int) -> float:
    """Time of the drive of a stamp [s]."""
    return (stamp_ns - EPOCH_NS) * 1e-9


def town_of(seed: int) -> str:
    """Town of a seed."""
    return list(TOWNS)[seed % len(TOWNS)]


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
