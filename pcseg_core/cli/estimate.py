# SPDX-License-Identifier: Apache-2.0
"""`pcseg estimate`: hours, GPU hours and bytes of a job, from a few measured sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pcseg_core.cli.options import Device, Json, RecipeName, Sources
from pcseg_core.cli.outputs import check_file, text_console

if TYPE_CHECKING:
    from rich.table import Table

    from pcseg_core.cluster.estimate import Estimate


def estimate(
    sources: Sources,
    recipe: RecipeName,
    sweeps: Annotated[
        int, typer.Option(min=1, help="Number of sweeps that are measured, besides one to warm up.")
    ] = 5,
    json_: Json = None,
    device: Device = "auto",
) -> None:
    """Tell what labeling and training on recordings costs, before it starts.

    A few of the recordings are opened, a few sweeps of one go through the teachers of the recipe
    and a few steps of the training. The table tells the hours of the whole for several numbers of
    workers, each like this machine.
    """
    check_file(json_, (".json",))
    from pcseg_core.data import find_source
    from pcseg_core.recipes import recipe_file

    file = recipe_file(recipe)
    for source in sources:
        find_source(source)
    from pcseg_core.cluster.estimate import estimate as measure
    from pcseg_core.files import write_atomic
    from pcseg_core.learning.recipe import load_recipe

    found = measure(sources, load_recipe(file), sweeps, device)
    console = text_console(json_)
    for line in _lines(found):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_table(found))
    for line in _limits(found):
        console.print(line, highlight=False, soft_wrap=True)
    if json_:
        write_atomic(json_, found.model_dump_json(indent=2) + "\n")


def _lines(found: Estimate) -> list[str]:
    """What was measured."""
    times, sizes = found.times, found.bytes()
    on = f"GPU {found.gpu}" if found.gpu else "no GPU here: all hours are those of CPUs"
    stored = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items() if size)
    return [
        f"{found.recordings} recordings ({found.opened} opened), about {found.sweeps:,} sweeps "
        f"with {found.cameras:.1f} images",
        f"measured on {found.measured} sweeps: {found.machine}; {on}",
        f"opening a recording {times.opening:.2f} s; per sweep: reading {times.reading:.3f} s, "
        f"teachers {times.teachers:.3f} s, fusing {times.fusing:.3f} s; training step "
        f"{times.step:.2f} s x {found.steps}; loading the teachers {times.loading:.1f} s",
        f"storage: {stored}",
    ]


def _table(found: Estimate) -> Table:
    from rich.table import Table

    table = Table(title="hours of the whole")
    heads = ["workers", "label", "distill: teachers", "distill: fusing and training", "GPU hours"]
    for head in heads if found.gpu else heads[:-1]:
        table.add_column(head, justify="right")
    for row in found.rows:
        cells = [_hours(row.label_h), _hours(row.teachers_h), _hours(row.rest_h)]
        cells += [_hours(row.gpu_h)] if row.gpu_h is not None else []
        table.add_row(str(row.workers), *cells)
    return table


def _limits(found: Estimate) -> list[str]:
    """What the table leaves out."""
    times = found.times
    rate = (
        times.recording
        * found.recordings
        / max(found.sweeps, 1)
        / max(times.reading + times.teachers, 1e-9)
    )
    lines = [f"each worker reads {rate / 1e6:.1f} MB/s from the storage"] if rate else []
    if found.estimated_poses:
        share = f"{100 * found.estimated_poses:.0f} % of the recordings"
        lines.append(
            f"kiss-icp estimates the poses of {share}: each stays with one worker, and the "
            "longest one bounds the time"
        )
    if found.rounds:
        lines.append(
            f"{found.rounds} rounds: each fuses again; the student's own labels come on top"
        )
    lines.append(
        "fusing and training of distill run on one machine, whatever the number of workers"
    )
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" if hours < 10 else f"{hours:.1f}"


def _size(size: float) -> str:
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:,.1f} PB"
