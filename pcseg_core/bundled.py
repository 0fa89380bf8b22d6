# SPDX-License-Identifier: Apache-2.0
"""Networks that come with the package, all trained on simulated drives alone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pcseg_core.errors import InputError

BUNDLED = "bundled"
"""In place of a checkpoint's path: the one that comes with the package."""

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
