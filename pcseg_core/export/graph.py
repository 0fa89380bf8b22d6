# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph in the making: nodes, constants, and convolutions on neighbor tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pcseg_core.errors import require
from pcseg_core.export.tables import FEATURES, LOGITS, GraphInput, Table, rows_name

OPSET = 17
IR_VERSION = 8  # of ONNX 1.12, which brought opset 17
Precision = Literal["fp32", "fp16", "int8"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_OFFSETS_AT_ONCE = 9  # of 27; bounds the memory of the gathered features
_LARGEST_CODE = 255  # features after a rectifier are quantized to 0..255
_LARGEST_WEIGHT = 127


@dataclass(frozen=True, eq=False)
class Folded:
    """A convolution with its batch norm folded in.

    Attributes:
        weight: (K, cin, cout).
        bias: (cout,).
    """

    weight: Float32
    bias: Float32

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, scale: Tensor | None) -> Folded:
        """From weights (K, cin, cout), bias (cout,) and a factor on the outputs (cout,)."""
        scaled = weight if scale is None else weight * scale
        return cls(scaled.detach().float().cpu().numpy(), bias.detach().float().cpu().numpy())


class Graph:
    """Collects nodes; each method returns the name of a result.

    Args:
        precision: of the features. "int8" quantizes what convolutions read.
        peaks: largest input of each quantized convolution, by its name.

    Raises:
        MissingDependency: the package onnx is not installed.
    """

    def __init__(
        self, precision: Precision = "fp32", peaks: Mapping[str, float] | None = None
    ) -> None:
        self._onnx = require("onnx", "export")
        self._dtype = np.float16 if precision == "fp16" else np.float32
        self._peaks = dict(peaks or {}) if precision == "int8" else {}
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._transposed: dict[tuple[str, int, int], str] = {}
        self._count = 0

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        """A constant; names must differ."""
        array = np.asarray(values, order="C")
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def number(self, name: str, values: npt.ArrayLike) -> str:
        """A constant in the precision of the features."""
        return self.constant(name, np.asarray(values).astype(self._dtype))

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """A node with one result."""
        self._count += 1
        result = out or f"{kind.lower()}_{self._count}"
        node = self._onnx.helper.make_node(kind, list(inputs), [result], result, **attributes)
        self._nodes.append(node)
        return result

    def features(self) -> str:
        """The input features in the precision of the network."""
        return FEATURES if self._dtype == np.float32 else self._cast(FEATURES, np.float16)

    def float32(self, x: str) -> str:
        """The same numbers in float32."""
        return x if self._dtype == np.float32 else self._cast(x, np.float32)

    def _cast(self, x: str, dtype: npt.DTypeLike) -> str:
        code = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.op("Cast", x, to=code)

    def convolve(
        self,
        name: str,
        x: str,
        table: Table | None,
        layer: Folded,
        residual: str | None = None,
        relu: bool = True,
    ) -> str:
        """Convolve, add bias and residual, rectify.

        Args:
            name: of the convolution; prefix of its constants.
            x: (rows, cin) features.
            table: neighbors of the voxels of the result; None for 1x1x1.
            layer: weights and bias.
            residual: (voxels, cout) features, added before the rectifier.
            relu: replace negative results by zero.
        """
        quantized = name in self._peaks
        if table is None:
            total = self.op("MatMul", x, self.number(f"{name}.weight", layer.weight[0]))
        elif quantized:
            total = self._quantized_product(name, x, table, layer.weight)
        else:
            total = self._products(name, x, table, layer.weight)
        bias = self.number(f"{name}.bias", layer.bias)
        added = [bias] if residual is None else [bias, residual]
        if quantized:  # after Add, ONNX Runtime would fuse the product into a Gemm in float32
            total = self.op("Sum", total, *added)
        else:
            for values in added:
                total = self.op("Add", total, values)
        return self.op("Relu", total) if relu else total

    def _products(self, name: str, x: str, table: Table, weight: Float32) -> str:
        """Features of the neighbors times the weights, a few offsets at once to bound memory."""
        source, total = self._with_zeros(name, x, weight.shape[1]), ""
        for first in range(0, len(weight), _OFFSETS_AT_ONCE):
            part = weight[first : first + _OFFSETS_AT_ONCE]
            rows = self._gather(source, table, first, part)
            factor = self.number(f"{name}.{first}.weight", part.reshape(-1, part.shape[2]))
            product = self.op("MatMul", rows, factor)
            total = self.op("Add", total, product) if total else product
        return total

    def _quantized_product(self, name: str, x: str, table: Table, weight: Float32) -> str:
        """The same in int8, with one step for the features and one per output channel."""
        step = self.constant(
            f"{name}.features.step", np.float32(max(self._peaks[name], 1e-6) / _LARGEST_CODE)
        )
        zero = self.constant(f"{name}.features.zero", np.uint8(0))
        source = self.op("QuantizeLinear", self._with_zeros(name, x, weight.shape[1]), step, zero)
        rows = self.op("DequantizeLinear", self._gather(source, table, 0, weight), step, zero)
        matrix = weight.reshape(-1, weight.shape[2])
        steps = (np.maximum(np.abs(matrix).max(0), 1e-9) / _LARGEST_WEIGHT).astype(np.float32)
        codes = self.constant(f"{name}.weight", np.rint(matrix / steps).astype(np.int8))
        scale = self.constant(f"{name}.weight.step", steps)
        zeros = self.constant(f"{name}.weight.zero", np.zeros(len(steps), np.int8))
        return self.op("MatMul", rows, self.op("DequantizeLinear", codes, scale, zeros, axis=1))

    def _with_zeros(self, name: str, x: str, channels: int) -> str:
        """Features with a row of zeros for missing neighbors."""
        zeros = self.number(f"{name}.zeros", np.zeros((1, channels)))
        return self.op("Concat", x, zeros, axis=0)

    def _gather(self, source: str, table: Table, first: int, weight: Float32) -> str:
        """(voxels, K cin) features at K offsets from `first` on, side by side."""
        count, channels = weight.shape[:2]
        rows = self.op("Gather", source, self._columns(table, first, count), axis=0)
        width = self._shared(f"width.{count * channels}", np.array([-1, count * channels]))
        return self.op("Reshape", rows, width)

    def _columns(self, table: Table, first: int, count: int) -> str:
        """(voxels, K) rows at K offsets; shared by all convolutions of a table."""
        key = (table.name, first, count)
        if key not in self._transposed:
            part = table.name
            if count < table.offsets:
                offsets = self._shared(f"offsets.{first}", np.arange(first, first + count))
                part = self.op("Gather", part, offsets, axis=0)
            self._transposed[key] = self.op("Transpose", part, perm=[1, 0])
        return self._transposed[key]

    def _shared(self, name: str, values: npt.NDArray[np.int64]) -> str:
        """A constant that several nodes use."""
        known = any(constant.name == name for constant in self._constants)
        return name if known else self.constant(name, values)

    def model(self, inputs: Sequence[GraphInput], classes: int) -> Any:
        """The checked ModelProto.

        Args:
            inputs: of the graph.
            classes: columns of the logits.
        """
        helper = self._onnx.helper

        def value(name: str, dtype: str, shape: Sequence[str | int]) -> Any:
            code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            return helper.make_tensor_value_info(name, code, shape)

        given = [value(x.name, x.dtype, x.shape) for x in inputs]
        outputs = [value(LOGITS, "float32", (rows_name(0), classes))]
        graph = helper.make_graph(self._nodes, "student", given, outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pcseg"
        )
        self._onnx.checker.check_model(model, full_check=True)
        return model
