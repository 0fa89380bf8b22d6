# SPDX-License-Identifier: Apache-2.0
"""Projection study: what errors of calibration and time do to projected labels, in simulation.

python -m benchmarks.studies.projection --json rows.json --picture rows.png
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import cpu_name
from benchmarks.studies import study
from benchmarks.studies.projection_faults import (
    DARK,
    EXACT,
    MISSING,
    STILL,
    conditions,
    projected,
    title,
)
from benchmarks.studies.projection_labels import (
    VOTES,
    label_figures,
    training_sweeps,
    unseen_figures,
)
from benchmarks.studies.projection_report import draw, markdown
from benchmarks.studies.projection_views import View, views_of
from benchmarks.studies.study import Data, JsonOut, Picture, Row, Seeds, Work
from pcseg_core.cli.options import Device, Steps, adjusted
from pcseg_core.distill.cache import digest
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.finetune import measure
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.learning.runs import torch_device
from pcseg_core.learning.taught_student import new_module, new_student
from pcseg_core.learning.teachers import Teachers
from pcseg_core.learning.trainer import train
from pcseg_core.learning.zero_shot_split import Split, load_split
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.progress import note
from pcseg_core.recipes import recipe_file
from pcseg_core.vision.pixel_classes import load_teacher

STUDENT = "student: "
TAUGHT = (
    EXACT,
    title("rotation", 1.0),
    title("rotation", 2.0),
    title("position", 0.2),
    title("time", 0.1),
    STILL,
    MISSING,
    DARK,
)
"""Conditions that students are trained under."""

_TRIAL_STEPS = 300
_RIG = "sweeps=4,stride=3,cameras=2,width=480,height=288"
_LIDAR = "beams=32,columns=512"


def simulated_data() -> Data:
    """Small drives with two cameras in four towns, and labeled sweeps of another town."""
    return study.simulated_data(4, _RIG, tests=2, lidar=_LIDAR)


@dataclass(frozen=True)
class Setup:
    """What is labeled, and how.

    Attributes:
        recipe: label settings, least confidence, student and its training.
        split: unseen classes of the zero-shot labels, of the label space of the recipe.
        pixels: "exact" or "teacher", which gives the classes of pixels.
    """

    recipe: Recipe
    split: Split
    pixels: str = "exact"


class ProjectionStudy(study.Study):
    """Rows of (condition, seed): known points, labels by every method, labels of unseen classes.

    Rows of students follow if they are asked for; their names begin with `STUDENT`.

    Args:
        setup: what is labeled, and how.
        data: simulated drives with cameras, and labeled ones that students are measured on.
        out: JSON file of the rows.
        work: folder of the students.
        device: "auto", "cpu" or "cuda".
        chosen: conditions; all if not given.
        students: whether students are trained.

    Raises:
        InputError: drives that are not simulated, an unknown condition, or a split of other
            classes.
    """

    def __init__(
        self,
        setup: Setup,
        data: Data,
        out: Path,
        work: Path,
        device: str = "auto",
        chosen: Sequence[str] | None = None,
        students: bool = False,
    ) -> None:
        self.setup, self.data, self.work, self.device = setup, data, work, device
        self.conditions = conditions()
        if setup.pixels == "exact":  # no teacher sees the dark images
            del self.conditions[DARK]
        self.chosen = study.chosen_rows(chosen, list(self.conditions), "condition")
        self.students = [name for name in TAUGHT if name in self.chosen] if students else []
        self.space = LabelSpace.load(setup.recipe.labels.label_space)
        for source in data.train:
            if not source.startswith("simulated:"):
                raise InputError(f"{source}: expected a simulated drive, whose truth is exact")
        if setup.split.space.names != self.space.names:
            raise InputError(
                f"the split has classes of '{setup.split.label_space}', the labels of "
                f"'{self.space.name}'; give a split of the latter"
            )
        settings = {
            "recipe": setup.recipe.model_dump(mode="json", exclude={"seed"}),
            "split": setup.split.model_dump(mode="json"),
            "pixels": setup.pixels,
            **{name: getattr(data, name) for name in ("train", "test")},
        }
        super().__init__(out, settings, ("row", "seed"))

    def keys(self, seeds: int) -> Iterator[tuple[str, int]]:
        """Every condition, then every student, with every seed."""
        for seed in range(seeds):
            yield from ((name, seed) for name in self.chosen)
        for seed in range(seeds):
            yield from ((f"{STUDENT}{name}", seed) for name in self.students)

    def compute(self, name: str, seed: int) -> Row:
        """Figures of a condition, or of a student under it."""
        if name.startswith(STUDENT):
            return self._student(name.removeprefix(STUDENT), seed)
        condition, recipe = self.conditions[name], self.setup.recipe
        least = recipe.loss.min_confidence
        known = (self._views, condition, seed, recipe.labels)
        return {
            "points": projected([view.sample for view in self._views], condition, seed),
            "labels": label_figures(*known, least),
            "unseen": unseen_figures(*known, self.setup.split, least),
        }

    def headline(self, row: Row) -> str:
        """Accuracy of the labels by votes, or mean IoU of the student."""
        if "student" in row:
            return f"{100 * row['student']['miou']:.1f} mIoU"
        found = row["labels"][VOTES]
        return f"{row['points']['all']['px']:.2f} px, {100 * (found['accuracy'] or 0):.1f} % right"

    def content(self) -> dict[str, Any]:
        """The machine."""
        return {"cpu": cpu_name()}

    def _student(self, name: str, seed: int) -> Row:
        recipe = adjusted(self.setup.recipe, seed)
        known = {"recipe": recipe.model_dump(mode="json"), "row": name, "pixels": self.setup.pixels}
        out = self.work / "students" / digest({**known, "train": self.data.train})[:16]
        sweeps = training_sweeps(self._views, self.conditions[name], seed, recipe.labels)
        student = new_student(recipe, sweeps, self.space, None)
        figures = train(new_module(student, sweeps, recipe, Teachers(self.space)), out, self.device)
        confusion = measure(student, self._scans, len(self.space), torch_device(self.device))
        measured = Figures.of(confusion, self.space.names, merge_of(self.space))
        return {"student": measured.model_dump(exclude_none=True), **figures}

    @cached_property
    def _views(self) -> list[View]:
        teacher = None
        if self.setup.pixels == "teacher":
            config = self.setup.recipe.required_teacher()
            teacher = load_teacher(config, torch_device(self.device))
        return views_of(self.data.train, self.space, teacher)

    @cached_property
    def _scans(self) -> list[Scan]:
        reach = self.setup.recipe.student.max_range_m
        return study.scans_of(self.data.test, self.space, reach, self.work)


def projection(
    json_: JsonOut,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Simulated drive with cameras, without faults; repeat for several.  "
            "[default: 4 towns]"
        ),
    ] = None,
    pixels: Annotated[
        str, typer.Option(help="Classes of the pixels: exact, or teacher for those of the recipe.")
    ] = "exact",
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Study only this condition; repeat for several.  [default: all]"),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Labeled recording to measure students on.  [default: another town]"),
    ] = None,
    students: Annotated[
        bool, typer.Option("--students", help="Train a student under some conditions as well.")
    ] = False,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Settings of labels and students.")
    ] = "simulated",
    split: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Unseen classes of the zero-shot labels.")
    ] = "street_vehicle_pole",
    seeds: Seeds = 1,
    steps: Steps = _TRIAL_STEPS,
    work: Work = None,
    picture: Picture = None,
    device: Device = "auto",
) -> None:
    """Measure projected labels against exact truth, under errors of calibration and time.

    Known points are projected and compared with their exact pixels. Labels are compared by class,
    distance, distance to the image border, occlusion and motion: from the sweep's own images, from
    votes over the scene, and consolidated; each with the occlusion test and without.
    """
    study.check_outputs(json_, picture)
    if pixels not in ("exact", "teacher"):
        raise InputError(f"--pixels {pixels}: expected exact or teacher")
    base = adjusted(load_recipe(recipe_file(recipe)), steps=steps)
    default = simulated_data()
    drives = Data(data or default.train, test or default.test)
    folder = work or json_.with_suffix(".work")
    setup = Setup(base, load_split(split), pixels)
    rows = ProjectionStudy(setup, drives, json_, folder, device, condition, students)
    content = rows.run(seeds, note)
    typer.echo(markdown(content))
    if picture:
        draw(content, picture)


app = study.command(projection)

if __name__ == "__main__":
    app()
