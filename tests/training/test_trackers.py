# SPDX-License-Identifier: Apache-2.0
"""Losses and learning rates reach the trackers of --log, in pieces of a run as in a whole one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from typer.testing import CliRunner, Result

from pcseg_core.cli import app
from pcseg_core.errors import MissingDependency
from pcseg_core.learning import trackers, trainer
from pcseg_core.learning.finetune import FinetuneRecipe, finetune
from pcseg_core.learning.recipe import OptimizerConfig
from pcseg_core.learning.run_folder import RUN
from tests.small_runs import STREET, semantic_kitti, sweep, write_run

STEPS = [1, 3, 5]


class Recorder(DummyLogger):
    """Keeps what a training logs; a signal arrives after the first row if `stopping`."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.ends: list[str] = []
        self.stopping = False

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))
        if self.stopping:
            os.kill(os.getpid(), signal.SIGINT)

    def finalize(self, status: str) -> None:
        self.ends.append(status)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """In place of TensorBoard."""
    made = Recorder()
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(trackers._LOGGERS, "tensorboard", lambda *_: made)
    return made


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trainer, "CURVE_EVERY", 2)
    return write_run(tmp_path / "start")


def train(start: Path, out: Path, *log: str) -> dict[str, Any]:
    recipe = FinetuneRecipe(optimizer=OptimizerConfig(steps=6, batch_size=1))
    return finetune(start, [sweep("a")], [], STREET, recipe, out, "cpu", log=log)


def pcseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_tracker_gets_losses_and_rates_and_a_resumed_run_goes_on_in_it(
    start: Path, recorder: Recorder, tmp_path: Path
) -> None:
    recorder.stopping = True
    with pytest.raises(KeyboardInterrupt):
        train(start, tmp_path / "out", "csv", "tensorboard", "tensorboard")
    recorder.stopping = False
    figures = train(start, tmp_path / "out", "tensorboard")
    assert [step for step, _ in recorder.rows] == STEPS
    assert recorder.ends == ["failed", "success"]
    rates = [row["learning_rate"] for _, row in recorder.rows]
    trunk = [row["learning_rate_1"] for _, row in recorder.rows]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < rates[0]
    assert all(a > b for a, b in zip(rates, trunk))
    assert recorder.rows[-1][1]["loss"] == pytest.approx(figures["final"]["loss"], abs=1e-4)
    assert "learning_rate" not in figures["final"]


def test_the_tracker_is_no_part_of_the_identity_of_a_run(
    start: Path, recorder: Recorder, tmp_path: Path
) -> None:
    source = semantic_kitti(tmp_path / "town", 1)
    command = ("finetune", start, f"semantic-kitti:{source}", "--out", tmp_path / "out")
    first = pcseg(*command, "--steps", 1)
    assert first.exit_code == 0, first.output
    again = pcseg(*command, "--steps", 1, "--log", "tensorboard")
    assert again.exit_code == 0 and "has finished" in again.output
    assert not recorder.rows


@pytest.mark.parametrize("command", ["distill", "pretrain", "zero-shot", "finetune"])
def test_a_tracker_that_is_missing_is_refused_before_any_work(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    others = {
        "distill": ["drive"],
        "pretrain": ["drive", "--recipe", "pretrain-kitti"],
        "zero-shot": ["drive", "--recipe", "x", "--test", "other", "--split", "nuscenes"],
        "finetune": ["start", "drive"],
    }
    result = pcseg(command, *others[command], "--out", tmp_path / "out", "--log", "wandb")
    assert result.exit_code == 2
    assert "pip install 'pcseg_ros[tracking]'" in result.output
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker_is_refused_with_the_names() -> None:
    result = pcseg("distill", "drive", "--out", "out", "--log", "excel")
    assert result.exit_code == 2
    assert "--log excel: expected csv, tensorboard, mlflow, wandb" in result.output


def test_without_a_tracker_the_python_call_is_refused_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependency, match="tracking"):
        trackers.Trackers(["mlflow"], tmp_path)


# --- the trackers themselves, where they are installed ---------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_two_pieces_of_a_run_are_one_run_of_the_tracker(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip(name)
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    for step, finished in ((1, False), (3, True)):
        piece = trackers.Trackers([name], tmp_path)
        piece.add(step, {"loss": 1.0 / step, "learning_rate": 0.1})
        piece.close(finished)
    folder = tmp_path / "logs" / name
    assert STORED[name](folder) == STORED_STEPS[name]
    written = [path.relative_to(tmp_path).as_posix() for path in folder.rglob("*")]
    assert written and all(path.startswith("logs/") for path in written)
    assert "logs/*" in RUN.contents  # --fresh deletes them


def steps_of_tensorboard(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [event.step for event in found.Scalars("loss")]


def steps_of_mlflow(folder: Path) -> list[int]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    run = (folder / "run_id").read_text()
    assert client.get_run(run).info.status == "FINISHED"
    return [point.step for point in client.get_metric_history(run, "loss")]


def names_of_wandb(folder: Path) -> set[str]:
    assert (folder / "run_id").is_file()
    return {path.name.rpartition("-")[2] for path in folder.glob("wandb/offline-run-*")} - {
        (folder / "run_id").read_text()
    }


STORED = {"tensorboard": steps_of_tensorboard, "mlflow": steps_of_mlflow, "wandb": names_of_wandb}
STORED_STEPS: dict[str, object] = {"tensorboard": [1, 3], "mlflow": [1, 3], "wandb": set()}
