# SPDX-License-Identifier: Apache-2.0
"""The route of the recording vehicle along lanes and around corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.geometry import Trajectory
from pcseg_core.simulation.ground import Ground
from pcseg_core.simulation.streets import Streets

Array = npt.NDArray[Any]

EPOCH_NS = 1_700_000_000_000_000_000  # stamp of the first sweep of every drive
POSE_RATE_HZ = 100
MARGIN_S = 1.0  # poses before the first and after the last sweep
_STEP = 0.25  # between points of the route [m]
_RADIUS = {-1: 6.5, 1: 9.0}  # of right and left turns [m]
_HEADINGS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # along +u, +v, -u, -v


class Route:
    """A path on the ground, by distance.

    Attributes:
        distance: (M,) [m]. xy: (M, 2) world positions [m]. yaw: (M,) unwrapped [rad].
    """

    def __init__(self, xy: Array) -> None:
        step = np.linalg.norm(np.diff(xy, axis=0), axis=1)
        self.distance = np.concatenate([[0.0], np.cumsum(step)])
        self.xy = xy
        along = np.gradient(xy, self.distance, axis=0)
        self.yaw = np.unwrap(np.arctan2(along[:, 1], along[:, 0]))

    def at(self, distance: Array) -> tuple[Array, Array, Array]:
        """x, y [m] and yaw [rad] at distances (K,); straight beyond both ends."""
        inside = np.clip(distance, 0.0, self.distance[-1])
        x, y, yaw = (
            np.interp(inside, self.distance, v) for v in (self.xy[:, 0], self.xy[:, 1], self.yaw)
        )
        over = distance - inside
        return x + over * np.cos(yaw), y + over * np.sin(yaw), yaw


def plan_route(streets: Streets, rng: np.random.Generator, length_m: float, turns: float) -> Route:
    """A route of at least `length_m` that turns at crossings with probability `turns`."""
    nodes, headings = _walk(streets, rng, length_m, turns)
    corners, kinds = _lane_corners(streets, nodes, headings)
    plan = _rounded(corners, kinds)
    route = np.stack(streets.to_world(plan[:, 0], plan[:, 1]), axis=1)
    return Route(_resampled(route))


def _walk(
    streets: Streets, rng: np.random.Generator, length_m: float, turns: float
) -> tuple[list[Array], list[int]]:
    """Crossings (indices of the two streets) and the heading (index) of each leg from them."""
    middle = np.array([len(line) // 2 for line in streets.lines])
    heading = int(rng.integers(4))
    nodes, done = [middle], 0.0
    headings: list[int] = []
    while done < length_m + 2 * max(streets.town.block_m):
        if headings:
            ways = [-1, 1] if rng.random() < turns else [0]
            options = [(heading + way) % 4 for way in rng.permutation(ways)]
            heading = next((h for h in options if _leads_on(streets, nodes[-1], h)), heading)
        if not _leads_on(streets, nodes[-1], heading):
            heading = next(
                h for h in range(4) if h != (heading + 2) % 4 and _leads_on(streets, nodes[-1], h)
            )
        headings.append(heading)
        nodes.append(nodes[-1] + _HEADINGS[heading])
        axis = heading % 2
        line = streets.lines[axis]
        done += abs(line[nodes[-1][axis]] - line[nodes[-2][axis]])
    return nodes, headings


def _leads_on(streets: Streets, node: Array, heading: int) -> bool:
    after = node + _HEADINGS[heading]
    return all(1 <= after[k] <= len(streets.lines[k]) - 2 for k in (0, 1))


def _lane_corners(
    streets: Streets, nodes: list[Array], headings: list[int]
) -> tuple[Array, list[int]]:
    """Corners of the lane center in plan coordinates, with the turn -1, 0 or 1 at each."""
    corners, kinds = [], []
    for k, node in enumerate(nodes):
        before, after = headings[max(k - 1, 0)], headings[min(k, len(headings) - 1)]
        at = np.array([streets.lines[axis][node[axis]] for axis in (0, 1)])
        for heading in {before, after}:
            across = 1 - heading % 2  # the street along this heading is a line of the other axis
            lane = streets.lane[across][node[across]] / 2
            right = _HEADINGS[(heading - 1) % 4]
            at = at + lane * right
        corners.append(at)
        kinds.append((after - before + 1) % 4 - 1)
    return np.array(corners, dtype=np.float64), kinds


def _rounded(corners: Array, kinds: list[int]) -> Array:
    """Points along the polyline of the corners, with arcs at turns."""
    points = [corners[:1]]
    for k in range(1, len(corners) - 1):
        if kinds[k] == 0:
            points.append(corners[k : k + 1])
            continue
        radius = _RADIUS[kinds[k]]
        into = _unit(corners[k] - corners[k - 1])
        out = _unit(corners[k + 1] - corners[k])
        angle = np.linspace(0, np.pi / 2, 24)[:, None]
        middle = corners[k] - radius * into + radius * out
        points.append(middle + radius * (np.sin(angle) * into - np.cos(angle) * out))
    points.append(corners[-1:])
    return _resampled(np.concatenate(points))


def _unit(vector: Array) -> Array:
    unit: Array = vector / np.linalg.norm(vector)
    return unit


def _resampled(line: Array) -> Array:
    """Points every `_STEP` along a polyline."""
    step = np.linalg.norm(np.diff(line, axis=0), axis=1)
    keep = np.concatenate([[True], step > 1e-6])
    line = line[keep]
    distance = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.arange(0.0, distance[-1], _STEP)
    return np.stack([np.interp(at, distance, line[:, k]) for k in range(2)], axis=1)


def _smoothed(values: Array, width_m: float) -> Array:
    size = max(int(width_m / _STEP) | 1, 3)
    kernel = np.hanning(size + 2)[1:-1]
    padded = np.pad(values, size // 2, mode="edge")
    smooth: Array = np.convolve(padded, kernel / kernel.sum(), mode="valid")
    return smooth


def distances(route: Route, speed_mps: float, start_m: float, times: Array) -> Array:
    """Distance along a route at `times` (K,), slower in turns (lateral acceleration <= 2 m/s^2).

    `start_m` is the distance at time 0; times may be negative.
    """
    bend = np.abs(_smoothed(np.gradient(route.yaw, route.distance), 3.0))
    limit = np.minimum(speed_mps, np.sqrt(2.0 / np.maximum(bend, 1e-6)))
    limit = _smoothed(-_smoothed_max(-limit, 10.0), 10.0)
    slowness = 1.0 / np.maximum(limit, 0.05)
    step = np.diff(route.distance) * (slowness[1:] + slowness[:-1]) / 2
    clock = np.concatenate([[0.0], np.cumsum(step)])
    clock -= np.interp(start_m, route.distance, clock)
    along: Array = np.interp(times, clock, route.distance)
    return along


def _smoothed_max(values: Array, width_m: float) -> Array:
    """Greatest value within a window."""
    size = int(width_m / _STEP) | 1
    padded = np.pad(values, size // 2, mode="edge")
    result: Array = np.lib.stride_tricks.sliding_window_view(padded, size).max(axis=1)
    return result


def drive_along(
    route: Route, ground: Ground, along: Array, times: Array, rng: np.random.Generator
) -> Array:
    """Poses (K, 4, 4) of a vehicle at distances `along` and `times`, with the slope of the ground
    and a slight motion of the suspension."""
    x, y, yaw = route.at(along)
    dx, dy = ground.slope(x, y)
    rock = [_wobble(times, rng, size) for size in (0.004, 0.004, 0.008)]
    pitch = -np.arctan(dx * np.cos(yaw) + dy * np.sin(yaw)) + rock[0]
    roll = np.arctan(dy * np.cos(yaw) - dx * np.sin(yaw)) + rock[1]
    z = ground.height(x, y) + rock[2]
    return poses_from_angles(x, y, z, yaw, pitch, roll)


def _wobble(times: Array, rng: np.random.Generator, size: float) -> Array:
    """Slow random motion with standard deviation `size`."""
    rates, phases = rng.uniform(0.4, 2.2, 4), rng.uniform(0, 2 * np.pi, 4)
    waves = np.sin(2 * np.pi * rates * times[:, None] + phases)
    swaying: Array = size / np.sqrt(2) * waves.sum(axis=1)
    return swaying


def poses_from_angles(x: Array, y: Array, z: Array, yaw: Array, pitch: Array, roll: Array) -> Array:
    """(K, 4, 4) poses from positions [m] and angles (K,) about z, y, x [rad]."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    poses = np.zeros((len(x), 4, 4))
    poses[:, 0, :3] = np.stack([cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr], axis=1)
    poses[:, 1, :3] = np.stack([sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr], axis=1)
    poses[:, 2, :3] = np.stack([-sp, cp * sr, cp * cr], axis=1)
    poses[:, :3, 3] = np.stack([x, y, z], axis=1)
    poses[:, 3, 3] = 1.0
    return poses


def sensor_trajectory(body: Array, times: Array, T_body_sensor: Array) -> Trajectory:
    """Trajectory T_world_sensor from body poses (K, 4, 4) at `times` [s] of the drive."""
    stamps = EPOCH_NS + np.round(times * 1e9).astype(np.int64)
    return Trajectory(stamps, body @ T_body_sensor)
