# SPDX-License-Identifier: Apache-2.0
"""`pcseg select`: the sweeps of recordings that are worth correcting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Device, Picture, Sources, complete_recipe
from pcseg_core.cli.outputs import PICTURES, check_file
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pcseg_core.data import Recording
    from pcseg_core.evaluation.selection import Analyst, Candidate
    from pcseg_core.input_check import InputStatistics


def select(
    sources: Sources,
    checkpoint: Annotated[
        Path, typer.Option(help="Run directory of `pcseg distill`, or a checkpoint file.")
    ],
    out: Annotated[Path, typer.Option(help="List to write, as CSV.")],
    budget: Annotated[int, typer.Option(min=1, help="Number of sweeps.")] = 50,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Recipe whose camera teacher is compared with the student.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Look at every so many sweeps.")] = 1,
    picture: Picture = None,
    device: Device = "auto",
) -> None:
    """Choose the sweeps of recordings that are worth correcting.

    Those where the student's classes have a high entropy and differ from the sweep before and,
    with --recipe, from the teacher; unlike each other by the features of the student; the same
    number of each recording. `pcseg label --only LIST --format F` writes them for a labeling tool.
    --picture draws a contact sheet of the first, which shows why they were chosen.
    """
    from pcseg_core.data import open_recording
    from pcseg_core.evaluation import selection

    check_file(out)
    check_file(picture, PICTURES)
    analyst, trained = _analyst(checkpoint, recipe, device)
    recordings = {source: open_recording(source, trained=trained) for source in sources}
    with bar("looking at sweeps") as progress:
        found = selection.candidates(analyst, recordings, every, progress)
    chosen = selection.select(found.found, budget)
    _write(chosen, out)
    if picture is not None:
        _draw(analyst, recordings, chosen, picture)
    _summarize(found.skipped, chosen, len(found.found), out)


def _analyst(
    checkpoint: Path, recipe: str | None, device: str
) -> tuple[Analyst, InputStatistics | None]:
    """The student, with the teacher of a recipe if there is one; and the input of its training."""
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.distill.observation import ClassEvidence
    from pcseg_core.evaluation.selection import Analyst
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning.recipe import load_recipe
    from pcseg_core.models.inference import choose_device
    from pcseg_core.models.student import load_student, stored_config
    from pcseg_core.recipes import recipe_file
    from pcseg_core.vision.pixel_classes import load_teacher

    file = checkpoint_file(str(checkpoint))
    state, meta = load_checkpoint(file)
    space, on = LabelSpace.from_dict(meta.label_space), choose_device(device)
    config = stored_config(meta.student, checkpoint)
    student = load_student(config, len(space), state, checkpoint).to(on)
    teacher = None
    if recipe is not None:
        chosen = load_recipe(recipe_file(recipe))
        settings = chosen.required_teacher()
        network = load_teacher(settings, str(on))
        known = settings.identity
        teacher = ClassEvidence(network, chosen.labels, known, space=space, required=False)
    return Analyst(student, teacher, config.max_range_m), meta.inputs


def _write(chosen: list[Candidate], out: Path) -> None:
    import csv
    import io

    from pcseg_core.data.sweep_list import COLUMNS
    from pcseg_core.files import write_atomic

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    reasons = ("teacher", "time", "entropy")
    writer.writerow([*COLUMNS, "score", *reasons, "new"])
    for one in chosen:
        known = [f"{one.reasons[name]:.4f}" if name in one.reasons else "" for name in reasons]
        place = (one.source, one.scene, one.sweep, one.index)
        writer.writerow([*place, f"{one.score:.4f}", *known, f"{one.novelty:.4f}"])
    write_atomic(out, text.getvalue())


def _draw(
    analyst: Analyst, recordings: Mapping[str, Recording], chosen: list[Candidate], path: Path
) -> None:
    from pcseg_core.evaluation.selection import opinions
    from pcseg_core.evaluation.selection_picture import SHOWN, draw_sheet

    draw_sheet(opinions(analyst, recordings, chosen[:SHOWN]), len(chosen), path)


def _summarize(
    skipped: Mapping[str, int], chosen: list[Candidate], looked_at: int, out: Path
) -> None:
    from collections import Counter

    from rich.console import Console

    for reason, count in skipped.items():
        note(f"skipped: {reason} ({count})")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{out}: {len(chosen)} of {looked_at} sweeps")
    for source, count in Counter(one.source for one in chosen).items():
        console.print(f"  {source}: {count}")
