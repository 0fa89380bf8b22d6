# SPDX-License-Identifier: Apache-2.0
"""Things of a sweep, and what was seen free, natively and by plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_and_numpy import SEEDS, both, properties, sweep

from pcseg_core.cloud import PointCloud
from pcseg_core.geometry import from_euler
from pcseg_core.native import library
from pcseg_core.online import boxes, free_space, instances, moving, thing_parts, track_filter
from pcseg_core.online.free_space import Beams, FreeSpace

pytestmark = pytest.mark.skipif(
    isinstance(library.load(), str), reason="the native library was not built"
)


@properties
@given(SEEDS, st.integers(0, 500), st.floats(0.05, 2.0), st.integers(1, 12))
def test_instances(seed: int, count: int, cell: float, least: int) -> None:
    rng = np.random.default_rng(seed)
    points = sweep(rng, count) * np.float32([rng.choice([0.3, 1.0, 6.0]), 0.3, 1])
    labels = rng.integers(-1, 5, count).astype(rng.choice([np.int32, np.int8, np.int64]))
    classes = rng.permutation([0, 2, 3, 70_000])[: rng.integers(0, 4)].tolist()
    native, expected = both(
        lambda: instances.cluster_instances(points, labels, classes, cell_m=cell, min_points=least)
    )
    assert native.dtype == np.uint32
    np.testing.assert_array_equal(native, expected)


@properties
@given(SEEDS, st.integers(0, 300), st.integers(1, 4))
def test_instances_are_those_points_whose_ids_are_not_zero(
    seed: int, count: int, least: int
) -> None:
    rng = np.random.default_rng(seed)
    points = sweep(rng, count) * np.float32([0.3, 0.3, 1])
    labels, group = rng.integers(-1, 7, count), np.array([2, -1, 0, 2, 5])
    native, expected = both(
        lambda: instances.find_instances(points, labels, group, min_points=least)
    )
    assert native.count == expected.count == native.ids.max(initial=0)
    np.testing.assert_array_equal(native.rows, expected.rows)
    np.testing.assert_array_equal(native.ids, expected.ids)
    of = group[labels[native.rows]]  # all points of an instance have one group, of those there are
    assert (of >= 0).all() and len({*zip(native.ids, of)}) == native.count


@properties
@given(SEEDS, st.integers(0, 300), st.integers(1, 2**32 - 20), st.integers(1, 9))
def test_values_of_some_ids(seed: int, count: int, first: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    near = rng.integers(max(first - 3, 1), min(first + number + 3, 2**32), 2 * count)
    ids = np.where(rng.random(2 * count) < 0.6, 0, near).astype(np.uint32)[::2]
    values = rng.random(count).astype(np.float32)
    native, expected = both(lambda: instances.id_sums(ids, values, first, number))
    for found, known in zip(native, expected, strict=True):
        np.testing.assert_array_equal(found, known)
    np.testing.assert_array_equal(native[0], [(ids == first + k).sum() for k in range(number)])


@properties
@given(SEEDS, st.integers(0, 400), st.integers(1, 30), st.booleans())
def test_points_by_thing(seed: int, count: int, things: int, strided: bool) -> None:
    rng = np.random.default_rng(seed)
    numbers = np.concatenate([np.arange(things), rng.integers(0, things, count)])
    rng.shuffle(numbers)
    points = (
        rng.normal(size=(len(numbers), 6))[:, ::2]
        if strided
        else rng.normal(size=(len(numbers), 3))
    )
    numbers = np.where(rng.random(len(numbers)) < 0.2, -1, np.repeat(numbers, 3)[: len(numbers)])
    numbers[rng.permutation(len(numbers))[:things]] = np.arange(things)  # the others are of none
    labels, yaws = rng.integers(0, 4, len(numbers)), rng.uniform(-9, 9, things)

    def compute() -> list[np.ndarray]:
        grouped, order = boxes.Grouped.of(points, numbers)
        few, rows = grouped.chosen(np.arange(0, things, 2))
        sorted_ = grouped.points, grouped.starts, grouped.counts, order, rows
        found = *grouped.extents(yaws), grouped.most_frequent(labels[order])
        others = few.most_frequent(labels[order][rows]), grouped.boxes(yaws)
        return [*sorted_, *found, *others]

    native, expected = both(compute)
    for one, other in zip(native, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    own = [points[numbers == k][:, 2].min() for k in range(things)]
    np.testing.assert_array_equal(native[5][:, 2], own)


@properties
@given(SEEDS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 30), st.floats(1, 9))
def test_distances_of_boxes(seed: int, count: int, others: int, points: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    tracks, things = (np.zeros(n, track_filter.STATE) for n in (count, others))
    for some in (tracks, things):
        some["position"] = rng.normal(size=(len(some), 2)) * spread + 1e4
        some["yaw"] = rng.choice([0.0, 0.3, 1.3, np.pi / 2, 3.0, -2.0], len(some))
        some["size"] = rng.uniform(0, 5, (len(some), 3))
    tracks["variance"][:, 0] = rng.uniform(0, 1, count)
    boxes_, seen = track_filter.boxes_of(tracks), track_filter.boxes_of(things)
    places = rng.normal(size=(points, 3)) * 3 + 1e4

    def compute() -> list[np.ndarray]:
        outside = boxes_.outside(places), boxes_.outside(places[::-1, :2])
        nearest = boxes_.nearest(places) if len(boxes_) else np.zeros(0)
        return [
            *outside,
            nearest,
            thing_parts.gaps(boxes_, seen, 3.0),
            thing_parts.overlap(boxes_, seen),
            thing_parts.overlap(boxes_, seen, of_others=True),
            thing_parts.beside(boxes_, seen, 0.3),
            track_filter._distance(tracks, seen),
        ]

    for native, expected in zip(*both(compute), strict=True):
        assert native.shape == expected.shape
        np.testing.assert_allclose(native, expected, rtol=1e-9, atol=1e-9)


@properties
@given(SEEDS, st.integers(0, 300), st.integers(0, 40))
def test_points_of_some_rows_in_another_frame(seed: int, count: int, chosen: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count + 1, 5)).astype(np.float32)[:, 1:4]
    pose = from_euler(0.1, -0.2, rng.uniform(-3, 3), rng.normal(size=3) * 1e5)
    rows = rng.integers(0, count + 1, chosen)
    native, expected = both(lambda: boxes.moved_points(points, rows, pose))
    np.testing.assert_allclose(native, expected, rtol=0, atol=1e-9)


@properties
@given(SEEDS, st.integers(0, 200), st.integers(0, 200), st.sampled_from([0.15, 2.0]))
def test_points_near_others(seed: int, count: int, others: int, cell: float) -> None:
    rng = np.random.default_rng(seed)
    one, two = (rng.normal(size=(3, n)).astype(np.float32) * 4 for n in (count, others))
    native, expected = both(lambda: moving.near(one, two, cell))
    np.testing.assert_array_equal(native, expected)


@properties
@given(SEEDS, st.integers(0, 400), st.integers(1, 3))
def test_times_that_places_were_seen_free(seed: int, count: int, others: int) -> None:
    """The same but for points at the borders of cells, whose angles round differently."""
    rng = np.random.default_rng(seed)

    def things(points: np.ndarray) -> moving.Things:
        cloud, pose = PointCloud(points), from_euler(0, 0, rng.uniform(-3, 3), rng.normal(size=3))
        rows = np.flatnonzero(cloud.finite)
        found = instances.Instances(rows, np.ones(len(rows), np.uint32), 1)
        return moving.Things.of(cloud, found, pose)

    now = things(sweep(rng, count, odd=0.01) * np.float32(0.5))
    before = [things(sweep(rng, 2000, odd=0.01)) for _ in range(others)]
    native, expected = both(lambda: moving._times_passed(now, before))
    assert np.count_nonzero(native != expected) <= 0.02 * count + 1


def test_what_stands_before_a_wall_was_seen_free_each_time() -> None:
    turn = np.linspace(-np.pi, np.pi, 4000)
    ring = np.stack([np.cos(turn), np.sin(turn), np.zeros(4000)], 1).astype(np.float32)

    def things(points: np.ndarray) -> moving.Things:
        found = instances.Instances(np.arange(4000), np.ones(4000, np.uint32), 1)
        return moving.Things.of(PointCloud(points), found, np.eye(4))

    walls = [things(20 * ring), things(25 * ring), things(5 * ring)]
    for times in both(lambda: moving._times_passed(things(10 * ring), walls)):
        assert (times == 2).all()


@properties
@given(SEEDS, st.integers(0, 3000), st.integers(0, 400), st.sampled_from([0, 1, 2]))
def test_free_space(seed: int, count: int, asked: int, lidars: int) -> None:
    """The same but for points at the borders of cells, whose angles round differently."""
    rng = np.random.default_rng(seed)
    points, others = sweep(rng, count), sweep(rng, asked).T
    beams = None
    if lidars:
        source = rng.integers(0, lidars, count) if rng.random() < 0.8 else None
        last = rng.random(count) < 0.7 if rng.random() < 0.5 else None
        beams = Beams(source, rng.normal(size=(lidars, 3)).astype(np.float32), last)
    for ask in (FreeSpace.passed, FreeSpace.behind):
        native, expected = both(lambda ask=ask: ask(FreeSpace(points.T, beams), others, 0.4))
        assert native.dtype == bool and native.shape == (asked,)
        assert np.count_nonzero(native != expected) <= 0.01 * asked + 1


@pytest.mark.parametrize(
    "slopes", [(), (0.0,), (-9.0, -0.7), (0.71, 9.0), (-0.2, 0.1), (-9.0, 9.0)]
)
@pytest.mark.parametrize("farthest", [False, True])
def test_range_images_of_returns_at_few_heights(slopes: tuple[float, ...], farthest: bool) -> None:
    """Rows without returns, and those at the ends, are those of numpy too."""
    angle = np.linspace(-3.1, 3.1, 700, dtype=np.float32)
    rings = [(8 * np.cos(angle), 8 * np.sin(angle), np.full(700, 8 * slope)) for slope in slopes]
    points = np.hstack([np.zeros((3, 0)), *rings]).astype(np.float32)
    origin = np.zeros(3, np.float32)
    native, expected = both(lambda: free_space._range_image(points, origin, None, farthest))
    np.testing.assert_allclose(native, expected, rtol=1e-6)
    assert np.isfinite(native).any() == bool(slopes)
