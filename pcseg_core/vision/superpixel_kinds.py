# SPDX-License-Identifier: Apache-2.0
"""The kinds of superpixel generators, and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from typing_extensions import Self

from pcseg_core.errors import InputError
from pcseg_core.vision.pixel_classes import Teacher
from pcseg_core.vision.registry import Kind, KindConfig, LocatedPath, Registry
from pcseg_core.vision.sam import SamSuperpixels
from pcseg_core.vision.semantic import SemanticSuperpixels, load_semantic
from pcseg_core.vision.slic import Slic
from pcseg_core.vision.superpixels import SuperpixelGenerator


class SuperpixelOptions(KindConfig):
    """Segmentation of the images; each kind adds its own options."""


class SuperpixelConfig(SuperpixelOptions):
    """Superpixels by color or by classes, or those of a folder."""

    name: Literal["slic", "semantic", "folder"] = Field(
        "slic",
        description="slic: by color and position; semantic: regions of the teacher's classes, "
        "split by SLIC; folder: existing maps",
    )
    segments: int = Field(150, ge=2, description="SLIC: approximate number of segments")
    compactness: float = Field(6.0, gt=0, description="SLIC: weight of position relative to color")
    min_area: int = Field(100, ge=1, description="Semantic: smaller regions join a neighbor [px]")
    teacher: Teacher | None = Field(None, description="Semantic: teacher of pixel classes")
    folder: Path | None = Field(
        None, description="Folder of maps with their manifest, see `pcseg superpixels`"
    )

    def relative_to(self, folder: Path) -> Self:
        """See `KindConfig`; the folder of maps need not exist yet."""
        found = self.folder and (folder / self.folder.expanduser()).resolve()
        maker = self.teacher and self.teacher.relative_to(folder)
        return self.model_copy(update={"folder": found, "teacher": maker})

    @model_validator(mode="after")
    def _has_its_source(self) -> SuperpixelConfig:
        if self.name == "semantic" and self.teacher is None:
            raise ValueError("superpixels 'semantic' need a 'teacher'")
        if self.name == "folder" and self.folder is None:
            raise ValueError("superpixels 'folder' need the path 'folder'")
        return self


class SamConfig(SuperpixelOptions):
    """Segment Anything, prompted on a grid."""

    name: Literal["sam"] = "sam"
    weights: Annotated[Path, LocatedPath()] = Field(description="Checkpoint of a SAM of any size")
    min_area: int = Field(100, ge=1, description="Smaller masks are dropped [px]")
    points_per_side: int = Field(32, ge=1, description="Prompts along each side of the image")


def _slic(config: SuperpixelConfig, device: str = "cpu") -> Slic:
    return Slic(config.segments, config.compactness)


def _semantic(config: SuperpixelConfig, device: str) -> SemanticSuperpixels:
    assert config.teacher is not None
    return load_semantic(config.teacher, _slic(config), config.min_area, device)


def _folder(config: SuperpixelConfig, device: str) -> SuperpixelGenerator:
    raise InputError(f"superpixels of {config.folder} are read, not made")


def _sam(config: SamConfig, device: str) -> SamSuperpixels:
    return SamSuperpixels(
        config.weights,
        min_area=config.min_area,
        device=device,
        points_per_side=config.points_per_side,
    )


SLIC = Kind(SuperpixelConfig, _slic, "by color and position")
SEMANTIC = Kind(SuperpixelConfig, _semantic, "regions of a teacher's classes, split by SLIC")
FOLDER = Kind(SuperpixelConfig, _folder, "maps made before")
SAM = Kind(SamConfig, _sam, "Segment Anything, prompted on a grid")

SUPERPIXELS: Registry[SuperpixelOptions, SuperpixelGenerator] = Registry(
    "superpixel generator",
    "pcseg.superpixels",
    SuperpixelOptions,
    {
        name: f"pcseg_core.vision.superpixel_kinds:{name.upper()}"
        for name in ("slic", "semantic", "folder", "sam")
    },
    default="slic",
)

Superpixels: TypeAlias = Annotated[
    SerializeAsAny[SuperpixelOptions], BeforeValidator(SUPERPIXELS.read)
]
"""Type of fields that hold the options of a generator of any kind."""
