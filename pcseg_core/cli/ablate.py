# SPDX-License-Identifier: Apache-2.0
"""`pcseg ablate`: what each part of a method is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pcseg_core.cli.outputs import PICTURES, check_file
from pcseg_core.cli.progress import note
from pcseg_core.cli.zero_shot import ablate_zero_shot
from pcseg_core.errors import InputError

app = ablate = typer.Typer(no_args_is_help=True, help="What each part of a method is worth.")

RECIPES = Path("pcseg_core/recipes")


@app.callback()
def _group() -> None:
    """What each part of a method is worth."""


@app.command()
def contrast(
    json_: Annotated[
        Path, typer.Option("--json", help="Rows of method, seed and mIoU; goes on where it was.")
    ],
    data: Annotated[
        str, typer.Option(help="simulated, or a folder with KITTI drives and object frames.")
    ] = "simulated",
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Recipe whose losses and superpixels the methods change; by default "
            "ablate_contrast.yaml in training/recipes, or ablate_contrast_kitti.yaml for a folder."
        ),
    ] = None,
    fit: Annotated[
        list[str] | None, typer.Option(help="Labeled sweeps the probes are fitted to.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Labeled sweeps they are measured on.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every method.")] = 3,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of the recipe's own.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; may be given several times.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of views and runs; default beside the JSON.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the rows into this picture.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Pretrain by each method from the same start and probe each in the same way.

    Methods: raw inputs and an untrained network; contrast of SLIC and of semantic superpixels;
    with consistency across sweeps; with points to their segments; single pairs; regression; a mix.
    Simulated drives are tested in a town that is never trained or fitted in.
    """
    check_file(json_)
    check_file(picture, PICTURES)
    from benchmarks.studies import contrast as ablation
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning.pretrain_recipe import load_pretrain_recipe

    name = "ablate_contrast" if data == "simulated" else "ablate_contrast_kitti"
    base = load_pretrain_recipe(recipe or RECIPES / f"{name}.yaml")
    if steps is not None:
        optimizer = base.optimizer.model_copy(update={"steps": steps})
        base = base.model_copy(update={"optimizer": optimizer})
    run = ablation.Ablation(
        base,
        _data(data, fit or [], test or []),
        json_,
        work or json_.with_suffix(".work"),
        LabelSpace.load("street"),
        device,
        method,
    )
    content = run.run(seeds, note)
    show(content)
    if picture:
        ablation.draw(content, picture)


app.command("zero-shot")(ablate_zero_shot)


def _data(data: str, fit: list[str], test: list[str]) -> Any:
    from benchmarks.studies.contrast import folder_data, simulated_data

    if bool(fit) != bool(test):
        raise InputError("give --fit and --test together, or neither")
    if data == "simulated":
        found = simulated_data()
        if fit:
            found.fit, found.test = fit, test
        return found
    if not Path(data).is_dir():
        raise InputError(f"--data {data}: expected 'simulated' or a folder")
    return folder_data(Path(data), fit, test)


def show(content: dict[str, Any]) -> None:
    """Table of the means."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="linear probe on frozen features")
    for column in ("method", "mIoU %", "deviation", "seeds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in content["summary"]:
        shown = (f"{100 * row[key]:.1f}" for key in ("miou", "deviation"))
        table.add_row(row["method"], *shown, str(row["seeds"]))
    Console().print(table)
