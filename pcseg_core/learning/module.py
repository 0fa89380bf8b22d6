# SPDX-License-Identifier: Apache-2.0
"""The Lightning module: one student, a list of objectives, averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pcseg_core.errors import PcsegError
from pcseg_core.learning.dataset import Batch, Sectors, StepDataset
from pcseg_core.learning.distributed import ranks, synchronize
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.objectives.segmentation import Segmentation
from pcseg_core.learning.objectives.self_training import SelfTraining
from pcseg_core.learning.recipe import OptimizerConfig
from pcseg_core.models.student import Points, Student, StudentOutput

STEPS_PER_EPOCH = 50  # between two stored states; fewer after a run that was interrupted


class TrainingModule(lightning.LightningModule):
    """Trains a student on the sum of the losses of its objectives.

    Args:
        student: network to train.
        objectives: give the losses.
        sectors: draws the data of each step.
        optimizer: steps, rates, and which parameters are trained. Batch norms of the student are
            synchronized where there are several processes.
        self_training: replaces labels of voxels, or None; needs a `Segmentation` objective.
        groups: groups of parameters with learning rates of their own; by default all parameters
            of student and objectives have that of `optimizer`.
        workers: processes that prepare batches; 0 prepares them between the steps.

    Attributes:
        averaged: moving average of the student's weights, the result of the training.
        clock: wall time by stage.
    """

    def __init__(
        self,
        student: Student,
        objectives: Sequence[Objective],
        sectors: Sectors,
        optimizer: OptimizerConfig,
        *,
        self_training: SelfTraining | None = None,
        groups: Sequence[dict[str, Any]] | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        if ranks()[1] > 1:
            synchronize(student)
        for objective in objectives:
            objective.prepare(student)
        self.student = student
        self.objectives = torch.nn.ModuleList(objectives)
        self.averaged = AveragedModel(
            student, multi_avg_fn=get_ema_multi_avg_fn(optimizer.average), use_buffers=True
        )
        # Data-parallel training waits for the gradients of all parameters that require any.
        self.averaged.requires_grad_(False)
        self.sectors, self.optimizer, self.workers = sectors, optimizer, workers
        self.self_training, self.groups = self_training, groups
        self.clock = StageClock()
        self._averaged_step, self._shown = 0, MeanFigures()

    def result(self) -> Student:
        """The student, with the averaged weights."""
        self.student.load_state_dict(self.averaged.module.state_dict())
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            objective.restore(self.student)
        return self.student

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches up to the next multiple of `STEPS_PER_EPOCH`; a resumed run gets the same."""
        first, each = self.global_step, self.optimizer.accumulate
        count = min(STEPS_PER_EPOCH - first % STEPS_PER_EPOCH, self.optimizer.steps - first)
        dataset = StepDataset(self.sectors, first * each, count * each, *ranks())
        return DataLoader(dataset, batch_size=None, num_workers=self.workers)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """The sum of the losses of all objectives."""
        output = self._output(batch.points)
        self.clock.mark("forward")
        batch.targets = batch.voted(output.voxels, output.logits.shape[1])
        self._relabel(batch)
        losses: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {}
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            losses |= objective.losses(output, batch)
            figures |= objective.figures(output, batch)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(total)):
            raise PcsegError(
                f"training diverged: the loss is {float(total)} at step {self.global_step}; lower "
                "optimizer.learning_rate and start over with --fresh"
            )
        shown = self._shown.add({**losses, "loss": total, **figures}, self.optimizer.accumulate)
        self.log_dict(shown, prog_bar=True, batch_size=1)
        self.clock.sectors += 0 if batch.segments is None else len(batch.segments.place)
        self.clock.mark("losses")
        return total

    def _output(self, points: Points) -> StudentOutput:
        """The student's output, in float32."""
        half = self.optimizer.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            frozen = self.optimizer.heads_only
            output = self._with_frozen_network(points) if frozen else self.student(points)
        return output.float() if half else output

    def _with_frozen_network(self, points: Points) -> StudentOutput:
        """The student's output, with gradients in its heads only."""
        student = self.student
        student.network.eval()
        with torch.no_grad():
            voxels = student.voxelize(points)
            features = student.network.features(student.sparse_input(points, voxels))
            logits = student.network.classifier(features)
        regressed = student.regression(features) if student.regression is not None else None
        return StudentOutput(logits, features, regressed, voxels, student.text_head)

    @torch.no_grad()
    def _relabel(self, batch: Batch) -> None:
        if self.self_training is None or not self.self_training.active(self.global_step):
            return
        assert batch.targets is not None
        segmentation = next(o for o in self.objectives if isinstance(o, Segmentation))
        output = self.averaged.module.eval()(batch.points)
        likely = segmentation.logits(output).softmax(1)
        batch.targets = self.self_training.relabel(batch.targets, likely, self.global_step)

    def on_train_epoch_start(self) -> None:
        """Start the clock, at the step of a resumed run."""
        self._averaged_step = self.global_step
        self.clock.mark(None)

    def on_train_batch_start(self, *_: Any) -> None:
        """The time since the last step went into data."""
        self.clock.mark("data")

    def on_train_batch_end(self, *_: Any) -> None:
        """Update the averaged weights after each optimizer step."""
        if self.global_step != self._averaged_step:
            self.averaged.update_parameters(self.student)
        self._averaged_step = self.global_step
        self.clock.mark("other")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with linear warm-up and cosine decay to zero."""
        config = self.optimizer
        everything = [*self.student.parameters(), *self.objectives.parameters()]
        optimizer = torch.optim.AdamW(
            self.groups or everything, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        warm = max(1, round(config.warmup * config.steps))

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            progress = (step - warm) / max(1, config.steps - warm)
            return 0.5 * (1 + math.cos(min(1.0, progress) * math.pi))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class MeanFigures:
    """Means of figures over the batches of a step."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Tensor]] = []

    def add(self, figures: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """The means with those of another batch; a step has `count` batches."""
        if count == 1:
            return figures
        self._parts = [*self._parts, {k: v.detach() for k, v in figures.items()}][-count:]
        names = dict.fromkeys(name for part in self._parts for name in part)
        return {n: torch.stack([p[n] for p in self._parts if n in p]).mean() for n in names}


class StageClock:
    """Wall time of the stages of training; "other" is gradients and optimizer."""

    def __init__(self) -> None:
        self.seconds = {"data": 0.0, "forward": 0.0, "losses": 0.0, "other": 0.0}
        self.sectors = 0
        self._mark = time.perf_counter()

    def mark(self, stage: str | None) -> None:
        """Add the time since the last mark to a stage; None adds it nowhere."""
        now = time.perf_counter()
        if stage is not None:
            self.seconds[stage] += now - self._mark
        self._mark = now

    def throughput(self) -> dict[str, Any]:
        """Sectors per second of all processes, and the share of each stage."""
        total = max(sum(self.seconds.values()), 1e-9)
        shares = {name: round(value / total, 4) for name, value in self.seconds.items()}
        return {"sectors_per_s": round(self.sectors * ranks()[1] / total, 3), "share": shares}
