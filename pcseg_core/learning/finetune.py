# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: train a checkpoint on labeled sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field

from pcseg_core.checkpoint import CheckpointMeta, load_checkpoint
from pcseg_core.config import Section
from pcseg_core.data import Recording, readable
from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError
from pcseg_core.evaluation.evaluator import truth_of
from pcseg_core.evaluation.report import Figures, merge_of
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.module import DistillModule
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.recipe import AugmentConfig, LossConfig, OptimizerConfig, Recipe
from pcseg_core.learning.runs import finish, on_gpu, train
from pcseg_core.learning.schedule import adamw
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.models.student import Points, Student, StudentConfig

_CLASSIFIER = "network.classifier."
_OTHER_HEADS = ("regression.", "text_head.")


class FinetuneRecipe(Section):
    """How a network is trained on few labels."""

    head_learning_rate: float = Field(
        default=2e-2, gt=0, description="Highest learning rate of the last layer, where it is new"
    )
    trunk_learning_rate: float = Field(
        default=2e-3, gt=0, description="Highest learning rate of all other layers, pretrained"
    )
    scratch_learning_rate: float = Field(
        default=4e-3, gt=0, description="Highest learning rate of a network without pretraining"
    )
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = Field(
        default_factory=lambda: OptimizerConfig(steps=300), description="learning_rate is not used"
    )
    loss: LossConfig = Field(default_factory=LossConfig)
    seed: int = Field(default=0, ge=0, description="Seed of everything random")


class FinetuneModule(DistillModule):
    """Cross-entropy and Lovász on true labels, with rates of their own for head and trunk.

    Args:
        student: network to train.
        sweeps: labeled sweeps.
        recipe: everything else.
        pretrained: whether trunk and head get different rates.
    """

    def __init__(
        self,
        student: Student,
        sweeps: list[TrainingSweep],
        recipe: FinetuneRecipe,
        pretrained: bool,
    ) -> None:
        # The parts that training needs (optimizer, loss, augment, seed) are those of a Recipe.
        super().__init__(student, sweeps, cast(Recipe, recipe))
        self.rates = recipe
        self.pretrained = pretrained

    def configure_optimizers(self) -> Any:
        """AdamW with two groups, linear warm-up, cosine decay to zero."""
        head = list(self.student.network.classifier.parameters())
        known = {id(parameter) for parameter in head}
        trunk = [p for p in self.student.parameters() if id(p) not in known]
        rates = self.rates
        pair = (rates.head_learning_rate, rates.trunk_learning_rate)
        head_rate, trunk_rate = pair if self.pretrained else (rates.scratch_learning_rate,) * 2
        groups = [{"params": head, "lr": head_rate}, {"params": trunk, "lr": trunk_rate}]
        return adamw(groups, rates.optimizer)


def read_labeled(
    recording: Recording,
    space: LabelSpace,
    max_range_m: float,
    relabel: Callable[[int, Sample], Sample] = lambda _, sample: sample,
) -> Iterator[TrainingSweep]:
    """The labeled sweeps of a recording; others are counted in its `skipped`.

    Args:
        recording: the sweeps.
        space: label space of the result.
        max_range_m: points beyond are left out [m].
        relabel: gives a sample (index, sample) other labels.
    """
    for index, found in readable(recording):
        sample = relabel(index, found)
        if sample.labels is None:
            recording.skipped["sweep without labels"] += 1
            continue
        cloud, truth = sample.cloud, truth_of(sample, space)
        near = cloud.finite & (np.linalg.norm(cloud.xyz, axis=1) <= max_range_m)
        strength = cloud.intensity if cloud.intensity is not None else np.zeros(len(cloud))
        yield TrainingSweep(
            cloud.xyz[near].astype(np.float32),
            np.nan_to_num(strength[near]).astype(np.float32),
            truth[near].astype(np.int16),
            np.ones(int(near.sum()), np.float32),
            f"{recording.name}/{recording.scenes[index]}",
        )


def start(run: Path | None, config: StudentConfig, space: LabelSpace, seed: int) -> Student:
    """A student for the classes of `space`, with the weights of a run where one is given.

    The last layer is new unless the run has the same classes. Heads for words and image features
    are left out.

    Raises:
        InputError: the run has another network.
    """
    torch.manual_seed(seed)
    config = config.model_copy(update={"feature_channels": 0, "text_channels": 0})
    student = Student(config, len(space))
    if run is None:
        return student
    state, meta = load_checkpoint(run)
    new = _OTHER_HEADS if same_classes(meta, space) else (*_OTHER_HEADS, _CLASSIFIER)
    known = {k: v for k, v in state.items() if not k.startswith(new)}
    missing, unknown = student.load_state_dict(known, strict=False)
    wrong = [k for k in missing if not k.startswith(new)] + unknown
    if wrong:
        raise InputError(f"{run}: its network lacks or adds {', '.join(wrong[:3])}")
    return student


def same_classes(meta: CheckpointMeta, space: LabelSpace) -> bool:
    """Whether the classifier of a checkpoint has the classes of a label space."""
    return LabelSpace.from_dict(meta.label_space).names == space.names


@torch.no_grad()
def measure(student: Student, test: Sequence[Scan], classes: int, device: str) -> Confusion:
    """Confusion of a student over labeled scans."""
    confusion = Confusion(classes)
    student = student.to(device).eval()
    for scan in test:
        batch = torch.zeros(len(scan.xyz), dtype=torch.int64)
        points = Points(torch.from_numpy(scan.xyz), torch.from_numpy(scan.intensity), batch)
        output = student(points.to(torch.device(device)))
        labels = output.logits.argmax(1)[output.voxels.inverse].cpu().numpy()
        confusion.update(labels, scan.truth)
        confusion.unpredicted += scan.missed
    return confusion


def finetune(
    run: Path,
    sweeps: list[TrainingSweep],
    test: Sequence[Scan],
    space: LabelSpace,
    recipe: FinetuneRecipe,
    out: Path,
    device: str = "auto",
    *,
    scratch: bool = False,
) -> dict[str, Any]:
    """Train a checkpoint on labeled sweeps and measure it on others.

    Interrupted runs resume: the same call continues from the last stored epoch.

    Args:
        run: checkpoint or run directory.
        sweeps: labeled sweeps to train on.
        test: labeled scans to measure on; none measures nothing.
        space: label space of both.
        recipe: the training.
        out: run directory; gets logs/, last.ckpt, metrics.json and the checkpoint.
        device: "auto", "cpu" or "cuda".
        scratch: train the network of `run` from random weights, for comparison.

    Returns:
        Figures of the run, also written to metrics.json.

    Raises:
        InputError: no labeled point, or the run has another network.
    """
    if not any((sweep.label != IGNORE).any() for sweep in sweeps):
        raise InputError("the sweeps to train on have no labeled point of these classes")
    _, meta = load_checkpoint(run)
    config = StudentConfig.model_validate(meta.student)
    student = start(None if scratch else run, config, space, recipe.seed)
    rates = recipe
    if same_classes(meta, space):  # the last layer is not new either
        rates = recipe.model_copy(update={"head_learning_rate": recipe.trunk_learning_rate})
    module = FinetuneModule(student, sweeps, rates, not scratch)
    optimizer = recipe.optimizer
    metrics = train(module, optimizer.steps, optimizer.gradient_clip, out, device)
    metrics["sweeps"] = len(sweeps)
    if test:
        confusion = measure(student, test, len(space), "cuda" if on_gpu(device) else "cpu")
        figures = Figures.of(confusion, space.names, merge_of(space))
        metrics["test"] = {**figures.model_dump(), "confusion": confusion.matrix.tolist()}
    finish(student, space, recipe, metrics, out)
    return metrics
