# SPDX-License-Identifier: Apache-2.0
"""Random voxel grids and their dense twins."""

from __future__ import annotations

import torch
from torch import Tensor

from pcseg_core.sparse import SparseTensor

EDGE = 8  # cells along each axis of the dense grid; negative coordinates in its lower half


def random_grid(
    channels: int,
    batch: int = 2,
    density: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(batch, EDGE, EDGE, EDGE, generator=generator) < density
    coords = occupied.nonzero()
    coords[:, 1:] -= EDGE // 2
    feats = torch.randn(len(coords), channels, generator=generator, dtype=torch.float64)
    return SparseTensor(coords, feats.to(dtype), backend=backend)


def to_dense(x: SparseTensor, batch: int = 2) -> Tensor:
    """(B, C, X, Y, Z), differentiable."""
    edge = EDGE // x.stride
    dense = x.feats.new_zeros(batch, edge, edge, edge, x.feats.shape[1])
    index = index_of(x)
    return dense.index_put(index, x.feats).permute(0, 4, 1, 2, 3)


def sample(dense: Tensor, x: SparseTensor) -> Tensor:
    """Values (M, C) of a dense grid at the voxels of x."""
    return dense.permute(0, 2, 3, 4, 1)[index_of(x)]


def index_of(x: SparseTensor) -> tuple[Tensor, ...]:
    coords = x.coords.long()
    half = EDGE // x.stride // 2
    return coords[:, 0], coords[:, 1] + half, coords[:, 2] + half, coords[:, 3] + half


def dense_weight(weight: Tensor, kernel_size: int) -> Tensor:
    """(K, in, out) as conv3d's (out, in, k, k, k)."""
    k = kernel_size
    return weight.reshape(k, k, k, *weight.shape[1:]).permute(4, 3, 0, 1, 2)
