# SPDX-License-Identifier: Apache-2.0
"""Import masks of other programs (SEEM, X-Decoder, OpenSeeD, ...) as superpixels.

Files have the names of their images, as written by `pcseg superpixels --images`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.vision.superpixels import SegmentMap, resize, tidy

SUFFIXES = (".npz", ".npy", ".png")
ASPECT_TOLERANCE = 0.02
_COCO_VOID = 0


class ImportedMasks:
    """Masks of a folder, one file per image.

    Formats, by suffix:
        npz: `ids` (H, W) integers, negative for none; optional `classes` (max id + 1,).
        npy: (H, W) integers, negative for none.
        png: 8 or 16 bit gray, or RGB with id = R + 256 G + 65536 B as in COCO panoptic; 0 for none.
            With a JSON of the same name, only listed ids are segments, and their categories become
            the classes. The JSON is a list of segments (`id`, `category_id`), or an object with
            such a list under "segments_info".
        COCO panoptic: PNGs as above, and one JSON in the folder with "annotations" of
            "file_name" and "segments_info".

    Args:
        folder: of the files.
        min_area: segments of fewer pixels are dropped [px].

    Raises:
        InputError: no such folder, or it holds no masks or a damaged JSON.
    """

    name = "import"

    def __init__(self, folder: Path, min_area: int = 1) -> None:
        self.folder = Path(folder)
        self.min_area = min_area
        files = sorted(p for p in self.folder.glob("*") if p.suffix in (*SUFFIXES, ".json"))
        if not any(p.suffix in SUFFIXES for p in files):
            raise InputError(f"{folder}: no masks ({', '.join(SUFFIXES)}) in it")
        self._coco = _coco_segments([p for p in files if p.suffix == ".json"])
        content = "\n".join(f"{p.name} {p.stat().st_size}" for p in files)
        self.parameters: dict[str, Any] = {
            "files": hashlib.sha256(content.encode()).hexdigest(),
            "min_area": min_area,
        }

    def find(self, stem: str) -> Path:
        """The mask file of an image.

        Raises:
            InputError: no such file.
        """
        for suffix in SUFFIXES:
            path = self.folder / f"{stem}{suffix}"
            if path.is_file():
                return path
        raise InputError(f"{self.folder}: no mask {stem}.png (or {', '.join(SUFFIXES[:2])})")

    def read(self, stem: str, height: int, width: int) -> SegmentMap:
        """The segments of an image at its size.

        Raises:
            InputError: no mask of that name, a damaged one, ids that have wrapped, or another shape
                than that of the image.
        """
        path = self.find(stem)
        ids, classes = self._raw(path)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or ids.size == 0:
            raise InputError(f"{path}: {ids.dtype} of shape {ids.shape}; expected (H, W) integers")
        aspect = (ids.shape[1] / ids.shape[0]) / (width / height)
        if abs(aspect - 1) > ASPECT_TOLERANCE:
            raise InputError(
                f"{path}: {ids.shape[1]} x {ids.shape[0]} pixels, of an image of {width} x "
                f"{height}; expected the same shape, at any size"
            )
        segments = resize(tidy(ids, classes), height, width)
        return tidy(segments.ids, segments.classes, self.min_area, small="ignore")

    def _raw(self, path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.int16] | None]:
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as stored:
                    classes = stored["classes"] if "classes" in stored.files else None
                    return stored["ids"], classes
            if path.suffix == ".npy":
                return np.load(path, allow_pickle=False), None
            return _read_png(path, self._segments(path))
        except InputError:
            raise
        except Exception as error:  # decoders raise various errors
            raise InputError(f"{path}: not readable as a mask ({error})") from error

    def _segments(self, path: Path) -> dict[int, int] | None:
        if not self._coco:
            return _listed(path.with_suffix(".json"))
        if path.stem not in self._coco:
            raise InputError(f"{path}: not among the annotations of the panoptic JSON")
        return self._coco[path.stem]


def _read_png(
    path: Path, listed: Mapping[int, int] | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16] | None]:
    """Ids of a PNG (IGNORE for 0 or unlisted ids), and classes by id if they are listed."""
    with Image.open(path) as picture:
        deep = picture.mode.startswith("I")
        raw = np.asarray(picture.convert("RGB") if picture.mode == "RGBA" else picture)
    if raw.ndim == 3:
        raw = raw.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    elif not deep and raw.max(initial=0) == 255 and (listed is None or 255 not in listed):
        raise InputError(
            f"{path}: an 8 bit mask whose ids reach 255, so that more segments would have wrapped; "
            "write 16 bit, or a JSON that lists the segments"
        )
    ids = raw.astype(np.int32)
    if listed is None:
        return np.where(ids == _COCO_VOID, IGNORE, ids), None
    known = sorted(listed)
    classes = np.full(max(known, default=0) + 1, IGNORE, np.int16)
    classes[known] = [listed[number] for number in known]
    return np.where(np.isin(ids, known), ids, IGNORE), classes


def _listed(path: Path) -> dict[int, int] | None:
    """Category by segment id of one image's JSON; None without one."""
    if not path.is_file():
        return None
    content = _json(path)
    segments = content.get("segments_info") if isinstance(content, dict) else content
    return _categories(segments, path)


def _coco_segments(files: Sequence[Path]) -> dict[str, dict[int, int]]:
    """Categories by image name of a COCO panoptic JSON; empty without one."""
    for path in files:
        if path.with_suffix(".png").is_file():
            continue  # the segments of one image
        content = _json(path)
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            return {
                Path(a["file_name"]).stem: _categories(a.get("segments_info"), path)
                for a in content["annotations"]
            }
    return {}


def _categories(segments: Any, path: Path) -> dict[int, int]:
    limit = np.iinfo(np.int16).max
    try:
        found = {int(s["id"]): int(s.get("category_id", IGNORE)) for s in segments}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: expected a list of segments with 'id' ({error!r})") from None
    for number, category in found.items():
        if number < 0 or not IGNORE <= category <= limit:
            raise InputError(f"{path}: segment {number} of category {category} is out of range")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
