# SPDX-License-Identifier: Apache-2.0
"""Ground truth in a folder outside the recording, in the layout of SemanticKITTI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pcseg_core.data.sample import Sample
from pcseg_core.data.semantic_kitti import raw_id_table, read_labels
from pcseg_core.errors import InputError
from pcseg_core.evaluation.replay import GroundTruth
from pcseg_core.labels import LabelSpace, grouping, regroup
from pcseg_core.online.replay import LABELS_FILE, label_file_name


class ExternalLabels:
    """Label files of uint32, one per sweep, class in the lower 16 bits.

    A file has the name of its sweep, as `pcseg label` and `pcseg segment` write it (sweeps of a
    bag are named by their stamps in nanoseconds). If there are as many files as sweeps, other
    names are assigned in sorted order. `labels.yaml` in the folder maps the numbers to classes;
    without it they are those of SemanticKITTI.
    """

    def __init__(self, folder: Path, sweeps: int) -> None:
        """Index the files of a recording with this number of sweeps.

        Raises:
            InputError: no .label files in `folder` or its labels/.
        """
        inner = folder / "labels"
        self.folder = inner if inner.is_dir() else folder
        files = sorted(self.folder.glob("*.label"))
        if not files:
            raise InputError(f"--labels {folder}: no .label files in it or in its labels/")
        self._by_name = {path.stem: path for path in files}
        self._in_order = files if len(files) == sweeps else []
        space = next((p for f in (folder, self.folder) if (p := f / LABELS_FILE).is_file()), None)
        self.space = LabelSpace.load(space if space is not None else "semantic_kitti")
        self._ids = raw_id_table(self.space)

    def of(self, index: int, sample: Sample) -> npt.NDArray[np.int16] | None:
        """(N,) class ids of a sweep, IGNORE for none; None if it has no file.

        Raises:
            InputError: its file has another number of points.
        """
        path = self._by_name.get(label_file_name(sample.name, index))
        if path is None and self._in_order:
            path = self._in_order[index]
        if path is None:
            return None
        raw, _ = read_labels(path, len(sample.cloud))
        return self._ids[raw]

    def ground_truth(self, space: LabelSpace) -> GroundTruth:
        """These labels in another label space."""
        groups = grouping(self.space, space)

        def labels_of(index: int, sample: Sample) -> npt.NDArray[np.int64] | None:
            labels = self.of(index, sample)
            return None if labels is None else regroup(labels, groups)

        return GroundTruth(space, labels_of, str(self.folder))
