# SPDX-License-Identifier: Apache-2.0
"""Recipes of pretraining: everything that decides what a pretrained network becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pcseg_core.bundled import find_file
from pcseg_core.config import Section, load_yaml
from pcseg_core.distill.temporal import TemporalConfig
from pcseg_core.learning.recipe import AugmentConfig, OptimizerConfig
from pcseg_core.models.student import StudentConfig
from pcseg_core.vision.encoders import EncoderConfig
from pcseg_core.vision.pixel_classes import TeacherConfig


class SuperpixelConfig(Section):
    """How images are cut into segments."""

    name: Literal["slic", "semantic", "folder"] = Field(
        default="slic",
        description="slic: by color and place; semantic: regions of the "
        "teacher's classes, split by SLIC; folder: maps that were made before",
    )
    segments: int = Field(default=150, ge=2, description="About how many segments SLIC makes")
    compactness: float = Field(default=6.0, gt=0, description="SLIC: weight of place against color")
    min_area: int = Field(
        default=100, ge=1, description="Smaller regions join a neighbor, semantic only [px]"
    )
    teacher: TeacherConfig | None = Field(
        default=None, description="Teacher of pixel classes, for the kind 'semantic'"
    )
    folder: Path | None = Field(
        default=None, description="Folder of maps with their manifest, see `pcseg superpixels`"
    )

    @model_validator(mode="after")
    def _has_its_source(self) -> SuperpixelConfig:
        if self.name == "semantic" and self.teacher is None:
            raise ValueError("superpixels of the kind 'semantic' need a 'teacher'")
        if self.name == "folder" and self.folder is None:
            raise ValueError("superpixels of the kind 'folder' need the path 'folder'")
        return self


class ViewConfig(Section):
    """What is kept of each sweep and its images."""

    splat_radius_px: int = Field(default=2, ge=0, le=10, description="Occlusion splat radius [px]")
    border_px: float = Field(
        default=5.0, ge=0, description="Weight falls to 0 over this image border [px]"
    )
    min_weight: float = Field(
        default=0.3, ge=0, lt=1, description="Points with less trust in their pixel are unpaired"
    )
    stride_px: int = Field(
        default=4, ge=1, le=64, description="Feature maps finer than this are averaged down [px]"
    )
    min_points: int = Field(
        default=3, ge=1, description="Superpixels with fewer points in a batch are left out"
    )


class PairAugmentConfig(Section):
    """Random changes of cloud and images together, pairs kept exact."""

    cuboid_drop: float = Field(
        default=0.5, ge=0, le=1, description="Share of the clouds that lose a box of points"
    )
    cuboid_extent: float = Field(
        default=0.2, gt=0, le=1, description="Largest box, as share of the cloud's extent"
    )
    crop: float = Field(
        default=0.5, ge=0, le=1, description="Share of the images of which a random part is used"
    )
    crop_area: tuple[float, float] = Field(
        default=(0.3, 1.0), description="Smallest and largest part of the image, by area"
    )
    min_pairs: int = Field(
        default=200, ge=0, description="Crops and boxes that leave fewer pairs are not applied"
    )
    mirror: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the images of which the features of the "
        "mirrored image are used; they double the cache",
    )
    merge: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the clouds that are joined with the sweep "
        "before or after them, where there are poses",
    )


class ContrastConfig(Section):
    """Weights of the objectives, and what is no negative."""

    superpixel: float = Field(default=1.0, ge=0, description="Superpixel contrast (SLidR, Seal)")
    temporal: float = Field(default=0.0, ge=0, description="Consistency across sweeps (Seal)")
    point_to_segment: float = Field(
        default=0.0, ge=0, description="Points to their segment inside a sweep (Seal)"
    )
    point_pixel: float = Field(default=0.0, ge=0, description="Single pairs (PPKT)")
    regression: float = Field(default=0.0, ge=0, description="Feature regression (ScaLR)")
    temperature: float = Field(default=0.07, gt=0, description="Divisor of the similarities")
    channels: int = Field(default=64, ge=2, le=4096, description="Size of the contrasted features")
    false_negative_quantile: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Pairs of segments whose teacher features are more "
        "alike than this quantile are no negatives",
    )
    class_positives: bool = Field(
        default=False,
        description="Segments of one class attract each other, where the "
        "superpixels have classes (OLIVINE)",
    )
    class_negatives: bool = Field(
        default=True,
        description="Segments of different classes only are negatives, where the "
        "superpixels have classes",
    )
    balanced: bool = Field(default=False, description="Rare segments weigh more (ST-SLidR)")
    paired: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="With the temporal term: share of the sectors that "
        "come as two sweeps of one place; the others show two places",
    )
    points_per_segment: int = Field(
        default=100, ge=1, description="Points drawn of each segment for the terms across sweeps"
    )
    pixels_per_segment: int = Field(
        default=100, ge=1, description="Pixels drawn of each superpixel for its mean"
    )
    pairs: int = Field(default=4096, ge=1, description="Pairs per step of single pairs")


class PretrainRecipe(Section):
    """A whole pretraining run."""

    encoder: EncoderConfig = Field(description="Frozen image network whose features are learned")
    superpixels: SuperpixelConfig = Field(default_factory=SuperpixelConfig)
    views: ViewConfig = Field(default_factory=ViewConfig)
    temporal: TemporalConfig = Field(default_factory=TemporalConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    pairs: PairAugmentConfig = Field(default_factory=PairAugmentConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    loss: ContrastConfig = Field(default_factory=ContrastConfig)
    seed: int = Field(default=0, ge=0, description="Seed of everything random")

    @model_validator(mode="after")
    def _has_an_objective(self) -> PretrainRecipe:
        loss = self.loss
        terms = (loss.superpixel, loss.temporal, loss.point_to_segment)
        if sum(terms) + loss.point_pixel + loss.regression == 0:
            raise ValueError("all loss weights are 0: nothing would be learned")
        return self

    @property
    def across_time(self) -> bool:
        """Whether segments across sweeps are needed."""
        return self.loss.temporal + self.loss.point_to_segment > 0


def load_pretrain_recipe(path: Path) -> PretrainRecipe:
    """Read a recipe and find its weights, see `find_file`; `folder` is relative to the recipe."""
    recipe = load_yaml(path, PretrainRecipe)
    base, cut = Path(path).parent, recipe.superpixels
    folder = cut.folder and (base / cut.folder.expanduser()).resolve()
    cut = cut.model_copy(update={"folder": folder, "teacher": _found(cut.teacher, base)})
    return recipe.model_copy(update={"encoder": _found(recipe.encoder, base), "superpixels": cut})


def _found(section: TeacherConfig | EncoderConfig | None, base: Path) -> Section | None:
    """The section with the absolute path of its weights."""
    if section is None or section.weights is None:
        return section
    return section.model_copy(update={"weights": find_file(section.weights, base)})
