# SPDX-License-Identifier: Apache-2.0
"""Distillation: recordings and teachers in, a LiDAR-only segmenter out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.bundled import FILE_NAME, checkpoint_file
from pcseg_core.confidence import ConfidenceScaling
from pcseg_core.data import Recording
from pcseg_core.data.diversity import diversity
from pcseg_core.distill.corrected import Conflicts, CorrectedSweeps
from pcseg_core.distill.lidar_teacher import LidarTeacher
from pcseg_core.distill.observation import Observer
from pcseg_core.errors import InputError
from pcseg_core.labels import NO_CLASSES, LabelSpace
from pcseg_core.learning.augment import check_corruptions
from pcseg_core.learning.confidence import calibrate, held_out
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.distributed import first_process_first, join
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.run_folder import claim, identity, is_first_process, named, resumed
from pcseg_core.learning.runs import (
    all_skipped,
    check_cameras,
    finish,
    input_statistics,
    observe,
    on_gpu,
    open_recordings,
    recording_poses,
    shard_place,
    torch_device,
)
from pcseg_core.learning.self_labels import SelfLabeler, load_beside
from pcseg_core.learning.shards import chosen
from pcseg_core.learning.simulated import labeled_sweeps
from pcseg_core.learning.start import check_start
from pcseg_core.learning.sweep_labels import Labeling, class_shares, new_observer, read_corrected
from pcseg_core.learning.taught_student import new_module, new_student
from pcseg_core.learning.teachers import Teachers, load_lidar, load_teachers, student_space
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
    shards: str | None = None,
) -> dict[str, Any]:
    """Label recordings with the recipe's teachers and train a student on the labels.

    Interrupted runs resume: make the same call again. A finished run returns its figures, which
    metrics.json also holds. Under torchrun the processes share the sweeps and the steps; only the
    first one returns all figures.

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
        shards: folder or URL of the prepared sweeps, see `shards`; memory holds them if not given.

    Raises:
        InputError: unusable sources, weights or recipe, or a run directory of another recipe.
        KeyboardInterrupt: a signal ended the training.
    """
    start, fresh = start or recipe.start, fresh and is_first_process()
    folder, started = cache or out / "cache", time.monotonic()
    correction = None if corrected is None else (corrected, corrected_weight)
    join(on_gpu(device))
    with first_process_first():
        check_recipe(recipe, out, start)
        parts = identities(sources, recipe, (out, cache or out), start, correction)
        if (figures := resumed(out, recipe, parts, fresh)) is not None:
            return figures
        # Check everything that can be wrong before the run directory is claimed.
        given = Given.open(sources, parts, recipe, torch_device(device), start, correction)
        claim(out, recipe, parts, fresh)
        if prepare is not None and is_first_process():
            prepare()
    run = _Run(recipe, given, out, folder, start, shard_place(out, shards, recipe, parts))
    return run.train(started, device, log)


@dataclass(frozen=True)
class Given:
    """What a distillation starts from, checked.

    Attributes:
        recordings: by their identity.
        teachers: of the recipe.
        beside: a network that labels with the student in rounds, or None.
        fixed: labels by people, or None.
        licenses: of imported weights.
    """

    recordings: Mapping[str, Recording]
    teachers: Teachers
    beside: LidarTeacher | None
    fixed: CorrectedSweeps | None
    licenses: Sequence[str | None]

    @classmethod
    def open(
        cls,
        sources: Sequence[str],
        names: Sequence[str],
        recipe: Recipe,
        device: str,
        start: Path | None,
        correction: tuple[Path, float] | None,
    ) -> Given:
        """Open recordings and load networks.

        Raises:
            InputError: see `distill`.
        """
        lidar = load_lidar(recipe, device)
        space = student_space(recipe, lidar)
        for training in (recipe, recipe.of_round()):
            check_corruptions(training.augment.corrupt, space)
        licenses = [None if start is None else check_start(start, recipe, space)]
        beside = load_beside(recipe.rounds, space, device)
        licenses += [network.license for network in (lidar, beside) if network]
        teachers = load_teachers(recipe, lidar, space, device)
        named_sources = names[: len(sources)]
        recordings = open_recordings(sources, named_sources, lidar.inputs if lidar else None)
        if recipe.teacher is not None:
            check_cameras(recordings.values(), required=lidar is None)
        fixed = None
        if correction is not None:
            fixed = read_corrected(correction[0], recordings, space, correction[1])
        if is_first_process():
            note(diversity(recordings.values()).summary())
        return cls(recordings, teachers, beside, fixed, licenses)


@dataclass(frozen=True)
class _Run:
    """The work of a distillation, after its run directory was claimed."""

    recipe: Recipe
    given: Given
    out: Path
    cache: Path
    start: Path | None
    shards: str | None

    def train(self, started: float, device: str, log: Sequence[str]) -> dict[str, Any]:
        """Label, train, calibrate and write the checkpoint; the figures.

        Args:
            started: time at which the work began [s].
            device, log: see `distill`.
        """
        recipe, given, space = self.recipe, self.given, self.given.teachers.space
        # Observe every sweep once: classes of its points by the images, targets by a 3D teacher.
        observer = new_observer(recipe, given.teachers, self.cache)
        observations = observe(observer, given.recordings, "labeling sweeps")
        parts = (recipe, given.teachers, self.cache, given.fixed, self.shards)
        labeling = Labeling.of(observations, *parts)
        # Fuse the evidence of each scene over time, into labels also of points that no camera sees.
        labeled = labeling.label(self.out)
        found = Conflicts.of_counts(labeled.counts) if given.fixed else None
        for line in found.lines(space) if found else ():
            note(line)
        with first_process_first():
            exact = list(simulated_sweeps(recipe, space, self.cache))
        labeling_s = time.monotonic() - started
        held = held_out(labeled.sweeps, recipe.confidence.held_out)
        module = partial(self._module, held, exact)
        # Train a student to predict the labels from the points alone.
        first = (labeling, labeled.sweeps, module, self.out, device, given.beside, log)
        student, sweeps, training = train_in_rounds(*first)
        if not is_first_process():
            return training
        metrics = {
            **_account(given.recordings, observer, chosen(sweeps, ~held), given.teachers),
            "held_out": int(held.sum()),
            **({"corrected": found.figures(space)} if found else {}),
            "labeling_s": round(labeling_s, 1),
            **training,
        }
        # Calibrate its confidence by labels of the teachers alone.
        scaling = None
        if space != NO_CLASSES:
            scaling = calibrate(student, labeled.sweeps, held)
        self._finish(student, sweeps, metrics, scaling)
        return metrics

    def _module(
        self,
        held: npt.NDArray[np.bool_],
        exact: Sequence[TrainingSweep],
        sweeps: Sequence[TrainingSweep],
        recipe: Recipe,
    ) -> TrainingModule:
        """A new student with its objectives, for sweeps without those that are held out."""
        own, teachers = chosen(sweeps, ~held), self.given.teachers
        student = new_student(recipe, own, teachers.space, teachers.text, self.start)
        return new_module(student, chosen(sweeps, ~held, exact), recipe, teachers)

    def _finish(
        self,
        student: Student,
        sweeps: Sequence[TrainingSweep],
        metrics: dict[str, Any],
        scaling: ConfidenceScaling | None,
    ) -> None:
        given, recipe = self.given, self.recipe
        inputs = input_statistics(sweeps, given.recordings.values())
        license = " and ".join(dict.fromkeys(filter(None, given.licenses))) or None
        words, space = given.teachers.words(recipe), given.teachers.space
        finish(student, space, recipe, metrics, self.out, words, inputs, license, scaling)


def identities(
    sources: Sequence[str],
    recipe: Recipe,
    own: Collection[Path],
    start: Path | None,
    correction: tuple[Path, float] | None,
) -> list[str]:
    """What identifies a run beside its recipe: first its sources, then other runs and folders.

    Args:
        sources: bags, or reader:path.
        recipe: of the run.
        own: folders of the run, which do not belong to the sources.
        start: see `distill`.
        correction: folder of corrected labels and their weight, or None.
    """
    others = {"start": start, "teacher-3d": recipe.run_3d, "beside": recipe.rounds.beside}
    parts = [identity(source, own) for source in sources]
    parts += [part for name, path in others.items() for part in named(name, path)]
    if correction is not None:
        parts += [*named("corrected", correction[0]), f"corrected weight {correction[1]:g}"]
    return parts


def train_in_rounds(
    labeling: Labeling,
    sweeps: Sequence[TrainingSweep],
    module: Callable[[Sequence[TrainingSweep], Recipe], TrainingModule],
    out: Path,
    device: str,
    beside: LidarTeacher | None = None,
    log: Sequence[str] = (),
) -> tuple[Student, Sequence[TrainingSweep], dict[str, Any]]:
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
        sweeps = labeling.label(place, labeler).sweeps
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
