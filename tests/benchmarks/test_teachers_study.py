# SPDX-License-Identifier: Apache-2.0
"""Studies of teachers: rows that are stored one by one, a teacher that fails, recipes, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SMALL, STREET, semantic_kitti, write_run
from typer.testing import CliRunner

from benchmarks.studies import teacher_3d, teachers
from benchmarks.studies.study import Data
from pcseg_core.checkpoint import FILE_NAME, CheckpointMeta, save_checkpoint
from pcseg_core.errors import InputError
from pcseg_core.learning.recipe import Recipe
from pcseg_core.models.student import Student, StudentConfig

DRIVE = "simulated:seed=5,sweeps=1,beams=8,columns=128,cameras=1,width=96,height=64"
BUNDLED = {"weights": "bundled:simulation_teacher", "label_space": "simulation", "flip": False}


def write_segmenter(run: Path, recipe: Recipe) -> dict[str, Any]:
    torch.manual_seed(recipe.seed)
    student = Student(recipe.student, len(STREET))
    meta = CheckpointMeta(
        student=recipe.student.model_dump(mode="json"), label_space=STREET.to_dict()
    )
    save_checkpoint(run / FILE_NAME, student.state_dict(), meta)
    return {"labeling_s": 1.0, "training_s": 2.0}


@pytest.fixture
def labeled(tmp_path: Path) -> str:
    return f"semantic-kitti:{semantic_kitti(tmp_path / '00', 1)}"


def test_one_bad_teacher_costs_its_rows_and_is_named(
    tmp_path: Path, labeled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def zero_shot(_train: Any, _test: Any, _split: Any, recipe: Recipe, *_: Any) -> Any:
        calls.append(f"zero-shot {recipe.supervision}")
        iou = dict.fromkeys(STREET.names, 0.25)
        return {"plain": {"seen": 0.5, "unseen": 0.2, "hiou": 0.3, "miou": 0.4, "iou": iou}}

    def distill(_train: Any, recipe: Recipe, run: Path, *_: Any) -> Any:
        calls.append(f"distill {recipe.teacher.label_space}")
        return write_segmenter(run, recipe.model_copy(update={"student": SMALL}))

    def pretrain(_train: Any, recipe: Recipe, run: Path, *_: Any) -> None:
        calls.append(f"pretrain {recipe.superpixels.name}")
        write_run(run)

    for trained in (zero_shot, distill, pretrain):
        monkeypatch.setattr(teachers, trained.__name__, trained)
    (tmp_path / "good.yaml").write_text(json.dumps({"teacher": BUNDLED}))
    (tmp_path / "bad.yaml").write_text("teacher: {weights: gone.safetensors}\n")
    words = ["--json", str(tmp_path / "rows.json"), "--superpixels", "slic", "--data", DRIVE]
    words += ["--test", labeled, "--fit", labeled + "?", "--picture", str(tmp_path / "rows.png")]
    words += ["--recipe", "simulated", "--probe-recipe", "contrast", "--device", "cpu"]
    for name in ("good", "bad"):
        words += ["--teacher", str(tmp_path / f"{name}.yaml")]
    done = CliRunner().invoke(teachers.app, words)
    assert done.exit_code == 1, done.output
    assert "teacher bad, distillation: gone.safetensors: no such file" in done.output
    assert "| teacher bad | failed | failed | failed |" in done.output
    assert "| superpixels slic | - | " in done.output and "| 30.0 ± 0.0 |" in done.output
    assert calls == [
        "distill simulation",
        "pretrain semantic",
        "zero-shot zero-shot",
        "pretrain slic",
    ]
    assert (tmp_path / "rows.png").stat().st_size > 5000
    # The next call does the failed rows again, those of another recipe, and no others.
    (tmp_path / "bad.yaml").write_text(json.dumps(BUNDLED))
    again = CliRunner().invoke(teachers.app, words)
    assert again.exit_code == 0 and len(calls) == 7 and "failed" not in again.output
    more = CliRunner().invoke(teachers.app, [*words, "--steps", "3", "--task", "distillation"])
    assert more.exit_code == 0 and calls[7:] == ["distill simulation"] * 2
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["source"], row["task"]) for row in rows] == [
        ("teacher good", "distillation"),
        ("teacher bad", "distillation"),
    ]


def test_sources_are_read_and_told_apart(tmp_path: Path) -> None:
    (tmp_path / "maps.yaml").write_text("superpixels: {name: folder, folder: maps}\n")
    found = teachers.read_superpixels(str(tmp_path / "maps.yaml"))
    assert found.folder == tmp_path / "maps"
    assert teachers.read_superpixels("{name: slic, segments: 20}").segments == 20
    with pytest.raises(InputError, match="two teachers are called 'teacher a'"):
        teachers.read_sources(["x/a.yaml", "y/a.yaml"], lambda _: None, "teacher")
    (broken,) = teachers.read_sources(["nonsense"], teachers.read_superpixels, "superpixels")
    assert "no superpixel generator 'nonsense'" in broken.error
    none = CliRunner().invoke(teachers.app, ["--json", str(tmp_path / "rows.json")])
    assert none.exit_code == 2 and "nothing to compare" in none.output


def test_a_large_network_is_trained_once_and_taught_to_small_ones(
    tmp_path: Path, labeled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, Recipe] = {}

    def distill(_train: Any, recipe: Recipe, run: Path, *_: Any) -> dict[str, Any]:
        trained[run.name] = recipe
        return write_segmenter(run, recipe)

    monkeypatch.setattr(teacher_3d, "distill", distill)
    monkeypatch.setattr(teacher_3d.study, "_TIMED_ROUNDS", 1)
    base = Recipe.model_validate({"teacher": BUNDLED, "student": SMALL})
    large = StudentConfig(depth=18, width=0.25, voxel_size_m=0.5)
    long = base.optimizer.model_copy(update={"steps": 7})
    out = tmp_path / "rows.json"
    rows = teacher_3d.Teacher3dStudy(
        base, large, long, Data([DRIVE], [labeled]), out, tmp_path / "work", "cpu"
    )
    content = rows.run(1, lambda _: None)
    assert [r["network"] for r in content["summary"]] == list(teacher_3d.NETWORKS)
    assert (teacher_3d.TEACHER, 1) not in rows.keys(2) and (teacher_3d.TAUGHT, 1) in rows.keys(2)
    teacher, direct, taught, both = (trained[f"{name}-0"] for name in teacher_3d.NETWORKS)
    assert (teacher.student.depth, teacher.optimizer.steps) == (18, 7)
    assert direct.teacher_3d is None and direct.teacher is not None
    assert taught.teacher is None and both.teacher is not None
    for recipe in (taught, both):
        assert recipe.teacher_3d.run == tmp_path / "work" / "runs" / "teacher-0"
        assert recipe.student == SMALL and recipe.optimizer == direct.optimizer
    summary = {row["network"]: row for row in content["summary"]}
    assert summary[teacher_3d.TEACHER]["keeps"] == 1 and summary[teacher_3d.DIRECT]["gain"] == 0
    assert "| small, by both | 0.8" in teacher_3d.markdown(content)
    teacher_3d.draw(content, tmp_path / "rows.png")
    trained.clear()
    teacher_3d.Teacher3dStudy(
        base, large, long, Data([DRIVE], [labeled]), out, tmp_path / "work", "cpu"
    ).run(1, lambda _: None)
    assert not trained  # nothing is done twice
