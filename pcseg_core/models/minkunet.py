# SPDX-License-Identifier: Apache-2.0
"""MinkUNet: a residual U-Net of sparse convolutions (Choy, Gwak, Savarese, CVPR 2019).

The layout is Res16UNet of that paper: stem, four stages that halve the grid, four that return to
the full grid, each with residual blocks, and a linear classifier. The stem is one convolution of
kernel size 3; published networks also have one of size 5, or two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from pcseg_core.errors import InputError
from pcseg_core.models.network import Network
from pcseg_core.sparse import BatchNorm, ReLU, SparseConv3d, SparseTensor, concatenate

PLANES = (32, 64, 128, 256, 256, 128, 96, 96)
BLOCKS = {14: (1, 1, 1, 1, 1, 1, 1, 1), 18: (2, 2, 2, 2, 2, 2, 2, 2), 34: (2, 3, 4, 6, 2, 2, 2, 2)}


def scaled(planes: int, width: float) -> int:
    """Channels at a width factor, rounded to a multiple of 16 and at least 16."""
    return max(16, 16 * round(planes * width / 16))


def planes_of(width: float, planes: Sequence[int] = ()) -> tuple[int, ...]:
    """Channels of the eight stages: as given, or those of the paper times a width."""
    return tuple(planes) or tuple(scaled(p, width) for p in PLANES)


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, rectifier."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__(
            SparseConv3d(in_channels, out_channels, kernel_size, stride, transposed=transposed),
            BatchNorm(out_channels),
            ReLU(inplace=True),
        )


class BasicBlock(nn.Module):
    """Two convolutions of kernel 3 and a shortcut (1x1 where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SparseConv3d(in_channels, out_channels)
        self.norm1 = BatchNorm(out_channels)
        self.conv2 = SparseConv3d(out_channels, out_channels)
        self.norm2 = BatchNorm(out_channels)
        self.relu = ReLU(inplace=True)
        self.shortcut: nn.Sequential | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                SparseConv3d(in_channels, out_channels, kernel_size=1), BatchNorm(out_channels)
            )

    def forward(self, x: SparseTensor) -> SparseTensor:
        kept = x if self.shortcut is None else self.shortcut(x)
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        result: SparseTensor = self.relu(out.replace(out.feats + kept.feats))
        return result


class Up(nn.Module):
    """Upsample, concatenate the features of the encoder, refine."""

    def __init__(self, in_channels: int, skip_channels: int, planes: int, blocks: int) -> None:
        super().__init__()
        self.conv = ConvBlock(in_channels, planes, kernel_size=2, stride=2, transposed=True)
        self.blocks = _stage(planes + skip_channels, planes, blocks)

    def forward(self, x: SparseTensor, skip: SparseTensor) -> SparseTensor:
        result: SparseTensor = self.blocks(concatenate(self.conv(x), skip))
        return result


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * blocks
    return nn.Sequential(*(BasicBlock(a, b) for a, b in itertools.pairwise(widths)))


class MinkUNet(Network):
    """Residual sparse U-Net with an output per voxel."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int = 18,
        width: float = 1.0,
        planes: Sequence[int] = (),
        stem_kernel: int = 3,
        stem_convs: int = 1,
    ) -> None:
        """Build the network.

        Args:
            in_channels: channels of the input voxels.
            out_channels: channels of the output, for example classes.
            depth: 14, 18 or 34 layers.
            width: factor on all planes; scaled planes are rounded to multiples of 16.
            planes: channels of the eight stages, in place of `width`; the stem has those of the
                first stage.
            stem_kernel: kernel size of the first convolution.
            stem_convs: number of convolutions of the stem; those after the first have kernel 3.
        """
        super().__init__()
        if depth not in BLOCKS:
            raise InputError(f"MinkUNet depth {depth}: expected one of {tuple(BLOCKS)}")
        if not 0 < width <= 4:
            raise InputError(f"MinkUNet width {width}: expected a factor between 0 and 4")
        if len(planes) not in (0, len(PLANES)):
            raise InputError(f"MinkUNet planes {tuple(planes)}: expected {len(PLANES)} numbers")
        planes = planes_of(width, planes)
        blocks = BLOCKS[depth]
        self.in_channels, self.out_channels = in_channels, out_channels
        self.depth, self.width, self.feature_channels = depth, width, planes[7]
        self.stem_kernel = stem_kernel
        self.stem = ConvBlock(in_channels, planes[0], stem_kernel)
        self.stem_next = nn.ModuleList(
            ConvBlock(planes[0], planes[0]) for _ in range(stem_convs - 1)
        )
        inputs = [planes[0], *planes[:3]]
        self.down = nn.ModuleList(
            nn.Sequential(ConvBlock(a, a, kernel_size=2, stride=2), *_stage(a, b, n))
            for a, b, n in zip(inputs, planes[:4], blocks[:4], strict=True)
        )
        self.up = nn.ModuleList(
            Up(a, skip, b, n)
            for a, skip, b, n in zip(
                planes[3:7], reversed(inputs), planes[4:], blocks[4:], strict=True
            )
        )
        self.classifier = nn.Linear(self.feature_channels, out_channels)
        self._initialize()

    def _initialize(self) -> None:
        """He initialization for the neighbors that exist on LiDAR surfaces, about a third."""
        for module in self.modules():
            if isinstance(module, SparseConv3d):
                fan = module.out_channels * max(1.0, len(module.weight) / 3)
                nn.init.normal_(module.weight, std=(2 / fan) ** 0.5)

    @property
    def stem_pairs(self) -> list[ConvBlock]:
        """The convolutions before the stages."""
        return [self.stem, *cast(list[ConvBlock], self.stem_next)]

    def features(self, x: SparseTensor) -> Tensor:
        """Features (M, C) of the last stage, before the classifier."""
        for pair in self.stem_pairs:
            x = pair(x)
        skips = []
        for stage in self.down:
            skips.append(x)
            x = stage(x)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            x = stage(x, skip)
        return x.feats

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Map voxels (M, in_channels) to (M, out_channels) on the same voxels."""
        if x.stride != 1:
            raise InputError(f"MinkUNet: expected an input of stride 1, got {x.stride}")
        return super().forward(x)
