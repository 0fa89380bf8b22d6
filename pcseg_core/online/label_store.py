# SPDX-License-Identifier: Apache-2.0
"""Labels of the sweeps of an unfinished result, so that an interrupted command resumes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from zlib import crc32

import numpy as np

from pcseg_core.errors import InputError
from pcseg_core.online.pipeline import LabeledSweep, Pipeline, Sweep
from pcseg_core.progress import note

_MAGIC = b"pcseg labels 1\n\0"
_FRAME = struct.Struct("<QI")  # bytes of the record, and their CRC-32
_HEAD = struct.Struct("<QQQd")  # index, points, points out of range, milliseconds


class LabelStore:
    """Labels of sweeps in the file OUT.partial, appended one by one.

    A process that is killed loses at most the sweep that it was writing: what is read back ends
    at the first record that is cut off or damaged. Use the store as a context manager. Its file is
    deleted when the block succeeds, and kept when it raises.

    Args:
        out: the result that is being made.
        identity: everything that decides the labels, as JSON can write it. Labels of another
            identity are discarded.

    Raises:
        InputError: the file is of something else, or cannot be written.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.path = partial_file(out)
        text = json.dumps(identity, sort_keys=True, default=str)
        self._start = _MAGIC + hashlib.sha256(text.encode()).digest()
        self._places: dict[int, int] = {}

    def __enter__(self) -> LabelStore:
        if self.path.exists() and not self._is_ours():
            raise InputError(
                f"{self.path} is in the way: labels of an interrupted run are stored there; move "
                "it away or choose another --out"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror or error}; choose an --out in a "
                "folder that you may write to"
            ) from error
        if self._file.read(len(self._start)) == self._start:
            self._index()
        else:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(self._start)
            self._file.flush()
        if self._places:
            note(f"resuming: {len(self._places)} sweeps are labeled already ({self.path})")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # of a full disk, which is the error already
            self._file.close()
        if error is None or not self._places:
            self.path.unlink(missing_ok=True)
        else:
            note(
                f"the labels of {len(self._places)} sweeps are stored in {self.path}; run the same "
                "command again to resume"
            )

    def process(self, pipeline: Pipeline, index: int, sweep: Sweep) -> LabeledSweep:
        """Label a sweep, or return its stored labels.

        Args:
            pipeline: labels each sweep by itself: it must not smooth over time.
            index: of the sweep.
            sweep: the sweep.
        """
        labeled = self._stored(index, sweep, pipeline)
        if labeled is None:
            labeled = pipeline.process(sweep)
            self._append(index, labeled)
        return labeled

    def _is_ours(self) -> bool:
        if not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            return _MAGIC.startswith(file.read(len(_MAGIC)))

    def _index(self) -> None:
        """Find the complete records, and cut off what follows them."""
        place, size = self._file.tell(), self.path.stat().st_size
        while (record := self._record(place, size)) is not None:
            self._places[_HEAD.unpack_from(record)[0]] = place
            place += _FRAME.size + len(record)
        self._file.seek(place)
        self._file.truncate()

    def _record(self, place: int, size: int) -> bytes | None:
        """The record at a byte of a file of `size` bytes; None if it is damaged or missing."""
        self._file.seek(place)
        frame = self._file.read(_FRAME.size)
        if len(frame) < _FRAME.size:
            return None
        length, checksum = _FRAME.unpack(frame)
        if not _HEAD.size <= length <= size - place - _FRAME.size:
            return None
        record = self._file.read(length)
        return record if crc32(record) == checksum else None

    def _stored(self, index: int, sweep: Sweep, pipeline: Pipeline) -> LabeledSweep | None:
        if index not in self._places:
            return None
        record = self._record(self._places[index], self.path.stat().st_size)
        assert record is not None
        _, count, out_of_range, milliseconds = _HEAD.unpack_from(record)
        if count != len(sweep.cloud):
            return None
        end = _HEAD.size + 8 * count
        problems = [(str(event), str(why)) for event, why in json.loads(record[end:])]
        return LabeledSweep(
            sweep.cloud,
            np.frombuffer(record, np.int32, count, _HEAD.size),
            np.frombuffer(record, np.float32, count, _HEAD.size + 4 * count),
            pipeline.label_space,
            {"stored": milliseconds},
            problems=problems,
            out_of_range=out_of_range,
        )

    def _append(self, index: int, labeled: LabeledSweep) -> None:
        milliseconds = sum(labeled.stages_ms.values())
        record = _HEAD.pack(index, len(labeled.labels), labeled.out_of_range, milliseconds)
        record += np.asarray(labeled.labels, np.int32).tobytes()
        record += np.asarray(labeled.confidence, np.float32).tobytes()
        record += json.dumps(labeled.problems).encode()
        try:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(_FRAME.pack(len(record), crc32(record)) + record)
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._places[index] = place


def partial_file(out: Path) -> Path:
    """File of the labels of an unfinished result."""
    return out.with_name(f"{out.name}.partial")
