# SPDX-License-Identifier: Apache-2.0
"""Recipes: everything that decides the result of a training run.

The sections of a recipe decide its objectives. A `teacher` gives labels: segmentation, with `text`
words, with `alignment` image features. A `teacher_3d` gives labels, class probabilities or
features. An `encoder` gives image features alone: contrast. With `supervision` some classes are
learned without labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pcseg_core.bundled import bundled_file, find_file
from pcseg_core.confidence import ConfidenceConfig
from pcseg_core.config import Section, load_yaml, parse_section
from pcseg_core.distill.alignment import AlignmentConfig
from pcseg_core.distill.image_views import ViewConfig
from pcseg_core.distill.lidar_teacher import LidarTeacherConfig
from pcseg_core.distill.losses import LabelLossConfig
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.distill.temporal import TemporalConfig
from pcseg_core.errors import InputError
from pcseg_core.learning.augment import AugmentConfig, PairAugmentConfig
from pcseg_core.learning.mixing import MixConfig
from pcseg_core.learning.self_labels import RoundsConfig
from pcseg_core.learning.simulated import SimulatedConfig
from pcseg_core.learning.zero_shot_config import SelfTrainingConfig, StackingConfig
from pcseg_core.models.student import StudentConfig
from pcseg_core.vision.encoder_kinds import AnyEncoder
from pcseg_core.vision.maskclip import DenseClipConfig
from pcseg_core.vision.pixel_classes import Teacher, TeacherConfig, with_teachers
from pcseg_core.vision.superpixel_kinds import SuperpixelConfig, Superpixels
from pcseg_core.vision.text_space import TextSpaceConfig

Supervision = Literal["seen", "zero-shot", "annotation-free"]

_CONTRAST = ("superpixel", "temporal", "point_to_segment", "point_pixel")


class OptimizerConfig(Section):
    """AdamW with one warm-up and a cosine decay to zero."""

    steps: int = Field(1000, ge=1, description="Optimizer steps")
    batch_size: int = Field(3, ge=1, description="Sectors of sweeps of a batch, of all processes")
    accumulate: int = Field(1, ge=1, description="Batches per step; their gradients are averaged")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Arithmetic of the network; bf16 for GPUs. Weights and losses are fp32"
    )
    sector_deg: float = Field(
        120.0, gt=5, le=360, description="Azimuth range of the part of a sweep in a batch [deg]"
    )
    learning_rate: float = Field(4e-3, gt=0, description="Highest learning rate")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps for warm-up")
    average: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights, which is the result",
    )
    gradient_clip: float = Field(5.0, gt=0, description="Largest norm of the gradient")
    heads_only: bool = Field(
        False,
        description="Train the text and regression heads only, on frozen features of the run to "
        "start from; its own classes do not change",
    )


class LossConfig(LabelLossConfig):
    """Weights of the objectives, and the negatives of contrast.

    With an encoder the defaults are 0 for cross_entropy and lovasz, and 1 for superpixel.
    """

    regression: float = Field(
        0.0, ge=0, description="Weight of the regression of image features (ScaLR)"
    )
    superpixel: float = Field(0.0, ge=0, description="Weight of superpixel contrast (SLidR, Seal)")
    temporal: float = Field(0.0, ge=0, description="Weight of consistency across sweeps (Seal)")
    point_to_segment: float = Field(
        0.0, ge=0, description="Weight of points against their segment within a sweep (Seal)"
    )
    point_pixel: float = Field(0.0, ge=0, description="Weight of point-pixel contrast (PPKT)")
    temperature: float = Field(0.07, gt=0, description="Contrast: divisor of the similarities")
    channels: int = Field(64, ge=2, le=4096, description="Contrast: size of the projected features")
    false_negative_quantile: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Superpixels whose image features are more similar than this quantile of all "
        "pairs are not negatives",
    )
    class_positives: bool = Field(
        False, description="Superpixels of one class are positives, if they have classes (OLIVINE)"
    )
    class_negatives: bool = Field(
        True, description="Only superpixels of different classes are negatives, if they have any"
    )
    balanced: bool = Field(False, description="Rare superpixels weigh more (ST-SLidR)")
    paired: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Temporal: share of the sectors that are two sweeps of one place; the others "
        "show two places",
    )
    points_per_segment: int = Field(
        100, ge=1, description="Temporal, point-to-segment: points drawn of each segment"
    )
    pixels_per_segment: int = Field(
        100, ge=1, description="Superpixel: pixels drawn of each superpixel"
    )
    pairs: int = Field(4096, ge=1, description="Point-pixel: pairs per step")


class TextConfig(Section):
    """Words: the text space, and how the text head is trained."""

    renamed: ClassVar[dict[str, str]] = {
        name: f"text.space.{name}" for name in TextSpaceConfig.model_fields if name != "source"
    }

    space: TextSpaceConfig = Field(description="Where the vectors of words come from")
    source: Literal["classes", "maskclip"] = Field(
        "classes",
        description="Pixel features to learn. classes: the vectors of the names of the teacher's "
        "classes; maskclip: the image encoder of the space's open_clip model",
    )
    dense: DenseClipConfig = Field(
        default_factory=DenseClipConfig,
        description="Windows of the image encoder (source: maskclip; the model is the space's)",
    )
    classes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Words of the teacher's classes, by name. Other classes take those of their "
        "name and synonyms that the space knows. A class without words is left out",
    )
    words: tuple[str, ...] = Field(
        (), description="More words to store in the checkpoint; a table stores all its words"
    )
    temperature: float = Field(
        0.07, gt=0, le=1, description="Divisor of cosines in the classifier of words"
    )
    regression: float = Field(
        1.0,
        ge=0,
        description="Weight of the distance to the pixels' unit vectors; unused with supervision",
    )
    cross_entropy: float = Field(
        1.0,
        ge=0,
        description="Weight of the cross-entropy of the classes by cosines (source: classes); "
        "unused with supervision",
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


class TrainingRecipe(Section):
    """The sections that all training shares."""

    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    mix: MixConfig = Field(default_factory=MixConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    loss: LabelLossConfig = Field(default_factory=LabelLossConfig)
    seed: int = Field(0, ge=0, description="Seed of everything random")


class Recipe(TrainingRecipe):
    """A training run."""

    renamed: ClassVar[dict[str, str]] = {
        "temperature": "text.temperature",
        "teacher_words": "text.classes",
    }

    teacher: Teacher | None = Field(None, description="Image network that gives labels")
    teacher_3d: LidarTeacherConfig | None = Field(
        None, description="Trained LiDAR network that teaches, by the path of its run or a section"
    )
    start: Path | None = Field(
        None,
        description="Run or checkpoint that `pcseg distill` starts from, such as bundled, if the "
        "command names none",
    )
    labels: PseudoLabelConfig = Field(default_factory=PseudoLabelConfig)
    text: TextConfig | None = Field(None, description="Words; none without it")
    encoder: AnyEncoder | None = Field(
        None, description="Frozen image network whose features are learned without labels"
    )
    superpixels: Superpixels = Field(default_factory=SuperpixelConfig)
    views: ViewConfig = Field(default_factory=ViewConfig)
    temporal: TemporalConfig = Field(default_factory=TemporalConfig)
    pairs: PairAugmentConfig = Field(default_factory=PairAugmentConfig)
    supervision: Supervision | None = Field(
        None,
        description="Zero-shot learning. seen: true labels of seen classes only; zero-shot: and "
        "image labels of unseen ones; annotation-free: image labels of all classes",
    )
    teacher_temperature: float = Field(
        0.07, gt=0, description="With supervision: divisor of the cosines of pixels and words"
    )
    image_features: Literal["teacher", "text"] = Field(
        "teacher",
        description="With supervision: features to align with, the teacher's or its pixels in the "
        "text space (equal for maskclip)",
    )
    alignment: AlignmentConfig | None = Field(
        None, description="Contrast with the teacher's features; on by default with supervision"
    )
    self_training: SelfTrainingConfig | None = Field(
        None, description="Labels by the network itself; on by default with supervision"
    )
    stacking: StackingConfig = Field(default_factory=StackingConfig)
    rounds: RoundsConfig = Field(default_factory=RoundsConfig)
    simulated: SimulatedConfig = Field(default_factory=SimulatedConfig)
    confidence: ConfidenceConfig = Field(default_factory=ConfidenceConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)

    def required_teacher(self) -> TeacherConfig:
        """The camera teacher.

        Raises:
            InputError: the recipe has none.
        """
        if self.teacher is None:
            raise InputError("the recipe has no 'teacher'; expected one that labels images")
        return self.teacher

    def taught_by(self, run: Path | None) -> Recipe:
        """The recipe with another run as 3D teacher; itself for None.

        Raises:
            InputError: the recipe cannot have a 3D teacher.
        """
        if run is None:
            return self
        section = (self.teacher_3d or LidarTeacherConfig()).model_copy(update={"run": run})
        return parse_section({**dict(self), "teacher_3d": section}, Recipe, "--teacher-3d")

    def of_round(self) -> Recipe:
        """The recipe of the trainings after the first one."""
        rounds, augment = self.rounds, self.augment
        steps = rounds.steps or self.optimizer.steps
        corrupt = augment.corrupt if rounds.corrupt is None else rounds.corrupt
        return self.model_copy(
            update={
                "optimizer": self.optimizer.model_copy(update={"steps": steps}),
                "augment": augment.model_copy(update={"corrupt": corrupt}),
            }
        )

    @property
    def run_3d(self) -> Path | None:
        """Run of the 3D teacher, or None."""
        return self.teacher_3d.run if self.teacher_3d else None

    @property
    def teachers_title(self) -> str:
        """The teachers and what they load, for people."""
        camera = f"teacher {self.teacher.title}" if self.teacher else "no camera teacher"
        return f"{camera}; 3D teacher {self.run_3d}" if self.teacher_3d else camera

    @property
    def across_sweeps(self) -> bool:
        """Whether segments across sweeps are needed."""
        return self.loss.temporal + self.loss.point_to_segment > 0

    @model_validator(mode="before")
    @classmethod
    def _defaults_follow_the_sections(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        found = with_teachers(values)
        if "teacher-3d" in found:
            found.setdefault("teacher_3d", found.pop("teacher-3d"))
        if isinstance(found.get("teacher_3d"), (str, Path)):
            found["teacher_3d"] = {"run": found["teacher_3d"]}
        if found.get("supervision"):
            found.setdefault("alignment", {})
            found.setdefault("self_training", {})
        if found.get("encoder"):
            loss = found.get("loss", {})
            given = loss.model_dump(exclude_unset=True) if isinstance(loss, Section) else loss
            if isinstance(given, Mapping):
                found["loss"] = {"cross_entropy": 0.0, "lovasz": 0.0, "superpixel": 1.0, **given}
        return found

    @model_validator(mode="after")
    def _objectives_have_their_sources(self) -> Recipe:
        loss = self.loss
        labeled = loss.cross_entropy + loss.lovasz
        contrast = sum(getattr(loss, name) for name in _CONTRAST)
        if self.teacher and self.encoder:
            raise ValueError("give 'teacher' (learns labels) or 'encoder' (no labels), not both")
        if labeled and not (self.teacher or self.teacher_3d):
            raise ValueError("loss.cross_entropy and loss.lovasz need labels: give a 'teacher'")
        if self.teacher_3d and (self.encoder or self.supervision or self.optimizer.heads_only):
            raise ValueError(
                "'teacher_3d' trains all of the student from its own targets; leave out 'encoder', "
                "'supervision' and optimizer.heads_only"
            )
        if loss.regression and not (self.teacher or self.encoder):
            raise ValueError("loss.regression needs image features: give 'teacher' or 'encoder'")
        if contrast and not self.encoder:
            raise ValueError(
                f"loss.{', loss.'.join(_CONTRAST)} need image features: give 'encoder'"
            )
        for name in ("text", "supervision", "alignment", "self_training"):
            if getattr(self, name) and not self.teacher:
                raise ValueError(f"'{name}' needs a 'teacher'")
        if self.encoder and self.augment.corrupt:
            raise ValueError("augment.corrupt is for training with labels: give a 'teacher'")
        if self.supervision and not self.text:
            raise ValueError("'supervision' needs the words of the classes: give 'text'")
        words = self.text.regression + self.text.cross_entropy if self.text else 0.0
        if labeled + contrast + loss.regression + words == 0 and not self.teacher_3d:
            raise ValueError("all loss weights are 0: nothing would be learned")
        return self


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and find its weights and tables, see `find_file`.

    Raises:
        InputError: the file is missing or invalid, or names a file that is missing.
    """
    recipe = load_yaml(path, Recipe)
    try:
        return _with_files(recipe, Path(path).parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _with_files(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with absolute paths."""
    teacher, text, start = recipe.teacher, recipe.text, recipe.start
    if teacher is not None and not any(bundled_file(path) for _, path in teacher.paths()):
        teacher = teacher.relative_to(base)
    if text is not None:
        text = text.model_copy(update={"space": text.space.relative_to(base)})
    if start is not None and not bundled_file(start):
        start = find_file(start, base)
    changes = {
        "teacher": teacher,
        "start": start,
        "text": text,
        "teacher_3d": recipe.teacher_3d and recipe.teacher_3d.relative_to(base),
        "encoder": recipe.encoder and recipe.encoder.relative_to(base),
        "superpixels": recipe.superpixels.relative_to(base),
        "rounds": recipe.rounds.relative_to(base),
    }
    return recipe.model_copy(update=changes)
