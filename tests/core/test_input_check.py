# SPDX-License-Identifier: Apache-2.0
"""Sweeps that differ from those of the training are reported, others are not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.input_check import (
    SWEEPS_TO_MATCH,
    InputCheck,
    InputStatistics,
    IntensityMatch,
    IntensityMatches,
)
from pcseg_core.uniting import Part, unite


def sweep(seed: int = 0, points: int = 60_000, rings: int = 64) -> PointCloud:
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(points, 3))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    xyz = direction * rng.gamma(2, 8, (points, 1))
    xyz[::7], xyz[1::7] = np.nan, 0
    ring = np.arange(points) % rings
    return PointCloud(xyz, intensity=rng.beta(1.2, 3, points), ring=ring)


@pytest.fixture(scope="module")
def trained() -> InputStatistics:
    sweeps = [sweep(seed, rings=rings) for seed, rings in ((0, 32), (1, 64), (2, 64))]
    return InputStatistics.measure(sweeps, intensity_scale=1 / 255)


def test_measured_statistics(trained: InputStatistics) -> None:
    assert trained.intensity is not None
    assert trained.intensity[4] == pytest.approx(0.255, abs=0.01)
    assert trained.range_m[4] == pytest.approx(8 * 1.678, rel=0.03)
    assert trained.rings == (32, 64)
    assert trained.returns[0] == pytest.approx(60_000 * 5 / 7, rel=0.01)
    with pytest.raises(InputError, match="no sweep"):
        InputStatistics.measure([PointCloud(np.zeros((5, 3)))])


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 99), st.floats(0.6, 1.4), st.floats(0.5, 1.0), st.floats(0.6, 1.5))
def test_scenes_of_the_same_sensor_pass(seed: int, gain: float, share: float, size: float) -> None:
    training = InputStatistics.measure([sweep(seed, rings=rings) for rings in (32, 64)])
    cloud = sweep(seed + 1, int(60_000 * share))
    cloud = replace(cloud, xyz=cloud.xyz * size, intensity=np.clip(cloud.intensity * gain, 0, 1))
    assert InputCheck(training)(cloud) == ""
    match = IntensityMatch(training)
    match.observe(cloud)
    assert match(cloud) is cloud and str(match) == ""


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 99), st.floats(2.5, 6), st.floats(0.05, 1))
def test_intensities_of_another_sensor_get_those_of_the_training(
    seed: int, power: float, gain: float
) -> None:
    """A sensor whose intensities are a monotone function of the training's."""
    match = IntensityMatch(InputStatistics.measure([sweep(0), sweep(1)]))
    cloud = sweep(seed)
    assert cloud.intensity is not None
    other = replace(cloud, intensity=gain * cloud.intensity**power)
    other.intensity[5] = np.nan
    match.observe(other)
    mapped = match(other).intensity
    assert mapped.dtype == np.float32 and mapped.min() >= 0 and mapped.max() <= 1
    assert np.all(np.diff(mapped[np.argsort(np.nan_to_num(other.intensity))]) >= -1e-6)
    low, high = np.quantile(cloud.intensity, (0.1, 0.9))
    inner = (cloud.intensity > low) & (cloud.intensity < high)
    inner[5] = False
    assert np.abs(mapped - cloud.intensity)[inner].max() < 0.08
    assert np.abs(np.median(mapped) - np.median(cloud.intensity)) < 0.02


def test_the_map_is_held_after_the_first_sweeps(trained: InputStatistics) -> None:
    match = IntensityMatch(trained)
    other = replace(sweep(), intensity=0.1 * sweep().intensity ** 2)
    for seed in range(SWEEPS_TO_MATCH):
        assert not match.held
        match.observe(replace(sweep(seed, points=900), intensity=np.zeros(900)))  # too few returns
        match.observe(other)
    assert match.held
    before = match(other).intensity
    for _ in range(20):
        match.observe(sweep())
    assert np.array_equal(match(other).intensity, before)


def test_each_of_several_lidars_has_its_map(trained: InputStatistics) -> None:
    """The first is like the training, the second reports the power of the intensity."""
    first, second = sweep(3, 30_000), sweep(4, 30_000)
    assert first.intensity is not None and second.intensity is not None
    other = replace(second, intensity=0.1 * second.intensity**3)
    parts = [Part(cloud, np.eye(4), k) for k, cloud in enumerate((first, other))]
    united = unite(parts, 0, "lidar")
    matches, alone = IntensityMatches(trained), IntensityMatch(trained)
    assert matches(united) is united
    for _ in range(SWEEPS_TO_MATCH):
        assert not matches.held
        matches.observe(united)
        alone.observe(other)
    assert matches.held and re.fullmatch("source 1: intensities of another.*", str(matches))
    mapped = matches(united).intensity
    np.testing.assert_array_equal(mapped[:30_000], first.intensity)
    np.testing.assert_array_equal(mapped[30_000:], alone(other).intensity)
    one = IntensityMatches(trained)
    one.observe(other)
    one.hold()
    np.testing.assert_allclose(one(other).intensity, mapped[30_000:], atol=0.02)
    assert str(one) == str(alone) and one.held


@pytest.mark.parametrize("values", [np.zeros(60_000), np.full(60_000, 300), np.arange(60_000) % 2])
def test_intensities_without_ranks_stay(trained: InputStatistics, values: np.ndarray) -> None:
    for statistics in (trained, None):
        match, cloud = IntensityMatch(statistics), replace(sweep(), intensity=values)
        match.observe(cloud)
        match.observe(replace(cloud, intensity=None))
        assert match(cloud) is cloud and str(match) == ""


@pytest.mark.parametrize(
    ("cloud", "expected"),
    [
        (replace(sweep(), intensity=sweep().intensity * np.float32(255)), "1 or more; set intensi"),
        (
            replace(sweep(), intensity=sweep().intensity / np.float32(255)),
            "the median intensity is",
        ),
        (
            replace(sweep(), intensity=np.zeros(60_000)),
            "the median intensity is 0, in the training",
        ),
        (replace(sweep(), intensity=None), "no intensity"),
        (replace(sweep(), xyz=sweep().xyz * 1000), r"half of the returns are within 13\d\d\d.\d m"),
        (replace(sweep(), xyz=sweep().xyz * 0.1), "half of the returns are within 1"),
        (sweep(points=5_000), "returns per sweep, in the training 428"),
        (sweep(points=800_000), "returns per sweep"),
        (sweep(rings=15), "15 beams, in the training 32 to 64"),
        (sweep(rings=129), "129 beams"),
    ],
)
@pytest.mark.filterwarnings("ignore:cloud")
def test_other_sensors_and_units_are_named(
    trained: InputStatistics, cloud: PointCloud, expected: str
) -> None:
    assert re.search(expected, InputCheck(trained)(cloud))


def test_without_statistics_only_saturated_intensities_are_named() -> None:
    bright = sweep()
    bright.intensity = bright.intensity * np.float32(255)
    assert "set intensity_scale" in InputCheck(None)(bright)
    assert InputCheck(None)(replace(sweep(), intensity=None)) == ""
    assert InputCheck(None)(sweep(rings=3)) == ""


def test_single_points_and_sweeps_do_not_matter(trained: InputStatistics) -> None:
    cloud = sweep()
    cloud.intensity[:300], cloud.xyz[:300] = 1e30, 1e30
    check = InputCheck(trained)
    assert check(PointCloud(np.full((500, 3), 9e3))) == ""  # too few returns
    assert check(cloud) == ""
    assert all(check(sweep(points=5_000)) == "" for _ in range(9))  # not examined
    assert check(sweep(points=5_000)) != ""


def test_a_checkpoint_keeps_them(trained: InputStatistics, tmp_path: Path) -> None:
    meta = CheckpointMeta(student={}, label_space={}, inputs=trained)
    save_checkpoint(tmp_path / "c.safetensors", {}, meta)
    assert load_checkpoint(tmp_path / "c.safetensors")[1].inputs == trained
    assert CheckpointMeta(student={}, label_space={}).inputs is None


def test_times_are_read_as_in_the_training_unless_others_are_given() -> None:
    cloud = PointCloud(np.random.default_rng(0).normal(size=(2000, 3)))
    trained = InputStatistics.measure([cloud], time_field="stamps", stamp_reference="end")
    assert trained.time_options() == {"time_field": "auto:stamps", "stamp_reference": "end"}
    given = trained.time_options("t", "start")
    assert given == {"time_field": "t", "stamp_reference": "start"}
    assert set(InputStatistics.measure([cloud]).time_options().values()) == {"auto"}
