# SPDX-License-Identifier: Apache-2.0
"""Encoder of Point Transformer V3 (Wu et al., CVPR 2024) as used by Sonata (Wu et al., CVPR 2025).

Voxels are ordered along space-filling curves and attend within patches of that order. Each of the
stages after the first halves the grid. The features of a voxel are those of all stages, from the
finest to the coarsest, at the cells that contain it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pcseg_core.config import Section
from pcseg_core.errors import InputError
from pcseg_core.models.curves import Curve
from pcseg_core.models.network import Network
from pcseg_core.models.patches import Patches, patches_of
from pcseg_core.sparse import SparseConv3d, SparseTensor
from pcseg_core.sparse import keys as packing


class Ptv3Config(Section):
    """Architecture of a Point Transformer V3 encoder; the defaults are those of Sonata."""

    depths: tuple[int, ...] = Field(
        (3, 3, 3, 12, 3), min_length=1, max_length=8, description="Blocks of each stage"
    )
    channels: tuple[int, ...] = Field((48, 96, 192, 384, 512), description="Channels of each stage")
    heads: tuple[int, ...] = Field((3, 6, 12, 24, 32), description="Attention heads of each stage")
    patch: int = Field(1024, ge=1, le=1 << 16, description="Voxels that attend to each other")
    curves: tuple[Curve, ...] = Field(
        ("z", "z-trans", "hilbert", "hilbert-trans"),
        min_length=1,
        max_length=8,
        description="Orders of the voxels; the blocks of a stage take turns",
    )
    mlp_ratio: float = Field(4.0, gt=0, le=16, description="Hidden channels by channels")
    centered: bool = Field(
        False,
        description="Inputs x and y are relative to the middle of the sweep and z to its lowest "
        "point; otherwise all are relative to the sensor",
    )

    @model_validator(mode="after")
    def _check(self) -> Ptv3Config:
        if not len(self.depths) == len(self.channels) == len(self.heads):
            raise ValueError("depths, channels and heads must have one value for each stage")
        if any(not 0 < depth <= 64 for depth in self.depths):
            raise ValueError("depths must be between 1 and 64")
        if any(not 0 < h <= c <= 4096 or c % h for c, h in zip(self.channels, self.heads)):
            raise ValueError("channels must be multiples of heads, up to 4096")
        return self


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

    def forward(self, x: SparseTensor, patches: Patches) -> SparseTensor:
        feats = x.feats + self.position(x)
        feats = feats + self.attention(self.norm1(feats), patches)
        return x.replace(feats + self.mlp(self.norm2(feats)))


class Entry(nn.Module):
    """Linear layer, norm and GELU at the start of a stage, with maxima over cells in between."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """On the same voxels."""
        return x.replace(F.gelu(self.norm(self.linear(x.feats))))

    def pool(self, x: SparseTensor, parents: Tensor) -> SparseTensor:
        """On the next coarser grid; parents (M,) are the cells of the voxels."""
        feats, cells = self.linear(x.feats), len(x.cache.keys(2 * x.stride))
        largest = feats.new_zeros(cells, feats.shape[1]).scatter_reduce(
            0, parents[:, None].expand_as(feats), feats, "amax", include_self=False
        )
        return SparseTensor.of(F.gelu(self.norm(largest)), 2 * x.stride, x.cache)


class Stage(nn.Module):
    """The blocks on one grid."""

    def __init__(self, in_channels: int, stage: int, config: Ptv3Config) -> None:
        super().__init__()
        channels = config.channels[stage]
        self.curves = config.curves[: config.depths[stage]]
        self.patch = config.patch
        self.entry = Entry(in_channels, channels)
        self.blocks = nn.ModuleList(
            Block(channels, config.heads[stage], config.mlp_ratio)
            for _ in range(config.depths[stage])
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        patches = patches_of(x.coords, self.curves, self.patch)
        # As in the training of the published weights; without, results do not change.
        turns = torch.randperm(len(patches)).tolist() if self.training else range(len(patches))
        patches = [patches[turn] for turn in turns]
        for i, block in enumerate(self.blocks):
            x = block(x, patches[i % len(patches)])
        return x


class Ptv3(Network):
    """Point Transformer V3 encoder with an output per voxel.

    The features of a voxel are those of all stages: their channels add up.
    """

    def __init__(
        self, inputs: Sequence[tuple[str, float]], out_channels: int, config: Ptv3Config
    ) -> None:
        """Build the network.

        Args:
            inputs: name and divisor of each input feature, x, y and z among them.
            out_channels: channels of the output, for example classes.
            config: the architecture.
        """
        super().__init__()
        names = [name for name, _ in inputs]
        self.axes = [names.index(axis) for axis in "xyz"]
        self.in_channels, self.out_channels, self.config = len(inputs), out_channels, config
        widths = [self.in_channels, *config.channels[:-1]]
        self.stages = nn.ModuleList(Stage(a, s, config) for s, a in enumerate(widths))
        self.feature_channels = sum(config.channels)
        self.classifier = nn.Linear(self.feature_channels, out_channels)
        for module in self.modules():
            if isinstance(module, (nn.Linear, SparseConv3d)):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def levels(self, x: SparseTensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features (M_s, C_s) of each stage, and the rows (M_s,) of the next of all but the last.

        Raises:
            InputError: an input of another stride than 1.
        """
        if x.stride != 1:
            raise InputError(f"Ptv3: expected an input of stride 1, got {x.stride}")
        x = _from_corner(x)
        if self.config.centered:
            x = x.replace(self._centered(x.feats, x.coords[:, 0].long()))
        feats: list[Tensor] = []
        parents: list[Tensor] = []
        for stage in cast(list[Stage], self.stages):
            if feats:
                parents.append(_parents(x))
                x = stage.entry.pool(x, parents[-1])
            else:
                x = stage.entry(x)
            x = stage(x)
            feats.append(x.feats)
        return feats, parents

    def features(self, x: SparseTensor) -> Tensor:
        """Features (M, C) of the voxels: those of all stages, finest first."""
        feats, parents = self.levels(x)
        joined = feats.pop()
        while feats:
            joined = torch.cat([feats.pop(), joined.index_select(0, parents.pop())], 1)
        return joined

    def _centered(self, feats: Tensor, batch: Tensor) -> Tensor:
        """Inputs whose x and y are relative to the middle of the sweep, z to its lowest point."""
        xyz = feats[:, self.axes]
        low, high = _reduce(xyz, batch, "amin"), _reduce(xyz, batch, "amax")
        origin = torch.cat([(low + high)[:, :2] / 2, low[:, 2:]], 1)
        result = feats.clone()
        result[:, self.axes] = xyz - origin[batch]
        return result


def _from_corner(x: SparseTensor) -> SparseTensor:
    """The same voxels with coordinates that start at 0 in each sweep, where its cells start."""
    coords = x.coords.long()
    batch, cells = coords[:, 0], coords[:, 1:]
    moved = cells - _reduce(cells, batch, "amin")[batch]
    return SparseTensor(torch.cat([batch[:, None], moved], 1), x.feats, backend=x.cache.backend)


def _reduce(values: Tensor, batch: Tensor, how: str) -> Tensor:
    """Extremes (B, C) of the values (M, C) of each sweep."""
    empty = values.new_zeros(int(batch.max()) + 1, values.shape[1])
    return empty.scatter_reduce(
        0, batch[:, None].expand_as(values), values, how, include_self=False
    )


def _parents(x: SparseTensor) -> Tensor:
    """(M,) row of the cell of the next coarser grid that contains each voxel."""
    return torch.searchsorted(x.cache.keys(2 * x.stride), packing.halve(x.cache.keys(x.stride)))
