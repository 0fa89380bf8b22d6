# SPDX-License-Identifier: Apache-2.0
"""Distillation: recordings and teachers in, a LiDAR-only segmenter out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.bundled import FILE_NAME, checkpoint_file
from pcseg_core.data import Recording
from pcseg_core.data.diversity import diversity
from pcseg_core.distill.lidar_teacher import LidarTeacher
from pcseg_core.distill.observation import Observer
from pcseg_core.errors import InputError
from pcseg_core.labels import NO_CLASSES, LabelSpace
from pcseg_core.learning.confidence import calibrate, held_out
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.objectives.alignment import Alignment
from pcseg_core.learning.objectives.lidar_teacher import LidarDistillation
from pcseg_core.learning.objectives.regression import Regression
from pcseg_core.learning.objectives.segmentation import Segmentation, label_counts
from pcseg_core.learning.objectives.self_training import SelfTraining
from pcseg_core.learning.objectives.text import TextRegression
from pcseg_core.learning.recipe import Recipe, TextConfig
from pcseg_core.learning.run_folder import claim, identity, named, resumed
from pcseg_core.learning.runs import (
    all_skipped,
    check_cameras,
    finish,
    input_statistics,
    observe,
    open_recordings,
    recording_poses,
    torch_device,
)
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.self_labels import SelfLabeler, load_beside
from pcseg_core.learning.simulated import labeled_sweeps
from pcseg_core.learning.start import check_start, take_over
from pcseg_core.learning.sweep_labels import Labeling, class_shares, new_observer, read_corrected
from pcseg_core.learning.teachers import (
    Teachers,
    TextTeacher,
    load_lidar,
    load_teachers,
    student_space,
)
from pcseg_core.learning.trainer import train
from pcseg_core.models.student import Student
from pcseg_core.progress import note

Array = npt.NDArray[Any]


def distill(
    sources: Sequence[str],
    recipe: Recipe,
    out: Path,
    cache: Path | None = None,
    device: str = "auto",
    start: Path | None = None,
    fresh: bool = False,
    corrected: Path | None = None,
    corrected_weight: float = 20.0,
    log: Sequence[str] = (),
    prepare: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Label recordings with the recipe's teachers and train a student on the labels.

    Interrupted runs resume: make the same call again. A finished run returns its figures, which
    metrics.json also holds.

    Args:
        sources: bags, or reader:path.
        recipe: of the run, with a camera teacher, a 3D teacher or both.
        out: run directory; gets recipe.yaml, pseudo_labels/, logs/, last.ckpt and the checkpoint.
        cache: folder of observations and targets that several runs may share; default inside `out`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        start: run whose student, or pretrained backbone, is trained further; that of the recipe
            if not given.
        fresh: delete an earlier run in `out`, once everything is known to be usable.
        corrected: folder of corrected labels of some sweeps, see `read_corrections`.
        corrected_weight: of a corrected label where it is carried to other sweeps, relative to a
            label of the teacher.
        log: trackers of the losses besides logs/metrics.csv, see `trackers.Trackers`.
        prepare: called when everything was checked; may fill `cache`, such as on other machines.

    Raises:
        InputError: unusable sources, weights or recipe, or a run directory of another recipe.
        KeyboardInterrupt: a signal ended the training.
    """
    start = start or recipe.start
    check_recipe(recipe, out, start)
    folder, started, on = cache or out / "cache", time.monotonic(), torch_device(device)
    names = [identity(source, (out, cache or out)) for source in sources]
    others = {"start": start, "teacher-3d": recipe.run_3d, "beside": recipe.rounds.beside}
    parts = [*names, *(part for name, path in others.items() for part in named(name, path))]
    if corrected is not None:
        parts += [*named("corrected", corrected), f"corrected weight {corrected_weight:g}"]
    if (figures := resumed(out, recipe, parts, fresh)) is not None:
        return figures
    # Check everything that can be wrong before the run directory is claimed.
    lidar = load_lidar(recipe, on)
    space = student_space(recipe, lidar)
    licenses = [None if start is None else check_start(start, recipe, space)]
    beside = load_beside(recipe.rounds, space, on)
    licenses += [network.license for network in (lidar, beside) if network]
    teachers = load_teachers(recipe, lidar, space, on)
    recordings = open_recordings(sources, names, lidar.inputs if lidar else None)
    if recipe.teacher is not None:
        check_cameras(recordings.values(), required=lidar is None)
    fixed = None
    if corrected is not None:
        fixed = read_corrected(corrected, recordings, space, corrected_weight)
    note(diversity(recordings.values()).summary())
    observer = new_observer(recipe, teachers, folder)
    claim(out, recipe, parts, fresh)
    if prepare is not None:
        prepare()
    # Observe every sweep once: the classes of its points by the images, targets by a 3D teacher.
    observations = observe(observer, recordings, "labeling sweeps")
    labeling = Labeling.of(observations, recipe, teachers, folder, fixed)
    # Fuse the evidence of each scene over time, into labels also of points that no camera sees.
    given = labeling.label(out)
    found = deepcopy(fixed.conflicts) if fixed else None
    for line in found.lines(space) if found else ():
        note(line)
    exact = list(simulated_sweeps(recipe, space, folder))
    labeling_s = time.monotonic() - started
    held = held_out(given, recipe.confidence.held_out)

    def module(sweeps: Sequence[TrainingSweep], recipe: Recipe) -> TrainingModule:
        chosen = list(compress(sweeps, ~held))
        student = new_student(recipe, chosen, space, teachers.text, start)
        return new_module(student, chosen + exact, recipe, teachers)

    # Train a student to predict the labels from the points alone.
    student, sweeps, training = train_in_rounds(labeling, given, module, out, device, beside, log)
    metrics = {
        **_account(recordings, observer, list(compress(sweeps, ~held)), teachers),
        "held_out": int(held.sum()),
        **({"corrected": found.figures(space)} if found else {}),
        "labeling_s": round(labeling_s, 1),
        **training,
    }
    # Calibrate its confidence by labels of the teachers alone.
    scaling = calibrate(student, given, held) if space != NO_CLASSES else None
    inputs = input_statistics(sweeps, recordings.values())
    license = " and ".join(dict.fromkeys(filter(None, licenses))) or None
    finish(student, space, recipe, metrics, out, teachers.words(recipe), inputs, license, scaling)
    return metrics


def train_in_rounds(
    labeling: Labeling,
    sweeps: list[TrainingSweep],
    module: Callable[[Sequence[TrainingSweep], Recipe], TrainingModule],
    out: Path,
    device: str,
    beside: LidarTeacher | None = None,
    log: Sequence[str] = (),
) -> tuple[Student, list[TrainingSweep], dict[str, Any]]:
    """Train a student; let it label, and train on these labels, as often as the recipe says.

    The student labels what no camera saw, and outvotes errors. Interrupted rounds resume.

    Args:
        labeling: labels the sweeps of the run again, with the help of a student; its recipe tells
            about rounds.
        sweeps: labeled by the teachers.
        module: a new student with its objectives, for labeled sweeps and a recipe.
        out: run directory.
        device: "auto", "cpu", "cuda" or "cuda:N".
        beside: a network that labels with the student.
        log: trackers of the losses besides logs/metrics.csv, see `trackers.Trackers`.

    Returns:
        The last student, the sweeps that it learned from, and the figures of its training.
    """
    recipe = labeling.recipe
    training = train(own := module(sweeps, recipe), out, device, log)
    seconds = training["training_s"]
    for number in range(1, recipe.rounds.count + 1):
        place = out / f"round-{number}"
        labeler = SelfLabeler(own.student, recipe.rounds, recipe.seed + number, beside)
        sweeps = labeling.label(place, labeler)
        next_ = module(sweeps, recipe.of_round())
        if recipe.rounds.further:
            next_.student.load_state_dict(own.student.state_dict())
        training = train(own := next_, place, device, log)
        seconds += training["training_s"]
    return own.student, sweeps, {**training, "training_s": round(seconds, 1)}


def simulated_sweeps(recipe: Recipe, space: LabelSpace, cache: Path) -> Iterator[TrainingSweep]:
    """The simulated sweeps of a recipe with their exact labels."""
    return labeled_sweeps(recipe.simulated.sources, space, recipe.student.max_range_m, cache)


def check_recipe(recipe: Recipe, out: Path, start: Path | None) -> None:
    """Check a recipe for distillation into a folder.

    Raises:
        InputError: see `distill`.
    """
    if (recipe.teacher is None and recipe.teacher_3d is None) or recipe.supervision is not None:
        raise InputError(
            "distillation needs a recipe with 'teacher' or 'teacher_3d', and without 'supervision'"
        )
    if recipe.optimizer.heads_only and start is None:
        raise InputError("optimizer.heads_only needs a run to start from; give --start RUN")
    if (run := recipe.run_3d) is not None and checkpoint_file(run).resolve() == (
        out / FILE_NAME
    ).resolve():
        raise InputError(f"3D teacher {run} is the run that would be trained; choose another --out")


def _account(
    recordings: Mapping[str, Recording],
    observer: Observer,
    sweeps: Sequence[TrainingSweep],
    teachers: Teachers,
) -> dict[str, Any]:
    """Figures of the data of a run."""
    return {
        "sweeps": len(sweeps),
        "skipped": all_skipped(recordings, observer),
        "poses": recording_poses(recordings),
        "class_shares": class_shares(sweeps, teachers.space),
        **({"teacher_3d": teachers.lidar.summary} if teachers.lidar else {}),
    }


def new_student(
    recipe: Recipe,
    sweeps: Sequence[TrainingSweep],
    space: LabelSpace,
    text: TextTeacher | None,
    start: Path | None = None,
) -> Student:
    """A student with the heads that the objectives of the recipe train, maybe of another run."""
    torch.manual_seed(recipe.seed)
    heads: dict[str, int] = {}
    if recipe.loss.regression > 0:
        heads["feature_channels"] = image_channels(sweeps)
    if text is not None:
        heads["text_channels"] = text.channels
    student = Student(recipe.student.model_copy(update=heads), len(space))
    if start is not None:
        take_over(student, start)
    return student


def image_channels(sweeps: Sequence[TrainingSweep]) -> int:
    """Size of the image features of sweeps; 0 without any."""
    pixels = [sweep.pixels for sweep in sweeps if sweep.pixels is not None]
    return max((p.image.shape[1] for p in pixels if p.image is not None), default=0)


def new_module(
    student: Student, sweeps: Sequence[TrainingSweep], recipe: Recipe, teachers: Teachers
) -> TrainingModule:
    """The objectives of a recipe with a teacher, for a student, on labeled sweeps."""
    loss, classes = recipe.loss, student.network.classifier.out_features
    text, lidar = teachers.text, teachers.lidar
    if recipe.optimizer.heads_only:
        loss = loss.model_copy(update={"cross_entropy": 0.0, "lovasz": 0.0})
    sectors = LabeledSectors(sweeps, recipe, teachers.space)
    counts = label_counts(sweeps, classes, sectors.required)
    found: list[Objective] = []
    if teachers.space == NO_CLASSES:
        student.network.classifier.requires_grad_(False)
    else:
        found.append(Segmentation(loss, counts))
    if lidar is not None:
        # Beside cameras, a 3D teacher has no say on classes that it lacks.
        compared = lidar.knows if teachers.camera else np.ones(classes, bool)
        width = student.network.feature_channels
        found.append(LidarDistillation(lidar, compared, counts.sum(1), loss.class_balance, width))
    if loss.regression:
        found.append(Regression(loss.regression))
    if text is not None and recipe.text is not None:
        found.append(TextRegression(recipe.text, text.matrix, _text_frequency(recipe.text, sweeps)))
    if recipe.alignment is not None and recipe.alignment.active:
        width = student.network.feature_channels
        found.append(Alignment(width, image_channels(sweeps), recipe.alignment))
    return TrainingModule(
        student,
        found,
        sectors,
        recipe.optimizer,
        self_training=self_training(recipe, torch.ones(classes, dtype=torch.bool)),
    )


def _text_frequency(config: TextConfig, sweeps: Sequence[TrainingSweep]) -> Array | None:
    """(C,) share of each class of the teacher among the pixels; None if not by classes."""
    if config.source != "classes":
        return None
    texts = [s.pixels.text for s in sweeps if s.pixels is not None and s.pixels.text is not None]
    counts: Array = np.sum([text[:].sum(0, dtype=np.float64) for text in texts], axis=0)
    result: Array | None = counts / max(counts.sum(), 1.0)
    return result


def self_training(recipe: Recipe, open_classes: Tensor) -> SelfTraining | None:
    """The self-training of a recipe, for the classes without true labels (C,) bool."""
    if recipe.self_training is None:
        return None
    return SelfTraining(recipe.self_training, open_classes, recipe.optimizer.steps, recipe.seed)
