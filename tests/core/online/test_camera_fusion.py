# SPDX-License-Identifier: Apache-2.0
"""Pixels and points together: pooled by hand, where the camera sees, and nowhere else."""

import numpy as np
import pytest

from pcseg_core.camera import CameraModel
from pcseg_core.data.sample import CameraFrame
from pcseg_core.distill.evidence import PixelEvidence
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.online.camera_fusion import (
    CameraFusionConfig,
    CameraLabeler,
    fuse_cameras,
    label_by_cameras,
)

CAMERA = CameraModel.pinhole(fx=50, fy=50, cx=49.5, cy=49.5, width=100, height=100)
# x forward, y left, z up -> x right, y down, z forward
T_CAM_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])


def evidence(*columns: tuple[float, float]) -> PixelEvidence:
    """An image of equal vertical stripes, each with the probabilities of its two classes."""
    stripes = np.array(columns, np.float32).T[:, None, :]
    return PixelEvidence(np.repeat(stripes, 10, 1).repeat(10, 2), CAMERA, T_CAM_LIDAR)


def test_pooled_as_by_hand() -> None:
    xyz = np.array([[10, 0, 0]], np.float32)
    three = np.array([[0.6, 0.4]], np.float32)
    config = CameraFusionConfig(camera_weight=0.5)
    fused = fuse_cameras(xyz, three, [evidence((0.1, 0.9))], config)
    odds = (0.6 / 0.4) * (0.1 / 0.9) ** 0.5
    assert fused[0, 0] == pytest.approx(odds / (1 + odds), abs=1e-4)
    twice = fuse_cameras(xyz, three, [evidence((0.1, 0.9))] * 2, config)
    odds *= (0.1 / 0.9) ** 0.5
    assert twice[0, 0] == pytest.approx(odds / (1 + odds), abs=1e-4)
    assert three.tolist() == np.array([[0.6, 0.4]], np.float32).tolist()  # not changed in place


def test_left_and_right_are_not_swapped() -> None:
    xyz = np.array([[10, 5, 0], [10, -5, 0]], np.float32)
    fused = fuse_cameras(xyz, np.full((2, 2), 0.5), [evidence((0.9, 0.1), (0.1, 0.9))])
    assert fused.argmax(1).tolist() == [0, 1]


def test_points_out_of_sight_keep_what_they_have() -> None:
    """Behind the camera, outside the image, hidden behind a plate, without label, not finite."""
    y, z = np.meshgrid(np.linspace(-0.5, 0.5, 30), np.linspace(-0.5, 0.5, 30))
    plate = np.stack([np.full(y.size, 5.0), y.ravel(), z.ravel()], 1)
    odd = [[-10, 0, 0], [1, 30, 0], [12, 0, 0], [5, 2, 0], [np.nan, 0, 0]]
    xyz = np.concatenate([odd, plate]).astype(np.float32)
    three = np.repeat(np.array([[0.6, 0.4]], np.float32), len(xyz), 0)
    three[3] = 0
    fused = fuse_cameras(xyz, three, [evidence((0.01, 0.99))])
    assert (fused[:5] == three[:5]).all()
    assert (fused[5:].argmax(1) == 1).all()
    assert (fuse_cameras(xyz, three, []) == three).all()


def test_a_pixel_of_no_class_is_no_evidence() -> None:
    xyz = np.array([[10, 0, 0]], np.float32)
    fused = fuse_cameras(xyz, np.array([[0.6, 0.4]]), [evidence((0.0, 0.0))])
    assert fused[0] == pytest.approx([0.6, 0.4])
    weak = fuse_cameras(xyz, np.array([[0.6, 0.4]]), [evidence((0.01, 0.09))])
    strong = fuse_cameras(xyz, np.array([[0.6, 0.4]]), [evidence((0.1, 0.9))])
    assert 0.6 > weak[0, 0] > 0.5 > strong[0, 0]


def test_shapes_that_do_not_fit_are_named() -> None:
    xyz = np.zeros((2, 3), np.float32)
    with pytest.raises(InputError, match="3 probabilities for 2 points"):
        fuse_cameras(xyz, np.ones((3, 2)), [])
    with pytest.raises(InputError, match="pixels of 2 classes for points of 4"):
        fuse_cameras(xyz, np.ones((2, 4)), [evidence((0.5, 0.5))])


def test_the_teachers_classes_become_those_of_the_segmenter() -> None:
    class Teacher:
        label_space = LabelSpace.load("simulation")

        def probabilities(self, image: np.ndarray) -> np.ndarray:
            return np.full((len(self.label_space), 4, 6), 1 / len(self.label_space), np.float32)

    street = LabelSpace.load("street")
    labeler = CameraLabeler(Teacher(), street)  # type: ignore[arg-type]
    frame = CameraFrame("front", 0, CAMERA, T_CAM_LIDAR, np.zeros((8, 12, 3), np.uint8))
    seen = labeler.label(frame)
    assert seen.probabilities.shape == (8, 4, 6)
    assert (seen.probabilities.sum(0) <= 1 + 1e-6).all()
    Teacher.label_space = street  # coarser than what is asked for
    with pytest.raises(InputError, match="street"):
        CameraLabeler(Teacher(), LabelSpace.load("semantic_kitti"))  # type: ignore[arg-type]


def test_labels_by_cameras_are_the_vote_of_the_pixels() -> None:
    xyz = np.array([[10, 5, 0], [10, -5, 0], [-10, 0, 0], [np.nan, 0, 0]], np.float32)
    halves = evidence((0.8, 0.1), (0.1, 0.6))
    labels, confidence = label_by_cameras(xyz, [halves])
    assert labels.tolist() == [0, 1, IGNORE, IGNORE]
    np.testing.assert_allclose(confidence, [0.8, 0.6, 0, 0], atol=1e-6)
    labels, confidence = label_by_cameras(xyz[:1], [halves, evidence((0.0, 0.9))])
    assert labels.tolist() == [1] and confidence[0] == pytest.approx((0.1 + 0.9) / 2, abs=1e-6)
    labels, confidence = label_by_cameras(xyz, [])
    assert (labels == IGNORE).all() and not confidence.any()
