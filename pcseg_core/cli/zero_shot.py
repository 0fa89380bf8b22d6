# SPDX-License-Identifier: Apache-2.0
"""`pcseg zero-shot`: classes without a single label; and what each part of that is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pcseg_core.cli.outputs import PICTURES, check_file
from pcseg_core.cli.progress import note
from pcseg_core.errors import InputError

_EVERY = typer.Option(min=1, help="Train on every k-th sweep only.")


def zero_shot(
    sources: Annotated[
        list[str], typer.Argument(help="Labeled recordings with cameras, to train on.")
    ],
    test: Annotated[
        list[str], typer.Option(help="Labeled recordings to measure on; may be given repeatedly.")
    ],
    split: Annotated[
        str, typer.Option(help="Unseen classes: semantic_kitti, nuscenes, ..., or a YAML file.")
    ],
    recipe: Annotated[Path, typer.Option(help="Recipe (YAML), see training/recipes.")],
    out: Annotated[Path, typer.Option(help="Run directory to make, or to go on with.")],
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed, instead of the recipe's own.")
    ] = None,
    every: Annotated[int, _EVERY] = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of looked-at sweeps that several runs share.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a LiDAR segmenter of which some classes were never labeled, and measure it.

    Labels teach the seen classes; an image teacher, through words, the unseen ones. Interrupt it
    at any time: the same command goes on.
    """
    from pcseg_core.learning.zero_shot import zero_shot as run
    from pcseg_core.learning.zero_shot_recipe import load_zero_shot_recipe
    from pcseg_core.learning.zero_shot_split import load_split

    chosen = load_zero_shot_recipe(recipe)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    metrics = run(sources, test, load_split(split), chosen, out, cache, device, every)
    _show(metrics, out)


def ablate_zero_shot(
    json_: Annotated[
        Path, typer.Option("--json", help="Rows of part, seed and figures; goes on where it was.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="simulated, a folder of SemanticKITTI sequences, or reader:path with --test."
        ),
    ] = "simulated",
    split: Annotated[
        str, typer.Option(help="Unseen classes, by name of a split or a YAML file.")
    ] = "street_vehicle_pole",
    recipe: Annotated[
        Path, typer.Option(help="Recipe with all parts; rows leave parts out.")
    ] = Path("pcseg_core/recipes/zero_shot_simulated.yaml"),
    test: Annotated[
        list[str] | None, typer.Option(help="Labeled recordings to measure on.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every row.")] = 3,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of the recipe's own.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Only this row; may be given several times.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Make at most so many rows in this call.")
    ] = None,
    every: Annotated[int, _EVERY] = 1,
    work: Annotated[
        Path | None, typer.Option(help="Folder of caches and runs; default beside the JSON.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the rows into this picture.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train with and without each part of zero-shot learning, and measure all alike.

    Rows: seen labels alone; image labels of unseen classes; global alignment, local, both; with
    self-training; with consolidation; these two alone; and two without any label. Simulated drives
    are measured in a town that is never trained in.
    """
    check_file(json_)
    check_file(picture, PICTURES)
    from benchmarks.studies import zero_shot as study
    from pcseg_core.learning.zero_shot_recipe import load_zero_shot_recipe
    from pcseg_core.learning.zero_shot_split import load_split

    base = load_zero_shot_recipe(recipe)
    if steps is not None:
        optimizer = base.optimizer.model_copy(update={"steps": steps})
        base = base.model_copy(update={"optimizer": optimizer})
    run = study.ZeroShotAblation(
        base,
        _data(data, test or []),
        load_split(split),
        json_,
        work or json_.with_suffix(".work"),
        device,
        row,
        every,
    )
    content = run.run(seeds, note, limit)
    typer.echo(study.markdown(content))
    if picture:
        study.draw(content, picture)


def _data(data: str, test: list[str]) -> Any:
    from benchmarks.studies.zero_shot import ZeroShotData, folder_data, simulated_data

    if data == "simulated":
        found = simulated_data()
        found.test = test or found.test
        return found
    if Path(data).is_dir():
        return folder_data(Path(data), test)
    if ":" not in data:
        raise InputError(f"--data {data}: expected 'simulated', a folder, or reader:path")
    if not test:
        raise InputError(f"--data {data}: give recordings to measure on with --test")
    return ZeroShotData([data], test)


def _show(metrics: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{out}: {metrics['sweeps']} sweeps, mIoU %")
    for column in ("classifier", "seen", "unseen", "hIoU"):
        table.add_column(column, justify="left" if column == "classifier" else "right")
    for key, name in (("plain", "plain"), ("stacked", f"stacked, gamma {metrics['gamma']:g}")):
        values = (metrics[key][k] for k in ("seen", "unseen", "hiou"))
        table.add_row(name, *("-" if v is None else f"{100 * v:.1f}" for v in values))
    Console().print(table)
