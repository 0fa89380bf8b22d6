# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: train a checkpoint on labeled sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from pcseg_core.checkpoint import CheckpointMeta, load_checkpoint
from pcseg_core.data import Recording, readable
from pcseg_core.data.corrections import Correction, read_corrections
from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.distributed import from_first
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives.segmentation import Segmentation, label_counts
from pcseg_core.learning.probe import Scan, by_point, confusion_of, labeled_scan, run_student
from pcseg_core.learning.recipe import OptimizerConfig, TrainingRecipe
from pcseg_core.learning.run_folder import is_first_process
from pcseg_core.learning.runs import finish, input_statistics, torch_device
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.shards import prepared
from pcseg_core.learning.trainer import train
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.models.student import Student, StudentConfig, stored_config

Array = npt.NDArray[Any]

_CLASSIFIER = "network.classifier."
_UNIT = 64  # sweeps that one process reads at a time
_OTHER_HEADS = ("regression.", "text_head.")


class FinetuneRecipe(TrainingRecipe):
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
    optimizer: OptimizerConfig = Field(
        default_factory=lambda: OptimizerConfig(steps=300), description="learning_rate is not used"
    )


def rate_groups(student: Student, recipe: FinetuneRecipe, pretrained: bool) -> list[dict[str, Any]]:
    """Parameters of the last layer and of all others, with their learning rates.

    Args:
        student: network to train.
        recipe: the rates.
        pretrained: whether the trunk is; if not, all layers have the rate of training from scratch.
    """
    head = list(student.network.classifier.parameters())
    known = {id(parameter) for parameter in head}
    trunk = [p for p in student.parameters() if id(p) not in known]
    pair = (recipe.head_learning_rate, recipe.trunk_learning_rate)
    head_rate, trunk_rate = pair if pretrained else (recipe.scratch_learning_rate,) * 2
    return [{"params": head, "lr": head_rate}, {"params": trunk, "lr": trunk_rate}]


def read_labeled(
    recording: Recording,
    space: LabelSpace,
    max_range_m: float,
    relabel: Callable[[int, Sample], Sample] = lambda _, sample: sample,
    indices: Iterable[int] | None = None,
) -> Iterator[TrainingSweep]:
    """The labeled sweeps of a recording; others are counted in its `skipped`.

    Args:
        recording: the sweeps.
        space: label space of the result.
        max_range_m: points beyond are left out [m].
        relabel: gives a sample (index, sample) other labels.
        indices: of the sweeps to read; None reads all.
    """
    for index, found in readable(recording, indices):
        scan = labeled_scan(recording, relabel(index, found), space, max_range_m)
        if scan is not None:
            yield TrainingSweep(
                scan.xyz,
                scan.intensity,
                scan.truth.astype(np.int16),
                np.ones(len(scan.xyz), np.float32),
                f"{recording.name}/{recording.scenes[index]}",
            )


def prepare_labeled(
    recordings: Sequence[Recording],
    space: LabelSpace,
    max_range_m: float,
    relabel: Callable[[int, Sample], Sample] = lambda _, sample: sample,
    shards: str | None = None,
) -> Sequence[TrainingSweep]:
    """All labeled sweeps of recordings. Several processes share the reading.

    Args:
        recordings: the sweeps.
        space, max_range_m, relabel: see `read_labeled`.
        shards: folder or URL of the sweeps; None keeps them in memory.

    Raises:
        InputError: a recording has none.
    """
    counts: Counter[str] = Counter()

    def read(number: int, first: int) -> Iterator[TrainingSweep]:
        one = recordings[number]
        some = range(first, min(first + _UNIT, len(one)))
        for sweep in read_labeled(one, space, max_range_m, relabel, some):
            counts[str(number)] += 1
            yield sweep

    units = [
        (f"{number:05d}-{first:08d}", partial(read, number, first))
        for number, one in enumerate(recordings)
        for first in range(0, len(one), _UNIT)
    ]
    found = prepared(units, shards, lambda: counts)
    for number, one in enumerate(recordings):
        if not found.counts[str(number)]:
            raise InputError(f"{one.name}: none of its {len(one)} sweeps has labels")
    return found.sweeps


def read_corrected(
    folder: Path,
    recordings: Mapping[str, Recording],
    space: LabelSpace,
    max_range_m: float,
    shards: str | None = None,
) -> Sequence[TrainingSweep]:
    """The corrected sweeps of recordings, with the corrected labels alone.

    Args:
        folder: see `read_corrections`.
        recordings: by any key.
        space: label space of the result.
        max_range_m: points beyond are left out [m].
        shards: folder or URL of the sweeps; None keeps them in memory.

    Raises:
        InputError: see `read_corrections`.
    """
    return prepared(
        [("corrected", lambda: _corrected(folder, recordings, space, max_range_m))], shards
    ).sweeps


def _corrected(
    folder: Path, recordings: Mapping[str, Recording], space: LabelSpace, max_range_m: float
) -> Iterator[TrainingSweep]:
    for one in read_corrections(folder, recordings, space):
        recording = recordings[one.recording]

        def relabel(_: int, sample: Sample, one: Correction = one) -> Sample:
            return replace(sample, labels=one.labels.astype(np.int16), label_space=space)

        yield from read_labeled(recording, space, max_range_m, relabel, [one.index])


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


def measure(student: Student, test: Sequence[Scan], classes: int, device: str) -> Confusion:
    """Confusion of a student over labeled scans."""
    student = student.to(device).eval()

    def predict(xyz: Array, intensity: Array) -> Array:
        output = run_student(student, xyz, intensity)
        return by_point(output.logits.argmax(1), output)

    return confusion_of(predict, test, classes)


def finetune(
    run: Path,
    sweeps: Sequence[TrainingSweep],
    test: Sequence[Scan],
    space: LabelSpace,
    recipe: FinetuneRecipe,
    out: Path,
    device: str = "auto",
    *,
    scratch: bool = False,
    recordings: Sequence[Recording] = (),
    log: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a checkpoint on labeled sweeps and measure it on others.

    Interrupted runs resume: make the same call again. Under torchrun the processes share the
    steps; the first one measures and writes.

    Args:
        run: checkpoint or run directory.
        sweeps: labeled sweeps to train on, the same in all processes.
        test: labeled scans to measure on; none measures nothing.
        space: label space of both.
        recipe: the training.
        out: run directory; gets logs/, last.ckpt, metrics.json and the checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        scratch: train the network of `run` from random weights, for comparison.
        recordings: where the sweeps are from; they give the intensity scale.
        log: trackers of the losses besides logs/metrics.csv, see `trackers.Trackers`.

    Returns:
        Figures of the run, also written to metrics.json.

    Raises:
        InputError: no labeled point, or the run has another network.
        KeyboardInterrupt: a signal ended the training.
    """
    _, meta = load_checkpoint(run)
    module = _new_module(run, meta, sweeps, space, recipe, scratch)
    student = module.student
    metrics = train(module, out, device, log)
    if not is_first_process():
        return metrics
    metrics["sweeps"] = len(sweeps)
    if test:
        confusion = measure(student, test, len(space), torch_device(device))
        figures = Figures.of(confusion, space.names, merge_of(space))
        metrics["test"] = {**figures.model_dump(), "confusion": confusion.matrix.tolist()}
    inputs = input_statistics(sweeps, recordings)
    finish(student, space, recipe, metrics, out, inputs=inputs, license=meta.license)
    return metrics


def _new_module(
    run: Path,
    meta: CheckpointMeta,
    sweeps: Sequence[TrainingSweep],
    space: LabelSpace,
    recipe: FinetuneRecipe,
    scratch: bool,
) -> TrainingModule:
    """The student of a run for the classes of labeled sweeps, with its objective."""
    sectors = LabeledSectors(sweeps, recipe, space)
    counts = from_first(lambda: label_counts(sweeps, len(space), sectors.required))
    if not counts.any():
        raise InputError("the sweeps to train on have no labeled point of these classes")
    config = stored_config(meta.student, run)
    student = start(None if scratch else run, config, space, recipe.seed)
    rates = recipe
    if same_classes(meta, space):  # the last layer is not new either
        rates = recipe.model_copy(update={"head_learning_rate": recipe.trunk_learning_rate})
    return TrainingModule(
        student,
        [Segmentation(recipe.loss, counts)],
        sectors,
        recipe.optimizer,
        groups=rate_groups(student, rates, pretrained=not scratch),
    )
