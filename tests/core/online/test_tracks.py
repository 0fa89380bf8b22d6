# SPDX-License-Identifier: Apache-2.0
"""Tracks through scenes made by hand: crossing, occlusion, contact, jumps of the clock."""

from __future__ import annotations

import numpy as np
import pytest
from track_scenes import (
    FAR,
    PERIOD_NS,
    PERSON,
    ROAD,
    RULES,
    SPACE,
    VEHICLE,
    Scene,
    Thing,
    assert_ids_stay,
    outline,
    wall,
)

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import from_euler
from pcseg_core.online.tracks import TrackRules


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


@pytest.mark.parametrize("away, aside, last", [(4, 0.0, 1), (4, 3.6, 2), (14, 0.0, 2)])
def test_a_car_that_is_seen_once_and_then_hidden_keeps_its_id(
    away: int, aside: float, last: int
) -> None:
    """Not another one that stands beside it, nor after a second."""
    scene, pose = Scene(), from_euler(0, 0, 0, FAR)
    hiding = wall(6.0)
    for number in range(away + 1):
        car = outline((VEHICLE, 12.0, aside if number else 0.0, np.pi / 2))
        shown = car if number in (0, away) else car[:0]
        points = np.concatenate([hiding if number else wall(25.0), shown])
        labels = np.repeat([ROAD, VEHICLE], [len(points) - len(shown), len(shown)])
        cloud = PointCloud(points, stamp_ns=number * PERIOD_NS)
        found = scene.tracker.update(cloud, labels, SPACE, pose, RULES)
    assert set(found.instances.tolist()) == {0, last}


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
