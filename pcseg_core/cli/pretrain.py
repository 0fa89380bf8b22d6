# SPDX-License-Identifier: Apache-2.0
"""`pcseg pretrain`: recordings with cameras in, a network that knows what things look like out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    sources: Annotated[
        list[str], typer.Argument(help="Recordings: bags, or reader:path (kitti-raw:PATH, ...).")
    ],
    recipe: Annotated[Path, typer.Option(help="Recipe (YAML), see pcseg_core/recipes/pretrain_*.")],
    out: Annotated[Path, typer.Option(help="Run directory to make, or to go on with.")],
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed, instead of the recipe's own.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of the recipe's own.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with a stopped run, or start it over.")
    ] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of views and segments that several runs share.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that prepare batches beside the training.")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Pretrain a LiDAR network on recordings with cameras, without labels or classes.

    Frozen image networks say which pixels belong together and what they look like; the network
    learns to say the same from the points alone. Measure it with `pcseg probe`, train it on few
    labels with `pcseg finetune`. Interrupt it at any time: the same command goes on. Under
    torchrun the processes share the work.
    """
    from rich.console import Console

    from pcseg_core.cli.distill import _remove_run
    from pcseg_core.learning.pretrain import pretrain as run
    from pcseg_core.learning.pretrain_recipe import load_pretrain_recipe

    chosen = load_pretrain_recipe(recipe)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    if steps is not None:
        optimizer = chosen.optimizer.model_copy(update={"steps": steps})
        chosen = chosen.model_copy(update={"optimizer": optimizer})
    if not resume:
        _remove_run(out)
    metrics = run(sources, chosen, out, cache=cache, device=device, workers=workers)
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in metrics["share"].items())
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{out}: {metrics['sweeps']} sweeps, {metrics['steps']} steps; prepared in "
        f"{metrics['preparing_s']:.0f} s, trained in {metrics['training_s']:.0f} s"
    )
    console.print(f"{metrics['sectors_per_s']:.2f} sweeps/s; {shares}")
    console.print(f"next: pcseg probe {out} --fit DIR --test DIR, or pcseg finetune {out}")
