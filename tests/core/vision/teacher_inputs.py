# SPDX-License-Identifier: Apache-2.0
"""Images for teachers, and teachers from their options."""

from __future__ import annotations

from typing import Any

import numpy as np

from pcseg_core.vision.pixel_classes import TEACHERS, PixelClasses, load_teacher

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


def load(**values: Any) -> PixelClasses:
    return load_teacher(TEACHERS.parse(values, "teacher"))


def image(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
