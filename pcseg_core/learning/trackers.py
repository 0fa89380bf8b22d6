# SPDX-License-Identifier: Apache-2.0
"""Trackers of experiments: Lightning's loggers, which write into the run folder.

Nothing leaves the machine unless the variables of the tracker say so. Nothing here imports torch
before a logger is made.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pcseg_core.errors import InputError, require
from pcseg_core.files import write_atomic

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

CSV = "csv"
"""The curve in logs/metrics.csv, which every run writes."""
FOLDER = "logs"
_PROJECT = "pcseg"
_RUN_ID = "run_id"  # file with the name that a tracker gave the run


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are known and installed. Does not import torch.

    Raises:
        InputError: an unknown tracker.
        MissingDependency: a tracker is not installed.
    """
    for name in names:
        if name != CSV and name not in _LOGGERS:
            raise InputError(f"--log {name}: expected {', '.join((CSV, *_LOGGERS))}")
        if name in _LOGGERS:
            require(name, "tracking")


class Trackers:
    """Figures of a training for the trackers that a user wants.

    Args:
        names: of trackers, see `check_trackers`; "csv" has no logger.
        out: run directory; each tracker writes into a folder of its name in logs/.
    """

    def __init__(self, names: Sequence[str], out: Path) -> None:
        check_trackers(names)
        chosen = [name for name in dict.fromkeys(names) if name != CSV]
        self.loggers = [_LOGGERS[name](out / FOLDER / name, out.resolve()) for name in chosen]

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Log figures under a step."""
        for logger in self.loggers:
            logger.log_metrics(dict(figures), step=step)

    def close(self, finished: bool) -> None:
        """Write everything; `finished` tells whether the training reached its last step."""
        for logger in self.loggers:
            logger.finalize("success" if finished else "failed")
            finish = getattr(getattr(logger, "experiment", None), "finish", None)
            if finish is not None:  # of wandb, which otherwise ends with the process
                finish()


def _tensorboard(folder: Path, _run: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder.parent, name=folder.name, version="")


def _mlflow(folder: Path, run: Path) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from lightning.pytorch.loggers import MLFlowLogger

    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    server = os.environ.get("MLFLOW_TRACKING_URI")
    logger = MLFlowLogger(
        _PROJECT,
        run_name=run.name,
        tracking_uri=server or f"sqlite:///{place / 'mlflow.db'}",
        artifact_location=None if server else (place / "artifacts").as_uri(),
        run_id=_stored_id(folder),
    )
    if logger.run_id is not None:
        write_atomic(folder / _RUN_ID, logger.run_id)
    return logger


def _wandb(folder: Path, run: Path) -> Logger:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    from lightning.pytorch.loggers import WandbLogger

    folder.mkdir(parents=True, exist_ok=True)
    name = _stored_id(folder) or uuid.uuid4().hex[:8]
    write_atomic(folder / _RUN_ID, name)
    offline = os.environ.get("WANDB_MODE", "offline") != "online"
    return WandbLogger(run.name, save_dir=folder, id=name, project=_PROJECT, offline=offline)


def _stored_id(folder: Path) -> str | None:
    """What a tracker called this run when it began; None for a new one."""
    file = folder / _RUN_ID
    return file.read_text(encoding="utf-8").strip() or None if file.is_file() else None


_LOGGERS: dict[str, Callable[[Path, Path], Logger]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
