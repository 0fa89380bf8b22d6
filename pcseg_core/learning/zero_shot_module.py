# SPDX-License-Identifier: Apache-2.0
"""The Lightning module of zero-shot learning: a cosine classifier over words, on points alone."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pcseg_core.distill.alignment import Projections
from pcseg_core.distill.losses import lovasz_softmax, weighted_cross_entropy
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.module import STEPS_PER_EPOCH, DistillModule, vote
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.schedule import adamw
from pcseg_core.learning.zero_shot_labels import AlignedBatch, AlignedDataset, AlignedSweep
from pcseg_core.learning.zero_shot_recipe import SelfTrainingConfig, ZeroShotRecipe
from pcseg_core.models.student import Points, Student, StudentOutput, cosine_logits

_THRESHOLD_DECAY = 0.9  # of the running confidence quantiles


class ZeroShotModule(DistillModule):
    """Segmentation in the text space, feature alignment, then labels of its own.

    Args:
        student: network with a text head.
        sweeps: training sweeps with image features.
        vectors: (C, D) unit text vectors of the classes.
        unseen: (C,) bool.
        recipe: everything else.
    """

    vectors: Tensor
    unseen: Tensor
    thresholds: Tensor
    open_classes: Tensor

    def __init__(
        self,
        student: Student,
        sweeps: list[AlignedSweep],
        vectors: Tensor,
        unseen: Tensor,
        recipe: ZeroShotRecipe,
    ) -> None:
        # The parts that training needs (optimizer, loss, augment, seed) are those of a Recipe.
        super().__init__(student, cast(list[TrainingSweep], sweeps), cast(Recipe, recipe))
        self.zero_shot = recipe
        channels = sweeps[0].features.shape[1] if sweeps[0].features is not None else 1
        self.projections = Projections(student.network.feature_channels, channels, recipe.alignment)
        self.register_buffer("vectors", vectors)
        self.register_buffer("unseen", unseen)
        # Without truth every class is one that the network may label itself.
        free = recipe.supervision == "annotation-free"
        self.register_buffer("open_classes", torch.ones_like(unseen) if free else unseen.clone())
        self.register_buffer("thresholds", torch.full((len(vectors),), torch.nan))

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the current epoch, so that a resumed run goes on with the same data."""
        first = self.current_epoch * STEPS_PER_EPOCH
        count = min(STEPS_PER_EPOCH, self.recipe.optimizer.steps - first)
        dataset = AlignedDataset(self.sweeps, self.recipe, first, count)
        return DataLoader(dataset, batch_size=None, num_workers=0)

    def training_step(self, batch: AlignedBatch, _index: int) -> Tensor:  # type: ignore[override]
        """One weighted sum of segmentation and alignment."""
        output = self.student(batch.points)
        labels, confidence = vote(
            batch.labels,
            batch.confidence,
            output.voxels.inverse,
            len(output.voxels),
            len(self.vectors),
        )
        if self._self_training():
            labels, confidence = self._own_labels(batch.points, labels, confidence)
        losses = {
            **self._segmentation(output, labels, confidence),
            **self._alignment(output, batch, labels),
        }
        total = torch.stack(list(losses.values())).sum()
        self.log_dict({**losses, "loss": total}, prog_bar=True, batch_size=1)
        return total

    def _segmentation(
        self, output: StudentOutput, labels: Tensor, confidence: Tensor
    ) -> dict[str, Tensor]:
        weights = self.recipe.loss
        logits = self._logits(output)
        if self.zero_shot.supervision == "seen":
            # What has no examples is no negative either: the classes compete in the test alone.
            logits = logits.masked_fill(self.unseen, -1e4)
        return {
            "cross_entropy": weights.cross_entropy
            * weighted_cross_entropy(logits, labels, confidence, self.class_weights),
            "lovasz": weights.lovasz * lovasz_softmax(logits.softmax(1), labels),
        }

    def _logits(self, output: StudentOutput) -> Tensor:
        assert output.text is not None
        return cosine_logits(output.text, self.vectors, self.zero_shot.temperature)

    def _alignment(
        self, output: StudentOutput, batch: AlignedBatch, labels: Tensor
    ) -> dict[str, Tensor]:
        if not self.zero_shot.alignment.active or len(batch.feature_index) == 0:
            return {}
        voxel = output.voxels.inverse[batch.feature_index]
        return self.projections.losses(
            output.features[voxel],
            batch.features,
            labels[voxel],
            batch.patches,
            batch.patch_features,
        )

    def _self_training(self) -> bool:
        config = self.zero_shot.self_training
        return config.start < 1 and self.global_step >= config.start * self.recipe.optimizer.steps

    @torch.no_grad()
    def _own_labels(
        self, points: Points, labels: Tensor, confidence: Tensor
    ) -> tuple[Tensor, Tensor]:
        teacher = self.averaged.module.eval()
        probabilities = self._logits(teacher(points)).softmax(1)
        self.thresholds, labels, confidence = mix_labels(
            probabilities,
            labels,
            confidence,
            self.open_classes,
            self.thresholds,
            self.zero_shot.self_training,
            self._draws(len(labels)).to(labels.device),
        )
        return labels, confidence

    def _draws(self, count: int) -> Tensor:
        """(count,) numbers in 0..1, the same for the same step of the same seed."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.global_step)
        return torch.rand(count, generator=generator)

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, cosine decay to zero."""
        parameters = [*self.student.parameters(), *self.projections.parameters()]
        return adamw(parameters, self.recipe.optimizer)


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

    An own label counts where its class is open and its confidence reaches the running quantile of
    its class. True labels stay.

    Args:
        probabilities: (M, C) of the averaged network.
        labels: (M,) int64 true labels, image labels, or IGNORE.
        confidence: (M,) float.
        open_classes: (C,) bool, classes without true labels.
        thresholds: (C,) running quantiles, NaN where there is none yet.
        config: quantile, share and whether gaps are filled.
        draws: (M,) even random numbers in 0..1.

    Returns:
        New thresholds, labels and confidence.
    """
    sure, own = probabilities.max(1)
    true = (labels != IGNORE) & ~open_classes[labels.clamp_min(0)]
    candidate = ~true & open_classes[own]
    thresholds = running_quantiles(
        sure[candidate], own[candidate], thresholds, config.quantile, _THRESHOLD_DECAY
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
