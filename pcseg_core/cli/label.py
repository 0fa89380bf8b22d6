# SPDX-License-Identifier: Apache-2.0
"""`pcseg label`: automatic labels of a recording from its cameras, in SemanticKITTI format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import RecipeName
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from pcseg_core.online.auto_labels import AutoLabels


def label(
    source: Annotated[str, typer.Argument(help="A bag, or reader:path (kitti-raw:PATH, ...).")],
    recipe: RecipeName,
    out: Annotated[Path, typer.Option(help="Folder of labels, new or to resume.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Student whose labels are written to student/.")
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Points with less confidence become unlabeled.")
    ] = 0.0,
    window: Annotated[
        int, typer.Option(min=1, help="Number of sweeps in memory, which share labels.")
    ] = 100,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Label a recording from its cameras: labels/NAME.label, one uint32 per point.

    A recording of several scenes gets SCENE/labels/NAME.label. The recipe's teacher labels the
    images. The labels are projected onto the points and, with poses, propagated to points that no
    camera sees in their own sweep. labels.yaml gives the classes; 0 is unlabeled. Interrupted runs
    resume: run the same command again. `pcseg evaluate SOURCE --checkpoint RUN --labels OUT`
    measures a checkpoint against the labels.
    """
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.data import account, find_source, fingerprint, open_recording, split_query
    from pcseg_core.recipes import recipe_file

    files = [split_query(find_source(source)[1])[0]]
    files += [str(checkpoint_file(checkpoint))] if checkpoint else []
    recipe_path = recipe_file(recipe)
    from pcseg_core.learning.recipe import load_recipe
    from pcseg_core.models.inference import choose_device
    from pcseg_core.online.auto_labels import (
        AutoLabeler,
        LabelSettings,
        check_cameras,
        check_output,
        label_recording,
    )
    from pcseg_core.online.pipeline import Pipeline
    from pcseg_core.online.segmenter import Segmenter
    from pcseg_core.vision.pixel_classes import load_teacher

    chosen = load_recipe(recipe_path)
    settings = LabelSettings(
        source=source,
        teacher=chosen.required_teacher(),
        labels=chosen.labels,
        min_confidence=min_confidence,
        checkpoint=checkpoint or "",
        files=" ".join(fingerprint(file, out) for file in files),
    )
    check_output(out, settings)
    student = Pipeline(Segmenter.load(checkpoint, device=device)) if checkpoint else None
    recording = open_recording(source, trained=student.trained_on if student else None)
    check_cameras(recording)
    teacher = load_teacher(settings.teacher, str(choose_device(device)))
    with bar("labeling") as progress:
        result = label_recording(
            AutoLabeler(teacher, settings, student),
            recording,
            out,
            window=window,
            progress=progress,
        )
    _summarize(result)
    for line in account(recording).lines():
        note(line)


def _summarize(result: AutoLabels) -> None:
    from rich.console import Console

    from pcseg_core.data.account import grouped

    for reason, count in grouped(result.skipped):
        note(f"skipped: {reason} ({count})")
    console = Console(highlight=False, soft_wrap=True)
    before = f", {result.kept} of them by an earlier run" if result.kept else ""
    console.print(f"{result.out}: {result.sweeps} sweeps labeled{before}")
    total = int(result.counts.sum()) + result.unlabeled
    if total:
        shares = [
            f"{name} {100 * count / total:.1f} %"
            for name, count in zip(result.label_space.names, result.counts)
            if count
        ]
        console.print(", ".join([*shares, f"unlabeled {100 * result.unlabeled / total:.1f} %"]))
