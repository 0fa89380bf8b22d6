# SPDX-License-Identifier: Apache-2.0
"""`pcseg label`: automatic labels of recordings from their cameras, for training and for tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import (
    Device,
    Ray,
    RecipeName,
    Sources,
    WorkerCpus,
    Workers,
    ray_options,
)
from pcseg_core.errors import InputError
from pcseg_core.progress import bar, note

if TYPE_CHECKING:
    from pcseg_core.cluster.label import LabelJob
    from pcseg_core.cluster.run import RayOptions


def label(
    sources: Sources,
    recipe: RecipeName,
    out: Annotated[
        Path,
        typer.Option(help="Folder of labels, new or to resume; of several recordings one each."),
    ],
    checkpoint: Annotated[
        str | None, typer.Option(help="Student whose labels are written to student/.")
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Points with less confidence become unlabeled.")
    ] = 0.0,
    window: Annotated[
        int, typer.Option(min=1, help="Number of sweeps in memory, which share labels.")
    ] = 100,
    moving: Annotated[
        bool, typer.Option("--moving", help="Also tell what moves, by poses: moving/NAME.label.")
    ] = False,
    format: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write OUT/FORMAT with sweeps, images and poses: semantic-kitti, nuscenes, "
            "segments, pcd or las; may be repeated."
        ),
    ] = None,
    only: Annotated[
        Path | None,
        typer.Option(
            metavar="LIST", help="With --format: write the sweeps of a list of `pcseg select` only."
        ),
    ] = None,
    device: Device = "auto",
    ray: Ray = None,
    workers: Workers = None,
    worker_cpus: WorkerCpus = 1,
) -> None:
    """Label recordings from their cameras: labels/NAME.label, one uint32 per point.

    Several recordings get a folder each in OUT; one that cannot be labeled is left out and
    reported. A recording of several scenes gets SCENE/labels/NAME.label. The recipe's teacher
    labels the images. The labels are projected onto the points and, with poses, propagated to
    points that no camera sees in their own sweep. labels.yaml gives the classes; 0 is unlabeled.
    Interrupted runs resume: run the same command again. `pcseg evaluate SOURCE --checkpoint RUN
    --labels OUT` measures a checkpoint against the labels. With --format, labeling tools open the
    labels; those of an earlier run are not made again.
    """
    from pcseg_core.bundled import checkpoint_file
    from pcseg_core.cluster.job import check_place
    from pcseg_core.data import find_source
    from pcseg_core.data.sweep_list import read_list
    from pcseg_core.recipes import recipe_file

    check_place(out)
    for source in sources:
        find_source(source)
    file = recipe_file(recipe)
    if checkpoint:
        checkpoint_file(checkpoint)
    cluster = ray_options(ray, workers, worker_cpus, device)
    formats = tuple(dict.fromkeys(format or []))
    if only is not None and not formats:
        raise InputError("--only chooses sweeps for a labeling tool; give --format too")
    if only is not None and len(sources) > 1:
        raise InputError("--only chooses sweeps of one recording; give one source")
    chosen = read_list(only, sources[0]) if only is not None else None
    from pcseg_core.cluster.label import LabelJob, label_folders
    from pcseg_core.learning.recipe import load_recipe

    job = LabelJob(
        out,
        load_recipe(file),
        label_folders(sources, out),
        checkpoint or "",
        min_confidence,
        moving,
        window,
        formats,
        chosen,
        device,
        strict=len(sources) == 1 and cluster is None,
    )
    _run(job, sources, cluster)


def _run(job: LabelJob, sources: list[str], cluster: RayOptions | None) -> None:
    from pcseg_core.cluster.run import report, run_here, run_on_ray

    if job.strict:
        _label_one(job, sources[0])
        return
    outcome = run_on_ray(job, sources, cluster) if cluster else run_here(job, sources)
    what = f"{outcome.sweeps} sweeps of {outcome.recordings} recordings labeled"
    before = f", {outcome.kept} of them by an earlier run" if outcome.kept else ""
    _print(f"{job.out}: {what}{before}", outcome.counts)
    report(outcome, len(sources))


def _label_one(job: LabelJob, source: str) -> None:
    """Label one recording here."""
    from pcseg_core.cluster.label import UNLABELED
    from pcseg_core.data.account import grouped

    worker = job.worker()
    with bar("labeling") as progress:
        result = worker.label(source, progress)
    for reason, count in grouped(result.skipped):
        note(f"skipped: {reason} ({count})")
    before = f", {result.kept} of them by an earlier run" if result.kept else ""
    counts = dict(zip(result.label_space.names, result.counts.tolist()))
    what = f"{result.out}: {result.sweeps} sweeps labeled{before}"
    _print(what, {**counts, UNLABELED: result.unlabeled})
    for name in worker.formats(source):
        with bar(f"writing {name}") as progress:
            lines = worker.export(source, name, progress)
        for line in lines:
            note(line)
    for line in worker.account(source):
        note(line)


def _print(what: str, counts: Mapping[str, int]) -> None:
    """The result, and the shares of the classes among the points."""
    from rich.console import Console

    from pcseg_core.cluster.label import UNLABELED

    console = Console(highlight=False, soft_wrap=True)
    console.print(what)
    if total := sum(counts.values()):
        kinds = sorted(counts, key=lambda name: name == UNLABELED)
        shares = [f"{name} {100 * counts[name] / total:.1f} %" for name in kinds if counts[name]]
        console.print(", ".join(shares))
