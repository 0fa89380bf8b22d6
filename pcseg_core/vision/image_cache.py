# SPDX-License-Identifier: Apache-2.0
"""Superpixel maps on disk: one file per image, one manifest per folder.

The manifest holds the generator, its parameters and their hash. A folder therefore never mixes
maps of different generators or parameters.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core import copies
from pcseg_core.data import Recording, Sample, readable
from pcseg_core.errors import InputError, may_pass
from pcseg_core.files import is_unused
from pcseg_core.vision.imported import ImportedMasks
from pcseg_core.vision.superpixels import SegmentMap, SuperpixelGenerator

MANIFEST = "manifest.json"
Image = npt.NDArray[np.uint8]
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def image_key(sample: Sample, k: int) -> str:
    """Name of the image of camera `k`, unique within its recording."""
    frame = sample.cameras[k]
    return f"{sample.name}/{frame.name}@{frame.stamp_ns}"


def image_stem(source: str, image: str) -> str:
    """File name of an image's map without suffix, valid on every file system and unique."""
    digest = hashlib.sha256(f"{source}\n{image}".encode()).hexdigest()[:8]
    return f"{_slug(image)}-{digest}"


class SuperpixelCache:
    """A folder of superpixel maps.

    Maps are npz files `folder/SOURCE/IMAGE-XXXXXXXX.npz` with `ids` ((H, W) int32, IGNORE = -1)
    and, where segments have classes, `classes` ((S,) int16). Names are made safe for any file
    system; the checksum keeps them unique. Files are written atomically: an interrupted run
    resumes, and several processes may fill one folder. Any program that writes this format is a
    generator.

    Attributes:
        folder: where the maps are.
        generator: makes missing maps; None for a cache that only reads.
        manifest: "format", "generator", "parameters", "hash".
        damaged: number of unreadable files that were replaced.
    """

    def __init__(
        self, folder: Path, generator: SuperpixelGenerator | ImportedMasks | None = None
    ) -> None:
        """Open or create a folder.

        Args:
            folder: where the maps are; created if it is missing.
            generator: makes missing maps; None reads a folder that was filled before.

        Raises:
            InputError: the folder holds maps of another generator or other parameters, or other
                files; without a generator: it holds no maps.
        """
        self.folder = Path(folder)
        self.generator = generator
        self.damaged = 0
        stored = self.folder / MANIFEST
        if generator is None:
            self.manifest = self._read_manifest(stored)
            return
        self.manifest = _manifest(generator.name, generator.parameters)
        if copies.is_here(stored):
            self._compare(self._read_manifest(stored))
        elif self.folder.is_dir() and not is_unused(self.folder, MANIFEST):
            raise InputError(f"{folder} is not empty and holds no superpixels; choose another")
        else:
            with copies.writing(stored) as temporary:
                temporary.write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")

    def path(self, source: str, image: str) -> Path:
        """File of the map of an image.

        Args:
            source: name of the recording (`Recording.name`).
            image: name of the image within it, see `image_key`.
        """
        return self.folder / _slug(source) / f"{image_stem(source, image)}.npz"

    def read(self, source: str, image: str) -> SegmentMap:
        """A stored map.

        Raises:
            InputError: no map of this image, or its file is damaged.
        """
        path = self.path(source, image)
        if not copies.is_here(path):
            raise InputError(
                f"{self.folder}: no superpixels of image {image} of {source}; make them first"
            )
        try:
            with np.load(path, allow_pickle=False) as stored:
                classes = stored["classes"] if "classes" in stored.files else None
                return SegmentMap(stored["ids"], classes)
        except _DAMAGE as error:
            raise InputError(f"{path}: damaged ({error}); delete it and make it again") from error

    def write(self, source: str, image: str, value: SegmentMap) -> None:
        """Store a map, replacing an older one."""
        value.check(self.path(source, image).name)
        arrays: dict[str, Any] = {"ids": value.ids}
        if value.classes is not None:
            arrays["classes"] = value.classes.astype(np.int16)
        with copies.writing(self.path(source, image)) as temporary:
            np.savez_compressed(temporary, **arrays)

    def get(self, source: str, image: str, load: Callable[[], Image]) -> SegmentMap:
        """The stored map, or a new one; `load` returns the image and is called only if needed.

        Raises:
            InputError: no stored map and no generator, or the image is unusable.
        """
        path = self.path(source, image)
        if copies.exists(path) or self.generator is None:
            try:
                return self.read(source, image)
            except InputError:
                if self.generator is None:
                    raise
                self.damaged += 1
        value = self._make(load(), path.stem)
        self.write(source, image, value)
        return value

    def fill(
        self,
        recording: Recording,
        progress: Callable[[int, int], None] | None = None,
        sweeps: Iterable[int] | None = None,
    ) -> Counter[str]:
        """Make the missing maps of all images of a recording.

        Args:
            recording: recording with cameras.
            progress: called with (samples done, samples in all).
            sweeps: indices of the samples; None takes all.

        Returns:
            Number of images "made", "kept" (already stored), and skipped by reason. An unusable
            image is counted; it is not an error.
        """
        counts: Counter[str] = Counter()
        for index, sample in readable(recording, sweeps):
            for k, frame in enumerate(sample.cameras):
                load = partial(getattr, frame, "image")
                counts[self._fill_one(recording.name, image_key(sample, k), load)] += 1
            if progress is not None:
                progress(index + 1, len(recording))
        return counts

    def _fill_one(self, source: str, image: str, load: Callable[[], Image]) -> str:
        path = self.path(source, image)
        if copies.exists(path):
            return "kept"
        try:
            self.write(source, image, self._make(load(), path.stem))
        except InputError as error:
            if may_pass(error):
                raise
            return f"skipped: {error}"
        return "made"

    def _make(self, image: Image, stem: str) -> SegmentMap:
        """Map of an image whose file is named `stem`."""
        assert self.generator is not None
        if isinstance(self.generator, ImportedMasks):
            return self.generator.read(stem, *image.shape[:2])
        return self.generator.segment(image)

    def _read_manifest(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            expected = _manifest(content["generator"], content["parameters"])
        except FileNotFoundError:
            raise InputError(f"{self.folder}: no {MANIFEST}, so no folder of superpixels") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a manifest of superpixels ({error})") from error
        if content != expected:
            raise InputError(f"{path}: not a manifest of superpixels, or edited by hand")
        return expected

    def _compare(self, stored: dict[str, Any]) -> None:
        if stored == self.manifest:
            return
        old = {"generator": stored["generator"], **stored["parameters"]}
        new = {"generator": self.manifest["generator"], **self.manifest["parameters"]}
        differing = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
        told = ", ".join(f"{k}: {old.get(k)} there, {new.get(k)} here" for k in differing)
        raise InputError(
            f"{self.folder} holds superpixels of another generator or other parameters ({told}); "
            "choose another folder or remove this one"
        )


def _manifest(generator: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Content of the manifest of a folder."""
    content = {"format": "pcseg superpixels 1", "generator": generator, "parameters": parameters}
    content = json.loads(json.dumps(content))  # tuples become lists, as when read from a file
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "hash": digest}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".")[-120:] or "_"
