# SPDX-License-Identifier: Apache-2.0
"""3D teacher study: a large network teaches a small one, against training the small one directly.

python -m benchmarks.studies.teacher_3d --json rows.json --picture rows.png
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
from pcseg_core.evaluation import pictures
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.distill import distill
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.recipe import OptimizerConfig, Recipe, load_recipe
from pcseg_core.models.student import StudentConfig
from pcseg_core.progress import note
from pcseg_core.recipes import recipe_file

TEACHER, DIRECT, TAUGHT, BOTH = "teacher", "direct", "taught", "both"
NETWORKS = {
    TEACHER: "3D teacher, by cameras",
    DIRECT: "small, by cameras",
    TAUGHT: "small, by the 3D teacher",
    BOTH: "small, by both",
}


def simulated_data() -> Data:
    """Simulated recordings with two cameras, measured in a town that is not trained in."""
    return study.simulated_data(10, "sweeps=4,stride=5,cameras=2,width=320,height=192", tests=6)


class Teacher3dStudy(study.StudentStudy):
    """Rows of (network, seed); the teacher has one seed.

    Args:
        base: recipe with a camera teacher and the small student.
        large: the network that teaches.
        optimizer: steps and rates of the large network.
        data: what is trained on and measured on; training needs no labels.
        out: JSON file of the rows.
        work: folder of caches and runs.
        device: "auto", "cpu" or "cuda".
        networks: the rows to compute; all if not given.
    """

    def __init__(
        self,
        base: Recipe,
        large: StudentConfig,
        optimizer: OptimizerConfig,
        data: Data,
        out: Path,
        work: Path,
        device: str = "auto",
        networks: Sequence[str] | None = None,
    ) -> None:
        self.networks = study.chosen_rows(networks, list(NETWORKS), "network")
        self.base, self.large, self.optimizer = base, large, optimizer
        self.data = data
        settings = {
            "recipe": base.model_dump(mode="json", exclude={"seed"}),
            "teacher": large.model_dump(mode="json"),
            "optimizer": optimizer.model_dump(mode="json"),
            "train": data.train,
            "test": data.test,
        }
        space = LabelSpace.load(base.labels.label_space)
        super().__init__(out, settings, "network", space, work, device)

    def keys(self, seeds: int) -> Iterator[tuple[str, int]]:
        """The teacher, then every small network with every seed."""
        if TEACHER in self.networks:
            yield (TEACHER, 0)
        for seed in range(seeds):
            yield from ((n, seed) for n in self.networks if n != TEACHER)

    def compute(self, network: str, seed: int) -> Row:
        """Train a network and measure it."""
        if network in (TAUGHT, BOTH):
            self._train(TEACHER, 0)
        trained = self._train(network, seed)
        times = {key: trained[key] for key in ("labeling_s", "training_s")}
        return {**self.figures(network, seed), **times}

    def headline(self, row: Row) -> str:
        """Mean IoU."""
        return f"{100 * row['miou']:.1f} mIoU"

    def summary(self) -> list[Row]:
        """A row per network."""
        return summarize(self.rows)

    def _train(self, network: str, seed: int) -> dict[str, Any]:
        cache, run = self.work / "cache", self.run_of(network, seed)
        return distill(self.data.train, self._recipe(network, seed), run, cache, self.device)

    def _recipe(self, network: str, seed: int) -> Recipe:
        if network == TEACHER:
            changes = {"student": self.large, "optimizer": self.optimizer, "seed": seed}
            return self.base.model_copy(update=changes)
        recipe = adjusted(self.base, seed)
        if network == DIRECT:
            return recipe
        taught = recipe.taught_by(self.run_of(TEACHER, 0))
        return taught.model_copy(update={"teacher": None}) if network == TAUGHT else taught

    @cached_property
    def scans(self) -> list[Scan]:
        """Labeled scans that nothing was trained on."""
        reach = self.base.student.max_range_m
        return study.scans_of(self.data.test, self.space, reach, self.work)


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Per network: mean and deviation of the mIoU, what it keeps of the teacher's, and its gain."""
    means = {
        name: study.spread([r["miou"] for r in rows if r["network"] == name], "miou")
        for name in NETWORKS
    }
    teacher, direct = means[TEACHER]["miou"], means[DIRECT]["miou"]
    found = []
    for name, mean in means.items():
        members = [row for row in rows if row["network"] == name]
        if members and mean["miou"] is not None:
            found.append(
                {
                    "network": name,
                    "seeds": len(members),
                    **mean,
                    "keeps": mean["miou"] / teacher if teacher else None,
                    "gain": mean["miou"] - direct if direct is not None else None,
                    "parameters": members[0]["parameters"],
                }
            )
    return found


def markdown(content: Mapping[str, Any]) -> str:
    """The summary as a table in Markdown, in percent, points and milliseconds."""
    lines = [
        "| network | parameters | mIoU % | of the teacher's % | gain, points | CPU ms | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["summary"]:
        miou = f"{100 * row['miou']:.1f} ± {100 * row['miou_deviation']:.1f}"
        keeps, gain = (
            "-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("keeps", "gain")
        )
        size = f"{row['parameters'] / 1e6:.2f} M"
        time = f"{content['cpu_ms'].get(row['network'], 0):.0f}"
        cells = (NETWORKS[row["network"]], size, miou, keeps, gain, time, str(row["seeds"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: a bar of the mIoU per network, a dot per seed."""
    summary = content["summary"]
    times = content["cpu_ms"]
    names = [f"{NETWORKS[s['network']]} ({times.get(s['network'], 0):.0f} ms)" for s in summary]
    dots = [[r["miou"] for r in content["rows"] if r["network"] == s["network"]] for s in summary]
    figure = pictures.new_figure(1000, 130 + 55 * len(summary))
    axes = figure.add_axes((0.3, 0.16, 0.66, 0.7))
    study.draw_bars(axes, names, [row["miou"] for row in summary], dots)
    title = "mIoU in percent on drives of an unseen town, CPU time of a sweep; dots are seeds"
    axes.set_title(title, loc="left", x=-0.4, fontsize=11)
    pictures.save(figure, path)


def teacher_3d(
    json_: JsonOut,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Recording to train on; repeat for several.  [default: simulated]"),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Labeled recording to measure on; with --data.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE", help="Recipe with a camera teacher and the small student."
        ),
    ] = "simulated",
    depth: Annotated[int, typer.Option(help="Depth of the teacher: 14, 18 or 34.")] = 34,
    width: Annotated[float, typer.Option(help="Width of the teacher.")] = 1.0,
    teacher_rate: Annotated[
        float, typer.Option(help="Highest learning rate of the teacher.")
    ] = 3e-3,
    seeds: Seeds = 2,
    steps: Steps = None,
    teacher_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the teacher.  [default: as the others]")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="Only this row; repeat for several.")
    ] = None,
    work: Work = None,
    picture: Picture = None,
    device: Device = "auto",
) -> None:
    """Train a large network, teach it to a small one, and train the small one directly.

    Rows: teacher, the large network by cameras; direct, the small one by cameras; taught, the
    small one by the large one alone; both. All are measured on labeled sweeps that nothing was
    trained on.
    """
    study.check_outputs(json_, picture)
    base = adjusted(load_recipe(recipe_file(recipe)), steps=steps)
    values = {**base.student.model_dump(), "depth": depth, "width": width}
    large = StudentConfig.model_validate(values)
    sources = Data(data, test or []) if data else simulated_data()
    folder = work or json_.with_suffix(".work")
    settings = {"steps": teacher_steps or base.optimizer.steps, "learning_rate": teacher_rate}
    optimizer = base.optimizer.model_copy(update=settings)
    rows = Teacher3dStudy(base, large, optimizer, sources, json_, folder, device, network)
    content = rows.run(seeds, note)
    typer.echo(markdown(content))
    if picture:
        draw(content, picture)


app = study.command(teacher_3d)

if __name__ == "__main__":
    app()
