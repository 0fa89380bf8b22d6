# SPDX-License-Identifier: Apache-2.0
"""Cost study: time and memory of the parts of labeling and training, against 10 sweeps per second.

python -m benchmarks.studies.costs --json costs.json --picture costs.png
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.measure import cpu_name
from benchmarks.studies import study
from benchmarks.studies.costs_inputs import Inputs, store
from benchmarks.studies.costs_parts import PARTS, costs_of
from benchmarks.studies.study import JsonOut, Picture, Row, Work
from pcseg_core.evaluation import pictures
from pcseg_core.learning.runs import torch_device
from pcseg_core.progress import note

DRIVE = "simulated:seed=100,town=center,sweeps=2,cameras=1,width=1242,height=375"
SWEEP_MS = 100.0
"""Time between two sweeps at 10 Hz."""


class CostStudy(study.Study):
    """A row per part. Parts that could not run are tried again.

    Args:
        source: recording with poses and a camera, whose first two sweeps are taken.
        out: JSON file of the rows.
        work: folder of the inputs.
        parts: names of parts; all if not given.
        rounds: runs of each part.
        threads: of torch.
        device: "cpu", or "cuda" for the parts that run on a GPU.

    Raises:
        InputError: an unknown part, one that does not run on a GPU, or no GPU.
    """

    def __init__(
        self,
        source: str,
        out: Path,
        work: Path,
        parts: Sequence[str] | None = None,
        rounds: int = 5,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self.source, self.work, self.rounds, self.threads = source, work, rounds, threads
        self.device = torch_device(device)
        there = [name for name, part in PARTS.items() if part.gpu or self.device == "cpu"]
        self.parts = study.chosen_rows(parts, there, "part")
        settings = {"drive": source, "rounds": rounds, "threads": threads, "device": self.device}
        super().__init__(out, settings, ("row",))
        self.rows = [row for row in self.rows if "error" not in row]

    def keys(self, seeds: int) -> Iterator[tuple[str]]:
        """Every part."""
        yield from ((name,) for name in self.parts)

    def compute(self, name: str) -> Row:
        """Costs of a part, and how busy the machine was."""
        part = PARTS[name]
        found = costs_of(name, self._inputs.folder, self.rounds, self.threads, self.device)
        load = round(os.getloadavg()[0], 1)
        return {"per": part.per, "weights": part.weights, "load": load, **found}

    def headline(self, row: Row) -> str:
        """Time and memory, or why there are none."""
        if "error" in row:
            return str(row["error"])
        return f"{row['ms']:.1f} ms, {row['cpu_ms']:.1f} ms CPU, {row['memory_mb']:.0f} MB"

    def content(self) -> dict[str, Any]:
        """The machine and the sizes of the inputs."""
        height, width = self._inputs.image.shape[:2]
        points = [len(xyz) for xyz in self._inputs.clouds]
        size = {"image": [width, height], "points": points}
        gpu = {} if self.device == "cpu" else {"gpu": torch.cuda.get_device_name()}
        return {"cpu": cpu_name(), "cores": os.cpu_count(), **gpu, **size}

    @cached_property
    def _inputs(self) -> Inputs:
        store(self.source, self.work)
        return Inputs.load(self.work)


def markdown(content: Mapping[str, Any]) -> str:
    """Table in Markdown, and a line on the machine."""
    lines = [
        "| part | per | weights | ms | CPU ms | of 100 ms | memory MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        if "error" in row:
            lines.append(f"| {row['row']} | {row['per']} | | not measured: {row['error']} | | | |")
            continue
        share = f"{row[_time(content)] / SWEEP_MS:.2f}"
        times = f"{row['cpu_ms']:.1f} | {share} | {row['ms']:.1f} | {row['memory_mb']:.0f}"
        lines.append(f"| {row['row']} | {row['per']} | {row['weights']} | {times} |")
    loads = [row["load"] for row in content["rows"]]
    machine = f"{content['cpu']}, {content['cores']} cores, {content['settings']['threads']} thread"
    machine = f"{content['gpu']} (its memory); {machine}" if "gpu" in content else machine
    busy = f"load average {min(loads):g} to {max(loads):g}" if loads else "no part measured"
    size = "image {} x {}, sweeps of {} and {} points".format(*content["image"], *content["points"])
    return "\n".join([*lines, "", f"{machine}; {busy}; {size}."])


def _time(content: Mapping[str, Any]) -> str:
    """The time that counts: of the CPU, or from the call to the end of the work of the GPU."""
    return "ms" if "gpu" in content else "cpu_ms"


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: a bar per part on a logarithmic axis, and the time between two sweeps."""
    rows, time = [row for row in content["rows"] if "error" not in row], _time(content)
    figure = pictures.new_figure(1000, 120 + 26 * len(rows))
    axes = figure.add_axes((0.27, 0.1, 0.66, 0.83))
    for place, row in enumerate(rows):
        axes.barh(place, row[time], color="#9ec5fe", height=0.62)
        axes.text(row[time] * 1.1, place, f"{row['cpu_ms']:,.1f}", va="center", fontsize=9)
    axes.axvline(SWEEP_MS, color=pictures.ACCENT, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 10 * max([row[time] for row in rows] or [SWEEP_MS]))
    names = [f"{row['row']}{', random weights' * (row['weights'] == 'random')}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    title = "Time with a GPU" if "gpu" in content else "CPU time"
    axes.set_title(f"{title} in ms; the line is 100 ms, a sweep at 10 Hz", loc="left", fontsize=11)
    pictures.save(figure, path)


def costs(
    json_: JsonOut,
    drive: Annotated[
        str, typer.Option(help="Recording with poses and a camera; its first two sweeps are taken.")
    ] = DRIVE,
    part: Annotated[
        list[str] | None,
        typer.Option(help="Measure only this part; repeat for several.  [default: all]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each part.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda for the parts that run on a GPU.")
    ] = "cpu",
    work: Work = None,
    picture: Picture = None,
) -> None:
    """Measure time and memory of superpixels, teachers, ground, clusters and losses.

    Each part runs in a process of its own. Networks whose weights are not in the package run with
    random weights.
    """
    study.check_outputs(json_, picture)
    folder = work or json_.with_suffix(".work")
    content = CostStudy(drive, json_, folder, part, rounds, threads, device).run(1, note)
    typer.echo(markdown(content))
    if picture:
        draw(content, picture)


app = study.command(costs)

if __name__ == "__main__":
    app()
