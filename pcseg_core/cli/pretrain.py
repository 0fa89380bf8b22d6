# SPDX-License-Identifier: Apache-2.0
"""`pcseg pretrain`: train a LiDAR network on features of image networks."""

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
    Sources,
    Steps,
    WorkerCpus,
    adjusted,
    training_options,
)
from pcseg_core.cli.training_run import described, run_once, trained
from pcseg_core.copies import shown


def pretrain(
    sources: Sources,
    recipe: RecipeName,
    out: Out,
    seed: RecipeSeed = None,
    steps: Steps = None,
    resume: Resume = True,
    cache: Cache = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 0,
    log: Log = None,
    device: Device = "auto",
    ray: Ray = None,
    processes: Processes = None,
    worker_cpus: WorkerCpus = 1,
) -> None:
    """Pretrain a LiDAR network on recordings with cameras, without labels or classes.

    The network learns to predict the superpixels and features of frozen image networks from the
    points alone. Measure it with `pcseg probe`, train it on labels with `pcseg finetune`.
    Interrupted runs resume: run the same command again. Under torchrun the processes share the
    work.
    """
    cluster = training_options(ray, processes, worker_cpus, device)
    command = described(recipe, sources, out, cache, seed=seed, steps=steps)

    def train(fresh: bool) -> dict[str, Any]:
        from pcseg_core.learning.pretrain import pretrain as run
        from pcseg_core.learning.recipe import load_recipe
        from pcseg_core.recipes import recipe_file

        chosen = adjusted(load_recipe(recipe_file(recipe)), seed, steps)
        work = partial(run, sources, chosen, out, cache, device, workers, log=log or ())
        return trained(work, out, fresh, cluster)

    _summarize(run_once(out, resume, command, train), out)


def _summarize(metrics: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    place = shown(out)
    console.print(
        f"{place}: {metrics['sweeps']} sweeps, {metrics['steps']} steps; prepared in "
        f"{metrics['preparing_s']:.0f} s, trained in {metrics['training_s']:.0f} s"
    )
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in metrics["share"].items())
    console.print(f"{metrics['sectors_per_s']:.2f} sweeps/s; {shares}")
    console.print(
        f"next: pcseg probe {place} --fit DIR --test DIR, or pcseg finetune {place} SOURCES "
        "--out RUN"
    )
