# SPDX-License-Identifier: Apache-2.0
"""Images of class ids and confidences, pixel by pixel those of an organized cloud."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.labels import WIRE_UNLABELED
from pcseg_core.native.library import check, optional_library, thread_count
from pcseg_core.online.pipeline import LabeledSweep

_BYTE_UNLABELED = 255


def unlabeled_pixel(classes: int) -> int:
    """Value of pixels without a class: the largest of a pixel, which has one byte if it can."""
    return _BYTE_UNLABELED if classes <= _BYTE_UNLABELED else WIRE_UNLABELED


def label_image(labeled: LabeledSweep, height: int, width: int) -> npt.NDArray[Any]:
    """(height, width) class ids: uint8 for up to 255 classes, uint16 for more.

    Pixels without a class have the value of `unlabeled_pixel`.
    """
    none = unlabeled_pixel(len(labeled.label_space))
    kind = np.uint8 if none == _BYTE_UNLABELED else np.uint16
    # -1 wraps to the largest number.
    return labeled.labels.astype(kind).reshape(height, width)


def confidence_image(labeled: LabeledSweep, height: int, width: int) -> npt.NDArray[np.uint8]:
    """(height, width) uint8: the confidence from 0 to 255, 0 for pixels without a class."""
    library = optional_library()
    if library is None:
        scaled = labeled.confidence * np.float32(255) + np.float32(0.5)
        image = scaled.astype(np.uint8) * (labeled.labels >= 0)
        return image.reshape(height, width)
    confidence = np.ascontiguousarray(labeled.confidence, np.float32)
    labels = np.ascontiguousarray(labeled.labels, np.int32)
    image = np.empty(len(labels), np.uint8)
    addresses = (array.ctypes.data for array in (confidence, labels, image))
    check(library.pcseg_confidence_bytes(*addresses, len(image), thread_count()))
    return image.reshape(height, width)
