# SPDX-License-Identifier: Apache-2.0
"""A hash table of fixed size with a row of numbers per voxel."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError
from pcseg_core.native.library import VoxelTable as NativeTable
from pcseg_core.native.library import check, optional_library

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

_BITS = 21  # per coordinate: keys repeat after 2 million voxels
_MASK = np.int64((1 << _BITS) - 1)
_PROBES = 8
_EMPTY = np.int64(-1)
_SLOT = np.dtype([("key", np.int64), ("seen", np.float32), ("group", np.int32)])  # as VoxelSlot
_FIBONACCI = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: scatters consecutive keys


def voxel_keys(points: Array, T_world_lidar: Array, edge_m: float) -> Int64:
    """(N,) key of the world voxel of each point.

    Exact at any distance from the origin of the world: whole voxels of the translation are added as
    integers.

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


def voxel_centers(keys: Int64, T_world_lidar: Array, edge_m: float) -> Float32:
    """(3, N) centers of voxels in the LiDAR frame [m], for keys within 200 km of the sensor.

    Args:
        keys: (N,) from `voxel_keys`, at any pose.
        T_world_lidar: (4, 4) float64.
        edge_m: edge of a voxel [m].
    """
    offset = T_world_lidar[:3, 3] / edge_m
    whole = np.floor(offset).astype(np.int64)
    half = np.int64(1 << (_BITS - 1))
    grid = np.empty((3, len(keys)), np.float32)
    for axis in range(3):
        cell = (keys >> np.int64(_BITS * (2 - axis))) & _MASK
        grid[axis] = ((cell - whole[axis] + half) & _MASK) - half
    grid += (0.5 - (offset - whole)).astype(np.float32)[:, None]
    centers: Float32 = (T_world_lidar[:3, :3].T * edge_m).astype(np.float32) @ grid
    return centers


class VoxelTable:
    """A hash table of bounded size: old rows make room for new ones.

    Open addressing with a few probes. If none of them is free or expired, the least recently seen
    voxel among them is replaced. The native library searches where it was built, numpy otherwise;
    the two may replace different voxels when the table is full.

    Attributes:
        rows: (size, columns) float32, written by the caller.
        seen: (size,) float32 time of the last write of each row, set by the caller; -inf if free.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        """`capacity` is rounded up to a power of two."""
        self._bits = max(int(capacity) - 1, 1).bit_length()
        size = 1 << self._bits
        self._slots = np.zeros(size, _SLOT)
        self._keys, self.seen = self._slots["key"], self._slots["seen"]
        self.rows = np.zeros((size, columns), np.float32)
        # Touch all pages now: the process then does not grow for minutes while the table fills.
        self.rows.fill(0)
        self.clear()

    @staticmethod
    def fitting(memory_bytes: float, columns: int) -> int:
        """Largest capacity (a power of two) of a table within this memory."""
        row = 4 * columns + _SLOT.itemsize
        return 1 << (max(int(memory_bytes / row), 1).bit_length() - 1)

    def __len__(self) -> int:
        """Number of rows in use since the last clear."""
        return int(np.count_nonzero(self._keys != _EMPTY))

    def used_since(self, time_s: float) -> tuple[Int64, npt.NDArray[np.intp]]:
        """Keys (M,) and rows (M,) of the voxels that were last written at this time or later."""
        rows = np.flatnonzero(self.seen >= time_s)
        return self._keys[rows], rows

    def clear(self) -> None:
        """Remove all voxels."""
        self._keys.fill(_EMPTY)
        self.seen.fill(-np.inf)

    def locate(
        self, keys: Int64, expired: float
    ) -> tuple[Int64, npt.NDArray[np.int32], npt.NDArray[np.intp]]:
        """Find or create the rows of the voxels of a sweep; new rows are zero.

        Args:
            keys: (N,) from `voxel_keys`; points in the same voxel have the same key.
            expired: rows last seen before this time are replaced first.

        Returns:
            rows (M,), distinct; index (N,) int32 into them of each key, -1 if all its probes belong
            to other keys of this call; first (M,), the position in `keys` of the first key of each
            row.
        """
        keys = np.ascontiguousarray(keys, np.int64)
        rows = self.rows
        if keys.ndim != 1 or rows.dtype != np.float32 or not rows.flags.c_contiguous:
            raise InputError(f"voxel table: expected keys (N,) and float32 rows, got {keys.shape}")
        if rows.ndim != 2 or len(rows) != len(self._slots):
            raise InputError(f"voxel table: {rows.shape} rows for {len(self._slots)} slots")
        library = optional_library()
        if library is None:
            return self._numpy_locate(keys, expired)
        n = len(keys)
        hit, first, voxel = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int32)
        table = NativeTable(
            self._slots.ctypes.data, self.rows.ctypes.data, self._bits, self.rows.shape[1]
        )
        count = ctypes.c_int64()
        check(
            library.pcseg_voxel_locate(
                ctypes.byref(table),
                keys.ctypes.data,
                n,
                expired,
                hit.ctypes.data,
                voxel.ctypes.data,
                first.ctypes.data,
                ctypes.byref(count),
            )
        )
        return hit[: count.value], voxel, first[: count.value]

    def _numpy_locate(
        self, keys: Int64, expired: float
    ) -> tuple[Int64, npt.NDArray[np.int32], npt.NDArray[np.intp]]:
        """`locate` in numpy."""
        wanted, first, which = np.unique(keys, return_index=True, return_inverse=True)
        home = (wanted.view(np.uint64) * _FIBONACCI) >> np.uint64(64 - self._bits)
        at = (home.view(np.int64)[:, None] + np.arange(_PROBES)) & (len(self._keys) - 1)
        there = self._keys[at] == wanted[:, None]
        row = np.where(there.any(1), at[np.arange(len(at)), there.argmax(1)], -1)
        free = np.where(self.seen < expired, -np.inf, self.seen)  # the smallest is replaced first
        free[row[row >= 0]] = np.inf
        searching = np.flatnonzero(row < 0)
        while len(searching):
            choice = free[at[searching]].argmin(1)
            given = at[searching, choice]
            possible = np.flatnonzero(free[given] < np.inf)
            searching, given = searching[possible], given[possible]
            self._keys[given] = wanted[
                searching
            ]  # of several voxels with the same row the last one wins
            free[given] = np.inf
            won = self._keys[given] == wanted[searching]
            row[searching[won]] = given[won]
            self.rows[given], self.seen[given] = 0, expired  # in use, not written yet
            searching = searching[~won]
        found = np.flatnonzero(row >= 0)
        group = np.full(len(wanted), -1, np.int32)
        group[found] = np.arange(len(found))
        return row[found], group[which], first[found]
