# SPDX-License-Identifier: Apache-2.0
"""Trails of what moves: which voxels of the buffer are out of date."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import from_euler, invert, transform
from pcseg_core.labels import MOVING, STATIC, LabelSpace
from pcseg_core.online.trails import Trails

SPACE = LabelSpace.load("street")
ROAD, VEHICLE, STRUCTURE = (SPACE.index(name) for name in ("road", "vehicle", "structure"))
SPEED = 10.0  # m/s along x
FAR = np.array([5e5, 4e6, 300.0])  # fixed frames are often that far from their origin


def pose(number: int) -> np.ndarray:
    """A sensor that drives and turns; T_fixed_lidar."""
    return from_euler(0, 0, 0.1 * number, FAR + number * np.array([0.7, 0.2, 0.0]))


def box(x: float) -> np.ndarray:
    """(M, 3) side of a vehicle from x to x + 4, in a frame that is not that far."""
    along, up = np.meshgrid(np.arange(x, x + 4, 0.1), np.arange(0, 1.4, 0.2))
    return np.stack([along.ravel(), np.full(along.size, 8.0), up.ravel()], 1)


def fixed(points: np.ndarray, number: int) -> np.ndarray:
    """(M, 3) float32 points of that frame in the LiDAR frame of a sweep."""
    return transform(invert(pose(number)), points + FAR).astype(np.float32)


def drive(sweeps: int, hidden_from: int | None = None) -> Trails:
    """A vehicle that drives and one that is parked; the first is hidden from a sweep on."""
    trails = Trails()
    for number in range(sweeps):
        seen = hidden_from is None or number < hidden_from
        driving = box(SPEED * 0.1 * number) if seen else np.zeros((0, 3))
        xyz = fixed(np.concatenate([driving, box(60.0)]), number)
        moving = np.full(len(xyz), STATIC, np.uint8)
        moving[: len(driving)] = MOVING
        trails.add(PointCloud(xyz, stamp_ns=number * 100_000_000), moving, pose(number))
    return trails


def kept(
    trails: Trails, x: list[float], number: int, label: int = VEHICLE, age: float = 0.4
) -> list[bool]:
    """Whether voxels at places along the side of the vehicles are kept."""
    places = np.stack([x, np.full(len(x), 8.0), np.full(len(x), 0.7)], 1)
    voxels = fixed(places, number).T
    labels, ages = np.full(len(x), label, np.int32), np.full(len(x), age, np.float32)
    left = trails.outside((voxels, labels, ages), SPACE)
    assert [len(part.T) for part in left] == [left[0].shape[1]] * 3
    return [bool((left[0] == one[:, None]).all(0).any()) for one in voxels.T]


def test_places_that_a_vehicle_has_left_are_out_of_date_and_where_it_is_is_not() -> None:
    trails = drive(16)  # it is at 15 to 19 m now
    assert kept(trails, [1.0, 5.0, 10.0, 15.5, 18.0], 15) == [False, False, False, True, True]


def test_parked_vehicles_and_places_beside_the_trail_stay() -> None:
    assert kept(drive(16), [61.0, 63.0, 40.0], 15) == [True, True, True]


@pytest.mark.parametrize(("label", "age"), [(STRUCTURE, 0.4), (ROAD, 0.4), (VEHICLE, 0.0)])
def test_what_cannot_move_and_what_is_seen_now_stay(label: int, age: float) -> None:
    assert kept(drive(16), [1.0, 10.0], 15, label, age) == [True, True]


def test_a_vehicle_that_is_hidden_stays_where_it_was_seen_last() -> None:
    trails = drive(16, hidden_from=11)  # seen last at 10 to 14 m
    assert kept(trails, [1.0, 5.0, 11.0, 13.0], 15) == [False, False, True, True]


@pytest.mark.parametrize("fault", ["back", "gap", "reset", "none"])
def test_jumps_of_the_clock_end_trails(fault: str) -> None:
    trails, last = drive(16), 16 * 100_000_000
    if fault == "reset":
        trails.reset()
    stamp = {"back": 0, "gap": last + 60 * 10**9}.get(fault, last)
    nothing = PointCloud(np.zeros((0, 3), np.float32), stamp_ns=stamp)
    trails.add(nothing, np.zeros(0, np.uint8), pose(15))
    assert kept(trails, [1.0, 5.0], 15) == ([False, False] if fault == "none" else [True, True])


def test_without_sweeps_all_voxels_stay() -> None:
    assert kept(Trails(), [1.0, 5.0], 0) == [True, True]
