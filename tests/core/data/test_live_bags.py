# SPDX-License-Identifier: Apache-2.0
"""Live bags: what was saved stays, whatever ends the recorder."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from forks import end_self, run_in_child

from pcseg_core.data.bag_reader import BagFile
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError

TYPE = "std_msgs/msg/String"
DIES = """
import sys, os, signal
from pcseg_core.data.bag_writer import BagWriter
with BagWriter(sys.argv[1], "sqlite3", live=True) as writer:
    for number in range(20):
        writer.write_raw("/words", "std_msgs/msg/String", bytes(300_000), 10**18 + number)
        if number == 9:
            writer.save()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(writer: BagWriter, count: int, size: int = 100, begin: int = 0) -> None:
    for number in range(begin, begin + count):
        writer.write_raw("/words", TYPE, bytes(size), 10**18 + number)


def test_a_live_bag_is_complete_and_alone_in_its_folder(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", "sqlite3", live=True) as writer:
        write(writer, 5)
        assert (tmp_path / "bag" / "metadata.yaml").is_file()
    assert BagFile(tmp_path / "bag").counts == {"/words": 5}
    assert {p.name for p in (tmp_path / "bag").iterdir()} == {"metadata.yaml", "bag.db3"}
    assert [p.name for p in tmp_path.iterdir()] == ["bag"]


def test_a_killed_recorder_leaves_what_it_saved(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "bag")], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    with sqlite3.connect(tmp_path / "bag" / "bag.db3") as database:
        assert database.execute("SELECT COUNT(*) FROM messages").fetchone() == (10,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    bag = BagFile(tmp_path / "bag")
    assert bag.counts == {"/words": 10}
    assert len(list(bag.messages(["/words"]))) == 10


@pytest.mark.parametrize(
    ("moment", "saved"),
    [("open", 0), ("metadata 1", 0), ("write", 0), ("metadata 2", 5), ("saved", 5), ("end", 5)],
)
def test_sigkill_at_any_moment_leaves_a_readable_bag(
    tmp_path: Path, moment: str, saved: int
) -> None:
    def record() -> None:
        begin, write_text, files = BagWriter._open, Path.write_text, 0

        def stop(now: str) -> None:
            if now == moment:
                end_self(signal.SIGKILL)

        def opened(self: BagWriter, folder: Path) -> None:
            begin(self, folder)
            stop("open")

        def half(self: Path, text: str, encoding: str) -> int:
            nonlocal files
            files += 1
            write_text(self, text[:10], encoding)
            stop(f"metadata {files}")
            return write_text(self, text, encoding)

        BagWriter._open, Path.write_text = opened, half  # type: ignore[method-assign, assignment]
        with BagWriter(tmp_path / "bag", "sqlite3", live=True) as writer:
            write(writer, 5, 100_000)
            stop("write")
            writer.save()
            stop("saved")
            write(writer, 3, 100_000, begin=5)
            stop("end")

    code, text = run_in_child(record, tmp_path / "log")
    assert code == -signal.SIGKILL, text
    bag = BagFile(tmp_path / "bag")
    assert sum(bag.counts.values()) == len(list(bag.messages())) == saved
    if (tmp_path / "bag" / "metadata.yaml").is_file():  # else nobody knows whose folder it is
        with BagWriter(tmp_path / "bag", "sqlite3", live=True, force=True) as writer:
            write(writer, 2)
        assert BagFile(tmp_path / "bag").counts == {"/words": 2}
        assert len(list((tmp_path / "bag").iterdir())) == 2


def test_a_full_disk_leaves_what_was_saved(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"cannot write .*bag: database or disk is full"),
        BagWriter(tmp_path / "bag", "sqlite3", live=True) as writer,
    ):
        write(writer, 10, 4000)
        writer.save()
        writer._writer.storage.conn.execute("PRAGMA max_page_count=40")
        write(writer, 1000, 4000, begin=10)
        writer.save()
    bag = BagFile(tmp_path / "bag")
    assert len(list(bag.messages(["/words"]))) >= 10
    assert bag.counts["/words"] >= 10


def test_a_disk_without_room_for_the_log_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(InputError, match="disk is full"),
        BagWriter(tmp_path / "bag", "sqlite3", live=True) as writer,
    ):
        write(writer, 10, 4000)
        writer.save()
        write(writer, 100, 100_000, begin=10)
        usage = SimpleNamespace(free=12_000_000)  # for the messages once, not twice
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        writer.save()
    assert BagFile(tmp_path / "bag").counts == {"/words": 10}
    assert {p.name for p in (tmp_path / "bag").iterdir()} == {"metadata.yaml", "bag.db3"}


def test_an_error_keeps_a_live_bag_and_force_replaces_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), BagWriter(tmp_path / "bag", "sqlite3", live=True) as writer:
        write(writer, 3)
        raise RuntimeError
    assert BagFile(tmp_path / "bag").counts == {"/words": 3}
    with pytest.raises(InputError, match="exists"):
        BagWriter(tmp_path / "bag", "sqlite3", live=True)
    with BagWriter(tmp_path / "bag", "sqlite3", live=True, force=True) as writer:
        write(writer, 4)
    assert BagFile(tmp_path / "bag").counts == {"/words": 4}


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot write"),
        BagWriter(tmp_path / "file" / "bag", "sqlite3", live=True),
    ):
        pass
    with pytest.raises(InputError, match="expected sqlite3"):
        BagWriter(tmp_path / "bag", "mcap", live=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
