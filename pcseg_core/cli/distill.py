# SPDX-License-Identifier: Apache-2.0
"""`pcseg distill`: train a LiDAR segmenter from recordings, by camera or 3D teachers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcseg_core.cli.options import (
    DEFAULT_RECIPE,
    SMALL_RECIPE,
    Cache,
    Device,
    Log,
    Out,
    Processes,
    Ray,
    RecipeSeed,
    Resume,
    Shards,
    Sources,
    Steps,
    WorkerCpus,
    Workers,
    adjusted,
    complete_recipe,
    ray_options,
    training_options,
)
from pcseg_core.cli.training_run import described, run_once, trained
from pcseg_core.copies import shown
from pcseg_core.errors import InputError
from pcseg_core.progress import note

if TYPE_CHECKING:
    from pcseg_core.cluster.run import RayOptions
    from pcseg_core.learning.recipe import Recipe


def distill(
    sources: Sources,
    out: Out,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=complete_recipe,
            help="Recipe: a name from `pcseg recipe list`, or a YAML file.  [default: "
            f"{DEFAULT_RECIPE}; {SMALL_RECIPE} with --teacher-3d]",
        ),
    ] = None,
    teacher_3d: Annotated[
        Path | None,
        typer.Option(
            "--teacher-3d",
            metavar="RUN",
            help="Run or checkpoint of a LiDAR network that teaches, beside the camera teacher of "
            "the recipe if it has one.",
        ),
    ] = None,
    seed: RecipeSeed = None,
    steps: Steps = None,
    resume: Resume = True,
    cache: Cache = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Run to start from: one of `pcseg pretrain`, or one of the same classes, for "
            "example to add words; or bundled.  [default: that of the recipe]"
        ),
    ] = None,
    corrected: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Corrected labels of some sweeps: an export of `pcseg label --format`, or a "
            "folder of .label files.",
        ),
    ] = None,
    corrected_weight: Annotated[
        float,
        typer.Option(
            min=0,
            help="Weight of a corrected label where poses carry it to other sweeps, relative to a "
            "label of the teacher.",
        ),
    ] = 20.0,
    shards: Shards = None,
    log: Log = None,
    device: Device = "auto",
    ray: Ray = None,
    workers: Workers = None,
    processes: Processes = None,
    worker_cpus: WorkerCpus = 1,
) -> None:
    """Train a LiDAR segmenter from recordings, without labels.

    The teacher of the recipe labels the images, the labels are projected onto the points, and a
    network learns to predict them from the points alone. With --teacher-3d a LiDAR network labels
    all points; no camera is needed then. With --corrected, labels that people corrected override
    those of the teachers. With --ray the teachers run on a cluster; the network is trained here,
    or with --processes on the cluster as well.
    Interrupted runs resume: run the same command again. Under torchrun the processes share the
    work.
    """
    if processes is not None and workers is not None:
        raise InputError("--processes label and train: leave out --workers")
    own = None if processes is None else training_options(ray, processes, worker_cpus, device)
    cluster = None if processes else ray_options(ray, workers, worker_cpus, device)
    taken = recipe or (SMALL_RECIPE if teacher_3d else DEFAULT_RECIPE)
    command = described(
        taken,
        sources,
        out,
        cache,
        seed=seed,
        steps=steps,
        start=start,
        teacher_3d=teacher_3d,
        corrected=corrected,
        corrected_weight=corrected_weight if corrected else None,
    )

    def train(fresh: bool) -> dict[str, Any]:
        from pcseg_core.learning.distill import distill as run
        from pcseg_core.learning.recipe import load_recipe
        from pcseg_core.recipes import recipe_file

        chosen = adjusted(load_recipe(recipe_file(taken)), seed, steps).taught_by(teacher_3d)
        note(f"recipe {taken}; {chosen.teachers_title}")
        prepare = None
        if cluster is not None:
            folder = cache or out / "cache"
            prepare = partial(_observe, chosen, sources, out, folder, device, cluster)
        work = partial(run, sources, chosen, out, cache, device, start, prepare=prepare)
        work = partial(work, corrected=corrected, corrected_weight=corrected_weight)
        work = partial(work, log=log or (), shards=shards)
        return trained(work, out, fresh, own)

    _summarize(run_once(out, resume, command, train), sources[0], out)


def _observe(
    recipe: Recipe, sources: list[str], out: Path, cache: Path, device: str, cluster: RayOptions
) -> None:
    """Fill the cache of prepared sweeps on a cluster.

    Raises:
        InputError: a recording was left out; training without it would give another network.
    """
    from pcseg_core.cluster.observe import ObserveJob
    from pcseg_core.cluster.run import report, run_on_ray

    job = ObserveJob(recipe, out.resolve(), cache.resolve(), device)
    report(run_on_ray(job, sources, cluster), len(sources))


def _summarize(metrics: dict[str, Any], source: str, out: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    spent = f"labels {metrics['labeling_s']:.0f} s, training {metrics['training_s']:.0f} s"
    place = shown(out)
    console.print(f"{place}: {metrics['sweeps']} sweeps, {metrics['steps']} steps; {spent}")
    shares = metrics["class_shares"].items()
    if not any(share for _, share in shares):
        console.print(f"no classes; next: pcseg finetune {place}, or pcseg distill --start {place}")
        return
    console.print("pseudo labels: " + ", ".join(f"{name} {100 * s:.1f} %" for name, s in shares))
    console.print(f"next: pcseg evaluate {source} --checkpoint {place}, or pcseg view {place}")
