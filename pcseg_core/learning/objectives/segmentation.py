# SPDX-License-Identifier: Apache-2.0
"""Segmentation: cross-entropy and Lovász on the labels of voxels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.distill.losses import (
    LabelLossConfig,
    class_weights,
    lovasz_softmax,
    range_weights,
    weighted_cross_entropy,
)
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import Batch, TrainingSweep, VoxelLabels
from pcseg_core.learning.distributed import gather_rows
from pcseg_core.learning.objectives import Objective
from pcseg_core.models.student import StudentOutput, cosine_logits

Array = npt.NDArray[Any]

RANGES_M = (8.0, 15.0, 30.0)  # ends of the ranges that loss.range_balance tells apart


class Segmentation(Objective):
    """Losses of the student's own classifier.

    Args:
        config: weights of the losses.
        counts: (C, B) labeled points of each class in each range, see `label_counts`.
    """

    weights: Tensor
    range_weights: Tensor

    def __init__(self, config: LabelLossConfig, counts: npt.NDArray[np.int64]) -> None:
        super().__init__()
        self.config = config
        weights = class_weights(counts.sum(1), config.class_balance)
        by_range = range_weights(counts, config.range_balance)
        self.register_buffer("weights", torch.from_numpy(weights))
        self.register_buffer("range_weights", torch.from_numpy(by_range))

    def logits(self, output: StudentOutput) -> Tensor:
        """(M, C) logits of the voxels."""
        return output.logits

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        assert batch.targets is not None
        config, losses = self.config, {}
        logits, labels = gather_rows(self.logits(output)), gather_rows(batch.targets.labels)
        if config.cross_entropy:
            weight = gather_rows(self._weight(output, batch, batch.targets))
            losses["cross_entropy"] = config.cross_entropy * weighted_cross_entropy(
                logits, labels, weight, config
            )
        if config.lovasz:
            losses["lovasz"] = config.lovasz * lovasz_softmax(logits.softmax(1), labels)
        return losses

    def _weight(self, output: StudentOutput, batch: Batch, targets: VoxelLabels) -> Tensor:
        """(M,) weight of each voxel: confidence, times that of its class and of its range."""
        label = targets.labels.clamp_min(0)
        weight = targets.confidence * self.weights[label]
        if self.config.range_balance == 0:
            return weight
        inverse = output.voxels.inverse
        distance = batch.points.xyz[:, :2].norm(dim=1)
        zeros = distance.new_zeros(len(output.voxels))
        mean = zeros.index_add(0, inverse, distance) / output.voxels.counts
        bins = torch.bucketize(mean, mean.new_tensor(RANGES_M), right=True)
        return weight * self.range_weights[label, bins]

    def figures(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """Share of the labeled voxels whose label is predicted."""
        assert batch.targets is not None
        labeled = batch.targets.labels != IGNORE
        right = gather_rows((output.logits.argmax(1) == batch.targets.labels)[labeled].float())
        return {"agreement": right.mean() if len(right) else right.sum()}


class WordSegmentation(Segmentation):
    """Losses of a cosine classifier over the words of the classes.

    Args:
        config: weights of the losses.
        counts: (C, B) labeled points of each class in each range, see `label_counts`.
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


def label_counts(
    sweeps: Iterable[TrainingSweep], classes: int, required: float | Array
) -> npt.NDArray[np.int64]:
    """(C, B) labeled points of each class in each range: up to, between and beyond `RANGES_M`.

    Args:
        sweeps: labeled sweeps.
        classes: C.
        required: least confidence of a label, see `TrainingSweep.confident`.
    """
    ranges = len(RANGES_M) + 1
    counts = np.zeros(classes * ranges, np.int64)
    for sweep in sweeps:
        labels = sweep.confident(required)
        known = labels != IGNORE
        bins = np.digitize(np.hypot(*sweep.xyz[known, :2].T), RANGES_M)
        counts += np.bincount(labels[known] * ranges + bins, minlength=len(counts))
    return counts.reshape(classes, ranges)
