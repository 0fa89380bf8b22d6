# SPDX-License-Identifier: Apache-2.0
"""Distillation, whole: recordings and a teacher in, a LiDAR-only segmenter out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, save_checkpoint
from pcseg_core.config import parse_section, read_yaml
from pcseg_core.data import Drive, open_drive
from pcseg_core.distill.labelling import Labelled, Labeller, class_shares
from pcseg_core.errors import InputError
from pcseg_core.files import atomic_path, write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.dataset import LabelledSweep
from pcseg_core.learning.module import STEPS_PER_EPOCH, DistillModule
from pcseg_core.learning.recipe import Recipe
from pcseg_core.models.student import Student
from pcseg_core.vision.pixel_classes import load_teacher

console = Console(stderr=True)


def distill(
    sources: Sequence[str],
    recipe: Recipe,
    out: Path,
    cache: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Label recordings with the recipe's teacher and train a student on the labels.

    The same call goes on where an interrupted one stopped.

    Args:
        sources: bags, or reader:path.
        recipe: everything that decides the result.
        out: run directory; gets recipe.yaml, pseudo_labels/, logs/, last.ckpt and the checkpoint.
        cache: folder of labelled sweeps that several runs may share; default inside `out`.
        device: "auto", "cpu" or "cuda".

    Returns:
        Figures of the run, also written to metrics.json.

    Raises:
        InputError: unusable sources, weights or recipe, or a run directory of another recipe.
    """
    _claim(out, recipe, sources)
    teacher = load_teacher(recipe.teacher, "cuda" if _on_gpu(device) else "cpu")
    drives = {_identity(s): open_drive(s) for s in sources}
    labeller = Labeller(
        teacher, recipe.teacher, recipe.labels, cache or out / "cache",
        with_features=recipe.loss.regression > 0,
    )
    started = time.monotonic()
    labelled = _label(labeller, drives)
    sweeps = _store(labelled, out / "pseudo_labels")
    labelling_s = time.monotonic() - started
    student = _build(recipe, sweeps, len(labeller.space))
    training = _train(student, sweeps, recipe, out, device)
    metrics = {
        "sweeps": len(sweeps),
        "skipped": dict(labeller.skipped + sum((d.skipped for d in drives.values()), labeller.skipped.__class__())),
        "poses": {name: drive.pose_source for name, drive in drives.items()},
        "class_shares": class_shares(labelled, labeller.space),
        "labelling_s": round(labelling_s, 1),
        **training,
    }
    _finish(student, labeller.space, recipe, metrics, out)
    return metrics


def _claim(out: Path, recipe: Recipe, sources: Sequence[str]) -> None:
    """Make the run directory this run's own, or refuse one that belongs to another run."""
    wanted = {"recipe": recipe.model_dump(mode="json"), "sources": [_identity(s) for s in sources]}
    stored = out / "recipe.yaml"
    if stored.is_file():
        if read_yaml(stored) != wanted:
            raise InputError(
                f"{out} holds a run with another recipe, seed or sources; choose another --out, or "
                "start over with --fresh"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no run; choose another --out")
    write_atomic(stored, yaml.safe_dump(wanted, sort_keys=False))


def load_run_recipe(run: Path) -> Recipe:
    """The recipe a run directory was made with."""
    content = read_yaml(run / "recipe.yaml")
    return parse_section(content.get("recipe", {}), Recipe, str(run / "recipe.yaml"))


def _identity(source: str) -> str:
    reader, colon, place = source.rpartition(":")
    return f"{reader}{colon}{Path(place).resolve()}" if Path(place).exists() else source


def _on_gpu(device: str) -> bool:
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def _label(labeller: Labeller, drives: dict[str, Drive]) -> list[Labelled]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("labelling sweeps", total=None)
        labelled = labeller.label(
            drives, lambda _stage, done, total: progress.update(task, completed=done, total=total)
        )
    for reason, count in labeller.skipped.most_common():
        console.print(f"[yellow]skipped {count} sweep(s):[/] {reason}", highlight=False)
    return labelled


def _store(labelled: list[Labelled], folder: Path) -> list[LabelledSweep]:
    """Write what the student trains on; baselines are fitted to the same files."""
    sweeps = []
    for item in labelled:
        seen = item.seen
        has_features = len(seen.feature_index) > 0
        sweep = LabelledSweep(
            seen.xyz, seen.intensity, item.labels, item.confidence, item.scene,
            seen.features if has_features else None, seen.feature_index if has_features else None,
        )
        path = folder / f"{len(sweeps):05d}-{_slug(item.name)}.npz"
        if not path.is_file():
            with atomic_path(path) as temporary:
                sweep.save(temporary)
        sweeps.append(sweep)
    return sweeps


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _build(recipe: Recipe, sweeps: list[LabelledSweep], classes: int) -> Student:
    torch.manual_seed(recipe.seed)
    config = recipe.student
    if recipe.loss.regression > 0:
        sizes = {s.features.shape[1] for s in sweeps if s.features is not None}
        config = config.model_copy(update={"feature_channels": sizes.pop() if sizes else 0})
    return Student(config, classes)


class _ProgressBar(Callback):
    """One line that says how far the training is, with the losses."""

    def __init__(self, total: int) -> None:
        self.progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"), console=console, refresh_per_second=2,
        )
        self.task = self.progress.add_task("training", total=total, figures="")

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.progress.update(self.task, completed=trainer.global_step)
        self.progress.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        figures = " ".join(f"{k} {float(v):.3f}" for k, v in trainer.progress_bar_metrics.items())
        self.progress.update(self.task, completed=trainer.global_step, figures=figures)

    def on_train_end(self, *_: Any) -> None:
        self.progress.stop()

    def on_exception(self, *_: Any) -> None:
        self.progress.stop()


def _train(
    student: Student, sweeps: list[LabelledSweep], recipe: Recipe, out: Path, device: str
) -> dict[str, Any]:
    """Train to the recipe's last step, from the last stored epoch if there is one."""
    module = DistillModule(student, sweeps, recipe)
    steps = recipe.optimizer.steps
    store = ModelCheckpoint(
        dirpath=out, filename="last", every_n_epochs=1, save_top_k=1, enable_version_counter=False
    )
    trainer = lightning.Trainer(
        accelerator="gpu" if _on_gpu(device) else "cpu",
        devices=1,
        max_epochs=-(-steps // STEPS_PER_EPOCH),
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=recipe.optimizer.gradient_clip,
        logger=CSVLogger(out, name="logs", version=""),
        callbacks=[store, _ProgressBar(steps)],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        default_root_dir=out,
    )
    last = out / "last.ckpt"
    started, first = time.monotonic(), module.global_step
    trainer.fit(module, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    student.load_state_dict(module.averaged.module.state_dict())
    final = {k: round(float(v), 4) for k, v in trainer.logged_metrics.items()}
    return {"steps": trainer.global_step, "training_s": round(seconds, 1), "first_step": first, "final": final}


def _finish(
    student: Student, space: LabelSpace, recipe: Recipe, metrics: dict[str, Any], out: Path
) -> None:
    meta = CheckpointMeta(
        student=student.config.model_dump(mode="json"),
        label_space=space.to_dict(),
        recipe=recipe.model_dump(mode="json"),
        metrics=metrics,
    )
    save_checkpoint(out / FILE_NAME, student.state_dict(), meta)
    write_atomic(out / "metrics.json", json.dumps(metrics, indent=1))
