# SPDX-License-Identifier: Apache-2.0
"""Few-shot study: fine-tune on shares of the labeled scenes, pretrained and from scratch.

python -m benchmarks.studies.few_shot RUN --fit DIR --test DIR --out runs/few
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.studies import study
from benchmarks.studies.study import Row, Seeds
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cli.options import Device, Steps, adjusted
from pcseg_core.cli.probe import open_labeled, read
from pcseg_core.config import load_yaml
from pcseg_core.errors import InputError
from pcseg_core.evaluation import pictures
from pcseg_core.files import slug
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.finetune import FinetuneRecipe, finetune, prepare_labeled
from pcseg_core.learning.probe import Scan
from pcseg_core.progress import note

PRETRAINED, SCRATCH = "pretrained", "scratch"
SHARES = (1.0, 5.0, 10.0, 25.0, 100.0)


def few_scenes(scenes: Sequence[str], percent: float, seed: int = 0) -> list[str]:
    """Every k-th scene, k = 100 / percent, from another first scene for every seed.

    Splits are by scene, since neighboring sweeps show the same objects and a split by sweeps would
    hide how few places a network has seen. At least one scene is taken.

    Raises:
        InputError: a share outside of (0, 100].
    """
    names = list(dict.fromkeys(scenes))
    if not 0 < percent <= 100:
        raise InputError(f"a share of {percent} % of the scenes: expected above 0, at most 100")
    step = max(1, round(100 / percent))
    return names[seed % min(step, len(names)) :: step]


class FewShotStudy(study.Study):
    """Rows of (start, percent, seed).

    Args:
        run: pretrained checkpoint or run directory.
        sweeps: labeled sweeps to train on.
        test: scans to measure on.
        space: label space of both.
        recipe: the training.
        out: folder of the runs and few_shot.json.
        device: "auto", "cpu" or "cuda".
        shares: percent of the scenes; every seed takes other ones.
        scratch: also train without pretraining.
    """

    def __init__(
        self,
        run: Path,
        sweeps: Sequence[TrainingSweep],
        test: Sequence[Scan],
        space: LabelSpace,
        recipe: FinetuneRecipe,
        out: Path,
        device: str = "auto",
        shares: Sequence[float] = SHARES,
        scratch: bool = True,
    ) -> None:
        self.start, self.sweeps, self.test, self.space = run, list(sweeps), test, space
        self.recipe, self.folder, self.device = recipe, out, device
        self.shares, self.starts = shares, (PRETRAINED, SCRATCH) if scratch else (PRETRAINED,)
        settings = {
            "run": str(run.resolve()),
            "recipe": recipe.model_dump(mode="json"),
            "scenes": len({sweep.scene for sweep in self.sweeps}),
            "sweeps": len(self.sweeps),
            "test_scans": len(test),
            "label_space": space.name,
        }
        super().__init__(out / "few_shot.json", settings, ("start", "percent", "seed"))

    def keys(self, seeds: int) -> Iterator[tuple[str, float, int]]:
        """Every share with every seed and both starts."""
        for percent in self.shares:
            for seed in range(seeds):
                yield from ((start, percent, seed) for start in self.starts)

    def compute(self, start: str, percent: float, seed: int) -> Row:
        """Fine-tune on a share of the scenes and measure."""
        chosen = set(few_scenes([sweep.scene for sweep in self.sweeps], percent, seed))
        sweeps = [sweep for sweep in self.sweeps if sweep.scene in chosen]
        recipe = adjusted(self.recipe, seed)
        folder = self.folder / slug(f"{start}-{percent:g}-{seed}")
        metrics = finetune(
            self.start,
            sweeps,
            self.test,
            self.space,
            recipe,
            folder,
            self.device,
            scratch=start == SCRATCH,
        )
        return {"scenes": len(chosen), "sweeps": len(sweeps), **metrics["test"]}

    def headline(self, row: Row) -> str:
        """Mean IoU."""
        return f"{100 * row['miou']:.1f} mIoU"

    def content(self) -> dict[str, Any]:
        """Names of the classes, and the summary."""
        return {"classes": list(self.space.names), "summary": summarize(self.rows)}


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Mean and deviation of the mIoU over the seeds, by start and share."""
    found = []
    for start, percent in dict.fromkeys((row["start"], row["percent"]) for row in rows):
        same = [r for r in rows if (r["start"], r["percent"]) == (start, percent)]
        mean = study.spread([row["miou"] for row in same], "miou")
        found.append(
            {
                "start": start,
                "percent": percent,
                "seeds": len(same),
                "scenes": same[0]["scenes"],
                "miou": mean["miou"],
                "deviation": mean["miou_deviation"],
            }
        )
    return found


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: mIoU over the share of scenes, and the confusion of the largest share."""
    figure = pictures.new_figure(1500, 640)
    axes = figure.add_axes((0.06, 0.14, 0.36, 0.74))
    for start, color in ((PRETRAINED, pictures.ACCENT), (SCRATCH, "#8b949e")):
        members = [row for row in content["summary"] if row["start"] == start]
        points = sorted((row["percent"], row["miou"], row["deviation"]) for row in members)
        if points:
            x, y, deviation = (np.array(column) for column in zip(*points))
            bars = 100 * deviation
            axes.errorbar(x, 100 * y, bars, marker="o", color=color, label=start, capsize=3)
    axes.set_xscale("log")
    axes.set_xlabel("share of the labeled scenes, percent")
    axes.set_title("Few-shot fine-tuning, mIoU in percent", loc="left", fontsize=11)
    axes.legend(frameon=False)
    rows = [row for row in content["rows"] if row["start"] == PRETRAINED]
    largest = max(rows, key=lambda row: row["percent"])
    axes = figure.add_axes((0.56, 0.2, 0.40, 0.68))
    title = f"Pretrained, {largest['percent']:g} % of the scenes: confusion, percent"
    pictures.confusion(axes, np.array(largest["confusion"]), content["classes"], title=title)
    pictures.save(figure, path)


def few_shot(
    run: Annotated[Path, typer.Argument(help="Run directory of `pcseg pretrain`.")],
    fit: Annotated[
        list[str], typer.Option(help="Labeled recording to train on; repeat for several.")
    ],
    test: Annotated[str, typer.Option(help="Labeled recording of another place, to measure on.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs, few_shot.json and few_shot.png.")],
    share: Annotated[
        list[float] | None,
        typer.Option(help="Percent of the scenes; repeat for several.  [default: 1 5 10 25 100]"),
    ] = None,
    seeds: Seeds = 1,
    recipe: Annotated[
        Path | None, typer.Option(help="Settings of the training (YAML), instead of the defaults.")
    ] = None,
    steps: Steps = None,
    scratch: Annotated[bool, typer.Option(help="Also train without pretraining.")] = True,
    label_space: Annotated[str, typer.Option(help="Label space to learn.")] = "street",
    device: Device = "auto",
) -> None:
    """Fine-tune on shares of the labeled scenes, from a pretrained network and from scratch.

    Splits are by scene: every k-th one, others for every seed. Every run is a checkpoint.
    Interrupted studies resume: run the same command again.
    """
    space = LabelSpace.load(label_space)
    settings = load_yaml(recipe, FinetuneRecipe) if recipe else FinetuneRecipe()
    reach = load_checkpoint(run)[1].student.get("max_range_m", 80.0)
    sweeps = prepare_labeled([open_labeled(source) for source in fit], space, reach)
    scans = read(test, space, reach)
    shares, chosen = share or SHARES, adjusted(settings, steps=steps)
    rows = FewShotStudy(run, sweeps, scans, space, chosen, out, device, shares, scratch)
    content = rows.run(seeds, note)
    show(content)
    draw(content, out / "few_shot.png")


def show(content: Mapping[str, Any]) -> None:
    """Print the means."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="few-shot fine-tuning")
    for column in ("start", "scenes %", "scenes", "mIoU %", "deviation", "seeds"):
        table.add_column(column, justify="left" if column == "start" else "right")
    for row in content["summary"]:
        shown = (f"{100 * row[key]:.1f}" for key in ("miou", "deviation"))
        table.add_row(
            row["start"], f"{row['percent']:g}", str(row["scenes"]), *shown, str(row["seeds"])
        )
    Console().print(table)


app = study.command(few_shot)

if __name__ == "__main__":
    app()
