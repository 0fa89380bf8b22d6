# SPDX-License-Identifier: Apache-2.0
"""What all training commands do around the training: recordings, statistics, checkpoints."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, CheckpointText, save_checkpoint
from pcseg_core.cloud import PointCloud
from pcseg_core.confidence import ConfidenceScaling
from pcseg_core.config import Section
from pcseg_core.copies import url_of
from pcseg_core.data import Recording, open_recording
from pcseg_core.data.account import account, grouped
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_info import report_on
from pcseg_core.distill.cache import digest
from pcseg_core.distill.observation import Observer, Progress, StoredObservation
from pcseg_core.errors import InputError
from pcseg_core.files import slug, write_atomic
from pcseg_core.input_check import InputStatistics
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.distributed import from_all, ranks
from pcseg_core.learning.run_folder import METRICS
from pcseg_core.learning.run_mirror import mirror
from pcseg_core.models.inference import choose_device
from pcseg_core.models.student import Student
from pcseg_core.progress import bar, note

Array = npt.NDArray[Any]
Sweep = TypeVar("Sweep")

Reading = tuple[float | None, str | None, str | None]
"""How a recording is read: intensity scale, time field and stamp reference; None if unknown."""

_UNKNOWN: Reading = (None, None, None)
_MEASURED = 50  # sweeps at least, if there are as many, that stand for all of a training


def torch_device(device: str) -> str:
    """ "cpu", "cuda" or "cuda:N" for these and "auto".

    Raises:
        InputError: another word, no such device on this machine, or one GPU for the processes of
            torchrun.
    """
    chosen = choose_device(device)
    if chosen.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"device '{device}': under torchrun each process has its GPU, give cuda")
    return str(chosen)


def on_gpu(device: str) -> bool:
    """Whether a device is a GPU of this machine; raises as `torch_device`."""
    return torch_device(device).startswith("cuda")


def open_recordings(
    sources: Sequence[str], identities: Sequence[str], trained: InputStatistics | None = None
) -> dict[str, Recording]:
    """Recordings by their identity, see `run_folder.identity`; prints what each of them holds.

    Args:
        sources: bags, or reader:path.
        identities: of the sources.
        trained: input of a network that sees the recordings. Bags are read as in its training,
            which their identities then tell.
    """
    recordings: dict[str, Recording] = {}
    for name, source in zip(identities, sources, strict=True):
        recording = open_recording(source, trained=trained)
        if trained is not None and isinstance(recording, BagRecording):
            name = f"{name} read as {digest(trained.model_dump(mode='json'))}"
        recordings[name] = recording
    for recording in recordings.values():
        for line in account(recording).lines():
            note(line)
    return recordings


def check_cameras(recordings: Iterable[Recording], required: bool = True) -> None:
    """Check that at least one recording can train a segmenter; print why others cannot.

    Args:
        recordings: bags and others.
        required: whether it is an error that none can.

    Raises:
        InputError: none can, with the reasons that `pcseg bag info` gives.
    """
    reasons = [_why_not(recording) for recording in recordings]
    faults = [reason for reason in reasons if reason]
    if faults and len(faults) == len(reasons) and required:
        raise InputError("; ".join(faults))
    for fault in faults:
        note(fault)


def _why_not(recording: Recording) -> str:
    """Why a bag cannot train a segmenter; "" if it can, and for recordings that are no bags."""
    if not isinstance(recording, BagRecording):
        return ""
    report = report_on(recording)
    if report.trainable:
        return ""
    found = [finding for finding in report.findings if finding.level == "error"]
    causes = [f"{f.what} ({f.do})" if f.do else f.what for f in found]
    causes += [problem for problem in recording.problems if problem.startswith("camera ")]
    told = "; ".join(dict.fromkeys(causes))
    return (
        f"{recording.path} cannot train a segmenter: {told}; see: pcseg bag info {recording.path}"
    )


def recording_poses(recordings: Mapping[str, Recording]) -> dict[str, str]:
    """Source of the poses by recording."""
    return {name.partition(" (files ")[0]: r.pose_source for name, r in recordings.items()}


class Points(Protocol):
    """The points of a sweep that is trained on."""

    xyz: Array
    intensity: Array


def shard_place(out: Path, shards: str | None, recipe: Section, parts: Sequence[str]) -> str | None:
    """Where a run keeps its prepared sweeps; None for in memory.

    Several processes keep them in shards in the run directory. A place that is given gets a folder
    for this run.

    Args:
        out: run directory.
        shards: folder or URL, or None.
        recipe, parts: identify the run, see `claim`.
    """
    if shards is None:
        return f"{url_of(out) or out}/shards" if ranks()[1] > 1 else None
    key = digest({"recipe": recipe.model_dump(mode="json"), "parts": list(parts)})
    return f"{shards.rstrip('/')}/{slug(out.name)}-{key}"


def input_statistics(sweeps: Sequence[Points], recordings: Iterable[Recording]) -> InputStatistics:
    """Distribution of the training data, and how it was read, if all of it was read alike."""
    ways = {_reading(recording) for recording in recordings}
    scale, time_field, stamp_reference = ways.pop() if len(ways) == 1 else _UNKNOWN
    clouds = (PointCloud(sweep.xyz, sweep.intensity) for sweep in some(sweeps))
    return InputStatistics.measure(clouds, scale, time_field, stamp_reference)


def _reading(recording: Recording) -> Reading:
    if not isinstance(recording, BagRecording):
        return _UNKNOWN
    reading = recording.reading
    times = _given(reading["time_field"]), _given(reading["stamp_reference"])
    return recording.scale.factor, *times


def _given(value: str) -> str | None:
    """A setting of the reader; None if it leaves the value to a guess."""
    return None if value.startswith(("auto", "none")) else value


def some(sweeps: Sequence[Sweep]) -> Sequence[Sweep]:
    """Some dozens of sweeps, evenly spaced."""
    return sweeps[:: max(1, len(sweeps) // _MEASURED)]


def all_skipped(recordings: Mapping[str, Recording], observer: Observer) -> dict[str, int]:
    """What the recordings and the observer left out, by reason; similar reasons are one."""
    return dict(grouped(sum((r.skipped for r in recordings.values()), observer.skipped)))


def observe(
    observer: Observer, recordings: Mapping[str, Recording], title: str, every: int = 1
) -> list[StoredObservation]:
    """Observe recordings with a progress bar; print what was skipped. See `Observer.observe`.

    Several processes share the sweeps. Each sweep is looked at by one of them, and all get all.
    """
    with bar(title) as progress:
        if ranks()[1] == 1:
            found = observer.observe(recordings, progress, every)
        else:
            found = _observe_together(observer, recordings, progress, every)
    for reason, count in grouped(observer.skipped):
        note(f"skipped {count}: {reason}")
    return found


def _observe_together(
    observer: Observer, recordings: Mapping[str, Recording], progress: Progress, every: int
) -> list[StoredObservation]:
    """As `Observer.observe`, by all processes; observations and what was skipped are those of all.

    Raises:
        InputError: see `Observer.observe`; in all processes.
    """
    (rank, world), total = ranks(), sum(len(range(0, len(r), every)) for r in recordings.values())
    own, done = replace(observer, skipped=Counter()), 0
    found: list[tuple[int, int, StoredObservation]] = []
    for number, (source, recording) in enumerate(recordings.items()):
        for index in range(0, len(recording), every)[rank::world]:
            stored = own.observe_sweeps(source, recording, [index])
            found += [(number, index, one) for one in stored]
            done += 1
            progress(min(done * world, total), total)
    parts = from_all((found, own.skipped))
    observer.skipped.update(sum((skipped for _, skipped in parts), Counter[str]()))
    rows = sorted((row for part, _ in parts for row in part), key=lambda row: row[:2])
    if not rows:
        raise observer.nothing(total)
    # The folder of this machine: that of another may have another path, see `copies`.
    return [replace(one, path=observer.folder / one.path.name) for _, _, one in rows]


def finish(
    student: Student,
    space: LabelSpace,
    recipe: Section,
    metrics: dict[str, Any],
    out: Path,
    text: CheckpointText | None = None,
    inputs: InputStatistics | None = None,
    license: str | None = None,
    confidence: ConfidenceScaling | None = None,
) -> None:
    """Write the checkpoint of a run, with its words, statistics and scaling, and metrics.json.

    `license` is that of imported weights that the run started from.
    """
    meta = CheckpointMeta(
        student=student.config.model_dump(mode="json"),
        label_space=space.to_dict(),
        recipe=recipe.model_dump(mode="json"),
        metrics=metrics,
        inputs=inputs,
        license=license,
        confidence=confidence,
    )
    save_checkpoint(out / FILE_NAME, student.state_dict(), meta, text)
    write_atomic(out / METRICS, json.dumps(metrics, indent=1))
    mirror(out)
