# SPDX-License-Identifier: Apache-2.0
"""Pixel classes by words: the class of the word most similar to the features of a pixel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pcseg_core.labels import LabelSpace
from pcseg_core.vision.pixel_features import PixelFeatures
from pcseg_core.vision.text_space import TextSpace


class TextClasses:
    """Cosine classifier over the words of classes, on pixel features in a text space.

    Args:
        pixels: features in the space of `text`.
        text: vectors of words.
        words: class name -> words, in the order of the ids; the best word counts.
        space: the classes.
        temperature: divisor of the cosines before the softmax.
    """

    def __init__(
        self,
        pixels: PixelFeatures,
        text: TextSpace,
        words: Mapping[str, tuple[str, ...]],
        space: LabelSpace,
        temperature: float = 0.07,
    ) -> None:
        self.pixels = pixels
        self.label_space = space
        self.temperature = temperature
        groups = [words[name] for name in space.names]
        self.vectors = text.embed([word for group in groups for word in group])
        self.starts = np.cumsum([0, *(len(group) for group in groups)])[:-1]

    def features(self, image: np.ndarray) -> np.ndarray:
        """See PixelClasses: unit vectors in the text space."""
        values = self.pixels.features(image)
        lengths = np.linalg.norm(values, axis=0)
        result: np.ndarray = values / np.maximum(lengths, 1e-12)
        return result

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """See PixelClasses."""
        values = self.features(image)
        cosines = np.tensordot(self.vectors, values, axes=1)
        best = np.maximum.reduceat(cosines, self.starts, axis=0) / self.temperature
        odds = np.exp(best - best.max(0))
        probabilities: np.ndarray = (odds / odds.sum(0)).astype(np.float32)
        return probabilities
