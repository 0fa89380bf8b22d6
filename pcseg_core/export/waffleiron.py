# SPDX-License-Identifier: Apache-2.0
"""A WaffleIron as an ONNX graph; neighbors and cells of the planes are inputs, for one sweep."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pcseg_core.errors import InputError
from pcseg_core.export.graph import Float32, Graph
from pcseg_core.export.network import linear
from pcseg_core.export.tables import FEATURES, GraphInput, features_input, rows_name
from pcseg_core.models.neighbors import neighborhoods
from pcseg_core.models.waffleiron import PLANES, ChannelMix, Embedding, SpatialMix, WaffleIron
from pcseg_core.sparse import SparseTensor

NEIGHBORS = "neighbors"
CELLS = ("cells_z", "cells_y", "cells_x")  # of the planes seen along these axes

_NEIGHBORS = "rows of the nearest other voxels by x, y and z; repeats some if there are too few"
_CELL = (
    "cell of each voxel on the plane of {a} and {b}: {height} cells along {a}, the slower index, "
    "and {width} along {b}, from box_min_m to box_max_m"
)


def waffleiron_inputs(network: WaffleIron) -> list[GraphInput]:
    """Inputs of the graph."""
    count, cells = network.config.neighbors, network.config.cells
    content = [
        _CELL.format(a="xyz"[a], b="xyz"[b], height=cells[a], width=cells[b]) for a, b in PLANES
    ]
    return [
        features_input(network.in_channels),
        GraphInput(NEIGHBORS, "int32", (rows_name(0), count), _NEIGHBORS),
        *(GraphInput(n, "int32", (rows_name(0),), c) for n, c in zip(CELLS, content, strict=True)),
    ]


def values_of(network: WaffleIron, x: SparseTensor) -> dict[str, npt.NDArray[Any]]:
    """All inputs of the graph for the voxels of one sweep.

    Args:
        network: the exported one.
        x: (M, C) input features of the voxels, on the CPU.

    Raises:
        InputError: a voxel is outside of the box; leave such voxels out.
    """
    xyz, batch = network.positions(x)
    if not bool(network.inside(xyz).all()):
        raise InputError(
            "exported WaffleIron: voxels outside of box_min_m..box_max_m; leave them out, they "
            "take the answer of the nearest voxel inside"
        )
    neighbors = neighborhoods(xyz, batch, network.config.neighbors)
    place, cells = network.places(xyz), network.config.cells
    values = {FEATURES: x.feats.detach().float(), NEIGHBORS: neighbors.int()}
    for name, (a, b) in zip(CELLS, PLANES, strict=True):
        values[name] = (place[:, a] * cells[b] + place[:, b]).int()
    return {name: value.contiguous().numpy() for name, value in values.items()}


def add_waffleiron(graph: Graph, network: WaffleIron) -> str:
    """Add all layers up to the classifier; returns the name of the features (voxels, F)."""
    x = _embed(graph, network.embed)
    cells = network.config.cells
    planes = [
        _Plane(graph, name, (cells[a], cells[b]), network.config.channels)
        for name, (a, b) in zip(CELLS, PLANES, strict=True)
    ]
    for i, (spatial, channel) in enumerate(zip(network.spatial, network.channel, strict=True)):
        plane = planes[i % len(planes)]
        x = _spatial(graph, f"spatial.{i}", x, cast(SpatialMix, spatial), plane)
        x = _channel(graph, f"channel.{i}", x, cast(ChannelMix, channel))
    return x


class _Plane:
    """The cells of a plane and the share of each voxel in its cell."""

    def __init__(self, graph: Graph, name: str, shape: tuple[int, int], channels: int) -> None:
        self._graph, self._cells, self._shape = graph, name, shape
        codes = graph.op("Cast", name, to=7)  # int64
        column = graph.constant(f"{name}.column", np.array([1]))
        self._index = graph.op("Unsqueeze", codes, column)
        zeros = graph.op("ConstantOfShape", graph.op("Shape", self._index))
        ones = graph.op("Add", zeros, graph.constant(f"{name}.one", np.float32(1)))
        count = graph.op("ScatterND", self._empty(1), self._index, ones, reduction="add")
        self._share = graph.op("Reciprocal", graph.op("Gather", count, name, axis=0))
        self._image = graph.constant(f"{name}.image", np.array([1, *shape, channels]))
        self._rows = graph.constant(f"{name}.rows", np.array([-1, channels]))
        self._zeros = self._empty(channels)

    def _empty(self, channels: int) -> str:
        cells = np.array([self._shape[0] * self._shape[1], channels])
        shape = self._graph.constant(f"{self._cells}.shape.{channels}", cells)
        return self._graph.op("ConstantOfShape", shape)

    def flatten(self, x: str) -> str:
        """Mean (1, C, H, W) of the voxels (voxels, C) of each cell."""
        graph, shared = self._graph, self._graph.op("Mul", x, self._share)
        sums = graph.op("ScatterND", self._zeros, self._index, shared, reduction="add")
        return graph.op("Transpose", graph.op("Reshape", sums, self._image), perm=[0, 3, 1, 2])

    def inflate(self, image: str) -> str:
        """The cell (voxels, C) of each voxel."""
        graph = self._graph
        rows = graph.op("Reshape", graph.op("Transpose", image, perm=[0, 2, 3, 1]), self._rows)
        return graph.op("Gather", rows, self._cells, axis=0)


def _embed(graph: Graph, embed: Embedding) -> str:
    x = _norm(graph, "embed.norm", FEATURES, embed.norm)
    middle = graph.constant("embed.middle", np.array([1]))
    apart = graph.op("Gather", x, NEIGHBORS, axis=0)
    apart = graph.op("Sub", apart, graph.op("Unsqueeze", x, middle))
    for i, part in enumerate(embed.around):
        apart = _layer(graph, f"embed.around.{i}", apart, part)
    strongest = graph.op("ReduceMax", apart, axes=[1], keepdims=0)
    point = _layer(graph, "embed.point", x, embed.point)
    return _layer(graph, "embed.merge", graph.op("Concat", point, strongest, axis=1), embed.merge)


def _spatial(graph: Graph, name: str, x: str, mix: SpatialMix, plane: _Plane) -> str:
    image = plane.flatten(_norm(graph, f"{name}.norm", x, mix.norm))
    for i, part in enumerate(mix.ffn):
        image = _layer(graph, f"{name}.ffn.{i}", image, part)
    return _added(graph, name, x, plane.inflate(image), mix.scale)


def _channel(graph: Graph, name: str, x: str, mix: ChannelMix) -> str:
    mixed = _norm(graph, f"{name}.norm", x, mix.norm)
    for i, part in enumerate(mix.mlp):
        mixed = _layer(graph, f"{name}.mlp.{i}", mixed, part)
    return _added(graph, name, x, mixed, mix.scale)


def _added(graph: Graph, name: str, x: str, more: str, scale: nn.Parameter) -> str:
    factor = graph.constant(f"{name}.scale", _values(scale))
    return graph.op("Add", x, graph.op("Mul", more, factor))


def _layer(graph: Graph, name: str, x: str, layer: nn.Module) -> str:
    """A linear layer, a norm, a depthwise convolution or an activation."""
    if isinstance(layer, nn.Linear):
        bias = np.zeros(layer.out_features, np.float32)
        bias = bias if layer.bias is None else _values(layer.bias)
        return linear(graph, name, x, _values(layer.weight.t()), bias)
    if isinstance(layer, nn.Conv2d):
        assert layer.bias is not None
        weight = graph.constant(f"{name}.weight", _values(layer.weight))
        bias_ = graph.constant(f"{name}.bias", _values(layer.bias))
        return graph.op("Conv", x, weight, bias_, group=layer.groups, pads=[1, 1, 1, 1])
    if isinstance(layer, nn.ReLU):
        return graph.op("Relu", x)
    if isinstance(layer, nn.GELU):
        return _gelu(graph, name, x)
    return _norm(graph, name, x, layer)


def _gelu(graph: Graph, name: str, x: str) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, since opset 17 has no Gelu."""
    scaled = graph.op("Mul", x, graph.constant(f"{name}.slope", np.float32(0.5**0.5)))
    risen = graph.op("Add", graph.op("Erf", scaled), graph.constant(f"{name}.one", np.float32(1)))
    half = graph.op("Mul", x, graph.constant(f"{name}.half", np.float32(0.5)))
    return graph.op("Mul", half, risen)


def _norm(graph: Graph, name: str, x: str, norm: nn.Module) -> str:
    if isinstance(norm, nn.LayerNorm):
        parts = [graph.constant(f"{name}.{n}", _values(v)) for n, v in norm.named_parameters()]
        return graph.op("LayerNormalization", x, *parts, axis=-1, epsilon=norm.eps)
    assert isinstance(norm, nn.BatchNorm1d)
    mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
    gain = norm.weight / torch.sqrt(variance + norm.eps)
    shift = norm.bias - mean * gain
    scaled = graph.op("Mul", x, graph.constant(f"{name}.gain", _values(gain)))
    return graph.op("Add", scaled, graph.constant(f"{name}.shift", _values(shift)))


def _values(tensor: torch.Tensor) -> Float32:
    values: Float32 = tensor.detach().float().numpy()
    return values
