# SPDX-License-Identifier: Apache-2.0
"""Labels in the formats of labeling tools and data sets: one class per format."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from pcseg_core.data import readable
from pcseg_core.data.account import UNREADABLE
from pcseg_core.data.label_files import LABELS_FILE, label_paths
from pcseg_core.data.label_formats.clouds import LasExport, PcdExport
from pcseg_core.data.label_formats.nuscenes import NuScenesExport
from pcseg_core.data.label_formats.segments import SegmentsExport
from pcseg_core.data.label_formats.semantic_kitti import SemanticKittiExport
from pcseg_core.data.label_formats.sweep import ExportSweep
from pcseg_core.data.semantic_kitti import raw_id_table, read_labels
from pcseg_core.errors import InputError
from pcseg_core.files import FolderKind, check_new_folder, new_folder
from pcseg_core.labels import LabelSpace

if TYPE_CHECKING:
    from pcseg_core.data import Recording

MANIFEST = "export.json"
_VERSION = 1


class Exporter(Protocol):
    """Writes labeled sweeps into a folder, in one format."""

    def write(self, sweep: ExportSweep) -> str:
        """Write one sweep; path of the file with its labels, relative to the folder.

        Raises:
            InputError: the format cannot hold the sweep; nothing of it is written.
        """
        ...

    def finish(self) -> list[str]:
        """Write what describes all sweeps; notes for the user."""
        ...


FORMATS: dict[str, Callable[[Path, LabelSpace], Exporter]] = {
    "semantic-kitti": SemanticKittiExport,
    "nuscenes": NuScenesExport,
    "segments": SegmentsExport,
    "pcd": PcdExport,
    "las": LasExport,
}
_NEEDS_POSES = ("nuscenes",)


@dataclass
class Export:
    """Result of `export_labels`.

    Attributes:
        folder: the folder of the format.
        sweeps: number of sweeps in it.
        skipped: reason -> number of sweeps left out.
        notes: what the format could not hold.
    """

    folder: Path
    sweeps: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def check_export(recording: Recording, out: Path, format: str) -> None:
    """Make sure that labels can be exported to `out`/`format`, before the long work.

    Raises:
        InputError: no such format, `out`/`format` exists, or the recording lacks what it needs.
    """
    if format not in FORMATS:
        hint = "; CVAT holds boxes only, no labels of points" if format == "cvat" else ""
        raise InputError(f"no format '{format}'; expected one of {', '.join(FORMATS)}{hint}")
    if (out / format).exists():
        raise InputError(
            f"{out / format} exists, and its labels may have been corrected; move it away to "
            "export them again"
        )
    check_new_folder(out / format, _kind(format), force=False)
    if format in _NEEDS_POSES and recording.pose_source == "none":
        raise InputError(
            f"{recording.name}: no poses, which the format {format} needs; record /tf or odometry, "
            "or choose another format"
        )


def export_labels(
    recording: Recording,
    out: Path,
    format: str,
    progress: Callable[[int, int], None] | None = None,
    only: Collection[int] | None = None,
) -> Export:
    """Write the label files in `out` with their sweeps and images to `out`/`format`.

    Args:
        recording: the recording that the labels are of.
        out: folder of label files, as `label_paths` names them, with labels.yaml.
        format: one of `FORMATS`.
        progress: called with (sweeps done, sweeps in all).
        only: places of the sweeps to write; None for all.

    Raises:
        InputError: see `check_export`; a label file of another length than its sweep; or no sweep
            can be exported.
    """
    check_export(recording, out, format)
    space = LabelSpace.load(out / LABELS_FILE)
    ids, path_of = raw_id_table(space), label_paths(recording)
    result = Export(out / format)
    rows: list[dict[str, object]] = []
    before = Counter(recording.skipped)
    with new_folder(out / format, _kind(format), force=False) as folder:
        folder.mkdir()
        exporter = FORMATS[format](folder, space)
        wanted = sorted(only) if only is not None else range(len(recording))
        for done, (index, sample) in enumerate(readable(recording, wanted), start=1):
            name = path_of(sample, index)
            if (out / name).is_file():
                raw, _ = read_labels(out / name, len(sample.cloud))
                path = Path(name)
                place = (path.parent.parent / path.stem).as_posix()
                try:
                    written = exporter.write(ExportSweep(sample, ids[raw], place))
                except InputError as error:
                    result.skipped[str(error)] += 1
                    continue
                row = {"index": index, "scene": sample.scene, "sweep": sample.name}
                rows.append({**row, "labels": written, "digest": digest_of(ids[raw])})
            if progress:
                progress(done, len(wanted))
        unreadable = Counter(recording.skipped) - before
        result.skipped.update({k: n for k, n in unreadable.items() if k.startswith(UNREADABLE)})
        if not rows:
            reasons = "; ".join(result.skipped) or f"{out} holds no label file of it"
            raise InputError(f"{recording.name}: no sweep can be exported: {reasons}")
        result.notes, result.sweeps = exporter.finish(), len(rows)
        manifest = {
            "format": format,
            "version": _VERSION,
            "recording": recording.name,
            "label_space": space.to_dict(),
            "sweeps": rows,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return result


def digest_of(labels: npt.NDArray[np.integer]) -> str:
    """A text that changes with the labels (N,) of a sweep."""
    return hashlib.sha256(labels.astype("<i2").tobytes()).hexdigest()[:24]


def read_manifest(file: Path) -> dict[str, object]:
    """Content of the `export.json` of an export.

    Raises:
        InputError: not readable, or not written by `export_labels`.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise InputError(f"{file}: no export of labels of version {_VERSION}")
    return content


def _check_format(file: Path, format: str) -> None:
    if read_manifest(file).get("format") != format:
        raise InputError(f"{file}: not an export in the format {format}")


def _kind(format: str) -> FolderKind:
    check = partial(_check_format, format=format)
    return FolderKind(f"export in the format {format}", MANIFEST, check, ("*",))
