# SPDX-License-Identifier: Apache-2.0
"""Zero-shot study: train with and without each part of zero-shot learning, on the same data.

python -m benchmarks.studies.zero_shot --json rows.json --picture rows.png
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.studies import study
from benchmarks.studies.study import Data, JsonOut, Picture, Row, Seeds, Work
from pcseg_core.cli.options import Device, Steps, adjusted
from pcseg_core.distill.alignment import AlignmentConfig
from pcseg_core.distill.consolidation import ConsolidationConfig
from pcseg_core.errors import InputError
from pcseg_core.evaluation import pictures
from pcseg_core.files import slug
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.learning.zero_shot import zero_shot
from pcseg_core.learning.zero_shot_config import SelfTrainingConfig
from pcseg_core.learning.zero_shot_split import Split, load_split
from pcseg_core.progress import note
from pcseg_core.recipes import recipe_file

SEEN_ONLY = "seen labels alone"
FULL = "+ consolidation"
FREE = "no labels, images alone"
FREE_FULL = "no labels, all parts"

# Parts of the recipe that each row keeps; the others are left out.
ROWS: dict[str, tuple[str, ...]] = {
    SEEN_ONLY: ("seen",),
    "no alignment": (),
    "global": ("global_weight",),
    "local": ("local_weight",),
    "both": ("global_weight", "local_weight"),
    "+ self-training": ("global_weight", "local_weight", "self_training"),
    FULL: ("global_weight", "local_weight", "self_training", "consolidation"),
    "self-training alone": ("self_training",),
    "consolidation alone": ("consolidation",),
    FREE: ("annotation-free",),
    FREE_FULL: (
        "annotation-free",
        "global_weight",
        "local_weight",
        "self_training",
        "consolidation",
    ),
}
_KEYS = ("seen", "unseen", "hiou")


def simulated_data() -> Data:
    """Simulated recordings with two cameras, measured in a town that is not trained in."""
    return study.simulated_data(10, "sweeps=5,stride=5,cameras=2,width=320,height=192", tests=6)


def folder_data(path: Path, test: Sequence[str]) -> Data:
    """The labeled SemanticKITTI sequences with calibration below a folder.

    Sequence 08 is measured on, as is common, or the last one where 08 is missing.

    Args:
        path: folder of sequences.
        test: recordings to measure on instead; they are not trained on.

    Raises:
        InputError: no such sequence, or none left to train on.
    """
    found = [p for p in study.labeled_sequences(path) if (p / "calib.txt").is_file()]
    if not found:
        raise InputError(
            f"{path}: no labeled sequence with calib.txt below it; expected SemanticKITTI "
            "sequences with images and labels, or a source (reader:path) and --test"
        )
    if test:
        tested = [Path(t.partition(":")[2] or t).resolve() for t in test]
    else:
        tested = [next((p for p in found if p.name == "08"), found[-1]).resolve()]
    train = [f"semantic-kitti:{p}" for p in found if p.resolve() not in tested]
    if not train:
        raise InputError(f"{path}: one labeled sequence alone; give others with --test")
    return Data(train, list(test) or [f"semantic-kitti:{p}" for p in tested])


def row_recipe(base: Recipe, row: str, seed: int) -> Recipe:
    """The recipe of a row: the base without the parts that the row leaves out."""
    parts = ROWS[row]
    weights = {
        key: getattr(base.alignment, key) if key in parts else 0.0
        for key in ("global_weight", "local_weight")
    }
    aligned = base.alignment.model_copy(update=weights)
    if not aligned.active:  # settings of an unused part do not change the row
        aligned = AlignmentConfig(**weights, patch_px=base.alignment.patch_px)
    alone = base.labels.model_copy(update={"consolidation": ConsolidationConfig(voxel_m=0)})
    return base.model_copy(
        update={
            "alignment": aligned,
            "supervision": next(
                (p for p in parts if p in ("seen", "annotation-free")), "zero-shot"
            ),
            "self_training": base.self_training
            if "self_training" in parts
            else SelfTrainingConfig(start=1.0),
            "labels": base.labels if "consolidation" in parts else alone,
            "seed": seed,
        }
    )


def digest(recipe: Recipe) -> str:
    """A short hash of everything in a recipe."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]


class ZeroShotStudy(study.Study):
    """Rows of (part, seed). A row whose own recipe has changed is computed again.

    Args:
        base: recipe with all parts.
        data: what is trained on and measured on.
        split: which classes are never labeled.
        out: JSON file of the rows.
        work: folder of caches and runs.
        device: "auto", "cpu" or "cuda".
        names: the rows to compute; all if not given.
        every: train on every k-th sweep only.
    """

    def __init__(
        self,
        base: Recipe,
        data: Data,
        split: Split,
        out: Path,
        work: Path,
        device: str = "auto",
        names: Sequence[str] | None = None,
        every: int = 1,
    ) -> None:
        self.names = study.chosen_rows(names, list(ROWS), "row")
        self.base, self.data, self.split, self.work = base, data, split, work
        self.device, self.every = device, every
        settings = {
            "train": data.train,
            "test": data.test,
            "split": split.model_dump(mode="json"),
            "every": every,
        }
        super().__init__(out, settings, ("row", "seed"))
        self.rows = [row for row in self.rows if row["recipe"] == self._digest(row)]

    def _digest(self, row: Row) -> str:
        return digest(row_recipe(self.base, row["row"], row["seed"]))

    def keys(self, seeds: int) -> Iterator[tuple[str, int]]:
        """Every row with every seed."""
        for seed in range(seeds):
            yield from ((name, seed) for name in self.names)

    def compute(self, name: str, seed: int) -> Row:
        """Train a row and measure it."""
        recipe = row_recipe(self.base, name, seed)
        run = self.work / "runs" / f"{slug(name)}-{seed}-{digest(recipe)}"
        metrics = zero_shot(
            self.data.train,
            self._scans,
            self.split,
            recipe,
            run,
            self.work / "cache",
            self.device,
            self.every,
        )
        figures = ("gamma", "labels", "training_s", "plain", "stacked")
        return {"recipe": digest(recipe), **{key: metrics[key] for key in figures}}

    def headline(self, row: Row) -> str:
        """Mean IoU of seen and unseen classes, and their harmonic mean."""
        return ", ".join(f"{key} {_percent(row['stacked'][key])}" for key in _KEYS)

    def content(self) -> dict[str, Any]:
        """The base recipe and the summary."""
        return {"recipe": self.base.model_dump(mode="json"), "summary": summarize(self.rows)}

    @cached_property
    def _scans(self) -> list[Scan]:
        reach = self.base.student.max_range_m
        return study.scans_of(self.data.test, self.split.space, reach, self.work)


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Per row, in their order: means and deviations over the seeds, with and without stacking."""
    found = []
    for name in ROWS:
        members = [row for row in rows if row["row"] == name]
        if not members:
            continue
        entry: Row = {"row": name, "seeds": len(members)}
        for kind in ("plain", "stacked"):
            for key in _KEYS:
                entry |= study.spread([row[kind][key] for row in members], f"{kind}_{key}")
        found.append(entry)
    return found


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def markdown(content: Mapping[str, Any]) -> str:
    """The summary as a table in Markdown, in percent."""
    lines = [
        "| row | seen | unseen | hIoU | seen, stacked | unseen, stacked | hIoU, stacked | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = [f"{kind}_{key}" for kind in ("plain", "stacked") for key in _KEYS]
    for entry in content["summary"]:
        cells = [f"{_percent(entry[k])} ± {_percent(entry[k + '_deviation'])}" for k in keys]
        lines.append("| " + " | ".join([entry["row"], *cells, str(entry["seeds"])]) + " |")
    return "\n".join(lines)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: seen, unseen and harmonic mean IoU per row, a dot per seed."""
    summary = content["summary"]
    names = [entry["row"] for entry in summary]
    figure = pictures.new_figure(1300, 110 + 62 * len(summary))
    titles = {"seen": "Seen classes", "unseen": "Unseen classes", "hiou": "Harmonic mean"}
    for column, (key, title) in enumerate(titles.items()):
        axes = figure.add_axes((0.19 + 0.27 * column, 0.11, 0.24, 0.77))
        means = [entry[f"plain_{key}"] or 0 for entry in summary]
        dots = [
            [row["plain"][key] or 0 for row in content["rows"] if row["row"] == name]
            for name in names
        ]
        stacked = [entry[f"stacked_{key}"] or 0 for entry in summary]
        study.draw_bars(axes, names if column == 0 else [""] * len(names), means, dots, stacked)
        axes.set_title(title, loc="left", fontsize=11)
    unseen = ", ".join(content["settings"]["split"]["unseen"])
    title = (
        f"mIoU in percent, never labeled: {unseen}; dots are seeds, diamonds means with stacking"
    )
    figure.text(0.015, 0.955, title, fontsize=12)
    pictures.save(figure, path)


def zero_shot_study(
    json_: JsonOut,
    data: Annotated[
        str,
        typer.Option(
            help="simulated, a folder of SemanticKITTI sequences, or reader:path with --test."
        ),
    ] = "simulated",
    split: Annotated[
        str, typer.Option(help="Unseen classes: the name of a split, or a YAML file.")
    ] = "street_vehicle_pole",
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Recipe with all parts; rows leave parts out.")
    ] = "zero-shot-simulated",
    test: Annotated[
        list[str] | None, typer.Option(help="Labeled recordings to measure on.")
    ] = None,
    seeds: Seeds = 3,
    steps: Steps = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Only this row; repeat for several.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Compute at most so many rows in this call.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Train on every k-th sweep only.")] = 1,
    work: Work = None,
    picture: Picture = None,
    device: Device = "auto",
) -> None:
    """Train with and without each part of zero-shot learning, and measure all in the same way.

    Rows: seen labels alone; image labels of unseen classes; global alignment, local, both; with
    self-training; with consolidation; these two alone; and two without any label. Simulated data
    is measured in a town that is not trained in.
    """
    study.check_outputs(json_, picture)
    base = adjusted(load_recipe(recipe_file(recipe)), steps=steps)
    sources, folder = _data(data, test or []), work or json_.with_suffix(".work")
    rows = ZeroShotStudy(base, sources, load_split(split), json_, folder, device, row, every)
    content = rows.run(seeds, note, limit)
    typer.echo(markdown(content))
    if picture:
        draw(content, picture)


def _data(data: str, test: list[str]) -> Data:
    if data == "simulated":
        found = simulated_data()
        return Data(found.train, test or found.test)
    if Path(data).is_dir():
        return folder_data(Path(data), test)
    if ":" not in data:
        raise InputError(f"--data {data}: expected 'simulated', a folder, or reader:path")
    if not test:
        raise InputError(f"--data {data}: give recordings to measure on with --test")
    return Data([data], test)


app = study.command(zero_shot_study)

if __name__ == "__main__":
    app()
