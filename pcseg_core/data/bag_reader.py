# SPDX-License-Identifier: Apache-2.0
"""Read rosbag2 files (mcap or sqlite3, compressed or not) without ROS.

Messages are ordered by header stamps, not by recording times. The message types used here are the
same in all ROS 2 distributions, so bags without embedded definitions are readable too.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data.stamps import longest_increasing
from pcseg_core.errors import InputError, PcsegError, require
from pcseg_core.progress import tracked

CLOUD = "sensor_msgs/msg/PointCloud2"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
TF = "tf2_msgs/msg/TFMessage"
ODOMETRY = "nav_msgs/msg/Odometry"
STAMPED = (CLOUD, IMAGE, COMPRESSED_IMAGE, CAMERA_INFO, ODOMETRY)


@dataclass(frozen=True)
class TopicIndex:
    """Positions of the messages of a topic, in recording order.

    Attributes:
        topic, msgtype: as in the bag.
        frame_id: of the first message; "" for messages without a header.
        stamps_ns: (M,) int64 header stamps.
        bag_ns: (M,) int64 recording times.
        occurrence: (M,) int64, number of earlier messages of the topic with the same time.
    """

    topic: str
    msgtype: str
    frame_id: str
    stamps_ns: npt.NDArray[np.int64]
    bag_ns: npt.NDArray[np.int64]
    occurrence: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def take(self, kept: npt.NDArray[np.int64]) -> TopicIndex:
        """The index of a subset of the messages."""
        return TopicIndex(
            self.topic,
            self.msgtype,
            self.frame_id,
            self.stamps_ns[kept],
            self.bag_ns[kept],
            self.occurrence[kept],
        )

    def ordered(self) -> TopicIndex:
        """Messages with increasing stamps; drops as few as possible."""
        return self.take(longest_increasing(self.stamps_ns))


class BagFile:
    """A bag opened for reading, for one thread at a time.

    Every process that it is pickled to or forked into opens the files itself.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a bag.

        Args:
            path: bag folder, or a bare .mcap or .db3 file.

        Raises:
            InputError: no such bag, or a truncated, corrupt or unknown one.
        """
        self.path = Path(path)
        self._storage = _storage_path(self.path)
        self._reader: Any = None
        self._process = 0
        self._inherited: Any = None
        self.connections: list[Any] = list(self._open().connections)
        self.topics: dict[str, str] = {c.topic: c.msgtype for c in self.connections}
        self.counts: Counter[str] = Counter()
        for connection in self.connections:
            self.counts[connection.topic] += connection.msgcount

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def of_type(self, *msgtypes: str) -> list[str]:
        """Topics of these types that have messages, sorted by name."""
        return sorted(t for t, kind in self.topics.items() if kind in msgtypes and self.counts[t])

    def messages(
        self,
        topics: Sequence[str] | None = None,
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[tuple[Any, int, bytes]]:
        """Yield (connection, recording time, serialized message) in recording order.

        Finish the iteration before other reads of the same object: they may share the file
        position.

        Args:
            topics: topics to read; None for all.
            start_ns, stop_ns: only messages recorded in [start_ns, stop_ns).

        Raises:
            InputError: the bag is truncated or corrupt.
        """
        chosen = [c for c in self.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        try:
            yield from self._open().messages(chosen, start_ns, stop_ns)
        except (PcsegError, GeneratorExit):
            raise
        except Exception as error:  # storage plugins raise various errors
            raise _unreadable(self.path, error) from error

    def read(self, index: TopicIndex, position: int) -> Any:
        """Deserialize one message of an index.

        Raises:
            InputError: the message cannot be found or deserialized.
        """
        time = int(index.bag_ns[position])
        skip = int(index.occurrence[position])
        for _, _, raw in self.messages([index.topic], time, time + 1):
            if skip == 0:
                return self.deserialize(raw, index.msgtype)
            skip -= 1
        raise InputError(f"{self.path}: a message of {index.topic} is gone; was the bag changed?")

    def deserialize(self, raw: bytes | memoryview, msgtype: str) -> Any:
        """Deserialize a message of a standard type.

        Raises:
            InputError: the bytes are not such a message.
        """
        try:
            return type_store().deserialize_cdr(raw, msgtype)
        except Exception as error:  # the kind depends on the wrong bytes
            raise InputError(
                f"{self.path}: a {msgtype} does not deserialize ({type(error).__name__}: {error})"
            ) from error

    def index(
        self, topics: Sequence[str], skipped: Counter[str] | None = None
    ) -> tuple[dict[str, TopicIndex], list[Any]]:
        """Scan the bag once for header stamps and transforms.

        Args:
            topics: topics of stamped messages to index.
            skipped: counts messages without a readable header.

        Returns:
            One index per topic that has messages, and (topic, message) of every TFMessage.
        """
        transforms: list[Any] = []
        rows: dict[str, list[tuple[int, int, str]]] = {topic: [] for topic in topics}
        wanted = [*topics, *self.of_type(TF)]
        total = sum(self.counts[topic] for topic in wanted)
        reading = self.messages(wanted)
        for connection, time, raw in tracked(reading, f"Reading {self.path.name}", total):
            try:
                if connection.msgtype == TF:
                    transforms.append((connection.topic, self.deserialize(raw, TF)))
                else:
                    rows[connection.topic].append((time, *parse_header(raw)))
            except InputError:
                if skipped is not None:
                    skipped[f"{connection.topic}: message that does not deserialize"] += 1
        indexed = {
            topic: _topic_index(topic, self.topics[topic], found)
            for topic, found in rows.items()
            if found
        }
        return indexed, transforms

    def close(self) -> None:
        """Close the files; the next read reopens them."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _open(self) -> Any:
        if self._reader is not None and self._process != os.getpid():
            # Processes must not share file offsets and SQLite handles. The parent's reader is kept
            # unused: to close it would delete the files that the parent unpacked.
            self._inherited, self._reader = self._reader, None
        if self._reader is None:
            self._process = os.getpid()
            rosbag2 = require("rosbags.rosbag2", "core")
            try:
                _check_database_sizes(self._storage)
                reader = rosbag2.Reader(self._storage)
                reader.open()
            except Exception as error:  # storage plugins raise various errors
                raise _unreadable(self.path, error) from error
            self._reader = reader
        return self._reader


_VISION_MSGS = {  # not among the standard types: name -> fields
    "VisionClass": "uint16 class_id\nstring class_name",
    "LabelInfo": "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold",
}


@lru_cache(maxsize=1)
def type_store() -> Any:
    """Message types of ROS 2 and LabelInfo; those used here are equal in all distributions."""
    typesys = require("rosbags.typesys", "core")
    store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    for name, fields in _VISION_MSGS.items():
        store.register(typesys.get_types_from_msg(fields, f"vision_msgs/msg/{name}"))
    return store


def parse_header(raw: bytes | memoryview) -> tuple[int, str]:
    """Stamp [ns] and frame_id of a serialized message that starts with a std_msgs/Header.

    CDR: 4 bytes of encapsulation, int32 seconds, uint32 nanoseconds, uint32 length, characters.

    Raises:
        InputError: the message is too short.
    """
    try:
        order = "<" if raw[1] & 1 else ">"
        seconds, nanoseconds, length = struct.unpack_from(f"{order}iII", raw, 4)
        if 16 + length > len(raw):
            raise InputError("the message ends within its header")
        frame_id = bytes(raw[16 : 16 + length]).rstrip(b"\0").decode("utf-8", "replace")
    except (struct.error, IndexError) as error:
        raise InputError("the message is too short for a header") from error
    return seconds * 1_000_000_000 + nanoseconds, frame_id


def stamp_ns(header: Any) -> int:
    """Stamp of a deserialized header [ns]."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def _topic_index(topic: str, msgtype: str, rows: list[tuple[int, int, str]]) -> TopicIndex:
    bag_ns = np.array([row[0] for row in rows], dtype=np.int64)
    seen: Counter[int] = Counter()
    occurrence = np.empty(len(rows), dtype=np.int64)
    for position, time in enumerate(bag_ns.tolist()):
        occurrence[position] = seen[time]
        seen[time] += 1
    stamps = np.array([row[1] for row in rows], dtype=np.int64)
    return TopicIndex(topic, msgtype, rows[0][2], stamps, bag_ns, occurrence)


def _storage_path(path: Path) -> Path:
    """Path to open: the folder with its metadata, or the only file in it."""
    if not path.exists():
        raise InputError(f"{path}: no such bag")
    if path.is_file():
        if path.suffix in (".mcap", ".db3"):
            return path
        hint = "; convert it: rosbags-convert --src X.bag --dst X" if path.suffix == ".bag" else ""
        raise InputError(f"{path}: not a rosbag2 file (.mcap or .db3){hint}")
    if (path / "metadata.yaml").is_file():
        return path
    files = sorted([*path.glob("*.mcap"), *path.glob("*.db3")])
    if len(files) == 1:
        return files[0]
    raise InputError(
        f"{path}: no metadata.yaml and {len(files)} bag files in it; rebuild it with "
        f"'ros2 bag reindex {path}', or give one .mcap or .db3 file"
    )


def _check_database_sizes(storage: Path) -> None:
    """Raise for truncated SQLite files; SQLite itself reads the missing part as zeros.

    The header has the page size at byte 16 and the number of pages at byte 28 (sqlite.org,
    "Database File Format"); the number is valid only if bytes 24 and 92 agree.
    """
    for path in storage.glob("*.db3") if storage.is_dir() else [storage]:
        if path.suffix != ".db3":
            continue
        with path.open("rb") as file:
            header = file.read(100)
        if len(header) < 100:
            raise ValueError("a database without header")
        (page_size,) = struct.unpack(">H", header[16:18])
        (pages,) = struct.unpack(">I", header[28:32])
        needed = pages * (65536 if page_size == 1 else page_size)
        if header[24:28] == header[92:96] and path.stat().st_size < needed:
            raise ValueError(f"{path.stat().st_size} of {needed} bytes are there")


def _unreadable(path: Path, error: Exception) -> InputError:
    detail = str(error) or type(error).__name__
    return InputError(
        f"{path}: the bag cannot be read ({detail}); it is truncated or corrupt. 'mcap recover' "
        "(mcap) or 'ros2 bag reindex' can often save a recording that was cut off"
    )
