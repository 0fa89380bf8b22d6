# SPDX-License-Identifier: Apache-2.0
"""Model files by name: networks shipped with the package, and weights that a recipe refers to."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from pcseg_core.errors import InputError
from pcseg_core.known_weights import KNOWN, WEIGHTS_VARIABLE, known_file, weights_folders

__all__ = ["BUNDLED", "WEIGHTS_VARIABLE", "bundled_file", "find_file"]

BUNDLED = "bundled"
"""Use in place of a path: the checkpoint shipped with the package."""

_CHECKPOINT = "street"
_SUFFIX = ".safetensors"


def bundled_file(path: str | Path) -> Path | None:
    """File that "bundled" (the checkpoint) or "bundled:NAME" stands for; None for other paths.

    Raises:
        InputError: the package ships no file of that name.
    """
    word, _, name = str(path).partition(":")
    if word != BUNDLED:
        return None
    folder = Path(str(files("pcseg_core"))) / "checkpoints"
    file = folder / f"{name or _CHECKPOINT}{_SUFFIX}"
    if not file.is_file():
        known = ", ".join(sorted(f"{BUNDLED}:{p.stem}" for p in folder.glob(f"*{_SUFFIX}")))
        raise InputError(f"{path}: not with this package, which has: {known or 'none'}")
    return file


def find_file(path: str | Path, base: Path) -> Path:
    """Locate a file or folder that a configuration refers to, such as model weights.

    Args:
        path: "bundled:NAME", a name of `known_weights.KNOWN`, an absolute path, or a path relative
            to one of, in this order: `base`, the current folder, the folders in the environment
            variable PCSEG_WEIGHTS.
        base: folder of the configuration file.

    Returns:
        An absolute path that exists.

    Raises:
        InputError: no such file; the message lists the places that were searched.
    """
    if bundled := bundled_file(path):
        return bundled
    if str(path) in KNOWN:
        return known_file(str(path))
    wanted = Path(path).expanduser()
    folders = (base, Path.cwd(), *weights_folders())
    # Symbolic links stay: the name of a link tells the format of a file, its target's may not.
    places = [Path(os.path.abspath(folder / wanted)) for folder in folders]  # noqa: PTH100
    for place in places:
        if place.exists():
            return place
    searched = ", ".join(dict.fromkeys(map(str, places)))
    raise InputError(
        f"{path}: no such file; searched {searched}; set the environment variable "
        f"{WEIGHTS_VARIABLE} to the folder that holds it (several folders: separate them with "
        f"'{os.pathsep}')"
    )
