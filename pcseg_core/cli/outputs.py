# SPDX-License-Identifier: Apache-2.0
"""Output of commands: checks of paths before long work, and the console for results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcseg_core.errors import InputError
from pcseg_core.files import STDOUT, is_special, write_atomic

if TYPE_CHECKING:
    from rich.console import Console

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


def check_file(path: Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Check that an output file can be written.

    Raises:
        InputError: the path is a folder, its folder is not writable, or the suffix is unknown.
    """
    if path is None or is_special(path) or (str(path) == STDOUT and ".json" in suffixes):
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of a file")
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: cannot write '{path.suffix}'; expected {', '.join(suffixes)}")
    existing = next(p for p in path.absolute().parents if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"cannot write {path}: no permission to write in {existing}")


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the figures of a command as JSON, if the user asked for it."""
    if path is not None:
        write_atomic(path, json.dumps(content, indent=1) + "\n")


def text_console(json_: Path | None) -> Console:
    """Console for results as text: stderr where the JSON goes to the standard output."""
    from rich.console import Console

    return Console(stderr=str(json_) == STDOUT)
