# SPDX-License-Identifier: Apache-2.0
"""Label whole recordings: a bag into a bag with labeled clouds, other sources into label files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from pcseg_core.body import without_body
from pcseg_core.cloud import append_fields, encode_cloud, pack_rgb, read_cloud
from pcseg_core.data import messages, open_recording, readable, split_query
from pcseg_core.data.account import Account, account, grouped
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_account import explain_files
from pcseg_core.data.bag_folder import bag_folder
from pcseg_core.data.bag_reader import CLOUD, stamp_ns
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.data.label_files import (
    LABEL_FILES,
    LABELS_FILE,
    encode_labels,
    encode_moving,
    label_paths,
    labels_yaml,
    moving_path,
    raw_ids_of,
)
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.files import check_new_folder, new_folder
from pcseg_core.labels import LabelSpace, to_wire
from pcseg_core.online.label_store import LabelStore
from pcseg_core.online.moving import Placed, with_moving
from pcseg_core.online.pipeline import LabeledSweep, Pipeline, Sweep
from pcseg_core.online.replay_lidars import Fields, UnitedLabels

if TYPE_CHECKING:
    from pcseg_core.data import Recording, Sample

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
        store: keeps the labels for a call that resumes; None keeps none.
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
    store: LabelStore | None = None

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.label_space), np.int64)

    def process(self, pipeline: Pipeline, index: int, sweep: Sweep) -> LabeledSweep:
        """Label the sweep `index`, unless its labels are stored, and count its points."""
        if self.store is None:
            labeled = pipeline.process(sweep)
        else:
            labeled = self.store.process(pipeline, index, sweep)
        self.milliseconds.append(sum(labeled.stages_ms.values()))
        known = labeled.labels[labeled.labels >= 0]
        self.counts += np.bincount(known, minlength=len(self.label_space))
        self.unlabeled += len(labeled.labels) - len(known)
        self.sweeps += 1
        self.out_of_range += labeled.out_of_range
        for event, reason in dict.fromkeys((*sweep.cloud.problems, *labeled.problems)):
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
    source: str | Path,
    out: Path,
    *,
    cloud_topic: str | None = None,
    time_field: str = "none",
    rgb: bool = False,
    compress: bool = False,
    force: bool = False,
    store: LabelStore | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Copy a bag; clouds get the fields `label` (uint32, 65535: none) and `confidence` (float32).

    All fields, points and their order stay; all other topics are copied unchanged. A cloud that
    cannot be read is copied without labels and counted. `labels.yaml` in the bag's folder gives
    the classes. The clouds of several topics are labeled united and stay as they are.

    Args:
        pipeline: labels the clouds.
        source: bag folder, .mcap or .db3 file, and options of the reader as a query.
        out: folder of the new bag (mcap); appears when it is complete.
        cloud_topic: the topic to label, or several with commas between them; None where the bag
            has one only.
        time_field: see `read_cloud`; the labels of one topic need no times, wrong ones are counted.
        rgb: also add the field `rgb` with the colors of the classes.
        compress, force: compress the new bag; replace a bag at `out`.
        store: opened for `out`; keeps the labels for a call that resumes.
        progress: called with (clouds done, clouds in all).

    Raises:
        InputError: the source cannot be read, `out` is taken, or no cloud could be labeled.
    """
    recording = _open_bag(pipeline, source, cloud_topic, time_field)
    if out.exists() and out.resolve() == recording.path.resolve():
        raise InputError(f"{out}: a bag cannot be labeled in place; choose another --out")
    scale = str(recording.scale)
    replay = Replay(out, pipeline.label_space, intensity_scale=scale, store=store)
    pipeline.match_intensities(recording)
    united = _united_labels(pipeline, recording, replay, rgb)
    labeled: Counter[str] = Counter()
    with BagWriter(out, compress=compress, force=force) as writer:
        for number, (connection, bag_ns, raw) in enumerate(recording.bag.messages()):
            topic, message = connection.topic, None
            if topic in recording.cloud_topics and united is not None:
                message = _part_message(recording, raw, united.of(topic, bag_ns))
            elif topic in recording.cloud_topics:
                message = _labeled_message(pipeline, recording, (number, raw), replay, rgb)
            if message is not None:
                writer.write_message(topic, CLOUD, message, bag_ns)
                replay.account.used[topic] += 1
                labeled[topic] += 1
            else:
                _copy(writer, connection, bag_ns, raw, replay)
            if progress and topic == recording.cloud_topic:
                progress(replay.account.used[topic], recording.bag.counts[topic])
        if not replay.sweeps:
            raise InputError(f"{source}: no cloud could be labeled: {_reasons(replay.skipped)}")
        explain_files(replay.account, recording.bag)
        for topic in recording.cloud_topics:
            _move_unlabeled(replay, topic, labeled[topic])
        replay.account.check(str(source))
        writer.add_file(LABELS_FILE, labels_yaml(pipeline.label_space))
    return replay


def _open_bag(
    pipeline: Pipeline, source: str | Path, cloud_topic: str | None, time_field: str
) -> BagRecording:
    """A bag to be labeled. Only several LiDARs need motion and times, to be united."""
    query = dict(parse_qsl(split_query(str(source))[1]))
    several = "," in (cloud_topic or query.get("cloud_topic", ""))
    read = {"camera_topics": [], "poses": "none", "time_field": time_field}
    if several:
        read["poses"] = query.get("poses", "recorded")
        read["time_field"] = "auto" if time_field == "none" else time_field
    given = {} if cloud_topic is None else {"cloud_topic": cloud_topic}
    recording = open_recording(f"bag:{source}", trained=pipeline.trained_on, **read, **given)
    assert isinstance(recording, BagRecording)
    return recording


def _united_labels(
    pipeline: Pipeline, recording: BagRecording, replay: Replay, rgb: bool
) -> UnitedLabels | None:
    """The labels of several topics; None for one."""
    if len(recording.cloud_topics) == 1:
        return None
    label = partial(replay.process, pipeline)
    return UnitedLabels(recording, label, partial(labeled_fields, rgb=rgb), replay.skipped)


def _part_message(recording: BagRecording, raw: bytes, fields: Fields | None) -> Any | None:
    """The message of one of several LiDARs with its fields; None without."""
    if fields is None:
        return None
    message = recording.bag.deserialize(raw, CLOUD)
    encoded = append_fields(message, fields)
    return messages.cloud(encoded, message.header.frame_id, stamp_ns(message.header))


def _copy(writer: BagWriter, connection: Any, bag_ns: int, raw: bytes, replay: Replay) -> None:
    """Copy a message, or count why it cannot be copied."""
    topic = connection.topic
    if reason := writer.add_topic(connection):
        replay.skipped[reason] += 1
        replay.account.failed[topic][reason] += 1
    else:
        writer.pass_through(connection, bag_ns, raw)
        replay.account.used[topic] += 1


def _move_unlabeled(replay: Replay, topic: str, labeled: int) -> None:
    """Clouds that were copied without labels are not used."""
    unlabeled = replay.account.used[topic] - labeled
    replay.account.used[topic] -= unlabeled
    if unlabeled:
        replay.account.failed[topic]["copied without labels"] = unlabeled


def _labeled_message(
    pipeline: Pipeline,
    recording: BagRecording,
    numbered: tuple[int, bytes],
    replay: Replay,
    rgb: bool,
) -> Any | None:
    """The message (number, bytes) of a cloud with labels, or None if it cannot be read."""
    number, raw = numbered
    try:
        message = recording.bag.deserialize(raw, CLOUD)
        cloud = without_body(read_cloud(message, **recording.reading), recording.body)
    except InputError as error:
        replay.skipped[str(error)] += 1
        return None
    fields = labeled_fields(replay.process(pipeline, number, Sweep(cloud)), rgb)
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
    moving: bool = False,
    force: bool = False,
    store: LabelStore | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Label any recording: label files in SemanticKITTI format, and `labels.yaml`.

    The files are labels/NAME.label, or SCENE/labels/NAME.label for a recording of several scenes.
    Each holds one little-endian uint32 per point in the sweep's order. `labels.yaml` is a label
    space whose `raw_ids` map the numbers to classes; 0 is unlabeled.

    Args:
        pipeline: labels the sweeps.
        recording: any recording.
        out: folder of the files; appears when it is complete.
        moving: also write what moves; see `encode_moving`. Needs poses.
        force: replace an earlier result at `out`.
        store: opened for `out`; keeps the labels for a call that resumes.
        progress: called with (sweeps done, sweeps in all).

    Raises:
        InputError: `out` is taken, or no sweep could be read.
    """
    if moving:
        check_poses(recording)
    replay = Replay(out, pipeline.label_space, store=store)
    pipeline.match_intensities(recording)
    path_of, raw_ids = label_paths(recording), raw_ids_of(pipeline.label_space)
    with new_folder(out, LABEL_FILES, force=force) as folder:
        for index, sample, labeled, found in _labeled(pipeline, recording, replay, moving):
            name = path_of(sample, index)
            _write(folder / name, encode_labels(labeled.labels, raw_ids))
            if found is not None:
                _write(folder / moving_path(name), encode_moving(found))
            if progress:
                progress(index + 1, len(recording))
        _check_any(replay, recording)
        (folder / LABELS_FILE).write_text(labels_yaml(pipeline.label_space, raw_ids))
    return replay


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _labeled(
    pipeline: Pipeline, recording: Recording, replay: Replay, moving: bool
) -> Iterator[tuple[int, Sample, LabeledSweep, npt.NDArray[np.uint8] | None]]:
    """The sweeps with their index and labels and, if asked, what moves."""

    items = (
        (index, sample, replay.process(pipeline, index, Sweep.of(sample)))
        for index, sample in readable(recording)
    )
    if not moving:
        yield from ((*item, None) for item in items)
        return
    sweeps = ((item, placed(item[1], item[2].labels, item[2].label_space)) for item in items)
    yield from ((*item, found) for item, found in with_moving(sweeps))


def check_poses(recording: Recording) -> None:
    """Check that a recording has poses to find with what moves.

    Raises:
        InputError: it has none.
    """
    if recording.pose_source == "none":
        raise InputError(f"{recording.name}: what moves is found by poses, and it has none")


def placed(sample: Sample, labels: Array, space: LabelSpace) -> Placed:
    """A labeled sample for `with_moving`, deskewed and with its pose, if it is known."""
    try:
        return Placed(
            Sweep.of(sample).deskewed(), labels, space, sample.T_world_lidar, sample.scene
        )
    except PcsegError:
        return Placed(sample.cloud, labels, space, None, sample.scene)


def segment_recording_to_bag(
    pipeline: Pipeline,
    recording: Recording,
    out: Path,
    *,
    rgb: bool = False,
    moving: bool = False,
    force: bool = False,
    store: LabelStore | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Label any recording into a bag with one topic, /points: x, y, z, intensity and labels.

    See `segment_recording`; with `rgb` and `moving` the clouds have these fields too.
    """
    if moving:
        check_poses(recording)
    replay = Replay(out, pipeline.label_space, store=store)
    pipeline.match_intensities(recording)
    with BagWriter(out, force=force) as writer:
        for index, sample, labeled, found in _labeled(pipeline, recording, replay, moving):
            cloud = sample.cloud
            fields: dict[str, Array] = dict(zip("xyz", cloud.xyz.T))
            if cloud.intensity is not None:
                fields["intensity"] = cloud.intensity
            fields |= labeled_fields(labeled, rgb)
            if found is not None:
                fields["moving"] = found
            encoded = encode_cloud(fields, cloud.height, cloud.width)
            message = messages.cloud(encoded, cloud.frame_id or "lidar", cloud.stamp_ns)
            writer.write_message("/points", CLOUD, message, cloud.stamp_ns)
            if progress:
                progress(index + 1, len(recording))
        _check_any(replay, recording)
        writer.add_file(LABELS_FILE, labels_yaml(pipeline.label_space))
    return replay


def _check_any(replay: Replay, recording: Recording) -> None:
    replay.skipped.update(recording.skipped)
    replay.account = account(recording)
    if not replay.sweeps:
        raise InputError(f"{recording.name}: no sweep could be labeled: {_reasons(replay.skipped)}")


def _reasons(skipped: Counter[str]) -> str:
    shown = [f"{count} x {reason}" for reason, count in grouped(skipped)[:3]]
    return "; ".join(shown) or "it has none"
