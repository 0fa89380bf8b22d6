# SPDX-License-Identifier: Apache-2.0
"""MinkUNets with the keys and shapes of published ones, random weights, and a dense forward pass.

The dense pass convolves whole grids with torch's conv3d. It orders kernels by the offsets that the
frameworks list, and shares no code with the importers and the sparse layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

PLANES = (32, 64, 128, 256, 256, 128, 96, 96)
OPENSCENE_PLANES = (32, 64, 128, 256, 128, 128, 96, 96)
DEPTHS = {14: (1,) * 8, 18: (2,) * 8, 34: (2, 3, 4, 6, 2, 2, 2, 2)}
Pair = tuple[str, str]
Offsets = list[tuple[int, int, int]]


@dataclass(frozen=True)
class Naming:
    """Keys of a framework: kernel and norm of each layer.

    Attributes:
        stem, convs: the convolutions before the stages, and the first of each stage.
        block: key of a block by stage and number.
        parts: two convolutions and the shortcut of a block.
        x_fastest: sizes of the kernels whose offsets are listed with x fastest.
    """

    stem: tuple[Pair, ...]
    convs: tuple[Pair, ...]
    block: Callable[[int, int], str]
    parts: tuple[Pair, Pair, Pair]
    x_fastest: tuple[int, ...]

    def offsets(self, size: int) -> Offsets:
        """Offsets (x, y, z) in the order of the weights, from 0."""
        cells = itertools.product(range(size), repeat=3)
        if size in self.x_fastest:
            return [(x, y, z) for z, y, x in cells]
        return [(x, y, z) for x, y, z in cells]


_ME = ("1p1s2", "2p2s2", "3p4s2", "4p8s2", "tr4p16s2", "tr5p8s2", "tr6p4s2", "tr7p2s2")
MINKOWSKI = Naming(
    (("conv0p1s1.kernel", "bn0.bn"),),
    tuple(
        (f"conv{name}.kernel", f"bn{stage + 1}.bn" if stage < 4 else f"bntr{stage}.bn")
        for stage, name in enumerate(_ME)
    ),
    lambda stage, number: f"block{stage + 1}.{number}.",
    (
        ("conv1.kernel", "norm1.bn"),
        ("conv2.kernel", "norm2.bn"),
        ("downsample.0.kernel", "downsample.1.bn"),
    ),
    (2, 3, 5),
)
SUPERFLOW = Naming(
    (("conv0.0.conv.kernel", "conv0.0.norm"), ("conv0.1.conv.kernel", "conv0.1.norm")),
    tuple((f"conv{stage}.conv.kernel", f"conv{stage}.norm") for stage in range(1, 9)),
    lambda stage, number: f"block{stage + 1}.{number}.",
    (
        ("conv1.kernel", "norm1"),
        ("conv2.kernel", "norm2"),
        ("downsample.conv.kernel", "downsample.norm"),
    ),
    (3,),
)
SPVNAS = Naming(
    (("stem.0.kernel", "stem.1"), ("stem.3.kernel", "stem.4")),
    tuple(
        (f"{name}.0.net.0.kernel", f"{name}.0.net.1")
        for name in (*(f"stage{i}" for i in range(1, 5)), *(f"up{i}" for i in range(1, 5)))
    ),
    lambda stage, number: (
        f"stage{stage + 1}.{number + 1}." if stage < 4 else f"up{stage - 3}.1.{number}."
    ),
    (("net.0.kernel", "net.1"), ("net.3.kernel", "net.4"), ("downsample.0.kernel", "downsample.1")),
    (3,),
)


@dataclass
class PublishedNetwork:
    """A network with random weights.

    Attributes:
        naming: of its keys.
        depth: 14, 18 or 34.
        state: tensors by key.
    """

    naming: Naming
    planes: tuple[int, ...]
    depth: int
    channels: int
    kernel: int = 3
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, pair in enumerate(self.naming.stem):
            first = number == 0
            width = self.channels if first else self.planes[0]
            self._pair(pair, self.kernel if first else 3, width, self.planes[0])
        for stage, (given, conv, joined) in enumerate(self._widths()):
            self._pair(self.naming.convs[stage], 2, given, conv)
            for number in range(DEPTHS[self.depth][stage]):
                width, out = joined if number == 0 else self.planes[stage], self.planes[stage]
                start = self.naming.block(stage, number)
                parts = [(start + kernel, start + norm) for kernel, norm in self.naming.parts]
                self._pair(parts[0], 3, width, out)
                self._pair(parts[1], 3, out, out)
                if width != out:
                    self._pair(parts[2], 1, width, out)

    def _widths(self) -> list[tuple[int, int, int]]:
        """Of each stage: channels into its convolution, out of it, and into its blocks."""
        planes, levels = self.planes, (self.planes[0], *self.planes[:3])
        down = [(given, given, given) for given in levels]
        up = [
            (given, out, out + levels[3 - stage])
            for stage, (given, out) in enumerate(itertools.pairwise(planes[3:]))
        ]
        return down + up

    def _pair(self, names: Pair, size: int, given: int, out: int) -> None:
        kernel, norm = names
        volume = (size**3,) if size > 1 else ()
        spread = (2 / (max(1, size**3 / 3) * given)) ** 0.5
        self.state[kernel] = torch.randn(*volume, given, out) * spread
        self.state[f"{norm}.weight"] = 0.5 + torch.rand(out)
        self.state[f"{norm}.bias"] = 0.1 * torch.randn(out)
        self.state[f"{norm}.running_mean"] = 0.1 * torch.randn(out)
        self.state[f"{norm}.running_var"] = 0.5 + torch.rand(out)
        self.state[f"{norm}.num_batches_tracked"] = torch.tensor(100)

    def linear(self, name: str, outputs: int, width: int | None = None) -> None:
        """Add a layer of torch."""
        width = width or self.planes[-1]
        self.state[f"{name}.weight"] = torch.randn(outputs, width) / width**0.5
        self.state[f"{name}.bias"] = torch.randn(outputs)

    def final(self, outputs: int, bias: bool = True) -> None:
        """Add the last layer of MinkowskiEngine."""
        self.state["final.kernel"] = torch.randn(self.planes[-1], outputs) / self.planes[-1] ** 0.5
        if bias:
            self.state["final.bias"] = torch.randn(1, outputs)

    def dense(self, grid: Tensor, mask: Tensor) -> Tensor:
        """Features of the last stage.

        Args:
            grid: (channels, X, Y, Z) inputs, 0 where there is no voxel.
            mask: (1, X, Y, Z) 1 for voxels; sides are multiples of 16.
        """
        for number, pair in enumerate(self.naming.stem):
            grid = self._layer(grid, pair, self.kernel if number == 0 else 3) * mask
            grid = grid.relu()
        skips, masks = [], []
        for stage in range(4):
            skips.append(grid)
            masks.append(mask)
            mask = F.max_pool3d(mask[None], 2)[0]
            grid = (self._layer(grid, self.naming.convs[stage], 2) * mask).relu()
            grid = self._blocks(grid, mask, stage)
        for stage in range(4, 8):
            mask = masks.pop()
            grid = (self._layer(grid, self.naming.convs[stage], 2, transposed=True) * mask).relu()
            grid = self._blocks(torch.cat([grid, skips.pop()]), mask, stage)
        return grid

    def _blocks(self, grid: Tensor, mask: Tensor, stage: int) -> Tensor:
        for number in range(DEPTHS[self.depth][stage]):
            start = self.naming.block(stage, number)
            parts = [(start + kernel, start + norm) for kernel, norm in self.naming.parts]
            out = (self._layer(grid, parts[0], 3) * mask).relu()
            out = self._layer(out, parts[1], 3)
            kept = self._layer(grid, parts[2], 1) if parts[2][0] in self.state else grid
            grid = ((out + kept) * mask).relu()
        return grid

    def _layer(self, grid: Tensor, names: Pair, size: int, transposed: bool = False) -> Tensor:
        listed = self.state[names[0]]
        cube = torch.zeros(listed.shape[-1], listed.shape[-2], size, size, size)
        for weight, (x, y, z) in zip(
            listed.reshape(size**3, *listed.shape[-2:]), self.naming.offsets(size), strict=True
        ):
            cube[:, :, x, y, z] = weight.t()
        if transposed:
            out = F.conv_transpose3d(grid[None], cube.transpose(0, 1), stride=2)
        elif size == 2:
            out = F.conv3d(grid[None], cube, stride=2)
        else:
            out = F.conv3d(grid[None], cube, padding=size // 2)
        norm = [
            self.state[f"{names[1]}.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.batch_norm(out, *norm)[0]


def narrow(planes: Sequence[int], divisor: int = 8) -> tuple[int, ...]:
    """Planes of a small network of the same layout."""
    return tuple(width // divisor for width in planes)


def slidr(depth: int = 14, outputs: int = 64, planes: Sequence[int] = PLANES) -> PublishedNetwork:
    """Res16UNet of SLidR."""
    network = PublishedNetwork(MINKOWSKI, tuple(planes), depth, channels=1)
    network.final(outputs)
    return network


def openscene(outputs: int = 768, planes: Sequence[int] = OPENSCENE_PLANES) -> PublishedNetwork:
    """MinkUNet18A of OpenScene."""
    network = PublishedNetwork(MINKOWSKI, tuple(planes), 18, channels=3, kernel=5)
    network.final(outputs, bias=False)
    return network


def superflow(depth: int = 14, planes: Sequence[int] = PLANES) -> PublishedNetwork:
    """MinkUNet of SuperFlow, without its head."""
    return PublishedNetwork(SUPERFLOW, tuple(planes), depth, channels=4)


def spvnas(classes: int = 19, planes: Sequence[int] = PLANES) -> PublishedNetwork:
    """MinkUNet of the SPVNAS model zoo, with the layers that it does not run."""
    network = PublishedNetwork(SPVNAS, tuple(planes), 18, channels=4)
    network.linear("classifier.0", classes)
    for number, (given, out) in enumerate(((0, 3), (3, 5), (5, 7))):
        network.linear(f"point_transforms.{number}.0", planes[out], planes[given])
        norm = network.naming.stem[0][1]
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            copied = network.state[f"{norm}.{name}"]
            network.state[f"point_transforms.{number}.1.{name}"] = (
                copied if not copied.ndim else torch.ones(planes[out])
            )
    return network
