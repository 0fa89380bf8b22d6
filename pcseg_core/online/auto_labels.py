# SPDX-License-Identifier: Apache-2.0
"""Automatic labels of a recording: the teacher's, projected onto the points, and the student's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import Field

from pcseg_core.config import Section, load_yaml
from pcseg_core.distill.labeling import Labels, label_scene
from pcseg_core.distill.observation import ClassEvidence, Observer, scenes
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import InputError
from pcseg_core.files import FolderKind, claim_folder, write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.replay import LABELS_FILE, label_file_name, labels_yaml, raw_ids_of
from pcseg_core.vision.pixel_classes import PixelClasses, Teacher

if TYPE_CHECKING:
    from pcseg_core.data import Recording, Sample

Progress = Callable[[int, int], None]

SETTINGS_FILE = "label.yaml"
_CACHE = "cache"
_STUDENT = "student"


class LabelSettings(Section):
    """Everything that decides the labels of a recording."""

    source: str = Field(description="Recording, as `open_recording` takes it")
    teacher: Teacher = Field(description="Teacher that labels the images")
    labels: PseudoLabelConfig = Field(
        default_factory=PseudoLabelConfig, description="How pixels become labels of points"
    )
    min_confidence: float = Field(
        0.0, ge=0, le=1, description="Points labeled with less confidence become unlabeled"
    )
    checkpoint: str = Field("", description="Student that labels the sweeps too; empty for none")


@dataclass
class AutoLabels:
    """Result of `label_recording`.

    Attributes:
        out: folder with labels/NAME.label and labels.yaml; student/ likewise.
        label_space: classes of the teacher's labels.
        sweeps: number of sweeps with a label file.
        kept: number of those whose file an earlier call wrote.
        counts: (C,) int64 points of each class, of the sweeps that this call labeled.
        unlabeled: number of points without a label, likewise.
        skipped: reason -> number of sweeps without labels.
    """

    out: Path
    label_space: LabelSpace
    sweeps: int = 0
    kept: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    unlabeled: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class AutoLabeler:
    """Teacher and optional student for `label_recording`.

    Attributes:
        teacher: pixel classes, as `settings.teacher` describes them.
        settings: everything that decides the labels.
        student: labels the sweeps too, as `settings.checkpoint` names it; None for no student.
    """

    teacher: PixelClasses
    settings: LabelSettings
    student: Pipeline | None = None


def check_output(out: Path, settings: LabelSettings) -> None:
    """Make sure that the labels can be written to `out`, before the long work.

    Raises:
        InputError: it holds something else, or labels made with other settings.
    """
    if claim_folder(out, AUTO_LABELS) and _stored_settings(out / SETTINGS_FILE) != settings:
        raise InputError(f"{out} holds labels made with other settings; choose another --out")


def label_recording(
    labeler: AutoLabeler,
    recording: Recording,
    out: Path,
    *,
    window: int = 100,
    progress: Progress | None = None,
) -> AutoLabels:
    """Write labels/NAME.label in SemanticKITTI format for every sweep that can be read.

    One little-endian uint32 per point in the sweep's order, 0 for none; `labels.yaml` gives the
    classes. With poses, labels are propagated between the sweeps of a window to points that no
    camera sees in their own sweep. The labels of a student go to student/. Interrupted calls
    resume: make the same call again.

    Args:
        labeler: teacher, student and settings.
        recording: opened from `labeler.settings.source`.
        out: new folder, or the folder of an interrupted call.
        window: number of sweeps that are held in memory and share labels.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: `out` holds something else, or no sweep could be labeled.
    """
    settings = labeler.settings
    check_output(out, settings)
    stored = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    write_atomic(out / SETTINGS_FILE, stored)
    space = LabelSpace.load(settings.labels.label_space)
    result = AutoLabels(out, space, counts=np.zeros(len(space), np.int64))
    writer = _Writer(labeler, out, space, result)
    for start in range(0, len(recording), window):
        part = _Window(recording, start, min(start + window, len(recording)))
        writer.write(part, progress)
    result.skipped.update(recording.skipped)
    if not result.sweeps:
        reasons = "; ".join(reason for reason, _ in result.skipped.most_common(3))
        raise InputError(
            f"{settings.source}: no sweep could be labeled: {reasons or 'it has none'}"
        )
    return result


class _Window:
    """Successive sweeps of a recording, as a recording."""

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
    """Writes the label files of windows; those of an earlier call are kept."""

    def __init__(
        self, labeler: AutoLabeler, out: Path, space: LabelSpace, result: AutoLabels
    ) -> None:
        self.labeler, self.out, self.space, self.result = labeler, out, space, result
        self.raw_ids = raw_ids_of(space)
        write_atomic(out / LABELS_FILE, labels_yaml(space, self.raw_ids))
        if labeler.student is not None:
            classes = labeler.student.label_space
            write_atomic(out / _STUDENT / LABELS_FILE, labels_yaml(classes, raw_ids_of(classes)))

    def write(self, window: _Window, progress: Progress | None) -> None:
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
        teacher, settings = self.labeler.teacher, self.labeler.settings
        evidence = ClassEvidence(teacher, settings.labels, settings.teacher.identity)
        observer = Observer(self.out / _CACHE, evidence=evidence)
        labeled = _by_index(observer, settings, window, tell)
        self.result.skipped.update(observer.skipped)
        written: list[str] = []
        for index in range(len(window)):
            written += self._write_sweep(window, index, labeled.get(index))
        write_atomic(mark, "\n".join(written))
        for file in (self.out / _CACHE).glob("*.npz"):
            file.unlink()

    def _write_sweep(self, window: _Window, index: int, labeled: Labels | None) -> list[str]:
        """Write the files of a sweep; names of the teacher's files, none if it cannot be read."""
        try:
            sample = window[index]
        except InputError as error:
            window.skipped[f"unreadable sample: {error}"] += 1
            return []
        labels = np.full(len(sample.cloud), -1, np.int64)
        if labeled is not None:
            found, confidence = labeled
            sure = confidence >= self.labeler.settings.min_confidence
            labels[sample.cloud.finite] = np.where(sure, found, -1)
        name = f"labels/{label_file_name(sample.name, window.start + index)}.label"
        _write_labels(self.out / name, labels, self.raw_ids)
        if self.labeler.student is not None:
            given = self.labeler.student.process(Sweep.of(sample))
            ids = raw_ids_of(given.label_space)
            _write_labels(self.out / _STUDENT / name, given.labels, ids)
        self.result.sweeps += 1
        self.result.counts += np.bincount(labels[labels >= 0], minlength=len(self.space))
        self.result.unlabeled += int((labels < 0).sum())
        return [name]


def _by_index(
    observer: Observer, settings: LabelSettings, window: _Window, tell: Callable[[int], None]
) -> dict[int, Labels]:
    """Labels by index in the window; empty if none of its sweeps can be labeled."""
    identity = f"{settings.source}@{window.start}"
    try:
        observations = observer.observe({identity: window}, lambda done, total: tell(done))
    except InputError:
        if not observer.skipped:
            raise
        return {}
    found: dict[int, Labels] = {}
    for _, members in scenes(observations):
        labels = label_scene([stored.load() for stored in members], settings.labels)
        found |= {stored.index: one for stored, one in zip(members, labels)}
    return found


def _write_labels(
    path: Path, labels: npt.NDArray[np.integer], raw_ids: npt.NDArray[np.uint32]
) -> None:
    raw = np.where(labels < 0, 0, raw_ids[labels]).astype("<u4")
    write_atomic(path, raw.tobytes())


def _stored_settings(file: Path) -> LabelSettings:
    return load_yaml(file, LabelSettings)


AUTO_LABELS = FolderKind(
    "folder of automatic labels",
    SETTINGS_FILE,
    _stored_settings,
    (
        LABELS_FILE,
        "labels/*.label",
        f"{_STUDENT}/{LABELS_FILE}",
        f"{_STUDENT}/labels/*.label",
        f"{_CACHE}/done-*",
        f"{_CACHE}/*.npz",
    ),
)
