# SPDX-License-Identifier: Apache-2.0
"""`pcseg label`: automatic labels of a recording from its cameras, for training and for tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Device, RecipeName
from pcseg_core.errors import InputError
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from pcseg_core.data import Recording
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
    moving: Annotated[
        bool, typer.Option("--moving", help="Also tell what moves, by poses: moving/NAME.label.")
    ] = False,
    format: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write OUT/FORMAT with sweeps, images and poses: semantic-kitti, nuscenes, "
            "segments, pcd or las; may be repeated."
        ),
    ] = None,
    only: Annotated[
        Path | None,
        typer.Option(
            metavar="LIST", help="With --format: write the sweeps of a list of `pcseg select` only."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Label a recording from its cameras: labels/NAME.label, one uint32 per point.

    A recording of several scenes gets SCENE/labels/NAME.label. The recipe's teacher labels the
    images. The labels are projected onto the points and, with poses, propagated to points that no
    camera sees in their own sweep. labels.yaml gives the classes; 0 is unlabeled. Interrupted runs
    resume: run the same command again. `pcseg evaluate SOURCE --checkpoint RUN --labels OUT`
    measures a checkpoint against the labels. With --format, labeling tools open the labels; those
    of an earlier run are not made again.
    """
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.data import account, find_source, split_query
    from pcseg_core.data.sweep_list import read_list
    from pcseg_core.recipes import recipe_file

    files = [split_query(find_source(source)[1])[0]]
    files += [str(checkpoint_file(checkpoint))] if checkpoint else []
    formats = list(dict.fromkeys(format or []))
    if only is not None and not formats:
        raise InputError("--only chooses sweeps for a labeling tool; give --format too")
    chosen = read_list(only, source) if only is not None else None
    request = _Request(
        source, recipe_file(recipe), out, checkpoint, min_confidence, moving, files, formats
    )
    result, recording = _label(request, window, device)
    _summarize(result)
    for name in formats:
        _export(recording, out, name, chosen)
    for line in account(recording).lines():
        note(line)


@dataclass(frozen=True)
class _Request:
    """What is to be labeled, and all that decides the labels."""

    source: str
    recipe: Path
    out: Path
    checkpoint: str | None
    min_confidence: float
    moving: bool
    files: list[str]
    formats: list[str]


def _label(request: _Request, window: int, device: str) -> tuple[AutoLabels, Recording]:
    from pcseg_core.data import fingerprint, open_recording
    from pcseg_core.data.label_formats import check_export
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

    chosen, out = load_recipe(request.recipe), request.out
    settings = LabelSettings(
        source=request.source,
        teacher=chosen.required_teacher(),
        labels=chosen.labels,
        min_confidence=request.min_confidence,
        moving=request.moving,
        checkpoint=request.checkpoint or "",
        files=" ".join(fingerprint(file, (out,)) for file in request.files),
    )
    check_output(out, settings)
    student = None
    if request.checkpoint:
        student = Pipeline(Segmenter.load(request.checkpoint, device=device))
    recording = open_recording(request.source, trained=student.trained_on if student else None)
    for name in request.formats:
        check_export(recording, out, name)
    check_cameras(recording)
    teacher = load_teacher(settings.teacher, str(choose_device(device)))
    with bar("labeling") as progress:
        labeler = AutoLabeler(teacher, settings, student)
        result = label_recording(labeler, recording, out, window=window, progress=progress)
    return result, recording


def _export(recording: Recording, out: Path, format: str, only: set[int] | None) -> None:
    from pcseg_core.data.account import grouped
    from pcseg_core.data.label_formats import export_labels

    with bar(f"writing {format}") as progress:
        result = export_labels(recording, out, format, progress, only)
    for reason, count in grouped(result.skipped):
        note(f"{format}: left out: {reason} ({count})")
    for line in result.notes:
        note(f"{format}: {line}")
    note(f"{result.folder}: {result.sweeps} labeled sweeps")


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
