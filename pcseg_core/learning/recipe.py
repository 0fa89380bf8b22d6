# SPDX-License-Identifier: Apache-2.0
"""Recipes: everything that decides what a training run becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pcseg_core.bundled import bundled_file, find_file
from pcseg_core.config import Section, load_yaml
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.models.student import StudentConfig
from pcseg_core.vision.maskclip import DenseClipConfig
from pcseg_core.vision.pixel_classes import TeacherConfig
from pcseg_core.vision.text_space import TextSpaceConfig


class AugmentConfig(Section):
    """Random changes of the training clouds."""

    rotate: bool = Field(True, description="Rotate about the vertical by any angle")
    flip: bool = Field(True, description="Mirror left and right with probability one half")
    scale: float = Field(0.05, ge=0, le=0.5, description="Largest relative change of scale")
    shift_z_m: float = Field(
        0.1, ge=0, le=2, description="Largest change of the mounting height [m]"
    )
    tilt_deg: float = Field(1.0, ge=0, le=15, description="Largest roll and pitch [deg]")
    jitter_m: float = Field(0.01, ge=0, le=0.5, description="Deviation of noise on every point [m]")
    drop: float = Field(0.2, ge=0, lt=1, description="Largest share of points left out")
    beam_drop: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Largest share of elevation bands left out of every other "
        "cloud, so that near ground looks like far ground and one LiDAR like another",
    )
    beam_deg: float = Field(0.4, gt=0, le=10, description="Height of an elevation band [deg]")
    intensity_gain: float = Field(
        0.1, ge=0, le=1, description="Largest relative change of intensity"
    )


class OptimizerConfig(Section):
    """AdamW with one warm-up and a cosine decay to zero."""

    steps: int = Field(1000, ge=1, description="Optimizer steps")
    batch_size: int = Field(3, ge=1, description="Sectors of sweeps per step")
    sector_deg: float = Field(
        120.0, gt=5, le=360, description="Azimuth of the part of a sweep trained on [deg]"
    )
    learning_rate: float = Field(4e-3, gt=0, description="Highest learning rate")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps spent warming up")
    average: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Decay of the moving average of weights that is kept as the result",
    )
    gradient_clip: float = Field(5.0, gt=0, description="Largest norm of the gradient")
    heads_only: bool = Field(
        False,
        description="Train the text and regression heads alone, on the frozen features of the run "
        "that is started from; what it labels with its own classes stays the same",
    )


class LossConfig(Section):
    """Weights of the objectives."""

    cross_entropy: float = Field(1.0, ge=0, description="Weight of the cross-entropy")
    lovasz: float = Field(1.0, ge=0, description="Weight of the Lovász-softmax loss")
    regression: float = Field(
        0.0, ge=0, description="Weight of the regression of the teacher's pixel features (ScaLR)"
    )
    min_confidence: float = Field(
        0.6, ge=0, lt=1, description="Pseudo labels below this confidence are not trained on"
    )
    class_balance: float = Field(
        0.5, ge=0, le=1, description="Exponent of the inverse class frequency in the class weights"
    )


class TextConfig(Section):
    """The text head: features of words, learned from class names or from dense CLIP."""

    space: TextSpaceConfig = Field(description="Where the vectors of words come from")
    source: Literal["classes", "maskclip"] = Field(
        "classes",
        description="Pixel features to learn from. classes: the teacher's classes by the vectors "
        "of their names; maskclip: the image encoder of the space's open_clip model",
    )
    dense: DenseClipConfig = Field(
        default_factory=DenseClipConfig,
        description="Windows of the image encoder (source: maskclip; the model is the space's)",
    )
    classes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Words of the teacher's classes, by name; a class not given stands for its "
        "name and synonyms as far as the space knows them, one with no words is left out",
    )
    words: tuple[str, ...] = Field(
        (), description="Further words that the checkpoint shall know; a table gives all of its own"
    )
    temperature: float = Field(
        0.07, gt=0, le=1, description="Divisor of cosines in the classifier of words"
    )
    regression: float = Field(
        1.0, ge=0, description="Weight of the distance to the pixels' unit vectors"
    )
    cross_entropy: float = Field(
        1.0,
        ge=0,
        description="Weight of the cross-entropy of the classes by cosines (source: classes)",
    )
    class_balance: float = Field(
        0.5, ge=0, le=1, description="Exponent of the inverse class frequency (source: classes)"
    )

    @model_validator(mode="after")
    def _dense_needs_a_model(self) -> TextConfig:
        if self.source == "maskclip" and self.space.source != "open_clip":
            raise ValueError("source 'maskclip' needs space.source 'open_clip'")
        if self.source == "maskclip" and self.space.center:
            raise ValueError("source 'maskclip' learns the encoder's own space: no space.center")
        return self


class Recipe(Section):
    """A whole distillation run."""

    teacher: TeacherConfig
    labels: PseudoLabelConfig = Field(default_factory=PseudoLabelConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    text: TextConfig | None = Field(None, description="The text head; none without it")
    seed: int = Field(0, ge=0, description="Seed of everything random")

    @model_validator(mode="after")
    def _has_an_objective(self) -> Recipe:
        weights = self.loss.cross_entropy + self.loss.lovasz + self.loss.regression
        if self.text is not None:
            weights += self.text.regression + self.text.cross_entropy
        if weights == 0:
            raise ValueError("all loss weights are 0: nothing would be learned")
        return self


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and find its weights and tables, see `find_file`."""
    recipe = load_yaml(path, Recipe)
    weights = recipe.teacher.weights
    if not bundled_file(weights):
        weights = find_file(weights, Path(path).parent)
    teacher = recipe.teacher.model_copy(update={"weights": weights})
    text = recipe.text
    if text is not None:
        space = text.space.relative_to(Path(path).parent)
        text = text.model_copy(update={"space": space})
    return recipe.model_copy(update={"teacher": teacher, "text": text})
