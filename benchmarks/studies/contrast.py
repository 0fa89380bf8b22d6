# SPDX-License-Identifier: Apache-2.0
"""Contrast study: pretrain by each objective from one start and probe each in the same way.

python -m benchmarks.studies.contrast --json rows.json --picture rows.png
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.studies import study
from benchmarks.studies.study import Data, JsonOut, Picture, Row, Seeds, Work
from pcseg_core.cli.options import Device, Steps, adjusted
from pcseg_core.data import Recording, open_recording
from pcseg_core.errors import InputError
from pcseg_core.evaluation import pictures
from pcseg_core.evaluation.baselines import raw_inputs
from pcseg_core.files import slug
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.pretrain import pretrain
from pcseg_core.learning.probe import Features, FrozenNetwork, Scan, probe_features, untrained
from pcseg_core.learning.recipe import Recipe, load_recipe
from pcseg_core.learning.runs import on_gpu
from pcseg_core.metrics.figures import Figures, merge_of
from pcseg_core.progress import note
from pcseg_core.recipes import recipe_file

RAW, UNTRAINED = "raw inputs", "random"

# Changes of the recipe by method: loss weights, and the kind of superpixels.
METHODS: dict[str, dict[str, Any]] = {
    "slic contrast": {"superpixel": 1.0, "kind": "slic"},
    "semantic contrast": {"superpixel": 1.0},
    "+ temporal": {"superpixel": 1.0, "temporal": 1.0},
    "+ point-to-segment": {"superpixel": 1.0, "temporal": 1.0, "point_to_segment": 1.0},
    "point-pixel contrast": {"point_pixel": 1.0, "kind": "slic"},
    "regression": {"regression": 1.0},
    "best mix": {"superpixel": 1.0, "temporal": 0.2, "point_to_segment": 0.2, "paired": 0.5},
}
_TERMS = ("superpixel", "temporal", "point_to_segment", "point_pixel", "regression")


def simulated_data() -> Data:
    """Simulated recordings with two cameras, probed in a town that is not trained in."""
    return study.simulated_data(8, "sweeps=4,stride=2,cameras=2,width=640,height=384", tests=4)


def folder_data(path: Path, fit: Sequence[str], test: Sequence[str]) -> Data:
    """All KITTI recordings with cameras below a folder, and its labeled sequences.

    Args:
        path: folder of raw drives, object frames and SemanticKITTI sequences.
        fit: labeled recordings to fit probes to instead.
        test: labeled recordings to measure on instead.

    Raises:
        InputError: no recording, or no labeled sweeps to probe with.
    """
    raw = sorted({p.parent for p in path.glob("**/velodyne_points")})
    objects = sorted(
        p.parent
        for p in path.glob("**/velodyne")
        if (p.parent / "image_2").is_dir() and (p.parent / "calib").is_dir()
    )
    train = [f"kitti-raw:{p}" for p in raw] + [f"kitti-object:{p}" for p in objects]
    if not train:
        raise InputError(f"{path}: no KITTI raw drive or object folder below it to train on")
    if fit and test:
        return Data(train, fit=list(fit), test=list(test))
    sources = [f"semantic-kitti:{p}" for p in study.labeled_sequences(path)]
    if not sources:
        raise InputError(f"{path}: no labeled sequence below it; give --fit and --test")
    return Data(train, fit=sources[:1], test=sources[1:] or sources)


def method_recipe(base: Recipe, method: str, seed: int) -> Recipe:
    """The recipe of a method: the base with its losses and its kind of superpixels."""
    changes = dict(METHODS[method])
    kind = changes.pop("kind", base.superpixels.name)
    loss = base.loss.model_copy(update={**dict.fromkeys(_TERMS, 0.0), **changes})
    superpixels = base.superpixels.model_copy(update={"name": kind})
    return base.model_copy(update={"loss": loss, "superpixels": superpixels, "seed": seed})


class ContrastStudy(study.Study):
    """Rows of (method, seed).

    Args:
        base: recipe that the methods change.
        data: what is trained on, fitted to and measured on.
        out: JSON file of the rows.
        work: folder of caches and runs.
        space: label space of the probes.
        device: "auto", "cpu" or "cuda".
        methods: the methods to run; all if not given.
    """

    def __init__(
        self,
        base: Recipe,
        data: Data,
        out: Path,
        work: Path,
        space: LabelSpace,
        device: str = "auto",
        methods: Sequence[str] | None = None,
    ) -> None:
        self.methods = study.chosen_rows(methods, (RAW, UNTRAINED, *METHODS), "method")
        self.base, self.data, self.work, self.space = base, data, work, space
        self.device = device
        settings = {
            "recipe": base.model_dump(mode="json", exclude={"seed"}),
            **vars(data),
            "label_space": space.name,
        }
        super().__init__(out, settings, ("method", "seed"))

    def keys(self, seeds: int) -> Iterator[tuple[str, int]]:
        """Every method with every seed; raw inputs have no seed and get one row."""
        for seed in range(seeds):
            yield from ((m, seed) for m in self.methods if m != RAW or seed == 0)

    def compute(self, method: str, seed: int) -> Row:
        """Figures of the probe of a method."""
        fit, test = self._scans
        features = self._features(method, seed, fit)
        found = probe_features(features, fit, test, len(self.space), seed=seed)
        figures = Figures.of(found.confusion, self.space.names, merge_of(self.space))
        return figures.model_dump(exclude_none=True)

    def headline(self, row: Row) -> str:
        """Mean IoU."""
        return f"{100 * row['miou']:.1f} mIoU"

    def content(self) -> dict[str, Any]:
        """The summary."""
        return {"summary": summarize(self.rows)}

    @cached_property
    def _scans(self) -> tuple[list[Scan], list[Scan]]:
        reach = self.base.student.max_range_m
        fit = study.scans_of(self.data.fit, self.space, reach, self.work)
        test = study.scans_of(self.data.test, self.space, reach, self.work)
        return (fit[::2], test[1::2]) if self.data.split else (fit, test)

    def _features(self, method: str, seed: int, fit: Sequence[Scan]) -> Features:
        if method == RAW:
            return raw_inputs
        device = "cuda" if on_gpu(self.device) else "cpu"
        if method == UNTRAINED:
            return untrained(self.base.student, fit, seed, device)
        recipe = method_recipe(self.base, method, seed)
        run = self.work / "runs" / f"{slug(method)}-{seed}"
        recordings: dict[str, Recording] = {
            source: open_recording(source) for source in self.data.train
        }
        pretrain(recordings, recipe, run, self.work / "cache", self.device)
        return FrozenNetwork.load(run, device)


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Per method, in the order of the methods: mean and deviation of the mIoU over the seeds."""
    found = []
    for method in (RAW, UNTRAINED, *METHODS):
        values = [row["miou"] for row in rows if row["method"] == method]
        if values:
            mean = study.spread(values, "miou")
            found.append(
                {
                    "method": method,
                    "seeds": len(values),
                    "miou": mean["miou"],
                    "deviation": mean["miou_deviation"],
                }
            )
    return found


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: a bar per method, a dot per seed."""
    summary = content["summary"]
    names = [row["method"] for row in summary]
    dots = [[r["miou"] for r in content["rows"] if r["method"] == name] for name in names]
    figure = pictures.new_figure(1100, 130 + 55 * len(summary))
    axes = figure.add_axes((0.22, 0.16, 0.74, 0.74))
    study.draw_bars(axes, names, [row["miou"] for row in summary], dots)
    axes.set_title("Linear probe on frozen features, mIoU in percent; dots are seeds", loc="left")
    pictures.save(figure, path)


def contrast(
    json_: JsonOut,
    data: Annotated[
        str, typer.Option(help="simulated, or a folder with KITTI drives and object frames.")
    ] = "simulated",
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Pretraining recipe that the methods change.  [default: contrast, or "
            "contrast-kitti for a folder]",
        ),
    ] = None,
    fit: Annotated[
        list[str] | None, typer.Option(help="Labeled recordings the probes are fitted to.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Labeled recordings the probes are measured on.")
    ] = None,
    seeds: Seeds = 3,
    steps: Steps = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; repeat for several.")
    ] = None,
    work: Work = None,
    picture: Picture = None,
    device: Device = "auto",
) -> None:
    """Pretrain by each method from the same start and probe each in the same way.

    Methods: raw inputs and an untrained network; contrast of SLIC and of semantic superpixels;
    with consistency across sweeps; with points to their segments; single pairs; regression; a mix.
    Simulated data is measured in a town that is not trained or fitted in.
    """
    study.check_outputs(json_, picture)
    name = recipe or ("contrast" if data == "simulated" else "contrast-kitti")
    base = adjusted(load_recipe(recipe_file(name)), steps=steps)
    sources = _data(data, fit or [], test or [])
    folder = work or json_.with_suffix(".work")
    space = LabelSpace.load("street")
    content = ContrastStudy(base, sources, json_, folder, space, device, method).run(seeds, note)
    show(content)
    if picture:
        draw(content, picture)


def _data(data: str, fit: list[str], test: list[str]) -> Data:
    if bool(fit) != bool(test):
        raise InputError("give --fit and --test together, or neither")
    if data != "simulated":
        if not Path(data).is_dir():
            raise InputError(f"--data {data}: expected 'simulated' or a folder")
        return folder_data(Path(data), fit, test)
    found = simulated_data()
    return Data(found.train, fit=fit, test=test) if fit else found


def show(content: Mapping[str, Any]) -> None:
    """Print the means."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="linear probe on frozen features")
    for column in ("method", "mIoU %", "deviation", "seeds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in content["summary"]:
        shown = (f"{100 * row[key]:.1f}" for key in ("miou", "deviation"))
        table.add_row(row["method"], *shown, str(row["seeds"]))
    Console().print(table)


app = study.command(contrast)

if __name__ == "__main__":
    app()
