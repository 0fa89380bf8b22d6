# SPDX-License-Identifier: Apache-2.0
"""Returns from the robot itself."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.body import read_body, with_body, without_body
from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError

BOX = (-1.0, -0.5, -0.4, 0.5, 0.5, 0.2)


def test_returns_in_the_box_are_no_returns_and_keep_their_rows() -> None:
    xyz = np.array(
        [
            [0.1, 0.1, 0.1],  # inside
            [-1.0, -0.5, -0.4],  # at the corners
            [0.5, 0.5, 0.2],
            [0.51, 0, 0],  # beside, before, above
            [0, -0.6, 0],
            [0, 0, 0.3],
            [np.nan, 0, 0],  # without a return
            [0, 0, 0],
        ],
        np.float32,
    )
    intensity = np.linspace(0, 1, len(xyz)).astype(np.float32)
    cloud = PointCloud(xyz.copy(), intensity, frame_id="lidar", stamp_ns=5, height=2, width=4)
    left = without_body(cloud, BOX)
    assert left.finite.tolist() == [False] * 3 + [True] * 3 + [False] * 2
    np.testing.assert_array_equal(left.xyz[3:6], xyz[3:6])
    np.testing.assert_array_equal(left.intensity, intensity)
    assert (left.frame_id, left.stamp_ns, left.height, left.width) == ("lidar", 5, 2, 4)
    np.testing.assert_array_equal(cloud.xyz, xyz)  # which may be a view of a message


def test_the_robot_comes_back_as_measured_while_the_rest_has_moved() -> None:
    xyz = np.array([[0.1, 0, 0], [3, 0, 0], [0, 0, 0], [np.nan, 0, 0]], np.float32)
    cloud = PointCloud(xyz)
    moved = without_body(cloud, BOX).xyz + np.float32(1)
    expected = np.array([[0.1, 0, 0], [4, 1, 1], [0, 0, 0], [np.nan, 1, 1]], np.float32)
    np.testing.assert_array_equal(with_body(moved, cloud.xyz), expected)


def test_without_a_box_the_cloud_is_the_same() -> None:
    cloud = PointCloud(np.zeros((3, 3), np.float32))
    assert without_body(cloud, read_body("")) is cloud
    assert read_body(()) == ()


def test_boxes_are_read_from_texts_and_numbers() -> None:
    assert read_body("-1,-0.5, -0.4,.5,0.5,2e-1") == read_body(BOX) == BOX


@pytest.mark.parametrize(
    "wrong", ["1", "0,0,0,1,1", "0,0,0,1,1,1,1", "a,b,c,d,e,f", "0,0,0,1,1,nan", "0,0,0,1,0,1"]
)
def test_what_is_no_box_is_refused_with_what_was_expected(wrong: str) -> None:
    with pytest.raises(InputError, match=f"'{wrong}'; expected x_min, y_min, z_min, x_max"):
        read_body(wrong)
