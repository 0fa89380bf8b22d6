# SPDX-License-Identifier: Apache-2.0
"""Depth edges of clouds made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pcseg_core.calibration.depth_edges import depth_edges
from pcseg_core.cloud import PointCloud

AZIMUTHS = np.radians(np.arange(-30, 30, 0.5) + 0.25)
ELEVATIONS = np.radians(np.arange(-4, 5, 1.0))


def _cloud(ranges: np.ndarray) -> PointCloud:
    """A sweep of ranges (beams, azimuths); NaN without a return."""
    azimuth, elevation = np.meshgrid(AZIMUTHS, ELEVATIONS)
    ray = np.stack(
        [
            np.cos(azimuth) * np.cos(elevation),
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ],
        axis=-1,
    )
    ring = np.repeat(np.arange(len(ELEVATIONS)), len(AZIMUTHS))
    xyz = (ray * ranges[..., None]).reshape(-1, 3)
    return PointCloud(xyz=xyz.astype(np.float32), ring=ring.astype(np.uint16))


def _angles(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    return azimuth, np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))


def test_edges_lie_between_the_points_at_the_range_of_the_nearer_surface() -> None:
    """A box 10 m away, from -5 to 5 degrees and below 1 degree, in front of a wall at 20 m."""
    ranges = np.full((len(ELEVATIONS), len(AZIMUTHS)), 20.0)
    box = (np.abs(AZIMUTHS) < np.radians(5))[None] & (np.radians(0.5) > ELEVATIONS)[:, None]
    ranges[box] = 10.0
    edges = depth_edges(_cloud(ranges))
    near = np.linalg.norm(edges.xyz, axis=1) < 15
    azimuth, elevation = _angles(edges.xyz[near])
    sides = np.abs(edges.across[near][:, 2]) < 1e-6
    np.testing.assert_allclose(np.abs(azimuth[sides]), 5.0, atol=1e-4)
    assert sides.sum() == 2 * 5  # both ends of five beams
    np.testing.assert_allclose(elevation[~sides], 0.5, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(edges.xyz[near], axis=1), 10.0, atol=1e-4)
    np.testing.assert_allclose(edges.weight[near], 1.0)


def test_edges_of_a_moving_lidar_lie_where_it_saw_them() -> None:
    """Seen from half a meter ahead, the wall has moved less than the box."""
    ranges = np.full((len(ELEVATIONS), len(AZIMUTHS)), 20.0)
    ranges[:, np.radians(10) < AZIMUTHS] = 5.0
    cloud, shift = _cloud(ranges), np.array([0.5, 0.0, 0.0], np.float32)
    edges = depth_edges(cloud, cloud.xyz + shift)
    azimuth, _ = _angles(edges.xyz - shift)
    assert len(edges) == len(ELEVATIONS)
    np.testing.assert_allclose(azimuth, 10.0, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(edges.xyz - shift, axis=1), 5.0, atol=1e-4)


def test_edges_that_another_sweep_has_at_the_same_place_are_static() -> None:
    """Two posts; the left one moves 1 m to the right while the LiDAR drives 1 m ahead."""
    ranges = np.full((len(ELEVATIONS), len(AZIMUTHS)), 30.0)
    post = np.abs(np.abs(AZIMUTHS) - np.radians(15)) < np.radians(2)
    ranges[:, post] = 10.0
    edges = depth_edges(_cloud(ranges))
    left = edges.xyz[:, 1] > 0
    T_other_own = np.eye(4)
    T_other_own[0, 3] = -1.0
    there = edges.xyz + np.where(left[:, None], [-1.0, -1.0, 0.0], [-1.0, 0.0, 0.0])
    other = replace(edges, xyz=there)
    assert not edges.static.any() and left.any()
    np.testing.assert_array_equal(edges.seen_again(other, T_other_own).static, ~left)
    nothing = edges.select(np.zeros(len(edges), bool))
    assert not edges.seen_again(nothing, T_other_own).static.any()


def test_smooth_surfaces_have_no_edges() -> None:
    """A wall seen at a grazing angle: the range changes by meters between neighbors."""
    wall = 1.5 / np.sin(AZIMUTHS + np.radians(31.0))
    ranges = np.repeat(wall[None], len(ELEVATIONS), axis=0)
    assert np.abs(np.diff(wall)).max() > 5
    edges = depth_edges(_cloud(ranges))
    assert not len(edges.select(np.abs(edges.across[:, 2]) < 1e-6))


def test_surfaces_before_the_sky_end_at_edges() -> None:
    ranges = np.full((len(ELEVATIONS), len(AZIMUTHS)), np.nan)
    ranges[np.radians(0.5) > ELEVATIONS] = 12.0
    ranges[:, np.radians(10) < AZIMUTHS] = 12.0  # a tower on the left
    edges = depth_edges(_cloud(ranges))
    azimuth, elevation = _angles(edges.xyz)
    roof = edges.across[:, 2] > 0.9
    assert roof.sum() > 60 and azimuth[roof].max() < 10
    np.testing.assert_allclose(elevation[roof], 0.5, atol=0.01)


@pytest.mark.parametrize("count", [0, 5])
def test_clouds_without_points_have_no_edges(count: int) -> None:
    assert not len(depth_edges(PointCloud(xyz=np.full((count, 3), 5.0, np.float32))))


def test_of_several_lidars_the_first_one_counts() -> None:
    ranges = np.full((len(ELEVATIONS), len(AZIMUTHS)), 20.0)
    ranges[:, 40:60] = 10.0
    alone, origin = _cloud(ranges), np.array([1.0, 0.5, -0.5], np.float32)
    near = alone.xyz * 0.5  # of another LiDAR, with the same beams
    assert alone.ring is not None
    both = PointCloud(
        xyz=np.concatenate([alone.xyz + origin, near]),
        ring=np.tile(alone.ring, 2),
        source=np.repeat([0, 1], len(near)).astype(np.uint8),
        origins=np.stack([origin, np.zeros(3, np.float32)]),
    )
    expected, found = depth_edges(alone), depth_edges(both)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.xyz, expected.xyz + origin, atol=1e-4)
