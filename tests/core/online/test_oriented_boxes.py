# SPDX-License-Identifier: Apache-2.0
"""Headings and extents of rectangles that are known exactly, and which of them are one thing."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.geometry import from_euler, transform
from pcseg_core.native.library import optional_library
from pcseg_core.online.boxes import Grouped, fit_headings
from pcseg_core.online.thing_parts import PEOPLE, VEHICLES, Rectangles, is_one, join_parts

SENSOR = np.zeros(3)


def corner(yaw: float, center: tuple[float, float]) -> np.ndarray:
    """(N, 3) two sides of a vehicle of 4.4 x 1.8 x 1.5 m, seen around one corner."""
    long, short = np.linspace(-2.2, 2.2, 45), np.linspace(-0.9, 0.9, 19)
    side = np.stack([long, np.full(45, -0.9), np.linspace(0, 1.5, 45)], 1)
    front = np.stack([np.full(19, 2.2), short, np.linspace(0, 1.5, 19)], 1)
    pose = from_euler(0, 0, yaw, (*center, 0.3))
    return transform(pose, np.concatenate([side, front]))


@pytest.mark.parametrize("degrees", [0.0, 17.0, 45.0, 63.0, 89.0])
def test_the_rectangle_around_two_sides(degrees: float) -> None:
    yaw = np.radians(degrees)
    things, order = Grouped.of(
        np.concatenate([corner(yaw, (900.0, -4.0)), corner(0.5, (0.0, 8.0))]), np.repeat([1, 0], 64)
    )
    assert things.counts.tolist() == [64, 64] and sorted(order) == list(range(128))
    found = fit_headings(things)
    error = (found - (0.5, yaw) + np.pi / 4) % (np.pi / 2) - np.pi / 4
    assert np.abs(np.degrees(error)).max() < 1.0
    low, high = things.extents(np.array([0.5, yaw]))
    np.testing.assert_allclose(high - low, [[4.4, 1.8, 1.5]] * 2, atol=1e-9)
    np.testing.assert_allclose(low[:, 2], 0.3)


def test_headings_with_and_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    if optional_library() is None:
        pytest.skip("needs the native library; run: python -m pcseg_core.native.build")
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 200, 60)
    shapes = [
        corner(yaw, (4e5, -3e5))[rng.integers(0, 64, count)] + rng.normal(0, 0.02, (count, 3))
        for yaw, count in zip(rng.uniform(0, np.pi, 60), counts)
    ]
    things, _ = Grouped.of(np.concatenate(shapes), np.repeat(np.arange(60), counts))
    native = fit_headings(things)
    monkeypatch.setattr("pcseg_core.online.boxes.optional_library", lambda: None)
    np.testing.assert_allclose(fit_headings(things), native, atol=1e-6)


def test_one_side_alone_gives_its_direction() -> None:
    side = np.stack([np.arange(20) * 0.1, np.arange(20) * 0.1, np.zeros(20)], 1)
    things, _ = Grouped.of(side, np.zeros(20, np.int64))
    assert np.isclose(fit_headings(things)[0], np.pi / 4, atol=0.02)


def test_thinning_keeps_every_thing() -> None:
    points = np.arange(330.0).reshape(-1, 3)
    things, _ = Grouped.of(points, np.repeat([0, 1, 2], [1, 100, 9]))
    few = things.thinned(10)
    assert few.counts.tolist() == [1, 10, 9] and few.starts.tolist() == [0, 1, 11]
    np.testing.assert_array_equal(few.points[1:11], points[1:101:10])


def rectangles(*boxes: tuple[float, ...], group: int = VEHICLES) -> Rectangles:
    """Boxes of x, y, length, width, bottom and top, along x."""
    x, y, length, width, bottom, top = np.array(boxes).T
    count = len(boxes)
    return Rectangles.of(
        np.stack([x, y], 1),
        np.zeros(count),
        np.stack([length, width], 1),
        bottom,
        top,
        np.full(count, group),
    )


def test_the_outside_of_a_turned_box() -> None:
    box = Rectangles.of(
        np.array([[10.0, 0.0]]),
        np.array([np.pi / 2]),
        np.array([[4.0, 2.0]]),
        np.zeros(1),
        np.ones(1),
        np.zeros(1, int),
    )
    points = np.array([[10.0, 0.0], [10.0, 3.0], [12.0, 0.0], [10.0, 2.0]])
    np.testing.assert_allclose(box.outside(points), [[-1.0, 1.0, 1.0, 0.0]], atol=1e-12)


def test_a_bonnet_and_the_windshield_behind_it_are_one_car() -> None:
    boxes = rectangles((20, 0, 0.4, 1.7, 0.3, 0.9), (21.7, 0, 0.5, 1.5, 1.0, 1.5))
    assert join_parts(boxes, SENSOR).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("width", "rise", "one"), [(1.5, 0.15, True), (1.5, 0.05, False), (0.9, 0.15, True)]
)
def test_faces_that_rise_are_one_car_and_bicycles_are_not(
    width: float, rise: float, one: bool
) -> None:
    """Parts as low as bicycles, one behind the other; narrower ones are no bicycles."""
    low = rectangles((20, 0, 0.4, 1.7, 0.3, 0.9), (21, 0, 0.4, width, 0.3 + rise, 0.9 + rise))
    assert join_parts(low, SENSOR).tolist() == [0, 0 if one else 1]
    nearer = rectangles((21, 0, 0.4, 1.7, 0.3, 0.9), (20, 0, 0.4, width, 0.3 + rise, 0.9 + rise))
    assert join_parts(nearer, SENSOR).tolist() == [0, 1 if width > 1.1 else 0]


def test_cars_in_a_row_and_people_are_not_joined() -> None:
    row = rectangles((10, 4, 4.4, 1.8, 0.2, 1.6), (15.0, 4, 4.4, 1.8, 0.2, 1.6))
    assert join_parts(row, SENSOR).tolist() == [0, 1]
    abreast = rectangles((8, 0.0, 0.4, 0.5, 0, 1.7), (8, 0.6, 0.4, 0.5, 0, 1.7), group=PEOPLE)
    assert join_parts(abreast, SENSOR).tolist() == [0, 1]
    racks = rectangles((8, 0, 1.7, 0.5, 0.1, 1.1), (8, 0.8, 1.7, 0.5, 0.1, 1.1))
    assert join_parts(racks, SENSOR).tolist() == [0, 1]


def test_long_things_are_one_only_if_they_are_high() -> None:
    low = rectangles((10, 0, 4.0, 2.0, 0, 1.5), (15, 0, 4.0, 2.0, 0, 1.5))
    high = rectangles((10, 0, 4.0, 2.4, 0, 2.0), (15, 0, 4.0, 2.4, 0, 3.4))
    both = np.array([0, 1])
    assert not is_one(low, both) and is_one(high, both)


def test_no_boxes() -> None:
    nothing, order = Grouped.of(np.zeros((0, 3)), np.zeros(0, np.int64))
    assert len(fit_headings(nothing)) == len(order) == 0
