# SPDX-License-Identifier: Apache-2.0
"""Labels of a recording that lie in a folder beside it, in the layout of SemanticKITTI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pcseg_core.data.sample import Sample
from pcseg_core.data.semantic_kitti import raw_id_table, read_labels
from pcseg_core.errors import InputError
from pcseg_core.evaluation.replay import Judges
from pcseg_core.labels import LabelSpace, grouping, regroup
from pcseg_core.online.replay import LABELS_FILE, label_file_name


class SideLabels:
    """Label files of uint32, one per sweep, class in the lower 16 bits.

    A sweep's file has its name, as `pcseg label` and `pcseg segment` write it (a bag's sweeps are
    named by their stamps in nanoseconds); or, where there are as many files as sweeps, its place
    in the order of names. `labels.yaml` in the folder tells what the numbers mean; without it they
    are those of SemanticKITTI.
    """

    def __init__(self, folder: Path, sweeps: int) -> None:
        """Index the files of a recording of so many sweeps.

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
        words = next((p for f in (folder, self.folder) if (p := f / LABELS_FILE).is_file()), None)
        self.space = LabelSpace.load(words if words is not None else "semantic_kitti")
        self._ids = raw_id_table(self.space)

    def of(self, index: int, sample: Sample) -> npt.NDArray[np.int16] | None:
        """(N,) class ids of a sweep, -1 for none; None where it has no file.

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

    def judges(self, space: LabelSpace) -> Judges:
        """Judges by these labels."""
        groups = grouping(self.space, space)

        def truth(index: int, sample: Sample) -> npt.NDArray[np.int64] | None:
            labels = self.of(index, sample)
            return None if labels is None else regroup(labels, groups)

        return Judges(space, truth, str(self.folder))
