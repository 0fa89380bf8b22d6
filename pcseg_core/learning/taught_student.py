# SPDX-License-Identifier: Apache-2.0
"""The student of a recipe with teachers, and the objectives that train it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.labels import NO_CLASSES, LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.distributed import from_first
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.objectives.alignment import Alignment
from pcseg_core.learning.objectives.lidar_teacher import LidarDistillation
from pcseg_core.learning.objectives.regression import Regression
from pcseg_core.learning.objectives.segmentation import Segmentation, label_counts
from pcseg_core.learning.objectives.self_training import SelfTraining
from pcseg_core.learning.objectives.text import TextRegression
from pcseg_core.learning.recipe import Recipe, TextConfig
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.start import take_over
from pcseg_core.learning.teachers import Teachers, TextTeacher
from pcseg_core.models.student import Student

Array = npt.NDArray[Any]


def new_student(
    recipe: Recipe,
    sweeps: Sequence[TrainingSweep],
    space: LabelSpace,
    text: TextTeacher | None,
    start: Path | None = None,
) -> Student:
    """A student with the heads that the objectives of the recipe train, maybe of another run."""
    torch.manual_seed(recipe.seed)
    heads: dict[str, int] = {}
    if recipe.loss.regression > 0:
        heads["feature_channels"] = image_channels(sweeps)
    if text is not None:
        heads["text_channels"] = text.channels
    student = Student(recipe.student.model_copy(update=heads), len(space))
    if start is not None:
        take_over(student, start)
    return student


def image_channels(sweeps: Sequence[TrainingSweep]) -> int:
    """Size of the image features of sweeps; 0 without any."""
    images = (sweep.pixels.image for sweep in sweeps if sweep.pixels is not None)
    return from_first(lambda: max((i.shape[1] for i in images if i is not None), default=0))


def new_module(
    student: Student, sweeps: Sequence[TrainingSweep], recipe: Recipe, teachers: Teachers
) -> TrainingModule:
    """The objectives of a recipe with a teacher, for a student, on labeled sweeps."""
    loss, classes = recipe.loss, student.network.classifier.out_features
    text, lidar = teachers.text, teachers.lidar
    if recipe.optimizer.heads_only:
        loss = loss.model_copy(update={"cross_entropy": 0.0, "lovasz": 0.0})
    sectors = LabeledSectors(sweeps, recipe, teachers.space)
    counts = from_first(lambda: label_counts(sweeps, classes, sectors.required))
    found: list[Objective] = []
    if teachers.space == NO_CLASSES:
        student.network.classifier.requires_grad_(False)
    else:
        found.append(Segmentation(loss, counts))
    if lidar is not None:
        # Beside cameras, a 3D teacher has no say on classes that it lacks.
        compared = lidar.knows if teachers.camera else np.ones(classes, bool)
        width = student.network.feature_channels
        found.append(LidarDistillation(lidar, compared, counts.sum(1), loss.class_balance, width))
    if loss.regression:
        found.append(Regression(loss.regression))
    if text is not None and recipe.text is not None:
        found.append(TextRegression(recipe.text, text.matrix, _text_frequency(recipe.text, sweeps)))
    if recipe.alignment is not None and recipe.alignment.active:
        width = student.network.feature_channels
        found.append(Alignment(width, image_channels(sweeps), recipe.alignment))
    return TrainingModule(
        student,
        found,
        sectors,
        recipe.optimizer,
        self_training=self_training(recipe, torch.ones(classes, dtype=torch.bool)),
    )


def _text_frequency(config: TextConfig, sweeps: Sequence[TrainingSweep]) -> Array | None:
    """(C,) share of each class of the teacher among the pixels; None if not by classes."""
    if config.source != "classes":
        return None
    texts = (s.pixels.text for s in sweeps if s.pixels is not None)
    sums = (text[:].sum(0, dtype=np.float64) for text in texts if text is not None)
    counts: Array = from_first(lambda: np.sum(list(sums), axis=0))
    result: Array | None = counts / max(counts.sum(), 1.0)
    return result


def self_training(recipe: Recipe, open_classes: Tensor) -> SelfTraining | None:
    """The self-training of a recipe, for the classes without true labels (C,) bool."""
    if recipe.self_training is None:
        return None
    return SelfTraining(recipe.self_training, open_classes, recipe.optimizer.steps, recipe.seed)
