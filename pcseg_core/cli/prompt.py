# SPDX-License-Identifier: Apache-2.0
"""`pcseg prompt`: try words as classes on a recorded sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Backend, Device, Json, Picture
from pcseg_core.cli.outputs import PICTURES, check_file, text_console, write_json
from pcseg_core.errors import InputError
from pcseg_core.progress import note

if TYPE_CHECKING:
    from rich.console import Console

    from pcseg_core.online.segmenter import Segmenter


def prompt(
    run: Annotated[Path, typer.Argument(help="Run directory of `pcseg distill`, or a checkpoint.")],
    source: Annotated[
        str, typer.Argument(help="A recording to try the words on: a bag, or reader:path.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Option(
            help="A word, a group 'name: word, word', or '*' for everything else; give it once "
            "per class. Default: the classes of the checkpoint."
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Classes by example pictures instead of words: FOLDER/CLASS/NAME.png, and "
            "NAME.mask.png if the class does not fill the picture."
        ),
    ] = None,
    sweep: Annotated[int, typer.Option(help="Index of the sweep; -1 is the last.")] = 0,
    picture: Picture = None,
    json_: Json = None,
    device: Device = "auto",
    backend: Backend = "auto",
) -> None:
    """Label a recorded sweep by words or example pictures, and print the share of each class."""
    if words and pictures:
        raise InputError("give either --words or --pictures, not both")
    check_file(picture, PICTURES)
    check_file(json_, (".json",))
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.data import find_source

    checkpoint_file(run)
    find_source(source)
    from pcseg_core.online.segmenter import Segmenter

    segmenter = Segmenter.load(run, device=device, backend=backend)
    if words:
        segmenter.set_prompts(words)
    if pictures is not None:
        _learn(segmenter, pictures)
    _try(segmenter, source, sweep, picture, json_)


def _learn(segmenter: Segmenter, pictures: Path) -> None:
    from pcseg_core.online.example_pictures import encoder_of, read_pictures
    from pcseg_core.online.prototypes import fit_prototypes

    encoder = encoder_of(segmenter.meta.recipe)
    segmenter.set_prototypes(fit_prototypes(encoder, read_pictures(pictures)))


def _try(
    segmenter: Segmenter, source: str, sweep: int, picture: Path | None, json_: Path | None
) -> None:
    import dataclasses

    from pcseg_core.data import open_recording

    recording = open_recording(source, trained=segmenter.trained_on)
    if not -len(recording) <= sweep < len(recording):
        raise InputError(f"--sweep {sweep}: {recording.name} has {len(recording)} sweeps")
    sample = dataclasses.replace(recording[sweep % len(recording)], labels=None)
    shares = _shares(segmenter, sample.cloud)
    _print_shares(sample.name, shares, text_console(json_))
    write_json(json_, {"sweep": sample.name, "classes": shares})
    if picture is not None:
        from pcseg_core.online.pipeline import Pipeline
        from pcseg_core.viewer.picture import draw
        from pcseg_core.viewer.rerun import sample_view

        view = sample_view(sample, segmenter.label_space, Pipeline(segmenter))
        draw(view, segmenter.label_space, picture)
        note(f"wrote {picture}")


def _shares(segmenter: Segmenter, cloud: object) -> dict[str, dict[str, float]]:
    """Share of the points and mean confidence of every class."""
    import numpy as np

    result = segmenter.segment(cloud)  # type: ignore[arg-type]
    shares = {}
    for i, name in enumerate(segmenter.label_space.names):
        mine = result.labels == i
        sure = float(result.confidence[mine].mean()) if mine.any() else 0.0
        shares[name] = {"share": round(float(np.mean(mine)), 5), "confidence": round(sure, 4)}
    return shares


def _print_shares(name: str, shares: dict[str, dict[str, float]], console: Console) -> None:
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for column in ("class", "points %", "mean confidence"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for word, values in shares.items():
        table.add_row(word, f"{100 * values['share']:.1f}", f"{values['confidence']:.2f}")
    console.print(table)
