# SPDX-License-Identifier: Apache-2.0
"""Zero-shot study: what the rows leave out, rows that are stored, data, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import DRIVE, tiny_recipe
from typer.testing import CliRunner

from benchmarks.studies import zero_shot as study
from benchmarks.studies.study import Data
from pcseg_core.errors import InputError
from pcseg_core.learning.recipe import load_recipe
from pcseg_core.learning.zero_shot_split import load_split
from pcseg_core.recipes import recipe_file


def test_rows_take_from_the_recipe_what_they_are_named_after() -> None:
    base = load_recipe(recipe_file("zero-shot-simulated"))
    seen = study.row_recipe(base, study.SEEN_ONLY, 3)
    assert seen.supervision == "seen" and seen.seed == 3 and not seen.alignment.active
    assert seen.self_training.start == 1 and seen.labels.consolidation.voxel_m == 0
    local = study.row_recipe(base, "local", 0)
    assert local.alignment.local_weight and not local.alignment.global_weight
    assert local.supervision == "zero-shot"
    assert study.row_recipe(base, study.FULL, 0) == base.model_copy(update={"seed": 0})
    assert study.row_recipe(base, study.FREE, 0).supervision == "annotation-free"


def test_the_study_goes_on_where_it_was(tmp_path: Path) -> None:
    data = Data([DRIVE.format(s, 2) for s in (1, 2)], [DRIVE.format(3, 0)])
    split, out = load_split("street_vehicle_pole"), tmp_path / "rows.json"
    rows = [study.SEEN_ONLY, study.FULL]

    def run(**changes: Any) -> study.ZeroShotStudy:
        return study.ZeroShotStudy(
            tiny_recipe(**changes), data, split, out, tmp_path / "work", "cpu", rows
        )

    told: list[str] = []
    run().run(1, told.append, limit=1)
    assert len(json.loads(out.read_text())["rows"]) == 1
    content = run().run(1, told.append)
    assert sum("hiou" in line for line in told) == 2 and len(content["rows"]) == 2
    assert run().run(1, told.append) == content and len(told) == 4
    assert study.SEEN_ONLY in study.markdown(content)
    study.draw(content, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").stat().st_size > 10_000
    changed = run(self_training={"start": 0.9})  # which the row of seen labels does without
    assert [row["row"] for row in changed.rows] == [study.SEEN_ONLY]
    assert not run(text={"space": {"channels": 32}, "temperature": 0.1}).rows
    with pytest.raises(InputError, match="other settings"):
        study.ZeroShotStudy(
            tiny_recipe(), data, load_split("street_vegetation_person"), out, tmp_path
        )
    with pytest.raises(InputError, match="no row nothing"):
        study.ZeroShotStudy(tiny_recipe(), data, split, out, tmp_path, names=["nothing"])


def test_a_folder_of_sequences_is_split_into_training_and_test(tmp_path: Path) -> None:
    for name in ("00", "08", "09"):
        for part in ("velodyne", "labels"):
            (tmp_path / "sequences" / name / part).mkdir(parents=True)
        (tmp_path / "sequences" / name / "calib.txt").touch()
    found = study.folder_data(tmp_path, [])
    assert [Path(s).name for s in found.test] == ["08"]
    assert [Path(s).name for s in found.train] == ["00", "09"]
    chosen = study.folder_data(tmp_path, [f"semantic-kitti:{tmp_path}/sequences/09"])
    assert [Path(s).name for s in chosen.train] == ["00", "08"]
    with pytest.raises(InputError, match="no labeled sequence"):
        study.folder_data(tmp_path / "sequences" / "00" / "labels", [])


def test_the_command_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the default recipe is found from everywhere
    bad = CliRunner().invoke(study.app, ["--json", "x.json", "--data", "nowhere"])
    assert bad.exit_code == 2 and "expected 'simulated', a folder" in bad.output
    bad = CliRunner().invoke(study.app, ["--json", "x.json", "--recipe", "zero-shot"])
    assert bad.exit_code == 2 and "did you mean 'zero-shot-" in bad.output
