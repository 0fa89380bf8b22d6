# SPDX-License-Identifier: Apache-2.0
"""Bags as recorders and other tools leave them: every message is read, or the reason is named."""

import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml
from recordings import bag
from stored_bags import HELD, read_counts

from pcseg_core.data import open_recording
from pcseg_core.data.bag_reader import BagFile
from pcseg_core.errors import InputError

OTHER_METADATA = [{"version": 99}, {"topics_with_message_count": 3}, {"files": 1}]


def edit_metadata(path: Path, change) -> None:
    """Apply a function to the content of metadata.yaml."""
    file = path / "metadata.yaml"
    content = yaml.safe_load(file.read_text())
    change(content["rosbag2_bagfile_information"])
    file.write_text(yaml.safe_dump(content))


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


def test_a_foreign_serialization_in_sqlite_is_left_out(tmp_path) -> None:
    path = bag(tmp_path / "drive", format="sqlite3")
    with sqlite3.connect(path / "drive.db3") as database:
        database.execute("UPDATE topics SET serialization_format='x' WHERE name='/tf'")
    file = BagFile(path)
    assert "/tf" not in file.topics and file.held["/tf"] == 5


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
