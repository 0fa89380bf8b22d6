# SPDX-License-Identifier: Apache-2.0
"""MinkUNet for inference on the CPU: folded, fused, in buffers that are kept between calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pcseg_core.errors import InputError
from pcseg_core.models.minkunet import BasicBlock, ConvBlock, MinkUNet, Up
from pcseg_core.sparse import BatchNorm, SparseConv3d, SparseTensor
from pcseg_core.sparse.maps import KernelMap, KernelMapCache
from pcseg_core.sparse.native import library

Precision = Literal["fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution with its batch norm folded in, in the native library's layout."""

    packed: Tensor
    bias: Tensor
    cin: int
    cout: int

    @classmethod
    def fold(cls, conv: SparseConv3d, norm: BatchNorm, dtype: torch.dtype) -> Layer:
        """w' = w g / s and b' = beta - mean g / s with s = sqrt(variance + eps)."""
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = norm.weight / torch.sqrt(variance + norm.eps)
        bias = norm.bias - mean * scale
        if conv.bias is not None:
            bias = bias + conv.bias * scale
        return cls.of(conv.weight * scale, bias, dtype)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Layer:
        """Pack plain weights (K, cin, cout) and bias (cout,)."""
        weight = weight.detach().float().cpu()
        packed = library.pack(weight, dtype)
        copy = bias.detach().to("cpu", torch.float32, copy=True)
        return cls(packed, copy, *weight.shape[1:])

    def __call__(
        self,
        x: Tensor,
        table: Tensor | None,
        out: Tensor,
        residual: Tensor | None = None,
        relu: bool = True,
    ) -> Tensor:
        return library.conv(x, table, self.packed, out, self.cin, self.bias, residual, relu)


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block."""

    conv1: Layer
    conv2: Layer
    shortcut: Layer | None

    @classmethod
    def fold(cls, block: BasicBlock, dtype: torch.dtype) -> Block:
        shortcut = None
        if block.shortcut is not None:
            conv, norm = cast(SparseConv3d, block.shortcut[0]), cast(BatchNorm, block.shortcut[1])
            shortcut = Layer.fold(conv, norm, dtype)
        first = Layer.fold(block.conv1, block.norm1, dtype)
        return cls(first, Layer.fold(block.conv2, block.norm2, dtype), shortcut)

    def __call__(self, x: Tensor, table: Tensor, out: Tensor | None, buffers: Buffers) -> Tensor:
        """Write to `out`, or where None over a buffer that is no longer needed."""
        rows = len(x)
        middle = self.conv1(x, table, buffers.take("middle", rows, self.conv1.cout))
        if self.shortcut is None:
            return self.conv2(middle, table, x if out is None else out, residual=x)
        kept = buffers.take("kept", rows, self.shortcut.cout)
        self.shortcut(x, None, kept, relu=False)
        return self.conv2(middle, table, kept if out is None else out, residual=kept)


class Buffers:
    """Named memory that grows to what the largest call needed."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """A (rows, columns) matrix with undefined content; the name's previous one is void."""
        flat = self._flat.get(name)
        if flat is None or flat.numel() < rows * columns:
            self._flat.pop(name, None)
            self._flat[name] = flat = torch.empty(rows * columns, dtype=self.dtype)
        return flat[: rows * columns].view(rows, columns)


def _fold_pair(pair: ConvBlock, dtype: torch.dtype) -> Layer:
    return Layer.fold(cast(SparseConv3d, pair[0]), cast(BatchNorm, pair[1]), dtype)


def _fold_blocks(blocks: nn.Module, dtype: torch.dtype) -> list[Block]:
    return [Block.fold(cast(BasicBlock, block), dtype) for block in blocks.children()]


class CompiledMinkUNet:
    """A frozen copy of a MinkUNet that runs whole on the native library.

    Batch norm is folded into the weights; bias, residual and rectifier happen where a convolution
    stores its sums; skip connections are written straight into the buffer that joins them. Calls
    from several threads run one after the other.
    """

    def __init__(self, model: MinkUNet, precision: Precision = "fp32") -> None:
        dtype = _DTYPES[precision]
        self.precision: Precision = precision
        self.in_channels, self.out_channels = model.in_channels, model.out_channels
        self.feature_channels = model.feature_channels
        self._dtype = dtype
        self._stem = _fold_pair(model.stem, dtype)
        self._down = []
        for stage in model.down:
            pair, *blocks = cast(nn.Sequential, stage)
            folded = [Block.fold(cast(BasicBlock, block), dtype) for block in blocks]
            self._down.append((_fold_pair(cast(ConvBlock, pair), dtype), folded))
        self._up = [
            (_fold_pair(stage.conv, dtype), _fold_blocks(stage.blocks, dtype))
            for stage in cast(list[Up], model.up)
        ]
        head = model.classifier
        self._classifier = Layer.of(head.weight.t()[None], head.bias, dtype)
        self._buffers = Buffers(dtype)
        self._lock = threading.Lock()

    def __call__(self, x: SparseTensor) -> SparseTensor:
        """Logits (M, out_channels) float32 on the voxels of x."""
        with self._lock:
            feats = self._run(x)
            out = torch.empty(len(x), self.out_channels)
            return x.replace(self._classifier(feats, None, out, relu=False))

    def features(self, x: SparseTensor) -> Tensor:
        """Features (M, feature_channels) float32, before the classifier."""
        with self._lock:
            return self._run(x).to(torch.float32, copy=True)

    def _run(self, x: SparseTensor) -> Tensor:
        """The network up to the classifier; the result lies in a buffer."""
        if x.stride != 1 or x.feats.shape[1] != self.in_channels or x.feats.device.type != "cpu":
            raise InputError(
                f"compiled MinkUNet: expected {self.in_channels} channels of stride 1 on the CPU, "
                f"got {x}"
            )
        levels, joined, skips = self._plan(x.cache)
        feats = self._stem(self._input(x.feats), _table(x.cache, 0), skips[0])
        for level, (pair, blocks) in enumerate(self._down, start=1):
            out = self._buffers.take("entry", levels[level], pair.cout)
            feats = pair(feats, _between(x.cache, level).table, out)
            feats = self._blocks(blocks, feats, _table(x.cache, level), skips.get(level))
        for level, (pair, blocks) in zip((3, 2, 1, 0), self._up, strict=True):
            upsampling = _between(x.cache, level + 1).inverse.table
            pair(feats, upsampling, joined[level][:, : pair.cout])
            feats = self._blocks(blocks, joined[level], _table(x.cache, level), None)
        return feats

    def _plan(
        self, cache: KernelMapCache
    ) -> tuple[list[int], dict[int, Tensor], dict[int, Tensor]]:
        """Voxels per level; per level the joined buffer of the decoder and its right part."""
        levels = [len(cache.keys(1 << level)) for level in range(5)]
        joined, skips = {}, {}
        for level, (pair, blocks) in zip((3, 2, 1, 0), self._up, strict=True):
            width = blocks[0].conv1.cin
            joined[level] = self._buffers.take(f"joined{level}", levels[level], width)
            skips[level] = joined[level][:, pair.cout :]
        return levels, joined, skips

    def _blocks(
        self, blocks: list[Block], feats: Tensor, table: Tensor, out: Tensor | None
    ) -> Tensor:
        for block in blocks:
            last = block is blocks[-1]
            feats = block(feats, table, out if last else None, self._buffers)
        return feats

    def _input(self, feats: Tensor) -> Tensor:
        """The input in the network's precision, rows padded to an even number of channels."""
        if self._dtype == torch.float32:
            return feats.detach().float().contiguous()
        rows, channels = feats.shape
        padded = self._buffers.take("input", rows, channels + channels % 2)
        padded[:, :channels] = feats.detach()
        padded[:, channels:] = 0
        return padded


def _table(cache: KernelMapCache, level: int) -> Tensor:
    return cache.kernel_map(1 << level, 3, 1).table


def _between(cache: KernelMapCache, level: int) -> KernelMap:
    """The map from the next finer level to this one."""
    return cache.kernel_map(1 << (level - 1), 2, 2)


def compile_inference(model: MinkUNet, precision: Precision = "fp32") -> CompiledMinkUNet:
    """Prepare a trained network for inference on the CPU.

    The weights are copied; later changes to `model` do not reach the result, and `model` may be
    deleted. "bf16" halves memory and is about twice as fast where the CPU multiplies bfloat16
    itself (avx512_bf16); elsewhere it is emulated and slower than "fp32".

    Raises:
        InputError: the native library is absent (the message says how to build it), or the
            precision is unknown.
    """
    if precision not in _DTYPES:
        raise InputError(f"precision '{precision}': expected one of {', '.join(_DTYPES)}")
    library.library()
    with torch.no_grad():
        return CompiledMinkUNet(model, precision)
