# SPDX-License-Identifier: Apache-2.0
"""The Lightning module that pretrains a student on views."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pcseg_core.distill import contrast
from pcseg_core.distill.losses import feature_regression
from pcseg_core.labels import IGNORE
from pcseg_core.learning.distributed import gather_rows, ranks, synchronize
from pcseg_core.learning.module import STEPS_PER_EPOCH
from pcseg_core.learning.pretrain_dataset import PretrainBatch, PretrainDataset
from pcseg_core.learning.pretrain_recipe import PretrainRecipe
from pcseg_core.learning.schedule import adamw
from pcseg_core.learning.views import Entry
from pcseg_core.models.student import Student


class PretrainModule(lightning.LightningModule):
    """Contrast and regression between the student's points and frozen images.

    Args:
        student: network to train; heads that are only needed here live beside it.
        channels: size D of the frozen features.
        entries: stored views.
        segments: by entry, the file of its segments across sweeps; may be empty.
        recipe: everything else.
        workers: processes that prepare batches; 0 prepares them between the steps.
    """

    def __init__(
        self,
        student: Student,
        channels: int,
        entries: Sequence[Entry],
        segments: Mapping[int, Path],
        recipe: PretrainRecipe,
        workers: int = 0,
    ) -> None:
        super().__init__()
        synchronize(student)
        student.network.classifier.requires_grad_(False)  # nothing here trains it
        self.student = student
        width, size = student.network.feature_channels, recipe.loss.channels
        self.heads = nn.ModuleDict()
        if recipe.loss.superpixel + recipe.loss.point_pixel > 0:
            self.heads["points"] = nn.Linear(width, size)
            self.heads["pixels"] = nn.Linear(channels, size)
        if recipe.across_time:
            # The two kinds of contrast ask for different things; one projection would mix them.
            self.heads["lasting"] = nn.Linear(width, size)
        if recipe.loss.regression > 0:
            self.heads["regression"] = nn.Linear(width, channels)
        self.averaged = AveragedModel(
            student, multi_avg_fn=get_ema_multi_avg_fn(recipe.optimizer.average), use_buffers=True
        )
        # Parameters without gradients of their own: data-parallel training waits for all others.
        self.averaged.requires_grad_(False)
        self.entries, self.segments, self.recipe = list(entries), dict(segments), recipe
        self.workers = workers
        self.seconds = {"data": 0.0, "forward": 0.0, "losses": 0.0, "other": 0.0}
        self.sweeps_seen = 0
        self._mark = time.perf_counter()

    def train_dataloader(self) -> DataLoader[PretrainBatch]:
        """Batches of the current epoch, so that a resumed run goes on with the same data."""
        first = self.current_epoch * STEPS_PER_EPOCH
        count = min(STEPS_PER_EPOCH, self.recipe.optimizer.steps - first)
        dataset = PretrainDataset(self.entries, self.segments, self.recipe, first, count, *ranks())
        return DataLoader(dataset, batch_size=None, num_workers=self.workers)

    def training_step(self, batch: PretrainBatch, _index: int) -> Tensor:
        """One weighted sum of the objectives."""
        output = self.student(batch.points)
        features = output.features[output.voxels.inverse]
        self._took("forward")
        losses = self.objectives(features, batch)
        total = torch.stack(list(losses.values())).sum()
        self.log_dict({**losses, "loss": total}, prog_bar=True, batch_size=1)
        self.sweeps_seen += len(batch.place)
        self._took("losses")
        return total

    def objectives(self, features: Tensor, batch: PretrainBatch) -> dict[str, Tensor]:
        """Weighted losses by name.

        Args:
            features: (N, C) student features of the points.
            batch: the targets.
        """
        weights = self.recipe.loss
        losses: dict[str, Tensor] = {}
        if weights.superpixel:
            losses["superpixel"] = weights.superpixel * self._superpixel(features, batch)
        if weights.point_pixel:
            losses["point_pixel"] = weights.point_pixel * self._point_pixel(features, batch)
        if weights.regression:
            predicted = self.heads["regression"](features[batch.pair_point])
            losses["regression"] = weights.regression * feature_regression(
                gather_rows(predicted), gather_rows(batch.pair_feature)
            )
        if self.recipe.across_time:
            losses |= self._across_time(features, batch)
        return losses

    def _superpixel(self, features: Tensor, batch: PretrainBatch) -> Tensor:
        loss, count = self.recipe.loss, len(batch.segment_name)
        point_rows = _positions(batch.pair_segment, batch.segment_name)
        pixel_rows = _positions(batch.pixel_segment, batch.segment_name)
        used = features[batch.pair_point[point_rows != IGNORE]]
        projected = functional.normalize(self.heads["points"](used), dim=1)
        points, sizes = contrast.segment_means(projected, point_rows[point_rows != IGNORE], count)
        seen = functional.normalize(self.heads["pixels"](batch.pixels), dim=1)
        pixels, _ = contrast.segment_means(seen, pixel_rows, count)
        frozen, _ = contrast.segment_means(batch.pixels, pixel_rows, count)
        kept = sizes >= self.recipe.views.min_points
        rank, _ = ranks()
        sweeps = batch.segment_sector + rank * 1000
        parts = (
            points,
            pixels,
            frozen,
            batch.segment_class,
            sweeps,
            batch.place[batch.segment_sector],
        )
        points, pixels, frozen, classes, sweeps, places = (gather_rows(p[kept]) for p in parts)
        excluded = contrast.false_negatives(
            frozen,
            loss.false_negative_quantile,
            classes if loss.class_negatives else None,
            sweeps,
            places,
        )
        anchors = contrast.balanced_anchors(frozen) if loss.balanced and len(frozen) > 1 else None
        alike = contrast.same_class(classes) if loss.class_positives else None
        return contrast.superpixel_contrast(
            points, pixels, loss.temperature, excluded, anchors, alike
        )

    def _point_pixel(self, features: Tensor, batch: PretrainBatch) -> Tensor:
        share = max(1, self.recipe.loss.pairs // ranks()[1])
        total = len(batch.pair_point)
        # Evenly spaced rather than random: no state to restore, and cameras share alike.
        drawn = torch.linspace(0, max(total - 1, 0), min(total, share)).round().long()
        drawn = drawn.to(batch.pair_point.device)
        points = self.heads["points"](features[batch.pair_point[drawn]])
        pixels = self.heads["pixels"](batch.pair_feature[drawn])
        return contrast.point_pixel_contrast(
            gather_rows(functional.normalize(points, dim=1)),
            gather_rows(functional.normalize(pixels, dim=1)),
            self.recipe.loss.temperature,
        )

    def _across_time(self, features: Tensor, batch: PretrainBatch) -> dict[str, Tensor]:
        loss = self.recipe.loss
        drawn = (batch.lasting != IGNORE).nonzero().squeeze(1)
        projected = functional.normalize(self.heads["lasting"](features[drawn]), dim=1)
        classes = self._point_classes(batch)[drawn]
        parts = (projected, batch.lasting[drawn], batch.second[drawn].long(), classes)
        projected, names, second, classes = (gather_rows(part) for part in parts)
        known, ids = torch.unique(names, return_inverse=True)
        excluded = None
        if loss.class_negatives:
            voted = majority(ids, classes, len(known))
            excluded = contrast.same_class(voted)
        losses = {}
        now, then = second == 0, second == 1
        if loss.temporal:
            losses["temporal"] = loss.temporal * contrast.temporal_consistency(
                (projected[now], ids[now]),
                (projected[then], ids[then]),
                len(known),
                loss.temperature,
                excluded,
            )
        if loss.point_to_segment:
            inside = [
                self._inside(projected[side], ids[side], len(known), excluded)
                for side in (now, then)
                if side.any()
            ]
            mean = torch.stack(inside).mean() if inside else projected.sum() * 0.0
            losses["point_to_segment"] = loss.point_to_segment * mean
        return losses

    def _inside(
        self, projected: Tensor, ids: Tensor, count: int, excluded: Tensor | None
    ) -> Tensor:
        means, sizes = contrast.segment_means(projected, ids, count)
        absent = (sizes == 0).expand(count, count)
        mask = absent if excluded is None else excluded | absent
        return contrast.point_to_segment(projected, ids, means, self.recipe.loss.temperature, mask)

    def _point_classes(self, batch: PretrainBatch) -> Tensor:
        """(N,) class of the superpixel that shows each point, IGNORE for none."""
        classes = torch.full_like(batch.lasting, IGNORE)
        rows = _positions(batch.pair_segment, batch.segment_name)
        seen = rows != IGNORE
        classes[batch.pair_point[seen]] = batch.segment_class[rows[seen]]
        return classes

    def on_train_epoch_start(self) -> None:
        """Start the clock of the stages."""
        self._mark = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        """What passed since the last step went into data."""
        self._took("data")

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the averaged weights; early on they follow quickly."""
        self.averaged.update_parameters(self.student)
        self._took("other")

    def throughput(self) -> dict[str, Any]:
        """Sweeps per second and the share of each stage; "other" is gradients and optimizer."""
        total = max(sum(self.seconds.values()), 1e-9)
        shares = {name: round(value / total, 4) for name, value in self.seconds.items()}
        seen = self.sweeps_seen * ranks()[1]
        return {"sectors_per_s": round(seen / total, 3), "share": shares}

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, cosine decay to zero."""
        return adamw([*self.student.parameters(), *self.heads.parameters()], self.recipe.optimizer)

    def _took(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._mark
        self._mark = now


def _positions(names: Tensor, known: Tensor) -> Tensor:
    """Row of each name among the sorted known ones; IGNORE for IGNORE."""
    if len(known) == 0:
        return torch.full_like(names, IGNORE)
    rows = torch.searchsorted(known, names).clamp_max(len(known) - 1)
    return torch.where(known[rows] == names, rows, IGNORE)


def majority(ids: Tensor, classes: Tensor, count: int) -> Tensor:
    """(S,) commonest class among the members of each segment; IGNORE where none is known."""
    known = classes != IGNORE
    if not bool(known.any()):
        return torch.full((count,), IGNORE, device=ids.device)
    width = int(classes.max()) + 1
    votes = torch.bincount(ids[known] * width + classes[known], minlength=count * width)
    top, winner = votes.view(count, width).max(1)
    return torch.where(top > 0, winner, IGNORE)
