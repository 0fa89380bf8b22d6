# SPDX-License-Identifier: Apache-2.0
"""Teachers of a recipe: pixel classes, words, image features, and LiDAR networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.checkpoint import CheckpointText
from pcseg_core.distill.lidar_teacher import LidarTeacher, load_lidar_teacher
from pcseg_core.distill.pixels import ImageFeatures
from pcseg_core.errors import InputError
from pcseg_core.labels import NO_CLASSES, LabelSpace, grouping
from pcseg_core.learning.recipe import Recipe, TextConfig
from pcseg_core.learning.zero_shot_split import Split
from pcseg_core.text_table import TextTable
from pcseg_core.vision.class_to_text import (
    ClassProbabilities,
    ClassToText,
    class_matrix,
    class_words,
    name_the_classes,
)
from pcseg_core.vision.pixel_classes import PixelClasses, load_teacher
from pcseg_core.vision.pixel_features import PixelFeatures
from pcseg_core.vision.text_classes import TextClasses
from pcseg_core.vision.text_space import TextSpace, load_text_space, table_of


@dataclass
class TextTeacher:
    """Targets of the text head.

    Attributes:
        space: vectors of words.
        words: words of each of the teacher's classes, in the order of its ids.
        matrix: (C, D) float32 class vectors, zeros for a class that is left out.
        source: features of pixels: class probabilities (C), or vectors of the space (D).
    """

    space: TextSpace
    words: dict[str, tuple[str, ...]]
    matrix: npt.NDArray[np.float32]
    source: PixelFeatures

    @property
    def channels(self) -> int:
        """Size D of the text space."""
        return int(self.matrix.shape[1])

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the features of pixels depend on, as JSON can write it."""
        return {"name": self.source.name, **self.source.parameters}

    def checkpoint_text(self, config: TextConfig) -> CheckpointText:
        """Words of the checkpoint: all of a table, else those of the classes and the recipe."""
        table = self.space if isinstance(self.space, TextTable) else None
        classes = {name: words for name, words in self.words.items() if words}
        if table is None:
            wanted = [word for words in classes.values() for word in words]
            table = table_of(self.space, [*wanted, *config.words])
        if named := name_the_classes(self.words, table, self.matrix):
            vectors = np.stack(list(named.values()))
            table = table.join(TextTable(table.name, tuple(named), vectors))
        return CheckpointText(table, classes, config.temperature, config.source == "classes")


@dataclass
class Teachers:
    """The teachers of a recipe for distillation, at least one.

    Attributes:
        space: classes of the student; `NO_CLASSES` if no teacher has classes.
        camera: teacher of pixel classes, or None.
        text: teacher of words, or None.
        lidar: 3D teacher, or None.
    """

    space: LabelSpace
    camera: PixelClasses | None = None
    text: TextTeacher | None = None
    lidar: LidarTeacher | None = None

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Class of the student for each class of the camera teacher, IGNORE for none."""
        assert self.camera is not None
        return grouping(self.camera.label_space, self.space)

    def words(self, recipe: Recipe) -> CheckpointText | None:
        """Words of the checkpoint."""
        if self.text is None or recipe.text is None:
            return None
        return self.text.checkpoint_text(recipe.text)


def load_lidar(recipe: Recipe, device: str) -> LidarTeacher | None:
    """The 3D teacher of a recipe, or None; raises as `load_lidar_teacher`."""
    space = LabelSpace.load(recipe.labels.label_space)
    return load_lidar_teacher(recipe.teacher_3d, space, device) if recipe.teacher_3d else None


def student_space(recipe: Recipe, lidar: LidarTeacher | None) -> LabelSpace:
    """Classes of the student: those of the recipe; none if no teacher has classes."""
    if recipe.teacher is None and lidar is not None and not lidar.has_classes:
        return NO_CLASSES
    return LabelSpace.load(recipe.labels.label_space)


def load_teachers(
    recipe: Recipe, lidar: LidarTeacher | None, space: LabelSpace, device: str
) -> Teachers:
    """The teachers of a recipe.

    Args:
        recipe: of the run.
        lidar: its 3D teacher, see `load_lidar`.
        space: classes of the student, see `student_space`.
        device: "cpu" or "cuda".

    Raises:
        InputError, MissingDependency: one of them cannot be loaded or does not fit the classes.
    """
    camera = load_teacher(recipe.teacher, device) if recipe.teacher else None
    text = load_text_teacher(recipe.text, camera, device) if camera and recipe.text else None
    return Teachers(space, camera, text, lidar)


def load_text_teacher(config: TextConfig, teacher: PixelClasses, device: str) -> TextTeacher:
    """The teacher of the text head that a recipe names.

    Raises:
        InputError: a class without words, or a word without a vector.
    """
    space = load_text_space(config.space, device)
    words = class_words(teacher.label_space, space, config.classes)
    if config.space.center and not isinstance(space, TextTable):
        every = [word for members in words.values() for word in members]
        space = table_of(space, [*every, *config.words]).centered()
    matrix = class_matrix(space, words)
    source: PixelFeatures = ClassProbabilities(teacher)
    if config.source == "maskclip":
        from pcseg_core.vision.maskclip import load_maskclip

        dense = config.dense.model_copy(update={"model": config.space.model})
        source = load_maskclip(dense, config.space.weights, device)
    return TextTeacher(space, words, matrix, source)


def load_split_teacher(
    recipe: Recipe, split: Split, text: TextSpace, words: Mapping[str, tuple[str, ...]], device: str
) -> tuple[PixelClasses, ImageFeatures, dict[str, Any]]:
    """A teacher of the classes of a split by words, and the features to align the student with.

    Args:
        recipe: names the teacher; has a text section.
        split: the classes.
        text: vectors of words.
        words: class name -> its words.
        device: "cpu" or "cuda".

    Returns:
        Pixel classes in the split's space, image features, and everything that both depend on, as
        JSON can write it.
    """
    assert recipe.text is not None
    config = recipe.required_teacher()
    known = config.identity
    network = load_teacher(config, device)
    if config.name == "maskclip":
        if network.label_space.names != split.space.names:
            raise InputError(
                f"teacher.label_space is '{config.label_space}', but the split's is "
                f"'{split.label_space}': dense CLIP must know the classes of the split"
            )
        return network, network.features, known
    spoken = class_words(network.label_space, text, recipe.text.classes)
    pixels = ClassToText(network, class_matrix(text, spoken))
    teacher = TextClasses(pixels, text, words, split.space, recipe.teacher_temperature)
    known |= {
        "text": recipe.text.space.model_dump(mode="json"),
        "words": dict(words),
        "teacher_words": spoken,
        "temperature": recipe.teacher_temperature,
        "features": recipe.image_features,
    }
    own = recipe.image_features == "teacher"
    return teacher, network.features if own else teacher.features, known
