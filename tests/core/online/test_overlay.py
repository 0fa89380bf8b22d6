# SPDX-License-Identifier: Apache-2.0
"""Pictures of labels over an image."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.camera import CameraModel
from pcseg_core.online.overlay import draw_labels
from pcseg_core.projection import project_cloud

CAMERA = CameraModel.pinhole(10.0, 10.0, 20.0, 15.0, 41, 31)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_near_point_covers_the_far_one_and_the_image_stays() -> None:
    image = np.full((31, 41, 3), 100, np.uint8)
    # Optical frame: both fall on pixels side by side, the nearer one on (20, 15).
    xyz = np.array([[0.0, 0.0, 10.0], [1.0, 0.0, 10.2]], np.float32)
    projection = project_cloud(xyz, np.eye(4), CAMERA, splat_radius_px=0)
    assert projection.visible.all()
    colors = np.array([RED, BLUE], np.uint8)
    picture = draw_labels(image, projection, colors, opacity=1.0)
    assert tuple(picture[15, 20]) == RED and tuple(picture[15, 22]) == BLUE
    assert tuple(picture[15, 21]) == RED  # of both squares
    assert (image == 100).all()
    half = draw_labels(image, projection, colors, opacity=0.5)
    assert tuple(half[15, 20]) == (178, 50, 50)
    assert tuple(picture[0, 0]) == (100, 100, 100)


@pytest.mark.parametrize("step", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
def test_near_squares_lie_over_far_ones_on_all_sides(step: tuple[float, float]) -> None:
    right, down = step
    xyz = np.array([[0.0, 0.0, 10.0], [1.02 * right, 1.02 * down, 10.2]], np.float32)
    projection = project_cloud(xyz, np.eye(4), CAMERA, splat_radius_px=0)
    colors = np.array([RED, BLUE], np.uint8)
    picture = draw_labels(np.zeros((31, 41, 3), np.uint8), projection, colors, opacity=1.0)
    assert (picture[14:17, 19:22] == RED).all()
    assert (picture == BLUE).all(axis=2).sum() == 3


def test_points_at_the_border_stay_inside() -> None:
    image = np.zeros((31, 41, 3), np.uint8)
    xyz = np.array([[-2.0, -1.5, 1.0], [2.0, 1.5, 1.0]], np.float32)
    projection = project_cloud(xyz, np.eye(4), CAMERA, splat_radius_px=0)
    picture = draw_labels(image, projection, np.array([RED, RED], np.uint8), opacity=1.0)
    assert tuple(picture[0, 0]) == RED and tuple(picture[30, 40]) == RED
    assert (picture.any(axis=2)).sum() == 2 * 4
