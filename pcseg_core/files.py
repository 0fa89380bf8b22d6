# SPDX-License-Identifier: Apache-2.0
"""Writing files and folders so that they appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pcseg_core.errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block writes a file, or makes a folder, at the path it is given, which does not exist
    yet and keeps the suffix of `path`. A file at `path` is replaced. When the block raises (also
    on Ctrl-C), what it wrote is removed and `path` stays as it was.

    Raises:
        InputError: the folder of `path` cannot be written, or `path` is a folder that is not
            empty, which is never replaced.
    """
    target = Path(path)
    folder = _temporary_folder(target)
    try:
        temporary = folder / target.name
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {target}")
        _replace(temporary, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, to `path`, whole or not at all."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def slug(name: str) -> str:
    """A name as part of a file name: what is not a letter, digit, - or _ becomes _."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _temporary_folder(target: Path) -> Path:
    """Make a hidden folder beside the target: the same file system, so that rename works."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; choose a path in a folder that "
            "you may write to"
        ) from error


def _replace(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)
    except OSError as error:
        raise InputError(
            f"cannot put the result at {target}: {error.strerror or error}; remove what is there "
            "or choose another path"
        ) from error
