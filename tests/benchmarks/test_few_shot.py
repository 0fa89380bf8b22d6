# SPDX-License-Identifier: Apache-2.0
"""Few-shot study: splits by scene, rows that are stored, the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import STREET, scan, semantic_kitti, sweep, write_run
from typer.testing import CliRunner

from benchmarks.studies import few_shot as few
from pcseg_core.checkpoint import load_checkpoint
from pcseg_core.errors import InputError
from pcseg_core.learning.finetune import FinetuneRecipe
from pcseg_core.learning.recipe import OptimizerConfig


@pytest.mark.parametrize(
    ("percent", "seed", "expected"),
    [
        (100, 0, list("abcdefgh")),
        (25, 0, ["a", "e"]),
        (25, 1, ["b", "f"]),
        (25, 5, ["b", "f"]),
        (50, 1, list("bdfh")),
        (1, 0, ["a"]),
        (1, 3, ["d"]),
        (1, 9, ["b"]),
    ],
)
def test_splits_are_by_scene(percent: float, seed: int, expected: list[str]) -> None:
    scenes = [name for name in "abcdefgh" for _ in range(3)]
    assert few.few_scenes(scenes, percent, seed) == expected


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="share of 0"):
        few.few_scenes(["a"], 0)


def test_few_shot_rows_are_kept_and_learn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    sweeps = [sweep(name, k) for k, name in enumerate("abcd")]
    optimizer = OptimizerConfig(steps=25, batch_size=2, sector_deg=360, average=0)
    recipe = FinetuneRecipe(optimizer=optimizer)

    def study_of(found: FinetuneRecipe) -> few.FewShotStudy:
        out = tmp_path / "out"
        return few.FewShotStudy(
            run, sweeps, [scan(9)], STREET, found, out, "cpu", [25, 100], scratch=False
        )

    content = study_of(recipe).run(1, lambda _: None)
    assert [(r["start"], r["percent"], r["scenes"]) for r in content["rows"]] == [
        ("pretrained", 25, 1),
        ("pretrained", 100, 4),
    ]
    assert content["rows"][1]["accuracy"] > 0.6  # chance is 0.5
    assert load_checkpoint(tmp_path / "out" / "pretrained-100-0")[1].label_space == STREET.to_dict()
    told: list[str] = []
    again = study_of(recipe).run(1, told.append)
    assert again == content and not told
    few.draw(content, tmp_path / "few.png")
    with pytest.raises(InputError, match="other settings"):
        study_of(recipe.model_copy(update={"head_learning_rate": 0.1}))


def test_the_command_compares_with_a_network_from_scratch(tmp_path: Path) -> None:
    fit, test = semantic_kitti(tmp_path / "00", 2), semantic_kitti(tmp_path / "0100", 1)
    out = tmp_path / "out"
    arguments = [str(write_run(tmp_path / "run")), "--fit", str(fit), "--test", str(test)]
    options = ["--share", "100", "--steps", "2", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(few.app, [*arguments, *options])
    assert result.exit_code == 0, result.output
    assert "pretrained" in result.output and "scratch" in result.output
    assert (out / "few_shot.png").stat().st_size > 10_000
    assert (out / "scratch-100-0" / "checkpoint.safetensors").is_file()
    bad = CliRunner().invoke(few.app, [*arguments, *options, "--share", "0"])
    assert bad.exit_code == 2 and "share of 0" in bad.output
