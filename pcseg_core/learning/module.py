# SPDX-License-Identifier: Apache-2.0
"""The Lightning module that trains a student on pseudo labels."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pcseg_core.distill.losses import feature_regression, lovasz_softmax, weighted_cross_entropy
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import Batch, StepDataset, TrainingSweep
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.schedule import adamw
from pcseg_core.learning.text import TextObjective
from pcseg_core.models.student import Points, Student, StudentOutput

STEPS_PER_EPOCH = 50  # a run resumes at an epoch's start, so at most this many steps are repeated


class DistillModule(lightning.LightningModule):
    """Cross-entropy, Lovász and feature regression on voxels, with averaged weights.

    Args:
        student: network to train.
        sweeps: pseudo-labeled training sweeps.
        recipe: everything else.
        text: losses of the text head, None without one.
    """

    class_weights: Tensor

    def __init__(
        self,
        student: Student,
        sweeps: list[TrainingSweep],
        recipe: Recipe,
        text: TextObjective | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.averaged = AveragedModel(
            student, multi_avg_fn=get_ema_multi_avg_fn(recipe.optimizer.average), use_buffers=True
        )
        self.sweeps = sweeps
        self.recipe = recipe
        weights = class_weights(sweeps, student.network.classifier.out_features, recipe)
        self.register_buffer("class_weights", weights)
        self.text = text

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the current epoch, so that a resumed run goes on with the same data."""
        first = self.current_epoch * STEPS_PER_EPOCH
        count = min(STEPS_PER_EPOCH, self.recipe.optimizer.steps - first)
        dataset = StepDataset(self.sweeps, self.recipe, first, count)
        # Batches are whole already, and a worker would compete with torch for the cores.
        return DataLoader(dataset, batch_size=None, num_workers=0)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """One weighted sum of the objectives."""
        weights = self.recipe.loss
        frozen = self.recipe.optimizer.heads_only
        output = self._with_frozen_network(batch.points) if frozen else self.student(batch.points)
        labels, confidence = vote(
            batch.labels,
            batch.confidence,
            output.voxels.inverse,
            len(output.voxels),
            output.logits.shape[1],
        )
        losses: dict[str, Tensor] = {}
        if weights.cross_entropy and not frozen:
            losses["cross_entropy"] = weights.cross_entropy * weighted_cross_entropy(
                output.logits, labels, confidence, self.class_weights
            )
        if weights.lovasz and not frozen:
            losses["lovasz"] = weights.lovasz * lovasz_softmax(output.logits.softmax(1), labels)
        if weights.regression and output.regressed is not None:
            predicted = output.regressed[output.voxels.inverse[batch.feature_index]]
            losses["regression"] = weights.regression * feature_regression(
                predicted, batch.features[:, : predicted.shape[1]]
            )
        if self.text is not None and output.text_head is not None:
            values = batch.features[:, self.student.config.feature_channels :]
            voxel = output.voxels.inverse[batch.feature_index]
            losses |= self.text(output.text_head, output.features, values, voxel)
        total = torch.stack(list(losses.values())).sum()
        accuracy = _agreement(output.logits, labels)
        self.log_dict({**losses, "loss": total, "agreement": accuracy}, prog_bar=True, batch_size=1)
        return total

    def _with_frozen_network(self, points: Points) -> StudentOutput:
        """What the student says, with gradients in its heads alone."""
        student = self.student
        student.network.eval()
        with torch.no_grad():
            voxels = student.voxelize(points)
            features = student.network.features(student.sparse_input(points, voxels))
            logits = student.network.classifier(features)
        regressed = student.regression(features) if student.regression is not None else None
        return StudentOutput(logits, features, regressed, voxels, student.text_head)

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the averaged weights; early on they follow quickly."""
        self.averaged.update_parameters(self.student)

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, cosine decay to zero."""
        return adamw(self.student.parameters(), self.recipe.optimizer)


def vote(
    labels: Tensor, confidence: Tensor, inverse: Tensor, voxels: int, classes: int
) -> tuple[Tensor, Tensor]:
    """Label of each voxel by the summed confidence of its points.

    Returns:
        (M,) int64 labels, IGNORE without any labeled point; (M,) float32 mean confidence of the
        points that voted for the winner, times their share of the vote.
    """
    labeled = (labels != IGNORE).nonzero().squeeze(1)
    cells = inverse[labeled] * classes + labels[labeled]
    ballot = confidence.new_zeros(voxels * classes)
    ballot.index_add_(0, cells, confidence[labeled])
    counts = torch.zeros_like(ballot).index_add_(0, cells, torch.ones_like(confidence[labeled]))
    ballot, counts = ballot.view(voxels, classes), counts.view(voxels, classes)
    top, winner = ballot.max(1)
    won = counts.gather(1, winner[:, None]).squeeze(1)
    share = top / ballot.sum(1).clamp_min(1e-6)
    mean = top / won.clamp_min(1)
    return torch.where(top > 0, winner, IGNORE), mean * share


def class_weights(sweeps: list[TrainingSweep], classes: int, recipe: Recipe) -> Tensor:
    """(C,) float32 inverse class frequencies to the recipe's power; mean 1 over the labels."""
    counts = class_counts(sweeps, classes, recipe.loss.min_confidence)
    frequency = counts / counts.sum().clamp_min(1)
    weights = frequency.clamp_min(1e-4) ** -recipe.loss.class_balance
    return (weights / (weights * frequency).sum().clamp_min(1e-6)).float()


def class_counts(sweeps: list[TrainingSweep], classes: int, minimum: float) -> Tensor:
    counts = torch.zeros(classes, dtype=torch.float64)
    for sweep in sweeps:
        labels = torch.from_numpy(sweep.confident(minimum))
        counts += torch.bincount(labels[labels != IGNORE], minlength=classes)
    return counts


def _agreement(logits: Tensor, labels: Tensor) -> Tensor:
    labeled = labels != IGNORE
    return (
        (logits.argmax(1) == labels)[labeled].float().mean()
        if labeled.any()
        else logits.new_zeros(())
    )
