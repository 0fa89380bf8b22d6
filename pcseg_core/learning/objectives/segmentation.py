# SPDX-License-Identifier: Apache-2.0
"""Segmentation: cross-entropy and Lovász on the labels of voxels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.distill.losses import class_weights, lovasz_softmax, weighted_cross_entropy
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import Batch, TrainingSweep
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.recipe import LabelLossConfig
from pcseg_core.models.student import StudentOutput, cosine_logits


class Segmentation(Objective):
    """Losses of the student's own classifier.

    Args:
        config: weights of the losses.
        counts: (C,) labeled points of each class in the training data.
    """

    weights: Tensor

    def __init__(self, config: LabelLossConfig, counts: npt.NDArray[np.int64]) -> None:
        super().__init__()
        self.config = config
        weights = class_weights(counts, config.class_balance)
        self.register_buffer("weights", torch.from_numpy(weights))

    def logits(self, output: StudentOutput) -> Tensor:
        """(M, C) logits of the voxels."""
        return output.logits

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        assert batch.targets is not None
        config, labels, losses = self.config, batch.targets.labels, {}
        logits = self.logits(output)
        if config.cross_entropy:
            losses["cross_entropy"] = config.cross_entropy * weighted_cross_entropy(
                logits, labels, batch.targets.confidence, self.weights
            )
        if config.lovasz:
            losses["lovasz"] = config.lovasz * lovasz_softmax(logits.softmax(1), labels)
        return losses

    def figures(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """Share of the labeled voxels whose label is predicted."""
        assert batch.targets is not None
        labeled = batch.targets.labels != IGNORE
        right = (output.logits.argmax(1) == batch.targets.labels)[labeled].float()
        return {"agreement": right.mean() if len(right) else right.sum()}


class WordSegmentation(Segmentation):
    """Losses of a cosine classifier over the words of the classes.

    Args:
        config: weights of the losses.
        counts: (C,) labeled points of each class in the training data.
        vectors: (C, D) unit text vectors of the classes.
        temperature: divisor of the cosines.
        excluded: (C,) bool, classes that are neither targets nor negatives.
    """

    vectors: Tensor
    excluded: Tensor

    def __init__(
        self,
        config: LabelLossConfig,
        counts: npt.NDArray[np.int64],
        vectors: Tensor,
        temperature: float,
        excluded: Tensor,
    ) -> None:
        super().__init__(config, counts)
        self.temperature = temperature
        self.register_buffer("vectors", vectors)
        self.register_buffer("excluded", excluded)

    def logits(self, output: StudentOutput) -> Tensor:
        """See `Segmentation`."""
        assert output.text is not None
        logits = cosine_logits(output.text, self.vectors, self.temperature)
        return logits.masked_fill(self.excluded, -1e4)

    def figures(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """None: the classifier of the student is not trained."""
        return {}


def class_counts(
    sweeps: Iterable[TrainingSweep], classes: int, min_confidence: float
) -> npt.NDArray[np.int64]:
    """(C,) points of each class among the labels of at least this confidence."""
    counts = np.zeros(classes, np.int64)
    for sweep in sweeps:
        labels = sweep.confident(min_confidence)
        counts += np.bincount(labels[labels != IGNORE], minlength=classes)
    return counts
