# SPDX-License-Identifier: Apache-2.0
"""Kernel maps: pairs of input and output rows for each kernel offset.

Offsets are ordered lexicographically over (dx, dy, dz), dz fastest. A kernel of odd size k reaches
from -(k // 2) to k // 2 along each axis, one of even size from 0 to k - 1. Output voxel o reads
input voxel ``stride * o + offset``. With stride 2 the output voxels are the cells of the doubled
grid that contain an input voxel. A transposed convolution swaps inputs and outputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.sparse import keys as packing

KERNEL_SIZES = (1, 2, 3, 5)
MAX_STRIDE = 1 << 12


def kernel_offsets(kernel_size: int) -> list[tuple[int, int, int]]:
    """Offsets (dx, dy, dz) of a kernel in the order of its weights."""
    first = -(kernel_size // 2) if kernel_size % 2 else 0
    reach = range(first, first + kernel_size)
    return [(dx, dy, dz) for dx in reach for dy in reach for dz in reach]


@dataclass(eq=False)
class KernelMap:
    """Neighbor table of one convolution.

    Attributes:
        table: (K, n_out) int32, the input row at each offset of each output row, -1 where absent.
        n_in: number of input rows.
        kernel_size: edge of the kernel in voxels.
        stride: 1 or 2.
        invert: builds the table of the transposed convolution.
        derived: the table in other layouts, by the name of the backend that made it.
    """

    table: Tensor
    n_in: int
    kernel_size: int
    stride: int
    invert: Callable[[Tensor, int], Tensor] = field(repr=False)
    derived: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _inverse: KernelMap | None = field(default=None, repr=False)
    _inverse_of: weakref.ref[KernelMap] | None = field(default=None, repr=False)
    _pairs: tuple[Tensor, Tensor, list[int]] | None = field(default=None, repr=False)

    @property
    def n_out(self) -> int:
        return self.table.shape[1]

    @property
    def is_symmetric(self) -> bool:
        """Whether offset K - 1 - k is opposite to offset k: the inverse is the flipped map."""
        return self.stride == 1 and self.kernel_size % 2 == 1

    @property
    def inverse(self) -> KernelMap:
        """The map of the transposed convolution: outputs become inputs, same offset order."""
        origin = None if self._inverse_of is None else self._inverse_of()
        if origin is not None:
            return origin
        if self._inverse is None:
            table = self.table.flip(0) if self.is_symmetric else self.invert(self.table, self.n_in)
            self._inverse = KernelMap(table, self.n_out, self.kernel_size, self.stride, self.invert)
            # Weak: a cycle would keep the tables of every sweep until the garbage collector runs.
            self._inverse._inverse_of = weakref.ref(self)
        return self._inverse

    @property
    def pairs(self) -> tuple[Tensor, Tensor, list[int]]:
        """Input rows and output rows (P,) int64 grouped by offset, and pairs per offset."""
        if self._pairs is None:
            present = self.table >= 0
            counts = present.sum(1).tolist()
            rows_out = present.nonzero()[:, 1]
            self._pairs = self.table[present].to(torch.int64), rows_out, counts
        return self._pairs


def build_table(keys_in: Tensor, keys_out: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Neighbor table (K, n_out) int32 by binary search in sorted keys; the reference."""
    base = keys_out if stride == 1 else first_keys(keys_out)
    offsets = kernel_offsets(kernel_size)
    table = torch.full((len(offsets), len(keys_out)), -1, dtype=torch.int32, device=keys_in.device)
    if not len(keys_in) or not len(keys_out):
        return table
    last = len(keys_in) - 1
    for start in range(0, len(offsets), kernel_size):
        # Offsets of one (dx, dy) differ in z only: one search, then steps of at most one row.
        wanted = base + packing.key_offset(*offsets[start])
        row = torch.searchsorted(keys_in, wanted)
        for k in range(start, start + kernel_size):
            found = keys_in[row.clamp(max=last)] == wanted
            table[k] = torch.where(found, row, -1)
            row += found
            wanted = wanted + 1
    return table


def first_keys(keys: Tensor) -> Tensor:
    """Keys of the first voxel of each cell on the finer grid: the inverse of `halve`."""
    batch = keys >> (3 * packing.COORD_BITS)
    return ((keys - (batch << (3 * packing.COORD_BITS))) << 1) | (batch << (3 * packing.COORD_BITS))


def coarsen(keys: Tensor) -> Tensor:
    """Sorted keys of the occupied cells of the next coarser grid."""
    result: Tensor = torch.unique(packing.halve(keys))
    return result


def invert_table(table: Tensor, n_in: int) -> Tensor:
    """Table (K, n_in) of the transposed convolution: the output row of each input row."""
    offset, rows_out = (table >= 0).nonzero(as_tuple=True)
    inverse = table.new_full((len(table), n_in), -1)
    inverse[offset, table[offset, rows_out].to(torch.int64)] = rows_out.to(torch.int32)
    return inverse


@dataclass(frozen=True)
class MapBuilder:
    """Operations that a backend may replace; the defaults are plain torch."""

    coarsen: Callable[[Tensor], Tensor] = coarsen
    build_table: Callable[[Tensor, Tensor, int, int], Tensor] = build_table
    invert_table: Callable[[Tensor, int], Tensor] = invert_table


class KernelMapCache:
    """Voxel keys of all strides and the kernel maps between them, shared by a network."""

    def __init__(
        self, keys: Tensor, builder: MapBuilder | None = None, backend: str = "auto"
    ) -> None:
        """Start from the sorted, unique keys of stride 1, (M,) int64.

        Args:
            keys: of the voxels.
            builder: builds the maps; None for plain torch.
            backend: name of the backend of all convolutions on these voxels; see `backends`.
        """
        self.backend = backend
        self._keys: dict[int, Tensor] = {1: keys}
        self._coords: dict[int, Tensor] = {}
        self._maps: dict[tuple[int, int, int], KernelMap] = {}
        self._builder = builder or MapBuilder()

    def keys(self, stride: int) -> Tensor:
        """Sorted keys (M,) int64 of the occupied voxels at a stride that is a power of two."""
        if stride not in self._keys:
            if stride < 1 or stride > MAX_STRIDE or stride & (stride - 1):
                raise InputError(
                    f"stride {stride}: expected a power of two between 1 and {MAX_STRIDE}"
                )
            self._keys[stride] = self._builder.coarsen(self.keys(stride // 2))
        return self._keys[stride]

    def coords(self, stride: int) -> Tensor:
        """Coordinates (M, 4) int32 [batch, x, y, z] in voxels of that stride."""
        if stride not in self._coords:
            self._coords[stride] = packing.unpack(self.keys(stride), stride)
        return self._coords[stride]

    def kernel_map(self, stride_in: int, kernel_size: int, stride: int) -> KernelMap:
        """The map of a convolution on the grid of `stride_in` with its own `stride` of 1 or 2."""
        name = (stride_in, kernel_size, stride)
        if name not in self._maps:
            keys_in, keys_out = self.keys(stride_in), self.keys(stride_in * stride)
            table = self._builder.build_table(keys_in, keys_out, kernel_size, stride)
            self._maps[name] = KernelMap(
                table, len(keys_in), kernel_size, stride, self._builder.invert_table
            )
        return self._maps[name]
