# SPDX-License-Identifier: Apache-2.0
"""Labels for a whole recording without hands: the projected teacher's, and the student's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml

from pcseg_core.config import read_yaml
from pcseg_core.distill.labeling import Labels, label_scene
from pcseg_core.distill.observation import ClassEvidence, Observer, scenes
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import InputError
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.online.replay import LABELS_FILE, label_file_name, labels_yaml, raw_ids_of
from pcseg_core.vision.pixel_classes import PixelClasses, TeacherConfig

if TYPE_CHECKING:
    from pcseg_core.data import Recording, Sample
    from pcseg_core.online.segmenter import Segmenter

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]

SETTINGS_FILE = "label.yaml"
_CACHE = "cache"
_STUDENT = "student"


@dataclass
class AutoLabels:
    """What was written.

    Attributes:
        out: folder with labels/NAME.label and labels.yaml; student/ likewise.
        label_space: classes of the teacher's labels.
        sweeps: sweeps with a label file; `kept` of them were there before.
        counts: (C,) int64 points of each class, among those of this call.
        unlabeled: points without a label, likewise.
        skipped: how often each reason left a sweep without labels.
    """

    out: Path
    label_space: LabelSpace
    sweeps: int = 0
    kept: int = 0
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    unlabeled: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


class AutoLabeler:
    """Teacher and, if given, student for `label_recording`.

    Args:
        teacher: pixel classes.
        teacher_config: identifies the teacher.
        config: how pixels become labels of points.
        min_confidence: points labeled with less become unlabeled.
        segmenter: the student, or None.
        checkpoint: its name, for the settings.
    """

    def __init__(
        self,
        teacher: PixelClasses,
        teacher_config: TeacherConfig,
        config: PseudoLabelConfig,
        min_confidence: float = 0.0,
        segmenter: Segmenter | None = None,
        checkpoint: str = "",
    ) -> None:
        self.teacher, self.teacher_config, self.config = teacher, teacher_config, config
        self.min_confidence, self.segmenter = min_confidence, segmenter
        self.checkpoint = checkpoint if segmenter is not None else ""
        self.evidence = ClassEvidence(teacher, config, teacher_config.identity)

    def settings(self, source: str) -> dict[str, Any]:
        """All that decides what is written."""
        return {
            "source": source,
            "teacher": self.teacher_config.model_dump(mode="json"),
            "labels": self.config.model_dump(mode="json"),
            "min_confidence": self.min_confidence,
            "checkpoint": self.checkpoint,
        }


def label_recording(
    labeler: AutoLabeler,
    recording: Recording,
    source: str,
    out: Path,
    *,
    window: int = 100,
    progress: Progress | None = None,
) -> AutoLabels:
    """Write labels/NAME.label for every sweep that can be read, as SemanticKITTI stores them.

    One little-endian uint32 per point in the sweep's order, 0 for none; `labels.yaml` tells the
    classes. With poses, labels are carried between the sweeps of a window to points that no camera
    sees at the time. With a student its labels go to student/. The same call goes on where an
    interrupted one stopped.

    Args:
        labeler: what labels.
        recording: the recording.
        source: what it was opened from.
        out: folder to make or to go on with.
        window: sweeps that are held in memory at a time, and carried between.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: `out` holds something else, or no sweep could be labeled.
    """
    _claim(out, labeler.settings(source))
    space = LabelSpace.load(labeler.config.label_space)
    result = AutoLabels(out, space, counts=np.zeros(len(space), np.int64))
    writer = _Writer(labeler, out, space, result)
    for start in range(0, len(recording), window):
        part = _Window(recording, start, min(start + window, len(recording)))
        writer.write(part, source, progress)
    result.skipped.update(recording.skipped)
    if not result.sweeps:
        reasons = "; ".join(reason for reason, _ in result.skipped.most_common(3))
        raise InputError(f"{source}: no sweep could be labeled: {reasons or 'there is none'}")
    return result


class _Window:
    """Some successive sweeps of a drive, as a drive."""

    def __init__(self, recording: Recording, start: int, stop: int) -> None:
        self.recording, self.start, self.stop = recording, start, stop
        self.name, self.label_space = recording.name, recording.label_space
        self.pose_source, self.skipped = recording.pose_source, recording.skipped
        self.scenes: Sequence[str] = list(recording.scenes[start:stop])

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Sample:
        return self.recording[self.start + index]


class _Writer:
    """Writes the files of a window; those that are there already are left alone."""

    def __init__(
        self, labeler: AutoLabeler, out: Path, space: LabelSpace, result: AutoLabels
    ) -> None:
        self.labeler, self.out, self.space, self.result = labeler, out, space, result
        self.raw_ids = raw_ids_of(space)
        write_atomic(out / LABELS_FILE, labels_yaml(space, self.raw_ids))
        student = labeler.segmenter
        if student is not None:
            words = labels_yaml(student.label_space, raw_ids_of(student.label_space))
            write_atomic(out / _STUDENT / LABELS_FILE, words)

    def write(self, window: _Window, source: str, progress: Progress | None) -> None:
        def tell(done: int) -> None:
            if progress:
                progress(window.start + done, len(window.recording))

        mark = self.out / _CACHE / f"done-{window.start}-{window.stop}"
        names = mark.read_text().splitlines() if mark.is_file() else []
        if mark.is_file() and all((self.out / name).is_file() for name in names):
            self.result.sweeps += len(names)
            self.result.kept += len(names)
            tell(len(window))
            return
        observer = Observer(self.out / _CACHE, evidence=self.labeler.evidence)
        labeled = _by_index(observer, self.labeler.config, window, source, tell)
        self.result.skipped.update(observer.skipped)
        written: list[str] = []
        for index in range(len(window)):
            written += self._write_sweep(window, index, labeled.get(index))
        write_atomic(mark, "\n".join(written))
        for file in (self.out / _CACHE).glob("*.npz"):
            file.unlink()

    def _write_sweep(self, window: _Window, index: int, labeled: Labels | None) -> list[str]:
        """Write the files of a sweep and give the teacher's name; none where it cannot be read."""
        try:
            sample = window[index]
        except InputError as error:
            window.skipped[f"unreadable sample: {error}"] += 1
            return []
        labels = np.full(len(sample.cloud), -1, np.int64)
        if labeled is not None:
            found, confidence = labeled
            sure = confidence >= self.labeler.min_confidence
            labels[sample.cloud.finite] = np.where(sure, found, -1)
        name = f"labels/{label_file_name(sample.name, window.start + index)}.label"
        _write_labels(self.out / name, labels, self.raw_ids)
        student = self.labeler.segmenter
        if student is not None:
            given = student.segment(sample.cloud).labels
            ids = raw_ids_of(student.label_space)
            _write_labels(self.out / _STUDENT / name, given, ids)
        self.result.sweeps += 1
        self.result.counts += np.bincount(labels[labels >= 0], minlength=len(self.space))
        self.result.unlabeled += int((labels < 0).sum())
        return [name]


def _by_index(
    observer: Observer,
    config: PseudoLabelConfig,
    window: _Window,
    source: str,
    tell: Callable[[int], None],
) -> dict[int, Labels]:
    """Labels by index in the window; empty if no sweep of it can be labeled."""
    identity = f"{source}@{window.start}"
    try:
        observations = observer.observe({identity: window}, lambda done, total: tell(done))
    except InputError:
        if not observer.skipped:
            raise
        return {}
    found: dict[int, Labels] = {}
    for _, members in scenes(observations):
        labels = label_scene([stored.load() for stored in members], config)
        found |= {stored.index: one for stored, one in zip(members, labels)}
    return found


def _write_labels(path: Path, labels: Array, raw_ids: Array) -> None:
    raw = np.where(labels < 0, 0, raw_ids[labels]).astype("<u4")
    write_atomic(path, raw.tobytes())


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or make sure that it is one of the same settings.

    Raises:
        InputError: it holds something else.
    """
    path = out / SETTINGS_FILE
    if path.is_file():
        if read_yaml(path) == settings:
            return
        raise InputError(f"{out} holds labels made with other settings; choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and holds something else; choose another --out")
    write_atomic(path, yaml.safe_dump(settings, sort_keys=False))
