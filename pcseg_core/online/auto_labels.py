# SPDX-License-Identifier: Apache-2.0
"""Automatic labels of a recording: the teacher's, projected onto the points, and the student's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import Field

from pcseg_core.config import Section, load_yaml
from pcseg_core.data.account import UNREADABLE, grouped
from pcseg_core.data.label_files import (
    LABELS_FILE,
    MOVING_FILES,
    encode_labels,
    encode_moving,
    label_paths,
    labels_yaml,
    moving_path,
    raw_ids_of,
)
from pcseg_core.data.label_formats import FORMATS
from pcseg_core.distill.labeling import Labels, label_scene
from pcseg_core.distill.observation import ClassEvidence, Observer, scenes
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import InputError
from pcseg_core.files import FolderKind, claim_folder, write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.online.moving import Placed, with_moving
from pcseg_core.online.pipeline import Pipeline, Sweep
from pcseg_core.online.replay import check_poses, placed
from pcseg_core.progress import note
from pcseg_core.vision.pixel_classes import PixelClasses, Teacher

if TYPE_CHECKING:
    from pcseg_core.data import Recording, Sample

Int64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

SETTINGS_FILE = "label.yaml"
_CACHE = "cache"
_STUDENT = "student"
_INSPECTED = 50  # sweeps that are searched for images before the work


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
    moving: bool = Field(False, description="Also tell what moves, by poses")
    checkpoint: str = Field("", description="Student that labels the sweeps too; empty for none")
    files: str = Field("", description="Fingerprint of the files of recording and checkpoint")


@dataclass
class AutoLabels:
    """Result of `label_recording`.

    Attributes:
        out: folder of label files (see `label_paths`) and labels.yaml; student/ likewise.
        label_space: classes of the teacher's labels.
        sweeps: number of sweeps with a label file.
        kept: number of those whose file an earlier call wrote.
        counts: (C,) int64 points of each class.
        unlabeled: number of points without a label.
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
        raise InputError(
            f"{out} holds labels made with other settings, or of other files at the same path; "
            "choose another --out"
        )


def check_cameras(recording: Recording) -> None:
    """Check that a recording has images, before the long work.

    Raises:
        InputError: none of the inspected sweeps, which are spread over the recording, has one.
    """
    inspected = np.unique(np.linspace(0, len(recording) - 1, _INSPECTED).astype(int)).tolist()
    readable = False
    for index in inspected:
        try:
            if recording[index].cameras:
                return
        except InputError:
            continue  # reported when the sweep is labeled
        readable = True
    if readable:
        problems = [p for p in getattr(recording, "problems", []) if p.startswith("camera ")]
        reasons = "; ".join(problems) or "no sweep has an image with a calibration near it"
        raise InputError(
            f"{recording.name}: no image to take labels from: {reasons}. Record images, "
            "camera_info and /tf_static; `pcseg bag info` tells what a bag lacks"
        )


def label_recording(
    labeler: AutoLabeler,
    recording: Recording,
    out: Path,
    *,
    window: int = 100,
    progress: Progress | None = None,
) -> AutoLabels:
    """Write a label file in SemanticKITTI format for every sweep that can be read.

    Paths are those of `label_paths`. One little-endian uint32 per point in the sweep's order, 0
    for none; `labels.yaml` gives the classes. With poses, labels are propagated between the sweeps
    of a window to points that no camera sees in their own sweep. The labels of a student go to
    student/. Interrupted calls resume: make the same call again.

    Args:
        labeler: teacher, student and settings.
        recording: opened from `labeler.settings.source`.
        out: new folder, or the folder of an interrupted call.
        window: number of sweeps that are held in memory and share labels.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: `out` holds something else, or no point could be labeled.
    """
    claim_output(labeler, recording, out)
    writer = _writer(labeler, recording, out)
    result = writer.result
    try:
        for start, stop in windows(len(recording), window):
            writer.write(_Window(recording, start, stop), progress)
    except KeyboardInterrupt:
        note(
            f"{result.sweeps} of {len(recording)} sweeps are labeled in {out}; run the same "
            "command again to resume"
        )
        raise
    writer.clean()
    result.skipped.update(recording.skipped)
    if not result.counts.any():
        reasons = "; ".join(reason for reason, _ in grouped(result.skipped)[:3])
        limit = labeler.settings.min_confidence
        unsure = f"; or no label reaches the confidence {limit:g}" if limit else ""
        raise InputError(
            f"{labeler.settings.source}: no point could be labeled: "
            f"{reasons or 'no camera sees one'}{unsure}"
        )
    return result


def windows(sweeps: int, window: int) -> list[tuple[int, int]]:
    """(first, last + 1) of the windows of a recording of so many sweeps."""
    return [(start, min(start + window, sweeps)) for start in range(0, sweeps, window)]


def claim_output(labeler: AutoLabeler, recording: Recording, out: Path) -> None:
    """Claim a folder for the labels of a recording, or resume those in it.

    Raises:
        InputError: it holds something else, or the recording lacks poses that are needed.
    """
    settings = labeler.settings
    check_output(out, settings)
    if settings.moving:
        check_poses(recording)
    stored = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    write_atomic(out / SETTINGS_FILE, stored)


def label_window(
    labeler: AutoLabeler, recording: Recording, out: Path, window: tuple[int, int]
) -> None:
    """Write the label files of one of the `windows` of a recording, as `label_recording` does.

    Several processes may label different windows of a recording at a time.

    Args:
        labeler, recording: see `label_recording`.
        out: folder that `claim_output` claimed.
        window: (first, last + 1) of its sweeps.
    """
    _writer(labeler, recording, out).write(_Window(recording, *window), None)


def labels_exist(out: Path) -> bool:
    """Whether the label files of all windows that were labeled in a folder are there."""
    try:
        done = [json.loads(mark.read_text()) for mark in (out / _CACHE).glob("done-[0-9]*")]
        return all((out / name).is_file() for window in done for name in window["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _writer(labeler: AutoLabeler, recording: Recording, out: Path) -> _Writer:
    space = LabelSpace.load(labeler.settings.labels.label_space)
    result = AutoLabels(out, space, counts=np.zeros(len(space), np.int64))
    if labeler.student is not None:
        labeler.student.match_intensities(recording)
    return _Writer(labeler, out, space, result)


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
    """Writes the label files of windows. Those of an earlier call are kept."""

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
        if self._keep(mark, window):
            tell(len(window))
            return
        teacher, settings = self.labeler.teacher, self.labeler.settings
        evidence = ClassEvidence(teacher, settings.labels, settings.teacher.identity)
        observer = Observer(self.out / _CACHE, evidence=evidence)
        before = Counter(window.skipped)
        labeled, files = _by_index(observer, settings, window, tell)
        self.result.skipped.update(observer.skipped)
        sweeps = self._sweeps(window, labeled)
        pairs = with_moving(sweeps) if settings.moving else ((item, None) for item, _ in sweeps)
        written = [self._write_sweep(window, *item, found) for item, found in pairs]
        unreadable = dict(Counter(window.skipped) - before)
        done = {"files": written, "skipped": dict(observer.skipped), "unreadable": unreadable}
        write_atomic(mark, json.dumps(done))
        for file in files:
            file.unlink(missing_ok=True)

    def clean(self) -> None:
        """Delete the observations, once all windows are done."""
        for file in (self.out / _CACHE).glob("*.npz"):
            file.unlink()

    def _keep(self, mark: Path, window: _Window) -> bool:
        """Count the files of a window that an earlier call wrote; False if any is missing."""
        try:
            done = json.loads(mark.read_text(encoding="utf-8"))
            names = [str(name) for name in done["files"]]
            labels = [np.fromfile(self.out / name, "<u4") for name in names]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.result.kept += len(names)
        self.result.skipped.update(done["skipped"])
        window.skipped.update(done["unreadable"])
        for raw in labels:
            self._count(np.array([np.count_nonzero(raw == number) for number in self.raw_ids]), raw)
        return True

    def _sweeps(
        self, window: _Window, labeled: dict[int, Labels]
    ) -> Iterator[tuple[tuple[int, Sample, Int64], Placed]]:
        """The sweeps that can be read, with the teacher's labels."""
        for index in range(len(window)):
            try:
                sample = window[index]
            except InputError as error:
                window.skipped[f"{UNREADABLE}{error}"] += 1
                continue
            labels = np.full(len(sample.cloud), -1, np.int64)
            if index in labeled:
                found, confidence = labeled[index]
                sure = confidence >= self.labeler.settings.min_confidence
                labels[sample.cloud.finite] = np.where(sure, found, -1)
            yield (index, sample, labels), placed(sample, labels, self.space)

    def _write_sweep(
        self,
        window: _Window,
        index: int,
        sample: Sample,
        labels: Int64,
        moving: npt.NDArray[np.uint8] | None,
    ) -> str:
        """Write the files of a sweep; the name of that of the teacher's labels."""
        name = label_paths(window.recording)(sample, window.start + index)
        write_atomic(self.out / name, encode_labels(labels, self.raw_ids))
        if moving is not None:
            write_atomic(self.out / moving_path(name), encode_moving(moving))
        if self.labeler.student is not None:
            given = self.labeler.student.process(Sweep.of(sample))
            ids = raw_ids_of(given.label_space)
            write_atomic(self.out / _STUDENT / name, encode_labels(given.labels, ids))
        self._count(np.bincount(labels[labels >= 0], minlength=len(self.space)), labels)
        return name

    def _count(self, counts: npt.NDArray[np.int64], labels: npt.NDArray[np.integer]) -> None:
        """Add a sweep with points (C,) of each class to the result."""
        self.result.sweeps += 1
        self.result.counts += counts
        self.result.unlabeled += len(labels) - int(counts.sum())


def _by_index(
    observer: Observer, settings: LabelSettings, window: _Window, tell: Callable[[int], None]
) -> tuple[dict[int, Labels], list[Path]]:
    """Labels by index in the window, and files of observations; empty if none can be labeled."""
    identity = f"{settings.source}@{window.start}"
    try:
        observations = observer.observe({identity: window}, lambda done, total: tell(done))
    except InputError:
        if not observer.skipped:
            raise
        return {}, []
    found: dict[int, Labels] = {}
    for _, members in scenes(observations):
        labels = label_scene([stored.load() for stored in members], settings.labels)
        found |= {stored.index: one for stored, one in zip(members, labels)}
    return found, [stored.path for stored in observations]


def _stored_settings(file: Path) -> LabelSettings:
    return load_yaml(file, LabelSettings)


AUTO_LABELS = FolderKind(
    "folder of automatic labels",
    SETTINGS_FILE,
    _stored_settings,
    (
        LABELS_FILE,
        "labels/*.label",
        "*/labels/*.label",
        *MOVING_FILES,
        f"{_STUDENT}/{LABELS_FILE}",
        f"{_CACHE}/done-*",
        f"{_CACHE}/*.npz",
        *(f"{name}/*" for name in FORMATS),
    ),
)
