# SPDX-License-Identifier: Apache-2.0
"""State dicts with the keys and shapes of published 3D networks, and random weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PLANES = (32, 64, 128, 256, 256, 128, 96, 96)
OPENSCENE_PLANES = (32, 64, 128, 256, 128, 128, 96, 96)
DEPTHS = {14: (1,) * 8, 18: (2,) * 8, 34: (2, 3, 4, 6, 2, 2, 2, 2)}
State = dict[str, Tensor]


def narrow(planes: Sequence[int], factor: float) -> tuple[int, ...]:
    """Planes of a small network of the same layout."""
    return tuple(int(factor * width) for width in planes)


def minkowski(
    planes: Sequence[int],
    depth: int = 14,
    channels: int = 1,
    kernel: int = 3,
    outputs: int = 64,
    bias: bool = True,
) -> State:
    """Res16UNet or MinkUNet of MinkowskiEngine, keys without a prefix."""
    state = _Random()
    state.conv("conv0p1s1.kernel", kernel, channels, planes[0])
    state.norm("bn0.bn", planes[0])
    names = ("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")
    returns = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")
    for stage, (given, conv, out, joined) in enumerate(_stages(planes)):
        down = stage < 4
        name = names[stage] if down else returns[stage - 4]
        state.conv(f"{name}.kernel", 2, given, conv)
        state.norm(f"bn{stage + 1}.bn" if down else f"bntr{stage}.bn", conv)
        for number in range(DEPTHS[depth][stage]):
            block = f"block{stage + 1}.{number}"
            width = joined if number == 0 else out
            state.conv(f"{block}.conv1.kernel", 3, width, out)
            state.norm(f"{block}.norm1.bn", out)
            state.conv(f"{block}.conv2.kernel", 3, out, out)
            state.norm(f"{block}.norm2.bn", out)
            if width != out:
                state.conv(f"{block}.downsample.0.kernel", 1, width, out)
                state.norm(f"{block}.downsample.1.bn", out)
    state.conv("final.kernel", 1, planes[7], outputs)
    if bias:
        state["final.bias"] = torch.randn(1, outputs)
    return dict(state)


def superflow(planes: Sequence[int], depth: int = 14) -> State:
    """MinkUNet of SuperFlow in mmdetection3d, keys without a prefix."""
    state = _Random()
    for number, width in enumerate((4, planes[0])):
        _module(state, f"conv0.{number}", 3, width, planes[0])
    for stage, (given, conv, out, joined) in enumerate(_stages(planes)):
        _module(state, f"conv{stage + 1}", 2, given, conv)
        for number in range(DEPTHS[depth][stage]):
            block = f"block{stage + 1}.{number}"
            width = joined if number == 0 else out
            for index, channels in ((1, width), (2, out)):
                state.conv(f"{block}.conv{index}.kernel", 3, channels, out)
                state.norm(f"{block}.norm{index}", out)
            if width != out:
                _module(state, f"{block}.downsample", 1, width, out)
    return dict(state)


def _module(state: _Random, name: str, kernel: int, given: int, out: int) -> None:
    state.conv(f"{name}.conv.kernel", kernel, given, out)
    state.norm(f"{name}.norm", out)


def spvnas(planes: Sequence[int], classes: int = 19, depth: int = 18) -> State:
    """MinkUNet of the SPVNAS model zoo, with the layers that it does not run."""
    state = _Random()
    for number, width in ((0, 4), (3, planes[0])):
        state.conv(f"stem.{number}.kernel", 3, width, planes[0])
        state.norm(f"stem.{number + 1}", planes[0])
    for stage, (given, conv, out, joined) in enumerate(_stages(planes)):
        down = stage < 4
        start, first = (f"stage{stage + 1}", 1) if down else (f"up{stage - 3}", 0)
        state.conv(f"{start}.0.net.0.kernel", 2, given, conv)
        state.norm(f"{start}.0.net.1", conv)
        for number in range(DEPTHS[depth][stage]):
            block = f"{start}.{number + first}" if down else f"{start}.1.{number}"
            width = joined if number == 0 else out
            for index, channels in ((0, width), (3, out)):
                state.conv(f"{block}.net.{index}.kernel", 3, channels, out)
                state.norm(f"{block}.net.{index + 1}", out)
            if width != out:
                state.conv(f"{block}.downsample.0.kernel", 1, width, out)
                state.norm(f"{block}.downsample.1", out)
    state.linear("classifier.0", planes[7], classes)
    for number, (given, out) in enumerate(((0, 3), (3, 5), (5, 7))):
        state.linear(f"point_transforms.{number}.0", planes[given], planes[out])
        state.norm(f"point_transforms.{number}.1", planes[out])
    return dict(state)


class _Random(State):
    """Tensors of layers, with the spread that keeps features near one."""

    def conv(self, key: str, size: int, given: int, out: int) -> None:
        volume = (size**3,) if size > 1 else ()
        fan = max(1, size**3 // 3) * given
        self[key] = torch.randn(*volume, given, out) * (2 / fan) ** 0.5

    def norm(self, key: str, width: int) -> None:
        self[f"{key}.weight"] = 0.5 + torch.rand(width)
        self[f"{key}.bias"] = 0.1 * torch.randn(width)
        self[f"{key}.running_mean"] = 0.1 * torch.randn(width)
        self[f"{key}.running_var"] = 0.5 + torch.rand(width)
        self[f"{key}.num_batches_tracked"] = torch.tensor(100)

    def linear(self, key: str, given: int, out: int) -> None:
        self[f"{key}.weight"] = torch.randn(out, given) / given**0.5
        self[f"{key}.bias"] = torch.randn(out)


def _stages(planes: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Widths of each stage: into its convolution, out of it, out of its blocks, into its blocks."""
    levels = (planes[0], *planes[:3])
    for given, out in zip(levels, planes[:4], strict=True):
        yield given, given, out, given
    for stage, (given, out) in enumerate(itertools.pairwise(planes[3:])):
        yield given, out, out, out + levels[3 - stage]
