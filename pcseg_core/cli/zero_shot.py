# SPDX-License-Identifier: Apache-2.0
"""`pcseg zero-shot`: train on labels of some classes and learn the others from images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pcseg_core.cli.options import (
    Cache,
    Device,
    Log,
    Out,
    Processes,
    Ray,
    RecipeName,
    RecipeSeed,
    Resume,
    Shards,
    Steps,
    WorkerCpus,
    adjusted,
    expanded,
    training_options,
)
from pcseg_core.cli.training_run import described, run_once, trained
from pcseg_core.copies import shown


def zero_shot(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Labeled recordings with cameras: bags, or reader:path; patterns and @FILE as for "
            "`pcseg distill`.",
            callback=expanded,
        ),
    ],
    test: Annotated[
        list[str], typer.Option(help="Labeled recordings to measure on; repeat for several.")
    ],
    split: Annotated[
        str, typer.Option(help="Unseen classes: semantic_kitti, nuscenes, ..., or a YAML file.")
    ],
    recipe: RecipeName,
    out: Out,
    seed: RecipeSeed = None,
    steps: Steps = None,
    resume: Resume = True,
    every: Annotated[int, typer.Option(min=1, help="Train on every k-th sweep only.")] = 1,
    cache: Cache = None,
    shards: Shards = None,
    log: Log = None,
    device: Device = "auto",
    ray: Ray = None,
    processes: Processes = None,
    worker_cpus: WorkerCpus = 1,
) -> None:
    """Train a LiDAR segmenter for classes of which some have no labels, and measure it.

    Seen classes are learned from the labels of SOURCES, unseen ones from an image teacher that
    knows words. Interrupted runs resume: run the same command again. Under torchrun the processes
    share the work.
    """
    classes = Path(split) if Path(split).is_file() else None
    given = {"seed": seed, "steps": steps, "split": split, "classes": classes, "every": every}
    cluster = training_options(ray, processes, worker_cpus, device)
    command = described(recipe, sources, out, cache, tested=test, **given)

    def train(fresh: bool) -> dict[str, Any]:
        from pcseg_core.learning.recipe import load_recipe
        from pcseg_core.learning.zero_shot import zero_shot as run
        from pcseg_core.learning.zero_shot_split import load_split
        from pcseg_core.recipes import recipe_file

        chosen = adjusted(load_recipe(recipe_file(recipe)), seed, steps)
        unseen = load_split(split)
        work = partial(run, sources, test, unseen, chosen, out, cache, device, every)
        work = partial(work, log=log or (), shards=shards)
        return trained(work, out, fresh, cluster)

    _show(run_once(out, resume, command, train), out)


def _show(metrics: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{shown(out)}: {metrics['sweeps']} sweeps, mIoU %")
    for column in ("classifier", "seen", "unseen", "hIoU"):
        table.add_column(column, justify="left" if column == "classifier" else "right")
    for key, name in (("plain", "plain"), ("stacked", f"stacked, gamma {metrics['gamma']:g}")):
        values = (metrics[key][k] for k in ("seen", "unseen", "hiou"))
        table.add_row(name, *("-" if v is None else f"{100 * v:.1f}" for v in values))
    Console().print(table)
