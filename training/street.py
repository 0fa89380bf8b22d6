# SPDX-License-Identifier: Apache-2.0
"""Train the bundled LiDAR segmenter on simulated sweeps and their exact labels.

    python training/street.py --out runs/bundled
    python training/street.py --out runs/bundled --recipe FILE --device cuda --workers 12

FILE has fields of `StreetRecipe`. Every town and every LiDAR is drawn by a seed
(`pcseg_core/simulation/variety.py`). No real data is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from pydantic import Field

from pcseg_core.config import parse_section
from pcseg_core.distill.losses import LabelLossConfig
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.augment import AugmentConfig
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.objectives.segmentation import Segmentation, label_counts
from pcseg_core.learning.recipe import OptimizerConfig, TrainingRecipe
from pcseg_core.learning.runs import finish, input_statistics, on_gpu
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.simulated import SimulatedConfig, labeled_sweeps
from pcseg_core.learning.trainer import train
from pcseg_core.models.student import Student, StudentConfig
from pcseg_core.simulation.recording import SimulatedDrive

SPACE = "street"


class StreetRecipe(TrainingRecipe):
    """Data and training of the segmenter."""

    towns: int = Field(default=900, ge=1, description="Drawn towns, each with a drawn LiDAR")
    first_seed: int = Field(default=20_000, ge=0, description="Seed of the first town")
    plain: int = Field(
        default=16,
        ge=1,
        description="Drives by the plain LiDAR in named towns, for the second stage; every other "
        "one with 32 beams instead of 64",
    )
    plain_seed: int = Field(default=5000, ge=0, description="Seed of the first of them")
    sweeps: int = Field(default=2, ge=1, description="Sweeps of each town")
    stride: int = Field(default=25, ge=1, description="Tenths of a second between two sweeps")
    student: StudentConfig = Field(
        default_factory=lambda: StudentConfig(depth=14, width=0.25, voxel_size_m=0.15)
    )
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(beam_drop=0.7, intensity_gain=0.3)
    )
    optimizer: OptimizerConfig = Field(
        default_factory=lambda: OptimizerConfig(
            steps=1900, batch_size=8, learning_rate=6e-3, average=0.995
        )
    )
    again: int = Field(default=96, ge=0, description="Drawn towns in the second stage")
    refine: OptimizerConfig = Field(
        default_factory=lambda: OptimizerConfig(
            steps=200, batch_size=8, learning_rate=2e-3, average=0.98
        ),
        description="Second stage",
    )
    loss: LabelLossConfig = Field(default_factory=LabelLossConfig)

    @property
    def sources(self) -> list[str]:
        """All drives, for `open_recording`; the plain ones are the last."""
        varied = SimulatedConfig(
            towns=self.towns, sweeps=self.sweeps, stride=self.stride, first_seed=self.first_seed
        ).sources
        options = f"columns=1024,sweeps={self.sweeps},stride={self.stride},cameras=0"
        plain = [
            f"simulated:seed={self.plain_seed + k},beams={(64, 32)[k % 2]},{options}"
            for k in range(self.plain)
        ]
        return varied + plain


def drive_of(source: str) -> SimulatedDrive:
    """The drive of a source."""
    return SimulatedDrive.from_text(source.partition(":")[2])


def fit(
    data: Sequence[TrainingSweep],
    recipe: StreetRecipe,
    out: Path,
    device: str = "cpu",
    workers: int = 0,
) -> None:
    """Train on the labeled sweeps of `recipe.sources`; the run directory gets the checkpoint.

    The first stage has drawn towns and LiDARs alone, the second one fewer of them and the plain
    drives.

    Args:
        data: the sweeps, in the order of the sources.
        recipe: of the training.
        out: run directory.
        device: "auto", "cpu" or "cuda".
        workers: processes that prepare batches; 0 prepares them between the steps.
    """
    space = LabelSpace.load(SPACE)
    torch.manual_seed(recipe.seed)
    student = Student(recipe.student, len(space))
    varied, plain = np.split(np.arange(len(data)), [recipe.towns * recipe.sweeps])
    counts = label_counts((data[k] for k in varied), len(space), recipe.loss.min_confidence)
    again = np.concatenate([varied[: recipe.again * recipe.sweeps], plain])
    metrics: dict[str, Any] = {}
    for stage, chosen, optimizer in (
        ("varied", varied, recipe.optimizer),
        ("refined", again, recipe.refine),
    ):
        own = recipe.model_copy(update={"optimizer": optimizer})
        sectors = LabeledSectors([data[k] for k in chosen], own, space)
        objectives = [Segmentation(recipe.loss, counts)]
        module = TrainingModule(student, objectives, sectors, optimizer, workers=workers)
        metrics[stage] = train(module, out / stage, device)
    metrics["poses"] = dict.fromkeys(recipe.sources, "exact")
    beams = [drive_of(source).world.lidar.beams for source in recipe.sources]
    inputs = input_statistics(data, ()).model_copy(update={"rings": (min(beams), max(beams))})
    finish(student, space, recipe, metrics, out, inputs=inputs)


def main(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/bundled"),
    cache: Annotated[Path, typer.Option(help="Folder of rendered sweeps.")] = Path(
        "runs/street_sweeps"
    ),
    workers: Annotated[
        int, typer.Option(help="Processes that render and, on a GPU, prepare batches.")
    ] = 2,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file with fields of `StreetRecipe`.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of the training: auto, cpu or cuda.")] = "cpu",
) -> None:
    """Render and train; OUT gets the checkpoint."""
    given = {} if recipe is None else yaml.safe_load(recipe.read_text(encoding="utf-8"))
    chosen = parse_section(given, StreetRecipe, str(recipe))
    space, reach = LabelSpace.load(SPACE), chosen.student.max_range_m
    data = list(labeled_sweeps(chosen.sources, space, reach, cache, workers))
    fit(data, chosen, out, device, workers if on_gpu(device) else 0)


if __name__ == "__main__":
    typer.run(main)
