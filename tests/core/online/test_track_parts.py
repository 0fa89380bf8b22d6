# SPDX-License-Identifier: Apache-2.0
"""Tracks of things that are seen in parts, which differ from sweep to sweep."""

from __future__ import annotations

import numpy as np
import pytest
from track_scenes import (
    FAR,
    NOTHING,
    PERIOD_NS,
    RULES,
    SPACE,
    VEHICLE,
    Scene,
    across,
    assert_ids_stay,
    feed,
    outline,
    side,
    wall,
)

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import from_euler


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


@pytest.mark.parametrize("cut", [0.0, 0.6])
def test_a_car_of_which_less_is_seen_as_it_drives_away_drives(cut: float) -> None:
    """The end of what is seen of it moves less than the car, or not at all."""
    scene, whole = Scene(), outline((VEHICLE, 12.2, 1.0, 0.0))
    for number in range(6):
        seen = whole[:, 0] - 10.0 < 4.4 - cut * number
        points = whole[seen] + (0.6 * number, 0, 0)
        found, ids = feed(scene, points, number, behind=wall(30.0))
        assert ids == {1}
    np.testing.assert_allclose(found.tracks[0].velocity[:2], (6, 0), atol=0.7)


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
