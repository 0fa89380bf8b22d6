# SPDX-License-Identifier: Apache-2.0
"""Tracks through scenes made by hand: crossing, occlusion, contact, jumps of the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

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


def test_boxes_velocities_and_ids_of_things_that_drive_stand_and_walk() -> None:
    scene = Scene()
    for number in range(15):
        t = 0.1 * number
        things = [(VEHICLE, 10 + 8 * t, 5.0, 0.0), (VEHICLE, 12.0, -6.0, 0.4)]
        found, ids = scene.sweep([*things, (PERSON, 8.0, -2 + 1.3 * t, 0.0)], number)
        assert ids == [{2}, {3}, {1}]
    walking, driving, parked = found.tracks
    assert [track.id for track in found.tracks] == [1, 2, 3]
    assert [track.label for track in found.tracks] == [PERSON, VEHICLE, VEHICLE]
    local = from_euler(0, 0, 0.02 * 14, (7.0, 0, 0))
    for track, (x, y, yaw), velocity in (
        (driving, (21.2, 5.0, 0.0), (8.0, 0.0, 0.0)),
        (parked, (12.0, -6.0, 0.4), (0.0, 0.0, 0.0)),
    ):
        np.testing.assert_allclose(track.size, (4.4, 1.8, 1.5), atol=0.06)
        box = local @ track.T_lidar_box
        np.testing.assert_allclose(box[:3, 3], (x, y, -0.95), atol=0.06)
        heading = np.arctan2(box[1, 0], box[0, 0])
        assert abs((heading - yaw + np.pi / 2) % np.pi - np.pi / 2) < 0.02
        np.testing.assert_allclose(local[:3, :3] @ track.velocity, velocity, atol=0.15)
        assert track.seen and np.isclose(track.age_s, 1.4)
    assert np.isclose(np.linalg.norm(walking.velocity), 1.3, atol=0.15)
    assert np.allclose((local @ driving.T_lidar_box)[:2, 0], (1, 0), atol=0.02)  # ahead, not back


def test_vehicles_that_pass_each_other_and_people_that_cross_keep_their_ids() -> None:
    def things(t: float) -> list[Thing]:
        return [
            (VEHICLE, -5 + 9 * t, 4.0, 0.0),
            (VEHICLE, 20 - 9 * t, 6.2, np.pi),
            (PERSON, 6.0, -6 + 1.4 * t, 0.0),
            (PERSON, 7.0, -3 - 1.4 * t, 0.0),
        ]

    assert_ids_stay(things, 25)


def test_what_is_hidden_for_a_while_comes_back_with_its_id() -> None:
    scene = Scene()
    for number in range(8):
        scene.sweep([(VEHICLE, 10 + 0.8 * number, 5.0, 0.0)], number)
    for number in range(8, 14):
        found, _ = scene.sweep([], number)
        assert [(track.id, track.seen) for track in found.tracks] == [(1, False)]
    found, ids = scene.sweep([(VEHICLE, 10 + 0.8 * 14, 5.0, 0.0)], 14)
    assert ids == [{1}] and found.tracks[0].seen


def wall(radius: float) -> np.ndarray:
    """(N, 3) a wall around the sensor."""
    azimuth, up = np.meshgrid(np.arange(-np.pi, np.pi, 0.006), np.arange(-1.7, 4.0, 0.012 * radius))
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), up], -1).reshape(-1, 3)


@pytest.mark.parametrize(
    "wall_m, speed, last", [(6.0, 0.0, {1}), (16.0, 0.0, {2}), (6.0, 6.0, {2})]
)
def test_what_stands_hidden_keeps_its_id(wall_m: float, speed: float, last: set[int]) -> None:
    """Not what is gone, where the sensor sees a wall behind, nor what drove when it was hidden."""
    scene, pose = Scene(), from_euler(0, 0, 0, FAR)
    near, far = wall(wall_m), wall(25.0)
    for number in range(32):
        car = outline((VEHICLE, 12.0, 0.1 * speed * min(number, 8), np.pi / 2))
        points = near if 6 <= number < 31 else np.concatenate([far, car])
        shown = 0 if points is near else len(car)
        labels = np.repeat([ROAD, VEHICLE], [len(points) - shown, shown])
        cloud = PointCloud(points, stamp_ns=number * PERIOD_NS)
        found = scene.tracker.update(cloud, labels, SPACE, pose, RULES)
    assert set(found.instances.tolist()) == {0} | last


@pytest.mark.parametrize("coast_s, lasting", [(0.5, 5), (1.0, 10)])
def test_what_stays_away_is_forgotten_after_the_time_given(coast_s: float, lasting: int) -> None:
    scene = Scene(TrackRules(coast_s=coast_s))
    for number in range(8):
        scene.sweep([(VEHICLE, 10.0, 5.0, 0.0)], number)
    counts = [len(scene.sweep([], number)[0].tracks) for number in range(8, 20)]
    assert counts == [1] * lasting + [0] * (12 - lasting)
    assert scene.sweep([(VEHICLE, 10.0, 5.0, 0.0)], 20)[1] == [{2}]  # ids are not used again


def test_people_and_cars_that_touch_are_split_by_their_tracks() -> None:
    def things(t: float) -> list[Thing]:
        near = max(0.0, 1.2 - t)
        return [
            (PERSON, 8.0, 0.25 + near, 0.0),
            (PERSON, 8.0, -0.25 - near, 0.0),
            (VEHICLE, 15.0, 4.0, 0.0),
            (VEHICLE, 15.0, 6.05 + 0.8 * near, 0.0),
        ]

    assert_ids_stay(things, 20)


def test_a_part_of_a_car_that_a_pole_divides_has_the_id_of_the_car() -> None:
    scene = Scene()
    for number in range(6):
        scene.sweep([(VEHICLE, 10.0, 6.0, 0.0)], number)
    whole = outline((VEHICLE, 10.0, 6.0, 0.0))
    seen = whole[np.abs(whole[:, 0] - 10.5) > 0.7]
    pose = from_euler(0, 0, 0, FAR)
    cloud = PointCloud(seen, stamp_ns=6 * PERIOD_NS)
    found = scene.tracker.update(cloud, np.full(len(seen), VEHICLE), SPACE, pose, RULES)
    assert set(found.instances.tolist()) == {1} and len(found.tracks) == 1


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


@pytest.mark.parametrize("front, rear", [(0.25, 0.3), (0.3, 0.0), (0.0, 0.3)])
def test_a_parked_car_that_comes_out_from_behind_others_stands(front: float, rear: float) -> None:
    """More of both ends, or of one, is seen from sweep to sweep."""
    scene, whole = Scene(), side(5.0, 1.5)
    for number in range(8):
        along = whole[:, 0] - 12
        seen = whole[(along < 0.4 + front * number) & (along > -0.4 - rear * number)]
        found, ids = feed(scene, seen, number)
        assert ids == {1}, number
    assert np.linalg.norm(found.tracks[0].velocity) < 0.5
    np.testing.assert_allclose(found.tracks[0].size[0], np.ptp(seen[:, 0]), atol=0.2)


def test_a_truck_of_which_other_parts_are_seen_each_time_keeps_its_id() -> None:
    scene, whole = Scene(), side(10.0, 3.3)
    for number, (start, end) in enumerate([(0, 6), (0, 6), (2, 4), (0, 10), (5, 9), (0, 10)]):
        along = whole[:, 0] - 7
        found, ids = feed(scene, whole[(along > start) & (along < end)], number)
        assert ids == {1}, number
    np.testing.assert_allclose(found.tracks[0].size[0], 10, atol=0.3)


def test_parts_of_a_car_farther_apart_than_one_thing_are_joined_by_its_track() -> None:
    scene, whole = Scene(), outline((VEHICLE, 10.0, 6.0, 0.0))
    for number in range(4):
        feed(scene, whole, number)
    ends = whole[np.abs(whole[:, 0] - 10.0) > 1.5]
    found, ids = feed(scene, ends, 4)
    assert ids == {1}
    np.testing.assert_allclose(found.tracks[0].size[0], 4.4, atol=0.05)


def across(x: float, width: float, low: float, high: float, y: float = 5.0) -> np.ndarray:
    """(N, 3) a strip across the x axis, such as a bumper of a vehicle that comes along it."""
    place, up = np.meshgrid(
        np.arange(-width / 2, width / 2, 0.1) + y, [low, (low + high) / 2, high]
    )
    return np.stack([np.full_like(up, x), place, up - 1.7], -1).reshape(-1, 3)


def test_a_bumper_and_a_windshield_that_come_nearer_are_one_car() -> None:
    """They are as low as two bicycles, and begin as two tracks."""
    scene = Scene()
    for number in range(12):
        x = 25 - 0.9 * number
        found, ids = feed(
            scene,
            np.concatenate([across(x, 1.7, 0.4, 0.7), across(x + 0.9, 1.6, 0.5, 1.0)]),
            number,
        )
    assert len(ids) == 1 and len(found.tracks) == 1
    np.testing.assert_allclose(found.tracks[0].velocity[:2], (-9, 0), atol=0.3)
    for parked in range(12, 15):  # what is seen then as one keeps the id
        assert (
            feed(scene, outline((VEHICLE, x + 2 - 0.9 * (parked - 11), 5.0, 0.0)), parked)[1] == ids
        )


def test_edges_of_occluders_are_no_motion() -> None:
    """A gap between things in front passes a parked car: it is seen in a part that drives along."""
    whole, edges = side(4.4, 1.5), []
    for drives in (False, True):
        scene = Scene()
        for number in range(5):
            x, y, up = whole.T
            from_gap = x - 10.0 - 0.25 * number
            if drives:
                points, front = np.stack([x + 0.25 * number, y, up], 1), NOTHING
            else:
                part = (from_gap > 0) & (from_gap < 2.0)
                front = np.concatenate([whole[~part] * 0.8 + (step, 0, 0) for step in (0, 0.04)])
                points = whole[part]
            found, _ = feed(scene, points, number, behind=np.concatenate([front, wall(25.0)]))
        edges.append(float(found.tracks[0].velocity[0]))
    assert edges[0] < 1.0 and edges[1] > 1.5  # of 2.5 m/s, after five sweeps


@pytest.mark.parametrize("length, same", [(4.6, True), (6.5, False)])
def test_what_is_seen_beside_a_vehicle_in_its_place_is_another_part_of_it(
    length: float, same: bool
) -> None:
    """If both together are no larger than one vehicle."""
    scene, whole = Scene(), side(length, 1.5)
    along = whole[:, 0] - 12
    for number in range(6):
        seen = along < -0.3 if number < 5 else along > 0.3
        _, ids = feed(scene, whole[seen], number, behind=wall(25.0))
        assert ids == ({1} if number < 5 or same else {2})


@pytest.mark.parametrize("gap, tracked", [(0.45, True), (3.0, False)])
def test_parts_of_few_points_are_a_thing_together(gap: float, tracked: bool) -> None:
    up = np.linspace(-1.5, -0.5, 7)
    parts = [np.stack([np.full(7, x), np.full(7, 5.0), up], 1) for x in (10.15, 10.15 + gap)]
    _, ids = feed(Scene(), np.concatenate(parts), 0)
    assert ids == ({1} if tracked else {0})


def test_a_small_part_between_two_bicycles_does_not_make_one_of_them() -> None:
    along, up = np.meshgrid(np.arange(-0.8, 0.8, 0.1) + 12, np.linspace(0, 1, 6))
    sides = [np.stack([along, np.full_like(up, y), up - 1.7], -1) for y in (4.55, 5.45)]
    between = np.stack([np.full(8, 12.0), np.full(8, 5.0), np.linspace(-1.7, -1.2, 8)], 1)
    points = np.concatenate([*(side.reshape(-1, 3) for side in sides), between])
    assert len(feed(Scene(), points, 0)[1]) == 2


def test_cars_that_were_seen_apart_for_long_stay_two_where_they_touch() -> None:
    """Each is seen by a part, so that both together are no larger than one car."""
    scene = Scene()
    apart = np.array([1.6, 0.0, 0.0])
    for number in range(16):
        nearer = 0.875 if number < 12 else 0.625
        left, right = side(2.0, 1.5) - nearer * apart, side(2.0, 1.5) + nearer * apart
        found, _ = feed(scene, np.concatenate([left, right]), number, behind=wall(25.0))
        halves = np.split(found.instances[: 2 * len(left)], 2)
        assert [int(np.bincount(half).argmax()) for half in halves] == [1, 2], number


def test_two_bicycles_side_by_side_stay_two() -> None:
    scene, first = Scene(), set[int]()
    for number in range(12):
        x = 20 - 0.5 * number
        along, up = np.meshgrid(np.arange(-0.8, 0.8, 0.1) + x, np.linspace(0, 1, 6))
        sides = [np.stack([along, np.full_like(up, y), up - 1.7], -1) for y in (4.6, 5.8)]
        _, ids = feed(scene, np.concatenate([side.reshape(-1, 3) for side in sides]), number)
        first = first or ids
        assert ids == first and len(ids) == 2


def test_cars_that_follow_each_other_closely_keep_their_ids() -> None:
    assert_ids_stay(
        lambda t: [(VEHICLE, 5 + 6 * t, 6.0, 0.0), (VEHICLE, 11.5 + 6 * t, 6.0, 0.0)], 12
    )


def test_vehicles_that_touch_as_they_meet_are_two() -> None:
    """Together they are no larger than one, but each drives another way."""
    scene, pairs = Scene(), []
    for number in range(16):
        along, up = np.meshgrid(np.arange(-1, 1, 0.1), np.linspace(0, 1.4, 8))
        ways = (8 + 0.4 * number, 5.0), (14 - 0.4 * number, 5.25)
        sides = [np.stack([along + x, np.full_like(up, y), up - 1.7], -1) for x, y in ways]
        points = np.concatenate([side.reshape(-1, 3) for side in sides])
        found, _ = feed(scene, points, number, behind=wall(25.0))
        ids = np.split(found.instances[: len(points)], 2)
        pairs.append([int(np.bincount(part).argmax()) for part in ids])
    assert pairs == [pairs[0]] * 16 and len(set(pairs[0])) == 2


def test_a_truck_keeps_the_id_of_the_part_that_was_seen_first() -> None:
    """A part that was seen apart from it for a moment does not take over."""
    scene, whole = Scene(), side(10.0, 3.3)
    along = whole[:, 0] - 7
    parts = [along < 2.5] * 4 + [(along < 2.5) | (along > 7.5), along > 7.5, along > 4, along >= 0]
    seen = [feed(scene, whole[part], number)[0].instances for number, part in enumerate(parts)]
    assert set(seen[0]) == {1} and set(seen[5]) == {2}
    assert set(seen[7]) == {1}


@pytest.mark.parametrize("seed", range(4))
def test_ids_are_unique_and_tracks_do_not_teleport(seed: int) -> None:
    """Things that come, go, hide and touch at random."""
    rng, scene = np.random.default_rng(seed), Scene()
    start = np.stack([rng.uniform(-25, 25, 12), rng.uniform(-20, 20, 12)], 1)
    velocity = rng.uniform(-8, 8, (12, 2)) * (rng.random(12) < 0.5)[:, None]
    kinds = np.where(rng.random(12) < 0.6, VEHICLE, PERSON)
    before: dict[int, np.ndarray] = {}
    ended: set[int] = set()
    for number in range(20):
        places = start + 0.1 * number * velocity
        shown = rng.random(12) < 0.85
        things = [
            (int(kinds[k]), *places[k], float(np.arctan2(*velocity[k][::-1])))
            for k in np.flatnonzero(shown)
        ]
        found, _ = scene.sweep(things, number)
        local = from_euler(0, 0, 0.02 * number, (0.5 * number, 0, 0))
        now = {track.id: (local @ track.T_lidar_box)[:2, 3] for track in found.tracks}
        assert len(now) == len(found.tracks) and not ended & now.keys()
        for id_ in now.keys() & before.keys():
            assert np.linalg.norm(now[id_] - before[id_]) < 5.0
        ended |= before.keys() - now.keys()
        before = now
        seen = {track.id for track in found.tracks if track.seen}
        assert seen <= set(found.instances.tolist())


@pytest.mark.parametrize("jump", [-3, 40])
def test_a_clock_that_jumps_ends_all_tracks(jump: int) -> None:
    scene = Scene()
    things: list[Thing] = [(VEHICLE, 10.0, 5.0, 0.0)]
    for number in range(5):
        scene.sweep(things, number)
    found, ids = scene.sweep(things, 5 + jump, speed=0.0)
    assert ids == [{2}] and not found.tracks


def test_a_platform_that_jumps_and_a_reset_end_all_tracks() -> None:
    scene = Scene()
    things: list[Thing] = [(VEHICLE, 10.0, 5.0, 0.0)]
    for number in range(3):
        scene.sweep(things, number)
    assert scene.sweep(things, 3, speed=300.0)[1] == [{2}]
    scene.tracker.reset()
    assert scene.sweep(things, 4, speed=300.0)[1] == [{3}]
    assert scene.tracker.begun == 3 and scene.tracker.count == 0


def test_nothing_to_track() -> None:
    scene = Scene(TrackRules(classes=("tram",)))
    for number in range(3):
        found, ids = scene.sweep([(VEHICLE, 10.0, 5.0, 0.0)], number)
        assert ids == [{0}] and not found.tracks
    empty = PointCloud(np.zeros((0, 3), np.float32), stamp_ns=10**10)
    found = scene.tracker.update(empty, np.zeros(0, np.int32), SPACE, np.eye(4), RULES)
    assert len(found.instances) == 0
