# SPDX-License-Identifier: Apache-2.0
"""Prepared sweeps in shards: files of some dozens of sweeps, read one sweep at a time.

A shard holds records of the safetensors format, one after the other; an index beside the shards
tells where each begins. A sweep is read by its range of bytes, from a folder or from object
storage, so that any order costs the same and nothing stays in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import compress
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from pcseg_core.distill.lidar_teacher import LidarTargets
from pcseg_core.distill.observation import flat_arrays, part_of
from pcseg_core.distill.pixels import PointPixels
from pcseg_core.errors import InputError
from pcseg_core.files import write_atomic
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.distributed import from_all, from_first, ranks, wait_for_all
from pcseg_core.storage import exists, is_url, read_range, write_object

Array = npt.NDArray[Any]
Unit = tuple[str, Callable[[], Iterable[TrainingSweep]]]
"""A name, and what makes the sweeps of a unit. Units are made by one process each."""

_INDEX = "index-1.npz"  # with the number of the format
_SHARD_BYTES = 64_000_000
_DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1"}


@dataclass
class Prepared:
    """Sweeps to train on.

    Attributes:
        sweeps: in memory, or in shards.
        counts: what was counted when they were made, in all processes.
    """

    sweeps: Sequence[TrainingSweep]
    counts: Counter[str]


def prepared(
    units: Sequence[Unit], place: str | None = None, counts: Callable[[], Counter[str]] = Counter
) -> Prepared:
    """The sweeps of units: in memory, or written once into shards that all processes read.

    Args:
        units: in the order of their sweeps; names are unique. Processes take turns.
        place: folder or URL of the shards of these units alone; None keeps the sweeps in memory.
        counts: tells what this process counted while it made its units.

    Raises:
        InputError: the place cannot be written or read.
    """
    if place is None:
        return Prepared([sweep for _, make in units for sweep in make()], counts())
    rank, world = ranks()
    if not from_first(lambda: _exists(place, _INDEX)):
        rows = [(name, _write(place, name, make())) for name, make in units[rank::world]]
        written = dict(row for part in from_all(rows) for row in part)
        total = sum(from_all(counts()), Counter[str]())
        if rank == 0:
            _write_index(place, [row for name, _ in units for row in written[name]], total)
        wait_for_all()
    index = _Index.read(place)
    return Prepared(StoredSweeps(index, np.arange(len(index.scene))), index.counts)


class StoredSweeps(Sequence[TrainingSweep]):
    """Sweeps in shards, and some in memory; each is read when it is used.

    Args:
        index: of the shards.
        rows: (K,) which sweeps, by their place in the index; those in memory count on.
        more: sweeps in memory.
    """

    def __init__(self, index: _Index, rows: Array, more: Sequence[TrainingSweep] = ()) -> None:
        self._index, self._rows, self._more = index, rows, more

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, key: int) -> TrainingSweep: ...

    @overload
    def __getitem__(self, key: slice) -> StoredSweeps: ...

    def __getitem__(self, key: int | slice) -> TrainingSweep | StoredSweeps:
        """A sweep, read now; or part of the sweeps, to be read."""
        if isinstance(key, slice):
            return self.take(key)
        row = int(self._rows[key])
        stored = len(self._index.scene)
        return self._index.sweep(row) if row < stored else self._more[row - stored]

    def take(self, chosen: Array | slice) -> StoredSweeps:
        """Some of the sweeps, by (K,) places or (N,) bool."""
        return StoredSweeps(self._index, self._rows[chosen], self._more)

    def joined(self, more: Sequence[TrainingSweep]) -> StoredSweeps:
        """These sweeps, then others in memory."""
        first = len(self._index.scene) + len(self._more)
        rows = np.concatenate([self._rows, np.arange(first, first + len(more))])
        return StoredSweeps(self._index, rows, [*self._more, *more])

    @property
    def scenes(self) -> list[str]:
        """Scene of each sweep; reads none."""
        stored, names = len(self._index.scene), self._index.names
        return [
            names[self._index.scene[row]] if row < stored else self._more[row - stored].scene
            for row in self._rows
        ]


def scenes_of(sweeps: Sequence[TrainingSweep]) -> list[str]:
    """Scene of each sweep."""
    if isinstance(sweeps, StoredSweeps):
        return sweeps.scenes
    return [sweep.scene for sweep in sweeps]


def chosen(
    sweeps: Sequence[TrainingSweep], mask: npt.NDArray[np.bool_], more: Sequence[TrainingSweep] = ()
) -> Sequence[TrainingSweep]:
    """The sweeps where a mask (N,) is true, then more sweeps."""
    if isinstance(sweeps, StoredSweeps):
        return sweeps.take(mask).joined(more)
    return [*compress(sweeps, mask), *more]


@dataclass(frozen=True)
class _Index:
    """Where the sweeps of a place are.

    Attributes:
        place: folder or URL.
        files: names of the shards.
        shard, start, end: (N,) shard of each sweep, and its range of bytes.
        names: of the scenes.
        scene: (N,) scene of each sweep.
        counts: see `Prepared`.
    """

    place: str
    files: list[str]
    shard: Array
    start: Array
    end: Array
    names: list[str]
    scene: Array
    counts: Counter[str]

    @classmethod
    def read(cls, place: str) -> _Index:
        """The index of a place.

        Raises:
            InputError: there is none, or it is damaged.
        """
        try:
            with np.load(BytesIO(_read(place, _INDEX))) as found:
                arrays = {name: found[name] for name in ("shard", "start", "end", "scene")}
                about = json.loads(found["about"].item())
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise InputError(
                f"{place}: the index of the shards is damaged ({error}); remove it and run again"
            ) from None
        return cls(
            place=place,
            files=about["files"],
            names=about["names"],
            counts=Counter(about["counts"]),
            **arrays,
        )

    def sweep(self, row: int) -> TrainingSweep:
        """Read a sweep.

        Raises:
            InputError: its shard is missing or cut short.
        """
        name, start, end = self.files[self.shard[row]], int(self.start[row]), int(self.end[row])
        data = _read(self.place, name, start, end)
        if len(data) != end - start:
            raise InputError(
                f"{self.place}/{name}: cut short; remove {self.place}/{_INDEX} and run again"
            )
        arrays = _arrays(data)
        pixels = part_of(PointPixels, arrays, "pixels/")
        lidar = part_of(LidarTargets, arrays, "lidar/")
        return TrainingSweep(
            arrays["xyz"],
            arrays["intensity"],
            arrays["label"],
            arrays["confidence"],
            self.names[self.scene[row]],
            pixels,
            lidar,
        )


_Row = tuple[str, int, int, str]  # file, start, end, scene


def _write(place: str, unit: str, sweeps: Iterable[TrainingSweep]) -> list[_Row]:
    """Write the shards of a unit; where its sweeps are."""
    rows: list[_Row] = []
    for number, records in enumerate(_pieces(sweeps)):
        name, end = f"{unit}-{number:04d}.shard", 0
        for scene, record in records:
            rows.append((name, end, end + len(record), scene))
            end += len(record)
        _put(place, name, b"".join(record for _, record in records))
    return rows


def _pieces(sweeps: Iterable[TrainingSweep]) -> Iterator[list[tuple[str, bytes]]]:
    """Scene and record of sweeps, as many at a time as a shard holds."""
    piece: list[tuple[str, bytes]] = []
    for sweep in sweeps:
        arrays = {name: np.ascontiguousarray(array) for name, array in flat_arrays(sweep)}
        piece.append((sweep.scene, save(arrays)))
        if sum(len(record) for _, record in piece) >= _SHARD_BYTES:
            yield piece
            piece = []
    if piece:
        yield piece


def _write_index(place: str, rows: Sequence[_Row], counts: Counter[str]) -> None:
    files, scenes = ({row[k]: None for row in rows} for k in (0, 3))
    of_file, of_scene = ({name: k for k, name in enumerate(names)} for names in (files, scenes))
    about = {"files": list(files), "names": list(scenes), "counts": counts}
    content = BytesIO()
    np.savez(
        content,
        shard=np.array([of_file[row[0]] for row in rows], np.int32),
        start=np.array([row[1] for row in rows], np.int64),
        end=np.array([row[2] for row in rows], np.int64),
        scene=np.array([of_scene[row[3]] for row in rows], np.int32),
        about=np.array(json.dumps(about)),
    )
    _put(place, _INDEX, content.getvalue())


def _arrays(record: bytes | bytearray) -> dict[str, Array]:
    """Arrays of a record of the safetensors format, without a copy."""
    first = 8 + int.from_bytes(record[:8], "little")
    found = {}
    for name, about in json.loads(record[8:first]).items():
        start, end = about["data_offsets"]
        flat = np.frombuffer(
            memoryview(record)[first + start : first + end], _DTYPES[about["dtype"]]
        )
        found[name] = flat.reshape(about["shape"])
    return found


def _put(place: str, name: str, data: bytes) -> None:
    """Write a file, whole or not at all."""
    if is_url(place):
        write_object(f"{place}/{name}", data)
    else:
        write_atomic(Path(place, name), data)


def _read(place: str, name: str, start: int = 0, end: int | None = None) -> bytes | bytearray:
    """A range of a file; shorter where the file ends."""
    if is_url(place):
        return read_range(f"{place}/{name}", start, end)
    try:
        with Path(place, name).open("rb") as file:
            file.seek(start)
            if end is None:
                return file.read()
            data = bytearray(end - start)
            del data[file.readinto(data) :]
            return data
    except OSError as error:
        raise InputError(f"{place}/{name}: {error.strerror or error}; run again") from None


def _exists(place: str, name: str) -> bool:
    if not is_url(place):
        return Path(place, name).is_file()
    return exists(f"{place}/{name}")
