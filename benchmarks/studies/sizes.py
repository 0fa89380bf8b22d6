# SPDX-License-Identifier: Apache-2.0
"""Size study: voxel size, width and depth of the student at equal time of training.

python -m benchmarks.studies.sizes --json sizes.json --picture sizes.png
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.studies import study
from benchmarks.studies.study import JsonOut, Picture, Row, Seeds, Work
from pcseg_core.cli.options import Device
from pcseg_core.errors import InputError
from pcseg_core.evaluation import pictures
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.augment import AugmentConfig
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.finetune import start
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives.segmentation import Segmentation, label_counts
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.recipe import OptimizerConfig, TrainingRecipe
from pcseg_core.learning.runs import finish, input_statistics
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.simulated import SimulatedConfig, labeled_sweeps
from pcseg_core.learning.trainer import train
from pcseg_core.models.student import StudentConfig
from pcseg_core.progress import note

SIZES = (
    "depth=14,width=0.25,voxel=0.15",  # the bundled checkpoint
    "depth=14,width=0.25,voxel=0.1",
    "depth=14,width=0.25,voxel=0.2",
    "depth=14,width=0.5,voxel=0.15",
    "depth=14,width=0.5,voxel=0.2",
    "depth=18,width=0.25,voxel=0.15",
)
_FIELDS = {"depth": "depth", "width": "width", "voxel": "voxel_size_m"}
_PROBE = 6  # steps that tell what a step costs
_TESTS, _TEST_SEED = 12, 40_000  # towns to measure in, and the seed of the first one


def student_of(size: str) -> StudentConfig:
    """The network of a size, for example "depth=14,width=0.25,voxel=0.15" (voxel in m).

    Raises:
        InputError: another text, or a value that the network does not take.
    """
    pairs = [part.partition("=") for part in size.split(",")]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if set(values) != set(_FIELDS):
        raise InputError(f"size {size!r}: expected depth=14|18|34,width=W,voxel=METERS")
    try:
        return StudentConfig.model_validate({_FIELDS[k]: float(v) for k, v in values.items()})
    except ValueError as error:
        raise InputError(f"size {size!r}: {error}") from None


class SizeStudy(study.StudentStudy):
    """Rows of (size, seed), trained on the exact labels of drawn towns.

    Args:
        sizes: texts for `student_of`.
        minutes: CPU time of each training.
        towns: drawn towns to train on, a sweep each; towns of other seeds measure.
        base: loss, augmentation and rates; its number of steps is not used.
        out: JSON file of the rows.
        work: folder of rendered sweeps and runs.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(
        self,
        sizes: Sequence[str],
        minutes: float,
        towns: int,
        base: TrainingRecipe,
        out: Path,
        work: Path,
        device: str = "auto",
    ) -> None:
        self.students = {size: student_of(size) for size in sizes}
        self.minutes, self.base = minutes, base
        self.train_in = SimulatedConfig(towns=towns).sources
        self.test_in = SimulatedConfig(towns=_TESTS, first_seed=_TEST_SEED).sources
        settings = {
            "recipe": base.model_dump(mode="json", exclude={"seed"}),
            "minutes": minutes,
            "train": self.train_in,
            "test": self.test_in,
        }
        super().__init__(out, settings, "size", LabelSpace.load("street"), work, device)

    def keys(self, seeds: int) -> Iterator[tuple[str, int]]:
        """Every size with every seed."""
        for seed in range(seeds):
            yield from ((size, seed) for size in self.students)

    def compute(self, size: str, seed: int) -> Row:
        """Train a student for the given time and measure it."""
        steps = max(1, round(60 * self.minutes / self._step_s(size)))
        trained = self._train(size, seed, steps, self.run_of(size, seed))
        figures = self.figures(size, seed)
        return {**figures, "steps": steps, "training_s": trained["training_s"]}

    def headline(self, row: Row) -> str:
        """Mean IoU and steps."""
        return f"{100 * row['miou']:.1f} mIoU after {row['steps']} steps"

    def summary(self) -> list[Row]:
        """A row per size."""
        return summarize(self.rows)

    def timed(self) -> tuple[list[str], Scan]:
        """The sizes of this study, and the largest sweep."""
        trained = {row["size"] for row in self.rows if row["seed"] == 0}
        scan = max(self.scans, key=lambda scan: len(scan.xyz))
        return [size for size in self.students if size in trained], scan

    def _step_s(self, size: str) -> float:
        """CPU time of a step [s], without the start of a training."""
        with TemporaryDirectory() as folder:
            cost = []
            for turn, steps in enumerate((1, 1, 1 + _PROBE)):  # the first one renders the towns
                began = time.process_time()
                self._train(size, 0, steps, Path(folder) / str(turn))
                cost.append(time.process_time() - began)
        return max(1e-3, (cost[2] - cost[1]) / _PROBE)

    def _train(self, size: str, seed: int, steps: int, out: Path) -> dict[str, Any]:
        optimizer = self.base.optimizer.model_copy(update={"steps": steps})
        recipe = self.base.model_copy(update={"optimizer": optimizer, "seed": seed})
        student = start(None, self.students[size], self.space, seed)
        sectors = LabeledSectors(self._sweeps, recipe, self.space)
        counts = label_counts(self._sweeps, len(self.space), sectors.required)
        objectives = [Segmentation(recipe.loss, counts)]
        metrics = train(TrainingModule(student, objectives, sectors, optimizer), out, self.device)
        inputs = input_statistics(self._sweeps, ())
        finish(student, self.space, recipe, metrics, out, inputs=inputs)
        return metrics

    @cached_property
    def _sweeps(self) -> list[TrainingSweep]:
        cache = self.work / "cache"
        return list(labeled_sweeps(self.train_in, self.space, self._reach, cache))

    @cached_property
    def scans(self) -> list[Scan]:
        """Sweeps of other towns."""
        return study.scans_of(self.test_in, self.space, self._reach, self.work)

    @property
    def _reach(self) -> float:
        return max(student.max_range_m for student in self.students.values())


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Per size: mean and deviation of the mIoU, accuracy, parameters and steps."""
    found = []
    for size in dict.fromkeys(row["size"] for row in rows):
        members = [row for row in rows if row["size"] == size]
        found.append(
            {
                "size": size,
                "seeds": len(members),
                **study.spread([row["miou"] for row in members], "miou"),
                **study.spread([row["accuracy"] for row in members], "accuracy"),
                "parameters": members[0]["parameters"],
                "steps": members[0]["steps"],
            }
        )
    return found


def markdown(content: Mapping[str, Any]) -> str:
    """The summary as a table in Markdown, in percent and milliseconds."""
    lines = [
        "| student | parameters | CPU ms | steps | mIoU % | accuracy % | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["summary"]:
        cells = (
            row["size"].replace(",", ", "),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{content['cpu_ms'].get(row['size'], 0):.0f}",
            str(row["steps"]),
            f"{100 * row['miou']:.1f} ± {100 * row['miou_deviation']:.1f}",
            f"{100 * row['accuracy']:.1f}",
            str(row["seeds"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: mIoU over the CPU time of a sweep, a dot per seed."""
    figure = pictures.new_figure(1000, 560)
    axes = figure.add_axes((0.09, 0.13, 0.87, 0.77))
    times = content["cpu_ms"]
    middle = (min(times.values()) + max(times.values())) / 2
    for row in (row for row in content["rows"] if row["size"] in times):
        place = times[row["size"]], 100 * row["miou"]
        axes.plot(*place, "o", color=pictures.ACCENT)
        if row["seed"] == 0:
            left = place[0] > middle  # of the dot, where there is room
            axes.annotate(
                row["size"].replace(",", ", "),
                place,
                xytext=(-8 if left else 8, -4),
                textcoords="offset points",
                ha="right" if left else "left",
            )
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("CPU time of a sweep, one thread [ms]")
    axes.set_ylabel("mIoU in towns that were not trained on [%]")
    axes.set_title("Students at equal time of training; dots are seeds", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    pictures.save(figure, path)


def sizes(
    json_: JsonOut,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="depth=D,width=W,voxel=M", help="Student; repeat for several.  [default: six]"
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="CPU time of each training [min].")
    ] = 6.0,
    towns: Annotated[int, typer.Option(min=2, help="Drawn towns to train on.")] = 80,
    seeds: Seeds = 1,
    work: Work = None,
    picture: Picture = None,
    device: Device = "auto",
) -> None:
    """Train students of several sizes for the same CPU time and measure them in other towns.

    The towns, their LiDARs and the labels are simulated, as those of the bundled checkpoint.
    """
    study.check_outputs(json_, picture)
    base = TrainingRecipe(
        augment=AugmentConfig(beam_drop=0.7, intensity_gain=0.3),
        optimizer=OptimizerConfig(batch_size=3, learning_rate=6e-3),
    )
    folder = work or json_.with_suffix(".work")
    rows = SizeStudy(size or SIZES, minutes, towns, base, json_, folder, device)
    content = rows.run(seeds, note)
    typer.echo(markdown(content))
    if picture:
        draw(content, picture)


app = study.command(sizes)

if __name__ == "__main__":
    app()
