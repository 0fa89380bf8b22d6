# SPDX-License-Identifier: Apache-2.0
"""Read rosbag2 files (mcap or sqlite3, compressed or not) without ROS.

Messages are ordered by header stamps, not by recording times. The message types used here are the
same in all ROS 2 distributions, so bags without embedded definitions are readable too.
"""

from __future__ import annotations

import os
import struct
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.data.bag_storage import BagFiles, Channel, open_files, unzstd
from pcseg_core.data.stamps import longest_increasing
from pcseg_core.errors import InputError, require
from pcseg_core.progress import tracked

CLOUD = "sensor_msgs/msg/PointCloud2"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
TF = "tf2_msgs/msg/TFMessage"
ODOMETRY = "nav_msgs/msg/Odometry"
MAX_INFOS = 1000  # different CameraInfo of one topic that are kept
STAMPED = (CLOUD, IMAGE, COMPRESSED_IMAGE, CAMERA_INFO, ODOMETRY)


@dataclass(frozen=True)
class TopicIndex:
    """Positions of the messages of a topic, in recording order.

    Attributes:
        topic, msgtype: as in the bag.
        frame_id: of the messages.
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

    Topics and messages come from the storage files, whatever metadata.yaml says. Every process
    that it is pickled to or forked into opens the files itself.

    Attributes:
        connections: the readable topics, as `rosbags.interfaces.Connection`.
        topics: readable topic -> message type.
        counts: readable topic -> messages in its files.
        held: topic -> messages by its files or by metadata.yaml, whichever names more.
        left_out: (reason, messages) by (topic, message type) of what cannot be read.
        endings: how its files end that were not closed.
        infos: CameraInfo topic -> its different contents (without the stamp) and their numbers, in
            the order of recording; filled by `index`.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a bag.

        Args:
            path: bag folder, or a bare .mcap or .db3 file.

        Raises:
            InputError: no such bag, or a truncated, corrupt or unknown one.
        """
        self.path = Path(path)
        self._files: BagFiles | None = None
        self._process = 0
        self._inherited: BagFiles | None = None
        self.left_out: dict[tuple[str, str], tuple[str, int]] = {}
        self.infos: dict[str, Counter[bytes]] = defaultdict(Counter)
        files = self._open()
        self._count(files)
        self.endings = [storage.ending for storage in files.storages if storage.ending]
        self.connections: list[Any] = [
            connection(number, topic, self._channels[topic], self.counts[topic])
            for number, topic in enumerate(self.topics, start=1)
        ]

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
            InputError: the bag is truncated or corrupt, or has fewer messages than its files say.
        """
        chosen = {c.topic: c for c in self.connections if topics is None or c.topic in topics}
        read: Counter[str] = Counter()
        files = self._open()
        for storage in files.storages:
            wanted = {k: c.topic for k, c in storage.channels.items() if self._wanted(c, chosen)}
            if not wanted:
                continue
            for key, time, raw in storage.messages(wanted.keys(), start_ns, stop_ns):
                read[wanted[key]] += 1
                yield chosen[wanted[key]], time, self._unpacked(raw) if files.packed else raw
        if start_ns is None and stop_ns is None:
            self._check_all_read(list(chosen), read)

    def missing(self) -> Counter[str]:
        """Topic -> messages that metadata.yaml names and no file holds."""
        rest = Counter(self.held)
        rest.subtract(self.counts)
        for (topic, _), (_, count) in self.left_out.items():
            rest[topic] -= count
        return +rest

    def damaged(self) -> Counter[str]:
        """Topic -> messages that were lost in damaged chunks so far."""
        lost: Counter[str] = Counter()
        for storage in self._open().storages:
            for counts in storage.damaged.values():
                for key, count in counts.items():
                    lost[storage.channels[key].topic if key in storage.channels else "?"] += count
        return lost

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
        skipped = Counter() if skipped is None else skipped
        transforms: list[Any] = []
        rows: dict[str, list[tuple[int, int, str]]] = {topic: [] for topic in topics}
        wanted = [*topics, *self.of_type(TF)]
        total = sum(self.counts[topic] for topic in wanted)
        reading = self.messages(wanted)
        self.infos.clear()
        for connection, time, raw in tracked(reading, f"Reading {self.path.name}", total):
            try:
                if connection.msgtype == TF:
                    transforms.append((connection.topic, self.deserialize(raw, TF)))
                else:
                    rows[connection.topic].append((time, *parse_header(raw)))
            except InputError:
                skipped[f"{connection.topic}: message that does not deserialize"] += 1
                continue
            if connection.msgtype == CAMERA_INFO and len(self.infos[connection.topic]) < MAX_INFOS:
                self.infos[connection.topic][raw[:4] + bytes(8) + raw[12:]] += 1
        indexed = {
            topic: _topic_index(topic, self.topics[topic], found, skipped)
            for topic, found in rows.items()
            if found
        }
        return indexed, transforms

    def close(self) -> None:
        """Close the files; the next read reopens them."""
        if self._files is not None:
            self._files.close()
            self._files = None

    def _open(self) -> BagFiles:
        if self._files is not None and self._process != os.getpid():
            # Processes must not share file offsets and SQLite handles. The parent's files are kept
            # unused: to close them would delete what the parent unpacked.
            self._inherited, self._files = self._files, None
        if self._files is None:
            self._process = os.getpid()
            self._files = open_files(self.path)
        return self._files

    def _count(self, files: BagFiles) -> None:
        """Find topics, types and numbers of messages."""
        kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self._channels: dict[str, Channel] = {}
        for storage in files.storages:
            for channel in storage.channels.values():
                if channel.serialization != "cdr":
                    reason = f"serialization '{channel.serialization}'; only cdr is read"
                    self._leave_out(channel.topic, channel.msgtype, reason, channel.held)
                else:
                    kinds[channel.topic][type_name(channel.msgtype)] += channel.held
        self.topics: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        for topic, counts in kinds.items():
            (kind, number), *others = counts.most_common()
            self.topics[topic], self.counts[topic] = kind, number
            for other, lost in others:
                reason = f"type {other}; most messages of the topic are {kind}"
                self._leave_out(topic, other, reason, lost)
        for storage in files.storages:
            for channel in storage.channels.values():
                if self._wanted(channel, self.topics):
                    digest = channel.digest or files.digests.get(channel.topic, "")
                    self._channels.setdefault(channel.topic, channel._replace(digest=digest))
        in_files = Counter(self.counts)
        for (topic, _), (_, number) in self.left_out.items():
            in_files[topic] += number
        self.held: Counter[str] = in_files | files.claimed
        self.held.update(dict.fromkeys(in_files, 0))  # topics without messages too

    def _leave_out(self, topic: str, msgtype: str, reason: str, count: int) -> None:
        _, before = self.left_out.get((topic, msgtype), ("", 0))
        self.left_out[topic, msgtype] = reason, before + count

    def _wanted(self, channel: Channel, topics: Container[str]) -> bool:
        """Whether a channel belongs to one of the topics and has its type."""
        topic = channel.topic
        same = topic in topics and channel.serialization == "cdr"
        return same and type_name(channel.msgtype) == self.topics.get(topic)

    def _check_all_read(self, topics: Sequence[str], read: Counter[str]) -> None:
        """Compare what was read with what the files say they hold."""
        lost = self.damaged()
        for topic in topics:
            if read[topic] + lost[topic] < self.counts[topic]:
                raise InputError(
                    f"{self.path}: {topic} has {self.counts[topic]} messages by the index and "
                    f"{read[topic]} were found; the bag is damaged. Repair it: 'mcap recover' "
                    "(mcap) or 'ros2 bag reindex'"
                )

    def _unpacked(self, raw: bytes) -> bytes:
        """A message of a bag whose messages are compressed; damaged ones become empty."""
        try:
            return unzstd(raw)
        except ValueError:
            return b""


def type_name(msgtype: str) -> str:
    """A message type as package/msg/Name, for the spellings of ROS 1 and IDL too."""
    parts = [part for part in msgtype.replace("::", "/").split("/") if part]
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else "/".join(parts)


def connection(number: int, topic: str, channel: Channel, count: int) -> Any:
    """The `rosbags.interfaces.Connection` of a topic."""
    rosbags = require("rosbags.interfaces", "core")
    formats = rosbags.MessageDefinitionFormat
    known = {"ros2msg": formats.MSG, "ros2idl": formats.IDL, "omgidl": formats.IDL}
    language = known.get(channel.language, formats.NONE)
    definition = channel.definition if language is not formats.NONE else ""
    extra = rosbags.ConnectionExtRosbag2(channel.serialization, _qos(channel.qos))
    stored = rosbags.MessageDefinition(language, definition)
    kind = type_name(channel.msgtype)
    return rosbags.Connection(number, topic, kind, stored, channel.digest, count, extra, None)


def _qos(text: str) -> list[Any]:
    """The recorded QoS profiles; none if they are not as expected, for nothing depends on them."""
    try:
        return list(require("rosbags.rosbag2.metadata", "core").parse_qos(text))
    except Exception:  # the kind depends on the text
        return []


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


def _topic_index(
    topic: str, msgtype: str, rows: list[tuple[int, int, str]], skipped: Counter[str]
) -> TopicIndex:
    """Index of the messages in the most frequent frame; the others are counted."""
    bag_ns = np.array([row[0] for row in rows], dtype=np.int64)
    seen: Counter[int] = Counter()
    occurrence = np.empty(len(rows), dtype=np.int64)
    for position, time in enumerate(bag_ns.tolist()):
        occurrence[position] = seen[time]
        seen[time] += 1
    stamps = np.array([row[1] for row in rows], dtype=np.int64)
    frames = Counter(row[2] for row in rows)
    ((frame, _), *others) = frames.most_common()
    for other, count in others:
        skipped[f"{topic}: frame_id '{other}' where most messages have '{frame}'"] += count
    found = TopicIndex(topic, msgtype, frame, stamps, bag_ns, occurrence)
    return found.take(np.flatnonzero([row[2] == frame for row in rows])) if others else found
