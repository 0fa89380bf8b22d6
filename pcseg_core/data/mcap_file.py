# SPDX-License-Identifier: Apache-2.0
"""Messages of an MCAP file (mcap.dev), with or without its optional indexes.

The summary at the end of the file is used only if it accounts for every message. Otherwise the
data section is scanned once. Of a file that is cut off, everything before the cut is read.
"""

from __future__ import annotations

import heapq
import struct
from binascii import crc32
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pcseg_core.data.bag_storage import MAX_BYTES, Channel, not_a_bag, unzstd
from pcseg_core.errors import InputError

_Claim: TypeAlias = "tuple[int, int, Counter[int]]"  # messages, chunks, messages by channel

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER_BYTES = 1 + 8 + 20 + len(_MAGIC)
_LOOSE_PER_GROUP = 256
_LAST_NS = (1 << 63) - 1  # times are unsigned in MCAP, signed in rosbag2
(_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK) = range(1, 7)
(_CHUNK_INDEX, _STATISTICS, _DATA_END) = (0x08, 0x0B, 0x0F)


class _Record(NamedTuple):
    """A record: its kind, and its first byte and size in a buffer or file."""

    kind: int
    start: int
    size: int


@dataclass
class _Group:
    """Messages that are loaded together: a chunk, or some messages outside chunks.

    `counts` has the messages of each channel. `loose` lists (time, channel, start, size) of
    messages outside chunks.
    """

    start_ns: int
    end_ns: int
    offset: int
    counts: Counter[int] = field(default_factory=Counter)
    loose: list[tuple[int, int, int, int]] = field(default_factory=list)


class McapFile:
    """An MCAP file opened for reading.

    Attributes:
        channels: channel id -> channel.
        damaged: offset of each damaged chunk -> messages lost with it, by channel.
        ending: how a file ends that is cut off; "" for a complete one.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and read its index, or scan it.

        Raises:
            InputError: the file is no MCAP file, or a record is damaged.
        """
        self._path = path
        self.ending = ""
        self._cut = 0  # offset of a chunk that is cut off; no chunk starts at 0
        self.channels: dict[int, Channel] = {}
        self.damaged: dict[int, Counter[int]] = {}
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._groups: list[_Group] = []
        self._held: Counter[int] = Counter()
        self._size = path.stat().st_size
        self._file = path.open("rb")
        try:
            self._read_index()
        except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
            self.close()
            if isinstance(error, InputError):
                raise
            raise not_a_bag(path, f"a record is damaged: {error}") from error
        self.channels = {
            key: channel._replace(held=self._held[key]) for key, channel in self.channels.items()
        }

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def messages(
        self, ids: Collection[int], start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[int, int, bytes]]:
        """Yield (channel id, recording time, message), ordered by time.

        A damaged chunk is left out and listed in `damaged`.
        """
        low, high = start_ns or 0, 2**64 if stop_ns is None else stop_ns
        waiting: list[tuple[int, int, int, bytes]] = []
        order = 0
        for group in self._groups:
            if group.end_ns < low or group.start_ns >= high or not ids & group.counts.keys():
                continue
            while waiting and waiting[0][0] < group.start_ns:
                time, _, channel, data = heapq.heappop(waiting)
                yield channel, time, data
            for time, channel, data in self._load(group):
                if low <= time < high and channel in ids:
                    heapq.heappush(waiting, (time, order, channel, data))
                    order += 1
        while waiting:
            time, _, channel, data = heapq.heappop(waiting)
            yield channel, time, data

    def _read_index(self) -> None:
        """Find channels and groups, by the summary or by a scan."""
        if self._size < len(_MAGIC) or self._at(0, len(_MAGIC)) != _MAGIC:
            raise not_a_bag(self._path, "it does not start as an MCAP file")
        end = self._size - _FOOTER_BYTES
        footer = self._at(max(end, 0), min(self._size, _FOOTER_BYTES))
        closed = end >= len(_MAGIC) and footer[-len(_MAGIC) :] == _MAGIC and footer[0] == _FOOTER
        stop, claimed = self._end_of_data(footer, end) if closed else (self._size, None)
        if claimed is not None and self._is_complete(*claimed):
            self._held = claimed[2]
        else:
            place = self._scan(stop)
            if not closed or place < stop:
                self._end_early(place, closed, claimed)
            self._count(claimed)
        self._groups.sort(key=lambda group: (group.start_ns, group.offset))

    def _end_of_data(self, footer: bytes, end: int) -> tuple[int, _Claim | None]:
        """Where the data section ends, and the statistics if the index has them."""
        (summary,) = struct.unpack_from("<Q", footer, 9)
        if not summary:
            return end, None
        try:
            if not len(_MAGIC) <= summary <= end:
                raise ValueError("the index is outside the file")
            return summary, self._read_summary(summary, end)
        except (struct.error, IndexError, ValueError):
            for found in (self.channels, self._schemas, self._groups):
                found.clear()
            self.ending = f"{self._path.name} has a damaged index; it is read without it"
            return end, None

    def _end_early(self, place: int, closed: bool, claimed: _Claim | None) -> None:
        """Read what is there of a chunk that is cut off or has a wrong size, and nothing behind."""
        if self._size >= place + 9 and self._at(place, 1)[0] == _CHUNK:
            self._cut = place
            self._scan_chunk(place)
            if not self._groups[-1].counts:
                del self._groups[-1]
                self.damaged.pop(place, None)
        found = sum((group.counts for group in self._groups), Counter())
        if claimed is not None:
            self.damaged[self._size] = claimed[2] - found
        inside = f" in the record at byte {place}" if place < self._size else ""
        cause = "is damaged" if closed else "ends without its index"
        why = "" if closed else ": its recorder was killed or still writes, or it is half a copy"
        self.ending = f"{self._path.name} {cause}{inside}{why}; everything before is read"

    def _read_summary(self, start: int, end: int) -> _Claim | None:
        """Number of messages, of chunks, and of messages by channel; None without statistics."""
        if end - start > MAX_BYTES:
            raise not_a_bag(self._path, f"its summary has {end - start} bytes")
        data = self._at(start, end - start)
        claimed = None
        for record in _records(data):
            body = memoryview(data)[record.start : record.start + record.size]
            if record.kind == _CHUNK_INDEX:
                self._groups.append(_indexed(body))
            elif record.kind == _STATISTICS:
                messages, _, _, _, _, chunks, _, _, length = struct.unpack_from("<QHIIIIQQI", body)
                pairs = struct.iter_unpack("<HQ", body[46 : 46 + length])
                claimed = messages, chunks, Counter(dict(pairs))
            else:
                self._define(record.kind, body)
        return claimed

    def _is_complete(self, messages: int, chunks: int, counts: Counter[int]) -> bool:
        """Whether the summary accounts for every message."""
        indexed: Counter[int] = Counter()
        for group in self._groups:
            indexed.update(group.counts)
        known = all(self.channels.get(key) is not None for key in indexed)
        return (
            known
            and chunks == len(self._groups)
            and indexed == +counts
            and (indexed.total() == messages)
        )

    def _scan(self, end: int) -> int:
        """Read the data section once; the offset where it ends or is cut off."""
        self._groups = []
        place = len(_MAGIC)
        loose = _Group(0, 0, place)
        while place + 9 <= end:
            kind, size = struct.unpack("<BQ", self._at(place, 9))
            start = place + 9
            if kind == 0 or start + size > end:  # 0 is no record: space that was never written
                break
            place = end if kind == _DATA_END else start + size
            if kind == _CHUNK:
                self._scan_chunk(start - 9)
            elif kind == _MESSAGE and size >= 22:
                channel, _, time = struct.unpack("<HIQ", self._at(start, 14))
                loose.loose.append((min(time, _LAST_NS), channel, start + 22, size - 22))
                if len(loose.loose) == _LOOSE_PER_GROUP:
                    self._groups.append(_closed(loose))
                    loose = _Group(0, 0, place)
            elif kind in (_SCHEMA, _CHANNEL):
                self._define(kind, memoryview(self._at(start, size)))
        self._groups += [_closed(loose)] if loose.loose else []
        return place

    def _count(self, claimed: _Claim | None) -> None:
        """Count the scanned messages, and compare them with the statistics if there are any."""
        for group in self._groups:
            self._held.update(group.counts)
        if claimed is not None:
            self._claim(claimed[0], claimed[2])

    def _claim(self, messages: int, counts: Counter[int]) -> None:
        """Compare what was scanned with the statistics; the larger number is held.

        Raises:
            InputError: the statistics name more messages than the file has.
        """
        self._held |= counts
        if messages > self._held.total() and not self.damaged:
            raise not_a_bag(
                self._path,
                f"it says that it holds {messages} messages, {self._held.total()} are there",
            )

    def _scan_chunk(self, offset: int) -> None:
        group = _Group(0, 0, offset)
        try:
            data = self._chunk(offset)
            for record in _records(data, cut=offset == self._cut):
                if record.kind == _MESSAGE:
                    channel, _, time = struct.unpack_from("<HIQ", data, record.start)
                    time = min(time, _LAST_NS)
                    first = not group.counts
                    group.start_ns = time if first else min(group.start_ns, time)
                    group.end_ns = max(group.end_ns, time)
                    group.counts[channel] += 1
                else:
                    body = memoryview(data)[record.start : record.start + record.size]
                    self._define(record.kind, body)
        except (ValueError, struct.error):
            self.damaged[offset] = group.counts
        self._groups.append(group)

    def _define(self, kind: int, body: memoryview) -> None:
        """Note a schema or a channel; the first definition counts."""
        if kind == _SCHEMA:
            (key,) = struct.unpack_from("<H", body)
            name, encoding, data = _texts(body, 2, 3)
            self._schemas.setdefault(
                key, (name.decode(), encoding.decode(), data.decode("utf-8", "replace"))
            )
        elif kind == _CHANNEL:
            key, schema = struct.unpack_from("<HH", body)
            topic, serialization, pairs = _texts(body, 4, 3)
            kind_of_schema = self._schemas.get(schema, ("", "", ""))
            notes = _pairs(memoryview(pairs))
            qos = notes.get("offered_qos_profiles", "")
            channel = Channel(topic.decode(), serialization.decode(), *kind_of_schema, "", qos, 0)
            self.channels.setdefault(key, channel)

    def _load(self, group: _Group) -> Iterator[tuple[int, int, bytes]]:
        """(time, channel, message) of a group; nothing of a damaged chunk."""
        if group.loose:
            for time, channel, start, size in group.loose:
                yield time, channel, self._at(start, size)
            return
        if group.offset in self.damaged:
            return
        found = []
        try:
            data = self._chunk(group.offset)
            for record in _records(data, cut=group.offset == self._cut):
                if record.kind == _MESSAGE:
                    channel, _, time = struct.unpack_from("<HIQ", data, record.start)
                    end = record.start + record.size
                    found.append((min(time, _LAST_NS), channel, data[record.start + 22 : end]))
        except (ValueError, struct.error):
            self.damaged[group.offset] = group.counts
            return
        yield from found

    def _chunk(self, offset: int) -> bytes:
        """The decompressed records of a chunk; those that are there of one that is cut off.

        Raises:
            ValueError: the chunk is damaged, or its compression is unknown.
        """
        kind, length = struct.unpack("<BQ", self._at(offset, 9))
        if kind != _CHUNK or length > MAX_BYTES:
            raise ValueError(f"no chunk at byte {offset}")
        cut = offset == self._cut
        body = self._at(offset + 9, min(length, self._size - offset - 9) if cut else length)
        _, _, size, crc, name = struct.unpack_from("<QQQII", body)
        compression = body[32 : 32 + name].decode()
        (packed,) = struct.unpack_from("<Q", body, 32 + name)
        data = _unpacked(compression, body[40 + name : 40 + name + packed], size, cut)
        if cut and len(data) < size:
            return data
        if len(data) != size or (crc and crc32(data) != crc):
            raise ValueError(f"the chunk at byte {offset} is damaged")
        return data

    def _at(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:  # before memory is taken for them
            raise not_a_bag(self._path, f"{size} bytes at byte {offset} are not there")
        self._file.seek(offset)
        return self._file.read(size)


def _unpacked(compression: str, data: bytes, size: int, cut: bool) -> bytes:
    if size > MAX_BYTES:
        raise ValueError(f"a chunk of {size} bytes")
    if compression == "":
        return data
    if compression == "zstd":
        return unzstd(data, size, cut)
    if compression == "lz4":
        from lz4.frame import LZ4FrameDecompressor

        try:
            unpacked: bytes = LZ4FrameDecompressor().decompress(data, max_length=size)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return unpacked
    raise InputError(f"chunks are compressed with '{compression}'; expected zstd, lz4 or none")


def _indexed(body: memoryview) -> _Group:
    """The chunk that a chunk index describes, with the counts by the sizes of its indexes."""
    start_ns, end_ns, offset, length, bytes_ = struct.unpack_from("<QQQQI", body)
    places = sorted((at, key) for key, at in struct.iter_unpack("<HQ", body[36 : 36 + bytes_]))
    (index_bytes,) = struct.unpack_from("<Q", body, 36 + bytes_)
    ends = [at for at, _ in places[1:]] + [offset + length + index_bytes]
    counts = {key: (end - at - 15) // 16 for (at, key), end in zip(places, ends)}
    return _Group(min(start_ns, _LAST_NS), min(end_ns, _LAST_NS), offset, +Counter(counts))


def _closed(group: _Group) -> _Group:
    times = [time for time, _, _, _ in group.loose]
    group.start_ns, group.end_ns = min(times), max(times)
    group.counts = Counter(channel for _, channel, _, _ in group.loose)
    return group


def _records(data: bytes, cut: bool = False) -> Iterator[_Record]:
    """Records of a buffer; those before the cut of one that is cut off.

    Raises:
        ValueError: a record ends behind the buffer.
    """
    place = 0
    while place < len(data):
        if cut and place + 9 > len(data):
            return
        kind, size = struct.unpack_from("<BQ", data, place)
        if cut and place + 9 + size > len(data):
            return
        if place + 9 + size > len(data) or (kind == _MESSAGE and size < 22):
            raise ValueError(f"the record at byte {place} is cut off")
        yield _Record(kind, place + 9, size)
        place += 9 + size


def _texts(body: memoryview, place: int, count: int) -> list[bytes]:
    """`count` byte strings with 32-bit lengths."""
    texts = []
    for _ in range(count):
        (length,) = struct.unpack_from("<I", body, place)
        if place + 4 + length > len(body):
            raise ValueError("a text is cut off")
        texts.append(bytes(body[place + 4 : place + 4 + length]))
        place += 4 + length
    return texts


def _pairs(body: memoryview) -> dict[str, str]:
    found, place = {}, 0
    while place < len(body):
        key, value = _texts(body, place, 2)
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        place += 8 + len(key) + len(value)
    return found
