# SPDX-License-Identifier: Apache-2.0
"""Reductions of short rows, such as class probabilities: native or numpy.

numpy takes several times as long, for its loops run along the rows. The native library is used
where the process has it already, as every process with a `Segmenter` does. Loading it here would
bring torch, which takes seconds, in the middle of a sweep.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_matrix

from pcseg_core.errors import InputError

Array = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


def top(values: Float32) -> tuple[Int32, Float32]:
    """Column (M,) of the largest value of each row (M, C), the first of equals; and that value."""
    library = loaded_library()
    if library is None or values.strides[1] != values.itemsize:
        return _plain_top(values)
    winner, most = np.empty(len(values), np.int32), np.empty(len(values), np.float32)
    step = max(values.strides[0] // values.itemsize, values.shape[1])
    library.check(
        library.load().pcseg_row_top(
            values.ctypes.data, *values.shape, step, winner.ctypes.data, most.ctypes.data
        )
    )
    return winner, most


def means(values: Float32, used: Array, group: Int32, groups: int) -> Float32:
    """(G, C) mean, for each group, of those rows of values (N, C) that are used.

    Args:
        values: C-contiguous.
        used: (K,) int64 positions of the rows, ascending.
        group: (K,) group of each.
        groups: number G of groups; one without rows has a mean of 0.
    """
    library = loaded_library()
    if library is None or not values.flags.c_contiguous:
        return _plain_means(values, used, group, groups)
    used, group = np.ascontiguousarray(used, np.int64), np.ascontiguousarray(group, np.int32)
    found = np.empty((groups, values.shape[1]), np.float32)
    library.check(
        library.load().pcseg_row_means(
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
    store: Float32, at: Array, fade: Float32, look: Float32, share: float
) -> tuple[Int32, Float32]:
    """Add looks to rows of a store, which are faded before.

    Args:
        store: (R, C + 2) sums; number of looks; column of the largest sum. C-contiguous, changed.
        at: (M,) int64 distinct rows.
        fade: (M,) factors of what the rows were.
        look: (M, C); may be overwritten.
        share: of each look beyond the first that counts in what is returned.

    Returns:
        Column (M,) of the largest sum, and (M, C) how far each sum is below it, divided by the
        number n of looks and times 1 + share (n - 1).

    Raises:
        InputError: rows that do not exist.
    """
    library = loaded_library()
    if library is None:
        return _plain_accumulate(store, at, fade, look, share)
    at, fade = np.ascontiguousarray(at, np.int64), np.ascontiguousarray(fade, np.float32)
    below, winner = np.ascontiguousarray(look, np.float32), np.empty(len(at), np.int32)
    library.check(
        library.load().pcseg_row_accumulate(
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


def loaded_library() -> Any | None:
    """The module that calls the native library, if it is imported and the library was built."""
    module = sys.modules.get("pcseg_core.sparse.native.library")
    load = getattr(module, "load", None)  # absent while another thread imports it
    return None if load is None or isinstance(load(), str) else module


def _plain_top(values: Float32) -> tuple[Int32, Float32]:
    winner, most = np.zeros(len(values), np.int32), values[:, 0].copy()
    for k in range(1, values.shape[1]):
        np.copyto(winner, k, where=values[:, k] > most)
        np.maximum(most, values[:, k], out=most)
    return winner, most


def _plain_means(values: Float32, used: Array, group: Int32, groups: int) -> Float32:
    n = len(values)
    starts = np.zeros(n + 1, np.int32)
    starts[used + 1] = 1
    np.cumsum(starts, out=starts)
    sums: Float32 = (
        csc_matrix((np.ones(len(used), np.float32), group, starts), (groups, n)) @ values
    )
    sums /= np.bincount(group, minlength=groups).clip(1).astype(np.float32)[:, None]
    return sums


def _plain_accumulate(
    store: Float32, at: Array, fade: Float32, look: Float32, share: float
) -> tuple[Int32, Float32]:
    if len(at) and not 0 <= at.min() <= at.max() < len(store):
        raise InputError(f"rows {at.min()} to {at.max()} of a store of {len(store)}")
    state = store.take(at, axis=0)
    state *= fade[:, None]
    sums, number = state[:, :-2], state[:, -2]
    sums += look
    number += 1
    winner, most = _plain_top(sums)
    state[:, -1] = winner
    store[at] = state
    worth = (1 + np.float32(share) * (number - 1)) / number
    return winner, (sums - most[:, None]) * worth[:, None]
