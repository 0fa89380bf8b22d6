# SPDX-License-Identifier: Apache-2.0
"""MCAP files of all writers: indexes, order, compression, encodings, damage."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from recordings import START, bag
from stored_bags import HELD, read_counts

from pcseg_core.data import open_recording
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import BagFile
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError

mcap_writer = pytest.importorskip("mcap.writer")

INDEXES = [*mcap_writer.IndexType, mcap_writer.IndexType.CHUNK | mcap_writer.IndexType.MESSAGE]


def rewritten(source: Path, target: Path, extra=lambda writer: None, **options) -> Path:
    """The messages of a bag in a bare MCAP file of another writer."""
    profile = options.pop("profile", "ros2")
    reverse = options.pop("reverse", False)
    with target.open("wb") as stream:
        writer = mcap_writer.Writer(stream, **options)
        writer.start(profile=profile)
        file = BagFile(source)
        channels = {}
        for connection in file.connections:
            text = connection.msgdef.data.encode()
            schema = writer.register_schema(connection.msgtype, "ros2msg", text)
            channels[connection.topic] = writer.register_channel(connection.topic, "cdr", schema)
        rows = [(c.topic, time, raw) for c, time, raw in file.messages()]
        for topic, time, raw in reversed(rows) if reverse else rows:
            writer.add_message(channels[topic], log_time=time, data=raw, publish_time=time)
        extra(writer)
        writer.finish()
    return target


def _json(writer) -> None:
    schema = writer.register_schema("pose", "jsonschema", b'{"type": "object"}')
    channel = writer.register_channel("/pose", "json", schema)
    writer.add_message(channel, log_time=START, data=b"{}", publish_time=START)


def _protobuf(writer) -> None:
    schema = writer.register_schema("foxglove.Pose", "protobuf", bytes(range(128, 256)))
    channel = writer.register_channel("/pose", "protobuf", schema)
    writer.add_message(channel, log_time=START, data=b"\x08\x01", publish_time=START)


def _schemaless(writer) -> None:
    channel = writer.register_channel("/pose", "json", 0)
    writer.add_message(channel, log_time=START, data=b"{}", publish_time=START)


@pytest.mark.parametrize("extra", [_json, _protobuf, _schemaless])
@pytest.mark.parametrize("chunked", [True, False])
def test_topics_of_foreign_encodings_are_left_out(tmp_path, extra, chunked: bool) -> None:
    source = bag(tmp_path / "drive")
    path = rewritten(source, tmp_path / "mixed.mcap", extra, use_chunking=chunked)
    assert read_counts(path) == HELD
    recording = open_recording(path)
    found = recording.account.to_dict()["/pose"]
    assert (found["held"], found["used"], found["unexplained"]) == (1, 0, 0)
    (reason,) = found["left_out"]
    assert "only cdr is read" in reason


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(("repeat", "statistics"), itertools.product([True, False], repeat=2))
@pytest.mark.parametrize(
    "index", [*INDEXES, mcap_writer.IndexType.CHUNK | mcap_writer.IndexType.MESSAGE]
)
def test_indexes_of_mcap_are_optional(tmp_path, chunked, repeat, statistics, index) -> None:
    source = bag(tmp_path / "drive")
    path = rewritten(
        source,
        tmp_path / "other.mcap",
        use_chunking=chunked,
        use_statistics=statistics,
        use_summary_offsets=repeat,
        repeat_channels=repeat,
        repeat_schemas=repeat,
        index_types=index,
        chunk_size=4000,
    )
    assert read_counts(path) == HELD
    file = BagFile(path)
    found = file.index(["/points"])[0]["/points"]
    assert file.read(found, 3).header.stamp.nanosec == 300_000_000


@pytest.mark.parametrize("compression", list(mcap_writer.CompressionType))
@pytest.mark.parametrize("chunked", [True, False])
def test_order_and_compression_of_mcap(tmp_path, compression, chunked: bool) -> None:
    source = bag(tmp_path / "drive")
    options = {"compression": compression, "use_chunking": chunked, "chunk_size": 4000}
    path = rewritten(source, tmp_path / "other.mcap", reverse=True, **options)
    times = [time for _, time, _ in BagFile(path).messages()]
    assert len(times) == 21 and times == sorted(times)


@pytest.mark.parametrize("profile", ["", "ros1", "px4"])
def test_the_profile_of_mcap_decides_nothing(tmp_path, profile: str) -> None:
    path = rewritten(bag(tmp_path / "drive"), tmp_path / "other.mcap", profile=profile)
    assert read_counts(path) == HELD


def test_a_damaged_chunk_costs_its_messages(tmp_path) -> None:
    path = rewritten(
        bag(tmp_path / "drive", sweeps=20),
        tmp_path / "other.mcap",
        chunk_size=4000,
        compression=mcap_writer.CompressionType.NONE,
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    path.write_bytes(data)
    file = BagFile(path)
    read = sum(1 for _ in file.messages())
    lost = sum(file.damaged().values())
    assert lost > 0 and read + lost == 81
    recording = open_recording(path)
    entries = recording.account.to_dict().values()
    assert not any(entry["unexplained"] for entry in entries)
    assert sum(n for entry in entries for n in entry["failed"].values()) == lost


def test_statistics_that_name_more_messages_than_there_are(tmp_path) -> None:
    path = rewritten(bag(tmp_path / "drive"), tmp_path / "other.mcap")
    data = path.read_bytes()
    (summary,) = struct.unpack_from("<Q", data, len(data) - 28)
    place = data.index(b"\x0b" + struct.pack("<Q", 42 + 4 + 5 * 10), summary) + 9
    path.write_bytes(data[:place] + struct.pack("<Q", 30) + data[place + 8 :])
    with pytest.raises(InputError, match="holds 30 messages, 21 are there"):
        BagFile(path)


DEFINITIONS = {
    "an unknown type": "foo_msgs/Bar x",
    "itself": "a/msg/T x",
    "no message": "%%%% )(",
    "too many fields": "".join(f"float64 field_{i}\n" for i in range(20_000)),
}


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
def test_topics_with_a_bad_definition_are_named_by_the_writer(tmp_path, definition: str) -> None:
    def extra(writer) -> None:
        schema = writer.register_schema("a/msg/T", "ros2msg", definition.encode())
        channel = writer.register_channel("/odd", "cdr", schema)
        writer.add_message(channel, log_time=START, data=b"\0\1\0\0", publish_time=START)

    path = rewritten(bag(tmp_path / "drive"), tmp_path / "odd.mcap", extra)
    copied = 0
    with BagWriter(tmp_path / "copy") as writer:
        for connection, time, raw in BagFile(path).messages():
            reason = writer.add_topic(connection)
            assert bool(reason) == (connection.topic == "/odd")
            if not reason:
                writer.pass_through(connection, time, raw)
                copied += 1
    assert copied == 21 and read_counts(tmp_path / "copy") == HELD


FORMS = {
    "plain": {},
    "unchunked": {"use_chunking": False},
    "without statistics": {"use_statistics": False, "chunk_size": 4000},
    "lz4": {"compression": mcap_writer.CompressionType.LZ4, "chunk_size": 4000},
    "without channels in the summary": {"repeat_channels": False, "repeat_schemas": False},
}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_mutated_files_are_read_whole_in_part_or_refused(tmp_path, options) -> None:
    whole = rewritten(bag(tmp_path / "drive"), tmp_path / "whole.mcap", **options).read_bytes()
    rng = np.random.default_rng(0)
    values = [0, 1, 2**31, 2**63, 2**64 - 1]
    for _ in range(80):
        data = bytearray(whole)
        for place in rng.integers(0, len(data) - 8, 2).tolist():
            near_end = len(data) - 1000 < place or rng.random() < 0.5
            at = place if near_end else len(data) - 1000 + place % 990
            data[at : at + 8] = int(rng.choice(np.array(values, np.uint64))).to_bytes(8, "little")
        (tmp_path / "odd.mcap").write_bytes(data)
        try:
            recording = BagRecording(tmp_path / "odd.mcap", poses="none")
            assert not recording.account.unexplained()
        except InputError as error:
            assert len(str(error)) < 2000


@pytest.mark.parametrize("chunked", [True, False])
def test_times_beyond_those_of_ros_cost_nothing(tmp_path, chunked: bool) -> None:
    def extra(writer) -> None:
        schema = writer.register_schema("std_msgs/msg/Header", "ros2msg", b"string frame_id")
        channel = writer.register_channel("/late", "cdr", schema)
        for time in (2**63, 2**64 - 1):
            writer.add_message(channel, time, b"\0\1\0\0" + bytes(8) + b"\1\0\0\0\0", time)

    path = rewritten(bag(tmp_path / "drive"), tmp_path / "x.mcap", extra, use_chunking=chunked)
    assert read_counts(path) == HELD | {"/late": 2}
    file = BagFile(path)
    index = file.index(["/late"])[0]["/late"]
    assert index.bag_ns.tolist() == [2**63 - 1] * 2
    assert file.read(index, 1) is not None
