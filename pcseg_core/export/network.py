# SPDX-License-Identifier: Apache-2.0
"""A MinkUNet and its classes as an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from torch import nn

from pcseg_core.export.graph import Folded, Graph
from pcseg_core.export.tables import LOGITS, Table, children, neighbors, parents
from pcseg_core.models.inference import fold
from pcseg_core.models.minkunet import BasicBlock, ConvBlock, MinkUNet, Up
from pcseg_core.sparse import BatchNorm, SparseConv3d

Float32 = npt.NDArray[np.float32]
_SHORTEST = 1e-12  # as `PromptHead.logits`
_LEAST_LIKELY = 1e-37


def add_network(graph: Graph, network: MinkUNet) -> str:
    """Add all layers up to the classifier; returns the name of the features (voxels, F)."""
    x = _pair(graph, "stem", graph.features(), neighbors(0), network.stem)
    for i, further in enumerate(network.stem_pairs[1:]):
        x = _pair(graph, f"stem_next.{i}", x, neighbors(0), further)
    skips = []
    for i, stage in enumerate(network.down):
        skips.append(x)
        pair, *blocks = cast(nn.Sequential, stage)
        x = _pair(graph, f"down.{i}.0", x, children(i + 1), cast(ConvBlock, pair))
        x = _blocks(graph, f"down.{i}", x, neighbors(i + 1), blocks, first=1)
    for i, stage in enumerate(cast(list[Up], network.up)):
        level = len(skips) - 1 - i
        x = _pair(graph, f"up.{i}.conv", x, parents(level), stage.conv)
        x = graph.op("Concat", x, skips[level], axis=1)
        blocks = list(stage.blocks.children())
        x = _blocks(graph, f"up.{i}.blocks", x, neighbors(level), blocks)
    return x


def _fold(conv: nn.Module, norm: nn.Module) -> Folded:
    return fold(cast(SparseConv3d, conv), cast(BatchNorm, norm), Folded.of)


def _pair(graph: Graph, name: str, x: str, table: Table, pair: ConvBlock) -> str:
    return graph.convolve(f"{name}.0", x, table, _fold(pair[0], pair[1]))


def _blocks(
    graph: Graph, name: str, x: str, table: Table, blocks: Sequence[nn.Module], first: int = 0
) -> str:
    for i, block in enumerate(blocks, start=first):
        x = _block(graph, f"{name}.{i}", x, table, cast(BasicBlock, block))
    return x


def _block(graph: Graph, name: str, x: str, table: Table, block: BasicBlock) -> str:
    kept = x
    if block.shortcut is not None:
        folded = _fold(block.shortcut[0], block.shortcut[1])
        kept = graph.convolve(f"{name}.shortcut.0", x, None, folded, relu=False)
    middle = graph.convolve(f"{name}.conv1", x, table, _fold(block.conv1, block.norm1))
    return graph.convolve(f"{name}.conv2", middle, table, _fold(block.conv2, block.norm2), kept)


def add_classifier(graph: Graph, features: str, classifier: nn.Linear) -> None:
    """Add the classes of the checkpoint: float32 logits (voxels, C)."""
    weight = classifier.weight.detach().float().t().numpy()
    linear(graph, "classifier", graph.float32(features), weight, classifier.bias, out=LOGITS)


@dataclass(frozen=True, eq=False)
class Words:
    """Classes in words, folded with the text head.

    Attributes:
        matrix: (F, R + F + 1) as `PromptHead.matrix`: R words, then the factor of the length.
        offset: (R + F + 1,).
        owner: (R,) class of each word.
        classes: number C of classes.
    """

    matrix: Float32
    offset: Float32
    owner: npt.NDArray[np.int64]
    classes: int


def add_words(graph: Graph, features: str, words: Words) -> None:
    """Add classes in words: float32 logits (voxels, C) whose softmax is the probability.

    Words score by their cosine. The probability of a class is the sum over its words.
    """
    x, count = graph.float32(features), len(words.owner)
    scores = linear(graph, "words", x, words.matrix[:, :count], words.offset[:count])
    vector = linear(graph, "length", x, words.matrix[:, count:], words.offset[count:])
    length = graph.op("ReduceL2", vector, axes=[1], keepdims=1)
    shortest = graph.constant("length.shortest", np.float32(_SHORTEST))
    length = graph.op("Max", length, shortest)
    plain = count == words.classes and bool((words.owner == np.arange(count)).all())
    scores = graph.op("Div", scores, length, out=LOGITS if plain else "")
    if plain:
        return
    member = np.zeros((count, words.classes), np.float32)
    member[np.arange(count), words.owner] = 1
    likely = graph.op("Softmax", scores, axis=1)
    likely = graph.op("MatMul", likely, graph.constant("words.member", member))
    least = graph.constant("words.least", np.float32(_LEAST_LIKELY))
    graph.op("Log", graph.op("Max", likely, least), out=LOGITS)


def linear(
    graph: Graph, name: str, x: str, weight: Float32, bias: Float32 | nn.Parameter, out: str = ""
) -> str:
    """x @ weight + bias in float32, x (..., in) and weight (in, out)."""
    values = bias.detach().float().numpy() if isinstance(bias, nn.Parameter) else bias
    product = graph.op("MatMul", x, graph.constant(f"{name}.weight", weight))
    return graph.op("Add", product, graph.constant(f"{name}.bias", values), out=out)
