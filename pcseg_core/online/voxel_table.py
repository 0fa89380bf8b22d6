# SPDX-License-Identifier: Apache-2.0
"""Rows of numbers by voxel, in a table of fixed size that is searched by hash."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

_BITS = 21  # of a coordinate in a key: 2 million voxels, then keys repeat
_MASK = np.int64((1 << _BITS) - 1)
_PROBES = 8
_EMPTY = np.int64(-1)
_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads runs of keys


def voxel_keys(points: Array, T_world_lidar: Array, edge_m: float) -> Int64:
    """(N,) key of the voxel of the world frame that each point lies in.

    Exact however far from the world's origin, for the whole voxels of the translation are added
    as integers.

    Args:
        points: (3, N) float32 finite x, y and z, LiDAR frame [m].
        T_world_lidar: (4, 4) float64.
        edge_m: edge of a voxel [m].
    """
    offset = T_world_lidar[:3, 3] / edge_m
    whole = np.floor(offset)
    rotation = (T_world_lidar[:3, :3] / edge_m).astype(np.float32)
    grid = rotation @ points
    grid += (offset - whole).astype(np.float32)[:, None]
    np.floor(grid, out=grid)
    key = np.zeros(points.shape[1], np.int64)
    for axis in range(3):
        cell = grid[axis].astype(np.int64)
        cell += np.int64(whole[axis])
        cell &= _MASK
        key <<= _BITS
        key |= cell
    return key


class VoxelTable:
    """A bounded memory: rows that have not been written for long make room for others.

    Open addressing with a few probes. Where none of them is free or expired, the voxel among them
    that was seen longest ago is forgotten.

    Attributes:
        rows: (size, columns) float32, of the caller.
        seen: (size,) float32, when each row was last written, in the caller's time; -inf if free.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        """`capacity` is rounded up to a power of two."""
        self._bits = max(int(capacity) - 1, 1).bit_length()
        size = 1 << self._bits
        self._keys = np.full(size, _EMPTY)
        self._group = np.zeros(size, np.int32)
        self.rows = np.zeros((size, columns), np.float32)
        self.seen = np.full(size, -np.inf, np.float32)
        # The system gives the pages of zeros when they are first written: all of them now, so that
        # a process does not grow for minutes while its table fills.
        self.rows.fill(0)
        self._group.fill(0)
        # numpy copies a row faster as one item than as several
        self._items = self.rows.view(np.dtype((np.void, self.rows.strides[0]))).ravel()

    @staticmethod
    def fitting(memory_bytes: float, columns: int) -> int:
        """Largest capacity, a power of two, whose table is not larger than this."""
        row = 4 * columns + 8 + 4 + 4  # values; key, time, group
        return 1 << (max(int(memory_bytes / row), 1).bit_length() - 1)

    def __len__(self) -> int:
        """Number of rows that were ever written since the last clear."""
        return int(np.count_nonzero(self._keys != _EMPTY))

    def clear(self) -> None:
        """Forget everything."""
        self._keys.fill(_EMPTY)
        self.seen.fill(-np.inf)

    def find(self, keys: Int64, expired: float) -> Int64:
        """(N,) row of each key; new voxels get a row of zeros.

        -1 where all rows that a key may have belong to other keys of this call.

        Args:
            keys: (N,) from `voxel_keys`, repeated where points share a voxel.
            expired: rows last seen before this time may be given to other voxels.
        """
        home = (keys.view(np.uint64) * _FIBONACCI) >> np.uint64(64 - self._bits)
        slot = home.view(np.int64)
        searching: Array | None = None  # None: all of them
        for probe in range(_PROBES):
            if searching is None:
                at, wanted = slot, keys
            else:
                at = (home.view(np.int64)[searching] + probe) & (len(self._keys) - 1)
                wanted = keys[searching]
            lost = self._take(at, wanted, expired)
            if searching is None:
                slot, searching = slot.copy(), lost
            else:
                slot[searching] = at
                searching = searching[lost]
            if not len(searching):
                return slot
        assert searching is not None
        slot[searching] = -1
        self._evict(home.view(np.int64), keys, slot, searching)
        return slot

    def write(self, rows: Int64, values: Array, now: float) -> None:
        """Set distinct rows (M,) to values (M, columns) float32, C-contiguous, seen now."""
        self._items[rows] = values.view(self._items.dtype).ravel()
        self.seen[rows] = now

    def _take(self, at: Int64, wanted: Int64, expired: float) -> Array:
        """Claim free rows; gives the positions whose row belongs to another voxel."""
        miss = np.flatnonzero(self._keys.take(at) != wanted)
        at, wanted = at.take(miss), wanted.take(miss)
        free = np.flatnonzero(self.seen.take(at) < expired)
        claimed = at.take(free)
        self._keys[claimed] = wanted.take(free)  # of several voxels at one row the last one wins
        self.rows[claimed] = 0
        self.seen[claimed] = expired  # taken, though not written
        return miss[self._keys.take(at) != wanted]

    def _evict(self, home: Int64, keys: Int64, slot: Int64, searching: Array) -> None:
        """Give keys that found no row one of a voxel that is not among those of this call."""
        seen = self.seen.copy()
        seen[slot[slot >= 0]] = np.inf
        for _ in range(_PROBES):
            at = (home[searching, None] + np.arange(_PROBES)) & (len(self._keys) - 1)
            row = at[np.arange(len(at)), seen[at].argmin(axis=1)]
            free = np.flatnonzero(seen[row] < np.inf)
            searching, row = searching[free], row[free]
            if not len(searching):
                return
            self._keys[row] = keys[searching]  # of several voxels at one row the last one wins
            self.rows[row] = 0
            seen[row] = np.inf
            won = self._keys[row] == keys[searching]
            slot[searching[won]] = row[won]
            searching = searching[~won]

    def group(self, slot: Int64) -> tuple[Int64, npt.NDArray[np.int32], Array]:
        """Distinct rows among those of the points.

        Args:
            slot: (N,) rows, none of them -1.

        Returns:
            (M,) distinct rows, (N,) int32 which of them each point has, and (M,) one point of each.
        """
        order = np.arange(len(slot), dtype=np.int32)
        self._group[slot] = order
        first = np.flatnonzero(self._group.take(slot) == order)
        distinct = slot.take(first)
        self._group[distinct] = order[: len(distinct)]
        return distinct, self._group.take(slot), first
