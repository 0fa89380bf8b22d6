# SPDX-License-Identifier: Apache-2.0
"""A teacher of class maps that another program made, one file per image."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from pcseg_core.bundled import find_file
from pcseg_core.errors import InputError
from pcseg_core.vision.class_names import read_names
from pcseg_core.vision.image_list import LIST, pixels_checksum, read_list
from pcseg_core.vision.named_classes import NamedClasses, NamedConfig, named_classes
from pcseg_core.vision.registry import Kind, LocatedPath, checksum

MAPS = "maps"
NAMES = ("names.txt", "names.yaml", "names.json")
ASPECT_TOLERANCE = 0.02
_NO_CLASS = (255, 65535)  # in PNGs of 8 and 16 bits
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class FolderConfig(NamedConfig):
    """Class maps of a folder."""

    name: Literal["folder"] = "folder"
    path: Annotated[Path, LocatedPath()] = Field(
        description="Folder of `pcseg images RECORDING --out FOLDER`, with the class maps in maps/"
    )
    names: tuple[str, ...] | None = Field(
        None,
        description="Class names in the order of the ids; default: names.txt (one per line), "
        "names.yaml or names.json of the folder",
    )

    @property
    def identity(self) -> dict[str, Any]:
        """See `KindConfig`; the images themselves do not count."""
        folder = find_file(self.path, Path())
        used = [folder / MAPS, folder / LIST, *(folder / name for name in NAMES)]
        settings = self.model_copy(update={"path": folder / LIST})
        sums = [checksum(path) for path in used if path.exists()]
        return super(FolderConfig, settings).identity | {"path": sums}


class FolderMaps:
    """Class maps of a folder; a `NamedSource`.

    Each image has a file of its name in maps/:
        png: (h, w) ids of classes, gray or palette, 8 or 16 bit; the highest value (255 or 65535)
            is no class.
        npz: `probabilities` (C, h, w), or `ids` (h, w) integers, negative for no class.

    Args:
        folder: with images.csv and maps/.
        names: of the classes; None reads them from the folder.

    Raises:
        InputError: no list, no maps or no names in the folder.
    """

    def __init__(self, folder: Path, names: tuple[str, ...] | None = None) -> None:
        self.folder = folder
        self.listed = read_list(folder)
        if not (folder / MAPS).is_dir():
            raise InputError(
                f"{folder}: no folder {MAPS}/; expected a class map {MAPS}/NAME.png or NAME.npz "
                "for each images/NAME.png"
            )
        self.all_names = names or read_names(self._names_file())
        self.ids = np.flatnonzero([bool(name) for name in self.all_names])
        self.names = tuple(name for name in self.all_names if name)

    def _names_file(self) -> Path:
        found = [self.folder / name for name in NAMES if (self.folder / name).is_file()]
        if not found:
            raise InputError(
                f"{self.folder}: no class names; write {NAMES[0]} with one name per line, in the "
                "order of the ids, or give 'names'"
            )
        return found[0]

    def probabilities(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `NamedSource`.

        Raises:
            InputError: the image is not listed, or its map is missing, damaged, of another shape
                or has unknown ids.
        """
        entry = self.listed.get(pixels_checksum(image))
        height, width = image.shape[:2]
        if entry is None:
            raise InputError(
                f"an image of {width} x {height} is not in {self.folder / LIST}; write it with "
                f"`pcseg images RECORDING --out {self.folder}` from the same recording"
            )
        path = self._file(entry.file)
        found = self._read(path)
        aspect = (found.shape[2] / found.shape[1]) / (width / height)
        if abs(aspect - 1) > ASPECT_TOLERANCE:
            raise InputError(
                f"{path}: a map of {found.shape[2]} x {found.shape[1]} for an image of {width} x "
                f"{height}; expected the same shape, at any size"
            )
        return found

    def _file(self, stem: str) -> Path:
        for suffix in (".npz", ".png"):
            path = self.folder / MAPS / f"{stem}{suffix}"
            if path.is_file():
                return path
        raise InputError(f"{self.folder / MAPS}: no class map {stem}.png or {stem}.npz")

    def _read(self, path: Path) -> npt.NDArray[np.float32]:
        try:
            if path.suffix == ".png":
                return self._one_hot(*_read_png(path), path)
            with np.load(path, allow_pickle=False) as stored:
                if "probabilities" not in stored.files:
                    return self._one_hot(stored["ids"], None, path)
                values: npt.NDArray[np.float32] = stored["probabilities"].astype(np.float32)
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(f"{path}: not readable as a class map ({error})") from error
        if values.ndim != 3 or len(values) != len(self.all_names) or values.size == 0:
            raise InputError(
                f"{path}: probabilities of shape {values.shape}; expected "
                f"({len(self.all_names)}, h, w), one map per class name"
            )
        return values if len(self.ids) == len(values) else values[self.ids]

    def _one_hot(
        self, ids: npt.NDArray[Any], none: int | None, path: Path
    ) -> npt.NDArray[np.float32]:
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or ids.size == 0:
            raise InputError(f"{path}: {ids.dtype} of shape {ids.shape}; expected (h, w) ids")
        present = np.unique(ids)
        unknown = present[(present >= 0) & (present != none) & ~np.isin(present, self.ids)]
        if len(unknown):
            raise InputError(
                f"{path}: ids {', '.join(map(str, unknown[:10]))} have no class name; "
                f"{len(self.all_names)} are given"
            )
        one_hot: npt.NDArray[np.float32] = ids[None] == self.ids[:, None, None]
        return one_hot.astype(np.float32)


def _read_png(path: Path) -> tuple[npt.NDArray[Any], int]:
    """(h, w) ids, and the value without a class."""
    with Image.open(path) as picture:
        if picture.mode not in ("L", "P", "1") and not picture.mode.startswith("I"):
            raise InputError(
                f"{path}: a picture with colors ({picture.mode}); expected ids of classes, gray or "
                "palette"
            )
        deep = picture.mode.startswith("I")
        return np.asarray(picture).astype(np.int32), _NO_CLASS[deep]


def _load(config: FolderConfig, device: str) -> NamedClasses:
    return named_classes(FolderMaps(config.path, config.names), config, f"folder {config.path}")


KIND = Kind(FolderConfig, _load, "class maps that any program wrote, one per image")
