# SPDX-License-Identifier: Apache-2.0
"""Distillation, whole: recordings and a teacher in, a LiDAR-only segmenter out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.data import Recording, open_recording
from pcseg_core.distill.labeling import Labeled, Labeler, class_shares
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path, slug
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.module import DistillModule
from pcseg_core.learning.recipe import Recipe, TextConfig
from pcseg_core.learning.runs import bar, claim, console, finish, identity, on_gpu, train
from pcseg_core.learning.text import TextObjective, TextTeacher, load_text_teacher
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.vision.class_to_text import agree_with_labels
from pcseg_core.vision.pixel_classes import load_teacher


def distill(
    sources: Sequence[str],
    recipe: Recipe,
    out: Path,
    cache: Path | None = None,
    device: str = "auto",
    start: Path | None = None,
) -> dict[str, Any]:
    """Label recordings with the recipe's teacher and train a student on the labels.

    The same call goes on where an interrupted one stopped.

    Args:
        sources: bags, or reader:path.
        recipe: everything that decides the result.
        out: run directory; gets recipe.yaml, pseudo_labels/, logs/, last.ckpt and the checkpoint.
        cache: folder of labeled sweeps that several runs may share; default inside `out`.
        device: "auto", "cpu" or "cuda".
        start: run or checkpoint whose student is trained on, for example to learn words.

    Returns:
        Figures of the run, also written to metrics.json.

    Raises:
        InputError: unusable sources, weights or recipe, or a run directory of another recipe.
    """
    if recipe.optimizer.heads_only and start is None:
        raise InputError("optimizer.heads_only needs a run to start from; give --start RUN")
    claim(out, recipe, [*sources, *([f"start:{start}"] if start else [])])
    teacher = load_teacher(recipe.teacher, _device(device))
    text = load_text_teacher(recipe.text, teacher, _device(device)) if recipe.text else None
    recordings = {identity(s): open_recording(s) for s in sources}
    labeler = Labeler(
        teacher,
        recipe.teacher,
        recipe.labels,
        cache or out / "cache",
        with_features=recipe.loss.regression > 0,
        text=text.source if text else None,
    )
    started = time.monotonic()
    labeled = _label(labeler, recordings)
    if text and recipe.text and recipe.text.source == "classes":
        _agree(labeled, labeler, recipe.loss.min_confidence)
    sweeps = _store(labeled, out / "pseudo_labels")
    labeling_s = time.monotonic() - started
    student = _build(recipe, sweeps, len(labeler.space), text)
    if start is not None:
        _take_over(student, start, labeler.space)
    objective = _text_objective(recipe.text, text, sweeps) if recipe.text and text else None
    if objective is not None and student.text_head is not None:
        objective.prepare(student.text_head)
    training = _train(student, sweeps, recipe, out, device, objective)
    if objective is not None and student.text_head is not None:
        objective.restore(student.text_head)
    metrics = {
        "sweeps": len(sweeps),
        "skipped": dict(
            sum((recording.skipped for recording in recordings.values()), labeler.skipped)
        ),
        "poses": {name: recording.pose_source for name, recording in recordings.items()},
        "class_shares": class_shares(labeled, labeler.space),
        "labeling_s": round(labeling_s, 1),
        **training,
    }
    words = text.checkpoint_text(recipe.text) if recipe.text and text else None
    finish(student, labeler.space, recipe, metrics, out, words)
    return metrics


def _device(device: str) -> str:
    return "cuda" if on_gpu(device) else "cpu"


def _label(labeler: Labeler, recordings: dict[str, Recording]) -> list[Labeled]:
    with bar() as progress:
        task = progress.add_task("labeling sweeps", total=None)
        labeled = labeler.label(
            recordings,
            lambda _stage, done, total: progress.update(task, completed=done, total=total),
        )
    for reason, count in labeler.skipped.most_common():
        console.print(f"[yellow]skipped {count} sweep(s):[/] {reason}", highlight=False)
    return labeled


def _store(labeled: list[Labeled], folder: Path) -> list[TrainingSweep]:
    """Write what the student trains on; baselines are fitted to the same files."""
    sweeps: list[TrainingSweep] = []
    for item in labeled:
        seen = item.seen
        has_features = len(seen.feature_index) > 0
        sweep = TrainingSweep(
            seen.xyz,
            seen.intensity,
            item.labels,
            item.confidence,
            item.scene,
            seen.features if has_features else None,
            seen.feature_index if has_features else None,
        )
        path = folder / f"{len(sweeps):05d}-{slug(item.name)}.npz"
        if not path.is_file():
            with atomic_path(path) as temporary:
                sweep.save(temporary)
        sweeps.append(sweep)
    return sweeps


def _agree(labeled: list[Labeled], labeler: Labeler, minimum: float) -> None:
    """Correct the class probabilities of pixels by the labels that many frames agreed on."""
    classes = len(labeler.groups)
    for item in labeled:
        index, values = item.seen.feature_index, item.seen.features
        sure = item.confidence[index] >= minimum
        voted = np.where(sure, item.labels[index], IGNORE)
        kept = agree_with_labels(values[:, -classes:], voted, labeler.groups)
        values[:, -classes:] = kept.astype(values.dtype)


def _build(
    recipe: Recipe, sweeps: list[TrainingSweep], classes: int, text: TextTeacher | None
) -> Student:
    torch.manual_seed(recipe.seed)
    config = recipe.student
    if recipe.loss.regression > 0:
        sizes = {s.features.shape[1] for s in sweeps if s.features is not None}
        size = (sizes.pop() if sizes else 0) - (text.source.channels if text else 0)
        config = config.model_copy(update={"feature_channels": max(0, size)})
    if text:
        config = config.model_copy(update={"text_channels": text.channels})
    return Student(config, classes)


def _take_over(student: Student, start: Path, space: LabelSpace) -> None:
    """Copy the network, and heads of the same shape, of another run.

    Raises:
        InputError: no checkpoint there, another network, or other classes.
    """
    state, meta = load_checkpoint(start)
    if meta.label_space["name"] != space.name:
        raise InputError(
            f"--start {start} has the classes '{meta.label_space['name']}', the recipe "
            f"'{space.name}'; start from a run of the same label space"
        )
    own = student.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    missing = [k for k in own if k.startswith("network.") and k not in fitting]
    if missing or student.config.inputs != StudentConfig.model_validate(meta.student).inputs:
        raise InputError(
            f"--start {start} is another network (first difference: "
            f"{missing[0] if missing else 'inputs'}); use its student section in the recipe"
        )
    student.load_state_dict({**own, **fitting})


def _text_objective(
    config: TextConfig, text: TextTeacher, sweeps: list[TrainingSweep]
) -> TextObjective:
    if config.source != "classes":
        return TextObjective(config, text.matrix, None)
    classes = len(text.matrix)
    counts = np.zeros(classes)
    for sweep in sweeps:
        if sweep.features is not None:
            counts += sweep.features[:, -classes:].sum(0, dtype=np.float64)
    return TextObjective(config, text.matrix, counts / max(counts.sum(), 1.0))


def _train(
    student: Student,
    sweeps: list[TrainingSweep],
    recipe: Recipe,
    out: Path,
    device: str,
    text: TextObjective | None,
) -> dict[str, Any]:
    """Train to the recipe's last step, from the last stored epoch if there is one."""
    module = DistillModule(student, sweeps, recipe, text)
    config = recipe.optimizer
    return train(module, config.steps, config.gradient_clip, out, device)
