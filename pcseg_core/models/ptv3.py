# SPDX-License-Identifier: Apache-2.0
"""Point Transformer V3 (Wu et al., CVPR 2024), and its encoder in Sonata (Wu et al., CVPR 2025).

Voxels are ordered along space-filling curves and attend within patches of that order. Each of the
stages after the first halves the grid. With a decoder, the features of a voxel are its result.
Without, they are those of all stages, finest first, at the cells that contain the voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pcseg_core.config import Section
from pcseg_core.errors import InputError
from pcseg_core.models.curves import Curve
from pcseg_core.models.network import Network
from pcseg_core.models.patches import Patches, cube_bits, patches_of
from pcseg_core.models.ptv3_layers import Blocks, Projection, Stem, Up
from pcseg_core.sparse import SparseConv3d, SparseTensor
from pcseg_core.sparse import keys as packing

Sizes = tuple[int, ...]
_STAGES = 8


class Ptv3Config(Section):
    """Architecture of a Point Transformer V3; the defaults are those of Sonata."""

    version: Literal[1, 2] = Field(
        2,
        description="1, of the paper: the network starts with a convolution of kernel 5, has batch "
        "norms between stages, and curves of coarser grids follow those of the finest. 2, of "
        "Sonata: it starts with a linear layer, has layer norms, and each grid its own curves",
    )
    depths: Sizes = Field((3, 3, 3, 12, 3), description="Blocks of each stage, finest first")
    channels: Sizes = Field((48, 96, 192, 384, 512), description="Channels of each stage")
    heads: Sizes = Field((3, 6, 12, 24, 32), description="Attention heads of each stage")
    decoder_depths: Sizes = Field(
        (), description="Blocks of the decoder on each grid but the coarsest; none for no decoder"
    )
    decoder_channels: Sizes = Field((), description="Channels of the decoder on each grid")
    decoder_heads: Sizes = Field((), description="Attention heads of the decoder on each grid")
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
        stages, grids = len(self.depths), len(self.decoder_depths)
        if not 0 < stages == len(self.channels) == len(self.heads) <= _STAGES:
            raise ValueError("depths, channels and heads must have one value for each stage")
        if not grids == len(self.decoder_channels) == len(self.decoder_heads):
            raise ValueError("decoder_depths, _channels and _heads must have equal length")
        if grids not in (0, stages - 1):
            raise ValueError("the decoder must have one grid less than there are stages")
        widths = (*self.channels, *self.decoder_channels)
        heads = (*self.heads, *self.decoder_heads)
        if any(not 0 < h <= c <= 4096 or c % h for c, h in zip(widths, heads, strict=True)):
            raise ValueError("channels must be multiples of heads, up to 4096")
        if any(not 0 < depth <= 64 for depth in (*self.depths, *self.decoder_depths)):
            raise ValueError("depths must be between 1 and 64")
        return self


@dataclass(frozen=True, eq=False)
class Level:
    """A grid of the encoder.

    Attributes:
        x: voxels and their features after the blocks.
        patches: of each curve, in the order of its turns.
        parents: (M,) row of the cell of each voxel of the next finer grid; None for the finest.
    """

    x: SparseTensor
    patches: list[Patches]
    parents: Tensor | None = None


class Ptv3(Network):
    """Point Transformer V3 with an output per voxel."""

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
        version, widths = config.version, config.channels
        first = Stem if version == 1 else partial(Projection, version=version)
        self.stem = first(self.in_channels, widths[0])
        self.down = nn.ModuleList(Projection(a, b, version) for a, b in pairwise(widths))
        self.encoder = _stages(config.depths, widths, config.heads, config.mlp_ratio)
        back = (*config.decoder_channels, widths[-1])
        self.up = nn.ModuleList(
            Up(below, skip, width, version)
            for width, below, skip in zip(back, back[1:], widths, strict=False)
        )
        self.decoder = _stages(
            config.decoder_depths, config.decoder_channels, config.decoder_heads, config.mlp_ratio
        )
        self.feature_channels = back[0] if config.decoder_depths else sum(widths)
        self.classifier = nn.Linear(self.feature_channels, out_channels)
        for module in self.modules():
            if isinstance(module, (nn.Linear, SparseConv3d)):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def levels(self, x: SparseTensor) -> list[Level]:
        """The grids of the encoder, finest first.

        Raises:
            InputError: an input of another stride than 1.
        """
        if x.stride != 1:
            raise InputError(f"Ptv3: expected an input of stride 1, got {x.stride}")
        x = _from_corner(x)
        if self.config.centered:
            x = x.replace(self._centered(x.feats, x.coords[:, 0].long()))
        finest, parents = cube_bits(x.coords), None
        x = x.replace(self.stem(x) if self.config.version == 1 else self.stem(x.feats))
        found: list[Level] = []
        for stage, blocks in enumerate(self.encoder):
            if stage:
                parents = _parents(x)
                x = cast(Projection, self.down[stage - 1]).pool(x, parents)
            patches = self._patches(x, stage, finest)
            x = blocks(x, patches)
            found.append(Level(x, patches, parents))
        return found

    def _patches(self, x: SparseTensor, stage: int, finest: list[int]) -> list[Patches]:
        """The patches of the curves that the blocks on a grid use."""
        config = self.config
        curves = list(config.curves)
        if self.training:  # as the published networks were trained
            curves = [curves[turn] for turn in torch.randperm(len(curves)).tolist()]
        used = max(config.depths[stage], *config.decoder_depths[stage : stage + 1], 1)
        bits = cube_bits(x.coords)
        if config.version == 1:
            bits = [max(1, depth - stage) for depth in finest]
        return patches_of(x.coords, curves[:used], config.patch, bits)

    def features(self, x: SparseTensor) -> Tensor:
        """Features (M, C) of the voxels: those of the decoder, or of all stages, finest first."""
        levels = self.levels(x)
        feats = levels[-1].x.feats
        for grid in reversed(range(len(levels) - 1)):
            level, parents = levels[grid], cast(Tensor, levels[grid + 1].parents)
            if not self.config.decoder_depths:
                feats = torch.cat([level.x.feats, feats.index_select(0, parents)], 1)
                continue
            total, skip = self.up[grid](level.x, feats, parents)
            # The published networks of version 1 were trained this way.
            seen = skip if self.config.version == 1 else None
            feats = self.decoder[grid](total, level.patches, seen).feats
        return feats

    def _centered(self, feats: Tensor, batch: Tensor) -> Tensor:
        """Inputs whose x and y are relative to the middle of the sweep, z to its lowest point."""
        xyz = feats[:, self.axes]
        low, high = _reduce(xyz, batch, "amin"), _reduce(xyz, batch, "amax")
        origin = torch.cat([(low + high)[:, :2] / 2, low[:, 2:]], 1)
        result = feats.clone()
        result[:, self.axes] = xyz - origin[batch]
        return result


def _stages(depths: Sizes, channels: Sizes, heads: Sizes, mlp_ratio: float) -> nn.ModuleList:
    return nn.ModuleList(
        Blocks(*sizes, mlp_ratio) for sizes in zip(depths, channels, heads, strict=True)
    )


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
