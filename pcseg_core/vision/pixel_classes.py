# SPDX-License-Identifier: Apache-2.0
"""Pixel-class teachers: a probability per class and pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeAlias

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny

from pcseg_core.config import read_yaml, yaml_mapping
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.recipes import recipe_file
from pcseg_core.vision.registry import KindConfig, Registry


class PixelClasses(Protocol):
    """A teacher of pixel classes."""

    label_space: LabelSpace

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (C, h, w) float32 class probabilities in 0..1.

        The map may be smaller than the image; pixel centers scale with it. Probabilities may sum
        to less than one if the teacher has classes that the label space lacks.
        """

    def features(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (D, h, w) float32 features of the classifier."""


_SOURCES = ("weights", "model", "file", "path", "factory", "repo")


class TeacherConfig(KindConfig):
    """Teacher of pixel classes; each kind adds its own options."""

    label_space: str = Field("cityscapes", description="Label space of the teacher's outputs")

    @property
    def title(self) -> str:
        """The kind and what it loads, for people."""
        parts = (getattr(self, key, None) for key in _SOURCES)
        return " ".join([self.name, *(str(part) for part in parts if part)])


TEACHERS: Registry[TeacherConfig, PixelClasses] = Registry(
    "teacher",
    "pcseg.teachers",
    TeacherConfig,
    {
        "espnetv2": "pcseg_core.vision.teachers.espnetv2:KIND",
        "maskclip": "pcseg_core.vision.maskclip:KIND",
        "transformers": "pcseg_core.vision.teachers.transformers:KIND",
        "onnx": "pcseg_core.vision.teachers.onnx:KIND",
        "litert": "pcseg_core.vision.teachers.litert:KIND",
        "folder": "pcseg_core.vision.teachers.folder:KIND",
        "python": "pcseg_core.vision.teachers.python:KIND",
        "torchhub": "pcseg_core.vision.teachers.torchhub:KIND",
        "several": "pcseg_core.vision.teachers.several:KIND",
    },
    default="espnetv2",
    former={"clip": None},
)

Teacher: TypeAlias = Annotated[SerializeAsAny[TeacherConfig], BeforeValidator(TEACHERS.read)]
"""Type of fields that hold the options of a teacher of any kind."""


def read_teacher(source: str) -> TeacherConfig:
    """The options of a teacher from one text.

    Args:
        source: a block as YAML text, such as "{name: onnx, file: net.onnx}"; or the path of a YAML
            file, or the name of a recipe, that holds the block under `teacher` or alone.

    Raises:
        InputError: no such file, no teacher in it, or a wrong block.
    """
    if source.lstrip().startswith("{"):
        return TEACHERS.parse(yaml_mapping(source, "teacher"), "teacher").relative_to(Path())
    file = recipe_file(source)
    content = read_yaml(file)
    block = with_teachers(content).get("teacher", content)
    if not isinstance(block, dict) or "encoder" in content:
        raise InputError(f"{file}: no 'teacher' in it; expected one that labels images")
    return TEACHERS.parse(block, f"{file}: teacher").relative_to(file.parent)


def with_teachers(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in which a list `teachers` has become a teacher of the kind several.

    Raises:
        InputError: it has `teacher` too.
    """
    found = dict(content)
    if "name" not in found and found.get("teachers") is not None:
        if found.get("teacher"):
            raise InputError("give 'teacher', or 'teachers' for several, not both")
        found["teacher"] = {"name": "several", "teachers": found.pop("teachers")}
    return found


def load_teacher(config: TeacherConfig, device: str = "cpu") -> PixelClasses:
    """The teacher of a configuration.

    Raises:
        InputError, MissingDependency: see its kind.
    """
    return TEACHERS.load(config, device)
