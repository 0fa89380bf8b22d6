# SPDX-License-Identifier: Apache-2.0
"""Inputs of an exported graph: features of the voxels and neighbor tables.

The layout is that of `pcseg_core/native/pcseg.h`: a missing neighbor is the number of rows that the
table reads, where the graph appends a row of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.sparse import SparseTensor
from pcseg_core.sparse.maps import KernelMap

LEVELS = 5
FEATURES = "features"
LOGITS = "logits"
_ROW = (
    "mean over the points of a voxel of each feature's value divided by its divisor; offset_x, "
    "offset_y and offset_z are position / voxel_size - floor(position / voxel_size) - 0.5, one is 1"
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """A neighbor table as an input of the graph.

    Attributes:
        name: of the input.
        offsets: rows of the table, one per offset of the kernel.
        level: the level whose voxels are the columns.
        reads: the level whose rows the entries are.
    """

    name: str
    offsets: int
    level: int
    reads: int

    @property
    def content(self) -> str:
        """One sentence for the description of the graph."""
        missing = f"row {rows_name(self.reads)} if missing"
        if self.offsets == 27:
            return (
                f"entry (k, i): row on level {self.reads} of the neighbor of voxel i at offset k, "
                f"{missing}; offsets (dx, dy, dz) from -1 to 1, dz fastest"
            )
        if self.reads < self.level:
            return (
                f"entry (k, i): row on level {self.reads} of child k of voxel i, {missing}; "
                "children (dx, dy, dz) from 0 to 1, dz fastest"
            )
        return (
            f"entry (k, i): row on level {self.reads} of the parent of voxel i if voxel i is its "
            f"child k, else row {rows_name(self.reads)}"
        )


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph.

    Attributes:
        name: of the input.
        dtype: "float32" or "int32".
        shape: numbers, and names of dynamic sizes.
        content: sentence for the description of the graph.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    content: str


def rows_name(level: int) -> str:
    """Name of the dynamic number of voxels of a level."""
    return f"voxels_{level}"


def neighbors(level: int) -> Table:
    """The 26 neighbors of each voxel of a level, and itself."""
    return Table(f"neighbors_{level}", 27, level, level)


def children(level: int) -> Table:
    """The eight voxels of the next finer level inside each voxel of a level."""
    return Table(f"children_{level}", 8, level, level - 1)


def parents(level: int) -> Table:
    """The voxel of the next coarser level around each voxel of a level."""
    return Table(f"parents_{level}", 8, level, level + 1)


TABLES = (
    *(neighbors(level) for level in range(LEVELS)),
    *(children(level) for level in range(1, LEVELS)),
    *(parents(level) for level in range(LEVELS - 1)),
)
"""All tables, in the order of the inputs of the graph."""


def features_input(channels: int) -> GraphInput:
    """The input features of the voxels."""
    return GraphInput(FEATURES, "float32", (rows_name(0), channels), _ROW)


def minkunet_inputs(channels: int) -> list[GraphInput]:
    """Inputs of the graph of a MinkUNet with so many input features."""
    tables = [
        GraphInput(table.name, "int32", (table.offsets, rows_name(table.level)), table.content)
        for table in TABLES
    ]
    return [features_input(channels), *tables]


def graph_inputs(x: SparseTensor) -> dict[str, Array]:
    """All inputs of the graph for the voxels of one sweep.

    Args:
        x: (M, C) mean input features of the voxels, on the CPU.

    Returns:
        float32 (M, C) "features" and the int32 tables (offsets, voxels) by name.
    """
    inputs: dict[str, Array] = {FEATURES: x.feats.detach().float().contiguous().numpy()}
    for table in TABLES:
        inputs[table.name] = _with_zero_row(_kernel_map(x, table))
    return inputs


def _kernel_map(x: SparseTensor, table: Table) -> KernelMap:
    if table.offsets == 27:
        return x.cache.kernel_map(1 << table.level, 3, 1)
    halving = x.cache.kernel_map(1 << min(table.level, table.reads), 2, 2)
    return halving if table.reads < table.level else halving.inverse


def _with_zero_row(kernel_map: KernelMap) -> Array:
    table: Array = kernel_map.table.numpy()
    return np.where(table < 0, np.int32(kernel_map.n_in), table)
