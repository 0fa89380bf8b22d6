# SPDX-License-Identifier: Apache-2.0
"""The text head's side of a distillation run: its teacher, its targets and its words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcseg_core.checkpoint import CheckpointText
from pcseg_core.distill.losses import soft_cross_entropy, weighted_distance
from pcseg_core.learning.recipe import TextConfig
from pcseg_core.text_table import TextTable
from pcseg_core.vision.class_to_text import (
    ClassProbabilities,
    class_matrix,
    class_words,
    name_the_classes,
)
from pcseg_core.vision.pixel_classes import PixelClasses
from pcseg_core.vision.pixel_features import PixelFeatures
from pcseg_core.vision.text_space import TextSpace, load_text_space, table_of


@dataclass
class TextTeacher:
    """What the text head learns from.

    Attributes:
        space: vectors of words.
        words: words of each of the teacher's classes, in the order of its ids.
        matrix: (C, D) float32 class vectors, zeros for a class that is left out.
        source: features of pixels: class probabilities (C), or vectors of the space (D).
    """

    space: TextSpace
    words: dict[str, tuple[str, ...]]
    matrix: np.ndarray
    source: PixelFeatures

    @property
    def channels(self) -> int:
        """Size D of the text space."""
        return int(self.matrix.shape[1])

    def checkpoint_text(self, config: TextConfig) -> CheckpointText:
        """The words that the checkpoint will know: a table's all, else the classes' and wanted."""
        table = self.space if isinstance(self.space, TextTable) else None
        classes = {name: words for name, words in self.words.items() if words}
        if table is None:
            wanted = [word for words in classes.values() for word in words]
            table = table_of(self.space, [*wanted, *config.words])
        if named := name_the_classes(self.words, table, self.matrix):
            vectors = np.stack(list(named.values()))
            table = table.join(TextTable(table.name, tuple(named), vectors))
        return CheckpointText(table, classes, config.temperature, config.source == "classes")


def load_text_teacher(config: TextConfig, teacher: PixelClasses, device: str) -> TextTeacher:
    """The teacher of the text head that a recipe names.

    Raises:
        InputError: a class without words, or a word without a vector.
    """
    space = load_text_space(config.space, device)
    words = class_words(teacher.label_space, space, config.classes)
    if config.space.center and not isinstance(space, TextTable):
        every = [word for members in words.values() for word in members]
        space = table_of(space, [*every, *config.words]).centered()
    matrix = class_matrix(space, words)
    source: PixelFeatures = ClassProbabilities(teacher)
    if config.source == "maskclip":
        from pcseg_core.vision.maskclip import load_maskclip

        dense = config.dense.model_copy(update={"model": config.space.model})
        source = load_maskclip(dense, config.space.weights, device)
    return TextTeacher(space, words, matrix, source)


class TextObjective(nn.Module):
    """Losses of the text head against the features of pixels.

    `prepare` a new head before training and `restore` the trained one.

    Args:
        config: weights of the losses.
        matrix: (C, D) class vectors.
        frequency: (C,) share of each class in the training data; None where the features of
            pixels are vectors of the text space already.
    """

    matrix: Tensor
    weights: Tensor
    turn: Tensor | None

    def __init__(
        self, config: TextConfig, matrix: np.ndarray, frequency: np.ndarray | None
    ) -> None:
        super().__init__()
        self.config = config
        self.from_classes = frequency is not None
        # The losses see no more of the space than the span of the class vectors. Turned so that
        # the span lies along the first axes, the head is trained in these coordinates alone:
        # elsewhere an adaptive optimizer would leave noise that hides the words.
        turn = np.linalg.svd(matrix.astype(np.float64))[2] if self.from_classes else None
        self.register_buffer("turn", None if turn is None else torch.from_numpy(turn).float())
        turned = matrix if turn is None else (matrix @ turn.T).astype(np.float32)
        self.rank = int(np.linalg.matrix_rank(matrix))
        self.register_buffer("matrix", torch.from_numpy(turned))
        shares = np.ones(len(matrix)) if frequency is None else frequency
        weights = np.maximum(shares, 1e-4) ** -config.class_balance
        weights /= max(float((weights * shares).sum()), 1e-6)
        self.register_buffer("weights", torch.from_numpy(weights).float())

    @torch.no_grad()
    def prepare(self, head: nn.Linear) -> None:
        """Start a head within the span of the class vectors."""
        if self.turn is not None:
            head.weight[self.rank :], head.bias[self.rank :] = 0.0, 0.0

    @torch.no_grad()
    def restore(self, head: nn.Linear) -> None:
        """Turn a trained head back to the coordinates of the text space."""
        if self.turn is not None:
            turn = self.turn.to(head.weight)
            head.weight.copy_(turn.t() @ head.weight)
            head.bias.copy_(turn.t() @ head.bias)

    def forward(
        self, head: nn.Linear, features: Tensor, values: Tensor, voxel: Tensor
    ) -> dict[str, Tensor]:
        """The losses, each times its weight.

        Args:
            head: the text head.
            features: (M, F) student features of the voxels.
            values: (S, K) features of pixels: class probabilities, or vectors of the space.
            voxel: (S,) int64 voxel of each.
        """
        seen, pixels = mean_by_voxel(values, voxel)
        if not self.from_classes:
            unit, target = F.normalize(head(features[seen]), dim=1), F.normalize(pixels, dim=1)
            distance = weighted_distance((unit * target).sum(1), unit.new_ones(len(unit)))
            return {"text_distance": self.config.regression * distance}
        cosines = head_cosines(head, features[seen], self.matrix)
        length = ((pixels @ (self.matrix @ self.matrix.t())) * pixels).sum(1).clamp_min(0).sqrt()
        weight = (pixels * self.weights).sum(1) * (length > 1e-3)
        to_target = (cosines * pixels).sum(1) / length.clamp_min(1e-3)
        used = self.matrix.square().sum(1) > 0.5
        likely = pixels[:, used] / pixels[:, used].sum(1, keepdim=True).clamp_min(1e-6)
        logits = cosines[:, used] / self.config.temperature
        losses = {
            "text_distance": self.config.regression * weighted_distance(to_target, weight),
            "text_classes": self.config.cross_entropy * soft_cross_entropy(logits, likely, weight),
        }
        return {name: loss for name, loss in losses.items() if getattr(self.config, _WEIGHT[name])}


def head_cosines(head: nn.Linear, features: Tensor, vectors: Tensor) -> Tensor:
    """(S, C) cosines of head(features) and vectors (C, D), without the large (S, D) in between.

    <W h + b, t> = <h, W't> + <b, t>, and |W h + b|^2 = <h, W'W h> + 2 <h, W'b> + <b, b>.
    """
    weight, bias = head.weight, head.bias
    dots = features @ (vectors @ weight).t() + vectors @ bias
    square = ((features @ (weight.t() @ weight)) * features).sum(1)
    square = square + 2 * features @ (weight.t() @ bias) + bias @ bias
    return dots / square.clamp_min(1e-12).sqrt()[:, None]


_WEIGHT = {"text_distance": "regression", "text_classes": "cross_entropy"}


def mean_by_voxel(values: Tensor, voxel: Tensor) -> tuple[Tensor, Tensor]:
    """The voxels (V,) that have a value, in order, and their mean values (V, K)."""
    seen, inverse, counts = torch.unique(voxel, return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(seen), values.shape[1]).index_add_(0, inverse, values)
    return seen, sums / counts[:, None]
