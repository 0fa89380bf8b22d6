# SPDX-License-Identifier: Apache-2.0
"""What outputs compute natively is what plain numpy computes."""

from __future__ import annotations

import array
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_and_numpy import ODD, SEEDS, SPACE, both, properties, sweep

from benchmarks.measure import threads
from pcseg_core import cloud_records
from pcseg_core.cloud import PointCloud, encode_cloud, structured
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler
from pcseg_core.native import library
from pcseg_core.native.structures import Points
from pcseg_core.online import grid, instances, label_images, output_clouds, row_reductions
from pcseg_core.online.free_space import FreeSpace
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_ros.output_parameters import CloudParameters

pytestmark = pytest.mark.skipif(
    isinstance(library.load(), str), reason="the native library was not built"
)


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
@given(SEEDS, st.integers(0, 9000), st.integers(0, 50), st.integers(0, 3))
def test_taken_records_are_the_chosen_ones(seed: int, count: int, step: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (count, step), np.uint8)
    chosen = [rng.random(2 * count)[::2] < rng.choice([0.0, 0.1, 0.99, 1.0]) for _ in range(parts)]
    native, expected = both(lambda: cloud_records.take(records, chosen))
    assert native == expected and len(native) == parts
    assert all(one.tobytes() == records[part].tobytes() for one, part in zip(native, chosen))


def test_a_part_of_another_number_of_records_is_refused() -> None:
    with pytest.raises(InputError, match="2 points"):
        cloud_records.take(np.zeros((2, 4), np.uint8), [np.ones(2, bool), np.ones(3, bool)])


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


def test_points_of_autoware_from_rows_with_padding() -> None:
    rng = np.random.default_rng(0)
    height, width = 40, 500
    tight = encode_cloud(dict(zip("xyz", sweep(rng, height * width).T)), height, width)
    padded = np.full((height, tight.row_step + 20), 255, np.uint8)
    padded[:, :-20] = tight.data.reshape(height, -1)
    buffer = array.array("B", padded.tobytes())
    message = dataclasses.replace(tight, row_step=tight.row_step + 20, buffer=buffer)
    labels = rng.integers(-1, len(SPACE), height * width)
    likely = rng.random((len(labels), len(SPACE)), np.float32)
    labeled = LabeledSweep(
        PointCloud(np.zeros((len(labels), 3), np.float32)), labels, likely.max(1), SPACE
    )
    ids = np.arange(len(SPACE) + 1, dtype=np.uint8)
    found = output_clouds.autoware_cloud(message, labeled, ids)
    assert found.buffer == output_clouds.autoware_cloud(tight, labeled, ids).buffer


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
        (taken,) = cloud_records.take(records, [chosen])
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
