# SPDX-License-Identifier: Apache-2.0
"""Label whole recordings: a bag into a bag with labeled clouds, other sources into label files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml

from pcseg_core.cloud import IntensityScale, append_fields, encode_cloud, pack_rgb, read_cloud
from pcseg_core.config import read_yaml
from pcseg_core.data import messages, readable
from pcseg_core.data.account import Account, account, grouped
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_account import explain_files
from pcseg_core.data.bag_reader import CLOUD
from pcseg_core.data.bag_writer import BagWriter, bag_folder
from pcseg_core.errors import InputError
from pcseg_core.files import FolderKind, check_new_folder, new_folder, write_atomic
from pcseg_core.labels import LabelSpace, to_wire
from pcseg_core.online.pipeline import LabeledSweep, Pipeline, Sweep

if TYPE_CHECKING:
    from pcseg_core.data import Recording

LABELS_FILE = "labels.yaml"
Progress = Callable[[int, int], None]
Array = npt.NDArray[Any]


@dataclass
class Replay:
    """Result of labeling a recording.

    Attributes:
        out: folder of the result.
        label_space: classes of the labels.
        sweeps: number of labeled sweeps.
        counts: (C,) int64 points of each class.
        unlabeled: number of points without a label.
        milliseconds: time from each sweep to its labels [ms].
        skipped: reason -> number of sweeps without labels.
        problems: event and first reason -> number of sweeps that were labeled in spite of it.
        intensity_scale: the scale of a bag's intensities and its source; "" for other recordings.
        out_of_range: number of returns beyond the range of the checkpoint.
        account: what the recording holds, and what becomes of it.
    """

    out: Path
    label_space: LabelSpace
    sweeps: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    unlabeled: int = 0
    milliseconds: list[float] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    intensity_scale: str = ""
    out_of_range: int = 0
    _first_reason: dict[str, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.label_space), np.int64)

    def process(self, pipeline: Pipeline, sweep: Sweep) -> LabeledSweep:
        """Label a sweep and count its points."""
        labeled = pipeline.process(sweep)
        self.milliseconds.append(sum(labeled.stages_ms.values()))
        known = labeled.labels[labeled.labels >= 0]
        self.counts += np.bincount(known, minlength=len(self.label_space))
        self.unlabeled += len(labeled.labels) - len(known)
        self.sweeps += 1
        self.out_of_range += labeled.out_of_range
        for event, reason in labeled.problems:
            self.problems[f"{event}: {self._first_reason.setdefault(event, reason)}"] += 1
        return labeled


def check_output(out: Path, *, bag: bool, force: bool) -> None:
    """Make sure that the result can be put at `out`, before the long work.

    Raises:
        InputError: `out` is taken by something else, or by a result and `force` is not given.
    """
    check_new_folder(out, bag_folder(out) if bag else LABEL_FILES, force=force)


def segment_bag(
    pipeline: Pipeline,
    source: Path,
    out: Path,
    *,
    cloud_topic: str | None = None,
    rgb: bool = False,
    compress: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Replay:
    """Copy a bag; clouds get the fields `label` (uint32, 65535: none) and `confidence` (float32).

    All fields, points and their order stay; all other topics are copied unchanged. A cloud that
    cannot be read is copied without labels and counted. `labels.yaml` in the bag's folder gives
    the classes.

    Args:
        pipeline: labels the clouds.
        source: bag folder, .mcap or .db3 file.
        out: folder of the new bag (mcap); appears when it is complete.
        cloud_topic: the topic to label; None where the bag has one only.
        rgb: also add the field `rgb` with the colors of the classes.
        compress: compress the new bag.
        force: replace a bag at `out`.
        progress: called with (messages done, messages in all).

    Raises:
        InputError: the source cannot be read, `out` is taken, or no cloud could be labeled.
    """
    if out.exists() and out.resolve() == source.resolve():
        raise InputError(f"{out}: a bag cannot be labeled in place; choose another --out")
    trained = pipeline.trained_on
    scale = IntensityScale(trained=None if trained is None else trained.intensity_scale)
    recording = BagRecording(
        source, cloud_topic=cloud_topic, camera_topics=[], poses="none", intensity_scale=scale
    )
    replay = Replay(out, pipeline.label_space, intensity_scale=str(scale))
    total = sum(recording.bag.counts.values())
    with BagWriter(out, compress=compress, force=force) as writer:
        for done, (connection, bag_ns, raw) in enumerate(recording.bag.messages()):
            topic, message, reason = connection.topic, None, ""
            if topic == recording.cloud_topic:
                message = _labeled_message(pipeline, recording, raw, replay, rgb)
            if message is not None:
                writer.write_message(topic, CLOUD, message, bag_ns)
            elif reason := writer.add_topic(connection):
                replay.skipped[reason] += 1
                replay.account.failed[topic][reason] += 1
            else:
                writer.pass_through(connection, bag_ns, raw)
            replay.account.used[topic] += not reason
            if progress:
                progress(done + 1, total)
        if not replay.sweeps:
            raise InputError(f"{source}: no cloud could be labeled: {_reasons(replay.skipped)}")
        explain_files(replay.account, recording.bag)
        _move_unlabeled(replay, recording.cloud_topic)
        replay.account.check(str(source))
    write_atomic(out / LABELS_FILE, labels_yaml(pipeline.label_space))
    return replay


def _move_unlabeled(replay: Replay, topic: str) -> None:
    """Clouds that were copied without labels are not used."""
    unlabeled = replay.account.used[topic] - replay.sweeps
    replay.account.used[topic] -= unlabeled
    if unlabeled:
        replay.account.failed[topic]["copied without labels"] = unlabeled


def _labeled_message(
    pipeline: Pipeline, recording: BagRecording, raw: bytes, replay: Replay, rgb: bool
) -> Any | None:
    """The message of the cloud with labels, or None if it cannot be read."""
    try:
        message = recording.bag.deserialize(raw, CLOUD)
        cloud = read_cloud(message, intensity_scale=recording.intensity_scale, time_field="none")
    except InputError as error:
        replay.skipped[str(error)] += 1
        return None
    fields = labeled_fields(replay.process(pipeline, Sweep(cloud)), rgb)
    encoded = append_fields(message, fields)
    return messages.cloud(encoded, cloud.frame_id, cloud.stamp_ns)


def labeled_fields(labeled: LabeledSweep, rgb: bool) -> dict[str, Array]:
    """Fields of a labeled cloud, by name: label (N,) uint32, confidence (N,) float32, rgb."""
    fields: dict[str, Array] = {
        "label": to_wire(labeled.labels),
        "confidence": np.asarray(labeled.confidence, np.float32),
    }
    if rgb:
        colors = labeled.label_space.colorize(labeled.labels, ignored=(128, 128, 128))
        fields["rgb"] = pack_rgb(colors)
    return fields


def segment_recording(
    pipeline: Pipeline,
    recording: Recording,
    out: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Replay:
    """Label any recording: `labels/NAME.label` in SemanticKITTI format, and `labels.yaml`.

    Each file holds one little-endian uint32 per point in the sweep's order. `labels.yaml` is a
    label space whose `raw_ids` map the numbers to classes; 0 is unlabeled.

    Raises:
        InputError: `out` is taken, or no sweep could be read.
    """
    replay = Replay(out, pipeline.label_space)
    with new_folder(out, LABEL_FILES, force=force) as folder:
        (folder / "labels").mkdir(parents=True)
        raw_ids = raw_ids_of(pipeline.label_space)
        for index, sample in readable(recording):
            labels = replay.process(pipeline, Sweep.of(sample)).labels
            raw = np.where(labels < 0, 0, raw_ids[labels]).astype("<u4")
            raw.tofile(folder / "labels" / f"{label_file_name(sample.name, index)}.label")
            if progress:
                progress(index + 1, len(recording))
        _check_any(replay, recording)
        (folder / LABELS_FILE).write_text(labels_yaml(pipeline.label_space, raw_ids))
    return replay


def segment_recording_to_bag(
    pipeline: Pipeline,
    recording: Recording,
    out: Path,
    *,
    rgb: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Replay:
    """Label any recording into a bag with one topic, /points: x, y, z, intensity and labels."""
    replay = Replay(out, pipeline.label_space)
    with BagWriter(out, force=force) as writer:
        for index, sample in readable(recording):
            cloud = sample.cloud
            fields: dict[str, Array] = dict(zip("xyz", cloud.xyz.T))
            if cloud.intensity is not None:
                fields["intensity"] = cloud.intensity
            fields |= labeled_fields(replay.process(pipeline, Sweep.of(sample)), rgb)
            encoded = encode_cloud(fields, cloud.height, cloud.width)
            message = messages.cloud(encoded, cloud.frame_id or "lidar", cloud.stamp_ns)
            writer.write_message("/points", CLOUD, message, cloud.stamp_ns)
            if progress:
                progress(index + 1, len(recording))
        _check_any(replay, recording)
    write_atomic(out / LABELS_FILE, labels_yaml(pipeline.label_space))
    return replay


def labels_yaml(space: LabelSpace, raw_ids: Array | None = None) -> str:
    """A label space as YAML; `raw_ids` (C,) are the numbers of its classes in label files."""
    content = space.to_dict()
    if raw_ids is not None:
        numbers = {int(raw): name for raw, name in zip(raw_ids, space.names)}
        content["raw_ids"] = {0: None, **numbers}
    return yaml.safe_dump(content, sort_keys=False)


def raw_ids_of(space: LabelSpace) -> Array:
    """(C,) uint32: the lowest raw id of each class in its data set; id + 1 without raw ids."""
    known: dict[int, int] = {}
    for raw, class_id in sorted(space.raw_to_id.items(), reverse=True):
        known[class_id] = raw
    if all(known.get(class_id, 0) > 0 for class_id in range(len(space))):
        return np.array([known[class_id] for class_id in range(len(space))], np.uint32)
    return np.arange(1, len(space) + 1, dtype=np.uint32)


def label_file_name(name: str, index: int) -> str:
    """Name of a sample's label file without suffix."""
    tail = name.replace("\\", "/").rsplit("/", 1)[-1]
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in tail)
    return safe or f"{index:06d}"


def check_labels_file(marker: Path) -> None:
    """Check that a `labels.yaml` is one that `labels_yaml` wrote.

    Raises:
        InputError: it is not.
    """
    written = {"name", "classes", "raw_ids", "groupings"}
    if set(read_yaml(marker)) != written:
        raise InputError(f"its {marker.name} is not of label files")
    LabelSpace.load(marker)


LABEL_FILES = FolderKind(
    "folder of label files", LABELS_FILE, check_labels_file, ("labels/*.label",)
)


def _check_any(replay: Replay, recording: Recording) -> None:
    replay.skipped.update(recording.skipped)
    replay.account = account(recording)
    if not replay.sweeps:
        raise InputError(f"{recording.name}: no sweep could be labeled: {_reasons(replay.skipped)}")


def _reasons(skipped: Counter[str]) -> str:
    shown = [f"{count} x {reason}" for reason, count in grouped(skipped)[:3]]
    return "; ".join(shown) or "it has none"
