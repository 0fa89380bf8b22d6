# SPDX-License-Identifier: Apache-2.0
"""Recipes of zero-shot learning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pcseg_core.bundled import bundled_file, find_file
from pcseg_core.config import Section, load_yaml
from pcseg_core.distill.alignment import AlignmentConfig
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.learning.recipe import AugmentConfig, LossConfig, OptimizerConfig
from pcseg_core.models.student import StudentConfig
from pcseg_core.vision.pixel_classes import TeacherConfig
from pcseg_core.vision.text_space import TextSpaceConfig

Supervision = Literal["seen", "zero-shot", "annotation-free"]


class SelfTrainingConfig(Section):
    """The student's own averaged network as a second teacher, beside the images."""

    start: float = Field(
        0.5, ge=0, le=1, description="Share of the steps after which it starts; 1 is never"
    )
    quantile: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Of the confidences of each class: labels below it are not used",
    )
    mix: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the image labels that own ones replace; own labels alone collapse",
    )
    unlabeled: bool = Field(
        True, description="Also label what no camera sees, or what the images are not sure of"
    )


class StackingConfig(Section):
    """Calibrated stacking against the bias toward seen classes."""

    tolerance: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Mean IoU of seen classes, on held-out sweeps, that it may cost",
    )
    held_out: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the training scenes (of the sweeps, if there is one scene) that is "
        "not trained on",
    )


class ZeroShotRecipe(Section):
    """A whole zero-shot run."""

    teacher: TeacherConfig = Field(
        description="Image network that knows the unseen classes: pixel classes, which reach the "
        "text space by the vectors of their names, or maskclip in the split's label space"
    )
    teacher_temperature: float = Field(
        0.07, gt=0, description="Divisor of the cosines of pixels and words"
    )
    teacher_words: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Words of the teacher's classes, by name; default name and synonyms as far as "
        "the text space knows them, none leave a class out",
    )
    image_features: Literal["teacher", "text"] = Field(
        "teacher",
        description="What the student is aligned with: the teacher's own features, or its pixels "
        "in the text space (for maskclip they are the same)",
    )
    text: TextSpaceConfig = Field(default_factory=TextSpaceConfig)
    temperature: float = Field(
        0.07, gt=0, description="Divisor of the cosines of the student's features and classes"
    )
    supervision: Supervision = Field(
        "zero-shot",
        description="seen: true labels of seen classes alone; zero-shot: and image labels of "
        "unseen ones; annotation-free: image labels of all classes, no truth",
    )
    labels: PseudoLabelConfig = Field(
        default_factory=PseudoLabelConfig,
        description="Projection and consolidation; the label space is the split's, and labels are "
        "not carried otherwise",
    )
    alignment: AlignmentConfig = Field(default_factory=AlignmentConfig)
    self_training: SelfTrainingConfig = Field(default_factory=SelfTrainingConfig)
    stacking: StackingConfig = Field(default_factory=StackingConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    seed: int = Field(0, ge=0, description="Seed of everything random")


def load_zero_shot_recipe(path: Path) -> ZeroShotRecipe:
    """Read a recipe and find its weights and tables, see `find_file`."""
    recipe = load_yaml(path, ZeroShotRecipe)
    base, weights = Path(path).parent, recipe.teacher.weights
    if not bundled_file(weights):
        weights = find_file(weights, base)
    teacher = recipe.teacher.model_copy(update={"weights": weights})
    return recipe.model_copy(update={"teacher": teacher, "text": recipe.text.relative_to(base)})
