# SPDX-License-Identifier: Apache-2.0
"""Reductions of matrices with short rows, such as class probabilities (N, C).

The native library runs them where it was built; numpy runs them otherwise, several times slower
because its loops run along the rows. On x86-64 both give the same bits, except those of the
entropy; a compiler that contracts multiplications and additions (other CPUs) changes the last bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_matrix

from pcseg_core.errors import InputError
from pcseg_core.native.library import check, optional_library, thread_count

Array = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

_ROWS = 8192
_TINY = np.finfo(np.float32).tiny


def top(values: Float32) -> tuple[Int32, Float32]:
    """Column (M,) of the largest value of each row (M, C), the first of equals; and that value."""
    _require(values.ndim == 2 and values.shape[1] > 0, f"a matrix with columns, got {values.shape}")
    library = optional_library()
    if library is None or not _has_plain_rows(values):
        return _numpy_top(values)
    winner, most = np.empty(len(values), np.int32), np.empty(len(values), np.float32)
    step = max(values.strides[0] // values.itemsize, values.shape[1])
    check(
        library.pcseg_row_top(
            values.ctypes.data, *values.shape, step, winner.ctypes.data, most.ctypes.data
        )
    )
    return winner, most


def entropy(values: Float32) -> Float32:
    """(M,) Shannon entropy of rows of probabilities (M, C), divided by log C; NaN if all are 0."""
    _require(values.ndim == 2 and values.shape[1] > 0, f"a matrix with columns, got {values.shape}")
    library = optional_library()
    if library is None:
        return _numpy_entropy(values)
    values, step = plain_rows(values)
    found = np.empty(len(values), np.float32)
    arguments = *values.shape, step, found.ctypes.data, thread_count()
    check(library.pcseg_row_entropy(values.ctypes.data, *arguments))
    return found


def means(values: Float32, used: Array, group: Int32, groups: int) -> Float32:
    """(G, C) mean of the used rows of each group.

    Args:
        values: (N, C) C-contiguous.
        used: (K,) int64 positions of the used rows, ascending.
        group: (K,) group of each used row.
        groups: number G of groups; the mean of a group without rows is 0.
    """
    _require(values.ndim == 2 and values.shape[1] > 0, f"a matrix with columns, got {values.shape}")
    _require(
        np.ndim(used) == 1 and np.shape(used) == np.shape(group), "one group for each used row"
    )
    _require(0 <= groups < 2**31, f"a number of groups, got {groups}")
    library = optional_library()
    if library is None or not _has_plain_rows(values) or not values.flags.c_contiguous:
        return _numpy_means(values, used, group, groups)
    used, group = np.ascontiguousarray(used, np.int64), np.ascontiguousarray(group, np.int32)
    found = np.empty((groups, values.shape[1]), np.float32)
    check(
        library.pcseg_row_means(
            values.ctypes.data,
            *values.shape,
            used.ctypes.data,
            group.ctypes.data,
            len(used),
            groups,
            found.ctypes.data,
        )
    )
    return found


def accumulate(
    store: Float32, at: Array, fade: Float32, observed: Float32, share: float
) -> tuple[Int32, Float32]:
    """Multiply rows of a store by a factor, then add an observation to each.

    Args:
        store: (R, C + 2) sums; number of observations; column of the largest sum. C-contiguous,
            changed in place.
        at: (M,) int64 distinct rows of the store.
        fade: (M,) factors.
        observed: (M, C); may be overwritten.
        share: weight in 0..1 of each observation after the first in the returned distances.

    Returns:
        Column (M,) of the largest sum, and (M, C) distance of each sum from the largest one,
        divided by the number n of observations and multiplied by 1 + share (n - 1).

    Raises:
        InputError: rows out of range, or shapes that differ.
    """
    _require(
        store.ndim == 2
        and store.dtype == np.float32
        and store.flags.c_contiguous
        and store.flags.writeable
        and np.shape(observed) == (len(at), store.shape[1] - 2)
        and np.shape(at) == np.shape(fade) == (len(at),),
        f"a float32 store (R, C + 2) with observations (M, C), rows (M,) and factors (M,), got "
        f"{store.shape}, {np.shape(observed)}, {np.shape(at)} and {np.shape(fade)}",
    )
    library = optional_library()
    if library is None:
        return _numpy_accumulate(store, at, fade, observed, share)
    at, fade = np.ascontiguousarray(at, np.int64), np.ascontiguousarray(fade, np.float32)
    below, winner = np.ascontiguousarray(observed, np.float32), np.empty(len(at), np.int32)
    check(
        library.pcseg_row_accumulate(
            store.ctypes.data,
            len(store),
            below.shape[1],
            at.ctypes.data,
            fade.ctypes.data,
            below.ctypes.data,
            len(at),
            share,
            winner.ctypes.data,
        )
    )
    return winner, below


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InputError(f"row reductions: expected {what}")


def _has_plain_rows(values: Array) -> bool:
    """float32 rows that are contiguous, in ascending order and do not overlap."""
    size = values.itemsize
    return (
        values.dtype == np.float32
        and values.strides[1] == size
        and values.strides[0] % size == 0
        and (len(values) <= 1 or values.strides[0] >= size * values.shape[1])
    )


def plain_rows(values: Array) -> tuple[Float32, int]:
    """Values (M, C) with contiguous rows of float32, copied if needed; values from row to row."""
    if not _has_plain_rows(values):
        values = np.ascontiguousarray(values, np.float32)
    return values, max(values.strides[0] // values.itemsize, values.shape[1])


def _numpy_top(values: Float32) -> tuple[Int32, Float32]:
    winner, most = np.zeros(len(values), np.int32), values[:, 0].copy()
    for k in range(1, values.shape[1]):
        np.copyto(winner, k, where=values[:, k] > most)
        np.maximum(most, values[:, k], out=most)
    return winner, most


def _numpy_entropy(values: Float32) -> Float32:
    classes = values.shape[1]
    scale = np.full(classes, -1 / np.log(max(classes, 2)), np.float32)
    found = np.empty(len(values), np.float32)
    for start in range(0, len(values), _ROWS):  # as many as the cache of a core holds
        rows = values[start : start + _ROWS]
        terms = np.maximum(rows, _TINY)
        np.log(terms, out=terms)
        terms *= rows
        block = found[start : start + _ROWS]
        np.matmul(terms, scale, out=block)
        block[rows @ scale == 0] = np.nan
    return found


def _numpy_means(values: Float32, used: Array, group: Int32, groups: int) -> Float32:
    n = len(values)
    starts = np.zeros(n + 1, np.int32)
    starts[used + 1] = 1
    np.cumsum(starts, out=starts)
    sums: Float32 = (
        csc_matrix((np.ones(len(used), np.float32), group, starts), (groups, n)) @ values
    )
    sizes = np.bincount(group, minlength=groups).clip(1).astype(np.float32)
    sums *= np.reciprocal(sizes)[:, None]
    return sums


def _numpy_accumulate(
    store: Float32, at: Array, fade: Float32, observed: Float32, share: float
) -> tuple[Int32, Float32]:
    if len(at) and not 0 <= at.min() <= at.max() < len(store):
        raise InputError(f"rows {at.min()} to {at.max()} of a store of {len(store)}")
    state = store.take(at, axis=0)
    state *= fade[:, None]
    sums, number = state[:, :-2], state[:, -2]
    sums += observed
    number += 1
    winner, most = _numpy_top(sums)
    state[:, -1] = winner
    store[at] = state
    worth = (1 + np.float32(share) * (number - 1)) / number
    return winner, (sums - most[:, None]) * worth[:, None]
