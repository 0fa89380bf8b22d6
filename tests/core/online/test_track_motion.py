# SPDX-License-Identifier: Apache-2.0
"""Evidence of beams that tracks stand."""

from __future__ import annotations

import numpy as np

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import from_euler, transform
from pcseg_core.online.boxes import Grouped
from pcseg_core.online.thing_parts import PEOPLE, VEHICLES
from pcseg_core.online.track_filter import STATE
from pcseg_core.online.track_motion import Evidence, Look, few_points, stand

POSE = from_euler(0, 0, 0.7, (4e5, -3e5, 30.0))


def wall(radius: float) -> np.ndarray:
    """(N, 3) a wall around the origin."""
    azimuth, up = np.meshgrid(np.arange(-np.pi, np.pi, 0.006), np.arange(-1.7, 4.0, 0.3))
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), up], -1).reshape(-1, 3)


def plate(y: float) -> np.ndarray:
    """(1, 205, 3) points of a thing across the x axis at 10 m, from y on 2 m long."""
    along, up = np.meshgrid(np.linspace(0, 2, 41), np.linspace(-0.5, 0.0, 5))
    return np.stack([np.full_like(up, 10.0), y + along, up], -1).reshape(1, -1, 3)


def look(*parts: np.ndarray) -> Look:
    """A sweep of points in the LiDAR frame."""
    xyz = np.concatenate([part.reshape(-1, 3) for part in parts])
    return Look(PointCloud(xyz), POSE)


def fixed(points: np.ndarray) -> np.ndarray:
    return transform(POSE, points.reshape(-1, 3)).reshape(points.shape)


def test_beams_pass_what_is_gone_and_not_what_stays_is_hidden_or_nothing_is_behind() -> None:
    thing = fixed(plate(0.0))
    assert look(wall(25.0)).passed(thing) == 1
    assert look(wall(25.0), plate(0.0)).passed(thing) == 0
    assert look(wall(6.0)).passed(thing) == 0
    assert look(plate(5.0)).passed(thing) == 0
    np.testing.assert_allclose(look(plate(1.0)).local(thing).T, plate(0.0)[0], atol=1e-4)


def test_what_drives_leaves_places_and_comes_to_others_that_were_seen_free() -> None:
    evidence, now = Evidence(), look(wall(25.0), plate(1.0))
    assert not evidence.gone(now, np.array([7])).any() and not evidence.new(plate(0.0)).any()
    evidence.add(look(wall(25.0), plate(0.0)), fixed(plate(0.0)), np.array([7]))
    # A half is free; the image of a sweep is coarse, so that what is at the edge is not.
    gone = evidence.gone(now, np.array([3, 7]))
    assert gone[0] == 0 and 0.4 <= gone[1] <= 0.5
    new = evidence.new(fixed(np.concatenate([plate(0.0), plate(1.0), plate(5.0)])))
    assert new[0] == 0 and 0.4 <= new[1] <= 0.5 and new[2] == 1
    evidence.reset()
    assert not evidence.gone(now, np.array([7])).any()


def test_few_points_are_as_many_of_each_thing() -> None:
    points = np.arange(150.0).reshape(50, 3)
    things = Grouped(points, np.array([0, 3]), np.array([3, 47]))
    few = few_points(things)
    assert few.shape == (2, 20, 3)
    assert set(few[0, :, 0]) == {0.0, 3.0, 6.0} and len(set(few[1, :, 0])) == 20
    np.testing.assert_array_equal(few_points(things, np.array([1])), few[1:])


def tracks() -> np.ndarray:
    found = np.zeros(4, STATE)
    found["group"], found["hits"] = (VEHICLES, VEHICLES, VEHICLES, PEOPLE), 1
    found["velocity"], found["size"] = (5.0, 0.0), (3.0, 1.5, 1.5)
    found["variance"] = (0.02, 0.1, 4.0)
    return found


def test_the_velocity_of_what_is_not_seen_to_move_is_measured_as_0() -> None:
    found = tracks()
    stand(found, np.array([0.0, 0.6, 0.0, 0.0]), np.array([0.0, 0.0, 1.0, 0.0]))
    noise = 0.3**2  # m^2/s^2; the gain of a Kalman filter is variance / (variance + noise)
    np.testing.assert_allclose(found["velocity"][0], (5 * noise / (4 + noise), 0))
    np.testing.assert_allclose(found["position"][0], (-5 * 0.1 / (4 + noise), 0))
    expected = 0.02 - 0.1**2 / (4 + noise), 0.1 * noise / (4 + noise), 4 * noise / (4 + noise)
    np.testing.assert_allclose(found["variance"][0], expected)
    np.testing.assert_allclose(found["velocity"][[1, 3], 0], 5.0, rtol=1e-6)
    noise *= np.exp(2 * 0.2 / (1 + 0.5**2) / 0.06)  # elsewhere: that it moves is not known
    np.testing.assert_allclose(found["velocity"][2, 0], 5 * noise / (4 + noise))
    np.testing.assert_allclose(found["moves"], (0, 0.6, 0, 0))


def test_a_long_vehicle_moves_with_a_smaller_share_of_its_points() -> None:
    found = tracks()
    found["size"][1, 0] = 12.0
    stand(found, np.array([0.1, 0.1, 0.0, 0.0]), np.zeros(4))
    np.testing.assert_allclose(found["moves"], (0.1, 0.4, 0, 0))
    assert found["velocity"][0, 0] < 3.0 and found["velocity"][1, 0] > 4.9
