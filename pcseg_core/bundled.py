# SPDX-License-Identifier: Apache-2.0
"""Model files by name: shipped networks, checkpoints of runs, weights that a recipe refers to."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from pcseg_core.errors import InputError
from pcseg_core.fetched import fetched
from pcseg_core.known_weights import KNOWN, WEIGHTS_VARIABLE, known_file, weights_folders
from pcseg_core.storage import NotThere, as_url

__all__ = [
    "BUNDLED",
    "FILE_NAME",
    "WEIGHTS_VARIABLE",
    "bundled_file",
    "checkpoint_file",
    "find_file",
]

BUNDLED = "bundled"
"""Use in place of a path: the checkpoint shipped with the package."""

FILE_NAME = "checkpoint.safetensors"
"""Name of the checkpoint in a run directory."""

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


def checkpoint_file(path: str | Path) -> Path:
    """Resolve a checkpoint file, a run directory, "bundled", or the URL of one to a file.

    What is at a URL is fetched, unless the same version was fetched before.

    Raises:
        InputError: no checkpoint; or the storage refuses, see `storage.listing`.
    """
    if bundled := bundled_file(path):
        return bundled
    if url := as_url(path):
        return _fetched_checkpoint(url)
    path = Path(path).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        unfinished = path.is_dir() and (path / "recipe.yaml").is_file()
        hint = (
            "the run has not finished; run `pcseg distill` with the same --out to resume it"
            if unfinished
            else f"expected a run directory of `pcseg distill`, a {FILE_NAME} or '{BUNDLED}'"
        )
        raise InputError(f"no checkpoint at {path}: {hint}")
    return file


def _fetched_checkpoint(url: str) -> Path:
    place = url if url.endswith(_SUFFIX) else f"{url}/{FILE_NAME}"
    try:
        return fetched(place)
    except NotThere:
        raise InputError(
            f"no checkpoint at {url}: expected a run directory of `pcseg distill` that has "
            f"finished, or a file that ends with {_SUFFIX}"
        ) from None


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
    folders = (base, Path.cwd(), *weights_folders())
    try:
        wanted = Path(path).expanduser()
        # Symbolic links stay: the name of a link tells the format of a file, its target's may not.
        places = [Path(os.path.abspath(folder / wanted)) for folder in folders]  # noqa: PTH100
        for place in places:
            if place.exists():
                return place
    except (OSError, ValueError, RuntimeError) as error:  # too long, or no such user
        raise InputError(f"{str(path)[:200]}: cannot be the path of a file ({error})") from error
    searched = ", ".join(dict.fromkeys(map(str, places)))
    raise InputError(
        f"{path}: no such file; searched {searched}; set the environment variable "
        f"{WEIGHTS_VARIABLE} to the folder that holds it (several folders: separate them with "
        f"'{os.pathsep}')"
    )
