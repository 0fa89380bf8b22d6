# SPDX-License-Identifier: Apache-2.0
"""What moves: objects that come, go on, stay and hide, from a sensor that moves itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import from_euler
from pcseg_core.labels import MOVING, STATIC, UNKNOWN, LabelSpace
from pcseg_core.online.free_space import FreeSpace
from pcseg_core.online.moving import MovingThings, Placed, with_moving
from pcseg_core.online.over_time import OverTime
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_core.online.tracks import Tracker, TrackRules

SPACE = LabelSpace.load("street")
ROAD, STRUCTURE, VEHICLE = (SPACE.index(name) for name in ("road", "structure", "vehicle"))
PERIOD_NS = 100_000_000
Box = tuple[float, float, float, float]  # low x, high x, low y, high y: 1.5 m high, on the road
WALL = (40.0, 41.0, -60.0, 60.0)


def scan(pose: np.ndarray, vehicles: Sequence[Box]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points in the LiDAR frame, labels, and the vehicle of each point, -1 for none.

    48 beams, 1.8 m above a road that ends at a wall.
    """
    elevation = np.radians(np.linspace(-25, 5, 48))
    azimuth, slope = np.meshgrid(np.linspace(-np.pi, np.pi, 900, endpoint=False), np.tan(elevation))
    ray = np.stack([np.cos(azimuth), np.sin(azimuth), slope]).reshape(3, -1)
    ray = pose[:3, :3] @ ray
    eye = pose[:3, 3] + (0, 0, 1.8)
    reach = np.where(ray[2] < 0, -1.8 / np.minimum(ray[2], -1e-9), np.inf)
    labels, owner = np.full(ray.shape[1], ROAD), np.full(ray.shape[1], -1)
    for number, (x0, x1, y0, y1) in enumerate([*vehicles, WALL]):
        low, high = (
            np.array([x0, y0, 0.0]),
            np.array([x1, y1, 1.5 if number < len(vehicles) else 9]),
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            one, two = (low - eye)[:, None] / ray, (high - eye)[:, None] / ray
        near, far = np.minimum(one, two).max(0), np.maximum(one, two).min(0)
        hit = (near < far) & (near > 0) & (near < reach)
        reach, owner[hit] = np.where(hit, near, reach), number if number < len(vehicles) else -1
        labels[hit] = VEHICLE if number < len(vehicles) else STRUCTURE
    seen = reach < 70
    points = (eye[:, None] + ray * reach)[:, seen] - pose[:3, 3:] - np.array([[0], [0], [1.8]])
    return (pose[:3, :3].T @ points).T.astype(np.float32), labels[seen], owner[seen]


def drive(
    sweeps: int, boxes: Callable[[float], Sequence[Box]], speed: float = 8.0
) -> list[tuple[Placed, np.ndarray, int]]:
    """Sweeps at 10 Hz of a sensor that drives along x and turns."""
    result = []
    for number in range(sweeps):
        pose = from_euler(0, 0, 0.05 * number, (1e4 + speed * 0.1 * number, -5e3, 20.0))
        local = pose.copy()
        local[:3, 3] -= (1e4, -5e3, 20.0)
        xyz, labels, owner = scan(local, boxes(0.1 * number))
        cloud = PointCloud(xyz, stamp_ns=number * PERIOD_NS)
        result.append((Placed(cloud, labels, SPACE, pose), owner, number))
    return result


def street(t: float) -> list[Box]:
    """A vehicle ahead that goes on, one that comes, one that crosses, and one that is parked."""
    ahead, coming, crossing = 14 + 9 * t, 38 - 9 * t, -9 + 7 * t
    return [
        (ahead, ahead + 4.2, -1.0, 0.8),
        (coming, coming + 4.2, 2.6, 4.4),
        (26.0, 27.8, crossing, crossing + 4.2),
        (10.0, 14.2, -6.5, -4.7),
    ]


def online(sweeps: Sequence[tuple[Placed, np.ndarray, int]]) -> list[np.ndarray]:
    found = MovingThings()
    return [found.update(s.cloud, s.labels, s.space, s.pose) for s, _, _ in sweeps]


def shares(field: np.ndarray, owner: np.ndarray, value: int) -> list[float]:
    return [float(np.mean(field[owner == k] == value)) for k in range(4) if (owner == k).any()]


def test_vehicles_that_come_go_on_and_cross_move_and_a_parked_one_does_not() -> None:
    sweeps = drive(7, street)
    fields = online(sweeps)
    for (_, owner, number), field in list(zip(sweeps, fields))[5:]:
        assert [share > 0.7 for share in shares(field, owner, MOVING)] == [True, True, True, False]
        assert shares(field, owner, STATIC)[3] > 0.9, number
    for (sweep, _, _), field in zip(sweeps, fields):
        assert (field[np.isin(sweep.labels, (ROAD, STRUCTURE))] == STATIC).all()
        assert field.dtype == np.uint8 and len(field) == len(sweep.labels)
    first = sweeps[0][0].labels == VEHICLE
    assert (fields[0][first] == UNKNOWN).all()


def test_sweeps_after_a_sweep_tell_what_moves_in_the_first_one_too() -> None:
    sweeps = drive(7, street)
    given = list(with_moving(((number, sweep) for sweep, _, number in sweeps)))
    assert [number for number, _ in given] == list(range(7))
    for (_, owner, _), (_, field) in zip(sweeps, given):
        moves = shares(field, owner, MOVING)
        assert [share > 0.7 for share in moves] == [True, True, True, False]
        assert shares(field, owner, STATIC)[3] > 0.9


def test_a_moving_sensor_alone_makes_nothing_move() -> None:
    parked: list[Box] = [(x, x + 4.2, y, y + 1.8) for x in (6.0, 14.0, 22.0) for y in (-7.0, 4.0)]
    for field in online(drive(8, lambda t: parked, speed=12.0)):
        assert not (field == MOVING).any()


def test_a_slow_vehicle_moves_though_it_mostly_covers_the_same_places() -> None:
    def slow(t: float) -> list[Box]:
        return [(14.0, 15.8, -3 + 2 * t, 1.2 + 2 * t), (14.0, 15.8, -12.0, -7.8)]

    sweeps = drive(7, slow, speed=2.0)
    (_, owner, _), field = sweeps[-1], online(sweeps)[-1]
    assert (field[owner == 0] == MOVING).mean() > 0.9
    assert (field[owner == 1] == STATIC).mean() > 0.9


def test_a_thing_that_beams_pass_stands() -> None:
    posts: list[Box] = [(8.0, 8.1, y, y + 0.05) for y in np.arange(-1.0, 1.0, 0.15)]
    sweeps = drive(7, lambda t: posts, speed=0.0)
    for (_, owner, _), field in zip(sweeps, online(sweeps)):
        assert (owner >= 0).sum() > 50
        assert not (field == MOVING).any()


def test_unlabeled_points_and_sweeps_without_a_pose_are_unknown() -> None:
    (sweep, _, _), (after, _, _) = drive(2, street)
    labels = np.full(len(sweep.labels), -1)
    assert not MovingThings().update(sweep.cloud, labels, SPACE, sweep.pose).any()
    lost = Placed(after.cloud, after.labels, SPACE, None)
    fields = dict(with_moving([("a", sweep), ("b", lost)]))
    assert not fields["b"].any() and fields["a"].any()


@pytest.mark.parametrize("fault", ["gap", "back", "pose", "reset"])
def test_comparisons_end_at_jumps(fault: str) -> None:
    sweeps = drive(7, street)
    found = MovingThings()
    for sweep, _, _ in sweeps[:6]:
        found.update(sweep.cloud, sweep.labels, SPACE, sweep.pose)
    last = sweeps[6][0]
    cloud, pose = last.cloud, np.asarray(last.pose)
    if fault == "gap":
        cloud = PointCloud(cloud.xyz, stamp_ns=cloud.stamp_ns + 3 * 10**9)
    elif fault == "back":
        cloud = PointCloud(cloud.xyz, stamp_ns=0)
    elif fault == "pose":
        pose = from_euler(0, 0, 0, (0, 50.0, 0)) @ pose
    else:
        found.reset()
    field = found.update(cloud, last.labels, SPACE, pose)
    assert (field[last.labels == VEHICLE] == UNKNOWN).all()


def test_scenes_are_not_compared() -> None:
    sweeps = [sweep for sweep, _, _ in drive(6, street)]
    parted = [Placed(s.cloud, s.labels, SPACE, s.pose, scene=str(k)) for k, s in enumerate(sweeps)]
    for (_, field), sweep in zip(with_moving(enumerate(parted)), sweeps):
        assert (field[sweep.labels == VEHICLE] == UNKNOWN).all()


def test_fast_sensors_are_compared_over_the_same_time() -> None:
    """At 50 Hz five sweeps are a tenth of a second, in which little moves."""
    sweeps = []
    for number in range(28):
        pose = np.eye(4)
        xyz, labels, owner = scan(pose, street(0.02 * number))
        sweeps.append((PointCloud(xyz, stamp_ns=number * PERIOD_NS // 5), labels, owner))
    found = MovingThings()
    for cloud, labels, _ in sweeps:
        field = found.update(cloud, labels, SPACE, np.eye(4))
    assert [share > 0.7 for share in shares(field, owner, MOVING)] == [True, True, True, False]


def test_what_moves_and_tracks_are_those_of_each_by_itself_from_one_free_space() -> None:
    together, moving, tracker, rules = OverTime(), MovingThings(), Tracker(), TrackRules()
    for sweep, _, _ in drive(5, street):
        of_sweep = sweep.cloud, sweep.labels, SPACE, sweep.pose
        sure = np.ones(len(sweep.labels), np.float32)
        labeled = LabeledSweep(sweep.cloud, sweep.labels, sure, SPACE, pose=sweep.pose)
        with mock.patch.object(FreeSpace, "of", wraps=FreeSpace.of) as build:
            together.add(labeled, True, rules)
        assert build.call_count == 1
        assert labeled.moving is not None and labeled.tracked is not None
        np.testing.assert_array_equal(labeled.moving, moving.update(*of_sweep))
        own = tracker.update(*of_sweep, rules)
        np.testing.assert_array_equal(labeled.tracked.instances, own.instances)
    assert (labeled.moving == MOVING).any() and len(own.tracks) == 4
