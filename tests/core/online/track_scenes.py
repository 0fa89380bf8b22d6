# SPDX-License-Identifier: Apache-2.0
"""Scenes made by hand that are fed to a tracker."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import from_euler, invert, transform
from pcseg_core.labels import LabelSpace
from pcseg_core.online.tracks import Tracked, Tracker, TrackRules

SPACE = LabelSpace.load("street")
ROAD, VEHICLE, PERSON = (SPACE.index(name) for name in ("road", "vehicle", "person"))
RULES = TrackRules()
PERIOD_NS = 100_000_000
FAR = (4e5, -3e5, 30.0)  # of the fixed frame: coordinates as of a map

Thing = tuple[int, float, float, float]
"""Class, place (x, y) and heading."""


def outline(thing: Thing) -> np.ndarray:
    """(N, 3) all sides of a vehicle of 4.4 x 1.8 x 1.5 m or a person of 0.5 x 0.4 x 1.7 m."""
    kind, x, y, yaw = thing
    length, width, height = (4.4, 1.8, 1.5) if kind == VEHICLE else (0.5, 0.4, 1.7)
    along, up = np.meshgrid(np.linspace(-0.5, 0.5, 24), np.linspace(0, height, 6))
    sides = [(along, side) for side in (-0.5, 0.5)] + [(side, along) for side in (-0.5, 0.5)]
    parts = [np.stack(np.broadcast_arrays(a * length, b * width, up), -1) for a, b in sides]
    xyz = np.concatenate([part.reshape(-1, 3) for part in parts])
    return transform(from_euler(0, 0, yaw, (x, y, -1.7)), xyz)


class Scene:
    """Feeds a tracker with sweeps of things; the sensor drives along x and turns."""

    def __init__(self, rules: TrackRules = RULES) -> None:
        self.tracker, self.rules = Tracker(), rules

    def sweep(
        self, things: Sequence[Thing], number: int, speed: float = 5.0
    ) -> tuple[Tracked, list[set[int]]]:
        """The result of a sweep, and the ids that each have a tenth of the points of a thing."""
        clouds = [outline(thing) for thing in things]
        road = np.stack([np.linspace(-30, 30, 500), np.full(500, 9.0), np.full(500, -1.7)], 1)
        world = np.concatenate([*clouds, road])
        labels = np.repeat([*(kind for kind, *_ in things), ROAD], list(map(len, [*clouds, road])))
        local = from_euler(0, 0, 0.02 * number, (speed * 0.1 * number, 0, 0))
        pose = local.copy()
        pose[:3, 3] += FAR
        cloud = PointCloud(transform(invert(local), world), stamp_ns=number * PERIOD_NS)
        found = self.tracker.update(cloud, labels, SPACE, pose, self.rules)
        parts = np.split(found.instances, np.cumsum(list(map(len, clouds))))
        assert not parts[-1].any()
        return found, [_most(part) for part in parts[:-1]]


def _most(ids: np.ndarray) -> set[int]:
    found, counts = np.unique(ids, return_counts=True)
    return set(found[counts > 0.1 * len(ids)].tolist())


def assert_ids_stay(things: Callable[[float], Sequence[Thing]], sweeps: int) -> None:
    """All points of each thing have one id, which is another for each and the same over time."""
    scene = Scene()
    first = scene.sweep(things(0.0), 0)[1]
    assert all(len(ids) == 1 for ids in first)
    assert len(set.union(*first)) == len(first)
    for number in range(1, sweeps):
        assert scene.sweep(things(0.1 * number), number)[1] == first, number


def wall(radius: float) -> np.ndarray:
    """(N, 3) a wall around the sensor."""
    azimuth, up = np.meshgrid(np.arange(-np.pi, np.pi, 0.006), np.arange(-1.7, 4.0, 0.012 * radius))
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), up], -1).reshape(-1, 3)


NOTHING = np.zeros((0, 3))


def feed(
    scene: Scene, points: np.ndarray, number: int, behind: np.ndarray = NOTHING
) -> tuple[Tracked, set[int]]:
    """The result of a sweep of vehicle points with a sensor that stands, and the ids of these."""
    cloud = PointCloud(np.concatenate([points, behind]), stamp_ns=number * PERIOD_NS)
    labels = np.repeat([VEHICLE, ROAD], [len(points), len(behind)])
    found = scene.tracker.update(cloud, labels, SPACE, from_euler(0, 0, 0, FAR), RULES)
    return found, set(found.instances[: len(points)].tolist())


def side(length: float, height: float) -> np.ndarray:
    """(N, 3) the side of a vehicle, from its middle at x = 12 m."""
    along, up = np.meshgrid(np.arange(-length / 2, length / 2, 0.1), np.linspace(0, height, 8))
    return np.stack([along + 12, np.full_like(up, 5.0), up - 1.7], -1).reshape(-1, 3)


def across(x: float, width: float, low: float, high: float, y: float = 5.0) -> np.ndarray:
    """(N, 3) a strip across the x axis, such as a bumper of a vehicle that comes along it."""
    place, up = np.meshgrid(
        np.arange(-width / 2, width / 2, 0.1) + y, [low, (low + high) / 2, high]
    )
    return np.stack([np.full_like(up, x), place, up - 1.7], -1).reshape(-1, 3)
