# SPDX-License-Identifier: Apache-2.0
"""The image teacher of zero-shot learning: classes of pixels, by words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError
from pcseg_core.learning.runs import on_gpu
from pcseg_core.learning.zero_shot_recipe import ZeroShotRecipe
from pcseg_core.learning.zero_shot_split import Split
from pcseg_core.vision.class_to_text import ClassToText, class_matrix, class_words
from pcseg_core.vision.pixel_classes import PixelClasses, load_teacher
from pcseg_core.vision.text_classes import TextClasses
from pcseg_core.vision.text_space import TextSpace
from pcseg_core.vision.weights import file_checksum

ImageFeatures = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def load_image_teacher(
    recipe: ZeroShotRecipe,
    split: Split,
    text: TextSpace,
    words: Mapping[str, tuple[str, ...]],
    device: str,
) -> tuple[PixelClasses, ImageFeatures, dict[str, Any]]:
    """Who tells the classes of a split in images, and the features the student is aligned with.

    Args:
        recipe: names the teacher.
        split: the classes.
        text: vectors of words.
        words: class name -> its words.
        device: "auto", "cpu" or "cuda".

    Returns:
        Pixel classes in the split's space, image features, and everything that both depend on, as
        JSON can write it.
    """
    config = recipe.teacher
    known: dict[str, Any] = {
        "weights": file_checksum(config.weights_file),
        "teacher": config.model_dump(mode="json", exclude={"weights"}),
    }
    network = load_teacher(config, "cuda" if on_gpu(device) else "cpu")
    if config.name == "maskclip":
        if network.label_space.names != split.space.names:
            raise InputError(
                f"teacher.label_space is '{config.label_space}', but the split's is "
                f"'{split.label_space}': dense CLIP must know the classes of the split"
            )
        return network, network.features, known
    spoken = class_words(network.label_space, text, recipe.teacher_words)
    pixels = ClassToText(network, class_matrix(text, spoken))
    teacher = TextClasses(pixels, text, words, split.space, recipe.teacher_temperature)
    known |= {
        "text": recipe.text.model_dump(mode="json"),
        "words": dict(words),
        "spoken": spoken,
        "temperature": recipe.teacher_temperature,
        "features": recipe.image_features,
    }
    own = recipe.image_features == "teacher"
    return teacher, network.features if own else teacher.features, known
