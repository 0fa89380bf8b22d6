# SPDX-License-Identifier: Apache-2.0
"""The job of `pcseg label`: automatic labels of recordings, window by window."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcseg_core.bundled import checkpoint_file
from pcseg_core.cluster.job import Plan, Stretch, Summary, short_name, store_summary, stored_summary
from pcseg_core.data import account, find_source, fingerprint, open_recording, split_query
from pcseg_core.data.account import grouped
from pcseg_core.data.label_formats import check_export, export_labels
from pcseg_core.files import slug
from pcseg_core.learning.recipe import Recipe
from pcseg_core.models.inference import choose_device
from pcseg_core.online.auto_labels import (
    AutoLabeler,
    AutoLabels,
    LabelSettings,
    check_cameras,
    check_output,
    claim_output,
    label_recording,
    label_window,
    labels_exist,
    windows,
)
from pcseg_core.online.pipeline import Pipeline
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.vision.pixel_classes import PixelClasses, load_teacher

if TYPE_CHECKING:
    from pcseg_core.data import Recording

Progress = Callable[[int, int], None]

UNLABELED = "unlabeled"
_DONE = "cache/done-recording"  # a note that all windows and formats of a recording are written


@dataclass(frozen=True)
class LabelJob:
    """Labels of recordings.

    Attributes:
        out: folder of the results.
        recipe: its teacher labels the images.
        folders: source -> folder of its labels.
        checkpoint: student that labels the sweeps too; "" for none.
        min_confidence: points labeled with less confidence become unlabeled.
        moving: also tell what moves.
        window: number of sweeps that share labels, and that are a part of the work.
        formats: of labeling tools, which are written too.
        only: indices of the sweeps that the formats get; None for all.
        device: "auto", "cpu" or "cuda".
        strict: a format that is written already is an error; else it is kept.
    """

    out: Path
    recipe: Recipe
    folders: Mapping[str, Path]
    checkpoint: str = ""
    min_confidence: float = 0.0
    moving: bool = False
    window: int = 100
    formats: tuple[str, ...] = ()
    only: set[int] | None = None
    device: str = "auto"
    strict: bool = False
    title: str = "labeling"

    def worker(self) -> LabelWorker:
        """Loads the teacher when it is needed first."""
        return LabelWorker(self)

    def settings(self, source: str) -> LabelSettings:
        """All that decides the labels of a recording.

        Raises:
            InputError: no such recording or checkpoint, or a recipe without a camera teacher.
        """
        files = [split_query(find_source(source)[1])[0]]
        files += [str(checkpoint_file(self.checkpoint))] if self.checkpoint else []
        own = self.folders[source]
        return LabelSettings(
            source=source,
            teacher=self.recipe.required_teacher(),
            labels=self.recipe.labels,
            min_confidence=self.min_confidence,
            moving=self.moving,
            checkpoint=self.checkpoint,
            files=" ".join(fingerprint(file, (own,)) for file in files),
        )


@dataclass
class _Opened:
    recording: Recording
    labeler: AutoLabeler


@dataclass
class LabelWorker:
    """Labels recordings with networks that it loads once. See `job.Worker`."""

    job: LabelJob
    _opened: dict[str, _Opened] = field(default_factory=dict)

    @cached_property
    def teacher(self) -> PixelClasses:
        """The teacher of the recipe."""
        return load_teacher(self.job.recipe.required_teacher(), str(choose_device(self.job.device)))

    @cached_property
    def student(self) -> Segmenter | None:
        """The student, or None."""
        if not self.job.checkpoint:
            return None
        return Segmenter.load(self.job.checkpoint, device=self.job.device)

    def load(self) -> None:
        """Load teacher and student."""
        _ = self.teacher, self.student

    def plan(self, source: str) -> Plan:
        """Windows of a recording, after a check of everything that it needs."""
        out, settings = self.job.folders[source], self.job.settings(source)
        done = stored_summary(out / _DONE, self._key(settings))
        if done is not None and labels_exist(out):
            return Plan(done.sweeps, (), done=done)
        opened = self._open(source, settings)
        claim_output(opened.labeler, opened.recording, out)
        sweeps = len(opened.recording)
        whole = opened.recording.pose_source == "kiss-icp"
        return Plan(sweeps, tuple(windows(sweeps, self.job.window)), whole, str(out))

    def run(self, source: str, stretch: Stretch) -> None:
        """Label a window."""
        opened = self._open(source)
        label_window(opened.labeler, opened.recording, self.job.folders[source], stretch)

    def finish(self, source: str, results: Sequence[Any]) -> Summary:
        """Count the labels, and write those of the formats."""
        found = self.label(source)
        lines = [line for name in self.formats(source) for line in self.export(source, name)]
        shares = dict(zip(found.label_space.names, found.counts.tolist()))
        counts = {name: count for name, count in shares.items() if count}
        counts[UNLABELED] = found.unlabeled
        opened = self._opened.pop(source)
        lines += account(opened.recording).lines()
        summary = Summary(found.sweeps, 0, counts, dict(grouped(found.skipped)), tuple(lines))
        file = self.job.folders[source] / _DONE
        store_summary(file, self._key(opened.labeler.settings), summary)
        return summary

    def label(self, source: str, progress: Progress | None = None) -> AutoLabels:
        """Label all windows that are not labeled yet."""
        opened, out = self._open(source), self.job.folders[source]
        labeler, recording = opened.labeler, opened.recording
        return label_recording(labeler, recording, out, window=self.job.window, progress=progress)

    def formats(self, source: str) -> list[str]:
        """The formats to write."""
        out = self.job.folders[source]
        return [name for name in self.job.formats if self.job.strict or not (out / name).exists()]

    def export(self, source: str, format: str, progress: Progress | None = None) -> list[str]:
        """Write the labels for a labeling tool; remarks about them."""
        recording, out = self._open(source).recording, self.job.folders[source]
        result = export_labels(recording, out, format, progress, self.job.only)
        lines = [f"left out: {reason} ({n})" for reason, n in grouped(result.skipped)]
        lines = [f"{format}: {line}" for line in (*lines, *result.notes)]
        return [*lines, f"{result.folder}: {result.sweeps} labeled sweeps"]

    def account(self, source: str) -> list[str]:
        """What the recording holds, uses and leaves out."""
        return account(self._open(source).recording).lines()

    def _open(self, source: str, settings: LabelSettings | None = None) -> _Opened:
        """The recording with teacher and student, after checks that need no network."""
        if source in self._opened:
            return self._opened[source]
        out, settings = self.job.folders[source], settings or self.job.settings(source)
        check_output(out, settings)
        student = self.student
        recording = open_recording(source, trained=student.trained_on if student else None)
        for name in self.formats(source):
            check_export(recording, out, name)
        check_cameras(recording)
        labeler = AutoLabeler(self.teacher, settings, Pipeline(student) if student else None)
        self._opened.clear()  # one at a time
        self._opened[source] = _Opened(recording, labeler)
        return self._opened[source]

    def _key(self, settings: LabelSettings) -> str:
        """What a complete folder depends on besides its settings, which are part of it."""
        return f"{settings.model_dump_json()} {self.job.window} {sorted(self.job.formats)}"


def label_folders(sources: Sequence[str], out: Path) -> dict[str, Path]:
    """Folder of the labels of each source: `out` for one, else out/NAME of the recordings.

    NAME is the last part of the path; sources that share it get a digest of the source too.
    """
    if len(sources) == 1:
        return {sources[0]: out}
    names = {source: slug(short_name(source))[:100] for source in sources}
    used = Counter(names.values())
    return {
        source: out / (name if used[name] == 1 else f"{name}-{_digest(source)}")
        for source, name in names.items()
    }


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:8]
