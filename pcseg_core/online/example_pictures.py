# SPDX-License-Identifier: Apache-2.0
"""Example pictures of classes on disk, and the encoder that their features come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcseg_core.data.images import read_image
from pcseg_core.errors import InputError
from pcseg_core.online.prototypes import Picture
from pcseg_core.vision.encoder_kinds import ENCODERS
from pcseg_core.vision.pixel_classes import TEACHERS
from pcseg_core.vision.pixel_features import FeatureSource

_SUFFIXES = (".png", ".jpg", ".jpeg")
_MASK = ".mask"


def read_pictures(folder: Path) -> dict[str, list[Picture]]:
    """Read examples FOLDER/CLASS/NAME.png (or .jpg), each with an optional NAME.mask.png.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise InputError(f"pictures {folder}: no such folder; expected FOLDER/CLASS/NAME.png")
    pictures: dict[str, list[Picture]] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(f for f in place.iterdir() if f.suffix.lower() in _SUFFIXES)
        shown = [f for f in files if Path(f.stem).suffix != _MASK]
        if shown:
            pictures[place.name] = [_read(file) for file in shown]
    if not pictures:
        raise InputError(f"pictures {folder}: none found; expected FOLDER/CLASS/NAME.png")
    return pictures


def _read(file: Path) -> Picture:
    mask = file.with_name(f"{file.stem}{_MASK}.png")
    if not mask.is_file():
        return Picture(read_image(file))
    return Picture(read_image(file), read_image(mask).max(2) > 0)


def encoder_of(recipe: Mapping[str, Any], device: str = "cpu") -> FeatureSource:
    """The encoder whose features the student of a recipe regresses.

    Raises:
        InputError: the recipe names no encoder, or its weights are missing.
    """
    if recipe.get("encoder"):
        return ENCODERS.load(ENCODERS.parse(recipe["encoder"], "encoder"), device)
    if recipe.get("teacher") and recipe.get("loss", {}).get("regression", 0) > 0:
        return TEACHERS.load(TEACHERS.parse(recipe["teacher"], "teacher"), device)
    raise InputError(
        "the checkpoint's recipe regresses no image features; train with 'loss: {regression: 1}'"
    )
