# SPDX-License-Identifier: Apache-2.0
"""Labeling whole recordings: what passes through, what is added, what faults leave behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcseg_core.checkpoint import load_checkpoint, save_checkpoint
from pcseg_core.cloud import (
    TIME_PROBLEM,
    Field,
    PointCloud,
    encode_cloud,
    read_cloud,
    structured,
    unpack_rgb,
)
from pcseg_core.data import open_recording
from pcseg_core.data.bag_reader import CLOUD, BagFile, type_store
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.data.messages import cloud as cloud_message
from pcseg_core.errors import InputError
from pcseg_core.evaluation.live import NodeSetup
from pcseg_core.input_check import InputStatistics
from pcseg_core.labels import WIRE_UNLABELED, from_wire
from pcseg_core.online import replay
from pcseg_core.online.pipeline import Pipeline
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.online.sweep import OUT_OF_RANGE, Sweep

TOPIC = "/lidar/points"
STRING = "std_msgs/msg/String"


def points_fields(seed: int, count: int = 200) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-10, 10, (count, 3)).astype(np.float32)
    xyz[5] = np.nan
    return {
        "ring": rng.integers(0, 64, count).astype(np.uint16),
        "x": xyz[:, 0],
        "y": xyz[:, 1],
        "z": xyz[:, 2],
        "intensity": rng.integers(0, 255, count).astype(np.float32),
    }


def make_bag(path: Path, broken: bool = False) -> Path:
    """Three clouds of 0..255 intensity between text messages; the second may lack z."""
    text = type_store().types[STRING]
    with BagWriter(path) as writer:
        for i in range(3):
            stamp = (i + 1) * 10**8
            fields = points_fields(i)
            if broken and i == 1:
                del fields["z"]
            encoded = encode_cloud(fields, 2, 100)
            message = cloud_message(encoded, "lidar", stamp)
            writer.write_message(TOPIC, CLOUD, message, stamp + 7)
            writer.write_message("/chatter", STRING, text(data=f"hello {i}"), stamp + 9)
    return path


def test_clouds_gain_labels_and_all_else_is_untouched(pipeline: Pipeline, tmp_path: Path) -> None:
    source = make_bag(tmp_path / "drive")
    result = replay.segment_bag(pipeline, source, tmp_path / "labeled", rgb=True)
    before, after = (list(BagFile(p).messages()) for p in (source, tmp_path / "labeled"))
    assert [(c.topic, t) for c, t, _ in before] == [(c.topic, t) for c, t, _ in after]
    bag = BagFile(source)
    for (connection, _, old_raw), (_, _, new_raw) in zip(before, after):
        if connection.topic != TOPIC:
            assert bytes(old_raw) == bytes(new_raw)
            continue
        old, new = bag.deserialize(old_raw, CLOUD), bag.deserialize(new_raw, CLOUD)
        assert (new.height, new.width, new.header) == (2, 100, old.header)
        names = [field.name for field in new.fields]
        assert names == ["ring", "x", "y", "z", "intensity", "label", "confidence", "rgb"]
        assert {f.name: f.datatype for f in new.fields}["label"] == 6  # UINT32
        old_points, new_points = structured(old), structured(new)
        for name in old_points.dtype.names:
            assert old_points[name].tobytes() == new_points[name].tobytes()
        # what the segmenter says when it is asked directly, with intensities in 0..1
        cloud = read_cloud(old, intensity_scale=1 / 255)
        expected = pipeline.process(Sweep(cloud))
        assert np.array_equal(from_wire(new_points["label"].ravel()), expected.labels)
        assert np.allclose(new_points["confidence"].ravel(), expected.confidence)
        assert new_points["label"].ravel()[5] == WIRE_UNLABELED
        colors = unpack_rgb(new_points["rgb"].ravel())
        assert np.array_equal(colors[0], pipeline.label_space.palette[expected.labels[0]])
    assert result.sweeps == 3
    assert result.counts.sum() == 3 * 199
    assert result.unlabeled == 3


def test_returns_from_the_robot_stay_without_a_label(pipeline: Pipeline, tmp_path: Path) -> None:
    source = f"{make_bag(tmp_path / 'drive')}?body=-4,-4,-9,4,4,9"
    result = replay.segment_bag(pipeline, source, tmp_path / "labeled")
    for cloud in (sample.cloud for sample in open_recording(str(tmp_path / "labeled"))):
        inside = (np.abs(cloud.xyz) < (4, 4, 9)).all(1)
        assert 5 < inside.sum() < 100
        labels = from_wire(cloud.extra["label"])
        assert np.array_equal(labels < 0, inside | ~cloud.finite)
    assert result.sweeps == 3


def test_a_labeled_bag_reads_back_with_its_classes(pipeline: Pipeline, tmp_path: Path) -> None:
    replay.segment_bag(pipeline, make_bag(tmp_path / "drive"), tmp_path / "labeled")
    drive = open_recording(str(tmp_path / "labeled"))
    assert drive.label_space is not None
    assert drive.label_space.names == pipeline.label_space.names
    sample = drive[0]
    assert sample.labels is not None
    assert sample.labels[5] == -1
    assert (np.delete(sample.labels, 5) >= 0).all()
    assert np.array_equal(sample.labels, pipeline.process(Sweep(sample.cloud)).labels)


def test_labels_are_replaced_not_doubled(pipeline: Pipeline, tmp_path: Path) -> None:
    replay.segment_bag(pipeline, make_bag(tmp_path / "drive"), tmp_path / "once")
    replay.segment_bag(pipeline, tmp_path / "once", tmp_path / "twice")
    fields: list[Field] = open_message(tmp_path / "twice").fields
    assert [f.name for f in fields].count("label") == 1


def open_message(path: Path) -> object:
    bag = BagFile(path)
    _, _, raw = next(iter(bag.messages([TOPIC])))
    return bag.deserialize(raw, CLOUD)


def test_a_malformed_cloud_passes_through_and_is_counted(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    source = make_bag(tmp_path / "drive", broken=True)
    result = replay.segment_bag(pipeline, source, tmp_path / "labeled")
    assert result.sweeps == 2
    assert sum(result.skipped.values()) == 1
    assert "no field z" in next(iter(result.skipped))
    before, after = (
        [bytes(raw) for _, _, raw in BagFile(p).messages([TOPIC])]
        for p in (source, tmp_path / "labeled")
    )
    assert after[1] == before[1]
    assert after[0] != before[0]


def test_problems_scale_and_range_are_accounted_for(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "drive"
    with BagWriter(path) as writer:
        for i in range(3):
            fields = points_fields(i, 2000)
            if i < 2:  # millimeters
                fields |= {a: fields[a] * np.float32(1000) for a in "xyz"}
            encoded = encode_cloud(fields | {"time": np.arange(2000) * 1e6})  # no possible times
            writer.write_message(TOPIC, CLOUD, cloud_message(encoded, "lidar", 10**8 * i), i)
    result = replay.segment_bag(pipeline, path, tmp_path / "labeled")
    assert result.sweeps == 3 and not result.skipped
    assert result.intensity_scale == "intensity scale 0.00392157 (guessed from 3 sweeps)"
    ((problem, count),) = result.problems.items()
    assert problem.startswith(f"{OUT_OF_RANGE}: 100 %") and count == 2
    assert 3900 < result.out_of_range <= 2 * 1999
    timed = replay.segment_bag(pipeline, path, tmp_path / "timed", time_field="time")
    assert any(p.startswith(TIME_PROBLEM) and n == 3 for p, n in timed.problems.items())
    with pytest.raises(InputError, match="no time field 'firing'"):
        replay.segment_bag(pipeline, path, tmp_path / "other", time_field="firing")


def test_an_existing_result_is_replaced_only_by_force(pipeline: Pipeline, tmp_path: Path) -> None:
    source = make_bag(tmp_path / "drive")
    out = tmp_path / "labeled"
    replay.segment_bag(pipeline, source, out)
    with pytest.raises(InputError, match="--force"):
        replay.segment_bag(pipeline, source, out)
    assert replay.segment_bag(pipeline, source, out, force=True).sweeps == 3
    with pytest.raises(InputError, match="in place"):
        replay.segment_bag(pipeline, source, source, force=True)
    assert BagFile(source).counts[TOPIC] == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_labeling_leaves_nothing(
    pipeline: Pipeline, tmp_path: Path, error: type[BaseException]
) -> None:
    source = make_bag(tmp_path / "drive")

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise error

    with pytest.raises(error):
        replay.segment_bag(pipeline, source, tmp_path / "labeled", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["drive"]


def test_any_drive_into_a_bag(
    pipeline: Pipeline, sequence: Callable[..., Path], tmp_path: Path
) -> None:
    drive = open_recording(f"semantic-kitti:{sequence(scans=2)}")
    replay.segment_recording_to_bag(pipeline, drive, tmp_path / "bag")
    back = open_recording(str(tmp_path / "bag"))
    assert len(back) == 2
    for index in range(2):
        assert np.array_equal(back[index].cloud.xyz, drive[index].cloud.xyz)
        expected = pipeline.process(Sweep(drive[index].cloud)).labels
        assert np.array_equal(back[index].labels, expected)


def test_every_command_takes_the_scale_of_the_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    state, meta = load_checkpoint(tiny_run)
    inputs = InputStatistics.measure([PointCloud(np.ones((9, 3)))], intensity_scale=1 / 512)
    run = tmp_path / "run.safetensors"
    save_checkpoint(run, state, meta.model_copy(update={"inputs": inputs}))
    drive = make_bag(tmp_path / "drive")
    result = replay.segment_bag(Pipeline(Segmenter.load(run)), drive, tmp_path / "labeled")
    assert result.intensity_scale == "intensity scale 0.00195312 (checkpoint)"
    setup = NodeSetup(checkpoint=str(run))
    evaluated = open_recording(f"bag:{drive}", **setup.reader_options())
    assert evaluated.intensity_scale == 1 / 512
    given = replace(setup, bag_options={"intensity_scale": 0.25})
    assert open_recording(f"bag:{drive}", **given.reader_options()).intensity_scale == 0.25


def test_topics_that_cannot_be_copied_are_left_out_and_counted(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    mcap_writer = pytest.importorskip("mcap.writer")
    source = BagFile(make_bag(tmp_path / "drive", broken=True))
    with (tmp_path / "mixed.mcap").open("wb") as stream:
        writer = mcap_writer.Writer(stream)
        writer.start(profile="ros2")
        channels = {}
        for topic in source.connections:
            text = topic.msgdef.data.encode()
            schema = writer.register_schema(topic.msgtype, "ros2msg", text)
            channels[topic.topic] = writer.register_channel(topic.topic, "cdr", schema)
        odd = writer.register_schema("a/msg/T", "ros2msg", b"b/Unknown field")
        channels["/odd"] = writer.register_channel("/odd", "cdr", odd)
        note = writer.register_schema("note", "jsonschema", b"{}")
        channels["/note"] = writer.register_channel("/note", "json", note)
        for connection, time, raw in source.messages():
            writer.add_message(channels[connection.topic], time, bytes(raw), time)
            writer.add_message(channels["/odd"], time, b"\0\1\0\0", time)
            writer.add_message(channels["/note"], time, b"{}", time)
        writer.finish()
    total = sum(source.counts.values())
    result = replay.segment_bag(pipeline, tmp_path / "mixed.mcap", tmp_path / "labeled")
    entries = result.account.entries()
    assert (entries[TOPIC].held, entries[TOPIC].used) == (3, 2)
    assert entries[TOPIC].failed == {"copied without labels": 1}
    assert (entries["/odd"].held, entries["/odd"].used) == (total, 0)
    assert "cannot be used" in next(iter(entries["/odd"].failed))
    assert list(entries["/note"].left_out.values()) == [total]
    assert not any(entry.unexplained for entry in entries.values())
    assert "/odd" not in BagFile(tmp_path / "labeled").topics
