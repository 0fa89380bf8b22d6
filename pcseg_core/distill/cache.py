# SPDX-License-Identifier: Apache-2.0
"""Files of arrays: atomic, keyed by everything they depend on, large arrays mapped into memory.

In the copy of a folder at a URL, see `copies`, they also lie at the URL, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pcseg_core import copies
from pcseg_core.errors import InputError
from pcseg_core.files import slug

Array = npt.NDArray[Any]

_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_LOCAL_HEADER = 30  # bytes before the name of a member in a zip file


def digest(parts: Mapping[str, Any]) -> str:
    """16 hex digits that change with `parts`, which JSON must be able to write."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class MappedArray:
    """An array in a file. It is mapped into memory only while a part of it is read.

    No file stays open, so that thousands of arrays exist at a time.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        """A copy of the part that `key` selects, as numpy indexes."""
        try:
            mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except FileNotFoundError:  # it made room for others in the copy of a URL
            if not copies.is_here(self.path):
                raise
            mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return np.array(mapped[key])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return self[...].astype(self.dtype if dtype is None else dtype, copy=False)


Stored: TypeAlias = "Array | MappedArray"
"""An array in memory or on disk: indexing gives an array in memory."""


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an uncompressed npz atomically."""
    with copies.writing(path) as temporary, temporary.open("wb") as file:
        ordered: dict[str, Any] = {k: np.asarray(v, order="C") for k, v in arrays.items()}
        np.savez(file, **ordered)


def read_arrays(
    path: Path, mapped: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Arrays of a file of `write_arrays` by name.

    Args:
        path: the file.
        mapped: arrays whose name ends like one of these stay on disk, as `MappedArray`.
        only: names of the arrays that are read; all if not given.

    Raises:
        InputError: the file is missing or damaged. The values of mapped arrays are not verified.
    """
    copies.is_here(path)
    copies.used(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = stored.files if only is None else only
            kept = [name for name in names if mapped and name.endswith(mapped)]
            arrays = {name: stored[name] for name in names if name not in kept}
        return arrays | {name: _map(path, name) for name in kept}
    except _DAMAGE as error:
        raise InputError(
            f"{path}: damaged ({error}); remove it and run again to make it again"
        ) from None


def is_whole(path: Path) -> bool:
    """Whether a file of `write_arrays` exists and is not cut short.

    Files that are only at the URL of a copy are not fetched for it: they are whole.
    """
    if not path.is_file():
        return copies.exists(path)
    try:
        read_arrays(path, only=())
    except InputError:
        return False
    return True


def _map(path: Path, name: str) -> MappedArray:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        start = archive.getinfo(f"{name}.npy").header_offset
        file.seek(start)
        header = file.read(_LOCAL_HEADER)
        lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        file.seek(start + _LOCAL_HEADER + sum(lengths))
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if fortran:
            raise ValueError(f"{name} is stored by columns")
        return MappedArray(path, dtype, shape, file.tell())


class SweepCache:
    """Names the files of sweeps: folder/RECORDING-INDEX-KEY.npz.

    Args:
        folder: where the files are; several runs and processes may share it.
        identity: everything that the content of the files depends on, as JSON can write it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = dict(identity)

    def path(self, source: str, recording: str, index: int) -> Path:
        """File of one sweep.

        Args:
            source: what the recording was opened from; tells recordings of one name apart.
            recording: name of the recording.
            index: of the sweep in it.
        """
        key = digest({"source": source, **self.identity})
        return self.folder / f"{slug(recording)}-{index:06d}-{key}.npz"
