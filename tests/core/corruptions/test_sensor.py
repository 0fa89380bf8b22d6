# SPDX-License-Identifier: Apache-2.0
"""Motion blur, crosstalk and incomplete echoes: counts and deviations of the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.corruptions import CORRUPTIONS, SEVERITIES, LabeledCloud, Severity, corrupt
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace

KITTI, STREET = LabelSpace.load("semantic_kitti"), LabelSpace.load("street")


def cloud_of(count: int, seed: int = 0) -> PointCloud:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-30, -30, -1.7), (30, 30, 3), (count, 3)).astype(np.float32)
    return PointCloud(xyz, rng.random(count).astype(np.float32))


@pytest.mark.parametrize(("severity", "deviation"), zip(SEVERITIES, (0.2, 0.25, 0.3)))
def test_blur_is_one_shift_and_a_tenth_of_it_per_point(
    severity: Severity, deviation: float
) -> None:
    cloud = cloud_of(20_000)
    moved = corrupt("motion-blur", severity, LabeledCloud(cloud)).cloud.xyz - cloud.xyz
    each = moved - np.median(moved, axis=0)
    np.testing.assert_allclose(each.std(0), deviation * np.array([0.1, 0.1, 0.05]), rtol=0.04)
    assert np.abs(each).max() < 0.31 * deviation  # cut at 3 deviations
    few = LabeledCloud(cloud_of(50))
    shifts = [
        np.mean(corrupt("motion-blur", severity, few, sweep=k).cloud.xyz - few.cloud.xyz, axis=0)
        for k in range(400)
    ]
    np.testing.assert_allclose(np.std(shifts, axis=0), deviation, rtol=0.12)


def test_points_without_a_return_do_not_move() -> None:
    cloud = cloud_of(4)
    cloud.xyz[1], cloud.xyz[2] = np.nan, 0
    moved = corrupt("motion-blur", "heavy", LabeledCloud(cloud)).cloud
    np.testing.assert_array_equal(moved.xyz[1:3], cloud.xyz[1:3])
    np.testing.assert_array_equal(moved.finite, [True, False, False, True])


@pytest.mark.parametrize(("severity", "count"), zip(SEVERITIES, (600, 800, 1000)))
def test_crosstalk_moves_its_share_and_flags_it(severity: Severity, count: int) -> None:
    cloud = cloud_of(100_000)
    result = corrupt("crosstalk", severity, LabeledCloud(cloud))
    moved = (result.cloud.xyz != cloud.xyz).any(1)
    np.testing.assert_array_equal(moved, result.invented)
    assert moved.sum() == count
    np.testing.assert_allclose((result.cloud.xyz - cloud.xyz)[moved].std(0), 3, rtol=0.12)
    assert result.cloud.intensity is not None
    assert cloud.intensity is not None
    assert 0 <= result.cloud.intensity.min() <= result.cloud.intensity.max() <= 1
    np.testing.assert_array_equal(result.cloud.intensity[~moved], cloud.intensity[~moved])
    labels = np.zeros(len(cloud), np.int64)
    np.testing.assert_array_equal(result.carry(labels) == -1, moved)


@pytest.mark.parametrize(("severity", "left"), zip(SEVERITIES, (25, 15, 5)))
def test_vehicles_lose_their_echoes_class_by_class(severity: Severity, left: int) -> None:
    names = ["car"] * 100 + ["bicycle"] * 10 + ["truck"] * 20 + ["road"] * 40
    labels = np.array([KITTI.index(name) for name in names])
    result = corrupt("incomplete-echo", severity, LabeledCloud(cloud_of(170), labels, KITTI))
    counts = np.bincount(result.carry(labels), minlength=len(KITTI))
    # 10 points of a bicycle are not more than 10; 20 * 0.85 = 17 and 20 * 0.95 = 19 of a truck
    trucks = {25: 5, 15: 3, 5: 1}[left]
    found = [counts[KITTI.index(name)] for name in ("car", "bicycle", "truck", "road")]
    assert found == [left, 10, trucks, 40]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_sweep_depends_on_seed_and_number_alone(name: str) -> None:
    cloud = cloud_of(3000)
    cloud.extra = {"lasers": np.arange(3000)}
    labels = np.where(cloud.xyz[:, 2] < 0, STREET.index("road"), STREET.index("vehicle"))
    scene = LabeledCloud(cloud, labels, STREET)
    before = cloud.xyz.copy()
    first, same, other = (corrupt(name, "heavy", scene, seed=3, sweep=sweep) for sweep in (5, 5, 6))
    np.testing.assert_array_equal(first.cloud.xyz, same.cloud.xyz)
    np.testing.assert_array_equal(first.source, same.source)
    np.testing.assert_array_equal(cloud.xyz, before)
    assert len(first.cloud) == len(first.source) == len(first.invented)
    if name not in ("wet-ground", "cross-sensor"):  # these draw no numbers
        assert first.cloud.xyz.shape != other.cloud.xyz.shape or not np.array_equal(
            first.cloud.xyz, other.cloud.xyz
        )
    unmoved = ~first.invented
    if name != "motion-blur":
        np.testing.assert_array_equal(first.cloud.xyz[unmoved], before[first.source][unmoved])


def test_what_does_not_exist_is_named() -> None:
    scene = LabeledCloud(cloud_of(10))
    with pytest.raises(InputError, match=r"no corruption 'hail'; expected one of fog, wet-ground"):
        corrupt("hail", "light", scene)
    with pytest.raises(InputError, match=r"no severity 'extreme'; expected one of light"):
        corrupt("fog", "extreme", scene)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fog: the cloud has no intensities"):
        corrupt("fog", "light", LabeledCloud(PointCloud(scene.cloud.xyz)))
    with pytest.raises(InputError, match="incomplete-echo: expected the class of each point"):
        corrupt("incomplete-echo", "light", scene)
    one = LabelSpace.from_dict({"name": "sea", "classes": [{"name": "wave", "color": [0, 0, 0]}]})
    with pytest.raises(InputError, match="label space 'sea' has none of its classes: .*road"):
        corrupt("wet-ground", "light", LabeledCloud(scene.cloud, np.zeros(10, int), one))
