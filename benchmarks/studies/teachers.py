# SPDX-License-Identifier: Apache-2.0
"""Teacher study: camera teachers and superpixels, compared by what networks learn from them.

python -m benchmarks.studies.teachers --teacher a.yaml --teacher b.yaml --superpixels slic \
    --json rows.json --picture rows.png
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from benchmarks.studies import study
from benchmarks.studies.study import Data, JsonOut, Picture, Row, Seeds, Work
from benchmarks.studies.teachers_report import TASKS, draw, figure_of, markdown, summarize
from pcseg_core.cli.options import Device, Steps, adjusted
from pcseg_core.config import read_yaml, yaml_mapping
from pcseg_core.data import open_recording
from pcseg_core.distill.cache import digest
from pcseg_core.errors import InputError
from pcseg_core.files import slug
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.distill import distill
from pcseg_core.learning.pretrain import pretrain
from pcseg_core.learning.probe import FrozenNetwork, Scan, probe_features
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.learning.runs import torch_device
from pcseg_core.learning.zero_shot import zero_shot
from pcseg_core.learning.zero_shot_split import Split, load_split
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.progress import note
from pcseg_core.recipes import recipe_file
from pcseg_core.vision.pixel_classes import TeacherConfig, read_teacher
from pcseg_core.vision.registry import KindConfig
from pcseg_core.vision.superpixel_kinds import SUPERPIXELS, SuperpixelConfig, SuperpixelOptions

Options = TypeVar("Options", bound=KindConfig)


@dataclass
class Source:
    """A teacher or a kind of superpixels, or why it cannot be used.

    Attributes:
        name: of its rows.
        options: of the kind; None with an error.
        error: why it cannot be read.
    """

    name: str
    options: TeacherConfig | SuperpixelOptions | None = None
    error: str = ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it is compared in: superpixels teach without classes, which a probe measures."""
        return ("probe",) if isinstance(self.options, SuperpixelOptions) else TASKS


def read_sources(given: Sequence[str], read: Callable[[str], Options], role: str) -> list[Source]:
    """Sources of the options that the user gave; one that cannot be read is kept with its error.

    Args:
        given: names, files or blocks.
        read: gives the options of one.
        role: for the names of the rows.

    Raises:
        InputError: two of the same name.
    """
    found: list[Source] = []
    for text in given:
        name = f"{role} {text if text.lstrip().startswith('{') else Path(text).stem}"
        if any(source.name == name for source in found):
            raise InputError(f"two {role}s are called '{name}'; give files of different names")
        try:
            found.append(Source(name, read(text)))
        except Exception as error:  # also of the code of other packages
            found.append(Source(name, error=_reason(error)))
    return found


def read_superpixels(source: str) -> SuperpixelOptions:
    """Options of superpixels: the name of a kind, a block in braces, or a YAML file of a block.

    Raises:
        InputError: no such kind or file, or a wrong block.
    """
    if source.lstrip().startswith("{"):
        return SUPERPIXELS.parse(yaml_mapping(source, "superpixels"), "superpixels")
    if Path(source).suffix in (".yaml", ".yml"):
        found = read_yaml(source)
        return SUPERPIXELS.parse(found.get("superpixels", found), source).relative_to(
            Path(source).parent
        )
    return SUPERPIXELS.parse({"name": source}, "--superpixels")


@dataclass
class Bases:
    """Recipes whose teacher or superpixels the rows replace, one per task.

    Attributes:
        distillation, probe, zero_shot: the recipes.
        split: unseen classes of the zero-shot rows.
    """

    distillation: Recipe
    probe: Recipe
    zero_shot: Recipe
    split: Split

    def recipe(self, task: str, source: Source, seed: int) -> Recipe:
        """The recipe of a row."""
        options, changes = source.options, dict[str, Any](seed=seed)
        if task != "probe":
            base = self.distillation if task == "distillation" else self.zero_shot
            return base.model_copy(update={**changes, "teacher": options})
        if isinstance(options, TeacherConfig):
            own = self.probe.superpixels
            known = own if isinstance(own, SuperpixelConfig) else SuperpixelConfig()
            options = known.model_copy(update={"name": "semantic", "teacher": options})
        return self.probe.model_copy(update={**changes, "superpixels": options})


class TeacherStudy(study.Study):
    """Rows of (source, task, seed). Rows that failed, or whose recipe changed, are done again.

    Args:
        sources: teachers and superpixels.
        bases: recipes that they go into.
        data: what is trained on, fitted to and measured on.
        out: JSON file of the rows.
        work: folder of caches and runs.
        device: "auto", "cpu" or "cuda".
        tasks: the tasks to compare in; all if not given.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        bases: Bases,
        data: Data,
        out: Path,
        work: Path,
        device: str = "auto",
        tasks: Sequence[str] | None = None,
    ) -> None:
        self.tasks = study.chosen_rows(tasks, TASKS, "task")
        self.sources = {source.name: source for source in sources}
        self.bases, self.data, self.work, self.device = bases, data, work, device
        self.space = LabelSpace.load(bases.distillation.labels.label_space)
        super().__init__(out, vars(data), ("source", "task", "seed"))
        self.rows = [row for row in self.rows if "error" not in row and self._is_current(row)]

    def _is_current(self, row: Row) -> bool:
        key = (row["source"], row["task"], row["seed"])
        return row["source"] not in self.sources or row["recipe"] == self._digest(*key)

    def _digest(self, name: str, task: str, seed: int) -> str:
        source = self.sources[name]
        recipe = self.bases.recipe(task, source, seed)
        parts = {"recipe": recipe.model_dump(mode="json"), "split": self.bases.split.unseen}
        return "" if source.options is None else digest(parts)

    def keys(self, seeds: int) -> Iterator[tuple[str, str, int]]:
        """Every source in each of its tasks, with every seed."""
        for seed in range(seeds):
            for name, source in self.sources.items():
                yield from ((name, task, seed) for task in self.tasks if task in source.tasks)

    def compute(self, name: str, task: str, seed: int) -> Row:
        """Train and measure a row; a source that fails gets a row with its error."""
        source, key = self.sources[name], {"recipe": self._digest(name, task, seed)}
        if source.error:
            return {**key, "error": source.error}
        train = {"distillation": self._distill, "probe": self._probe, "zero-shot": self._zero_shot}
        run = self.work / "runs" / f"{slug(name)[-60:]}-{task}-{seed}-{key['recipe'][:8]}"
        try:
            return {**key, **train[task](self.bases.recipe(task, source, seed), run)}
        except Exception as error:  # also of the code of other packages
            return {**key, "error": _reason(error)}

    def headline(self, row: Row) -> str:
        """The figure of the task, or why there is none."""
        return f"failed: {row['error']}" if "error" in row else f"{100 * figure_of(row):.1f}"

    def content(self) -> dict[str, Any]:
        """Names of the classes, and the summary."""
        known = [row for row in self.rows if row["source"] in self.sources]
        return {"classes": list(self.space.names), "summary": summarize(known)}

    def _scans(self, sources: Sequence[str]) -> list[Scan]:
        reach = self.bases.distillation.student.max_range_m
        return study.scans_of(sources, self.space, reach, self.work)

    @cached_property
    def _probe_scans(self) -> tuple[list[Scan], list[Scan]]:
        fit, test = self._scans(self.data.fit), self._scans(self.data.test)
        return (fit[::2], test[1::2]) if self.data.split else (fit, test)

    def _distill(self, recipe: Recipe, run: Path) -> Row:
        distill(self.data.train, recipe, run, self.work / "cache", self.device)
        return study.run_figures(run, self._scans(self.data.test), self.space, self.device)

    def _probe(self, recipe: Recipe, run: Path) -> Row:
        pretrain(self.data.train, recipe, run, self.work / "cache", self.device)
        network = FrozenNetwork.load(run, torch_device(self.device))
        fit, test = self._probe_scans
        found = probe_features(network, fit, test, len(self.space), seed=recipe.seed)
        figures = Figures.of(found.confusion, self.space.names, merge_of(self.space))
        return figures.model_dump(exclude_none=True)

    def _zero_shot(self, recipe: Recipe, run: Path) -> Row:
        if open_recording(self.data.train[0]).label_space is None:
            recipe = recipe.model_copy(update={"supervision": "annotation-free"})
        scans = self._scans(self.data.test)
        cache, split = self.work / "cache", self.bases.split
        found = zero_shot(self.data.train, scans, split, recipe, run, cache, self.device)
        return {"supervision": recipe.supervision, **found["plain"]}


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def simulated_data() -> Data:
    """Simulated recordings with two cameras, measured in a town that is not trained in."""
    return study.simulated_data(8, "sweeps=4,stride=2,cameras=2,width=320,height=192", tests=4)


def teachers(
    json_: JsonOut,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Camera teacher: the name of a recipe, a YAML file with its block, or the block "
            "in braces; repeat for several.",
        ),
    ] = None,
    superpixels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Superpixels: slic, sam or another kind, a YAML file or a block in braces; repeat "
            "for several.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Recording with cameras; repeat for several.  [default: simulated]"),
    ] = None,
    fit: Annotated[
        list[str] | None, typer.Option(help="Labeled recording the probes are fitted to.")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="Labeled recording to measure on.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(TASKS)}; repeat.  [default: all]")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Base recipe of the distillation.")
    ] = None,
    probe_recipe: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Base recipe of the pretraining.")
    ] = None,
    zero_shot_recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Base recipe of zero-shot learning.")
    ] = "zero-shot-simulated",
    split: Annotated[str, typer.Option(help="Unseen classes.")] = "street_vehicle_pole",
    seeds: Seeds = 1,
    steps: Steps = None,
    work: Work = None,
    picture: Picture = None,
    device: Device = "auto",
) -> None:
    """Compare camera teachers and superpixels by what networks learn from them.

    A teacher labels a distillation, its class regions are the superpixels of a pretraining that a
    linear probe measures, and it labels unseen classes in zero-shot learning (all classes, if the
    recordings have no labels). Superpixels are compared by the probe. A source that fails is
    named, and the others go on. Interrupted studies resume.
    """
    study.check_outputs(json_, picture)
    sources = read_sources(teacher or (), read_teacher, "teacher")
    sources += read_sources(superpixels or (), read_superpixels, "superpixels")
    if not sources:
        raise InputError("nothing to compare; give --teacher and --superpixels")
    names = (
        recipe or ("kitti" if data else "simulated"),
        probe_recipe or ("contrast-kitti" if data else "contrast"),
        zero_shot_recipe,
    )
    recipes = (adjusted(load_recipe(recipe_file(name)), steps=steps) for name in names)
    bases = Bases(*recipes, load_split(split))
    folder = work or json_.with_suffix(".work")
    rows = TeacherStudy(sources, bases, _data(data, fit, test), json_, folder, device, task)
    content = rows.run(seeds, note)
    typer.echo(markdown(content))
    if picture:
        draw(content, picture)
    if any(row["errors"] for row in content["summary"]):
        raise typer.Exit(1)


def _data(train: list[str] | None, fit: list[str] | None, test: list[str] | None) -> Data:
    if not train:
        found = simulated_data()
        return Data(found.train, test or found.test, fit or found.fit)
    if not test:
        raise InputError("--data needs --test, labeled recordings to measure on")
    return Data(train, test, fit or test)


app = study.command(teachers)

if __name__ == "__main__":
    app()
