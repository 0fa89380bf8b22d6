# SPDX-License-Identifier: Apache-2.0
"""MinkUNet in 8-bit integers on the CPU, and the network that calibrates it.

Activations are uint8 with one step per layer, weights int8 with one step per output channel, sums
int32. A rectified activation q means q * step; the result of a shortcut, which has a sign, means
(q - 128) * step. The steps of an input are folded into the weights, so that the two halves of
joined features keep their own. The first layer multiplies in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pcseg_core.errors import InputError
from pcseg_core.models.inference import Block, CompiledMinkUNet
from pcseg_core.models.layers import Layer, NativeLayer
from pcseg_core.models.minkunet import MinkUNet
from pcseg_core.native import tensors as native
from pcseg_core.native.tensors import Integers
from pcseg_core.sparse import SparseTensor
from pcseg_core.sparse.maps import KernelMap

_ZERO = 128  # of results with a sign
_SMALLEST = 1e-12  # of a step: a layer may give nothing but zeros


class FloatLayer:
    """A float32 layer that keeps its weights and measures its results.

    Attributes:
        weight: (K, cin, cout) with the batch norm folded in.
        bias: (cout,).
        top: largest magnitude of a result.
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale: Tensor | None) -> None:
        weight = weight.detach().float().cpu()
        self.weight = weight if scale is None else weight * scale.detach().float().cpu()
        self.bias = bias.detach().to("cpu", torch.float32, copy=True)
        self.cin, self.cout = self.weight.shape[1:]
        self.device = self.bias.device
        self.top = 0.0

    @cached_property
    def _layer(self) -> NativeLayer:
        return NativeLayer.of(self.weight, self.bias, torch.float32)

    def __call__(
        self,
        x: Tensor,
        kernel_map: KernelMap | None,
        out: Tensor,
        residual: Tensor | None = None,
        relu: bool = True,
    ) -> Tensor:
        out = self._layer(x, kernel_map, out, residual, relu)
        if len(out):
            self.top = max(self.top, float(out.abs().max()))
        return out


class MeasuredMinkUNet(CompiledMinkUNet):
    """The network in float32, which measures the results of its layers.

    Args:
        model: the network, on the CPU.
    """

    def __init__(self, model: MinkUNet) -> None:
        self._layers: list[FloatLayer] = []
        with torch.no_grad():
            super().__init__(model, "fp32", self._measured)

    def _measured(self, weight: Tensor, bias: Tensor, scale: Tensor | None) -> Layer:
        self._layers.append(FloatLayer(weight, bias, scale))
        return self._layers[-1]

    @property
    def tops(self) -> list[float]:
        """Largest magnitude that each layer gave, in the order of the layers."""
        return [layer.top for layer in self._layers]


class QuantizedMinkUNet(CompiledMinkUNet):
    """The network in integers; results are float32.

    Args:
        model: the network, on the CPU.
        tops: largest result of each layer, from `MeasuredMinkUNet`.

    Raises:
        InputError: the tops are not those of this network.
    """

    def __init__(self, model: MinkUNet, tops: Sequence[float]) -> None:
        made: list[FloatLayer] = []

        def make(weight: Tensor, bias: Tensor, scale: Tensor | None) -> Layer:
            made.append(FloatLayer(weight, bias, scale))
            return made[-1]

        with torch.no_grad():
            super().__init__(model, "int8", make)
        if len(tops) != len(made):
            raise InputError(
                f"int8: scales of {len(tops)} layers for a network of {len(made)}; run "
                "`pcseg quantize` on this checkpoint"
            )
        for layer, top in zip(made, tops, strict=True):
            layer.top = top
        with torch.no_grad():
            self._convert()

    def _convert(self) -> None:
        """Replace each layer in the order of the data."""
        self._stem, steps = _integer(self._stem, None)
        for index, layer in enumerate(self._stem_next):
            self._stem_next[index], steps = _integer(layer, steps)
        skips = []
        for level, (pair, blocks) in enumerate(self._down):
            skips.append(steps)
            pair, steps = _integer(pair, steps)
            self._down[level] = pair, blocks
            steps = _convert_blocks(blocks, steps)
        for stage, (pair, blocks) in enumerate(self._up):
            pair, steps = _integer(pair, steps)
            self._up[stage] = pair, blocks
            steps = _convert_blocks(blocks, torch.cat([steps, skips.pop()]))
        self._steps = steps
        self._classifier = self._head(_float(self._classifier))
        self._make = lambda weight, bias, scale: self._head(FloatLayer(weight, bias, scale))

    def _head(self, layer: FloatLayer) -> NativeLayer:
        """A layer on the features whose results are float32."""
        packed, scale = _pack(layer.weight, self._steps)
        return NativeLayer(packed, layer.bias, layer.cin, layer.cout, Integers(scale))

    def features(self, x: SparseTensor) -> Tensor:
        """Features (M, feature_channels) float32, before the classifier."""
        with self._lock:
            return self._run(x) * self._steps

    def _input(self, feats: Tensor) -> Tensor:
        return feats.detach().float().contiguous()


def _convert_blocks(blocks: list[Block], steps: Tensor) -> Tensor:
    """Replace residual blocks; takes and gives the steps of the features."""
    for index, block in enumerate(blocks):
        conv1, middle = _integer(block.conv1, steps)
        shortcut, kept, zero = None, steps, 0
        if block.shortcut is not None:
            shortcut, kept = _integer(block.shortcut, steps, signed=True)
            zero = _ZERO
        residual = float(kept[0]), -zero * float(kept[0])
        conv2, steps = _integer(block.conv2, middle, residual=residual)
        blocks[index] = Block(conv1, conv2, shortcut)
    return steps


def _integer(
    given: Layer,
    inputs: Tensor | None,
    signed: bool = False,
    residual: tuple[float, float] = (1.0, 0.0),
) -> tuple[NativeLayer, Tensor]:
    """A layer in integers, and the step of each of its output channels.

    Args:
        given: the float layer.
        inputs: (cin,) step of each input channel; None for float32 inputs.
        signed: the results have a sign.
        residual: factor and shift of the residual.
    """
    layer = _float(given)
    step = max(layer.top / (127 if signed else 255), _SMALLEST)
    out = 1 / step, float(_ZERO) if signed else 0.0
    if inputs is None:
        packed, scale = native.pack(layer.weight), None
    else:
        packed, scale = _pack(layer.weight, inputs)
    integers = Integers(scale, residual, out)
    made = NativeLayer(packed, layer.bias, layer.cin, layer.cout, integers)
    return made, torch.full((layer.cout,), step)


def _pack(weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (K, cin, cout) as int8 for inputs of these steps, and the step of each column."""
    folded = weight * inputs[:, None]
    steps = folded.abs().amax((0, 1)).clamp(min=_SMALLEST) / 127
    return native.pack(folded, torch.uint8, scale=1 / steps), steps


def _float(layer: Layer) -> FloatLayer:
    assert isinstance(layer, FloatLayer)
    return layer
