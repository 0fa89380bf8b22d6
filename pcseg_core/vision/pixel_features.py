# SPDX-License-Identifier: Apache-2.0
"""Interfaces of frozen image encoders."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class FeatureSource(Protocol):
    """A source of features of pixels."""

    def features(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(H, W, 3) uint8 RGB -> (D, h, w) float32.

        The map covers the whole image at lower resolution; pixel centers scale with it.
        """


class PixelFeatures(FeatureSource, Protocol):
    """A frozen encoder of images.

    Attributes:
        channels: number D of features per pixel.
        name: short name of the network, such as "resnet50".
        parameters: all parameters of its features as JSON values (weights by checksum).
    """

    channels: int
    name: str
    parameters: dict[str, Any]
