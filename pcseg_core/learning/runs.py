# SPDX-License-Identifier: Apache-2.0
"""What all training runs share: their directory, progress, the trainer and the checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.optim.swa_utils import AveragedModel

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, CheckpointText, save_checkpoint
from pcseg_core.config import Section, parse_section, read_yaml
from pcseg_core.errors import InputError
from pcseg_core.files import write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.module import STEPS_PER_EPOCH
from pcseg_core.models.student import Student

console = Console(stderr=True)


class Averaging(Protocol):
    """A module to train that keeps averaged weights of its student."""

    student: Student
    averaged: AveragedModel


def claim(out: Path, recipe: Section, sources: Sequence[str]) -> None:
    """Make the run directory this run's own, or refuse one that belongs to another run."""
    wanted = {"recipe": recipe.model_dump(mode="json"), "sources": [identity(s) for s in sources]}
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


def run_recipe(run: Path, section: type[Section]) -> Any:
    """The recipe a run directory was made with."""
    content = read_yaml(run / "recipe.yaml")
    return parse_section(content.get("recipe", {}), section, str(run / "recipe.yaml"))


def identity(source: str) -> str:
    """A source in one spelling, wherever it is named from."""
    reader, colon, place = source.rpartition(":")
    return f"{reader}{colon}{Path(place).resolve()}" if Path(place).exists() else source


def on_gpu(device: str) -> bool:
    """Whether "auto", "cpu" or "cuda" means a GPU here."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def bar(*columns: Any, first: Any = None) -> Progress:
    """A progress bar on stderr."""
    start = first or TextColumn("{task.description}")
    ends = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), *columns)
    return Progress(start, *ends, console=console, refresh_per_second=2)


class TrainingBar(Callback):
    """One line that says how far the training is, with the losses."""

    def __init__(self, total: int) -> None:
        self.progress = bar(TextColumn("{task.fields[figures]}"))
        self.task = self.progress.add_task("training", total=total, figures="")

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Show the bar, at the step the run goes on from."""
        self.progress.update(self.task, completed=trainer.global_step)
        self.progress.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Move the bar."""
        figures = " ".join(f"{k} {float(v):.3f}" for k, v in trainer.progress_bar_metrics.items())
        self.progress.update(self.task, completed=trainer.global_step, figures=figures)

    def on_train_end(self, *_: Any) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()

    def on_exception(self, *_: Any) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()


def train(module: Any, steps: int, gradient_clip: float, out: Path, device: str) -> dict[str, Any]:
    """Train to the last step, from the last stored epoch if there is one.

    Under torchrun the processes it started share the work.

    Args:
        module: Lightning module that is also `Averaging`; its student gets the averaged weights.
        steps: optimizer steps in all.
        gradient_clip: largest norm of the gradient.
        out: run directory; gets logs/ and last.ckpt.
        device: "auto", "cpu" or "cuda".
    """
    store = ModelCheckpoint(
        dirpath=out, filename="last", every_n_epochs=1, save_top_k=1, enable_version_counter=False
    )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    first_rank = int(os.environ.get("RANK", "0")) == 0
    trainer = lightning.Trainer(
        accelerator="gpu" if on_gpu(device) else "cpu",
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=-(-steps // STEPS_PER_EPOCH),
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=gradient_clip,
        logger=CSVLogger(out, name="logs", version=""),
        callbacks=[store, *([TrainingBar(steps)] if first_rank else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        default_root_dir=out,
    )
    last = out / "last.ckpt"
    started = time.monotonic()
    trainer.fit(module, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    module.student.load_state_dict(module.averaged.module.state_dict())
    final = {k: round(float(v), 4) for k, v in trainer.logged_metrics.items()}
    return {"steps": trainer.global_step, "training_s": round(seconds, 1), "final": final}


def finish(
    student: Student,
    space: LabelSpace,
    recipe: Section,
    metrics: dict[str, Any],
    out: Path,
    text: CheckpointText | None = None,
) -> None:
    """Write the checkpoint, with the words it knows, and metrics.json of a run."""
    meta = CheckpointMeta(
        student=student.config.model_dump(mode="json"),
        label_space=space.to_dict(),
        recipe=recipe.model_dump(mode="json"),
        metrics=metrics,
    )
    save_checkpoint(out / FILE_NAME, student.state_dict(), meta, text)
    write_atomic(out / "metrics.json", json.dumps(metrics, indent=1))
