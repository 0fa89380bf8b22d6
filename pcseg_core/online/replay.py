# SPDX-License-Identifier: Apache-2.0
"""Label whole recordings: a bag becomes a bag with labeled clouds, other sources label files."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml

from pcseg_core.cloud import append_fields, encode_cloud, pack_rgb, read_cloud
from pcseg_core.data import messages, readable
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import CLOUD
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path, write_atomic
from pcseg_core.labels import LabelSpace, to_wire

if TYPE_CHECKING:
    from pcseg_core.cloud import PointCloud
    from pcseg_core.data import Recording
    from pcseg_core.online.segmenter import Segmentation, Segmenter

LABELS_FILE = "labels.yaml"
Progress = Callable[[int, int], None]
Array = npt.NDArray[Any]


@dataclass
class Replay:
    """What came out of labeling a recording.

    Attributes:
        out: folder that was written.
        label_space: classes of the labels.
        sweeps: number of labeled sweeps.
        counts: (C,) int64 points of each class; `unlabeled` are those without a label.
        milliseconds: time of each segmentation [ms].
        skipped: how often each reason left a sweep without labels.
    """

    out: Path
    label_space: LabelSpace
    sweeps: int = 0
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    unlabeled: int = 0
    milliseconds: list[float] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.label_space), np.int64)

    def segment(self, segmenter: Segmenter, cloud: PointCloud) -> Segmentation:
        """Segment a cloud and keep count."""
        started = time.perf_counter()
        result = segmenter.segment(cloud)
        self.milliseconds.append(1e3 * (time.perf_counter() - started))
        known = result.labels[result.labels >= 0]
        self.counts += np.bincount(known, minlength=len(self.label_space))
        self.unlabeled += len(result.labels) - len(known)
        self.sweeps += 1
        return result


def segment_bag(
    segmenter: Segmenter,
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

    All fields, points and their order stay; every other topic passes through unchanged. A cloud
    that cannot be read passes through without labels and is counted. The classes are written to
    `labels.yaml` in the bag's folder.

    Args:
        segmenter: the model.
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
    recording = BagRecording(source, cloud_topic=cloud_topic, camera_topics=[], poses="none")
    replay = Replay(out, segmenter.label_space)
    total = sum(recording.bag.counts.values())
    with BagWriter(out, compress=compress, force=force) as writer:
        for done, (connection, bag_ns, raw) in enumerate(recording.bag.messages()):
            message = None
            if connection.topic == recording.cloud_topic:
                message = _labeled_message(segmenter, recording, raw, replay, rgb)
            if message is None:
                writer.pass_through(connection, bag_ns, raw)
            else:
                writer.write_message(connection.topic, CLOUD, message, bag_ns)
            if progress:
                progress(done + 1, total)
        if not replay.sweeps:
            raise InputError(f"{source}: no cloud could be labeled: {_reasons(replay.skipped)}")
    write_atomic(out / LABELS_FILE, labels_yaml(segmenter.label_space))
    return replay


def _labeled_message(
    segmenter: Segmenter, recording: BagRecording, raw: bytes, replay: Replay, rgb: bool
) -> Any | None:
    """The cloud with labels, or None where it cannot be read."""
    try:
        message = recording.bag.deserialize(raw, CLOUD)
        cloud = read_cloud(message, intensity_scale=recording.intensity_scale)
    except InputError as error:
        replay.skipped[str(error)] += 1
        return None
    result = replay.segment(segmenter, cloud)
    fields = labeled_fields(result, segmenter.label_space, rgb)
    encoded = append_fields(message, fields)
    return messages.cloud(encoded, cloud.frame_id, cloud.stamp_ns)


def labeled_fields(result: Segmentation, space: LabelSpace, rgb: bool) -> dict[str, Array]:
    """Fields of a labeled cloud, by name: label (N,) uint32, confidence (N,) float32, rgb."""
    fields: dict[str, Array] = {
        "label": to_wire(result.labels),
        "confidence": np.asarray(result.confidence, np.float32),
    }
    if rgb:
        fields["rgb"] = pack_rgb(space.colorize(result.labels, ignored=(128, 128, 128)))
    return fields


def segment_recording(
    segmenter: Segmenter,
    recording: Recording,
    out: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Replay:
    """Label any drive: `labels/NAME.label` as SemanticKITTI stores them, and `labels.yaml`.

    Each file holds one little-endian uint32 per point in the sweep's order. `labels.yaml` is a
    label space whose `raw_ids` say what the numbers mean; 0 is unlabeled.

    Raises:
        InputError: `out` is taken, or no sweep could be read.
    """
    replay = Replay(out, segmenter.label_space)
    with _new_folder(out, force) as folder:
        (folder / "labels").mkdir(parents=True)
        raw_ids = raw_ids_of(segmenter.label_space)
        for index, sample in readable(recording):
            result = replay.segment(segmenter, sample.cloud)
            raw = np.where(result.labels < 0, 0, raw_ids[result.labels]).astype("<u4")
            raw.tofile(folder / "labels" / f"{label_file_name(sample.name, index)}.label")
            if progress:
                progress(index + 1, len(recording))
        _check_any(replay, recording)
        (folder / LABELS_FILE).write_text(labels_yaml(segmenter.label_space, raw_ids))
    return replay


def segment_recording_to_bag(
    segmenter: Segmenter,
    recording: Recording,
    out: Path,
    *,
    rgb: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Replay:
    """Label any drive into a new bag with one topic, /points: x, y, z, intensity and the labels."""
    replay = Replay(out, segmenter.label_space)
    with BagWriter(out, force=force) as writer:
        for index, sample in readable(recording):
            cloud = sample.cloud
            result = replay.segment(segmenter, cloud)
            fields: dict[str, Array] = dict(zip("xyz", cloud.xyz.T))
            if cloud.intensity is not None:
                fields["intensity"] = cloud.intensity
            fields |= labeled_fields(result, segmenter.label_space, rgb)
            encoded = encode_cloud(fields, cloud.height, cloud.width)
            message = messages.cloud(encoded, cloud.frame_id or "lidar", cloud.stamp_ns)
            writer.write_message("/points", CLOUD, message, cloud.stamp_ns)
            if progress:
                progress(index + 1, len(recording))
        _check_any(replay, recording)
    write_atomic(out / LABELS_FILE, labels_yaml(segmenter.label_space))
    return replay


def labels_yaml(space: LabelSpace, raw_ids: Array | None = None) -> str:
    """The label space as YAML; `raw_ids` (C,) are the numbers of its classes in label files."""
    content = space.to_dict()
    if raw_ids is not None:
        numbers = {int(raw): name for raw, name in zip(raw_ids, space.names)}
        content["raw_ids"] = {0: None, **numbers}
    return yaml.safe_dump(content, sort_keys=False)


def raw_ids_of(space: LabelSpace) -> Array:
    """(C,) uint32: the lowest raw id that the data set gives each class, else id + 1."""
    known: dict[int, int] = {}
    for raw, class_id in sorted(space.raw_to_id.items(), reverse=True):
        known[class_id] = raw
    if all(known.get(class_id, 0) > 0 for class_id in range(len(space))):
        return np.array([known[class_id] for class_id in range(len(space))], np.uint32)
    return np.arange(1, len(space) + 1, dtype=np.uint32)


def label_file_name(name: str, index: int) -> str:
    """Name of a sample's label file: its own name, safe for a file."""
    tail = name.replace("\\", "/").rsplit("/", 1)[-1]
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in tail)
    return safe or f"{index:06d}"


@contextmanager
def _new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A folder that appears at `out` when the block succeeds; with `force` it replaces an old one.

    Raises:
        InputError: `out` is taken, and not by label files or not to be replaced.
    """
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (out / LABELS_FILE).is_file():
        raise InputError(f"{out} exists and holds no labels; choose another path")
    if taken and not force:
        raise InputError(f"{out} exists; choose another path, or use --force to replace it")
    with atomic_path(out) as folder:
        yield folder
        if taken:
            shutil.rmtree(out)


def _check_any(replay: Replay, recording: Recording) -> None:
    replay.skipped.update(recording.skipped)
    if not replay.sweeps:
        raise InputError(f"{recording.name}: no sweep could be labeled: {_reasons(replay.skipped)}")


def _reasons(skipped: Counter[str]) -> str:
    return "; ".join(reason for reason, _ in skipped.most_common(3)) or "there is none"
