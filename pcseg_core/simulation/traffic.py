# SPDX-License-Identifier: Apache-2.0
"""Traffic: moving vehicles, cyclists and pedestrians."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation import people, vehicles
from pcseg_core.simulation.ground import Ground
from pcseg_core.simulation.materials import Class
from pcseg_core.simulation.population import vehicle_length
from pcseg_core.simulation.primitives import place
from pcseg_core.simulation.route import Route, poses_from_angles

Array = npt.NDArray[Any]

_SIGHT_M = 95.0  # movers that stay farther from the recording vehicle are skipped
_EGO_HALF = np.array([2.5, 1.0])  # half length and width of the recording vehicle [m]
_FRAME_S = 0.1  # between the poses of a mover


@dataclass(frozen=True)
class Mover:
    """A moving object.

    Attributes:
        parts: primitives in the frame of the object.
        times: (M,) [s] of the drive. poses: (M, 4, 4) T_world_object at these times.
    """

    parts: Array
    times: Array
    poses: Array

    @property
    def ids(self) -> Array:
        """Instances of the parts."""
        return np.unique(self.parts["instance"])

    def speed_mps(self, time_s: float) -> float:
        """Speed at a time."""
        k = self._step(time_s)
        way = float(np.linalg.norm(self.poses[k + 1, :3, 3] - self.poses[k, :3, 3]))
        return way / float(self.times[k + 1] - self.times[k])

    def at(self, time_s: float) -> Array:
        """Parts in world axes at a time, with velocities."""
        k = self._step(time_s)
        step = self.times[k + 1] - self.times[k]
        share = (time_s - self.times[k]) / step
        pose = self.poses[k].copy()
        start, end = self.poses[k, :3, 3], self.poses[k + 1, :3, 3]
        pose[:3, 3] = start + share * (end - start)
        moved = place(self.parts, pose)
        moved["velocity"] = (end - start) / step
        return moved

    def _step(self, time_s: float) -> int:
        return int(np.clip(np.searchsorted(self.times, time_s) - 1, 0, len(self.times) - 2))

    def near(self, time_s: float, point: Array, radius_m: float) -> bool:
        """Whether the object is within a distance of a point (3,) at a time."""
        at = [np.interp(time_s, self.times, self.poses[:, k, 3]) for k in (0, 1)]
        return bool(np.hypot(at[0] - point[0], at[1] - point[1]) < radius_m)


class Traffic:
    """Draws moving objects around the recording vehicle, without collisions with it."""

    def __init__(
        self, ground: Ground, route: Route, times: Array, along: Array, rng: np.random.Generator
    ) -> None:
        """`times` (K,) [s] and distances `along` the route (K,) [m] are the recording vehicle's."""
        self.ground, self.streets, self.town = ground, ground.streets, ground.streets.town
        self.route, self.rng = route, rng
        self.times = np.arange(times[0], times[-1] + _FRAME_S, _FRAME_S)
        self.along = np.interp(self.times, times, along)
        self.ego = np.stack(route.at(self.along), axis=1)  # x, y, yaw

    def draw(self) -> list[Mover]:
        """All movers near the route."""
        movers = [*self._companions(), *self._lanes(), *self._walkers()]
        return [mover for mover in movers if mover is not None]

    def _companions(self) -> Iterator[Mover | None]:
        """Vehicles ahead of and behind the recording one, at its speed."""
        for way in (1, -1):
            if self.rng.random() < 0.35 + 0.4 * self.town.traffic:
                parts, _ = self._vehicle()
                gap = way * (self.rng.uniform(9, 28) + vehicle_length(parts) / 2)
                x, y, yaw = self.route.at(self.along + gap)
                yield self._mover(parts, x, y, yaw, sloped=True)

    def _vehicle(self) -> tuple[Array, float]:
        """A moving vehicle, and its offset to the right of the lane center [m]."""
        rng, town = self.rng, self.town
        kind = rng.random()
        if kind < town.trucks:
            return vehicles.truck(rng), 0.0
        if kind < town.trucks + town.buses:
            return vehicles.bus(rng), 0.0
        if kind < town.trucks + town.buses + 0.06:
            rider = people.rider(rng, 0.25)
            return vehicles.with_rider(vehicles.motorcycle(rng), rider, -0.35, 0.88), 0.0
        if kind < town.trucks + town.buses + 0.06 + 0.2 * town.bicycles:
            rider = people.rider(rng, rng.uniform(0.3, 0.8))
            return vehicles.with_rider(vehicles.bicycle(rng), rider, -0.24, 0.93), 0.9
        return vehicles.car(rng, town.vans, town.high_vans), 0.0

    def _lanes(self) -> Iterator[Mover | None]:
        """Vehicles on all streets near the route, with one speed per lane."""
        for axis, line, way, starts, ends in self._street_ways():
            speed = self.rng.uniform(5.0, 11.0)
            lane = self.streets.lane[axis][line] / 2
            for at in self._starts(starts, ends, speed, 12.0 / max(self.town.traffic, 0.05), 14.0):
                parts, keep_right = self._vehicle()
                yield self._along_street(parts, axis, line, way, at, speed, lane + keep_right)

    def _walkers(self) -> Iterator[Mover | None]:
        """Pedestrians on the sidewalks of all streets near the route."""
        town = self.town
        for axis, line, way, starts, ends in self._street_ways():
            for at in self._starts(starts, ends, 1.3, 12.0 / max(town.people, 0.05), 0.5):
                inward = town.verge_m + self.rng.uniform(0.8, town.sidewalk_m - 0.3)
                side = float(self.streets.half[axis][line]) + inward
                parts = people.person(self.rng, True)
                speed = self.rng.uniform(0.9, 1.7)
                yield self._along_street(
                    parts, axis, line, way, at, speed, side * self.rng.choice([-1, 1])
                )

    def _street_ways(self) -> Iterator[tuple[int, int, int, float, float]]:
        """Streets near the route, in both directions: axis, line, way, extent along the street."""
        plan = self.streets.to_plan(self.route.xy[:, 0], self.route.xy[:, 1])
        for axis in (0, 1):
            for line, at in enumerate(self.streets.lines[axis]):
                close = np.abs(plan[axis] - at) < _SIGHT_M
                if close.any():
                    along = plan[1 - axis][close]
                    for way in (-1, 1):
                        yield axis, line, way, along.min() - _SIGHT_M, along.max() + _SIGHT_M

    def _starts(
        self, low: float, high: float, speed: float, gap: float, least: float
    ) -> Iterator[float]:
        """Start positions of traffic that passes [low, high] during the drive."""
        at = low - speed * float(self.times[-1])
        while at < high + speed * float(self.times[-1]):
            at += least + self.rng.exponential(gap)
            yield at

    def _along_street(
        self, parts: Array, axis: int, line: int, way: int, start: float, speed: float, right: float
    ) -> Mover | None:
        """Uniform motion along a street, `right` of its center in driving direction."""
        along = start + way * speed * self.times
        # the right of +v (streets along v, axis 0) is +u; the right of +u is -v
        across = self.streets.lines[axis][line] + right * way * (1 if axis == 0 else -1)
        plan = (np.full_like(along, across), along) if axis == 0 else (along, across)
        x, y = self.streets.to_world(*plan)
        yaw = np.unwrap(np.arctan2(np.gradient(y), np.gradient(x)))
        return self._mover(parts, x, y, yaw, sloped=bool((parts["label"] != Class.PERSON).all()))

    def _mover(self, parts: Array, x: Array, y: Array, yaw: Array, sloped: bool) -> Mover | None:
        """A mover; None if it stays far away or would hit the recording vehicle."""
        gap = np.hypot(x - self.ego[:, 0], y - self.ego[:, 1])
        if gap.min() > _SIGHT_M or self._collides(parts, x, y, yaw):
            return None
        dx, dy = self.ground.slope(x, y) if sloped else (np.zeros_like(x), np.zeros_like(x))
        pitch = -np.arctan(dx * np.cos(yaw) + dy * np.sin(yaw))
        roll = np.arctan(dy * np.cos(yaw) - dx * np.sin(yaw))
        level: Callable[[Array, Array], Array] = self.ground.height
        z = level(x, y) if sloped else self.ground.standing(x, y)
        return Mover(parts.copy(), self.times, poses_from_angles(x, y, z, yaw, pitch, roll))

    def _collides(self, parts: Array, x: Array, y: Array, yaw: Array) -> bool:
        dx, dy, turn = x - self.ego[:, 0], y - self.ego[:, 1], yaw - self.ego[:, 2]
        cos, sin = np.cos(self.ego[:, 2]), np.sin(self.ego[:, 2])
        ahead, aside = dx * cos + dy * sin, dy * cos - dx * sin
        length = vehicle_length(parts) / 2
        width = min(1.3, length)
        own_ahead = length * np.abs(np.cos(turn)) + width * np.abs(np.sin(turn))
        own_aside = length * np.abs(np.sin(turn)) + width * np.abs(np.cos(turn))
        near = np.abs(ahead) < _EGO_HALF[0] + own_ahead + 1.5
        return bool((near & (np.abs(aside) < _EGO_HALF[1] + own_aside + 0.25)).any())
