# SPDX-License-Identifier: Apache-2.0
"""Networks that come with the package (trained on simulated drives), and files named by users."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from pcseg_core.errors import InputError

BUNDLED = "bundled"
"""In place of a checkpoint's path: the one that comes with the package."""

WEIGHTS_VARIABLE = "PCSEG_WEIGHTS"
"""Environment variable: folders with weights of image networks, separated by ":"."""

_CHECKPOINT = "street"
_SUFFIX = ".safetensors"


def bundled_file(path: str | Path) -> Path | None:
    """File that "bundled" (the checkpoint) or "bundled:NAME" stands for; None for other paths.

    Raises:
        InputError: nothing of that name comes with the package.
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


def find_file(path: str | Path, base: Path | None = None) -> Path:
    """Absolute path of a file that a recipe or a parameter names.

    Args:
        path: "bundled:NAME" is a file of the package. A relative path is looked up in `base`, in
            the current folder and in the folders of the environment variable PCSEG_WEIGHTS.
        base: folder of the file that names it.

    Raises:
        InputError: no such file; the message lists where it was looked for.
    """
    known = bundled_file(path)
    if known is not None:
        return known
    given = Path(path).expanduser()
    folders = [Path(f) for f in os.environ.get(WEIGHTS_VARIABLE, "").split(os.pathsep) if f]
    places = [*([base] if base else []), Path(), *folders]
    candidates = list(dict.fromkeys((p.expanduser() / given).resolve() for p in places))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = ", ".join(map(str, candidates))
    raise InputError(
        f"{path}: no such file, looked for {looked}; put it there, or set {WEIGHTS_VARIABLE} to "
        "the folder that holds it (`pcseg recipe show NAME` says where to get files of a recipe)"
    )
