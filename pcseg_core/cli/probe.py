# SPDX-License-Identifier: Apache-2.0
"""`pcseg probe`: what a frozen network knows, by a linear classifier on its features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcseg_core.cli.outputs import PICTURES, check_file
from pcseg_core.cli.progress import note, progress_bar
from pcseg_core.errors import InputError

if TYPE_CHECKING:
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning.probe import Scan


def probe(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories or checkpoints; several are seeds of one recipe."),
    ],
    fit: Annotated[
        str, typer.Option(help="Labeled sweeps to fit to: SemanticKITTI folders, or any source.")
    ],
    test: Annotated[str, typer.Option(help="Labeled sweeps to measure on, of another place.")],
    json_: Annotated[
        Path | None, typer.Option("--json", help="Write figures and curves there.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw curves and confusion into this picture.")
    ] = None,
    label_space: Annotated[str, typer.Option(help="Label space to measure in.")] = "street",
    max_points: Annotated[
        int, typer.Option(min=100, help="Points to fit to; beyond that an even share is drawn.")
    ] = 400_000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Fit the last layer alone on a frozen network and measure it elsewhere.

    The same is done with an untrained network of that architecture (batch norms calibrated) and
    with the raw inputs (height, intensity, range): a network must beat both. Fractions are 0 to 1.
    """
    check_file(json_)
    check_file(picture, PICTURES)
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.files import write_atomic
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning import probe as protocol
    from pcseg_core.learning.runs import on_gpu

    space = LabelSpace.load(label_space)
    reach = min(load_checkpoint(run)[1].student.get("max_range_m", 80.0) for run in runs)
    scans = {name: read(source, space, reach) for name, source in (("fit", fit), ("test", test))}
    with progress_bar("probing") as progress:
        results = protocol.probe(
            runs,
            scans["fit"],
            scans["test"],
            space,
            "cuda" if on_gpu(device) else "cpu",
            max_points,
            progress,
        )
    content = {
        "runs": [str(run) for run in runs],
        "fit": fit,
        "test": test,
        "label_space": space.name,
        "classes": list(space.names),
        "fit_scans": len(scans["fit"]),
        "test_scans": len(scans["test"]),
        **protocol.summary(results, space),
    }
    show(content)
    if json_:
        write_atomic(json_, json.dumps(content, indent=1) + "\n")
    if picture:
        protocol.draw(content, space, picture)


def read(source: str, space: LabelSpace, reach: float) -> list[Scan]:
    """The labeled scans of a source; a bare folder is taken as SemanticKITTI's layout."""
    from pcseg_core.data import open_recording
    from pcseg_core.learning.probe import read_scans

    folder = Path(source)
    recording = open_recording(f"semantic-kitti:{source}" if folder.is_dir() else source)
    scans = list(read_scans(recording, space, reach))
    for reason, count in recording.skipped.items():
        note(f"skipped: {reason} ({count})")
    if not scans:
        raise InputError(f"{source}: none of its {len(recording)} sweeps has labels")
    return scans


def show(content: dict[str, Any]) -> None:
    """Table of a probe's figures."""
    from rich.console import Console
    from rich.table import Table

    from pcseg_core.evaluation.report import percent

    title = f"linear probe: fitted to {content['fit_scans']} scans, {content['test_scans']} to test"
    table = Table(title=title)
    for column in ("features", "mIoU %", "deviation", "accuracy %", "mIoU %, one ground"):
        table.add_column(column, justify="left" if column == "features" else "right")
    for name, figures in content["methods"].items():
        keys = ("miou", "miou_deviation", "accuracy", "miou_merged_ground")
        table.add_row(name, *(percent(figures[key]) for key in keys))
    Console().print(table)
