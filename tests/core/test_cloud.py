# SPDX-License-Identifier: Apache-2.0
"""`PointCloud`: selection, organization, what does not fit together."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError


def test_select_by_mask_and_by_index() -> None:
    cloud = PointCloud(
        np.arange(12).reshape(4, 3),
        intensity=np.arange(4),
        time=np.arange(4),
        ring=np.arange(4),
        frame_id="lidar",
        stamp_ns=5,
        height=2,
        width=2,
        extra={"azimuth": np.arange(4.0)},
    )
    assert cloud.xyz.dtype == np.float32
    part = cloud.select(np.array([False, True, False, True]))
    assert (part.height, part.width, part.frame_id, part.stamp_ns) == (1, 2, "lidar", 5)
    swapped = cloud.select(np.array([3, 1]))
    np.testing.assert_array_equal(swapped.xyz, part.xyz[::-1])
    for values in (swapped.intensity, swapped.time, swapped.ring, swapped.extra["azimuth"]):
        np.testing.assert_array_equal(values, [3, 1])
    assert len(cloud.select(np.zeros(4, bool))) == 0


def test_organization_defaults_to_one_row() -> None:
    cloud = PointCloud(np.zeros((5, 3)))
    assert (cloud.height, cloud.width) == (1, 5)
    assert PointCloud(np.zeros((6, 3)), height=2).width == 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"xyz": np.zeros((3, 2))},
        {"xyz": np.zeros((3, 3)), "intensity": np.zeros(2)},
        {"xyz": np.zeros((3, 3)), "height": 2, "width": 2},
        {"xyz": np.zeros((3, 3)), "extra": {"a": np.zeros(4)}},
        {"xyz": [["a", "b", "c"]]},
        {"xyz": [[1, 2, None]]},
        {"xyz": np.zeros((3, 3)), "intensity": np.zeros(3, complex)},
    ],
)
def test_clouds_that_do_not_fit_together(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cloud:"):
        PointCloud(**arguments)


def test_exact_zeros_are_no_returns() -> None:
    cloud = PointCloud([[0, 0, 0], [0, 0, 1e-3], [-0.0, 0, -0.0], [np.nan, 0, 0], [3, 0, 0]])
    np.testing.assert_array_equal(cloud.finite, [0, 1, 0, 0, 1])


def test_intensities_far_above_one_raise_a_warning() -> None:
    xyz = np.ones((5000, 3))
    with pytest.warns(UserWarning, match=r"100 % of the intensities exceed 1.*such as 255"):
        PointCloud(xyz, np.linspace(0, 255, 5000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intensity = np.linspace(0, 1, 5000)
        intensity[7] = 1e30
        PointCloud(xyz, intensity)
