# SPDX-License-Identifier: Apache-2.0
"""Zero-shot learning, whole: labels of some classes and an image teacher in, all classes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcseg_core.checkpoint import CheckpointText
from pcseg_core.data import open_recording
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.learning.probe import Scan, read_scans
from pcseg_core.learning.runs import bar, claim, console, finish, identity, on_gpu, train
from pcseg_core.learning.zero_shot_data import Observed, Observer
from pcseg_core.learning.zero_shot_labels import (
    AlignedSweep,
    hold_out,
    training_sweeps,
    zero_shot_labels,
)
from pcseg_core.learning.zero_shot_module import ZeroShotModule
from pcseg_core.learning.zero_shot_recipe import ZeroShotRecipe
from pcseg_core.learning.zero_shot_split import Split
from pcseg_core.learning.zero_shot_teacher import load_image_teacher
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.metrics.zero_shot import ZeroShotFigures, choose_gamma, stacked
from pcseg_core.models.student import Points, Student, cosine_logits
from pcseg_core.vision.class_to_text import class_matrix
from pcseg_core.vision.text_space import TextSpace, load_text_space, table_of

Array = npt.NDArray[Any]
_GRID = tuple(np.arange(0, 2.0001, 0.02).round(4))  # of gamma, in cosines
_CALIBRATION_POINTS = 400_000


def zero_shot(
    sources: Sequence[str],
    test: Sequence[Scan] | Sequence[str],
    split: Split,
    recipe: ZeroShotRecipe,
    out: Path,
    cache: Path | None = None,
    device: str = "auto",
    every: int = 1,
) -> dict[str, Any]:
    """Train on some labeled classes and what images say of the others; measure all of them.

    The same call goes on where an interrupted one stopped.

    Args:
        sources: recordings with images, labeled unless the recipe is annotation-free.
        test: labeled recordings, or their scans.
        split: which classes are never labeled.
        recipe: everything else that decides the result.
        out: run directory; gets recipe.yaml, logs/, last.ckpt, metrics.json and the checkpoint.
        cache: folder of looked-at sweeps that several runs may share; default inside `out`.
        device: "auto", "cpu" or "cuda".
        every: only every k-th sweep is trained on.

    Returns:
        Figures of the run, also written to metrics.json.

    Raises:
        InputError: unusable sources, weights, words or recipe, or a directory of another run.
    """
    claim(out, recipe, [*sources, f"split {split.model_dump_json()}", f"every {every}"])
    text = load_text_space(recipe.text, "cuda" if on_gpu(device) else "cpu")
    words = split.class_words(text)
    observed, skipped = _observe(
        sources, split, recipe, text, words, cache or out / "cache", every, device
    )
    kept, held = hold_out(observed, recipe.stacking.held_out)
    unseen = split.mask
    sweeps = training_sweeps(kept, unseen, recipe.supervision, recipe.labels.consolidation)
    _check_labels([sweep.label for sweep in sweeps], recipe)
    vectors = torch.from_numpy(class_matrix(text, words))
    torch.manual_seed(recipe.seed)
    config = recipe.student.model_copy(update={"text_channels": vectors.shape[1]})
    student = Student(config, len(split.space))
    module = ZeroShotModule(student, sweeps, vectors, torch.from_numpy(unseen), recipe)
    training = train(module, recipe.optimizer.steps, recipe.optimizer.gradient_clip, out, device)
    classifier = CosineClassifier(student, vectors, "cuda" if on_gpu(device) else "cpu")
    gamma = _gamma(classifier, held, unseen, recipe)
    measured = measure(classifier, _scans(test, split, recipe), split, gamma)
    metrics = {
        "sweeps": len(sweeps),
        "held_out": len(held),
        "skipped": dict(skipped),
        "labels": _label_quality(kept, sweeps, split, recipe.loss.min_confidence),
        "gamma": gamma,
        **{k: v.model_dump() for k, v in measured.items()},
        **training,
    }
    fold_classifier(student, vectors, unseen, gamma, recipe.temperature, classifier.mean_norm)
    known = CheckpointText(
        table_of(text, [w for group in words.values() for w in group]), words, recipe.temperature
    )
    finish(student, split.space, recipe, metrics, out, known)
    return metrics


def _observe(
    sources: Sequence[str],
    split: Split,
    recipe: ZeroShotRecipe,
    text: TextSpace,
    words: dict[str, tuple[str, ...]],
    cache: Path,
    every: int,
    device: str,
) -> tuple[list[Observed], Any]:
    teacher, features, parts = load_image_teacher(recipe, split, text, words, device)
    observer = Observer(teacher, features, recipe.labels, recipe.alignment.patch_px, cache, parts)
    recordings = {identity(source): open_recording(source) for source in sources}
    with bar() as progress:
        task = progress.add_task("looking at images", total=None)
        observed = observer.observe(
            recordings,
            every,
            lambda _s, done, total: progress.update(task, completed=done, total=total),
        )
    for reason, count in observer.skipped.most_common():
        console.print(f"[yellow]skipped {count} sweep(s):[/] {reason}", highlight=False)
    return observed, sum((recording.skipped for recording in recordings.values()), observer.skipped)


def _check_labels(labels: Sequence[Array], recipe: ZeroShotRecipe) -> None:
    if not any((part != IGNORE).any() for part in labels):
        raise InputError(
            f"no point of the training sweeps has a label under supervision "
            f"'{recipe.supervision}'; it needs labeled recordings, or images for "
            "'annotation-free'"
        )


def _scans(
    test: Sequence[Scan] | Sequence[str], split: Split, recipe: ZeroShotRecipe
) -> Iterator[Scan]:
    for entry in test:
        if isinstance(entry, Scan):
            yield entry
        else:
            yield from read_scans(open_recording(entry), split.space, recipe.student.max_range_m)


class CosineClassifier:
    """Cosines of points with the classes, from points alone.

    Args:
        student: with a text head, trained.
        vectors: (C, D) unit vectors of the classes.
        device: where it runs.

    Attributes:
        mean_norm: mean length of the text head's outputs, before they are normalized, so far.
    """

    def __init__(self, student: Student, vectors: Tensor, device: str = "cpu") -> None:
        self.student = student.to(device).eval()
        self.vectors, self.device = vectors.to(device), torch.device(device)
        self._norms, self._voxels = 0.0, 0

    @property
    def mean_norm(self) -> float:
        """See the class."""
        return self._norms / max(1, self._voxels)

    @torch.no_grad()
    def __call__(self, xyz: Array, intensity: Array) -> Array:
        """(N, C) float32 cosines of points (N, 3), (N,)."""
        batch = torch.zeros(len(xyz), dtype=torch.int64)
        points = Points(torch.from_numpy(xyz), torch.from_numpy(intensity), batch)
        output = self.student(points.to(self.device))
        assert output.text is not None and self.student.text_head is not None
        norms = self.student.text_head(output.features).norm(dim=1)
        self._norms += float(norms.sum())
        self._voxels += len(norms)
        cosines = cosine_logits(output.text, self.vectors, 1.0)
        found: Array = cosines[output.voxels.inverse].cpu().numpy()
        return found


def _gamma(
    classifier: CosineClassifier,
    held: Sequence[Observed],
    unseen: npt.NDArray[np.bool_],
    recipe: ZeroShotRecipe,
) -> float:
    """Gamma from the true labels of seen classes on held-out sweeps; 0 without any truth."""
    rng = np.random.default_rng(recipe.seed)
    scores, truths = [], []
    for sweep in held:
        truth, _ = zero_shot_labels(
            sweep.truth, np.zeros((len(sweep.truth), len(unseen))), unseen, "seen"
        )
        drawn = rng.random(len(truth)) < _CALIBRATION_POINTS / sum(len(s.truth) for s in held)
        scores.append(classifier(sweep.xyz, sweep.intensity)[drawn])
        truths.append(truth[drawn].astype(np.int64))
    known = np.concatenate(truths) if truths else np.zeros(0, np.int64)
    if recipe.supervision == "annotation-free" or not (known != IGNORE).any():
        return 0.0
    grid, tolerance = _GRID, recipe.stacking.tolerance
    return choose_gamma(np.concatenate(scores), known, unseen, grid, tolerance)


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


def _label_quality(
    kept: Sequence[Observed], sweeps: Sequence[AlignedSweep], split: Split, minimum: float
) -> dict[str, float]:
    """How many points of unseen classes got a label from images, and how many of these are right.

    For the report alone; training does not see it.
    """
    labels = np.concatenate([sweep.confident(minimum) for sweep in sweeps])
    truth = np.concatenate([sweep.truth for sweep in kept])
    hidden = (truth >= 0) & split.mask[truth]
    given = hidden & (labels != IGNORE)
    right = given & (labels == truth)
    return {
        "unseen_points": int(hidden.sum()),
        "labeled": float(given.sum() / max(1, hidden.sum())),
        "right": float(right.sum() / max(1, given.sum())),
    }


@torch.no_grad()
def fold_classifier(
    student: Student,
    vectors: Tensor,
    unseen: npt.NDArray[np.bool_],
    gamma: float,
    temperature: float,
    mean_norm: float,
) -> None:
    """Put the cosine classifier into the plain linear one, which a node runs without words.

    The best class is the same without stacking; gamma and the confidence take every feature to
    have the mean length.

    Args:
        student: trained, changed in place.
        vectors: (C, D) unit vectors of the classes.
        unseen: (C,) bool.
        gamma: of calibrated stacking, in cosines.
        temperature: of the cosine classifier.
        mean_norm: mean length of the text head's outputs.
    """
    head, linear = student.text_head, student.network.classifier
    assert head is not None
    scale = 1 / (temperature * max(mean_norm, 1e-6))
    rows = vectors.to(head.weight.device)
    linear.weight.copy_(rows @ head.weight * scale)
    taken = torch.from_numpy(~unseen).to(rows) * gamma / temperature
    linear.bias.copy_(rows @ head.bias * scale - taken)
