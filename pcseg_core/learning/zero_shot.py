# SPDX-License-Identifier: Apache-2.0
"""Zero-shot learning: labels of some classes and an image teacher in, all classes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.checkpoint import CheckpointText
from pcseg_core.data import Recording, open_recording
from pcseg_core.distill.observation import ClassEvidence, Observer, StoredObservation
from pcseg_core.distill.pixels import PixelSampler
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.distributed import first_process_first, from_first, join
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives import Objective
from pcseg_core.learning.objectives.alignment import Alignment
from pcseg_core.learning.objectives.segmentation import WordSegmentation, label_counts
from pcseg_core.learning.probe import Scan, by_point, read_scans, run_student
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.run_folder import claim, identity, is_first_process, resumed
from pcseg_core.learning.runs import (
    all_skipped,
    finish,
    input_statistics,
    observe,
    on_gpu,
    open_recordings,
    shard_place,
    torch_device,
)
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.taught_student import image_channels, self_training
from pcseg_core.learning.teachers import load_split_teacher
from pcseg_core.learning.trainer import train
from pcseg_core.learning.zero_shot_labels import hold_out, label_sweeps, zero_shot_labels
from pcseg_core.learning.zero_shot_split import Split
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.zero_shot import ZeroShotFigures, choose_gamma, stacked
from pcseg_core.models.student import Student, cosine_logits
from pcseg_core.vision.class_to_text import class_matrix
from pcseg_core.vision.text_space import TextSpace, load_text_space, table_of

Array = npt.NDArray[Any]
_GRID = tuple(np.arange(0, 2.0001, 0.02).round(4))  # of gamma, in cosines
_CALIBRATION_POINTS = 400_000


def zero_shot(
    sources: Sequence[str],
    test: Sequence[Scan] | Sequence[str],
    split: Split,
    recipe: Recipe,
    out: Path,
    cache: Path | None = None,
    device: str = "auto",
    every: int = 1,
    fresh: bool = False,
    log: Sequence[str] = (),
    shards: str | None = None,
) -> dict[str, Any]:
    """Train on true labels of seen classes and image labels of unseen ones, and measure both.

    Interrupted runs resume: make the same call again. A finished run returns its figures, unless
    the test recordings are others: those are measured. Returns what metrics.json also holds. Under
    torchrun the processes share the sweeps and the steps; only the first one returns all figures.

    Args:
        sources: recordings with images, labeled unless the recipe is annotation-free.
        test: labeled recordings, or their scans.
        split: seen and unseen classes.
        recipe: of the run, with supervision.
        out: run directory; gets recipe.yaml, logs/, last.ckpt, metrics.json and the checkpoint.
        cache: folder of observations that several runs may share; default inside `out`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        every: only every k-th sweep is trained on.
        fresh: delete an earlier run in `out`, once everything is known to be usable.
        log: trackers of the losses besides logs/metrics.csv, see `trackers.Trackers`.
        shards: folder or URL of the prepared sweeps, see `shards`; memory holds them if not given.

    Raises:
        InputError: unusable sources, weights, words or recipe, or a directory of another run.
        KeyboardInterrupt: a signal ended the training.
    """
    if recipe.supervision is None or recipe.text is None:
        raise InputError("zero-shot learning needs a recipe with 'supervision'")
    fresh = fresh and is_first_process()
    join(on_gpu(device))
    with first_process_first():
        names = [identity(source, (out, cache or out)) for source in sources]
        parts = [*names, f"split {split.model_dump_json()}", f"every {every}"]
        tested = [entry.name if isinstance(entry, Scan) else identity(entry) for entry in test]
        if (figures := resumed(out, recipe, parts, fresh, tested=tested)) is not None:
            return figures
        recordings, tests = open_recordings(sources, names), open_tests(test)
        space = load_text_space(recipe.text.space, torch_device(device))
        words = split.class_words(space)
        observer = new_observer(recipe, split, space, words, cache or out / "cache", device)
        claim(out, recipe, parts, fresh)
    run = _Run(split, recipe, out, device, recordings, tests, space, words, observer)
    return run.train({"tested": tested}, every, log, shard_place(out, shards, recipe, parts))


@dataclass(frozen=True)
class _Run:
    """The work of a zero-shot run, after its run directory was claimed."""

    split: Split
    recipe: Recipe
    out: Path
    device: str
    recordings: Mapping[str, Recording]
    tests: Sequence[Scan | Recording]
    space: TextSpace
    words: dict[str, tuple[str, ...]]
    observer: Observer

    def train(
        self, figures: dict[str, Any], every: int, log: Sequence[str], shards: str | None
    ) -> dict[str, Any]:
        """Observe, label, train and measure; the figures, after those that are given."""
        split, recipe = self.split, self.recipe
        # Observe every sweep once: true labels, and the classes of its points by the images.
        observed = observe(self.observer, self.recordings, "observing sweeps", every)
        # Label seen classes by the truth and unseen ones by the images; hold out some scenes.
        kept, held = hold_out(observed, recipe.stacking.held_out)
        sweeps, quality = label_sweeps(kept, split, recipe, shards)
        # Train a student whose classifier is the cosine with the words of the classes.
        vectors = torch.from_numpy(class_matrix(self.space, self.words))
        module = new_module(sweeps, vectors, split, recipe)
        training = train(module, self.out, self.device, log)
        if not is_first_process():
            return training
        # Measure, also with the bias toward seen classes calibrated on the held-out scenes.
        classifier = CosineClassifier(module.student, vectors, torch_device(self.device))
        scans = _scans(self.tests, split, recipe)
        metrics = {
            "sweeps": len(sweeps),
            **figures,
            "held_out": len(held),
            "skipped": all_skipped(self.recordings, self.observer),
            "labels": quality,
            **_measured(classifier, held, scans, split, recipe),
            **training,
        }
        assert recipe.text is not None
        known = _checkpoint_text(self.space, self.words, recipe.text.temperature)
        inputs = input_statistics(sweeps, self.recordings.values())
        finish(module.student, split.space, recipe, metrics, self.out, known, inputs)
        return metrics


def _measured(
    classifier: CosineClassifier,
    held: Sequence[StoredObservation],
    scans: Iterable[Scan],
    split: Split,
    recipe: Recipe,
) -> dict[str, Any]:
    """Gamma and figures of a classifier, which is then folded into the student."""
    assert recipe.text is not None
    gamma = _gamma(classifier, held, split.mask, recipe)
    figures = measure(classifier, scans, split, gamma)
    classifier.fold(split.mask, gamma, recipe.text.temperature)
    return {"gamma": gamma, **{k: v.model_dump() for k, v in figures.items()}}


def _checkpoint_text(
    space: TextSpace, words: dict[str, tuple[str, ...]], temperature: float
) -> CheckpointText:
    table = table_of(space, [word for group in words.values() for word in group])
    return CheckpointText(table, words, temperature)


def new_observer(
    recipe: Recipe,
    split: Split,
    text: TextSpace,
    words: dict[str, tuple[str, ...]],
    folder: Path,
    device: str,
) -> Observer:
    """Observes truth, class evidence by words, and image features with their patches."""
    on = torch_device(device)
    teacher, features, known = load_split_teacher(recipe, split, text, words, on)
    patch_px = recipe.alignment.patch_px if recipe.alignment is not None else None
    return Observer(
        folder,
        space=split.space,
        evidence=ClassEvidence(teacher, recipe.labels, known, split.space, required=False),
        pixels=PixelSampler(recipe.labels, known, image=features, patch_px=patch_px),
    )


def new_module(
    sweeps: Sequence[TrainingSweep], vectors: Tensor, split: Split, recipe: Recipe
) -> TrainingModule:
    """A new student with the objectives of a recipe with supervision, on labeled sweeps.

    Args:
        sweeps: labeled sweeps.
        vectors: (C, D) unit text vectors of the classes.
        split: seen and unseen classes.
        recipe: everything else.
    """
    assert recipe.text is not None
    torch.manual_seed(recipe.seed)
    config = recipe.student.model_copy(update={"text_channels": vectors.shape[1]})
    student = Student(config, len(split.space))
    hidden = torch.from_numpy(split.mask)
    # Classes without examples are not negatives either: they compete in the test only.
    excluded = hidden if recipe.supervision == "seen" else torch.zeros_like(hidden)
    sectors = LabeledSectors(sweeps, recipe, split.space)
    counts = from_first(lambda: label_counts(sweeps, len(vectors), sectors.required))
    objectives: list[Objective] = [
        WordSegmentation(recipe.loss, counts, vectors, recipe.text.temperature, excluded)
    ]
    if recipe.alignment is not None and recipe.alignment.active:
        width = student.network.feature_channels
        objectives.append(Alignment(width, max(1, image_channels(sweeps)), recipe.alignment))
    # Without true labels the network may label every class itself.
    free = recipe.supervision == "annotation-free"
    return TrainingModule(
        student,
        objectives,
        sectors,
        recipe.optimizer,
        self_training=self_training(recipe, torch.ones_like(hidden) if free else hidden),
    )


def open_tests(test: Iterable[Scan | str]) -> list[Scan | Recording]:
    """Open the recordings to measure on.

    Raises:
        InputError: an unusable recording, or one without labels.
    """
    opened = [entry if isinstance(entry, Scan) else open_recording(entry) for entry in test]
    for recording in opened:
        if not isinstance(recording, Scan) and recording.label_space is None:
            raise InputError(f"{recording.name} has no labels to measure on; choose another test")
    return opened


def _scans(test: Iterable[Scan | Recording], split: Split, recipe: Recipe) -> Iterator[Scan]:
    for entry in test:
        if isinstance(entry, Scan):
            yield entry
        else:
            yield from read_scans(entry, split.space, recipe.student.max_range_m)


class CosineClassifier:
    """Cosines of the features of points with the words of the classes.

    Args:
        student: with a text head, trained.
        vectors: (C, D) unit vectors of the classes.
        device: where it runs.

    Attributes:
        mean_norm: mean length so far of the text head's outputs, before normalization.
    """

    def __init__(self, student: Student, vectors: Tensor, device: str = "cpu") -> None:
        self.student = student.to(device).eval()
        self.vectors = vectors.to(device)
        self._norms, self._voxels = 0.0, 0

    @property
    def mean_norm(self) -> float:
        """See the class."""
        return self._norms / max(1, self._voxels)

    @torch.no_grad()
    def __call__(self, xyz: Array, intensity: Array) -> Array:
        """(N, C) float32 cosines of points (N, 3), (N,)."""
        output = run_student(self.student, xyz, intensity)
        assert output.text is not None and self.student.text_head is not None
        norms = self.student.text_head(output.features).norm(dim=1)
        self._norms += float(norms.sum())
        self._voxels += len(norms)
        return by_point(cosine_logits(output.text, self.vectors, 1.0), output)

    @torch.no_grad()
    def fold(self, unseen: npt.NDArray[np.bool_], gamma: float, temperature: float) -> None:
        """Write the cosines into the student's linear classifier, which needs no words.

        Without stacking the best class is the same. Gamma and the confidence assume that every
        feature has the mean length.

        Args:
            unseen: (C,) bool.
            gamma: of calibrated stacking, in cosines.
            temperature: of the cosines.
        """
        head, linear = self.student.text_head, self.student.network.classifier
        assert head is not None
        scale = 1 / (temperature * max(self.mean_norm, 1e-6))
        linear.weight.copy_(self.vectors @ head.weight * scale)
        taken = torch.from_numpy(~unseen).to(self.vectors) * gamma / temperature
        linear.bias.copy_(self.vectors @ head.bias * scale - taken)


def _gamma(
    classifier: CosineClassifier,
    held: Sequence[StoredObservation],
    unseen: npt.NDArray[np.bool_],
    recipe: Recipe,
) -> float:
    """Gamma by the true labels of seen classes on held-out sweeps; 0 without labels."""
    if recipe.supervision == "annotation-free":
        return 0.0
    rng = np.random.default_rng(recipe.seed)
    share = _CALIBRATION_POINTS / sum(len(stored.load().xyz) for stored in held)
    scores, truths = [], []
    for stored in held:
        sweep = stored.load()
        assert sweep.truth is not None
        none = np.zeros((len(sweep.truth), len(unseen)))
        truth, _ = zero_shot_labels(sweep.truth, none, unseen, "seen")
        drawn = rng.random(len(truth)) < share
        scores.append(classifier(sweep.xyz, sweep.intensity)[drawn])
        truths.append(truth[drawn].astype(np.int64))
    known = np.concatenate(truths)
    if not (known != IGNORE).any():
        return 0.0
    return choose_gamma(np.concatenate(scores), known, unseen, _GRID, recipe.stacking.tolerance)


def measure(
    classifier: CosineClassifier, scans: Iterable[Scan], split: Split, gamma: float
) -> dict[str, ZeroShotFigures]:
    """Figures without ("plain") and with calibrated stacking ("stacked").

    Raises:
        InputError: no labeled point.
    """
    space, unseen = split.space, split.mask
    totals = {"plain": Confusion(len(space)), "stacked": Confusion(len(space))}
    for scan in scans:
        scores = classifier(scan.xyz, scan.intensity)
        for (_, total), value in zip(totals.items(), (0.0, gamma)):
            total.update(stacked(scores, unseen, value), scan.truth)
            total.unpredicted += scan.missed
    if not totals["plain"].points:
        raise InputError("the test recordings have no labeled point of these classes")
    return {k: ZeroShotFigures.of(v, space.names, unseen) for k, v in totals.items()}
