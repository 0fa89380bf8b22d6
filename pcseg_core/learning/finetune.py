# SPDX-License-Identifier: Apache-2.0
"""Few-shot fine-tuning: a share of the labeled scenes, from a pretrained network and from none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.config import Section
from pcseg_core.data import Recording, readable
from pcseg_core.errors import InputError
from pcseg_core.evaluation.evaluator import truth_of
from pcseg_core.evaluation.report import Figures, merge_of
from pcseg_core.files import slug, write_atomic
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.module import DistillModule
from pcseg_core.learning.probe import Scan
from pcseg_core.learning.recipe import AugmentConfig, LossConfig, OptimizerConfig, Recipe
from pcseg_core.learning.runs import finish, stored_rows, train
from pcseg_core.learning.schedule import adamw
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.models.student import Points, Student, StudentConfig

PRETRAINED, SCRATCH = "pretrained", "scratch"


class FinetuneRecipe(Section):
    """How a network is trained on few labels."""

    head_learning_rate: float = Field(
        default=2e-2, gt=0, description="Highest learning rate of the last layer, which is new"
    )
    trunk_learning_rate: float = Field(
        default=2e-3, gt=0, description="Highest learning rate of all other layers, pretrained"
    )
    scratch_learning_rate: float = Field(
        default=4e-3, gt=0, description="Highest learning rate of a network without pretraining"
    )
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = Field(
        default_factory=lambda: OptimizerConfig(steps=300), description="learning_rate is not used"
    )
    loss: LossConfig = Field(default_factory=LossConfig)
    seed: int = Field(default=0, ge=0, description="Seed of everything random")


class FinetuneModule(DistillModule):
    """Cross-entropy and Lovász on true labels, with rates of their own for head and trunk.

    Args:
        student: network to train.
        sweeps: labeled sweeps.
        recipe: everything else.
        pretrained: whether trunk and head get different rates.
    """

    def __init__(
        self,
        student: Student,
        sweeps: list[TrainingSweep],
        recipe: FinetuneRecipe,
        pretrained: bool,
    ) -> None:
        # The parts that training needs (optimizer, loss, augment, seed) are those of a Recipe.
        super().__init__(student, sweeps, cast(Recipe, recipe))
        self.rates = recipe
        self.pretrained = pretrained

    def configure_optimizers(self) -> Any:
        """AdamW with two groups, linear warm-up, cosine decay to zero."""
        head = list(self.student.network.classifier.parameters())
        known = {id(parameter) for parameter in head}
        trunk = [p for p in self.student.parameters() if id(p) not in known]
        rates = self.rates
        pair = (rates.head_learning_rate, rates.trunk_learning_rate)
        head_rate, trunk_rate = pair if self.pretrained else (rates.scratch_learning_rate,) * 2
        groups = [{"params": head, "lr": head_rate}, {"params": trunk, "lr": trunk_rate}]
        return adamw(groups, rates.optimizer)


def few_scenes(scenes: Sequence[str], percent: float, seed: int = 0) -> list[str]:
    """Every k-th scene, k = 100 / percent, beginning with another one for every seed.

    Splits are by scene, not by sweep: neighboring sweeps show the same things, and a split by
    sweeps would hide how few places a network has seen. At least one scene is taken.
    """
    names = list(dict.fromkeys(scenes))
    if not 0 < percent <= 100:
        raise InputError(f"a share of {percent} % of the scenes: expected above 0, at most 100")
    step = max(1, round(100 / percent))
    return names[seed % min(step, len(names)) :: step]


def read_labeled(
    recording: Recording, space: LabelSpace, max_range_m: float
) -> Iterator[tuple[str, TrainingSweep]]:
    """Scene and sweep, with true labels, of all labeled sweeps of a drive."""
    for index, sample in readable(recording):
        if sample.labels is None:
            recording.skipped["sweep without labels"] += 1
            continue
        cloud, truth = sample.cloud, truth_of(sample, space)
        near = cloud.finite & (np.linalg.norm(cloud.xyz, axis=1) <= max_range_m)
        strength = cloud.intensity if cloud.intensity is not None else np.zeros(len(cloud))
        scene = f"{recording.name}/{recording.scenes[index]}"
        yield (
            scene,
            TrainingSweep(
                cloud.xyz[near].astype(np.float32),
                np.nan_to_num(strength[near]).astype(np.float32),
                truth[near].astype(np.int16),
                np.ones(int(near.sum()), np.float32),
                scene,
            ),
        )


def start(run: Path | None, config: StudentConfig, classes: int, seed: int) -> Student:
    """A student with a new head, and the trunk of a run where one is given."""
    torch.manual_seed(seed)
    student = Student(config.model_copy(update={"feature_channels": 0}), classes)
    if run is not None:
        state, _ = load_checkpoint(run)
        trunk = {
            k: v
            for k, v in state.items()
            if not k.startswith(("network.classifier.", "regression."))
        }
        missing, unknown = student.load_state_dict(trunk, strict=False)
        wrong = [k for k in missing if not k.startswith("network.classifier.")] + unknown
        if wrong:
            raise InputError(f"{run}: its network lacks or adds {', '.join(wrong[:3])}")
    return student


@torch.no_grad()
def measure(student: Student, test: Sequence[Scan], classes: int, device: str) -> Confusion:
    """Confusion of a student over labeled scans."""
    confusion = Confusion(classes)
    student = student.to(device).eval()
    for scan in test:
        batch = torch.zeros(len(scan.xyz), dtype=torch.int64)
        points = Points(torch.from_numpy(scan.xyz), torch.from_numpy(scan.intensity), batch)
        output = student(points.to(torch.device(device)))
        labels = output.logits.argmax(1)[output.voxels.inverse].cpu().numpy()
        confusion.update(labels, scan.truth)
        confusion.unpredicted += scan.missed
    return confusion


class FewShot:
    """Rows of (start, share, seed), trained one by one and kept, so that it can be interrupted.

    Args:
        run: pretrained checkpoint or run directory.
        sweeps: (scene, sweep) to train on.
        test: scans to measure on.
        space: label space.
        recipe: the training.
        out: folder of runs; gets few_shot.json and few_shot.png.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(
        self,
        run: Path,
        sweeps: Sequence[tuple[str, TrainingSweep]],
        test: Sequence[Scan],
        space: LabelSpace,
        recipe: FinetuneRecipe,
        out: Path,
        device: str = "auto",
    ) -> None:
        self.run_path, self.sweeps, self.test, self.space = run, list(sweeps), test, space
        self.recipe, self.out, self.device = recipe, out, device
        self.scenes = [scene for scene, _ in self.sweeps]
        self.config = StudentConfig.model_validate(load_checkpoint(run)[1].student)
        self.file = out / "few_shot.json"
        self.settings = {
            "run": str(Path(run).resolve()),
            "recipe": recipe.model_dump(mode="json"),
            "scenes": len(set(self.scenes)),
            "sweeps": len(self.sweeps),
            "test_scans": len(test),
            "label_space": space.name,
        }
        self.rows = stored_rows(self.file, self.settings)

    def all_rows(
        self,
        shares: Sequence[float],
        seeds: int,
        scratch: bool = True,
        tell: Callable[[str], None] = print,
    ) -> dict[str, Any]:
        """Make the rows that are missing.

        Args:
            shares: percent of the scenes.
            seeds: of every share; each also takes other scenes.
            scratch: also train without pretraining.
            tell: called with a line per row.
        """
        done = {(row["start"], row["percent"], row["seed"]) for row in self.rows}
        starts = (PRETRAINED, SCRATCH) if scratch else (PRETRAINED,)
        for percent in shares:
            for seed in range(seeds):
                for kind in starts:
                    if (kind, percent, seed) not in done:
                        self.rows.append(self._row(kind, percent, seed))
                        tell(
                            f"{kind}, {percent:g} % of the scenes, seed {seed}: "
                            f"{100 * self.rows[-1]['miou']:.1f} mIoU"
                        )
                        self._write()
        return self._write()

    def _row(self, kind: str, percent: float, seed: int) -> dict[str, Any]:
        chosen = set(few_scenes(self.scenes, percent, seed))
        sweeps = [sweep for scene, sweep in self.sweeps if scene in chosen]
        if not any((sweep.label != IGNORE).any() for sweep in sweeps):
            raise InputError(f"no labeled point in scenes {', '.join(sorted(chosen))}")
        recipe = self.recipe.model_copy(update={"seed": seed})
        run = self.run_path if kind == PRETRAINED else None
        student = start(run, self.config, len(self.space), seed)
        module = FinetuneModule(student, sweeps, recipe, kind == PRETRAINED)
        folder = self.out / slug(f"{kind}-{percent:g}-{seed}")
        folder.mkdir(parents=True, exist_ok=True)
        optimizer = recipe.optimizer
        figures = train(module, optimizer.steps, optimizer.gradient_clip, folder, self.device)
        device = "cuda" if self.device == "cuda" else "cpu"
        confusion = measure(student, self.test, len(self.space), device)
        finish(student, self.space, recipe, figures, folder)
        return {
            "start": kind,
            "percent": percent,
            "seed": seed,
            "scenes": len(chosen),
            "sweeps": len(sweeps),
            **Figures.of(confusion, self.space.names, merge_of(self.space)).model_dump(),
            "confusion": confusion.matrix.tolist(),
        }

    def _write(self) -> dict[str, Any]:
        content = {
            "settings": self.settings,
            "classes": list(self.space.names),
            "rows": self.rows,
            "summary": summarize(self.rows),
        }
        write_atomic(self.file, json.dumps(content, indent=1) + "\n")
        return content


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation of the mIoU over the seeds, by start and share."""
    found = []
    for kind, percent in dict.fromkeys((row["start"], row["percent"]) for row in rows):
        same = [r for r in rows if (r["start"], r["percent"]) == (kind, percent)]
        values = [row["miou"] for row in same]
        found.append(
            {
                "start": kind,
                "percent": percent,
                "seeds": len(same),
                "scenes": same[0]["scenes"],
                "miou": float(np.mean(values)),
                "deviation": float(np.std(values)),
            }
        )
    return found


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Picture: mIoU over the share of scenes, and the confusion of the largest share."""
    from pcseg_core.evaluation import pictures

    figure = pictures.new_figure(1500, 640)
    axes = figure.add_axes((0.06, 0.14, 0.36, 0.74))
    for kind, color in ((PRETRAINED, pictures.ACCENT), (SCRATCH, "#8b949e")):
        points = sorted(
            (r["percent"], r["miou"], r["deviation"])
            for r in content["summary"]
            if r["start"] == kind
        )
        if points:
            x, y, spread = (np.array(column) for column in zip(*points))
            axes.errorbar(x, 100 * y, 100 * spread, marker="o", color=color, label=kind, capsize=3)
    axes.set_xscale("log")
    axes.set_xlabel("share of the labeled scenes, percent")
    axes.set_title("Few-shot fine-tuning, mIoU in percent", loc="left", fontsize=11)
    axes.legend(frameon=False)
    largest = max(
        (r for r in content["rows"] if r["start"] == PRETRAINED), key=lambda row: row["percent"]
    )
    axes = figure.add_axes((0.56, 0.2, 0.40, 0.68))
    title = f"Pretrained, {largest['percent']:g} % of the scenes: confusion, percent"
    pictures.confusion(axes, np.array(largest["confusion"]), content["classes"], title=title)
    pictures.save(figure, path)
