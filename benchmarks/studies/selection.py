# SPDX-License-Identifier: Apache-2.0
"""Selection study: which sweeps a person corrects, and what the student gains by it.

python -m benchmarks.studies.selection --json selection.json --picture selection.png

A simulated annotator gives the true labels of the chosen sweeps. A student that learned from a
camera teacher alone is trained further on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.studies import study
from benchmarks.studies.study import JsonOut, Picture, Row, Seeds, Work
from pcseg_core.bundled import FILE_NAME
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cli.options import Device
from pcseg_core.data import Sample, evenly_spaced, open_recording
from pcseg_core.distill.observation import ClassEvidence
from pcseg_core.evaluation import pictures
from pcseg_core.evaluation.selection import Analyst, Candidate, candidates, select
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.distill import distill
from pcseg_core.learning.finetune import FinetuneRecipe, finetune, measure, read_labeled
from pcseg_core.learning.recipe import LossConfig, OptimizerConfig, Recipe
from pcseg_core.learning.runs import torch_device
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.models.student import StudentConfig, load_student, stored_config
from pcseg_core.progress import note
from pcseg_core.vision.pixel_classes import load_teacher
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

WAYS = ("select", "random", "even")
BUDGETS = (2, 4, 8)
RIG = "sweeps={sweeps},stride=6,cameras=1,width=160,height=96"
LIDAR = "beams=24,columns=512"
SPACE = LabelSpace.load("street")


class Rendered:
    """A simulated drive that is rendered once."""

    def __init__(self, source: str) -> None:
        drive = open_recording(source)
        self.name, self.label_space, self.scenes = source, drive.label_space, drive.scenes
        self.pose_source, self.skipped = drive.pose_source, Counter[str]()
        self.samples = [drive[index] for index in range(len(drive))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class SelectionStudy(study.Study):
    """Rows of (way, budget, seed); way "none" is the student before any correction.

    Args:
        out: JSON file of the rows.
        work: folder of caches and runs.
        drives: number of drives to choose from.
        sweeps: of each drive.
        steps: of the first training, and of that on corrected sweeps.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(
        self, out: Path, work: Path, drives: int, sweeps: int, steps: tuple[int, int], device: str
    ) -> None:
        self.work, self.device = work, device
        data = study.simulated_data(drives, RIG.format(sweeps=sweeps), 4, LIDAR)
        self.train_sources, self.test_sources = data.train, data.test
        self.recipe = Recipe(
            teacher=ESPNetv2Config(
                weights=Path("bundled:simulation_teacher"), label_space="simulation", scales=(1.0,)
            ),
            student=StudentConfig(depth=14, width=0.25, voxel_size_m=0.3),
            optimizer=OptimizerConfig(steps=steps[0], batch_size=2),
            loss=LossConfig(min_confidence=0.5),
        )
        self.tuning = FinetuneRecipe(optimizer=OptimizerConfig(steps=steps[1], batch_size=2))
        settings = {
            "recipe": self.recipe.model_dump(mode="json"),
            "tuning": self.tuning.model_dump(mode="json"),
            "train": self.train_sources,
            "test": self.test_sources,
        }
        super().__init__(out, settings, ("way", "budget", "seed"))
        self.scans = cache(self._scans)
        self.drives = cache(self._drives)
        self.pool = cache(self._pool)
        self.candidates = cache(self._candidates)

    def keys(self, seeds: int) -> Iterator[tuple[str, int, int]]:
        """The student before, and every way with every budget, for each seed."""
        for seed in range(seeds):
            yield "none", 0, seed
            for budget in BUDGETS:
                yield from ((way, budget, seed) for way in WAYS)

    def compute(self, way: str, budget: int, seed: int) -> Row:
        """Correct the chosen sweeps, train further and measure."""
        run = self._first(seed)
        if way == "none":
            state, meta = load_checkpoint(run)
            config = stored_config(meta.student, run)
            student = load_student(config, len(SPACE), state, run)
            confusion = measure(student, self.scans(), len(SPACE), torch_device(self.device))
            return Figures.of(confusion, SPACE.names, merge_of(SPACE)).model_dump()
        pool = self.pool()
        chosen = self._chosen(way, budget, seed)
        recipe = self.tuning.model_copy(update={"seed": seed})
        folder = self.work / f"{way}-{budget}-{seed}"
        sweeps = [pool[place] for place in chosen]
        found = finetune(run, sweeps, self.scans(), SPACE, recipe, folder, self.device)
        rare = {name: int(sum((s.label == k).sum() for s in sweeps)) for k, name in _rare()}
        return {"chosen": chosen, "rare": rare, **found["test"]}

    def headline(self, row: Row) -> str:
        """Mean IoU."""
        return f"{100 * row['miou']:.1f} mIoU"

    def content(self) -> dict[str, Any]:
        """Mean and deviation by way and budget."""
        return {"summary": summarize(self.rows)}

    def _chosen(self, way: str, budget: int, seed: int) -> list[int]:
        """Places in the pool of the sweeps to correct."""
        total = len(self.pool())
        if way == "even":
            return evenly_spaced(total, budget)
        if way == "random":
            rng = np.random.default_rng([seed, budget])
            return sorted(rng.choice(total, budget, replace=False).tolist())
        starts = np.cumsum([0, *(len(drive) for drive in self.drives().values())])
        first = dict(zip(self.drives(), starts.tolist()))
        chosen = select(self.candidates(seed), budget)
        return sorted(first[one.source] + one.index for one in chosen)

    def _first(self, seed: int) -> Path:
        """The student that learned from the teacher alone."""
        run = self.work / f"first-{seed}"
        if not (run / FILE_NAME).is_file():
            recipe = self.recipe.model_copy(update={"seed": seed})
            distill(self.train_sources, recipe, run, self.work / "cache", self.device)
        return run

    def _candidates(self, seed: int) -> Sequence[Candidate]:
        run = self._first(seed)
        state, meta = load_checkpoint(run)
        config = stored_config(meta.student, run)
        settings = self.recipe.required_teacher()
        network = load_teacher(settings, torch_device(self.device))
        teacher = ClassEvidence(network, self.recipe.labels, settings.identity, required=False)
        student = load_student(config, len(SPACE), state, run)
        return candidates(Analyst(student, teacher, config.max_range_m), self.drives()).found

    def _drives(self) -> Mapping[str, Rendered]:
        return {source: Rendered(source) for source in self.train_sources}

    def _pool(self) -> list[TrainingSweep]:
        """All sweeps to choose from, with their true labels."""
        reach = self.recipe.student.max_range_m
        drives = self.drives().values()
        return [sweep for drive in drives for sweep in read_labeled(drive, SPACE, reach)]

    def _scans(self) -> Any:
        return study.scans_of(
            self.test_sources, SPACE, self.recipe.student.max_range_m, self.work / "cache"
        )


def _rare() -> list[tuple[int, str]]:
    return [(SPACE.index(name), name) for name in ("person", "pole")]


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Mean and deviation of the mIoU over the seeds, by way and budget."""
    found: list[Row] = []
    for way, budget in dict.fromkeys((row["way"], row["budget"]) for row in rows):
        same = [row["miou"] for row in rows if (row["way"], row["budget"]) == (way, budget)]
        found.append(
            {"way": way, "budget": budget, "seeds": len(same), **study.spread(same, "miou")}
        )
    return found


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: mIoU over the number of corrected sweeps."""
    figure = pictures.new_figure(900, 600)
    axes = figure.add_axes((0.09, 0.12, 0.87, 0.78))
    start = [row for row in content["summary"] if row["way"] == "none"]
    for way, color in zip(WAYS, (pictures.ACCENT, "#8b949e", "#f0a202")):
        members = [*start, *(row for row in content["summary"] if row["way"] == way)]
        x = [row["budget"] for row in members]
        y = [100 * row["miou"] for row in members]
        deviation = [100 * row["miou_deviation"] for row in members]
        axes.errorbar(x, y, deviation, marker="o", capsize=3, color=color, label=way)
    axes.set_xlabel("corrected sweeps")
    axes.set_title("mIoU in percent, mean and deviation of the seeds", loc="left", fontsize=11)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    pictures.save(figure, path)


def selection(
    json_: JsonOut,
    work: Work = None,
    picture: Picture = None,
    seeds: Seeds = 3,
    drives: Annotated[int, typer.Option(min=1, help="Drives to choose from.")] = 8,
    sweeps: Annotated[int, typer.Option(min=1, help="Sweeps of each drive.")] = 6,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the first training.")] = 150,
    more: Annotated[int, typer.Option(min=1, help="Steps on corrected sweeps.")] = 40,
    device: Device = "auto",
) -> None:
    """Compare `pcseg select` with random and evenly spaced choice, by a simulated annotator.

    Interrupted studies resume: run the same command again.
    """
    study.check_outputs(json_, picture)
    folder = work or json_.with_suffix(".work")
    rows = SelectionStudy(json_, folder, drives, sweeps, (steps, more), device)
    content = rows.run(seeds, note)
    for row in content["summary"]:
        spread = 100 * row["miou_deviation"]
        note(f"{row['way']:>7} {row['budget']:2d}: {100 * row['miou']:.1f} +- {spread:.1f} mIoU")
    if picture is not None:
        draw(content, picture)


app = study.command(selection)

if __name__ == "__main__":
    app()
