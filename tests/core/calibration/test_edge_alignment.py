# SPDX-License-Identifier: Apache-2.0
"""The score of a calibration, its derivative, and edges of images."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.calibration.alignment import Alignment, View
from pcseg_core.calibration.image_edges import band, contrast, gray

STEPS = np.array([1e-3] * 3 + [1e-4] * 3 + [1e-5])


@pytest.mark.parametrize("level", (0, 1))  # the finest jumps at the border of the image
def test_the_derivative_is_that_of_the_score(views: list[View], level: int) -> None:
    alignment = Alignment(views)
    at = np.array([0.9, -0.6, 0.4, 0.05, -0.02, 0.07, 0.033])
    slope = alignment.parts(at, level)[1].sum(axis=0)
    for k, step in enumerate(STEPS):
        beside = np.zeros(7)
        beside[k] = step
        up, down = alignment.score(at + beside, level), alignment.score(at - beside, level)
        assert slope[k] == pytest.approx((up - down) / (2 * step), rel=0.05, abs=0.02)


def test_the_exact_calibration_has_the_best_score(views: list[View]) -> None:
    alignment = Alignment(views)
    exact = alignment.score(np.zeros(7), -1)
    for k, error in enumerate((1.0, 1.0, 1.0, 0.3, 0.3, 0.6, 0.05)):
        for sign in (1, -1):
            change = np.zeros(7)
            change[k] = sign * error
            assert alignment.score(change, -1) < 0.9 * exact


def test_edges_of_images_have_a_direction_and_mean_nothing_elsewhere() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:] = 200
    vertical, horizontal = contrast(gray(image, 1), 0.1)
    assert vertical[:, 38:42].max() == vertical.max() > 1 and not horizontal.any()
    maps, step = band(np.stack([vertical, horizontal]), 4.0)
    assert step == 2 and maps.shape == (2, 30, 40)
    assert maps[0, 15, 19:21].min() > 2
    assert abs(maps[0].mean()) < 0.1 and not maps[1].any()
