# SPDX-License-Identifier: Apache-2.0
"""Lost beams, on clouds whose beams are known."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.beams import beams_of
from pcseg_core.cloud import PointCloud
from pcseg_core.corruptions import SEVERITIES, LabeledCloud, Severity, corrupt


def turning(beams: int, columns: int, by_beam: bool = True) -> PointCloud:
    """A cloud of all beams, beam by beam from the top as in KITTI, or column by column."""
    elevation = np.radians(np.linspace(10, -25, beams))
    azimuth = 2 * np.pi * (np.arange(columns) + 0.3) / columns
    e, a = (grid.ravel() for grid in np.meshgrid(elevation, azimuth, indexing="ij"))
    xyz = 10 * np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], 1)
    ring = np.repeat(np.arange(beams), columns)
    order = np.arange(len(e)) if by_beam else np.argsort(np.tile(np.arange(columns), beams))
    return PointCloud(xyz[order].astype(np.float32), ring=ring[order].astype(np.uint16))


@pytest.mark.parametrize(("severity", "drawn"), zip(SEVERITIES, (16, 32, 48)))
def test_beams_are_drawn_with_replacement_from_4_to_58(severity: Severity, drawn: int) -> None:
    result = corrupt("beam-missing", severity, LabeledCloud(turning(64, 10)), seed=7, sweep=2)
    lost = set(range(64)) - set(np.unique(result.source // 10))
    wanted = np.random.default_rng((7, 2, 4)).integers(4, 59, 48)[:drawn]
    assert lost == set(wanted.tolist())
    assert len(lost) < drawn  # some are drawn twice
    assert len(result.cloud) == 10 * (64 - len(lost))


def test_nuscenes_beams_are_lost_between_2_and_28() -> None:
    lost: set[int] = set()
    for sweep in range(40):
        result = corrupt("beam-missing", "heavy", LabeledCloud(turning(32, 2)), sweep=sweep)
        lost |= set(range(32)) - set(np.unique(result.source // 2).tolist())
    assert lost == set(range(2, 29))


@pytest.mark.parametrize(("severity", "left"), zip(SEVERITIES, (48, 32, 16)))
@pytest.mark.parametrize("by_beam", [True, False])
def test_another_sensor_has_a_share_of_the_beams_and_half_of_their_points(
    severity: Severity, left: int, by_beam: bool
) -> None:
    cloud = turning(64, 8, by_beam)
    result = corrupt("cross-sensor", severity, LabeledCloud(cloud))
    assert result.cloud.ring is not None
    rings, counts = np.unique(result.cloud.ring, return_counts=True)
    assert len(rings) == left
    assert set(counts.tolist()) == {4}
    if severity == "light":
        assert set(range(64)) - set(rings.tolist()) == set(range(1, 64, 4))
    azimuth = np.arctan2(result.cloud.xyz[:, 1], result.cloud.xyz[:, 0])
    assert len(np.unique(azimuth.round(3))) == 4  # the same columns in all beams


def test_beams_of_a_cloud_without_rings_are_its_turns() -> None:
    known = turning(64, 90)
    cloud = PointCloud(known.xyz)
    beam, count = beams_of(cloud)
    assert count == 64
    assert known.ring is not None
    np.testing.assert_array_equal(beam, known.ring)


def test_beams_of_a_cloud_in_any_order_are_elevation_bands() -> None:
    known = turning(64, 90)
    order = np.random.default_rng(0).permutation(len(known))
    beam, count = beams_of(PointCloud(known.xyz[order]))
    assert count == 64
    assert known.ring is not None
    np.testing.assert_allclose(beam, 63 - known.ring[order].astype(int), atol=1)


def test_sensors_with_beams_that_see_nothing_have_a_common_number_of_beams() -> None:
    cloud = turning(64, 10).select(np.arange(180, 640))  # 46 beams of 64 return
    cloud.ring = (63 - np.asarray(cloud.ring)).astype(np.uint16)
    assert beams_of(cloud)[1] == 64
