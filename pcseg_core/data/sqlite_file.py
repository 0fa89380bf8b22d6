# SPDX-License-Identifier: Apache-2.0
"""Messages of a sqlite3 file of rosbag2 (.db3), schemas 1 to 4."""

from __future__ import annotations

import sqlite3
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

from pcseg_core.data.bag_storage import Channel, not_a_bag
from pcseg_core.errors import InputError


class SqliteFile:
    """A .db3 file opened for reading; see `pcseg_core.data.bag_storage.Storage`."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its topics.

        Raises:
            InputError: the file is no database of rosbag2, or is cut off.
        """
        self._path = path
        self.damaged: dict[int, Counter[int]] = {}
        unmerged = path.with_name(path.name + "-wal")
        open_log = unmerged.is_file() and unmerged.stat().st_size > 0  # the recorder was killed
        self.ending = ""
        if open_log:
            self.ending = (
                f"{path.name} was not closed: its recorder was killed or still writes; everything "
                "that it saved is read"
            )
        else:
            _check_size(path)
        # An immutable database needs no lock, so folders without write permission work too.
        options = "mode=ro" if open_log else "mode=ro&immutable=1"
        uri = f"file:{quote(str(path.absolute()))}?{options}"
        try:
            self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
            self._database.text_factory = lambda text: text.decode("utf-8", "replace")
            self.channels = self._channels()
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise not_a_bag(path, str(error)) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def messages(
        self, ids: Collection[int], start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[int, int, bytes]]:
        """Yield (topic id, recording time, message), ordered by time.

        Raises:
            InputError: the database is damaged.
        """
        marks = ",".join("?" for _ in ids)
        query = f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({marks})"
        values = [*ids]
        for sign, limit in ((">=", start_ns), ("<", stop_ns)):
            if limit is not None:
                query += f" AND timestamp {sign} ?"
                values.append(limit)
        try:
            for topic, time, data in self._database.execute(f"{query} ORDER BY timestamp", values):
                known = time if isinstance(time, int) else 0
                yield topic, known, data if isinstance(data, bytes) else b""
        except (sqlite3.Error, ValueError) as error:
            raise not_a_bag(self._path, str(error)) from error

    def _channels(self) -> dict[int, Channel]:
        present = self._columns("topics")
        needed = {"id", "name", "type", "serialization_format"}
        if not needed <= present or not {"topic_id", "timestamp", "data"} <= self._columns(
            "messages"
        ):
            raise InputError(
                f"{self._path}: a database without the tables of rosbag2; expected a bag of "
                "'ros2 bag record'"
            )
        optional = ("offered_qos_profiles", "type_description_hash")
        extra = ", ".join(name if name in present else "''" for name in optional)
        rows = self._database.execute(
            f"SELECT id, name, type, serialization_format, {extra} FROM topics ORDER BY id"
        ).fetchall()
        counts = dict(
            self._database.execute("SELECT topic_id, count(*) FROM messages GROUP BY topic_id")
        )
        definitions = self._definitions()
        return {
            key: Channel(
                str(topic),
                str(serialization),
                str(kind),
                *definitions.get(kind, ("", "")),
                str(digest or ""),
                str(qos or ""),
                counts.get(key, 0),
            )
            for key, topic, kind, serialization, qos, digest in rows
        }

    def _definitions(self) -> dict[str, tuple[str, str]]:
        """Type -> language and text of its definition."""
        wanted = ("topic_type", "encoding", "encoded_message_definition")
        if not set(wanted) <= self._columns("message_definitions"):
            return {}
        rows = self._database.execute(f"SELECT {', '.join(wanted)} FROM message_definitions")
        return {str(kind): (str(language), str(text)) for kind, language, text in rows}

    def _columns(self, table: str) -> set[str]:
        return {row[1] for row in self._database.execute(f"PRAGMA table_info({table})")}


def _check_size(path: Path) -> None:
    """Raise InputError for a truncated file; SQLite itself reads the missing part as zeros.

    The header has the page size at byte 16 and the number of pages at byte 28 (sqlite.org,
    "Database File Format"); the number is valid only if bytes 24 and 92 agree.
    """
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise not_a_bag(path, "it does not start as a SQLite database")
    (page_size,) = struct.unpack(">H", header[16:18])
    (pages,) = struct.unpack(">I", header[28:32])
    needed = pages * (65536 if page_size == 1 else page_size)
    if header[24:28] == header[92:96] and path.stat().st_size < needed:
        raise not_a_bag(path, f"{path.stat().st_size} of {needed} bytes are there")
