# SPDX-License-Identifier: Apache-2.0
"""Class-to-text: pixel features in a text space from a teacher of pixel classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.text_table import unit_rows, word_key
from pcseg_core.vision.pixel_classes import PixelClasses
from pcseg_core.vision.text_space import TextSpace


def class_words(
    classes: LabelSpace, text: TextSpace, given: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The words of each class, in the order of the ids.

    Args:
        classes: of the teacher.
        text: space of the words.
        given: class name -> words, from the user. Other classes take their name and synonyms, as
            far as the space has vectors for them. An empty list excludes a class.

    Raises:
        InputError: `given` has an unknown class or a word without a vector, or a class has no word
            with a vector.
    """
    for name in given:
        classes.index(name)
    words: dict[str, tuple[str, ...]] = {}
    for c in classes.classes:
        known = tuple(word for word in (c.name, *c.synonyms) if text.known(word))
        words[c.name] = tuple(given.get(c.name, known))
        if c.name not in given and not known:
            raise InputError(
                f"class '{c.name}' of label space '{classes.name}': text space '{text.name}' has "
                "neither its name nor its synonyms; give words for it under text.classes, or let "
                "text.space.generate make a direction for its name"
            )
    text.embed([word for members in words.values() for word in members])
    return words


def class_matrix(text: TextSpace, words: Mapping[str, Sequence[str]]) -> npt.NDArray[np.float32]:
    """(C, D) float32: normalized mean vector of the words of each class; zeros without words."""
    rows = [
        text.embed(members).mean(0) if members else np.zeros(text.channels, np.float32)
        for members in words.values()
    ]
    return unit_rows(np.stack(rows))


class ClassToText:
    """Pixel features in a text space: class vectors, weighted by the pixel's probabilities.

    f = sum_c p_c t_c / |sum_c p_c t_c|. These features carry no more information than the teacher,
    but in the space of the text encoder: a student of them responds to words near the class names.

    Args:
        teacher: pixel classes.
        matrix: (C, D) class vectors, zeros for excluded classes.
        parameters: identify the teacher in caches.
    """

    name = "class-to-text"

    def __init__(
        self, teacher: PixelClasses, matrix: np.ndarray, parameters: dict[str, Any] | None = None
    ) -> None:
        if len(matrix) != len(teacher.label_space):
            raise InputError(
                f"class-to-text: {len(matrix)} vectors for the {len(teacher.label_space)} classes "
                f"of '{teacher.label_space.name}'; expected one per class"
            )
        self.teacher = teacher
        self.matrix = np.asarray(matrix, np.float32)
        self.channels = self.matrix.shape[1]
        self.parameters = parameters or {}

    def features(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `PixelFeatures`: unit vectors; zeros where only excluded classes are likely."""
        mixed = np.tensordot(self.matrix.T, self.teacher.probabilities(image), axes=1)
        lengths = np.linalg.norm(mixed, axis=0)
        unit: npt.NDArray[np.float32] = (mixed / np.maximum(lengths, 1e-12)).astype(np.float32)
        return unit


class ClassProbabilities:
    """Probabilities of the teacher in place of pixel features.

    They need D / C times less memory than class-to-text features; the class vectors are applied on
    use.
    """

    name = "class-probabilities"

    def __init__(self, teacher: PixelClasses) -> None:
        self.teacher = teacher
        self.channels = len(teacher.label_space)
        self.parameters: dict[str, Any] = {"classes": list(teacher.label_space.names)}

    def features(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See PixelFeatures."""
        return self.teacher.probabilities(image).astype(np.float32)


def agree_with_labels(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> npt.NDArray[np.float32]:
    """Restrict the probabilities of each point to the teacher's classes of its voted label.

    The label, a vote over many frames, decides the coarse class; the pixel decides among the
    teacher's classes of that label.

    Args:
        probabilities: (S, C) of the teacher's classes.
        labels: (S,) voted labels; negative labels change nothing.
        groups: (C,) label of each class, negative for none.

    Returns:
        (S, C) float32 rows that sum to 1, or zeros if no class remains.
    """
    agrees = (labels[:, None] < 0) | (groups[None] == labels[:, None])
    kept = np.where(agrees, probabilities, 0).astype(np.float32)
    total = kept.sum(1, keepdims=True)
    result: npt.NDArray[np.float32] = np.divide(
        kept, total, out=np.zeros_like(kept), where=total > 1e-3
    )
    return result


def name_the_classes(
    words: Mapping[str, Sequence[str]], text: TextSpace, matrix: np.ndarray
) -> dict[str, np.ndarray]:
    """Class name -> vector, for names without a vector in the space."""
    return {
        name: row
        for name, row in zip(words, matrix)
        if word_key(name) and not text.known(name) and row.any()
    }
