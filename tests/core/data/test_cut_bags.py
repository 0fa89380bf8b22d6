# SPDX-License-Identifier: Apache-2.0
"""MCAP files of killed recorders and broken copies: everything before the cut is read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from recordings import bag
from typer.testing import CliRunner

from pcseg_core.cli import app
from pcseg_core.data import account, open_recording
from pcseg_core.data.bag_info import inspect_bag
from pcseg_core.data.bag_reader import BagFile
from pcseg_core.errors import InputError

mcap_writer = pytest.importorskip("mcap.writer")

MAGIC, MESSAGES = 8, 8
FORMS = {
    "plain": {"compression": mcap_writer.CompressionType.NONE},
    "lz4": {"compression": mcap_writer.CompressionType.LZ4},
    "zstd": {"compression": mcap_writer.CompressionType.ZSTD},
    "loose": {"use_chunking": False},
}


def write(path: Path, chunk: int = 150, size: int = 8, **options: object) -> bytes:
    """A file of eight messages."""
    rng = np.random.default_rng(0)
    with path.open("wb") as stream:
        writer = mcap_writer.Writer(stream, chunk_size=chunk, **options)
        writer.start(profile="ros2")
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
        channel = writer.register_channel("/words", "cdr", schema)
        for number in range(MESSAGES):
            writer.add_message(channel, number, message(number, rng.bytes(size)), number)
        writer.finish()
    return path.read_bytes()


def message(number: int, content: bytes) -> bytes:
    text = f"{number} {content.hex()}".encode() + b"\0"
    return struct.pack("<4sI", b"\0\1\0\0", len(text)) + text


def complete_before(data: bytes) -> list[int]:
    """Number of messages in complete records before each byte of a file."""
    numbers, place, found = [0] * (len(data) + 1), MAGIC, 0
    while place + 9 <= len(data) - MAGIC:
        kind, size = struct.unpack_from("<BQ", data, place)
        place += 9 + size
        if kind == 5:  # a message outside of chunks
            found += 1
        elif kind == 6:  # a chunk: its first and last time are the numbers of its messages
            found = struct.unpack_from("<QQ", data, place - size)[1] + 1
        numbers[place:] = [found] * (len(numbers) - place)
        if kind == 15:
            break
    return numbers


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_cut_at_any_byte_loses_nothing_before_it(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "drive.mcap"
    whole = write(path, **options)
    expected = [raw for _, _, raw in BagFile(path).messages()]
    assert BagFile(path).endings == [] and len(expected) == MESSAGES
    complete = complete_before(whole)
    partial = 0
    assert complete[-1] == MESSAGES and len(set(complete)) > 3
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        if cut < MAGIC:
            with pytest.raises(InputError, match="does not start as an MCAP file"):
                BagFile(path)
            continue
        file = BagFile(path)
        read = [raw for _, _, raw in file.messages()]
        assert read == expected[: len(read)] and len(read) >= complete[cut]
        assert sum(file.counts.values()) == len(read) and not file.damaged()
        (ending,) = file.endings
        assert "drive.mcap ends without its index" in ending
        partial += len(read) > complete[cut]
    if options == FORMS["plain"]:  # small compressed chunks unpack as a whole
        assert partial > 20


@pytest.mark.parametrize("name", ["plain", "lz4", "zstd"])
def test_a_large_chunk_is_read_up_to_the_cut(tmp_path: Path, name: str) -> None:
    path = tmp_path / "drive.mcap"
    whole = write(path, 1 << 22, 60_000, **FORMS[name])
    path.write_bytes(whole[: len(whole) // 2])
    cut = BagFile(path)
    assert 2 <= len(list(cut.messages())) == cut.counts["/words"] < MESSAGES


def test_space_that_was_never_written_ends_a_file(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    whole = write(path)
    path.write_bytes(whole[: len(whole) // 2] + bytes(5000))
    cut = BagFile(path)
    assert 0 < len(list(cut.messages())) < MESSAGES and cut.endings


def test_a_damaged_index_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    whole = write(path)
    (summary,) = struct.unpack_from("<Q", whole, len(whole) - MAGIC - 20)
    for place, value in ((len(whole) - MAGIC - 20, b"\xff" * 8), (summary + 1, b"\xff" * 4)):
        path.write_bytes(whole[:place] + value + whole[place + len(value) :])
        damaged = BagFile(path)
        assert len(list(damaged.messages())) == MESSAGES
        assert damaged.endings == ["drive.mcap has a damaged index; it is read without it"]


def test_a_record_of_a_wrong_size_costs_what_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    whole = write(path, index_types=mcap_writer.IndexType.NONE)
    complete = complete_before(whole)
    third = next(place for place, found in enumerate(complete) if found == sorted(set(complete))[2])
    assert whole[third] == 6  # a chunk
    path.write_bytes(whole[: third + 1] + b"\xff" * 8 + whole[third + 9 :])
    damaged = BagFile(path)
    read = len(list(damaged.messages()))
    assert complete[third] <= read < MESSAGES
    assert damaged.held["/words"] == MESSAGES and damaged.damaged()["/words"] == MESSAGES - read
    assert damaged.endings == [
        f"drive.mcap is damaged in the record at byte {third}; everything before is read"
    ]


def test_the_account_of_a_cut_bag_says_how_it_ends(tmp_path: Path) -> None:
    folder = bag(tmp_path / "drive", sweeps=40)
    file = folder / "drive.mcap"
    held = dict(BagFile(folder).counts)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    recording = open_recording(folder)
    assert 0 < len(recording) < 40
    found = account(recording)
    assert dict(found.held) == held and not found.unexplained()  # by metadata.yaml
    assert "named in metadata.yaml and not in its files" in str(found.to_dict())
    assert "drive.mcap ends" in found.lines()[-1]
    report, _ = inspect_bag(folder)
    assert any("without its index" in finding.what for finding in report.findings)
    (folder / "metadata.yaml").unlink()  # a killed recorder writes none
    result = CliRunner().invoke(app, ["bag", "info", str(folder)])
    assert "without its index" in " ".join(result.output.split())
    assert "Traceback" not in result.output and result.exit_code == 0


def test_a_bag_that_is_cut_before_its_clouds_says_so(tmp_path: Path) -> None:
    folder = bag(tmp_path / "drive")
    (folder / "drive.mcap").write_bytes((folder / "drive.mcap").read_bytes()[:60])
    with pytest.raises(InputError, match="no PointCloud2 topic.*without its index"):
        open_recording(folder)
    result = CliRunner().invoke(app, ["bag", "info", str(folder)])
    assert result.exit_code == 1 and "cannot train" in result.output
