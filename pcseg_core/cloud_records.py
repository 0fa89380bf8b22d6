# SPDX-License-Identifier: Apache-2.0
"""The points of a cloud as records of bytes: write columns into them, and take some of them.

The native library does it where it was built, numpy otherwise, several times slower.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from ctypes import byref

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud_layout import Array, overlay
from pcseg_core.errors import InputError
from pcseg_core.native.library import check, optional_library, thread_count
from pcseg_core.native.structures import Column, Part, RecordsArgs


def zeros(count: int) -> array.array[int]:
    """Bytes of the type that rclpy of every distribution assigns quickly."""
    return array.array("B", b"\0") * count


def write(out: Array, columns: Sequence[tuple[Array, int]]) -> None:
    """Write values into records; bytes that no column covers stay.

    Args:
        out: (height, width) records as `np.void`, C-contiguous.
        columns: values (height, width) or (height, width, count) with their offset in a record.
    """
    library = optional_library()
    if library is None:
        for values, offset in columns:
            kind = values.dtype if values.ndim == 2 else (values.dtype, values.shape[2:])
            overlay(out, kind, offset)[...] = values
        return
    kept = [_plain(values) for values, _ in columns]  # alive during the call
    listed: list[Column] = []
    for values, (_, offset) in zip(kept, columns):
        size = values.itemsize * int(np.prod(values.shape[2:]))
        column = Column(values.ctypes.data, *values.strides[:2], size, offset)
        if not (listed and _follows(listed[-1], column)):
            listed.append(column)
        else:
            listed[-1].bytes += size
    array = (Column * len(listed))(*listed)
    args = RecordsArgs(array, out.ctypes.data, *out.shape, out.itemsize, len(listed))
    check(library.pcseg_write_records(byref(args), thread_count()))


def _follows(one: Column, other: Column) -> bool:
    """Both can be copied as one: their values follow each other in memory and in the record."""
    steps = (one.row_step, one.step) == (other.row_step, other.step)
    together = one.start + one.bytes == other.start and one.offset + one.bytes == other.offset
    return steps and together


def _plain(values: Array) -> Array:
    """Values whose third axis, if there is one, is contiguous."""
    plain = values.ndim == 2 or values.strides[2] == values.itemsize
    return values if plain else np.ascontiguousarray(values)


def take(
    records: npt.NDArray[np.uint8], parts: Sequence[npt.NDArray[np.bool_]]
) -> list[array.array[int]]:
    """The bytes of the chosen records, of each part.

    Args:
        records: (N, step), C-contiguous.
        parts: (N,) each, whether a record is in the part.

    Raises:
        InputError: a part is of another number of records.
    """
    if any(chosen.shape != records.shape[:1] for chosen in parts):
        raise InputError(f"cloud: parts of {len(records)} points do not have one value for each")
    library = optional_library()
    if library is None:
        taken = [array.array("B") for _ in parts]
        for part, chosen in zip(taken, parts):
            part.frombytes(np.ascontiguousarray(records[chosen]).data)
        return taken
    count, step = records.shape
    parts = [np.ascontiguousarray(chosen, np.bool_) for chosen in parts]
    counts = [int(np.count_nonzero(chosen)) for chosen in parts]
    taken = [zeros(number * step) for number in counts]
    outs = (part.buffer_info()[0] for part in taken)
    listed = (Part * len(parts))(*map(Part, (c.ctypes.data for c in parts), outs, counts))
    check(
        library.pcseg_take_records(
            records.ctypes.data, step, count, listed, len(parts), thread_count()
        )
    )
    return taken


def all_finite(values: Array) -> bool:
    """All values (height, width) or (height, width, count) are finite."""
    library = optional_library()
    if library is None or values.dtype != np.float32:
        return bool(np.isfinite(values).all())
    values = _plain(values)
    sizes = *(*values.shape, 1)[:3], *values.strides[:2]
    return bool(library.pcseg_all_finite(values.ctypes.data, *sizes, thread_count()))
