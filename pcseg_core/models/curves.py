# SPDX-License-Identifier: Apache-2.0
"""Space-filling curves through a grid: orders of voxels in which neighbors are close."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Curve = Literal["z", "z-trans", "hilbert", "hilbert-trans"]
MAX_BITS = 21  # three coordinates fit into an int64

# Shift and mask of each step that moves the bits of a number apart, two zeros between each pair.
_SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def places(cells: Tensor, curve: Curve, bits: int) -> Tensor:
    """Place of each cell on a curve through the cube of edge 2**bits.

    The Hilbert curve of a larger cube visits the cells in another order; the z-order does not
    depend on `bits`. "trans" swaps x and y.

    Args:
        cells: (M, 3) int64, 0 to 2**bits - 1.
        curve: name of the curve.
        bits: 1 to 21.

    Returns:
        (M,) int64.
    """
    x, y, z = cells.unbind(1)
    if curve.endswith("-trans"):
        x, y = y, x
    return _interleave(x, y, z) if curve.startswith("z") else _hilbert(x, y, z, bits)


def _interleave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Bit i of x, y and z becomes bit 3i + 2, 3i + 1 and 3i."""
    return (_spread(x) << 2) | (_spread(y) << 1) | _spread(z)


def _spread(values: Tensor) -> Tensor:
    for shift, mask in _SPREAD:
        values = (values | (values << shift)) & mask
    return values


def _hilbert(x: Tensor, y: Tensor, z: Tensor, bits: int) -> Tensor:
    """Place on the Hilbert curve (Skilling, Programming the Hilbert curve, AIP Conf. 707, 2004)."""
    axes = [x.clone(), y.clone(), z.clone()]
    for bit in reversed(range(1, bits)):
        below = (1 << bit) - 1
        for axis in axes:
            is_set = (axis >> bit) & 1 == 1
            differs = torch.where(is_set, 0, (axes[0] ^ axis) & below)
            axis ^= differs  # exchanges the lower bits with those of x
            axes[0] ^= torch.where(is_set, below, differs)
    code = _interleave(*axes)
    for shift in (1, 2, 4, 8, 16, 32):  # from Gray code to binary
        code ^= code >> shift
    return code
