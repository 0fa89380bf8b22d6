# SPDX-License-Identifier: Apache-2.0
"""Label study: what each part of a recipe is worth, alone and left out, also without ground truth.

python -m benchmarks.studies.labels --data DRIVE --held-out OTHER --json rows.json
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import cpu_name
from benchmarks.studies import study
from benchmarks.studies.labels_measures import HeldOutSweep, held_out_sweeps, measure
from benchmarks.studies.labels_parts import PARTS, switched_on, uncorrected, variants
from benchmarks.studies.labels_report import draw, figure_of, markdown, summarize
from benchmarks.studies.study import Data, JsonOut, Picture, Row, Seeds, Work
from pcseg_core.cli.options import Device, Steps, adjusted
from pcseg_core.distill.cache import digest
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.distill import distill
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.progress import note
from pcseg_core.recipes import recipe_file

_TRIAL_STEPS = 100  # on the simulated drives
_RIG = "sweeps=4,stride=2,cameras=1,width=320,height=192"
_LIDAR = "beams=32,columns=512"


@dataclass
class Drives(Data):
    """Sources of the study.

    Attributes:
        held_out: recordings with cameras that nothing is trained on.
    """

    held_out: list[str] = field(default_factory=list)


def simulated_data() -> Drives:
    """Small simulated recordings with a camera, held-out ones and labeled ones of another town."""
    found = study.simulated_data(4, _RIG, tests=2, lidar=_LIDAR)
    held_out = [f"simulated:seed={700 + k},town={study.TEST_TOWN},{_RIG},{_LIDAR}" for k in (0, 1)]
    return Drives(found.train, found.test, held_out=held_out)


class LabelStudy(study.Study):
    """Rows of (row, seed): all parts, no part, each part left out, each part alone.

    Rows of equal recipes are one row, which stands for the others.

    Args:
        base: recipe with a camera teacher.
        data: what is trained on and measured on.
        out: JSON file of the rows.
        work: folder of caches and runs.
        device: "auto", "cpu" or "cuda".
        parts: parts to study; all that the recipe has if not given.

    Raises:
        InputError: the recipe has no camera teacher, none of the parts, or not one that was given.
    """

    def __init__(
        self,
        base: Recipe,
        data: Drives,
        out: Path,
        work: Path,
        device: str = "auto",
        parts: Sequence[str] | None = None,
    ) -> None:
        base.required_teacher()
        on = switched_on(base)
        if not on:
            raise InputError(f"the recipe has none of the parts {', '.join(PARTS)}")
        self.parts = study.chosen_rows(parts, on, "switched-on part")
        self.absent = [name for name in PARTS if name not in on]
        self.base, self.data, self.work, self.device = base, data, work, device
        self.recipes = variants(base, self.parts)
        self.space = LabelSpace.load(base.labels.label_space)
        settings = {
            "recipe": base.model_dump(mode="json", exclude={"seed"}),
            "parts": self.parts,
            **{name: getattr(data, name) for name in ("train", "held_out", "test")},
        }
        super().__init__(out, settings, ("row", "seed"))

    @cached_property
    def same(self) -> dict[str, str]:
        """For each row the first one with its recipe."""
        known = list(self.recipes.items())
        return {
            name: next(first for first, other in known if other == recipe) for name, recipe in known
        }

    def keys(self, seeds: int) -> Iterator[tuple[str, int]]:
        """Every row whose recipe no earlier one has, with every seed."""
        for seed in range(seeds):
            yield from ((name, seed) for name, first in self.same.items() if name == first)

    def compute(self, name: str, seed: int) -> Row:
        """Train a student and measure it."""
        recipe = adjusted(self.recipes[name], seed)
        run = self.work / "runs" / digest({"recipe": recipe.model_dump(mode="json")})[:16]
        trained = distill(self.data.train, recipe, run, self.work / "cache", self.device)
        found = measure(Segmenter.load(run, self.device, "fp32"), self._held_out)
        if self.data.test:
            found["truth"] = study.run_figures(run, self._scans, self.space, self.device)
        times = {key: trained[key] for key in ("labeling_s", "training_s")}
        return {"run": run.name, **found, **times}

    def headline(self, row: Row) -> str:
        """Mean IoU against the camera teacher and, if known, the ground truth."""
        figures = {name: figure_of(row, name) for name in ("agreement", "truth")}
        told = (f"{name} {100 * value:.1f} mIoU" for name, value in figures.items() if value)
        return ", ".join(told)

    def content(self) -> dict[str, Any]:
        """Parts, rows that stand for others, the summary, and the machine."""
        return {
            "cpu": cpu_name(),
            "parts": self.parts,
            "absent": self.absent,
            "same": self.same,
            "summary": summarize(self.rows),
        }

    @cached_property
    def _held_out(self) -> list[HeldOutSweep]:
        plain = uncorrected(self.base, self.parts)
        sources, cache = self.data.held_out, self.work / "cache"
        return held_out_sweeps(sources, self.base, plain, cache, self.device)

    @cached_property
    def _scans(self) -> list[Scan]:
        reach = self.base.student.max_range_m
        return study.scans_of(self.data.test, self.space, reach, self.work)


def labels(
    json_: JsonOut,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Recording with cameras to train on; repeat for several.  [default: simulated]"
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="Recording with cameras to measure on, of other places; with --data."),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Labeled recording to measure on as well.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Recipe with a camera teacher.  [default: kitti; simulated without --data]",
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="Study only this part; repeat for several.  [default: all it has]"),
    ] = None,
    seeds: Seeds = 1,
    steps: Steps = None,
    work: Work = None,
    picture: Picture = None,
    device: Device = "auto",
) -> None:
    """Measure what each part of a recipe is worth: alone, and left out of all.

    The students are measured without labels: against the camera teacher on held-out recordings,
    and by how many labels stay when a sweep is turned or the next one sees the same place. With
    labeled recordings they are measured against the ground truth too.
    """
    study.check_outputs(json_, picture)
    drives = _drives(data, held_out, test)
    if not data:
        steps = steps or _TRIAL_STEPS
    base = load_recipe(recipe_file(recipe or ("kitti" if data else "simulated")))
    folder = work or json_.with_suffix(".work")
    rows = LabelStudy(adjusted(base, steps=steps), drives, json_, folder, device, part)
    note(f"parts: {', '.join(rows.parts)}; not in the recipe: {', '.join(rows.absent)}")
    content = rows.run(seeds, note)
    typer.echo(markdown(content))
    if picture:
        draw(content, picture)


def _drives(train: list[str] | None, held_out: list[str] | None, test: list[str] | None) -> Drives:
    if train and not held_out:
        raise InputError("--data needs --held-out, recordings with cameras of other places")
    default = Drives([], []) if train else simulated_data()
    return Drives(
        train or default.train, test or default.test, held_out=held_out or default.held_out
    )


app = study.command(labels)

if __name__ == "__main__":
    app()
