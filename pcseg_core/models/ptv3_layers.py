# SPDX-License-Identifier: Apache-2.0
"""Layers of Point Transformer V3: attention in patches, and the steps between grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcseg_core.models.patches import Patches
from pcseg_core.sparse import SparseConv3d, SparseTensor


class PatchAttention(nn.Module):
    """Attention among the voxels of each patch."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, feats: Tensor, patches: Patches) -> Tensor:
        """From features (M, C) to features (M, C)."""
        qkv = self.qkv(feats)
        attended = torch.cat([self._attend(qkv, rows) for rows in patches.rows])
        result: Tensor = self.out(attended.index_select(0, patches.kept))
        return result

    def _attend(self, qkv: Tensor, rows: Tensor) -> Tensor:
        """Attention of the patches (P, K) of qkv (M, 3 C), as (P K, C)."""
        patches, size = rows.shape
        parts = qkv.index_select(0, rows.flatten()).view(patches, size, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).reshape(patches * size, -1)


class Position(nn.Module):
    """Position by content: a sparse convolution of kernel 3, a linear layer and a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SparseConv3d(channels, channels, bias=True)
        self.linear = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: SparseTensor) -> Tensor:
        result: Tensor = self.norm(self.linear(self.conv(x).feats))
        return result


class Block(nn.Module):
    """Position, attention and a perceptron, each added to its input."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.position = Position(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attention = PatchAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(
        self, x: SparseTensor, patches: Patches, seen: SparseTensor | None = None
    ) -> SparseTensor:
        """From x to the same voxels; `seen` are the features that the position sees, None for x."""
        feats = x.feats + self.position(seen or x)
        feats = feats + self.attention(self.norm1(feats), patches)
        return x.replace(feats + self.mlp(self.norm2(feats)))


def _norm(channels: int, version: int) -> nn.Module:
    """The norm between stages."""
    if version == 2:
        return nn.LayerNorm(channels)
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


class Projection(nn.Module):
    """Linear layer, norm and GELU between stages."""

    def __init__(self, in_channels: int, out_channels: int, version: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.norm = _norm(out_channels, version)

    def forward(self, feats: Tensor) -> Tensor:
        return F.gelu(self.norm(self.linear(feats)))

    def pool(self, x: SparseTensor, parents: Tensor) -> SparseTensor:
        """On the next coarser grid, with the maximum of each cell before the norm.

        Args:
            x: voxels.
            parents: (M,) row of their cells.
        """
        feats, cells = self.linear(x.feats), len(x.cache.keys(2 * x.stride))
        largest = feats.new_zeros(cells, feats.shape[1]).scatter_reduce(
            0, parents[:, None].expand_as(feats), feats, "amax", include_self=False
        )
        return SparseTensor.of(F.gelu(self.norm(largest)), 2 * x.stride, x.cache)


class Stem(nn.Module):
    """The start of version 1: a convolution of kernel 5, norm and GELU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = SparseConv3d(in_channels, out_channels, 5)
        self.norm = _norm(out_channels, 1)

    def forward(self, x: SparseTensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x).feats))


class Blocks(nn.ModuleList):
    """Blocks on one grid, which take turns with the curves."""

    def __init__(self, depth: int, channels: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(Block(channels, heads, mlp_ratio) for _ in range(depth))

    def forward(
        self, x: SparseTensor, patches: list[Patches], seen: SparseTensor | None = None
    ) -> SparseTensor:
        """From x to the same voxels; `seen` is for the first block."""
        for i, block in enumerate(self):
            x = block(x, patches[i % len(patches)], None if i else seen)
        return x


class Up(nn.Module):
    """From a coarser grid: both features projected and added."""

    def __init__(self, in_channels: int, skip: int, out_channels: int, version: int) -> None:
        super().__init__()
        self.coarse = Projection(in_channels, out_channels, version)
        self.skip = Projection(skip, out_channels, version)

    def forward(
        self, fine: SparseTensor, coarse: Tensor, parents: Tensor
    ) -> tuple[SparseTensor, SparseTensor]:
        """The sum and the projected finer features.

        Args:
            fine: features (M, skip).
            coarse: features (M', in_channels).
            parents: (M,) row of the coarser cell of each voxel.
        """
        skip = self.skip(fine.feats)
        total = skip + self.coarse(coarse).index_select(0, parents)
        return fine.replace(total), fine.replace(skip)
