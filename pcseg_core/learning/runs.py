# SPDX-License-Identifier: Apache-2.0
"""Run directories, the trainer and its progress bar, checkpoints."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import CSVLogger

from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, CheckpointText, save_checkpoint
from pcseg_core.config import Section, read_yaml
from pcseg_core.data import Recording, open_recording
from pcseg_core.distill.observation import Observer, StoredObservation
from pcseg_core.errors import InputError
from pcseg_core.files import FolderKind, atomic_path, claim_folder, write_atomic
from pcseg_core.labels import LabelSpace
from pcseg_core.learning.module import TrainingModule
from pcseg_core.models.inference import choose_device
from pcseg_core.models.student import Student
from pcseg_core.progress import bar, note

_RECIPE, _LAST = "recipe.yaml", "last.ckpt"
_TERMINATED = 128 + signal.SIGTERM  # exit status


def _check_recipe(file: Path) -> None:
    content = read_yaml(file)
    if set(content) != {"recipe", "sources"} or not isinstance(content["recipe"], dict):
        raise InputError(f"{file.name} is not the recipe of a run")


_FILES = (_RECIPE, FILE_NAME, "metrics.json", _LAST)

RUN = FolderKind(
    "run directory",
    _RECIPE,
    _check_recipe,
    (
        *_FILES,
        *(f".{name}.*/*" for name in _FILES),  # of writes that were killed
        "logs/*",
        "pseudo_labels/*.npz",
        "cache/*.npz",
        "cache/superpixels-*/*",
    ),
)
"""Run directories: everything that training writes into them."""


def claim(out: Path, recipe: Section, sources: Sequence[str], fresh: bool = False) -> None:
    """Claim a run directory: make it, or resume the run in it.

    Args:
        out: the directory.
        recipe: of the run.
        sources: all else that identifies the run.
        fresh: delete an earlier run in it, whatever its recipe.

    Raises:
        InputError: it holds another run or something else.
    """
    wanted = {"recipe": recipe.model_dump(mode="json"), "sources": [identity(s) for s in sources]}
    if not claim_folder(out, RUN, fresh=fresh):
        write_atomic(out / _RECIPE, yaml.safe_dump(wanted, sort_keys=False))
    elif read_yaml(out / _RECIPE) != wanted:
        raise InputError(
            f"{out} holds a run with another recipe, seed or sources; choose another --out, or "
            "start over with --fresh"
        )


def identity(source: str) -> str:
    """A source with the absolute path of its recording."""
    reader, colon, place = source.rpartition(":")
    return f"{reader}{colon}{Path(place).resolve()}" if Path(place).exists() else source


def torch_device(device: str) -> str:
    """ "cuda" or "cpu" for "auto", "cpu" or "cuda".

    Raises:
        InputError: another word, or no such device on this machine.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device '{device}': training expects auto, cpu or cuda")
    return choose_device(device).type


def on_gpu(device: str) -> bool:
    """Whether "auto", "cpu" or "cuda" is a GPU on this machine; raises as `torch_device`."""
    return torch_device(device) == "cuda"


def open_recordings(sources: Sequence[str]) -> dict[str, Recording]:
    """Recordings by their source, see `identity`."""
    return {identity(source): open_recording(source) for source in sources}


def all_skipped(recordings: Mapping[str, Recording], observer: Observer) -> dict[str, int]:
    """What the recordings and the observer left out, by reason."""
    return dict(sum((r.skipped for r in recordings.values()), observer.skipped))


def observe(
    observer: Observer, recordings: Mapping[str, Recording], title: str, every: int = 1
) -> list[StoredObservation]:
    """Observe recordings with a progress bar; print what was skipped. See `Observer.observe`."""
    with bar(title) as progress:
        found = observer.observe(recordings, progress, every)
    for reason, count in observer.skipped.most_common():
        note(f"skipped {count}: {reason}")
    return found


class TrainingBar(callbacks.Callback):
    """Shows the step and the losses."""

    def __init__(self, total: int) -> None:
        self.bar = bar("training", total)

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Show the bar, at the first step of a resumed run."""
        self.bar.start()
        self.bar(trainer.global_step)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Update the bar."""
        losses = trainer.progress_bar_metrics.items()
        self.bar(trainer.global_step, figures=" ".join(f"{k} {float(v):.3f}" for k, v in losses))

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        """Close the bar."""
        self.bar.stop()


class _AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically, with the permissions of the umask."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with atomic_path(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


def train(module: TrainingModule, out: Path, device: str) -> dict[str, Any]:
    """Train to the last step. Resumes from the last stored epoch.

    Under torchrun all its processes share the work. Afterwards the module's student is the result.

    Args:
        module: student, objectives and data.
        out: run directory; gets logs/ and last.ckpt.
        device: "auto", "cpu" or "cuda".

    Returns:
        Figures: "steps", "training_s" and "final" (the last losses).
    """
    store = callbacks.ModelCheckpoint(
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
        plugins=[_AtomicCheckpoints()],
        use_distributed_sampler=False,
        max_epochs=module.epochs,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=module.optimizer.gradient_clip,
        logger=CSVLogger(out, name="logs", version=""),
        callbacks=[store, *([TrainingBar(module.optimizer.steps)] if first_rank else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        default_root_dir=out,
    )
    last = out / _LAST
    started = time.monotonic()
    with suppress(SystemExit):  # Lightning's, with status 0 or 1
        trainer.fit(module, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    if trainer.interrupted or trainer.received_sigterm:
        step, steps = trainer.global_step, module.optimizer.steps
        note(f"interrupted at step {step} of {steps}; run the same command again to resume")
        raise SystemExit(_TERMINATED) if trainer.received_sigterm else KeyboardInterrupt
    seconds = time.monotonic() - started
    module.result()
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
    """Write the checkpoint of a run, with its words, and metrics.json."""
    meta = CheckpointMeta(
        student=student.config.model_dump(mode="json"),
        label_space=space.to_dict(),
        recipe=recipe.model_dump(mode="json"),
        metrics=metrics,
    )
    save_checkpoint(out / FILE_NAME, student.state_dict(), meta, text)
    write_atomic(out / "metrics.json", json.dumps(metrics, indent=1))
