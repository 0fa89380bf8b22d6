# SPDX-License-Identifier: Apache-2.0
"""MinkUNet for inference: folded batch norm, fused layers, reused buffers.

Runs on the CPU through the native library or on a GPU through Triton; see `layers`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from pcseg_core.errors import InputError
from pcseg_core.models.layers import Layer, MakeLayer, NativeLayer, TritonLayer
from pcseg_core.models.minkunet import BasicBlock, ConvBlock, MinkUNet, Up
from pcseg_core.models.network import Network
from pcseg_core.sparse import BatchNorm, SparseConv3d, SparseTensor
from pcseg_core.sparse.backends import resolve
from pcseg_core.sparse.maps import KernelMap, KernelMapCache

Precision = Literal["fp32", "fp16", "bf16", "int8"]
T = TypeVar("T")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_INTEGERS = {"int8": torch.uint8}  # needs calibration; see `quantized`
_LAYERS: dict[str, Callable[[Tensor, Tensor, torch.dtype, Tensor | None], Layer]] = {
    "native": NativeLayer.of,
    "triton": TritonLayer.of,
}


def fold(
    conv: SparseConv3d, norm: BatchNorm, make: Callable[[Tensor, Tensor, Tensor | None], T]
) -> T:
    """One layer of both: w' = w g / s and b' = beta - mean g / s with s = sqrt(variance + eps)."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    bias = norm.bias - mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return make(conv.weight, bias, scale)


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block."""

    conv1: Layer
    conv2: Layer
    shortcut: Layer | None

    @classmethod
    def fold(cls, block: BasicBlock, make: MakeLayer) -> Block:
        shortcut = None
        if block.shortcut is not None:
            conv, norm = cast(SparseConv3d, block.shortcut[0]), cast(BatchNorm, block.shortcut[1])
            shortcut = fold(conv, norm, make)
        first = fold(block.conv1, block.norm1, make)
        return cls(first, fold(block.conv2, block.norm2, make), shortcut)

    def __call__(self, x: Tensor, kernel_map: KernelMap, middle: Tensor, out: Tensor) -> Tensor:
        """From x to `out`; both may share memory, since only conv1 reads other rows."""
        self.conv1(x, kernel_map, middle)
        kept = x if self.shortcut is None else self.shortcut(x, None, out, relu=False)
        return self.conv2(middle, kernel_map, out, residual=kept)


class Buffers:
    """One buffer for the features of a whole pass, reused by later calls.

    It starts with the joined features of levels 0 to 3 (decoder's half left, encoder's right),
    finest first. The scratch of a level starts behind its joined features and overlaps those of the
    deeper levels, which are not yet written on the way down and no longer needed on the way up.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._flat = torch.empty(0, dtype=dtype, device=device)
        self._starts: list[int] = []

    def plan(self, rows: list[int], joined: list[int], scratch: list[int]) -> list[Tensor]:
        """Lay out a pass; returns the joined features, one matrix per level except the last.

        Args:
            rows: voxels per level.
            joined: width of the joined features of each level except the last.
            scratch: width of the scratch of each level.
        """
        sizes = [n * width for n, width in zip(rows, joined, strict=False)]
        ends = list(itertools.accumulate(sizes))
        self._starts = [*ends, ends[-1]]
        pieces = [n * width for n, width in zip(rows, scratch, strict=True)]
        total = max(a + b for a, b in zip(self._starts, pieces, strict=True))
        if self._flat.numel() < total:
            self._flat = self._flat.new_empty(0)  # release before the larger allocation
            self._flat = self._flat.new_empty(total)
        flat = [self._flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        return [piece.view(n, -1) for piece, n in zip(flat, rows, strict=False)]

    def scratch(self, level: int, rows: int, skipped: int, columns: int) -> Tensor:
        """Scratch (rows, columns) of a level, behind `skipped` columns; content undefined."""
        start = self._starts[level] + rows * skipped
        return self._flat[start : start + rows * columns].view(rows, columns)


def _fold_pair(pair: ConvBlock, make: MakeLayer) -> Layer:
    return fold(cast(SparseConv3d, pair[0]), cast(BatchNorm, pair[1]), make)


def _fold_blocks(blocks: list[nn.Module], make: MakeLayer) -> list[Block]:
    return [Block.fold(cast(BasicBlock, block), make) for block in blocks]


class CompiledMinkUNet:
    """A frozen copy of a MinkUNet that runs on the native library or on Triton.

    Batch norm is folded into the weights. Convolutions add bias and residual and apply the
    rectifier when they store their sums, and write skip connections directly into the joined
    features. Calls from several threads run one after the other; on a GPU they must share a stream.

    Attributes:
        precision: of weights and features; sums are float32.
        device: of the weights; inputs must be there.
    """

    def __init__(self, model: MinkUNet, precision: Precision, make: MakeLayer) -> None:
        self.precision: Precision = precision
        self.in_channels, self.out_channels = model.in_channels, model.out_channels
        self.feature_channels = model.feature_channels
        self._make = make
        first, *further = model.stem_pairs
        self._stem, self._stem_next = (
            _fold_pair(first, make),
            [_fold_pair(p, make) for p in further],
        )
        self._stem_kernel = model.stem_kernel
        self._down = []
        for stage in model.down:
            pair, *blocks = cast(nn.Sequential, stage)
            self._down.append((_fold_pair(cast(ConvBlock, pair), make), _fold_blocks(blocks, make)))
        self._up = [
            (_fold_pair(stage.conv, make), _fold_blocks(list(stage.blocks.children()), make))
            for stage in cast(list[Up], model.up)
        ]
        head = model.classifier
        self._classifier = make(head.weight.t()[None], head.bias, None)
        self.device = self._classifier.device
        self._dtype = (_DTYPES | _INTEGERS)[precision]
        self._buffers = Buffers(self._dtype, self.device)
        self._lock = threading.Lock()

    def __call__(self, x: SparseTensor) -> SparseTensor:
        """Logits (M, out_channels) float32 on the voxels of x."""
        with self._lock:
            return x.replace(self._classify(self._run(x), self._classifier))

    def features(self, x: SparseTensor) -> Tensor:
        """Features (M, feature_channels) float32, before the classifier."""
        with self._lock:
            return self._run(x).to(torch.float32, copy=True)

    def with_head(self, weight: Tensor, bias: Tensor) -> Callable[[SparseTensor], Tensor]:
        """The network with another layer in place of its classifier.

        Args:
            weight: (feature_channels, K).
            bias: (K,).

        Returns:
            A function from voxels to (M, K) float32.
        """
        layer = self._make(weight[None].to(self.device), bias.to(self.device), None)

        def run(x: SparseTensor) -> Tensor:
            with self._lock:
                return self._classify(self._run(x), layer)

        return run

    def _classify(self, feats: Tensor, layer: Layer) -> Tensor:
        out = torch.empty(len(feats), layer.cout, device=self.device)
        return layer(feats, None, out, relu=False)

    def _run(self, x: SparseTensor) -> Tensor:
        """The network up to the classifier; the result is a view of the buffer."""
        if x.stride != 1 or x.feats.shape[1] != self.in_channels or x.feats.device != self.device:
            raise InputError(
                f"compiled MinkUNet: expected {self.in_channels} channels of stride 1 on "
                f"{self.device}, got {x} on {x.feats.device}"
            )
        cache = x.cache
        rows = [len(cache.keys(1 << level)) for level in range(5)]
        joined = self._plan(rows)
        skips = [
            part[:, up.cout :] for part, (up, _) in zip(joined, reversed(self._up), strict=True)
        ]
        feats = self._stems(x, rows[0], skips[0])
        for level, (pair, blocks) in enumerate(self._down, start=1):
            width = blocks[0].conv1.cout
            entry = self._buffers.scratch(level, rows[level], width, pair.cout)
            pair(feats, _between(cache, level), entry)
            if level < len(skips):
                out = skips[level]
            else:  # the coarsest level has no skip connection
                out = self._buffers.scratch(level, rows[level], width + pair.cout, width)
            feats = self._blocks(blocks, level, entry, _within(cache, level), out)
        for level, (pair, blocks) in zip((3, 2, 1, 0), self._up, strict=True):
            left = joined[level][:, : pair.cout]
            pair(feats, _between(cache, level + 1).inverse, left)
            feats = self._blocks(blocks, level, joined[level], _within(cache, level), left)
        return feats

    def _stems(self, x: SparseTensor, rows: int, out: Tensor) -> Tensor:
        """The convolutions before the stages; the last one writes `out`."""
        layers = [self._stem, *self._stem_next]
        feats, kernel = self._input(x.feats), self._stem_kernel
        for number, layer in enumerate(layers, start=1):
            last = number == len(layers)
            result = out if last else self._buffers.scratch(0, rows, 0, layer.cout)
            feats = layer(feats, x.cache.kernel_map(1, kernel, 1), result)
            kernel = 3
        return feats

    def _plan(self, rows: list[int]) -> list[Tensor]:
        """The joined features of levels 0 to 3."""
        up = list(reversed(self._up))
        joined = [blocks[0].conv1.cin for _, blocks in up]
        scratch = [pair.cout for pair, _ in up] + [0]
        scratch[0] = max(scratch[0], self._stem.cout)
        for level, (pair, blocks) in enumerate(self._down, start=1):
            width = blocks[0].conv1.cout
            own = pair.cout + (2 * width if level == len(up) else width)
            scratch[level] = max(scratch[level], own)
        return self._buffers.plan(rows, joined, scratch)

    def _blocks(
        self, blocks: list[Block], level: int, feats: Tensor, kernel_map: KernelMap, out: Tensor
    ) -> Tensor:
        middle = self._buffers.scratch(level, len(feats), 0, blocks[0].conv1.cout)
        for block in blocks:
            feats = block(feats, kernel_map, middle, out)
        return feats

    def _input(self, feats: Tensor) -> Tensor:
        """The input in the precision of the network, padded to an even number of channels."""
        if self._dtype == torch.float32:
            return feats.detach().float().contiguous()
        rows, channels = feats.shape
        padded = feats.new_zeros(rows, channels + channels % 2, dtype=self._dtype)
        padded[:, :channels] = feats.detach()
        return padded


def _within(cache: KernelMapCache, level: int) -> KernelMap:
    """The map of the convolutions of kernel 3 on a level."""
    return cache.kernel_map(1 << level, 3, 1)


def _between(cache: KernelMapCache, level: int) -> KernelMap:
    """The map from the next finer level to this one."""
    return cache.kernel_map(1 << (level - 1), 2, 2)


def compile_inference(
    model: MinkUNet, precision: Precision = "fp32", backend: str = "native"
) -> CompiledMinkUNet:
    """Prepare a trained network for inference on the device that it is on.

    The weights are copied: later changes to `model` have no effect, and `model` may be deleted.
    "bf16" halves the memory. Whether it is faster depends on the CPU: `native.precision` measures
    it. On a GPU "fp16" and "bf16" run on tensor cores; "fp16" is more exact.

    Args:
        model: the network, on the CPU for "native" and on a GPU for "triton".
        precision: "fp32", "bf16", or on a GPU "fp16".
        backend: "native" or "triton".

    Raises:
        InputError: the backend is unavailable (the message tells how to get it), or the precision
            is unknown.
    """
    if precision not in _DTYPES or (precision, backend) == ("fp16", "native"):
        known = ", ".join(p for p in _DTYPES if (p, backend) != ("fp16", "native"))
        raise InputError(f"precision '{precision}' on backend '{backend}': expected one of {known}")
    device = model.classifier.weight.device
    if backend not in _LAYERS:
        raise InputError(f"backend '{backend}': expected one of {', '.join(_LAYERS)}")
    resolve(backend, device)
    dtype, layer = _DTYPES[precision], _LAYERS[backend]

    def make(weight: Tensor, bias: Tensor, scale: Tensor | None) -> Layer:
        return layer(weight, bias, dtype, scale)

    with torch.no_grad():
        return CompiledMinkUNet(model, precision, make)


def only_minkunet(network: Network, command: str) -> MinkUNet:
    """The network as a MinkUNet, for a command that knows no other family.

    Raises:
        InputError: it is of another family.
    """
    if not isinstance(network, MinkUNet):
        raise InputError(
            f"{command}: expected a checkpoint with the network 'minkunet', this one has "
            f"{type(network).__name__}; train a student with 'student: {{network: minkunet}}'"
        )
    return network


def choose_device(device: str) -> torch.device:
    """The device of a name; "auto" prefers CUDA.

    Raises:
        InputError: the device does not exist on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen: torch.device | None = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device '{device}': expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{device}': torch finds no CUDA GPU here; use cpu or auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"device '{device}': this machine has {count} GPUs, counted from cuda:0")
    return chosen
