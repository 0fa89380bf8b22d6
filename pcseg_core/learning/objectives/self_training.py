# SPDX-License-Identifier: Apache-2.0
"""Self-training: the averaged network replaces some labels of the voxels by its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import VoxelLabels
from pcseg_core.learning.distributed import gather_rows, rows_before
from pcseg_core.learning.zero_shot_config import SelfTrainingConfig

_THRESHOLD_DECAY = 0.9  # of the running confidence quantiles


class SelfTraining(nn.Module):
    """Relabels voxels before the objectives see them.

    Args:
        config: start, confidence and share of own labels.
        open_classes: (C,) bool, classes without true labels; others are never replaced or given.
        steps: optimizer steps of the training.
        seed: of the random draws.
    """

    open_classes: Tensor
    thresholds: Tensor

    def __init__(
        self, config: SelfTrainingConfig, open_classes: Tensor, steps: int, seed: int
    ) -> None:
        super().__init__()
        self.config, self.steps, self.seed = config, steps, seed
        self.register_buffer("open_classes", open_classes)
        self.register_buffer("thresholds", torch.full((len(open_classes),), torch.nan))

    def active(self, step: int) -> bool:
        """Whether voxels are relabeled in a step."""
        return self.config.start < 1 and step >= self.config.start * self.steps

    def relabel(self, targets: VoxelLabels, probabilities: Tensor, step: int) -> VoxelLabels:
        """Labels of voxels, partly replaced.

        Args:
            targets: labels of the voxels.
            probabilities: (M, C) of the averaged network.
            step: of the training; the same step makes the same draws.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        before, total = rows_before(len(targets.labels), probabilities.device)
        draws = torch.rand(total, generator=generator)[before : before + len(targets.labels)]
        self.thresholds, labels, confidence = mix_labels(
            probabilities,
            targets.labels,
            targets.confidence,
            self.open_classes,
            self.thresholds,
            self.config,
            draws.to(probabilities.device),
        )
        return VoxelLabels(labels, confidence)


def mix_labels(
    probabilities: Tensor,
    labels: Tensor,
    confidence: Tensor,
    open_classes: Tensor,
    thresholds: Tensor,
    config: SelfTrainingConfig,
    draws: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace some image labels, and fill gaps, by the averaged network's own labels.

    An own label counts if its class is open and its confidence reaches the running quantile of
    its class. True labels stay.

    Args:
        probabilities: (M, C) of the averaged network.
        labels: (M,) int64 true labels, image labels, or IGNORE.
        confidence: (M,) float.
        open_classes: (C,) bool, classes without true labels.
        thresholds: (C,) running quantiles, NaN before the first value.
        config: quantile, share and whether gaps are filled.
        draws: (M,) uniform random numbers in 0..1.

    Returns:
        New thresholds, labels and confidence.
    """
    sure, own = probabilities.max(1)
    true = (labels != IGNORE) & ~open_classes[labels.clamp_min(0)]
    candidate = ~true & open_classes[own]
    thresholds = running_quantiles(
        gather_rows(sure[candidate]),
        gather_rows(own[candidate]),
        thresholds,
        config.quantile,
        _THRESHOLD_DECAY,
    )
    accepted = candidate & (sure >= thresholds[own])
    gap = labels == IGNORE
    use = accepted & torch.where(gap, torch.full_like(gap, config.unlabeled), draws < config.mix)
    return thresholds, torch.where(use, own, labels), torch.where(use, sure, confidence)


def running_quantiles(
    values: Tensor, classes: Tensor, previous: Tensor, quantile: float, decay: float
) -> Tensor:
    """Exponential mean of the quantile of the values of each class; NaN before the first value.

    Args:
        values: (K,) float.
        classes: (K,) int64.
        previous: (C,) the result so far.
        quantile: in 0..1.
        decay: weight of the result so far.
    """
    found = previous.clone()
    for c in torch.unique(classes).tolist():
        now = torch.quantile(values[classes == c][:1_000_000], quantile)
        old = previous[c]
        found[c] = now if torch.isnan(old) else decay * old + (1 - decay) * now
    return found
