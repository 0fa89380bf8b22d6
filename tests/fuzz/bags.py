# SPDX-License-Identifier: Apache-2.0
"""Bags with damaged files, metadata and messages."""

from __future__ import annotations

import functools
import io
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_info import inspect_bag
from pcseg_core.data.bag_reader import BagFile, connection
from pcseg_core.data.bag_storage import Channel
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError

from . import folders
from .files import dumped
from .harness import Target
from .mutations import altered, mutated
from .valid import check_recording

SWEEPS = 6
Message = tuple[str, int, bytes]


@dataclass(frozen=True)
class Bag:
    """An intact bag: its files, its messages, and the type of each topic."""

    files: dict[str, bytes]
    messages: list[Message]
    types: dict[str, str]


@functools.cache
def intact(kind: str) -> Bag:
    """A small bag of this project's writer: "mcap", "mcap-zstd", "sqlite3" or "sqlite3-zstd"."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bag"
        folders.recordings.bag(
            path,
            sweeps=SWEEPS,
            format=kind.partition("-")[0],
            compress=kind.endswith("zstd"),
            odometry=True,
        )
        bag = BagFile(path)
        messages = [(c.topic, time, raw) for c, time, raw in bag.messages()]
        bag.close()
        return Bag({p.name: p.read_bytes() for p in path.iterdir()}, messages, bag.topics)


@functools.cache
def variants() -> dict[str, bytes]:
    """MCAP files of the same messages in other layouts, by name."""
    found = {"": _storage(intact("mcap"))[1], "zstd": _storage(intact("mcap-zstd"))[1]}
    common: dict[str, Any] = {"chunk_size": 6000}
    for name, options in {
        "chunks": {**common, "compression": 1},
        "lz4": {**common, "compression": 2},
        "unchecked": {**common, "compression": 1, "enable_crcs": False},
        "loose": {"use_chunking": False, "compression": 1},
        "bare": {**common, "compression": 1, "index_types": 0, "use_statistics": False},
    }.items():
        found[name] = _rewritten(options)
    return found


def _rewritten(options: dict[str, Any]) -> bytes:
    """The messages in a file of the `mcap` package."""
    from mcap.writer import CompressionType, IndexType, Writer

    bag = intact("mcap")
    buffer = io.BytesIO()
    kinds = (None, CompressionType.NONE, CompressionType.LZ4)
    changed = {**options, "compression": kinds[options["compression"]]}
    if "index_types" in changed:
        changed["index_types"] = IndexType.NONE
    writer = Writer(buffer, **changed)
    writer.start(profile="ros2", library="fuzz")
    channels = {}
    for topic, msgtype in bag.types.items():
        schema = writer.register_schema(msgtype, "ros2msg", b"")
        channels[topic] = writer.register_channel(topic, "cdr", schema)
    for topic, time, raw in bag.messages:
        writer.add_message(channels[topic], time, raw, time)
    writer.finish()
    return buffer.getvalue()


def _storage(bag: Bag) -> tuple[str, bytes]:
    return next((n, c) for n, c in bag.files.items() if n.endswith((".mcap", ".db3")))


def read_messages(path: Path) -> list[Message]:
    """All messages of a bag."""
    bag = BagFile(path)
    try:
        return [(c.topic, time, raw) for c, time, raw in bag.messages()]
    finally:
        bag.close()


def check_bag(path: Path) -> None:
    """Messages, the recording, and the report of `bag info`."""
    read_messages(path)
    recording = BagRecording(path, poses="recorded")
    try:
        check_recording(recording)
        report, inspected = inspect_bag(path)
        if inspected is not None:
            inspected.bag.close()
        assert report.model_dump_json()
        assert all(len(f.what) + len(f.do) < 3000 for f in report.findings)
        if report.trainable:
            assert any(_shows(recording, index) for index in range(len(recording)))
    finally:
        recording.bag.close()


def _shows(recording: BagRecording, index: int) -> bool:
    """Whether a sweep and one of its images can be read."""
    try:
        return any(frame.image.size for frame in recording[index].cameras)
    except InputError:
        return False


@functools.cache
def _definitions() -> list[bytes]:
    """Texts that define a message, as in bags."""
    line = b"=" * 80
    own = b'uint8 A=1\nstring name "x"\nfloat64[3] p\nfuzz_msgs/Part[<=4] parts\n'
    part = b"\nMSG: fuzz_msgs/Part\nint32 id\nfuzz_msgs/Whole whole\n"
    idl = (
        b"module fuzz_msgs { module msg { struct Whole { int32 id; sequence<double, 3> p; }; }; };"
    )
    nested = b"".join(b"A%d[2] a%d\n" % (i, i) for i in range(300))
    return [own + line + part, own, idl, nested, b"string<=10[<=3] x [\"a\", 'b']\nwstring w"]


@st.composite
def definitions(draw: st.DrawFn) -> bytes:
    """A definition with a few changes; some are long."""
    text = draw(mutated(_definitions()))
    repeated = draw(st.sampled_from([1, 1, 1, 1, 20, 300]))
    return b"\n".join([text] * repeated)[:120_000]


def check_definition(case: bytes, folder: Path) -> None:
    """A topic with its own definition is copied, or left out with a reason."""
    text = case.decode("utf-8", "replace")
    for language in ("ros2msg", "ros2idl"):
        channel = Channel("/own", "cdr", "fuzz_msgs/msg/Whole", language, text, "", "", 1)
        own = connection(1, "/own", channel, 1)
        with BagWriter(folder / "copy", force=True) as writer:
            reason = writer.add_topic(own)
            assert len(reason) < 1000
            if not reason:
                writer.pass_through(own, 1, b"\0\1\0\0")
        assert len(read_messages(folder / "copy")) == (not reason)


def damaged_mcap() -> st.SearchStrategy[bytes]:
    """An MCAP file with a few changes."""
    return mutated(list(variants().values()))


def check_mcap(case: bytes, folder: Path) -> None:
    """See `check_bag`."""
    path = folder / "drive.mcap"
    path.write_bytes(case)
    check_bag(path)


def damaged_sqlite() -> st.SearchStrategy[bytes]:
    """A database with a few changes."""
    return mutated([_storage(intact("sqlite3"))[1]])


def check_sqlite(case: bytes, folder: Path) -> None:
    """See `check_bag`."""
    path = folder / "drive.db3"
    path.write_bytes(case)
    check_bag(path)


@st.composite
def damaged_metadata(draw: st.DrawFn) -> bytes:
    """The kind of the bag, a newline, and its metadata.yaml."""
    kind = draw(st.sampled_from(["mcap", "sqlite3", "sqlite3-zstd"]))
    content = intact(kind).files["metadata.yaml"]
    if draw(st.booleans()):
        content = draw(mutated([content]))
    else:
        content = dumped(draw(altered([yaml.safe_load(content)])))
    return kind.encode() + b"\n" + content


def check_metadata(case: bytes, folder: Path) -> None:
    """A bag that is read has all its messages, whatever its metadata says."""
    kind, _, content = case.partition(b"\n")
    bag = intact(kind.decode())
    path = folder / f"drive-{kind.decode()}"
    if not path.is_dir():
        folders.write_files(path, bag.files)
    (path / "metadata.yaml").write_bytes(content)
    messages = read_messages(path)
    if kind != b"sqlite3-zstd":  # its metadata says that messages are compressed
        assert Counter(messages) == Counter(bag.messages)
    check_bag(path)


@st.composite
def flipped(draw: st.DrawFn) -> bytes:
    """The name of a variant, the place of a byte, and what is added to it."""
    name = draw(st.sampled_from(["chunks", "lz4", "sqlite3"]))
    size = len(_storage(intact("sqlite3"))[1] if name == "sqlite3" else variants()[name])
    return f"{name} {draw(st.integers(0, size - 1))} {draw(st.integers(1, 255))}".encode()


def check_flipped(case: bytes, folder: Path) -> None:
    """One changed byte costs the messages of its chunk, or its message, and changes no other."""
    name, place, added = case.decode().split()
    at = int(place)
    known = intact("sqlite3" if name == "sqlite3" else "mcap").messages
    data = bytearray(_storage(intact("sqlite3"))[1] if name == "sqlite3" else variants()[name])
    if name == "sqlite3":
        hit = _message_at(bytes(data), at)
        expected = [m for i, m in enumerate(known) if i != hit] if hit is not None else None
    else:
        expected = _outside(name, at)
    data[at] = (data[at] + int(added)) % 256
    path = folder / ("drive.db3" if name == "sqlite3" else "drive.mcap")
    path.write_bytes(data)
    try:
        found = read_messages(path)
    except InputError:
        assert expected is None, "one changed byte costs the whole bag"
        raise
    if expected is not None:
        assert not Counter(expected) - Counter(found), "other messages are lost or changed"
        assert len(found) <= len(known)
    if name != "sqlite3":  # its chunks have checksums
        assert {m[2] for m in found} <= {m[2] for m in known}, "damaged messages are given"


def _message_at(data: bytes, place: int) -> int | None:
    """Index of the message whose bytes are at a place of a database."""
    for index, (_, _, raw) in enumerate(intact("sqlite3").messages):
        start = data.find(raw)
        if start >= 0 and start <= place < start + len(raw):
            return index
    return None


@functools.cache
def _chunks(name: str) -> list[tuple[int, int, list[Message]]]:
    """First and last byte of each chunk, and its messages."""
    from mcap.reader import make_reader

    reader = make_reader(io.BytesIO(variants()[name]))
    summary = reader.get_summary()
    assert summary is not None and len(summary.chunk_indexes) > 2
    rows = []
    for index in summary.chunk_indexes:
        low, high = index.message_start_time, index.message_end_time
        inside = [m for m in intact("mcap").messages if low <= m[1] <= high]
        start = index.chunk_start_offset
        rows.append((start, start + index.chunk_length, inside))
    return rows


def _outside(name: str, place: int) -> list[Message] | None:
    """Messages of all chunks but the one at a place; None for a place outside chunks."""
    rows = _chunks(name)
    hit = next((row for row in rows if row[0] <= place < row[1]), None)
    if hit is None:
        return None
    return [m for m in intact("mcap").messages if m not in hit[2]]


@st.composite
def spoiled_messages(draw: st.DrawFn) -> bytes:
    """The number of a message, a newline, and its new content."""
    messages = intact("mcap").messages
    number = draw(st.integers(0, len(messages) - 1))
    return f"{number}\n".encode() + draw(mutated([messages[number][2]]))


def check_messages(case: bytes, folder: Path) -> None:
    """One bad message costs one sweep, at most; the others are the same."""
    number, _, raw = case.partition(b"\n")
    changed = int(number)
    bag = intact("mcap")
    topic = bag.messages[changed][0]
    path = folder / "drive"
    with BagWriter(path, format="mcap", force=True) as writer:
        for index, (name, time, content) in enumerate(bag.messages):
            writer.write_raw(name, bag.types[name], raw if index == changed else content, time)
    recording = BagRecording(path, poses="recorded", intensity_scale=1.0)
    try:
        found = check_recording(recording)
    finally:
        recording.bag.close()
    if topic == "/tf_static":  # said once
        return
    lost = {name: value for name, value in _known_sweeps().items() if found.get(name) != value}
    assert len(lost) <= 1 + (topic == "/tf"), f"a message of {topic} costs {len(lost)} sweeps"


@functools.cache
def _known_sweeps() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "drive"
        folders.write_files(path, intact("mcap").files)
        recording = BagRecording(path, poses="recorded", intensity_scale=1.0)
        found = check_recording(recording)
        recording.bag.close()
        return found


TARGETS = (
    Target("bag-mcap", damaged_mcap, check_mcap, ("drive",), 40),
    Target("bag-sqlite", damaged_sqlite, check_sqlite, ("drive",), 40),
    Target("bag-metadata", damaged_metadata, check_metadata, ("drive",), 20),
    Target("bag-byte", flipped, check_flipped, ("drive",), 60),
    Target("bag-definition", definitions, check_definition, ("copy",), 20),
    Target("bag-message", spoiled_messages, check_messages, ("drive",), 15),
)
