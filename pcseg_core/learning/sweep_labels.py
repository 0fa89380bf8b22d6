# SPDX-License-Identifier: Apache-2.0
"""Labels of the sweeps of a training: by teachers, by people, and by a student in rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core import copies
from pcseg_core.data import Recording
from pcseg_core.distill.cache import is_whole
from pcseg_core.distill.corrected import CorrectedSweeps
from pcseg_core.distill.ground import ground_classes
from pcseg_core.distill.labeling import LabelModel, Labels, fit_label_model, label_scene
from pcseg_core.distill.lidar_teacher import LidarTargets, LidarTeacher, read_targets, store_targets
from pcseg_core.distill.observation import (
    ClassEvidence,
    Observation,
    Observer,
    StoredObservation,
    scenes,
)
from pcseg_core.distill.pixels import PixelSampler, PointPixels
from pcseg_core.errors import InputError
from pcseg_core.files import slug
from pcseg_core.labels import IGNORE, NO_CLASSES, LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.distributed import from_first, ranks, wait_for_all
from pcseg_core.learning.objectives.segmentation import label_counts
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.self_labels import SelfLabeler
from pcseg_core.learning.shards import Prepared, Unit, prepared
from pcseg_core.learning.teachers import Teachers
from pcseg_core.progress import bar, note
from pcseg_core.vision.class_to_text import agree_with_labels

Array = npt.NDArray[Any]


def new_observer(recipe: Recipe, teachers: Teachers, folder: Path) -> Observer:
    """Observes what the objectives of a recipe need: class evidence, image features, words."""
    teacher, text = teachers.camera, teachers.text
    if teacher is None:
        return Observer(folder)
    known = recipe.required_teacher().identity
    aligned = recipe.alignment is not None and recipe.alignment.active
    pixels = None
    if recipe.loss.regression or text or aligned:
        pixels = PixelSampler(
            recipe.labels,
            {"teacher": known, "words": text.identity if text else None},
            image=teacher.features if recipe.loss.regression or aligned else None,
            text=text.source.features if text else None,
            patch_px=recipe.alignment.patch_px if recipe.alignment and aligned else None,
        )
    alone = teachers.lidar is None
    evidence = ClassEvidence(teacher, recipe.labels, known, required=alone)
    return Observer(folder, evidence=evidence, pixels=pixels)


def label_model(observations: Sequence[StoredObservation], recipe: Recipe) -> LabelModel:
    """What labeling estimates from all observations; nothing without a camera teacher."""
    if recipe.teacher is None:
        return LabelModel()
    loaded = ([stored.load() for stored in members] for _, members in scenes(observations))
    return fit_label_model(loaded, recipe.labels)


def observe_targets(
    teacher: LidarTeacher, observations: Sequence[StoredObservation], folder: Path
) -> list[Path]:
    """Files of the targets of a 3D teacher, with a progress bar; prints their size.

    Several processes share the sweeps.
    """
    lacking = [name for name, known in zip(teacher.space.names, teacher.knows) if not known]
    if teacher.has_classes and lacking:
        note(f"3D teacher {teacher.name}: no class for {', '.join(lacking)}")
    with bar("targets of the 3D teacher") as progress:
        rank, world = ranks()
        if world > 1:
            store_targets(observations[rank::world], teacher, folder, progress)
            wait_for_all()
        paths = store_targets(observations, teacher, folder, progress)
    size = sum(map(copies.size, paths)) / 1e6
    note(f"targets of the 3D teacher: {size:.0f} MB, {size / len(paths):.1f} MB per sweep")
    return paths


@dataclass(frozen=True)
class Labeling:
    """Labels the sweeps of a run, at first and in each round.

    Attributes:
        observations: with class evidence, if there is a camera teacher.
        recipe: how evidence becomes labels.
        teachers: of the recipe.
        model: estimated from the observations, see `label_model`.
        targets: file of the 3D teacher for each observation, if there is one.
        corrected: labels of some sweeps by people, which override all others.
        shards: folder or URL of the prepared sweeps; None keeps them in memory.
    """

    observations: Sequence[StoredObservation]
    recipe: Recipe
    teachers: Teachers
    model: LabelModel
    targets: Sequence[Path] | None = None
    corrected: CorrectedSweeps | None = None
    shards: str | None = None

    @classmethod
    def of(
        cls,
        observations: Sequence[StoredObservation],
        recipe: Recipe,
        teachers: Teachers,
        cache: Path,
        corrected: CorrectedSweeps | None = None,
        shards: str | None = None,
    ) -> Labeling:
        """With targets by the 3D teacher, stored in `cache`, and a fitted model."""
        lidar = teachers.lidar
        targets = observe_targets(lidar, observations, cache) if lidar else None
        model = from_first(lambda: label_model(observations, recipe))
        return cls(observations, recipe, teachers, model, targets, corrected, shards)

    def label(self, out: Path, labeler: SelfLabeler | None = None) -> Prepared:
        """Label the sweeps scene by scene, and store points and labels.

        Several processes share the scenes. The counts are those of `Conflicts`.

        Args:
            out: its folder pseudo_labels gets an npz per sweep, which baselines are fitted to.
            labeler: a student of an earlier round, which adds its evidence for all points.
        """
        units: list[Unit] = []
        first = 0
        for _, members in scenes(self.observations):
            units.append((f"{first:08d}", partial(self._scene, members, first, out, labeler)))
            first += len(members)
        of = "labels" if labeler is None else out.name
        place = None if self.shards is None else f"{self.shards}/{of}"
        return prepared(
            units, place, self.corrected.conflicts.counts if self.corrected else Counter
        )

    def _scene(
        self,
        members: Sequence[StoredObservation],
        first: int,
        out: Path,
        labeler: SelfLabeler | None,
    ) -> Iterator[TrainingSweep]:
        """Label the sweeps of a scene, the first of which is number `first` of the run."""
        seen = [stored.load() for stored in members]
        own = labeler.scene(seen) if labeler is not None else None
        labels = _camera_labels(seen, self.recipe, self.model, own)
        if self.corrected is not None:
            labels = self.corrected.override(seen, labels, self.recipe.labels)
        for number, (sweep, (label, confidence)) in enumerate(zip(seen, labels), start=first):
            labeled = self._sweep(sweep, label, confidence, number)
            path = out / "pseudo_labels" / f"{number:05d}-{slug(sweep.name)}.npz"
            if not is_whole(path):
                labeled.save(path)
            yield labeled

    def _sweep(
        self, sweep: Observation, label: Array, confidence: Array, number: int
    ) -> TrainingSweep:
        pixels, recipe = sweep.pixels, self.recipe
        if pixels is not None and recipe.text and recipe.text.source == "classes":
            sure = np.where(confidence >= recipe.loss.min_confidence, label, IGNORE)
            pixels = replace(pixels, text=_agreed(pixels, sure, self.teachers.groups))
        labeled = TrainingSweep(sweep.xyz, sweep.intensity, label, confidence, sweep.scene, pixels)
        if self.targets is not None:
            lidar = read_targets(self.targets[number])
            if self.corrected is not None:
                lidar = self.corrected.without_targets(sweep, lidar)
            labeled.lidar = lidar
            _add_labels(labeled, lidar, recipe)
        return labeled


def _camera_labels(
    sweeps: Sequence[Observation],
    recipe: Recipe,
    model: LabelModel,
    student: Sequence[Array] | None,
) -> list[Labels]:
    """Labels of the sweeps of a scene by the camera teacher; none without one."""
    if recipe.teacher is not None:
        if student is not None:
            student = [recipe.rounds.weight * probabilities for probabilities in student]
        ground = ground_classes(LabelSpace.load(recipe.labels.label_space))
        told_apart = np.flatnonzero(ground).tolist() if recipe.rounds.split_ground else ()
        return label_scene(sweeps, recipe.labels, model, student, told_apart)
    counts = [len(sweep.xyz) for sweep in sweeps]
    return [(np.full(n, IGNORE, np.int16), np.zeros(n, np.float32)) for n in counts]


def _add_labels(sweep: TrainingSweep, targets: LidarTargets, recipe: Recipe) -> None:
    """Label the points without a confident camera label by the 3D teacher."""
    assert recipe.teacher_3d is not None
    if recipe.teacher_3d.labels:
        label, confidence = targets.labels()
        open_ = (sweep.confident(recipe.loss.min_confidence) == IGNORE) & (label != IGNORE)
        sweep.label = np.where(open_, label, sweep.label)
        sweep.confidence = np.where(open_, confidence, sweep.confidence)


def _agreed(pixels: PointPixels, labels: Array, groups: Array) -> Array:
    """Class probabilities of pixels, corrected by the labels that many sweeps agreed on."""
    assert pixels.text is not None
    kept = agree_with_labels(pixels.text[:], labels[pixels.point], groups)
    return kept.astype(np.float16)


def read_corrected(
    folder: Path, recordings: Mapping[str, Recording], space: LabelSpace, weight: float
) -> CorrectedSweeps:
    """The corrected labels of the recordings of a run.

    Raises:
        InputError: see `read_corrections`; or the recipe learns no classes.
    """
    if space == NO_CLASSES:
        raise InputError(f"{folder}: the recipe learns no classes; give one that learns labels")
    return CorrectedSweeps.read(folder, recordings, space, weight)


def class_shares(sweeps: Sequence[TrainingSweep], space: LabelSpace) -> dict[str, float]:
    """Share of each class among all labels."""
    counts = label_counts(sweeps, len(space), 0.0).sum(1)
    return dict(zip(space.names, (counts / max(1, counts.sum())).round(5).tolist()))
