# SPDX-License-Identifier: Apache-2.0
"""Ground truth in a folder outside the recording, in the layout of SemanticKITTI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pcseg_core.data.label_files import LABELS_FILE, label_name, scene_folder
from pcseg_core.data.sample import Sample
from pcseg_core.data.semantic_kitti import raw_id_table, read_labels
from pcseg_core.errors import InputError
from pcseg_core.evaluation.replay import GroundTruth
from pcseg_core.labels import LabelSpace, grouping, regroup

if TYPE_CHECKING:
    from pcseg_core.data import Recording


class ExternalLabels:
    """Label files of uint32, one per sweep, class in the lower 16 bits.

    A file has the name of its sweep, as `pcseg label` and `pcseg segment` write it (sweeps of a
    bag are named by their stamps in nanoseconds), in SCENE/labels or sequences/SCENE/labels, or
    for a recording of one scene in labels/ or in the folder itself. If these two hold as many
    files as there are sweeps, other names are assigned in sorted order. `labels.yaml` in the
    folder maps the numbers to classes; without it they are those of SemanticKITTI.
    """

    def __init__(self, folder: Path, recording: Recording) -> None:
        """Find the files of a recording.

        Raises:
            InputError: no .label files in `folder` or in folders named labels below it.
        """
        inner = folder / "labels"
        self.folder = folder
        flat = sorted((inner if inner.is_dir() else folder).glob("*.label"))
        self._of_scene = {
            scene: found
            for scene in dict.fromkeys(recording.scenes)
            for parent in (folder / "sequences", folder)
            if (found := parent / scene_folder(scene) / "labels").is_dir()
        }
        if not flat and not self._of_scene:
            raise InputError(
                f"--labels {folder}: no .label files in it, in its labels/ or in SCENE/labels/"
            )
        complete = len(flat) == len(recording)
        by_name = complete or len(set(recording.scenes)) <= 1
        self._by_name = {path.stem: path for path in flat} if by_name else {}
        self._in_order = flat if complete else []
        space = next((p for f in (folder, inner) if (p := f / LABELS_FILE).is_file()), None)
        self.space = LabelSpace.load(space if space is not None else "semantic_kitti")
        self._ids = raw_id_table(self.space)

    def of(self, index: int, sample: Sample) -> npt.NDArray[np.int16] | None:
        """(N,) class ids of a sweep, IGNORE for none; None if it has no file.

        Raises:
            InputError: its file has another number of points.
        """
        path = self._find(index, sample)
        if path is None:
            return None
        raw, _ = read_labels(path, len(sample.cloud))
        return self._ids[raw]

    def _find(self, index: int, sample: Sample) -> Path | None:
        name = label_name(sample, index)
        if sample.scene in self._of_scene:
            path = self._of_scene[sample.scene] / f"{name}.label"
            return path if path.is_file() else None
        in_order = self._in_order[index] if self._in_order else None
        return self._by_name.get(name, in_order)

    def ground_truth(self, space: LabelSpace) -> GroundTruth:
        """These labels in another label space."""
        groups = grouping(self.space, space)

        def labels_of(index: int, sample: Sample) -> npt.NDArray[np.int64] | None:
            labels = self.of(index, sample)
            return None if labels is None else regroup(labels, groups)

        return GroundTruth(space, labels_of, str(self.folder))
