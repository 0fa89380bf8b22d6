# SPDX-License-Identifier: Apache-2.0
"""Recipes that come with the package, by name: `kitti` is the file kitti.yaml of this folder."""

from __future__ import annotations

import difflib
import os
from importlib.resources import files
from pathlib import Path

from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError


def available_recipes() -> tuple[str, ...]:
    """Names of the recipes of the package, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def recipe_file(source: str | os.PathLike[str]) -> Path:
    """File of a recipe: a name of `available_recipes`, or the path of a YAML file.

    Raises:
        InputError: neither; the message lists the names.
    """
    name = os.fspath(source)
    if name in available_recipes():
        return _folder() / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    known = available_recipes()
    close = difflib.get_close_matches(Path(name).stem.replace("_", "-"), known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise InputError(
        f"no recipe '{name}': {hint}expected the path of a YAML file, or one of {', '.join(known)}"
    )


def recipe_kind(file: Path) -> str:
    """What a recipe trains: "distillation", "pretraining" or "zero-shot"."""
    content = read_yaml(file)
    if "encoder" in content:
        return "pretraining"
    return "zero-shot" if "supervision" in content else "distillation"


def recipe_summary(file: Path) -> str:
    """First comment line of a recipe."""
    with file.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("#").strip()


def _folder() -> Path:
    return Path(str(files("pcseg_core"))) / "recipes"
