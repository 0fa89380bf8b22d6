# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from recordings import CAMERA, T_CAM_LIDAR

from pcseg_core.cloud import PointCloud
from pcseg_core.data import Box, CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, from_euler


def _sample(trajectory: Trajectory | None, image_stamp: int = 100_000_000) -> Sample:
    frame = CameraFrame("front", image_stamp, CAMERA, T_CAM_LIDAR, np.zeros((20, 40, 3), np.uint8))
    cloud = PointCloud(xyz=np.array([[10.0, 0.0, 0.0]], dtype=np.float32))
    return Sample(cloud, [frame], trajectory)


def test_motion_between_sweep_and_image_is_applied() -> None:
    # 10 m/s forward: when the image is taken 0.1 s later, a point 10 m ahead is 9 m ahead.
    poses = np.stack([np.eye(4), from_euler(0, 0, 0, (10.0, 0.0, 0.0))])
    sample = _sample(Trajectory([0, 1_000_000_000], poses))
    moved = sample.T_cam_lidar(0) @ [10.0, 0.0, 0.0, 1.0]
    np.testing.assert_allclose(moved, [0.0, 0.2, 9.0, 1.0], atol=1e-12)


def test_without_trajectory_the_extrinsic_is_static() -> None:
    sample = _sample(None)
    np.testing.assert_array_equal(sample.T_cam_lidar(0), T_CAM_LIDAR)
    assert sample.T_world_lidar is None


def test_an_image_outside_the_trajectory_is_an_error() -> None:
    poses = np.stack([np.eye(4), np.eye(4)])
    sample = _sample(Trajectory([0, 1000], poses), image_stamp=5_000_000_000)
    with pytest.raises(InputError, match="no pose at"):
        sample.T_cam_lidar(0)


def test_pixels_are_loaded_when_asked_for() -> None:
    calls = []

    def load() -> np.ndarray:
        calls.append(1)
        return np.zeros((20, 40, 3), np.uint8)

    frame = CameraFrame("front", 0, CAMERA, np.eye(4), load)
    assert not calls and frame.labels is None
    assert frame.image.shape == (20, 40, 3) and len(calls) == 1


def test_box_contains_points_in_its_own_axes() -> None:
    # Heading 90 degrees: length runs along y.
    box = Box(np.array([10.0, 0.0, 0.0]), np.array([4.0, 2.0, 1.5]), np.pi / 2, "car")
    xyz = [[10.0, 1.9, 0.0], [10.0, 2.1, 0.0], [10.9, 0.0, 0.7], [11.1, 0.0, 0.0], [10, 0, 0.8]]
    np.testing.assert_array_equal(box.contains(np.array(xyz)), [True, False, True, False, False])
    assert not box.contains(np.array([[np.nan, 0.0, 0.0]])).any()
