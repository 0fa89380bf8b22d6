# SPDX-License-Identifier: Apache-2.0
"""Voxel coordinates packed into one sortable int64.

A key holds batch (9 bits), x, y and z (18 bits each), most significant first. Coordinates are
shifted by `COORD_LIMIT` to be non-negative: sorted keys are sorted by (batch, x, y, z), and the key
of the neighbor at (dx, dy, dz) is the key plus a constant. On the grid of stride s the shift is
`COORD_LIMIT / s`: to halve a coordinate halves its field.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pcseg_core.errors import InputError

COORD_BITS = 18
COORD_LIMIT = 1 << (COORD_BITS - 1)  # 131072 voxels: 6.5 km at 0.05 m
MARGIN = 2  # reach of the largest kernel: no neighbor's key overflows into another field
MAX_COORD = COORD_LIMIT - MARGIN - 1
MAX_BATCH = (1 << (63 - 3 * COORD_BITS)) - 1
_MASK = (1 << COORD_BITS) - 1


def key_offset(dx: int, dy: int, dz: int) -> int:
    """Difference between the keys of a voxel and of its neighbor at (dx, dy, dz)."""
    return (dx << (2 * COORD_BITS)) + (dy << COORD_BITS) + dz


def pack(coords: Tensor) -> Tensor:
    """Pack coordinates of stride 1.

    Args:
        coords: (M, 4) integer tensor of batch, x, y, z; batch in [0, 511] and x, y, z in
            [-131069, 131069] voxels.

    Returns:
        (M,) int64 keys.

    Raises:
        InputError: wrong shape or dtype, or a value out of range (the message names it).
    """
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.is_floating_point():
        raise InputError(
            f"voxel coordinates: expected an integer tensor of shape (M, 4) holding batch, x, y, "
            f"z, got {coords.dtype} of shape {tuple(coords.shape)}"
        )
    if len(coords):
        _check_range(coords)
    b, x, y, z = coords.to(torch.int64).unbind(1)
    x, y, z = x + COORD_LIMIT, y + COORD_LIMIT, z + COORD_LIMIT
    return (b << (3 * COORD_BITS)) | (x << (2 * COORD_BITS)) | (y << COORD_BITS) | z


def _check_range(coords: Tensor) -> None:
    lowest, highest = (t.tolist() for t in torch.aminmax(coords, dim=0))
    if lowest[0] < 0 or highest[0] > MAX_BATCH:
        bad = lowest[0] if lowest[0] < 0 else highest[0]
        raise InputError(
            f"voxel coordinates: batch index {bad} is outside [0, {MAX_BATCH}]; use a smaller batch"
        )
    for name, low, high in zip("xyz", lowest[1:], highest[1:], strict=True):
        if low < -MAX_COORD or high > MAX_COORD:
            raise InputError(
                f"voxel coordinates: {name} spans {low} to {high} voxels, allowed is "
                f"{-MAX_COORD} to {MAX_COORD}; crop the cloud, move its origin or use larger "
                "voxels"
            )


def unpack(keys: Tensor, stride: int = 1) -> Tensor:
    """Coordinates (M, 4) int32 [batch, x, y, z], in voxels of the grid of `stride`."""
    shift = COORD_LIMIT // stride
    columns = (
        keys >> (3 * COORD_BITS),
        ((keys >> (2 * COORD_BITS)) & _MASK) - shift,
        ((keys >> COORD_BITS) & _MASK) - shift,
        (keys & _MASK) - shift,
    )
    return torch.stack(columns, dim=1).to(torch.int32)


def halve(keys: Tensor) -> Tensor:
    """Keys of the cells of the next coarser grid that hold these voxels (not sorted)."""
    batch = keys >> (3 * COORD_BITS)
    x = (keys >> (2 * COORD_BITS)) & _MASK
    y = (keys >> COORD_BITS) & _MASK
    z = keys & _MASK
    fields = ((x >> 1) << (2 * COORD_BITS)) | ((y >> 1) << COORD_BITS) | (z >> 1)
    return (batch << (3 * COORD_BITS)) | fields
