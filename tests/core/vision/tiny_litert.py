# SPDX-License-Identifier: Apache-2.0
"""A TensorFlow Lite file of two layers: a convolution of colors and the best class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIDE, GRID = 33, 9


def write_network(path: Path, side: int = SIDE, channels: int = 3) -> Path:
    """Red against green, 8 bit: logits of +8 and -8 on the colors alone, by a stride of 4.

    The image is (1, side, side, channels). The logits are no output of the network; `ArgMax` is.
    """
    schema = pytest.importorskip(
        "ai_edge_litert.schema_py_generated", reason="pip install 'pcseg_ros[teachers]'"
    )
    kinds = schema.TensorType
    weights = np.array([[1, -1, 0], [-1, 1, 0]])[:, :channels] * 64 + 128
    values = [
        None,
        weights.astype(np.uint8),
        np.zeros(2, np.int32),
        None,
        np.array([3], np.int32),
        None,
    ]
    graph = schema.SubGraphT()
    grid = (side - 1) // 4 + 1
    graph.tensors = [
        _tensor(schema, "image", (1, side, side, channels), kinds.UINT8, 0, (1 / 128, 128)),
        _tensor(schema, "filter", (2, 1, 1, channels), kinds.UINT8, 1, (1 / 16, 128)),
        _tensor(schema, "bias", (2,), kinds.INT32, 2, (1 / 2048, 0)),
        _tensor(schema, "logits/BiasAdd;more", (1, grid, grid, 2), kinds.UINT8, 3, (0.1, 100)),
        _tensor(schema, "axis", (1,), kinds.INT32, 4),
        _tensor(schema, "ArgMax", (1, grid, grid), kinds.INT64, 5),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [5], _operators(schema)
    model = schema.ModelT()
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [_code(schema, name) for name in ("CONV_2D", "ARG_MAX")]
    model.buffers = [_buffer(schema, value) for value in values]
    builder = pytest.importorskip("flatbuffers").Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tensor(
    schema: Any,
    name: str,
    shape: tuple[int, ...],
    kind: int,
    buffer: int,
    quantization: tuple[float, int] | None = None,
) -> Any:
    found = schema.TensorT()
    found.name, found.shape, found.type, found.buffer = name, list(shape), kind, buffer
    if quantization:
        found.quantization = schema.QuantizationParametersT()
        found.quantization.scale = [quantization[0]]
        found.quantization.zeroPoint = [quantization[1]]
    return found


def _operators(schema: Any) -> list[Any]:
    convolution, best = schema.OperatorT(), schema.OperatorT()
    convolution.opcodeIndex, convolution.inputs, convolution.outputs = 0, [0, 1, 2], [3]
    convolution.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    options = convolution.builtinOptions = schema.Conv2DOptionsT()
    options.strideH = options.strideW = 4
    options.dilationHFactor = options.dilationWFactor = 1
    options.padding = schema.Padding.VALID
    best.opcodeIndex, best.inputs, best.outputs = 1, [3, 4], [5]
    best.builtinOptionsType = schema.BuiltinOptions.ArgMaxOptions
    best.builtinOptions = schema.ArgMaxOptionsT()
    best.builtinOptions.outputType = schema.TensorType.INT64
    return [convolution, best]


def _code(schema: Any, name: str) -> Any:
    found = schema.OperatorCodeT()
    found.builtinCode = found.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    found.version = 1
    return found


def _buffer(schema: Any, value: np.ndarray | None) -> Any:
    found = schema.BufferT()
    if value is not None:
        found.data = np.frombuffer(value.tobytes(), np.uint8)
    return found
