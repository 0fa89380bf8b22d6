# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph in the making: nodes, constants, and convolutions on neighbor tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pcseg_core.errors import require
from pcseg_core.export.tables import FEATURES, LOGITS, TABLES, Table, rows_name

OPSET = 17
IR_VERSION = 8  # of ONNX 1.12, which brought opset 17
Precision = Literal["fp32", "fp16", "int8"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

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
        self._columns: dict[tuple[str, int], str] = {}
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
        if table is None:
            total = self.op("MatMul", x, self.number(f"{name}.weight", layer.weight[0]))
        else:
            total = self._sum_of_products(name, x, table, layer.weight)
        total = self.op("Add", total, self.number(f"{name}.bias", layer.bias))
        if residual is not None:
            total = self.op("Add", total, residual)
        return self.op("Relu", total) if relu else total

    def _sum_of_products(self, name: str, x: str, table: Table, weight: Float32) -> str:
        """Sum over the offsets of the neighbor's features times the weights of the offset."""
        zeros = self.number(f"{name}.zeros", np.zeros((1, weight.shape[1])))
        source = self.op("Concat", x, zeros, axis=0)
        scale = None
        if name in self._peaks:
            step = max(self._peaks[name], 1e-6) / _LARGEST_CODE
            scale = self.constant(f"{name}.step", np.float32(step))
            zero = self.constant(f"{name}.zero", np.uint8(0))
            source = self.op("QuantizeLinear", source, scale, zero)
        total = ""
        for k, matrix in enumerate(weight):
            rows = self.op("Gather", source, self._column(table, k), axis=0)
            if scale is not None:
                rows = self.op("DequantizeLinear", rows, scale, f"{name}.zero")
                factor = self._quantized(f"{name}.{k}", matrix)
            else:
                factor = self.number(f"{name}.{k}.weight", matrix)
            product = self.op("MatMul", rows, factor)
            total = self.op("Add", total, product) if total else product
        return total

    def _column(self, table: Table, k: int) -> str:
        """(voxels,) the rows at an offset; shared by all convolutions of a table."""
        key = (table.name, k)
        if key not in self._columns:
            index = self.constant(f"{table.name}.{k}", np.int64(k))
            self._columns[key] = self.op("Gather", table.name, index, axis=0)
        return self._columns[key]

    def _quantized(self, name: str, matrix: Float32) -> str:
        """(cin, cout) weights stored as int8 with a step per output channel."""
        step = np.maximum(np.abs(matrix).max(0), 1e-9) / _LARGEST_WEIGHT
        codes = self.constant(f"{name}.weight", np.rint(matrix / step).astype(np.int8))
        steps = self.constant(f"{name}.step", step.astype(np.float32))
        zeros = self.constant(f"{name}.zero", np.zeros(len(step), np.int8))
        return self.op("DequantizeLinear", codes, steps, zeros, axis=1)

    def model(self, channels: int, classes: int) -> Any:
        """The checked ModelProto.

        Args:
            channels: of the input features.
            classes: columns of the logits.
        """
        helper, types = self._onnx.helper, self._onnx.TensorProto

        def value(name: str, dtype: int, *shape: str | int) -> Any:
            return helper.make_tensor_value_info(name, dtype, shape)

        inputs = [value(FEATURES, types.FLOAT, rows_name(0), channels)]
        inputs += [value(t.name, types.INT32, t.offsets, rows_name(t.level)) for t in TABLES]
        outputs = [value(LOGITS, types.FLOAT, rows_name(0), classes)]
        graph = helper.make_graph(self._nodes, "student", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pcseg"
        )
        self._onnx.checker.check_model(model, full_check=True)
        return model
