# SPDX-License-Identifier: Apache-2.0
"""The training loop: stored states, interruptions, the progress bar and the curve of the losses."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import callbacks

from pcseg_core.errors import PcsegError, interruption
from pcseg_core.files import atomic_path, write_atomic
from pcseg_core.learning.distributed import processes
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.run_folder import LAST, is_first_process
from pcseg_core.learning.run_mirror import mirror
from pcseg_core.learning.runs import torch_device
from pcseg_core.learning.trackers import Trackers
from pcseg_core.progress import bar, note

CURVE = Path("logs", "metrics.csv")
CURVE_EVERY = 10  # steps between two rows of the curve


def train(
    module: TrainingModule, out: Path, device: str, log: Sequence[str] = ()
) -> dict[str, Any]:
    """Train to the last step. Resumes from the last stored state.

    The state is stored every 50 steps, and on SIGINT and SIGTERM after the step that is running.
    Under torchrun all its processes share the work. Afterwards the module's student is the result.

    Args:
        module: student, objectives and data.
        out: run directory; gets logs/metrics.csv and last.ckpt.
        device: "auto", "cpu", "cuda" or "cuda:N".
        log: trackers of the losses besides logs/metrics.csv, see `Trackers`.

    Returns:
        Figures: "steps", "training_s" (of all pieces of the run) and "final" (the last losses).

    Raises:
        KeyboardInterrupt: a signal ended the training before the last step.
    """
    steps, curve = module.optimizer.steps, Curve(out / CURVE)
    with StopRequest() as stop, _quiet():
        states = _States(out / LAST, stop)
        shown = [TrainingBar(steps), _CurveWriter(curve, steps, log, out)]
        trainer = _trainer(module, [*(shown if is_first_process() else ()), states], out, device)
        with _named_losses(), suppress(SystemExit):  # Lightning's, on signals before the first step
            trainer.fit(module, ckpt_path=_usable(out / LAST), weights_only=True)
    if trainer.global_step < steps:
        raise interruption(
            stop.number,
            f"interrupted at step {trainer.global_step} of {steps}; run the same command again to "
            "resume",
        )
    module.result()
    return {"steps": steps, "training_s": round(states.seconds, 1), "final": curve.final()}


def _trainer(
    module: TrainingModule, shown: list[callbacks.Callback], out: Path, device: str
) -> lightning.Trainer:
    """Lightning's trainer, of this process or of all that torchrun or Ray Train started."""
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), processes()
    chosen = torch.device(torch_device(device))
    return lightning.Trainer(
        accelerator="gpu" if chosen.type == "cuda" else "cpu",
        devices=local if chosen.index is None else [chosen.index],
        num_nodes=max(1, world // local),
        # Parameters may be without a loss in a step: words, or features of sweeps without images.
        strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        plugins=[_AtomicCheckpoints(), *([_Started()] if world > 1 else ())],
        use_distributed_sampler=False,
        max_steps=module.optimizer.steps,
        max_epochs=-1,
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=module.optimizer.accumulate,
        gradient_clip_val=module.optimizer.gradient_clip,
        logger=False,
        callbacks=shown,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )


class _Started(TorchElasticEnvironment):
    """Processes that were started already; machines may have different numbers of them."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        pass


class StopRequest:
    """Takes note of SIGINT and SIGTERM inside a `with` block; a second signal ends it at once.

    Attributes:
        number: of the signal, 0 without any.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    def listen(self) -> None:
        """Take the signals back from another handler."""
        self._set(dict.fromkeys(self._before, self._take))

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    def _set(self, handlers: Mapping[int, Any]) -> None:
        if threading.current_thread() is threading.main_thread():  # only it may
            for number, handler in handlers.items():
                signal.signal(number, handler)


class Curve:
    """Figures by step in a CSV file; rows of earlier runs stay, a repeated step is not added.

    Args:
        path: the file; a last line that is cut short does not count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        found = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        self.rows: list[dict[str, str]] = [row for row in found if row.get("step", "").isdigit()]

    def add(self, step: int, figures: Mapping[str, float]) -> bool:
        """Add a row and write the file; False for a step that is there already."""
        if self.rows and step <= int(self.rows[-1]["step"]):
            return False
        self.rows.append({"step": str(step)} | {k: str(float(v)) for k, v in figures.items()})
        names = dict.fromkeys(name for row in self.rows for name in row)
        lines = io.StringIO()
        writer = csv.DictWriter(lines, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self._path, lines.getvalue())
        return True

    def final(self) -> dict[str, float]:
        """Figures of the last row."""
        last = self.rows[-1] if self.rows else {}
        return {k: round(float(v), 4) for k, v in last.items() if k != "step" and v}


class _CurveWriter(callbacks.Callback):
    """Adds a row to the curve every few steps and at the last one; trackers get it as well.

    Args:
        curve: the file.
        steps: of the whole training.
        log, out: see `Trackers`.
    """

    def __init__(self, curve: Curve, steps: int, log: Sequence[str], out: Path) -> None:
        self.curve, self.steps, self._chosen = curve, steps, (log, out)
        self._trackers: Trackers | None = None
        self._rates: dict[str, float] = {}

    def on_train_start(self, *_: Any) -> None:
        self._trackers = Trackers(*self._chosen)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        rates = {f"learning_rate_{i}" if i else "learning_rate": g for i, g in enumerate(groups)}
        self._rates = {name: float(group["lr"]) for name, group in rates.items()}

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        done = trainer.global_step
        if done % CURVE_EVERY == 0 or done == self.steps:
            figures = {k: float(v) for k, v in trainer.progress_bar_metrics.items()}
            if self.curve.add(done - 1, figures) and self._trackers is not None:
                self._trackers.add(done - 1, figures | self._rates)

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._close(trainer.global_step >= self.steps)

    def on_exception(self, *_: Any) -> None:
        self._close(False)

    def _close(self, finished: bool) -> None:
        if self._trackers is not None:
            self._trackers.close(finished)
        self._trackers = None


class _States(callbacks.Callback):
    """Stores the state of the training at the end of every epoch; a signal ends the epoch.

    Args:
        path: of the state.
        stop: the signals.
    """

    def __init__(self, path: Path, stop: StopRequest) -> None:
        self.path, self.stop = path, stop
        self._earlier_s, self._started_s = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Duration of the training, with all earlier pieces [s]."""
        return self._earlier_s + time.monotonic() - self._started_s

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_s = float(state_dict["seconds"])

    def on_train_start(self, *_: Any) -> None:
        self.stop.listen()  # Lightning takes SIGTERM for itself and stores nothing

    def on_train_batch_end(
        self, trainer: lightning.Trainer, _module: Any, _outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # within a step
        # All processes end the epoch at the same step.
        if trainer.strategy.reduce_boolean_decision(self.stop.number > 0, all=False):
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)
        if is_first_process():
            mirror(self.path.parent, patient=True)


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


@contextmanager
def _named_losses() -> Iterator[None]:
    """Name the loss of another process, which torch tells in the words of its transport.

    Raises:
        PcsegError: another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if processes() == 1 or not re.search(
            "gloo|nccl|peer|connection", str(error), re.IGNORECASE
        ):
            raise
        raise PcsegError(
            "another process of the training is gone; run the same command again to resume from "
            f"the last stored state ({' '.join(str(error).split())[:200]})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's hints for developers."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", r"torch\.distributed\.nn\.", FutureWarning)
        try:
            yield
        finally:
            log.setLevel(level)


def _usable(state: Path) -> Path | None:
    """A stored state; None, with a note, if its file is missing or damaged."""
    if not state.is_file():
        return None
    try:
        TorchCheckpointIO().load_checkpoint(state, weights_only=True)
    except Exception as error:  # the kind depends on the damage
        reason = str(error).partition("\n")[0][:100]
        note(f"{state} is damaged ({reason}); the training starts over from the labels")
        return None
    return state
