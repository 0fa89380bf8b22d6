# SPDX-License-Identifier: Apache-2.0
"""Runs that are stopped, killed, repeated or damaged end as those that were not."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from pcseg_core.bundled import bundled_file
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cli import app
from pcseg_core.distill.cache import is_whole
from pcseg_core.errors import Terminated
from pcseg_core.learning.distill import distill
from pcseg_core.learning.module import TrainingModule
from pcseg_core.learning.pretrain import pretrain
from pcseg_core.learning.recipe import OptimizerConfig, Recipe
from pcseg_core.learning.trainer import Curve, _usable
from pcseg_core.vision.encoder_kinds import ESPNetv2FeaturesConfig

SOURCE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"
TEACHER = "bundled:simulation_teacher"
STUDENT = {"depth": 14, "width": 0.25, "voxel_size_m": 0.5}
LABELS = Recipe.model_validate(
    {
        "teacher": {
            "weights": TEACHER,
            "label_space": "simulation",
            "scales": [1.0],
            "flip": False,
        },
        "student": STUDENT,
        "optimizer": {"steps": 6, "batch_size": 1},
        "loss": {"min_confidence": 0.0},
    }
)
CONTRAST = Recipe.model_validate(
    {
        "encoder": ESPNetv2FeaturesConfig(name="espnetv2", weights=bundled_file(TEACHER)),
        "superpixels": {"name": "slic", "segments": 20},
        "student": STUDENT,
        "optimizer": {"steps": 6, "batch_size": 1},
    }
)
KINDS: dict[str, tuple[Callable[..., dict[str, Any]], Recipe]] = {
    "distill": (distill, LABELS),
    "pretrain": (pretrain, CONTRAST),
}


def run(kind: str, out: Path, cache: Path | None = None) -> dict[str, Any]:
    train, recipe = KINDS[kind]
    return train([SOURCE], recipe, out, cache, device="cpu")


def same_weights(one: Path, other: Path) -> None:
    first, second = load_checkpoint(one)[0], load_checkpoint(other)[0]
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def curve_of(out: Path) -> list[int]:
    with (out / "logs" / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module", params=list(KINDS))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, in a folder with the name of its kind."""
    out = tmp_path_factory.mktemp("whole") / str(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcseg_core.learning.module.STEPS_PER_EPOCH", 2)
        run(out.name, out)
    return out


def test_a_checkpoint_stores_the_distribution_of_its_sweeps(whole: Path) -> None:
    inputs = load_checkpoint(whole)[1].inputs
    assert inputs is not None and inputs.intensity is not None and inputs.returns[0] > 100


def killed_at_a_file(kind: str, out: Path, renamed: int) -> None:
    """In a process of its own: train, and die before the given rename of a written file."""
    torch.set_num_threads(1)
    import pcseg_core.learning.module as module

    module.STEPS_PER_EPOCH = 2
    real, count = Path.replace, 0

    def fragile(self: Path, target: Any) -> Path:
        nonlocal count
        count += 1
        if count == renamed:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)

    Path.replace = fragile  # type: ignore[method-assign]
    run(kind, out)


def test_a_run_that_is_killed_at_every_file_ends_as_one_that_was_not(
    whole: Path, tmp_path: Path
) -> None:
    """Each process writes one or two files and is killed within the next."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pcseg_core.learning.distill", "pcseg_core.learning.pretrain"])
    out, deaths = tmp_path / "run", 0
    while not (out / "metrics.json").exists():
        renamed = 2 + deaths % 2 if deaths else 1
        process = context.Process(target=killed_at_a_file, args=(whole.name, out, renamed))
        process.start()
        process.join(200)
        assert process.exitcode == -signal.SIGKILL or (out / "metrics.json").exists()
        deaths += process.exitcode != 0
    assert deaths > 5
    same_weights(out, whole)
    metrics = json.loads((out / "metrics.json").read_text())
    assert curve_of(out) == curve_of(whole) == [5]
    assert metrics["final"] == json.loads((whole / "metrics.json").read_text())["final"]


@pytest.mark.parametrize(
    "number, kind", [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_stores_the_step_and_resumes_from_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type
) -> None:
    real, steps = TrainingModule.training_step, []

    def stopped(self: TrainingModule, batch: Any, index: int) -> Any:
        steps.append(self.global_step)
        if len(steps) == 3:
            os.kill(os.getpid(), number)
        return real(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", stopped)
    before = signal.getsignal(number)
    with pytest.raises(kind, match="interrupted at step 3 of 6; run the same") as told:
        run(whole.name, tmp_path / "run", whole / "cache")
    assert told.type is kind and signal.getsignal(number) is before
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    metrics = run(whole.name, tmp_path / "run", whole / "cache")
    assert steps == [0, 1, 2, 3, 4, 5] and metrics["steps"] == 6
    same_weights(tmp_path / "run", whole)


def test_the_curve_and_the_duration_cover_all_pieces(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcseg_core.learning.module.STEPS_PER_EPOCH", 10)
    real, clock = TrainingModule.training_step, [0.0]
    monkeypatch.setattr("pcseg_core.learning.trainer.time.monotonic", lambda: clock[0])

    def slow(self: TrainingModule, batch: Any, index: int) -> Any:
        clock[0] += 1.0
        if clock[0] == 16:
            raise RuntimeError("killed")
        return real(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", slow)
    train, recipe = KINDS[whole.name]
    longer = recipe.model_copy(update={"optimizer": OptimizerConfig(steps=25, batch_size=1)})
    arguments = ([SOURCE], longer, tmp_path / "run", whole / "cache", "cpu")
    with pytest.raises(RuntimeError, match="killed"):
        train(*arguments)
    assert curve_of(tmp_path / "run") == [9]
    metrics = train(*arguments)
    assert curve_of(tmp_path / "run") == [9, 19, 24] and metrics["final"]["loss"] > 0
    assert (
        metrics["training_s"] == 25
    )  # 10 stored steps, then 15; those that were lost do not count


def test_the_curve_keeps_its_rows_when_figures_are_added(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.csv"
    Curve(path).add(9, {"loss": 2.0})
    text = path.read_text()
    assert text == "step,loss\n9,2.0\n"
    path.write_text(text + "19,1.")  # cut short
    curve = Curve(path)
    curve.add(19, {"loss": 1.0, "agreement": 0.5})
    curve.add(19, {"loss": 7.0})
    assert path.read_text() == "step,loss,agreement\n9,2.0,\n19,1.0,0.5\n"
    assert curve.final() == {"loss": 1.0, "agreement": 0.5}


WITHOUT_TORCH = """
import sys
sys.modules.update(torch=None, lightning=None)
from pcseg_core.cli import main
main()
"""


def test_a_finished_run_is_told_without_torch_and_does_not_change(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"teacher: {{weights: '{TEACHER}', label_space: simulation, scales: [1.0]}}\n"
        "student: {depth: 14, width: 0.25, voxel_size_m: 0.5}\n"
        "optimizer: {steps: 2, batch_size: 1}\nloss: {min_confidence: 0.0}\n"
    )
    command = ["distill", SOURCE, "--recipe", str(recipe), "--out", str(tmp_path / "run")]

    def pcseg(*more: str) -> Result:
        return CliRunner().invoke(app, [*command, "--device", "cpu", *more])

    def without_torch(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", WITHOUT_TORCH, *command, *more]
        return subprocess.run(words, capture_output=True, text=True, timeout=120)

    first = pcseg()
    assert first.exit_code == 0, first.output

    def files() -> dict[Path, tuple[int, bytes]]:
        found = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before = files()
    again = without_torch()
    assert again.returncode == 0 and "has finished" in again.stderr and files() == before
    assert again.stdout == first.stdout
    wrong = without_torch("--start", str(tmp_path / "nothing"))
    assert wrong.returncode == 2 and "no such file" in wrong.stderr
    # Without the memory of the command, the recipe tells that the run has finished.
    (tmp_path / "run" / "command.yaml").unlink()
    del before[tmp_path / "run" / "command.yaml"]
    third = pcseg()
    (tmp_path / "run" / "command.yaml").unlink()
    assert third.stdout == first.stdout and files() == before


@pytest.fixture(scope="module")
def state(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """The state of a run, and a file for damaged copies."""
    return (whole / "last.ckpt").read_bytes(), tmp_path_factory.mktemp("cut") / "last.ckpt"


@settings(deadline=None, max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_state_cut_at_any_byte_is_not_used(state: tuple[bytes, Path], share: float) -> None:
    content, path = state
    path.write_bytes(content[: int(share * len(content))])
    assert _usable(path) is None
    path.write_bytes(content)
    assert _usable(path) == path


def test_a_damaged_state_is_named_and_the_training_starts_over(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run(whole.name, out, whole / "cache")
    for name in ("checkpoint.safetensors", "metrics.json"):
        (out / name).unlink()
    content = (out / "last.ckpt").read_bytes()
    (out / "last.ckpt").write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    run(whole.name, out, whole / "cache")
    assert "last.ckpt is damaged" in capsys.readouterr().err
    same_weights(out, whole)


@settings(deadline=None, max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True), number=st.integers(0, 100))
def test_a_cache_file_cut_at_any_byte_is_absent(
    state: tuple[bytes, Path], whole: Path, share: float, number: int
) -> None:
    files = sorted(whole.glob("cache/*.npz")) + sorted(whole.glob("pseudo_labels/*.npz"))
    content = files[number % len(files)].read_bytes()
    path = state[1].with_name("cut.npz")
    path.write_bytes(content[: int(share * len(content))])
    assert not is_whole(path)
    path.write_bytes(content)
    assert is_whole(path)


def test_damaged_cache_files_are_made_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(whole.name, out)
    for name in ("checkpoint.safetensors", "metrics.json", "last.ckpt"):
        (out / name).unlink()
    files = [*out.glob("cache/**/*.npz"), *out.glob("pseudo_labels/*.npz")]
    for number, path in enumerate(files):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * number // len(files)])
    run(whole.name, out)
    same_weights(out, whole)
    assert all(is_whole(path) for path in files)
