# SPDX-License-Identifier: Apache-2.0
"""Images of recordings as files, with a list that identifies each of them by its pixels."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pcseg_core.data import Recording, readable
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path, write_atomic
from pcseg_core.vision.image_cache import image_key, image_stem

LIST = "images.csv"
IMAGES = "images"


@dataclass(frozen=True)
class ListedImage:
    """One image of a list.

    Attributes:
        file: name of its files without suffix.
        recording: name of the recording.
        camera: name of the camera.
        stamp_ns: of the image.
        width, height: [px].
        sha256: of its size and pixels, see `pixels_checksum`.
    """

    file: str
    recording: str
    camera: str
    stamp_ns: int
    width: int
    height: int
    sha256: str


def pixels_checksum(image: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of the size and the pixels of an (H, W, 3) image."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def read_list(folder: Path) -> dict[str, ListedImage]:
    """The images of a folder of `export_images`, by the checksum of their pixels.

    Raises:
        InputError: the folder has no list, or a damaged one.
    """
    path = folder / LIST
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        images = [
            ListedImage(
                row["file"],
                row["recording"],
                row["camera"],
                int(row["stamp_ns"]),
                int(row["width"]),
                int(row["height"]),
                row["sha256"],
            )
            for row in rows
        ]
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no {LIST}; make it with `pcseg images RECORDING --out {folder}`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of images ({error!r}); make it again") from None
    return {image.sha256: image for image in images}


_COLUMNS = [f.name for f in fields(ListedImage)]


def export_images(
    recording: Recording, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Counter[str]:
    """Write images/FILE.png of every image of a recording, and add them to images.csv.

    Interrupted calls resume: make the same call again. Several recordings share a folder.

    Args:
        recording: recording with cameras.
        folder: new, or with such a list.
        progress: called with (samples done, samples in all).

    Returns:
        Number of images "made", "kept" (already there), and skipped by reason.

    Raises:
        InputError: the folder has a damaged list.
    """
    listed = read_list(folder) if (folder / LIST).is_file() else {}
    counts: Counter[str] = Counter()
    for index, sample in readable(recording):
        for k, frame in enumerate(sample.cameras):
            try:
                pixels = frame.image
            except InputError as error:
                counts[f"skipped: {error}"] += 1
                continue
            stem = image_stem(recording.name, image_key(sample, k))
            height, width = pixels.shape[:2]
            entry = ListedImage(
                stem,
                recording.name,
                frame.name,
                frame.stamp_ns,
                width,
                height,
                pixels_checksum(pixels),
            )
            path = folder / IMAGES / f"{stem}.png"
            counts["kept" if path.is_file() else "made"] += 1
            if not path.is_file():
                with atomic_path(path) as temporary:
                    Image.fromarray(pixels).save(temporary)
            listed.setdefault(entry.sha256, entry)
        if progress is not None:
            progress(index + 1, len(recording))
    _write_list(folder, listed)
    return counts


def _write_list(folder: Path, listed: dict[str, ListedImage]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(image) for image in listed.values())
    write_atomic(folder / LIST, text.getvalue())
