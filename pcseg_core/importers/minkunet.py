# SPDX-License-Identifier: Apache-2.0
"""MinkUNets of other frameworks: names of their layers, orders of their kernels, their inputs.

A kernel lists its offsets in an order of its framework. Ours has z fastest, MinkowskiEngine x
fastest (`kernel_region.hpp`), torchsparse 1.4 x fastest in odd kernels and z fastest in even ones
(`nn/utils/kernel.py`). Odd kernels are centered, even ones begin at 0, in all three. A transposed
convolution uses the pairs of the one that it inverts, backwards, with the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.importers.published import Keys
from pcseg_core.models.minkunet import BLOCKS, PLANES, planes_of
from pcseg_core.models.student import StudentConfig, input_features

_STEP = 4  # widths are multiples of it: native passes in bfloat16 and integers need it
_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"

Span = tuple[int, int]
"""Published and padded number of channels."""


@dataclass(frozen=True)
class Layout:
    """Keys of a MinkUNet in one framework.

    Attributes:
        stem: kernel and norm of each convolution before the stages.
        down: kernel and norm of the four convolutions that halve the grid.
        up: kernel and norm of the four transposed ones.
        blocks: key of the residual blocks of each of the eight stages, up to their number.
        first: number of the first block of the stages on the way down.
        parts: kernel and norm of the first and second convolution and of the shortcut of a block.
        even_x_fastest: even kernels have x fastest too.
    """

    stem: tuple[tuple[str, str], ...]
    down: tuple[tuple[str, str], ...]
    up: tuple[tuple[str, str], ...]
    blocks: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    first: int = 0
    even_x_fastest: bool = False

    def block(self, stage: int, number: int) -> str:
        """Key of a block, with a dot at its end."""
        start = self.first if stage < len(self.down) else 0
        return f"{self.blocks[stage]}{start + number}."


def minkowski_layout(norm: str) -> Layout:
    """Layout of Res16UNet and MinkUNet in MinkowskiEngine; `norm` ends the keys of the norms."""
    halving = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
    returning = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")
    return Layout(
        stem=(("conv0p1s1.kernel", f"bn0{norm}"),),
        down=tuple((f"{name}.kernel", f"bn{i}{norm}") for i, name in enumerate(halving, start=1)),
        up=tuple((f"{name}.kernel", f"bntr{i}{norm}") for i, name in enumerate(returning, start=4)),
        blocks=tuple(f"block{stage}." for stage in range(1, 9)),
        parts=(
            ("conv1.kernel", f"norm1{norm}"),
            ("conv2.kernel", f"norm2{norm}"),
            ("downsample.0.kernel", f"downsample.1{norm}"),
        ),
        even_x_fastest=True,
    )


@dataclass(frozen=True)
class Channel:
    """An input of the student from channels of the published network.

    Attributes:
        name: of the student's input.
        channels: that read it; their kernels are added.
        factor: published value of an input of 1, for example 255 for an intensity of 0..1.
    """

    name: str
    channels: tuple[int, ...]
    factor: float = 1.0


def reordered(weight: Tensor, size: int) -> Tensor:
    """A kernel (size^3, cin, cout) with x fastest in the order with z fastest, and back."""
    cube = weight.reshape(size, size, size, *weight.shape[1:])
    return cube.permute(2, 1, 0, 3, 4).reshape(weight.shape)


def read_minkunet(
    keys: Keys, layout: Layout, config: StudentConfig, inputs: Sequence[Channel]
) -> tuple[StudentConfig, dict[str, Tensor]]:
    """Configuration and tensors of the network, without its classifier.

    Args:
        keys: of the file.
        layout: of the framework.
        config: settings of the grid; depth, planes and stem follow from the file.
        inputs: the student's inputs, in the order of `config.inputs`.

    Raises:
        InputError: no MinkUNet of a known depth.
    """
    found = _architecture(keys, layout, config)
    channels = 1 + max(number for channel in inputs for number in channel.channels)
    reader = _Reader(keys, layout, channels)
    reader.network(_planes(keys, layout), found)
    stem = reader.state["network.stem.0.weight"]
    reader.state["network.stem.0.weight"] = _folded(stem, found, inputs)
    return found, reader.state


def _planes(keys: Keys, layout: Layout) -> list[int]:
    second = layout.parts[1][0]
    return [keys.shape(layout.block(stage, 0) + second)[-1] for stage in range(len(PLANES))]


def take_linear(
    keys: Keys, weight: str, bias: str | None, config: StudentConfig, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Weight (K, F) and bias (K,) of a layer on the features.

    Args:
        keys: of the file.
        weight, bias: their keys; no bias is 0.
        config: of the network; its features may be padded.
        transposed: the weight is (F, K) in the file and the bias (1, K), as in MinkowskiEngine.
    """
    outputs, width = keys.shape(weight)[:: -1 if transposed else 1]
    shape, row = ((width, outputs), (1, outputs)) if transposed else ((outputs, width), (outputs,))
    values = keys.take(weight, *shape)
    whole = torch.zeros(outputs, planes_of(config.width, config.planes)[-1])
    whole[:, :width] = values.t() if transposed else values
    added = torch.zeros(outputs) if bias is None else keys.take(bias, *row).reshape(outputs)
    return whole, added


def padded(planes: Sequence[int]) -> tuple[int, ...]:
    """Widths rounded up to multiples of four; the added channels are 0 everywhere."""
    return tuple(-(-width // _STEP) * _STEP for width in planes)


def _architecture(keys: Keys, layout: Layout, config: StudentConfig) -> StudentConfig:
    counts = [_count(keys, layout, stage) for stage in range(len(PLANES))]
    depths: dict[tuple[int, ...], int] = {blocks: depth for depth, blocks in BLOCKS.items()}
    if tuple(counts) not in depths:
        known = "; ".join(f"{depth}: {blocks}" for depth, blocks in BLOCKS.items())
        raise InputError(
            f"{keys.path}: its stages have {tuple(counts)} blocks, known are MinkUNets of the "
            f"depths {known}"
        )
    planes = padded(_planes(keys, layout))
    volume = keys.shape(layout.stem[0][0])[0]
    return StudentConfig.model_validate(
        {
            **config.model_dump(),
            "depth": depths[tuple(counts)],
            "width": 1.0,
            "planes": () if planes == PLANES else planes,
            "stem_kernel": round(volume ** (1 / 3)),
            "stem_convs": len(layout.stem),
        }
    )


def _count(keys: Keys, layout: Layout, stage: int) -> int:
    number = 0
    while keys.has(layout.block(stage, number) + layout.parts[0][0]):
        number += 1
    return number


def _folded(stem: Tensor, config: StudentConfig, inputs: Sequence[Channel]) -> Tensor:
    """The first kernel (K, F, C) on the student's inputs, which are divided by their spread."""
    columns = [
        stem[:, list(channel.channels)].sum(1) * (channel.factor * divisor)
        for channel, (_, divisor) in zip(inputs, input_features(config), strict=True)
    ]
    return torch.stack(columns, 1)


class _Reader:
    """Takes the layers of a MinkUNet one by one.

    Attributes:
        state: tensors of the student.
    """

    def __init__(self, keys: Keys, layout: Layout, channels: int) -> None:
        self._keys, self._layout, self._channels = keys, layout, channels
        self.state: dict[str, Tensor] = {}

    def network(self, planes: Sequence[int], config: StudentConfig) -> None:
        """Take all layers up to the classifier."""
        spans: list[Span] = list(zip(planes, padded(planes), strict=True))
        layout, first = self._layout, spans[0]
        read: list[Span] = [(self._channels, self._channels)]
        for number, names in enumerate(layout.stem):
            ours = "stem" if not number else f"stem_next.{number - 1}"
            kernel = config.stem_kernel if not number else 3
            self._pair((f"{ours}.0", f"{ours}.1"), names, kernel, read, first)
            read = [first]
        levels = [first, *spans[:3]]
        for stage, (given, out) in enumerate(zip(levels, spans[:4], strict=True)):
            pair = f"down.{stage}.0"
            self._pair((f"{pair}.0", f"{pair}.1"), layout.down[stage], 2, [given], given)
            self._stage(f"down.{stage}", stage, [given], out, start=1)
        for stage, (given, out) in enumerate(itertools.pairwise(spans[3:])):
            pair = f"up.{stage}.conv"
            self._pair((f"{pair}.0", f"{pair}.1"), layout.up[stage], 2, [given], out)
            joined = [out, levels[3 - stage]]
            self._stage(f"up.{stage}.blocks", stage + 4, joined, out)

    def _stage(self, ours: str, stage: int, given: list[Span], out: Span, start: int = 0) -> None:
        for number in range(_count(self._keys, self._layout, stage)):
            theirs = self._layout.block(stage, number)
            self._block(f"{ours}.{start + number}", theirs, given, out)
            given = [out]

    def _block(self, ours: str, theirs: str, given: list[Span], out: Span) -> None:
        parts = [(theirs + kernel, theirs + norm) for kernel, norm in self._layout.parts]
        self._pair((f"{ours}.conv1", f"{ours}.norm1"), parts[0], 3, given, out)
        self._pair((f"{ours}.conv2", f"{ours}.norm2"), parts[1], 3, [out], out)
        if sum(width for width, _ in given) != out[0]:
            short = f"{ours}.shortcut"
            self._pair((f"{short}.0", f"{short}.1"), parts[2], 1, given, out)

    def _pair(
        self,
        ours: tuple[str, str],
        theirs: tuple[str, str],
        size: int,
        given: list[Span],
        out: Span,
    ) -> None:
        """A convolution and its norm: from channels `given`, side by side, to channels `out`."""
        width = sum(count for count, _ in given)
        volume = (size**3,) if size > 1 else ()
        weight = self._keys.take(theirs[0], *volume, width, out[0])
        weight = weight.reshape(size**3, width, out[0])
        if size % 2 or self._layout.even_x_fastest:
            weight = reordered(weight, size)
        padded_in, padded_out = sum(p for _, p in given), out[1]
        whole = torch.zeros(len(weight), padded_in, padded_out)
        whole[:, _rows(given), : out[0]] = weight
        self.state[f"network.{ours[0]}.weight"] = whole
        for name in _NORM:
            values = torch.full((padded_out,), 1.0 if name == "running_var" else 0.0)
            values[: out[0]] = self._keys.take(f"{theirs[1]}.{name}", out[0])
            self.state[f"network.{ours[1]}.{name}"] = values
        self.state[f"network.{ours[1]}.{_COUNTER}"] = torch.zeros((), dtype=torch.int64)


def _rows(given: Sequence[Span]) -> Tensor:
    """Rows of published channels among the padded ones."""
    rows: list[int] = []
    start = 0
    for count, room in given:
        rows += range(start, start + count)
        start += room
    return torch.tensor(rows)
