# SPDX-License-Identifier: Apache-2.0
"""Pixels of label and confidence images."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.labels import LabelSpace
from pcseg_core.online.label_images import confidence_image, label_image, unlabeled_pixel
from pcseg_core.online.pipeline import LabeledSweep


@pytest.mark.parametrize("classes, kind", [(255, np.uint8), (256, np.uint16)])
def test_pixels_have_as_many_bytes_as_the_classes_need(classes: int, kind: type) -> None:
    names = [{"name": f"c{i}", "color": [0, 0, 0]} for i in range(classes)]
    space = LabelSpace.from_dict({"name": "many", "classes": names})
    labels = np.array([0, classes - 1, -1, 3], np.int32)
    confidence = np.array([1.0, 0.5, 0.7, 0.001], np.float32)
    sweep = LabeledSweep(PointCloud(np.ones((4, 3), np.float32)), labels, confidence, space)
    image = label_image(sweep, 2, 2)
    assert image.dtype == kind and image.shape == (2, 2)
    assert image.ravel().tolist() == [0, classes - 1, unlabeled_pixel(classes), 3]
    assert unlabeled_pixel(classes) == np.iinfo(kind).max
    assert confidence_image(sweep, 2, 2).tolist() == [[255, 128], [0, 0]]
