# SPDX-License-Identifier: Apache-2.0
"""What outputs compute natively is what plain numpy computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.measure import threads
from pcseg_core import cloud_records
from pcseg_core.cloud import PointCloud, encode_cloud, structured
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler
from pcseg_core.labels import LabelSpace
from pcseg_core.native import library
from pcseg_core.native.structures import Points
from pcseg_core.online import (
    boxes,
    free_space,
    grid,
    instances,
    label_images,
    moving,
    output_clouds,
    row_reductions,
    thing_parts,
    track_filter,
)
from pcseg_core.online.free_space import Beams, FreeSpace
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_ros.output_parameters import CloudParameters

pytestmark = pytest.mark.skipif(
    isinstance(library.load(), str), reason="the native library was not built"
)
properties = settings(max_examples=25, deadline=None)
MODULES = (
    *(boxes, cloud_records, free_space, grid, instances, label_images, moving, output_clouds),
    *(row_reductions, thing_parts),
)
SPACE = LabelSpace.load("street")
SEEDS = st.integers(0, 9999)
ODD = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, 1e-30)


@contextmanager
def plain() -> Iterator[None]:
    """Without the native library."""
    patches = [mock.patch.object(module, "optional_library", lambda: None) for module in MODULES]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def both(compute: Callable[[], Any]) -> tuple[Any, Any]:
    """The native result, and that of numpy."""
    native = compute()
    with plain():
        return native, compute()


def sweep(rng: np.random.Generator, count: int, odd: float = 0.1) -> np.ndarray:
    """(N, 3) points, some on one place, some that are no returns; rows of a wider array."""
    wide = rng.normal(size=(count, 5)).astype(np.float32) * [20, 20, 2, 1, 1]
    wide[rng.random(count) < 0.2] = wide[:1]
    wide[rng.random(count) < odd] = 0
    chosen = rng.random(wide.shape) < odd / 3
    wide[chosen] = rng.choice(ODD, int(chosen.sum()))
    return wide.astype(np.float32)[:, 1:4] if rng.random() < 0.5 else wide[:, :3].astype(np.float32)


@properties
@given(SEEDS, st.integers(0, 3), st.integers(0, 700), st.integers(1, 40))
def test_records_hold_the_columns(seed: int, height: int, width: int, step: int) -> None:
    rng = np.random.default_rng(seed)
    columns = []
    for _ in range(rng.integers(0, 5)):
        kind = np.dtype(rng.choice(["u1", "<f4", ">f4", "i2", "f8", "V3", "V13", "V22", "V40"]))
        shape = (height, width) if rng.random() < 0.7 else (height, width, 2)
        if kind.itemsize * int(np.prod(shape[2:])) <= step:
            raw = rng.integers(0, 256, (*shape, kind.itemsize + 3), np.uint8)
            values = np.ascontiguousarray(raw[..., : kind.itemsize]).view(kind)[..., 0]
            if rng.random() < 0.5:
                values = np.repeat(values, 2, axis=1)[:, ::2]
            offset = int(rng.integers(0, step - kind.itemsize * int(np.prod(shape[2:])) + 1))
            columns.append((values[:, ::-1] if rng.random() < 0.3 else values, offset))

    def compute() -> bytes:
        buffer = cloud_records.zeros(height * width * step)
        out = np.frombuffer(buffer, np.uint8) if len(buffer) else np.zeros(0, np.uint8)
        records = out.view(np.dtype((np.void, step))).reshape(height, width)
        cloud_records.write(records, columns)
        return buffer.tobytes()

    native, expected = both(compute)
    assert native == expected


def test_neighboring_columns_are_those_of_the_point_and_the_record() -> None:
    """Only columns that follow each other in both places are copied as one."""
    points = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    columns = [(points[..., k], offset) for k, offset in ((0, 0), (1, 4), (3, 8), (4, 16), (5, 12))]
    buffer = cloud_records.zeros(4 * 20)
    records = np.frombuffer(buffer, np.dtype((np.void, 20))).reshape(1, 4)
    cloud_records.write(records, columns)
    written = np.frombuffer(buffer, np.float32).reshape(4, 5)
    np.testing.assert_array_equal(written, points[0][:, [0, 1, 3, 5, 4]])


@properties
@given(SEEDS, st.integers(0, 9000), st.integers(0, 50), st.sampled_from([0.0, 0.1, 0.99, 1.0]))
def test_taken_records_are_the_chosen_ones(seed: int, count: int, step: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (count, step), np.uint8)
    chosen = rng.random(2 * count)[::2] < share
    taken = int(np.count_nonzero(chosen))
    native, expected = both(lambda: cloud_records.take(records, chosen, taken))
    assert native == expected and native.tobytes() == records[chosen].tobytes()


@properties
@given(SEEDS, st.integers(0, 40), st.sampled_from([(), (1,), (3,), (4,)]), st.sampled_from(ODD))
def test_all_values_are_finite(seed: int, count: int, more: tuple[int, ...], odd: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, count, *more)).astype(np.float32) * np.float32(1e37)
    values = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, -1, 0)), 0, -1)
    if values.size and rng.random() < 0.7:
        values.reshape(-1)[0] = values[..., -1].flat[-1] = odd
        values[(0,) * values.ndim] = odd
    native, expected = both(lambda: cloud_records.all_finite(values))
    assert native == expected == bool(np.isfinite(values).all())


@properties
@given(SEEDS, st.integers(0, 300), st.integers(1, 40), st.booleans())
def test_entropy_of_rows(seed: int, count: int, classes: int, wide: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.dirichlet(np.full(classes, 0.2), count).astype(np.float32)
    values[rng.random(count) < 0.2] = 0
    values[rng.random(count) < 0.1] = np.eye(classes, dtype=np.float32)[0]
    values[rng.random(count) < 0.05] = np.nan
    if wide:
        values = np.hstack([values, values])[:, :classes]
    native, expected = both(lambda: row_reductions.entropy(values))
    np.testing.assert_allclose(native, expected, atol=2e-6)


@properties
@given(SEEDS, st.integers(0, 600), st.sampled_from([0.0, 15.0, 1e25]))
def test_points_of_a_cloud(seed: int, count: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, len(SPACE), count).astype(rng.choice([np.int32, np.int64]))
    confidence = rng.random(count).astype(np.float32)
    confidence[rng.random(count) < 0.1] = np.nan
    labeled = LabeledSweep(PointCloud(sweep(rng, count)), labels, confidence, SPACE)
    classes = rng.permutation([*SPACE.names[:3], "*", "unlabeled"])[: rng.integers(0, 6)].tolist()
    rule = {"classes": classes, "min_confidence": [0.4], "max_range_m": limit}
    rules = {
        "first": CloudParameters.model_validate({"classes": [SPACE.names[4]]}),
        "cloud": CloudParameters.model_validate(rule),
    }
    native, expected = both(lambda: output_clouds.choose_points(rules, "cloud", labeled))
    np.testing.assert_array_equal(native, expected)


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
    native, expected = both(lambda: FreeSpace(points.T, beams).passed(others, 0.4))
    assert native.dtype == bool and native.shape == (asked,)
    assert np.count_nonzero(native != expected) <= 0.01 * asked + 1


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
    labels, yaws = rng.integers(0, 4, len(numbers)), rng.uniform(-9, 9, things)

    def compute() -> list[np.ndarray]:
        grouped, order = boxes.Grouped.of(points, numbers)
        few, rows = grouped.chosen(np.arange(0, things, 2))
        sorted_ = grouped.points, grouped.starts, grouped.counts, order, rows
        found = *grouped.extents(yaws), grouped.most_frequent(labels[order])
        return [*sorted_, *found, few.most_frequent(labels[order][rows])]

    native, expected = both(compute)
    for one, other in zip(native, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    own = [points[numbers == k][:, 2].min() for k in range(things)]
    np.testing.assert_array_equal(native[5][:, 2], own)


@properties
@given(SEEDS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 30))
def test_distances_of_boxes(seed: int, count: int, others: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    tracks, things = (np.zeros(n, track_filter.STATE) for n in (count, others))
    for some in (tracks, things):
        some["position"] = rng.normal(size=(len(some), 2)) * 2 + 1e4
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
            *thing_parts.apart(boxes_, seen),
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
@given(SEEDS, st.integers(0, 300), st.integers(1, 70))
def test_values_by_class(seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, classes, count).astype(rng.choice([np.int32, np.int64]))
    by_class = rng.integers(0, 256, classes + 1, np.uint8)
    native, expected = both(lambda: instances.point_values(labels, by_class))
    np.testing.assert_array_equal(native, expected)
    np.testing.assert_array_equal(native, by_class[labels])


@properties
@given(SEEDS, st.integers(0, 700))
def test_confidence_images(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, len(SPACE), count).astype(rng.choice([np.int32, np.int64]))
    confidence = rng.random(count).astype(np.float32)
    confidence[rng.random(count) < 0.3] = 1.0
    labeled = LabeledSweep(PointCloud(np.zeros((count, 3), np.float32)), labels, confidence, SPACE)
    native, expected = both(lambda: label_images.confidence_image(labeled, 1, count))
    assert native.dtype == expected.dtype == np.uint8
    np.testing.assert_array_equal(native, expected)


@properties
@given(SEEDS, st.integers(1, 3), st.integers(0, 300), st.booleans(), st.booleans())
def test_points_of_autoware(seed: int, height: int, width: int, known: bool, before: bool) -> None:
    rng = np.random.default_rng(seed)
    count = height * width
    columns = dict(zip("xyz", sweep(rng, count, odd=rng.choice([0.0, 0.1])).T))
    columns = {"t": rng.random(count).astype(np.float32), **columns} if before else columns
    message = encode_cloud({**columns, "ring": np.zeros(count, np.uint16)}, height, width)
    labels = rng.integers(-1, len(SPACE), count)
    likely = rng.dirichlet(np.ones(len(SPACE)), count).astype(np.float32)
    likely[rng.random(count) < 0.2] = 0
    more = {"probabilities": likely} if known else {}
    labeled = LabeledSweep(
        PointCloud(np.zeros((count, 3), np.float32)), labels, likely.max(1), SPACE, **more
    )
    ids = rng.integers(0, 256, len(SPACE) + 1, np.uint8)
    native, expected = both(lambda: output_clouds.autoware_cloud(message, labeled, ids))
    one, other = structured(native), structured(expected)
    assert one.dtype == other.dtype and one.shape == other.shape == (height, width)
    assert native.is_dense == expected.is_dense and native.fields == expected.fields
    assert native.row_step == expected.row_step
    for name in one.dtype.names:
        exact = name != "entropy"
        np.testing.assert_allclose(one[name], other[name], atol=0 if exact else 2e-6, rtol=0)
    gap = native.data.reshape(count, 24)[:, 13:16]
    assert not gap.any()


@properties
@given(SEEDS, st.integers(0, 200), st.integers(0, 200), st.sampled_from([0.15, 2.0]))
def test_points_near_others(seed: int, count: int, others: int, cell: float) -> None:
    rng = np.random.default_rng(seed)
    one, two = (rng.normal(size=(3, n)).astype(np.float32) * 4 for n in (count, others))
    native, expected = both(lambda: moving._near(one, two, cell))
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
@given(SEEDS, st.integers(0, 4000), st.sampled_from([2, 7, 40]), st.booleans())
def test_grid(seed: int, count: int, side: int, level: bool) -> None:
    """The same but for points at the borders of cells, and grounds that are equally near."""
    rng = np.random.default_rng(seed)
    points = sweep(rng, count, odd=0.02)
    points[:, :2] *= 0.3
    if level:
        points[rng.random(count) < 0.7, 2] = -1.5
    labels = rng.integers(-1, len(SPACE), count)
    weight = None if rng.random() < 0.5 else rng.random(count).astype(np.float32)
    evidence = grid.Evidence(points.T, labels, weight)
    pose = from_euler(0.02, -0.03, rng.uniform(-3, 3), rng.normal(size=3) * 100)
    config = grid.GridConfig(size_m=20.0, resolution_m=20.0 / side)
    costs = grid.read_costs("", SPACE)
    native, expected = both(lambda: grid.draw_grid(evidence, points.T, pose, costs, config))
    assert native.costs.dtype == np.int8 and native.origin_m == expected.origin_m
    assert np.count_nonzero(native.costs != expected.costs) <= 0.03 * side**2 + 1


@pytest.mark.parametrize("side", [1, 5, 30])
def test_the_nearest_ground_is_that_of_the_exact_distance(side: int) -> None:
    """Beams pass above the nearest ground of every cell: all cells are free."""
    rng = np.random.default_rng(side)
    x, y = rng.uniform(-side / 2, side / 2, (2, 6)).astype(np.float32)
    ground = np.stack([x, y, np.linspace(-2, -1, 6, dtype=np.float32)])
    evidence = grid.Evidence(ground, np.zeros(6, np.int32))
    config = grid.GridConfig(size_m=float(side), resolution_m=1.0)
    costs = np.zeros(2, np.int8)
    native, expected = both(lambda: grid.draw_grid(evidence, ground, np.eye(4), costs, config))
    np.testing.assert_array_equal(native.costs, expected.costs)
    assert native.height_m == pytest.approx(expected.height_m, abs=1e-6)


@pytest.mark.parametrize("workers", [1, 3])
def test_many_points_on_any_number_of_threads(workers: int) -> None:
    rng = np.random.default_rng(0)
    points = sweep(rng, 40_000, odd=0.01)
    labels = rng.integers(-1, len(SPACE), len(points)).astype(np.int32)
    likely = rng.dirichlet(np.ones(len(SPACE)), len(points)).astype(np.float32)
    labeled = LabeledSweep(PointCloud(points), labels, likely.max(1), SPACE)
    rules = {"near": CloudParameters.model_validate({"max_range_m": 10.0})}
    message = encode_cloud(dict(zip("xyz", points.T)), 4, 10_000)
    evidence, costs = grid.Evidence(points.T, labels), grid.read_costs("", SPACE)

    def compute() -> list[np.ndarray]:
        free = FreeSpace(points.T)
        encoded = output_clouds.append_labels(message, labeled, output_clouds.ExtraFields())
        chosen = output_clouds.choose_points(rules, "near", labeled)
        records = encoded.data.reshape(len(points), -1)
        taken = cloud_records.take(records, chosen, int(chosen.sum()))
        drawn = grid.draw_grid(evidence, points.T, np.eye(4), costs, grid.GridConfig())
        passed, entropy = free.passed(points.T * 0.5, 0.4), row_reductions.entropy(likely)
        values = instances.point_values(labels, np.arange(len(SPACE) + 1, dtype=np.uint8))
        return [encoded.data, chosen, np.array(taken), passed, entropy, values, drawn.costs]

    with threads(workers):
        native, expected = both(compute)
    for found, known in zip(native, expected, strict=True):
        assert found.shape == known.shape
        assert np.count_nonzero(~np.isclose(found, known, atol=2e-6)) <= 0.002 * found.size


def test_points_of_other_types_are_refused() -> None:
    with pytest.raises(InputError, match="float32"):
        Points.of(np.zeros((3, 3)))
