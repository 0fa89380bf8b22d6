# SPDX-License-Identifier: Apache-2.0
"""Corrected labels that come back from labeling tools, by the sweeps that they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data import readable
from pcseg_core.data.label_files import LABELS_FILE, label_name, label_paths
from pcseg_core.data.label_formats import MANIFEST, digest_of, read_manifest
from pcseg_core.data.label_formats.clouds import read_pcd_field
from pcseg_core.data.sample import Sample
from pcseg_core.data.semantic_kitti import raw_id_table, read_labels
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace, grouping, regroup

if TYPE_CHECKING:
    from pcseg_core.data import Recording

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Correction:
    """Corrected labels of one sweep.

    Attributes:
        recording: key of its recording.
        index: place of the sweep in the recording.
        labels: (N,) class ids of the points of the sweep, IGNORE where nobody gave a class.
        finite: (N,) bool, the points that are returns.
    """

    recording: str
    index: int
    labels: Int64
    finite: npt.NDArray[np.bool_]


def read_corrections(
    folder: Path, recordings: Mapping[str, Recording], space: LabelSpace
) -> list[Correction]:
    """Corrected labels of sweeps of some recordings, with every file checked.

    In folders that `export_labels` wrote, the sweeps whose labels were changed since count. In
    any other folder all .label files count: SCENE/labels/NAME.label, labels/NAME.label or
    NAME.label, with the classes in labels.yaml, or those of SemanticKITTI.

    Args:
        folder: an export, a folder with exports in it or in its subfolders, or one of label files.
        recordings: by any key.
        space: label space of the result.

    Raises:
        InputError: a file of another length than its sweep, a number that is no class, classes
            without a group in `space`, a file without a sweep in `recordings`, or nothing is
            corrected.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected corrected labels")
    manifests = [
        found for depth in range(3) for found in sorted(folder.glob("*/" * depth + MANIFEST))
    ]
    if manifests:
        contents = {file: dict(read_manifest(file)) for file in manifests}
        usable = {file: c for file, c in contents.items() if c.get("format") in _READERS}
        if not usable:
            raise InputError(
                f"{manifests[0]}: corrections in the format {contents[manifests[0]].get('format')} "
                f"cannot be read; expected one of {', '.join(_READERS)}"
            )
        found = [one for item in usable.items() for one in _exported(*item, recordings, space)]
    else:
        found = list(_label_files(folder, recordings, space))
    if not found:
        raise InputError(f"{folder}: no labels in it were changed since they were exported")
    return found


def _exported(
    manifest: Path,
    content: Mapping[str, Any],
    recordings: Mapping[str, Recording],
    space: LabelSpace,
) -> Iterator[Correction]:
    """The changed sweeps of an export, which has this manifest."""
    format, name = str(content.get("format")), str(content.get("recording"))
    own = LabelSpace.from_dict(content["label_space"])
    groups = _groups(own, space, manifest)
    named = {key: recording for key, recording in recordings.items() if recording.name == name}
    for row in content["sweeps"]:
        file, _, frame = str(row["labels"]).partition("#")
        labels = _READERS[format](manifest.parent / file, int(frame or 0), own)
        if digest_of(labels) == row["digest"]:
            continue
        key, sample = _sample(named, row, f"{manifest.parent / file}", name)
        _check_count(labels, sample, f"{manifest.parent / file}")
        yield Correction(key, row["index"], regroup(labels, groups), sample.cloud.finite)


def _sample(
    recordings: Mapping[str, Recording], row: Mapping[str, Any], file: str, name: str
) -> tuple[str, Sample]:
    """The sweep of a row of a manifest, and the key of its recording."""
    for key, recording in recordings.items():
        if row["index"] < len(recording):
            sample = recording[row["index"]]
            if (sample.name, sample.scene) == (row["sweep"], row["scene"]):
                return key, sample
    raise InputError(
        f"{file}: corrects sweep {row['sweep']} of the recording {name}, which is not among the "
        "sources; give the recording that the labels were exported from"
    )


def _label_files(
    folder: Path, recordings: Mapping[str, Recording], space: LabelSpace
) -> Iterator[Correction]:
    """All label files of a folder, by the names of their sweeps."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.label")}
    if not files:
        raise InputError(f"{folder}: neither {MANIFEST} nor .label files in it")
    classes = folder / LABELS_FILE
    own = LabelSpace.load(classes if classes.is_file() else "semantic_kitti")
    groups = _groups(own, space, classes if classes.is_file() else folder)
    for key, recording in recordings.items():
        path_of = label_paths(recording)
        for index, sample in readable(recording):
            name = label_name(sample, index)
            places = (
                path_of(sample, index),
                f"{sample.scene}/labels/{name}.label",
                f"{name}.label",
            )
            place = next((place for place in places if place in files), None)
            if place is not None:
                raw, _ = read_labels(path := files.pop(place), len(sample.cloud))
                labels = _class_ids(raw, own, path)
                yield Correction(key, index, regroup(labels, groups), sample.cloud.finite)
            if not files:
                return
    if files:
        raise InputError(
            f"{next(iter(files.values()))}: no sweep of the sources has this name; expected names "
            "as `pcseg label` gives them"
        )


def _groups(own: LabelSpace, space: LabelSpace, file: Path) -> Int64:
    try:
        return grouping(own, space)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _check_count(labels: npt.NDArray[np.integer], sample: Sample, file: str) -> None:
    if len(labels) != len(sample.cloud):
        raise InputError(
            f"{file}: {len(labels)} labels for the {len(sample.cloud)} points of sweep "
            f"{sample.name}; keep the number and the order of the points"
        )


def _class_ids(raw: npt.NDArray[np.integer], space: LabelSpace, file: Path) -> Int64:
    """Class ids of the numbers of a file; raises InputError for a number that is no class."""
    known = np.array(sorted({0, *space.raw_to_id}))
    unknown = np.setdiff1d(raw, known)
    if len(unknown):
        shown = ", ".join(map(str, unknown[:5]))
        raise InputError(
            f"{file}: the numbers {shown} are no classes of {space.name}; expected 0 (none) or one "
            f"of {', '.join(map(str, known[known > 0][:40]))}"
        )
    labels: Int64 = raw_id_table(space)[raw].astype(np.int64)
    return labels


def _read_semantic_kitti(file: Path, frame: int, space: LabelSpace) -> Int64:
    try:
        count = file.stat().st_size // 4
    except OSError as error:
        raise InputError(f"{file}: cannot read the labels: {error.strerror}") from error
    return _class_ids(read_labels(file, count)[0], space, file)


def _read_nuscenes(file: Path, frame: int, space: LabelSpace) -> Int64:
    try:
        labels = np.fromfile(file, np.uint8).astype(np.int64) - 1
    except OSError as error:
        raise InputError(f"{file}: cannot read the labels: {error.strerror}") from error
    return _checked(labels, space, file)


def _read_segments(file: Path, frame: int, space: LabelSpace) -> Int64:
    try:
        label = json.loads(file.read_text(encoding="utf-8"))["frames"][frame]
        category = {int(row["id"]): int(row["category_id"]) for row in label["annotations"]}
        objects = np.array(label["point_annotations"], np.int64)
        ids, inverse = np.unique(objects, return_inverse=True)
        labels = np.array([category[number] if number else 0 for number in ids.tolist()])[inverse]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{file}, frame {frame}: no label of Segments.ai: {error}") from error
    return _checked(labels.astype(np.int64) - 1, space, file)


def _read_pcd(file: Path, frame: int, space: LabelSpace) -> Int64:
    return _class_ids(read_pcd_field(file, "label"), space, file)


def _checked(labels: Int64, space: LabelSpace, file: Path) -> Int64:
    if len(labels) and labels.max() >= len(space):
        raise InputError(
            f"{file}: number {labels.max() + 1} is no class of {space.name}; expected 0 (none) to "
            f"{len(space)}"
        )
    return labels


_READERS: dict[str, Callable[[Path, int, LabelSpace], Int64]] = {
    "semantic-kitti": _read_semantic_kitti,
    "nuscenes": _read_nuscenes,
    "segments": _read_segments,
    "pcd": _read_pcd,
}
