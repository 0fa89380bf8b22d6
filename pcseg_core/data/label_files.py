# SPDX-License-Identifier: Apache-2.0
"""Label files: one uint32 per point as in SemanticKITTI, with their classes in labels.yaml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import yaml

from pcseg_core.config import read_yaml
from pcseg_core.errors import InputError
from pcseg_core.files import FolderKind
from pcseg_core.labels import MOVING, STATIC, LabelSpace

if TYPE_CHECKING:
    from pcseg_core.data import Recording, Sample

LABELS_FILE = "labels.yaml"


def label_paths(recording: Recording) -> Callable[[Sample, int], str]:
    """Function of (sample, index): path of the label file in the folder of the labels.

    labels/NAME.label, or SCENE/labels/NAME.label where several scenes may repeat a name. Different
    samples have different paths, and no path leads out of the folder.
    """
    several = len(set(recording.scenes)) > 1

    def path_of(sample: Sample, index: int) -> str:
        path = f"labels/{label_name(sample, index)}.label"
        scene_of_its_own = not sample.name.startswith(f"{sample.scene}/")
        return path if scene_of_its_own or not several else f"{scene_folder(sample.scene)}/{path}"

    return path_of


def label_name(sample: Sample, index: int) -> str:
    """Name of a sample's label file, without suffix."""
    return _safe(sample.name.replace("\\", "/").rpartition("/")[2]) or f"{index:06d}"


def scene_folder(scene: str) -> str:
    """Relative path of the folder of a scene."""
    return "/".join(_safe(part) for part in scene.replace("\\", "/").split("/") if part)


def _safe(name: str) -> str:
    """A name as one part of a path: other characters than letters, digits, - _ . become %XX."""
    safe = "".join(c if c.isalnum() or c in "-_." else f"%{ord(c):02X}" for c in name)
    return safe if safe.strip(".") else safe.replace(".", "%2E")


def encode_labels(labels: npt.NDArray[np.integer], raw_ids: npt.NDArray[np.uint32]) -> bytes:
    """Content of a label file.

    Args:
        labels: (N,) class ids, negative for none.
        raw_ids: (C,) number of each class; see `raw_ids_of`.
    """
    return np.where(labels < 0, 0, raw_ids[labels]).astype("<u4").tobytes()


def labels_yaml(space: LabelSpace, raw_ids: npt.NDArray[np.uint32] | None = None) -> str:
    """A label space as YAML; `raw_ids` (C,) are the numbers of its classes in label files."""
    content = space.to_dict()
    if raw_ids is not None:
        numbers = {int(raw): name for raw, name in zip(raw_ids, space.names)}
        content["raw_ids"] = {0: None, **numbers}
    return yaml.safe_dump(content, sort_keys=False)


def raw_ids_of(space: LabelSpace) -> npt.NDArray[np.uint32]:
    """(C,) uint32: the lowest raw id of each class in its data set; id + 1 without raw ids."""
    known: dict[int, int] = {}
    for raw, class_id in sorted(space.raw_to_id.items(), reverse=True):
        known[class_id] = raw
    if all(known.get(class_id, 0) > 0 for class_id in range(len(space))):
        return np.array([known[class_id] for class_id in range(len(space))], np.uint32)
    return np.arange(1, len(space) + 1, dtype=np.uint32)


def check_labels_file(marker: Path) -> None:
    """Check that a `labels.yaml` is one that `labels_yaml` wrote.

    Raises:
        InputError: it is not.
    """
    written = {"name", "classes", "raw_ids", "groupings"}
    if set(read_yaml(marker)) != written:
        raise InputError(f"its {marker.name} is not of label files")
    LabelSpace.load(marker)


def moving_path(path: str) -> str:
    """Path of the file that tells what moves, beside a label file: moving/NAME.label."""
    folder, _, name = path.rpartition("/")
    return f"{folder.removesuffix('labels')}moving/{name}"


def encode_moving(moving: npt.NDArray[np.uint8]) -> bytes:
    """Content of such a file for (N,) UNKNOWN, STATIC or MOVING.

    The numbers are those of the moving object segmentation of SemanticKITTI: 0 for unlabeled, 9
    for static, 251 for moving.
    """
    numbers = np.zeros(3, "<u4")
    numbers[[STATIC, MOVING]] = 9, 251
    return numbers[moving].tobytes()


MOVING_FILES = ("moving/*.label", "*/moving/*.label")
LABEL_FILES = FolderKind(
    "folder of label files",
    LABELS_FILE,
    check_labels_file,
    ("labels/*.label", "*/labels/*.label", *MOVING_FILES),
)
