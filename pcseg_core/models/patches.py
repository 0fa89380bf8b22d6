# SPDX-License-Identifier: Apache-2.0
"""Patches of voxels along a curve, in which a point transformer attends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pcseg_core.models.curves import Curve, places


@dataclass(frozen=True, eq=False)
class Patches:
    """Voxels cut into patches along one curve; no patch spans two sweeps.

    The voxels of a sweep fill patches one after the other. The last patch borrows the voxels that
    it lacks from the one before. A sweep with fewer voxels than a patch is one smaller patch.

    Attributes:
        rows: voxels of patches of equal size, each (P, K) int64.
        kept: (M,) int64 entry of each voxel in `rows`, all flattened in this order: the patch in
            which it is not borrowed.
    """

    rows: list[Tensor]
    kept: Tensor


def cube_bits(coords: Tensor) -> list[int]:
    """Bits of the coordinates of each sweep: its curve fills a cube of edge 2**bits.

    Args:
        coords: (M, 4) integer [batch, x, y, z], sorted by batch; x, y and z start at 0.
    """
    return [int(cells.max() + 1).bit_length() for cells in coords[:, 1:].split(_sizes(coords))]


def patches_of(
    coords: Tensor, curves: Sequence[Curve], size: int, bits: Sequence[int]
) -> list[Patches]:
    """The patches along each curve.

    Args:
        coords: (M, 4) integer [batch, x, y, z], sorted by batch; x, y and z start at 0.
        curves: names of the curves.
        size: voxels of a patch.
        bits: of the cube that a curve fills, for each sweep; see `cube_bits`.
    """
    cells = coords[:, 1:].long()
    sweeps = torch.arange(len(coords), device=coords.device).split(_sizes(coords))
    return [
        _cut(
            [
                rows[places(cells[rows], curve, depth).argsort()]
                for rows, depth in zip(sweeps, bits, strict=True)
            ],
            size,
        )
        for curve in curves
    ]


def _sizes(coords: Tensor) -> list[int]:
    """Voxels of each sweep that has any."""
    sizes: list[int] = coords[:, 0].unique_consecutive(return_counts=True)[1].tolist()
    return sizes


def _cut(orders: list[Tensor], size: int) -> Patches:
    """Patches of sweeps; `orders` are the voxels of each sweep along the curve."""
    whole, small = [], []
    for order in orders:
        if len(order) <= size:
            small.append((order[None], order.new_ones(len(order), dtype=torch.bool)))
            continue
        place = torch.arange(-(-len(order) // size) * size, device=order.device)
        own = place < len(order)
        whole.append((order[torch.where(own, place, place - size)].view(-1, size), own))
    rows = [part for part, _ in small]
    if whole:
        rows.insert(0, torch.cat([part for part, _ in whole]))
    entries = torch.cat([part.flatten() for part in rows])
    own = torch.cat([part for _, part in whole + small])
    kept = torch.empty(int(own.sum()), dtype=torch.int64, device=own.device)
    kept[entries[own]] = own.nonzero()[:, 0]
    return Patches(rows, kept)
