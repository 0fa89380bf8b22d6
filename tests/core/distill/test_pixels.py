# SPDX-License-Identifier: Apache-2.0
"""Which patch a pixel lies in, and the mean features of patches."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.distill.pixels import PixelSampler, patch_means, patch_of
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig

# x forward, y left, z up into the camera's x right, y down, z forward.
FORWARD = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
BACKWARD = np.array([[0, 1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])


def test_patch_means_by_hand_with_smaller_patches_at_the_border() -> None:
    values = np.arange(15, dtype=np.float32).reshape(1, 3, 5)
    # Patches of 2 x 2: the last column is 1 wide, the last row 1 high.
    expected = [
        np.mean([0, 1, 5, 6]),
        np.mean([2, 3, 7, 8]),
        np.mean([4, 9]),
        np.mean([10, 11]),
        np.mean([12, 13]),
        14,
    ]
    assert patch_means(values, 2)[:, 0] == pytest.approx(expected)


def test_every_cell_of_the_map_is_in_the_patch_that_averages_it() -> None:
    height, width, patch = 7, 11, 3
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    # An image of four times the size; its pixels 4 k + 1.5 are the centers of the cells.
    found = patch_of(cells * 4 + 1.5, (4 * width, 4 * height), (height, width), patch)
    one_hot = np.zeros((len(cells), height, width), np.float32)
    one_hot[np.arange(len(cells)), cells[:, 1], cells[:, 0]] = 1
    means = patch_means(one_hot, patch)
    assert np.array_equal(means.argmax(0), found) and ((means > 0).sum(0) == 1).all()


def test_pixels_on_the_outer_edge_stay_inside() -> None:
    edge = np.array([[-0.5, -0.5], [639.5, 383.5]])
    assert patch_of(edge, (640, 384), (24, 40), 16).tolist() == [0, 5]


def test_points_take_the_feature_and_the_patch_of_their_pixel() -> None:
    camera = CameraModel.pinhole(20, 20, 19.5, 19.5, 40, 40)
    ahead = [[10, 4, 4], [10, -4, -4]]  # upper left and lower right
    xyz = np.array([*ahead, [-10, 4, 4], [0, 9, 0], [np.nan] * 3], np.float32)
    image = np.zeros((40, 40, 3), np.uint8)
    frames = [CameraFrame(n, 0, camera, T, image) for n, T in (("a", FORWARD), ("b", BACKWARD))]
    sample = Sample(PointCloud(xyz), frames)

    def features(_image: np.ndarray) -> np.ndarray:
        v, u = np.mgrid[0:20, 0:20].astype(np.float32)
        return np.stack([u, v])

    sampler = PixelSampler(PseudoLabelConfig(border_px=0), {}, features, features, 10)
    pixels = sampler.pixels(sample, xyz)
    assert pixels.point.tolist() == [0, 1, 2]
    # u = 19.5 - 20 * 4 / 10 = 11.5 of the image, 5.5 of the map; seen from behind it is 13.5.
    assert np.allclose(pixels.image, [[5.5, 5.5], [13.5, 13.5], [13.5, 5.5]], atol=0.01)
    assert np.array_equal(pixels.text, pixels.image)
    assert pixels.patch.tolist() == [0, 3, 4 + 1] and pixels.patch_image.shape == (8, 2)
    assert pixels.patch_image[3].tolist() == [14.5, 14.5]


def test_no_camera_gives_nothing() -> None:
    sample = Sample(PointCloud(np.zeros((3, 3), np.float32)))
    sampler = PixelSampler(PseudoLabelConfig(), {}, lambda image: image, patch_px=8)
    pixels = sampler.pixels(sample, sample.cloud.xyz)
    assert len(pixels.image) == len(pixels.point) == len(pixels.patch) == 0
    assert pixels.text is None
