# SPDX-License-Identifier: Apache-2.0
"""Training commands as a user runs them: recipes by name, resuming, starting over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_runs import STREET, semantic_kitti, write_run, write_word_run
from typer.testing import CliRunner, Result

from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.cli import app
from pcseg_core.cli.options import adjusted
from pcseg_core.data import open_recording
from pcseg_core.errors import Terminated
from pcseg_core.learning.finetune import read_corrected
from pcseg_core.learning.recipe import load_recipe
from pcseg_core.recipes import available_recipes, recipe_file

SOURCE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"
RECIPE = """
teacher: {weights: "bundled:simulation_teacher", label_space: simulation, scales: [1.0]}
student: {depth: 14, width: 0.25, voxel_size_m: 0.5}
optimizer: {steps: 2, batch_size: 1}
loss: {min_confidence: 0.0}
"""


def pcseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_recipes_are_listed_and_shown() -> None:
    lines = pcseg("recipe", "list").output.splitlines()
    assert [line.split()[0] for line in lines] == list(available_recipes())
    assert any(line.split()[:2] == ["kitti", "distillation"] for line in lines)
    assert {line.split()[1] for line in lines} == {"distillation", "pretraining", "zero-shot"}
    assert pcseg("recipe", "show", "kitti").output == recipe_file("kitti").read_text()
    wrong = pcseg("recipe", "show", "kity")
    assert wrong.exit_code == 2 and "did you mean 'kitti'" in wrong.output


def test_seed_and_steps_replace_those_of_the_recipe() -> None:
    recipe = load_recipe(recipe_file("simulated"))
    assert adjusted(recipe) == recipe
    changed = adjusted(recipe, seed=3, steps=7)
    assert (changed.seed, changed.optimizer.steps) == (3, 7)
    assert changed.optimizer.batch_size == recipe.optimizer.batch_size
    rounds = recipe.rounds.model_copy(update={"steps": 50})
    assert adjusted(recipe.model_copy(update={"rounds": rounds}), steps=7).rounds.steps == 7


@pytest.mark.parametrize("command", ["distill", "pretrain", "zero-shot", "label"])
def test_unknown_recipes_are_one_line(command: str, tmp_path: Path) -> None:
    options = ["--test", SOURCE, "--split", "nuscenes"] if command == "zero-shot" else []
    result = pcseg(command, SOURCE, *options, "--recipe", "kitty", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "did you mean 'kitti'" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "marker", ["- flour\n- water\n", "teacher: {weights: w.safetensors}\n", "recipe: bread\n"]
)
def test_fresh_deletes_nothing_of_others(marker: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "logs").mkdir(parents=True)
    content = {"recipe.yaml": marker, "logs/thesis.txt": "years of work", "notes.txt": "more"}
    for name, text in content.items():
        (mine / name).write_text(text)
    (tmp_path / "r.yaml").write_text(RECIPE)
    result = pcseg("distill", SOURCE, "--recipe", tmp_path / "r.yaml", "--out", mine, "--fresh")
    assert {name: (mine / name).read_text() for name in content} == content
    assert result.exit_code == 2 and "is not a run directory" in result.output


def test_a_run_resumes_and_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    command = ("distill", SOURCE, "--recipe", "r.yaml", "--out", "run", "--device", "cpu")
    first = pcseg(*command)
    assert first.exit_code == 0 and "2 sweeps, 2 steps" in first.output
    weights = load_checkpoint(tmp_path / "run")[0]
    refused = pcseg(*command, "--steps", 3)
    assert refused.exit_code == 2 and "another recipe" in refused.output
    (tmp_path / "run" / "notes.txt").write_text("mine")
    refused = pcseg(*command, "--steps", 3, "--fresh")
    assert refused.exit_code == 2 and "notes.txt" in refused.output
    assert load_checkpoint(tmp_path / "run")[0].keys() == weights.keys()
    (tmp_path / "run" / "notes.txt").unlink()
    log = (tmp_path / "run" / "logs" / "pcseg.log").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in log] == ["done"]  # it was not changed
    fresh = pcseg(*command, "--steps", 3, "--fresh")
    assert fresh.exit_code == 0 and "2 sweeps, 3 steps" in fresh.output


def test_fine_tuning_trains_a_checkpoint_and_measures_it(tmp_path: Path) -> None:
    fit, test = semantic_kitti(tmp_path / "00", 2), semantic_kitti(tmp_path / "0100", 1)
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    command = ("finetune", run, fit, "--test", test, "--out", out, "--steps", 30, "--device", "cpu")
    result = pcseg(*command)
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["sweeps"] == 2 and metrics["steps"] == 30
    assert f"mIoU {100 * metrics['test']['miou']:.1f} %" in result.output
    meta = load_checkpoint(out)[1]
    assert meta.label_space == STREET.to_dict()
    assert meta.inputs is not None and 1000 < meta.inputs.returns[0] <= 2000
    again = pcseg(*command)
    assert again.exit_code == 0 and "30 steps" in again.output
    refused = pcseg(*command, "--seed", 1)
    assert refused.exit_code == 2 and "another recipe" in refused.output


def test_fine_tuning_keeps_the_classifier_of_the_same_classes(tmp_path: Path) -> None:
    fit = semantic_kitti(tmp_path / "00", 1)
    (tmp_path / "run").mkdir()
    run = write_word_run(tmp_path / "run")
    (tmp_path / "tiny.yaml").write_text("{trunk_learning_rate: 1.0e-9, optimizer: {steps: 1}}\n")
    options = ("--recipe", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--device", "cpu")
    result = pcseg("finetune", run, fit, *options)
    assert result.exit_code == 0, result.output
    before, (after, meta) = load_checkpoint(run)[0], load_checkpoint(tmp_path / "out")
    name = "network.classifier.weight"
    assert np.allclose(after[name], before[name], atol=1e-5)
    assert not any(key.startswith("text_head.") for key in after) and meta.student["width"] == 0.25


def test_fine_tuning_takes_labels_of_another_folder(tmp_path: Path) -> None:
    fit = semantic_kitti(tmp_path / "00", 2)
    (fit / "labels").rename(tmp_path / "labels")
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    command = ("finetune", run, fit, "--out", out, "--steps", 1, "--device", "cpu")
    refused = pcseg(*command)
    assert refused.exit_code == 2 and "none of its 2 sweeps has labels" in refused.output
    other = semantic_kitti(tmp_path / "01", 2)
    refused = pcseg(*command, other, "--labels", tmp_path / "labels")
    assert refused.exit_code == 2 and "one source" in refused.output
    assert not out.exists()
    result = pcseg(*command, "--labels", tmp_path / "labels")
    assert result.exit_code == 0 and "2 sweeps, 1 steps" in result.output, result.output


def test_fine_tuning_learns_the_corrected_sweeps_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", classes=STREET)
    drive = semantic_kitti(tmp_path / "drive", 3)
    corrected = tmp_path / "corrected"
    corrected.mkdir()
    walls = np.full(2000, 50, "<u4")
    (corrected / "000001.label").write_bytes(walls.tobytes())
    options = ["--corrected", corrected, "--out", tmp_path / "tuned", "--steps", 1]
    both = pcseg("finetune", run, drive, *options, "--labels", corrected)
    assert both.exit_code == 2 and "--labels or --corrected, not both" in both.output
    result = pcseg("finetune", run, drive, *options)
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "tuned")[1].metrics["sweeps"] == 1
    (sweep,) = read_corrected(corrected, {"drive": open_recording(drive)}, STREET, 80.0)
    assert set(sweep.label.tolist()) == {STREET.index("structure")}
    (corrected / "000001.label").write_bytes(walls[1:].tobytes())
    cut = pcseg("finetune", run, drive, *options, "--fresh")
    assert cut.exit_code == 2 and "000001.label: 1999 labels for a sweep of 2000" in cut.output


@pytest.mark.parametrize("kind, status", [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_an_interrupted_preparation_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[KeyboardInterrupt], status: int
) -> None:
    def interrupted(*_: object) -> None:
        raise kind

    monkeypatch.setattr("pcseg_core.learning.distill.observe", interrupted)
    (tmp_path / "r.yaml").write_text(RECIPE)
    result = pcseg("distill", SOURCE, "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert result.exit_code == status
    assert "interrupted; run the same command again to resume" in result.output


def test_what_a_run_starts_from_is_not_deleted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "r.yaml").write_text(RECIPE)
    options = ("--recipe", tmp_path / "r.yaml", "--fresh", "--out", run, "--start", run)
    result = pcseg("distill", SOURCE, *options)
    assert result.exit_code == 2 and "choose another --out" in result.output
    assert (run / "checkpoint.safetensors").is_file()


@pytest.mark.parametrize("command", ["distill", "pretrain", "zero-shot", "finetune", "probe"])
def test_paths_are_checked_without_torch(command: str, tmp_path: Path) -> None:
    run, drive, missing = write_run(tmp_path / "run"), semantic_kitti(tmp_path / "00", 1), "driv"
    (tmp_path / "r.yaml").write_text(RECIPE)
    options = ["--recipe", tmp_path / "r.yaml", "--out", tmp_path / "out"]
    arguments = {
        "distill": [missing, *options],
        "pretrain": [drive, missing, *options],
        "zero-shot": [drive, "--test", missing, "--split", "nuscenes", *options],
        "finetune": [run, missing, "--out", tmp_path / "out"],
        "probe": [run, "--fit", drive, "--test", missing],
    }[command]
    code = "import sys; sys.modules['torch'] = None; from pcseg_core.cli import main; main()"
    words = [sys.executable, "-c", code, command, *map(str, arguments)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "driv: no such" in result.stderr
    assert not (tmp_path / "out").exists()
