# SPDX-License-Identifier: Apache-2.0
"""What was computed from images, kept on disk: one file per image, one manifest per folder.

The manifest tells what made the files and from which parameters, and its hash changes with them,
so that a folder never mixes results of different making.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pcseg_core.data import Recording, Sample, readable
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path, write_atomic
from pcseg_core.vision.imported import ImportedMasks
from pcseg_core.vision.pixel_features import PixelFeatures
from pcseg_core.vision.superpixels import SegmentMap, SuperpixelGenerator

MANIFEST = "manifest.json"
T = TypeVar("T")
Image = npt.NDArray[np.uint8]
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class Maker(Protocol):
    """What all generators and encoders tell of themselves."""

    name: str
    parameters: dict[str, Any]


def image_key(sample: Sample, k: int) -> str:
    """What tells the image of camera `k` from all others of its drive."""
    frame = sample.cameras[k]
    return f"{sample.name}/{frame.name}@{frame.stamp_ns}"


def image_stem(source: str, image: str) -> str:
    """File name, without suffix, of what belongs to an image: safe everywhere, and its own."""
    digest = hashlib.sha256(f"{source}\n{image}".encode()).hexdigest()[:8]
    return f"{_slug(image)}-{digest}"


class ImageCache(ABC, Generic[T]):
    """A folder of results, one per image.

    Files lie at `folder/SOURCE/IMAGE-XXXXXXXX.SUFFIX`: names made safe for any file system, told
    apart by a checksum of the true names. Each is written whole or not at all, so that a stopped
    run goes on where it was and several processes may fill one folder.

    Attributes:
        manifest: what made the files: "format", "generator", "parameters", "hash".
        can_make: whether missing results can be made, not only read.
        damaged: number of unreadable files that were made anew.
    """

    kind: str
    suffix: str

    def __init__(self, folder: Path, maker: Maker | None) -> None:
        self.folder = Path(folder)
        self.damaged = 0
        self.can_make = maker is not None
        stored = self.folder / MANIFEST
        if maker is None:
            self.manifest = self._read_manifest(stored)
            return
        self.manifest = manifest(self.kind, maker.name, maker.parameters)
        if stored.is_file():
            self._compare(self._read_manifest(stored))
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(
                f"{folder} is not empty and holds no {self.kind}; choose another folder"
            )
        else:
            write_atomic(stored, json.dumps(self.manifest, indent=2) + "\n")

    def path(self, source: str, image: str) -> Path:
        """Where the result of an image is kept.

        Args:
            source: name of the drive (`Recording.name`).
            image: name of the image within it, see `image_key`.
        """
        return self.folder / _slug(source) / f"{image_stem(source, image)}{self.suffix}"

    def read(self, source: str, image: str) -> T:
        """A result that was made before.

        Raises:
            InputError: there is none, or its file is damaged.
        """
        path = self.path(source, image)
        if not path.is_file():
            raise InputError(
                f"{self.folder}: no {self.kind} of image {image} of {source}; make them first"
            )
        try:
            return self._load(path)
        except _DAMAGE as error:
            raise InputError(f"{path}: damaged ({error}); delete it and make it anew") from error

    def write(self, source: str, image: str, value: T) -> None:
        """Keep a result, replacing an older one."""
        with atomic_path(self.path(source, image)) as temporary:
            self._save(temporary, value)

    def get(self, source: str, image: str, load: Callable[[], Image]) -> T:
        """The kept result, or a new one; `load` gives the image only if it is needed.

        Raises:
            InputError: nothing is kept and this cache only reads, or the image is unusable.
        """
        path = self.path(source, image)
        if path.is_file() or not self.can_make:
            try:
                return self.read(source, image)
            except InputError:
                if not self.can_make:
                    raise
                self.damaged += 1
        value = self._make(load(), path.stem)
        self.write(source, image, value)
        return value

    def fill(
        self, recording: Recording, progress: Callable[[int, int], None] | None = None
    ) -> Counter[str]:
        """Make what is missing for all images of a drive.

        Args:
            recording: recording with cameras.
            progress: called with (samples done, samples in all).

        Returns:
            How many images were "made" and already "kept", and how many were skipped for which
            reason. An unusable image is counted, not fatal.
        """
        counts: Counter[str] = Counter()
        for index, sample in readable(recording):
            for k, frame in enumerate(sample.cameras):
                load = partial(getattr, frame, "image")
                counts[self._fill_one(recording.name, image_key(sample, k), load)] += 1
            if progress is not None:
                progress(index + 1, len(recording))
        return counts

    def _fill_one(self, source: str, image: str, load: Callable[[], Image]) -> str:
        path = self.path(source, image)
        if path.is_file():
            return "kept"
        try:
            self.write(source, image, self._make(load(), path.stem))
        except InputError as error:
            return f"skipped: {error}"
        return "made"

    def _read_manifest(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            expected = manifest(self.kind, content["generator"], content["parameters"])
        except FileNotFoundError:
            raise InputError(f"{self.folder}: no {MANIFEST}, so no folder of {self.kind}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a manifest of {self.kind} ({error})") from error
        if content != expected:
            raise InputError(f"{path}: not a manifest of {self.kind}, or edited by hand")
        return expected

    def _compare(self, stored: dict[str, Any]) -> None:
        if stored == self.manifest:
            return
        old = {"generator": stored["generator"], **stored["parameters"]}
        new = {"generator": self.manifest["generator"], **self.manifest["parameters"]}
        differing = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
        told = ", ".join(f"{k}: {old.get(k)} there, {new.get(k)} here" for k in differing)
        raise InputError(
            f"{self.folder} holds {self.kind} of another making ({told}); choose another folder or "
            "remove this one"
        )

    @abstractmethod
    def _make(self, image: Image, stem: str) -> T:
        """Result of an image whose file is named `stem`."""

    @abstractmethod
    def _save(self, path: Path, value: T) -> None: ...

    @abstractmethod
    def _load(self, path: Path) -> T: ...


class SuperpixelCache(ImageCache[SegmentMap]):
    """Superpixel maps on disk.

    Each map is an npz of `ids` ((H, W) int32, IGNORE = -1) and, where segments have classes,
    `classes` ((S,) int16). Whatever writes this format is a generator.

    Args:
        folder: where the maps are; made where it is missing.
        generator: makes missing maps; None reads a folder that was filled before.

    Raises:
        InputError: the folder holds maps of another generator or parameters, or something else;
            without a generator: it holds no maps.
    """

    kind = "superpixels"
    suffix = ".npz"

    def __init__(
        self, folder: Path, generator: SuperpixelGenerator | ImportedMasks | None = None
    ) -> None:
        self.generator = generator
        super().__init__(folder, generator)

    def _make(self, image: Image, stem: str) -> SegmentMap:
        assert self.generator is not None
        if isinstance(self.generator, ImportedMasks):
            return self.generator.read(stem, *image.shape[:2])
        return self.generator.segment(image)

    def _save(self, path: Path, value: SegmentMap) -> None:
        value.check(path.name)
        arrays: dict[str, Any] = {"ids": value.ids}
        if value.classes is not None:
            arrays["classes"] = value.classes.astype(np.int16)
        np.savez_compressed(path, **arrays)

    def _load(self, path: Path) -> SegmentMap:
        with np.load(path, allow_pickle=False) as stored:
            classes = stored["classes"] if "classes" in stored.files else None
            return SegmentMap(stored["ids"], classes)


class FeatureCache(ImageCache[npt.NDArray[np.float16]]):
    """Features of images on disk, (D, h, w) float16 as npy.

    A map takes 2 D h w bytes: 1.8 MB for a 1242x375 image at stride 14 with 384 channels, 120 MB
    at stride 4 with 2048.

    Args:
        folder: where the maps are; made where it is missing.
        encoder: makes missing maps; None reads a folder that was filled before.

    Raises:
        InputError: see SuperpixelCache.
    """

    kind = "pixel features"
    suffix = ".npy"

    def __init__(self, folder: Path, encoder: PixelFeatures | None = None) -> None:
        self.encoder = encoder
        super().__init__(folder, encoder)

    def _make(self, image: Image, stem: str) -> npt.NDArray[np.float16]:
        assert self.encoder is not None
        limit = float(np.finfo(np.float16).max)
        return np.clip(self.encoder.features(image), -limit, limit).astype(np.float16)

    def _save(self, path: Path, value: npt.NDArray[np.float16]) -> None:
        np.save(path, value, allow_pickle=False)

    def _load(self, path: Path) -> npt.NDArray[np.float16]:
        values: npt.NDArray[np.float16] = np.load(path, allow_pickle=False)
        return values


def manifest(kind: str, generator: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """What a folder says of its content."""
    content = {"format": f"pcseg {kind} 1", "generator": generator, "parameters": parameters}
    content = json.loads(json.dumps(content))  # tuples become lists, as they will when read back
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "hash": digest}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".")[-120:] or "_"
