# SPDX-License-Identifier: Apache-2.0
"""Bags as recorders and other tools leave them: every message is read, or the reason is named."""

import itertools
import shutil
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from recordings import START, bag

from pcseg_core.data import open_recording
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import BagFile
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError

mcap_writer = pytest.importorskip("mcap.writer")

INDEXES = [*mcap_writer.IndexType, mcap_writer.IndexType.CHUNK | mcap_writer.IndexType.MESSAGE]
OTHER_METADATA = [{"version": 99}, {"topics_with_message_count": 3}, {"files": 1}]

HELD = {
    "/tf_static": 1,
    "/points": 5,
    "/tf": 5,
    "/front/image_raw/compressed": 5,
    "/front/camera_info": 5,
}


def read_counts(path) -> dict[str, int]:
    """Topic -> number of messages that are read."""
    counts = dict.fromkeys(BagFile(path).topics, 0)
    for connection, _, _ in BagFile(path).messages():
        counts[connection.topic] += 1
    return counts


def edit_metadata(path: Path, change) -> None:
    """Apply a function to the content of metadata.yaml."""
    file = path / "metadata.yaml"
    content = yaml.safe_load(file.read_text())
    change(content["rosbag2_bagfile_information"])
    file.write_text(yaml.safe_dump(content))


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


@pytest.mark.parametrize("format", ["mcap", "sqlite3"])
@pytest.mark.parametrize("qos", ["", [], "- {history: 3}", "[", "null", "- 7"])
def test_the_qos_in_the_metadata_decides_nothing(tmp_path, format: str, qos) -> None:
    path = bag(tmp_path / "drive", format=format)

    def change(about) -> None:
        for row in about["topics_with_message_count"]:
            row["topic_metadata"]["offered_qos_profiles"] = qos

    edit_metadata(path, change)
    assert read_counts(path) == HELD


def test_extrinsics_survive_a_changed_qos_of_tf_static(tmp_path) -> None:
    path = bag(tmp_path / "drive")

    def change(about) -> None:
        for row in about["topics_with_message_count"]:
            if row["topic_metadata"]["name"] == "/tf_static":
                row["topic_metadata"]["offered_qos_profiles"] = ""

    edit_metadata(path, change)
    assert [c.topics.name for c in open_recording(path).cameras] == ["front"]


@pytest.mark.parametrize(
    "change", [{"version": 99}, {"topics_with_message_count": 3}, {"files": 1}]
)
def test_metadata_of_another_version_reads(tmp_path, change) -> None:
    path = bag(tmp_path / "drive")
    edit_metadata(path, lambda about: about.update(change))
    assert read_counts(path) == HELD


def test_messages_that_only_the_metadata_names_are_accounted_for(tmp_path) -> None:
    path = bag(tmp_path / "drive")

    def change(about) -> None:
        for row in about["topics_with_message_count"]:
            row["message_count"] += 7

    edit_metadata(path, change)
    file = BagFile(path)
    assert file.held["/points"] == 12 and file.counts["/points"] == 5
    found = open_recording(path).account.to_dict()["/points"]
    assert (found["held"], found["used"], found["unexplained"]) == (12, 5, 0)
    assert found["left_out"] == {"named in metadata.yaml and not in its files": 7}


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


def test_a_foreign_serialization_in_sqlite_is_left_out(tmp_path) -> None:
    path = bag(tmp_path / "drive", format="sqlite3")
    with sqlite3.connect(path / "drive.db3") as database:
        database.execute("UPDATE topics SET serialization_format='x' WHERE name='/tf'")
    file = BagFile(path)
    assert "/tf" not in file.topics and file.held["/tf"] == 5


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


@pytest.mark.parametrize("name", ["a#b", "100%", "50%25", "why?", "a b", "ü&=;"])
@pytest.mark.parametrize("format", ["mcap", "sqlite3"])
def test_any_name_of_a_folder_reads(tmp_path, name: str, format: str) -> None:
    path = shutil.move(bag(tmp_path / "drive", format=format), tmp_path / name)
    assert read_counts(path) == HELD
    for source in (path, f"bag:{path}", f"{path}?poses=none", f"bag:{path}?poses=none"):
        recording = open_recording(source)
        assert len(recording) == 5
        assert recording.pose_source == ("none" if str(source).endswith("none") else "tf")


def test_a_name_that_the_sqlite_writer_cannot_take_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="without '#', '%' and '\\?'"):
        bag(tmp_path / "a#b", format="sqlite3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["mcap", "sqlite3"])
def test_files_of_a_killed_recorder_read_in_order(tmp_path, format: str) -> None:
    suffix = {"mcap": "mcap", "sqlite3": "db3"}[format]
    path = bag(tmp_path / "drive", format=format)
    folder = tmp_path / "killed"
    folder.mkdir()
    for number in range(11):
        shutil.copy(path / f"drive.{suffix}", folder / f"rec_{number}.{suffix}")
    assert read_counts(folder)["/points"] == 55
    (folder / f"rec_4.{suffix}").unlink()
    with pytest.raises(InputError, match="ros2 bag reindex"):
        BagFile(folder)


def test_messages_in_the_log_of_a_killed_sqlite_recorder_are_read(tmp_path) -> None:
    path = bag(tmp_path / "drive", format="sqlite3")
    storage = path / "drive.db3"
    database = sqlite3.connect(storage)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (1, 1, x'00')")
    database.commit()
    killed = tmp_path / "killed.db3"
    shutil.copy(storage, killed)
    shutil.copy(f"{storage}-wal", f"{killed}-wal")
    database.close()
    opened = BagFile(killed)
    assert len(list(opened.messages())) == 22
    assert "killed.db3 was not closed" in opened.endings[0]


def test_a_missing_file_of_a_split_bag_is_named(tmp_path) -> None:
    path = bag(tmp_path / "drive")
    edit_metadata(path, lambda about: about["relative_file_paths"].append("drive_1.mcap"))
    with pytest.raises(InputError, match=r"names 2 files and drive_1\.mcap is missing"):
        BagFile(path)


def test_a_name_that_is_too_long_is_a_missing_file(tmp_path) -> None:
    path = bag(tmp_path / "drive")
    edit_metadata(path, lambda about: about["relative_file_paths"].append("x" * 300))
    with pytest.raises(InputError, match="names 2 files and x+ is missing"):
        BagFile(path)
    with pytest.raises(InputError, match="no such"):
        open_recording("x" * 300)


def test_a_file_that_is_named_twice_is_read_once(tmp_path) -> None:
    path = bag(tmp_path / "drive")
    expected = [raw for _, _, raw in BagFile(path).messages()]
    edit_metadata(path, lambda about: about["relative_file_paths"].append("./drive.mcap"))
    assert [raw for _, _, raw in BagFile(path).messages()] == expected


@pytest.mark.parametrize("names", [[], None, "drive.mcap"])
def test_metadata_that_names_no_file_is_refused(tmp_path, names: object) -> None:
    path = bag(tmp_path / "drive")
    edit_metadata(path, lambda about: about.update(relative_file_paths=names))
    with pytest.raises(InputError, match="does not name its files"):
        BagFile(path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"#ROSBAG V2.0\n" + bytes(100), "rosbags-convert"),
        (b"hello" * 100, "cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", ["mcap", "db3"])
def test_errors_name_the_cause(tmp_path, content: bytes, cause: str, suffix: str) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=cause):
        BagFile(tmp_path / f"x.{suffix}")


def test_a_storage_that_is_not_known_is_named(tmp_path) -> None:
    path = bag(tmp_path / "drive")
    (path / "drive.mcap").rename(path / "drive.rec")

    def change(about) -> None:
        about["relative_file_paths"] = ["drive.rec"]
        about["storage_identifier"] = "my_plugin"

    edit_metadata(path, change)
    with pytest.raises(InputError, match="storage 'my_plugin' is not known"):
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


def test_rows_of_sqlite_without_time_or_data_cost_themselves(tmp_path) -> None:
    path = bag(tmp_path / "drive", format="sqlite3")
    with sqlite3.connect(path / "drive.db3") as database:
        database.execute("PRAGMA writable_schema=ON")
        schema = "id INTEGER PRIMARY KEY, topic_id, timestamp, data"
        database.execute(f"CREATE TABLE loose ({schema})")
        database.execute("INSERT INTO loose SELECT * FROM messages")
        database.execute("DROP TABLE messages")
        database.execute("ALTER TABLE loose RENAME TO messages")
        (clouds,) = database.execute("SELECT id FROM topics WHERE name='/points'").fetchone()
        rows = "SELECT id FROM messages WHERE topic_id=? LIMIT 1"
        database.execute(f"UPDATE messages SET data=NULL WHERE id=({rows})", (clouds,))
        database.execute(f"UPDATE messages SET timestamp='x' WHERE id=({rows} OFFSET 1)", (clouds,))
    recording = open_recording(path)
    entry = recording.account.entries()["/points"]
    assert (entry.held, entry.used, entry.unexplained) == (5, 3, 0)
    assert entry.failed == {"message that does not deserialize": 1}
    assert entry.left_out == {"stamp that repeats or goes backwards": 1}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_schemas_of_sqlite(tmp_path, version: int) -> None:
    path = bag(tmp_path / "drive", format="sqlite3") / "drive.db3"
    columns = "id, name, type, serialization_format"
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE message_definitions")
        database.execute("DROP TABLE metadata")
        if version < 3:
            database.execute("DROP TABLE schema")
            extra = ", offered_qos_profiles" if version == 2 else ""
            database.execute(f"CREATE TABLE kept AS SELECT {columns}{extra} FROM topics")
            database.execute("DROP TABLE topics")
            database.execute("ALTER TABLE kept RENAME TO topics")
    assert read_counts(path) == HELD
