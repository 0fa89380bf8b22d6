# SPDX-License-Identifier: Apache-2.0
"""`pcseg finetune`: few labeled scenes, from a pretrained network and from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pcseg_core.cli.progress import note


def finetune(
    run: Annotated[Path, typer.Argument(help="Run directory of `pcseg pretrain`.")],
    fit: Annotated[
        list[str], typer.Option(help="Labeled sweeps to train on; may be given several times.")
    ],
    test: Annotated[str, typer.Option(help="Labeled sweeps to measure on, of another place.")],
    out: Annotated[Path, typer.Option(help="Folder of runs, figures and picture.")],
    share: Annotated[
        list[float] | None,
        typer.Option(help="Percent of the scenes; 1, 5, 10, 25 and 100 if not given."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every share.")] = 1,
    recipe: Annotated[Path | None, typer.Option(help="Recipe (YAML) of the training.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of the recipe's own.")
    ] = None,
    scratch: Annotated[
        bool, typer.Option(help="Also train without pretraining, for comparison.")
    ] = True,
    label_space: Annotated[str, typer.Option(help="Label space to learn.")] = "street",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train on a share of the labeled scenes, from a pretrained network and from scratch.

    Splits are by scene: every k-th one, others for every seed. The new last layer and the
    pretrained layers have learning rates of their own. Rows that are done are kept: interrupt it
    at any time. Writes few_shot.json and few_shot.png; every run is a checkpoint.
    """
    from pcseg_core.checkpoint import load_checkpoint
    from pcseg_core.cli.probe import read
    from pcseg_core.config import load_yaml
    from pcseg_core.labels import LabelSpace
    from pcseg_core.learning import finetune as protocol

    space = LabelSpace.load(label_space)
    chosen = load_yaml(recipe, protocol.FinetuneRecipe) if recipe else protocol.FinetuneRecipe()
    if steps is not None:
        optimizer = chosen.optimizer.model_copy(update={"steps": steps})
        chosen = chosen.model_copy(update={"optimizer": optimizer})
    reach = load_checkpoint(run)[1].student.get("max_range_m", 80.0)
    sweeps = [pair for source in fit for pair in _labeled(source, space, reach)]
    few = protocol.FewShot(run, sweeps, read(test, space, reach), space, chosen, out, device)
    content = few.all_rows(share or [1, 5, 10, 25, 100], seeds, scratch, note)
    show(content)
    protocol.draw(content, out / "few_shot.png")


def _labeled(source: str, space: Any, reach: float) -> list[Any]:
    from pcseg_core.data import open_recording
    from pcseg_core.errors import InputError
    from pcseg_core.learning.finetune import read_labeled

    recording = open_recording(f"semantic-kitti:{source}" if Path(source).is_dir() else source)
    found = list(read_labeled(recording, space, reach))
    if not found:
        raise InputError(f"{source}: none of its {len(recording)} sweeps has labels")
    return found


def show(content: dict[str, Any]) -> None:
    """Table of the means."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="few-shot fine-tuning")
    for column in ("start", "scenes %", "scenes", "mIoU %", "deviation", "seeds"):
        table.add_column(column, justify="left" if column == "start" else "right")
    for row in content["summary"]:
        shown = (f"{100 * row[key]:.1f}" for key in ("miou", "deviation"))
        table.add_row(
            row["start"], f"{row['percent']:g}", str(row["scenes"]), *shown, str(row["seeds"])
        )
    Console().print(table)
