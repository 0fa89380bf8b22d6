# SPDX-License-Identifier: Apache-2.0
"""The occupancy grid: costs, free space, decay, frames and bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler
from pcseg_core.labels import LabelSpace
from pcseg_core.online.class_maps import read_class_map
from pcseg_core.online.grid import (
    UNKNOWN,
    Evidence,
    GridConfig,
    draw_grid,
    memory_s,
    read_costs,
    voxel_evidence,
)
from pcseg_core.online.temporal import TemporalBuffer, TemporalBufferConfig, spread
from pcseg_core.online.voxel_table import voxel_centers, voxel_keys

SPACE = LabelSpace.load("street")
ROAD, VEHICLE, TERRAIN = (SPACE.index(name) for name in ("road", "vehicle", "terrain"))
COSTS = read_costs("", SPACE)
CONFIG = GridConfig(size_m=20.0, resolution_m=0.5)
HEIGHT = -1.8  # of the road below the sensor


def scan(box: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(3, N) points and labels of a sensor of 64 beams above a road.

    With a box of 1 m height, from x = 6 to 8 and y = -1 to 1.
    """
    elevation = np.radians(np.linspace(-30, -0.5, 64))
    azimuth = np.linspace(-np.pi, np.pi, 1440, endpoint=False) + 1e-6
    azimuth, slope = np.meshgrid(azimuth, np.tan(elevation))
    way = np.stack([np.cos(azimuth), np.sin(azimuth), slope]).reshape(3, -1)
    reach = HEIGHT / way[2]
    front = np.where(way[0] > 0, 6.0 / way[0], 1e6)
    hit = (np.abs(front * way[1]) <= 1) & (front * way[2] <= HEIGHT + 1.0) & (front < reach) & box
    reach = np.where(hit, front, reach)
    seen = reach < 60
    return (way * reach)[:, seen].astype(np.float32), np.where(hit, VEHICLE, ROAD)[seen]


def draw(points: np.ndarray, labels: np.ndarray, **settings: object) -> tuple[np.ndarray, object]:
    config = GridConfig.model_validate({**CONFIG.model_dump(), **settings})
    evidence = Evidence(points, labels, np.ones(len(labels), np.float32))
    grid = draw_grid(evidence, points, np.eye(4), COSTS, config)
    return grid.costs, grid


def at(grid: object, x: float, y: float) -> int:
    """Cost at a place: rows along y, columns along x, from the origin."""
    column, row = (int((v - o) // grid.resolution_m) for v, o in zip((x, y), grid.origin_m))
    return int(grid.costs[row, column])


def test_a_box_is_occupied_its_shade_unknown_and_the_road_free() -> None:
    costs, grid = draw(*scan())
    assert costs.shape == (40, 40) and costs.dtype == np.int8
    assert grid.origin_m == (-10.0, -10.0) and abs(grid.height_m - HEIGHT) < 0.1
    assert all(at(grid, 6.1, y) == 100 for y in (-0.75, -0.25, 0.25, 0.75))
    assert at(grid, 7.3, 0.3) == UNKNOWN and at(grid, 8.8, 0.3) == UNKNOWN
    assert all(at(grid, x, y) == 0 for x, y in ((5.2, 0.2), (-8, 3), (8, 6), (6.2, 2.3)))
    assert np.count_nonzero(costs == 100) <= 6


def test_beams_that_pass_close_above_the_ground_make_cells_free() -> None:
    points, labels = scan(box=False)
    few = points[2] > -1.79  # nothing
    assert not few.any()
    sparse = np.flatnonzero(np.hypot(*points[:2]) // 1.5 % 2 == 0)  # evidence in every other ring
    evidence = Evidence(points[:, sparse], labels[sparse], np.ones(len(sparse), np.float32))
    grid = draw_grid(evidence, points, np.eye(4), COSTS, CONFIG)
    assert at(grid, 8.0, 0.2) == 0  # no evidence there; beams pass 0.35 m above it
    assert np.hypot(8.0, 0.2) // 1.5 % 2 == 1


def test_what_the_newest_sweep_saw_through_has_moved_on() -> None:
    old, labels = scan()
    newest, road = scan(box=False)
    weight = np.repeat(np.float32([0.6, 1.0]), (len(labels), len(road)))
    evidence = Evidence(np.hstack([old, newest]), np.append(labels, road), weight)
    assert not (draw_grid(evidence, newest, np.eye(4), COSTS, CONFIG).costs == 100).any()
    evidence = Evidence(old, labels, np.full(len(labels), 0.6, np.float32))
    assert (draw_grid(evidence, old, np.eye(4), COSTS, CONFIG).costs == 100).any()


def test_rare_labels_heights_and_classes_without_evidence_do_not_count() -> None:
    place = np.tile(np.array([[3.2], [1.2], [HEIGHT]], np.float32), 10)
    labels = np.full(10, ROAD)
    labels[:2] = VEHICLE  # 20 % of the cell
    assert at(draw(place, labels)[1], 3.2, 1.2) == 0
    labels[:3] = VEHICLE
    assert at(draw(place, labels)[1], 3.2, 1.2) == 100
    labels[3:6] = TERRAIN
    assert at(draw(place, labels)[1], 3.2, 1.2) == 100
    labels[:3] = TERRAIN
    assert at(draw(place, labels)[1], 3.2, 1.2) == 40
    place[2] = 1.0  # above the sensor
    assert at(draw(place, np.full(10, VEHICLE))[1], 3.2, 1.2) == UNKNOWN
    assert at(draw(place, np.full(10, VEHICLE), max_height_m=2.0)[1], 3.2, 1.2) == 100
    place[2] = HEIGHT
    assert at(draw(place, np.full(10, -1))[1], 3.2, 1.2) == UNKNOWN


def test_the_grid_in_the_fixed_frame_stays_on_its_cells_while_the_sensor_turns() -> None:
    points, labels = scan()
    first = draw(points, labels)[1]
    pose = from_euler(0, 0, np.pi / 2, (1000.3, 500.1, 20.0))
    evidence = Evidence(points, labels, np.ones(len(labels), np.float32))
    grid = draw_grid(evidence, points, pose, COSTS, CONFIG)
    assert grid.origin_m == (990.0, 490.0) and abs(grid.height_m - 20 - HEIGHT) < 0.1
    assert at(grid, 1000.3 + 0.2, 500.1 + 6.1) == 100  # ahead is +y now
    assert at(grid, 1000.3 + 6.1, 500.1) == 0
    assert abs(np.count_nonzero(grid.costs == 100) - np.count_nonzero(first.costs == 100)) <= 3


def test_voxels_of_the_buffer_are_found_again_where_they_are() -> None:
    config = TemporalBufferConfig()
    buffer = TemporalBuffer(config, len(SPACE))
    points, labels = scan()
    pose = from_euler(0, 0, 0.7, (-1e5, 3e5, 12.0))
    sure = np.full(len(labels), 0.9, np.float32)
    buffer.update(points.T.copy(), spread(labels, sure, len(SPACE)), pose, 0)
    ahead = np.array([[8, 0, 0]], np.float32)
    moved = pose.copy()
    moved[:3, 3] += pose[:3, :3] @ (1.0, 0.0, 0.0)
    looks = spread(np.array([VEHICLE]), np.array([0.9], np.float32), len(SPACE))
    buffer.update(ahead, looks, moved, 500_000_000)
    centers, classes, age = buffer.remembered(memory_s(1.0))
    assert set(np.round(age, 3)) == {0.0, 0.5}
    box = centers[:, (classes == VEHICLE) & (age > 0)]
    np.testing.assert_allclose(np.median(box[0]), 5.0, atol=0.15)  # 6 m, one meter later
    assert len(buffer.remembered(0.1)[1]) == 1
    evidence = voxel_evidence((centers, classes, age), 1.0)
    np.testing.assert_allclose(sorted(set(evidence.weight)), [np.exp(-0.5), 1.0], rtol=1e-6)
    buffer.reset()
    assert buffer.remembered(10.0)[0].shape == (3, 0)


def test_centers_belong_to_their_keys_far_from_the_origin() -> None:
    rng = np.random.default_rng(0)
    pose = from_euler(0.1, -0.2, 2.0, (1e5, -1.5e5, 300.0))
    points = rng.uniform(-60, 60, (3, 500)).astype(np.float32)
    keys = voxel_keys(points, pose, 0.2)
    centers = voxel_centers(keys, pose, 0.2)
    np.testing.assert_array_equal(voxel_keys(centers, pose, 0.2), keys)
    assert np.abs(centers - points).max() <= 0.1 * np.sqrt(3) + 1e-3


@pytest.mark.parametrize(
    "line, words",
    [
        ("tram: 100", "unknown class 'tram'; expected one of road"),
        ("road: 101", "'road' is 101; expected an integer from 0 to 100, or -1"),
        ("road: 0.5", "'road' is 0.5"),
        ("road: true", "'road' is True"),
    ],
)
def test_wrong_costs_are_refused(tmp_path: Path, line: str, words: str) -> None:
    _, values = read_class_map("", "costs_street.yaml", SPACE, ("unlabeled",))
    name, _, value = line.partition(": ")
    lines = [f"{k}: {v}" for k, v in {**values, name: value}.items()]
    (tmp_path / "costs.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=words):
        read_costs(tmp_path / "costs.yaml", SPACE)


def test_a_grid_of_too_many_cells_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2001 x 2001 cells is too large.*increase resolution_m"):
        GridConfig(size_m=400.2, resolution_m=0.2)
    assert GridConfig(size_m=400.0, resolution_m=0.2).cells == 2000
