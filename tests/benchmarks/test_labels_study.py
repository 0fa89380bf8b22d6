# SPDX-License-Identifier: Apache-2.0
"""Label study: parts that are switched off, figures without ground truth, rows that are shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_runs import SMALL, STREET
from typer.testing import CliRunner

from benchmarks.studies import labels
from benchmarks.studies.labels_measures import (
    HeldOutSweep,
    agreement,
    at_same_places,
    held_out_sweeps,
)
from benchmarks.studies.labels_parts import (
    ALL,
    CARRYING,
    NONE,
    PARTS,
    SEE_THROUGH,
    switched_on,
    uncorrected,
    variants,
    without,
)
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.learning.recipe import Recipe

BUNDLED = {"weights": "bundled:simulation_teacher", "label_space": "simulation", "flip": False}
DRIVE = "simulated:seed=5,sweeps=2,beams=16,columns=256,cameras=1,width=96,height=64"
EVERYTHING: dict[str, Any] = {
    "teacher": {"name": "several", "teachers": [BUNDLED, {**BUNDLED, "flip": True}]},
    "teacher_3d": {"run": "runs/large"},
    "labels": {
        "priors": {"sidewalk": 2.0},
        "see_through": {"patch_px": 20},
        "shape": {"weight": 0.5},
        "full_range_m": 20.0,
        "full_angle_deg": 10.0,
        "carried_confidence": 0.9,
        "consolidation": {"voxel_m": 0.3, "estimate_noise": True, "look_deg": 10.0},
    },
    "loss": {"class_quota": 0.5, "range_balance": 0.5, "generalized": 0.3},
    "augment": {
        "thin_m": 20.0,
        "coarse": 0.2,
        "stretch": 0.1,
        "intensity_gamma": 0.5,
        "corrupt": {"fog": 0.1},
    },
    "mix": {"polar": 0.3, "laser": 0.3, "things": 3},
    "self_training": {},
    "rounds": {"count": 1, "beside": "bundled", "split_ground": True},
    "start": "bundled",
    "simulated": {"towns": 1},
}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_can_be_switched_off(name: str) -> None:
    recipe = Recipe.model_validate(EVERYTHING)
    assert name in switched_on(recipe)
    changed = PARTS[name].without(recipe)
    assert name not in switched_on(changed)
    # What is left is a recipe, and only the keys of the part have changed.
    read = Recipe.model_validate(changed.model_dump(mode="json"))
    assert read.model_dump(mode="json") == changed.model_dump(mode="json")
    others = {n for n in PARTS if n != name and PARTS[n].needs != name}
    assert others == set(switched_on(changed)) - {name}


def test_rows_are_all_none_each_left_out_and_each_alone() -> None:
    recipe = Recipe.model_validate(EVERYTHING)
    rows = variants(recipe, ["rounds", "things", CARRYING, "carried count less"])
    assert list(rows) == [
        ALL,
        NONE,
        *("without rounds", "without things", "without carrying", "without carried count less"),
        *("rounds alone", "things alone", "carrying alone"),
    ]
    assert rows[ALL] == recipe and rows["things alone"].mix.things == 3
    assert rows["things alone"].rounds.count == rows[NONE].rounds.count == 0
    assert rows[NONE].mix.polar == 0.3  # not studied, so in all rows
    plain = uncorrected(recipe, switched_on(recipe))
    assert plain.teacher == recipe.teacher.teachers[0] and plain.labels.shape.weight == 0
    assert plain.labels.consolidation.voxel_m == 0.3 and plain.labels.see_through.patch_px == 20
    assert plain.loss == recipe.loss
    assert SEE_THROUGH not in switched_on(without(recipe, [SEE_THROUGH]))


def sweep(label: list[int], own: list[bool], distance: list[float]) -> HeldOutSweep:
    xyz = np.zeros((len(label), 3), np.float32)
    xyz[:, 0] = distance
    return HeldOutSweep("a", xyz, xyz[:, 0], xyz, np.array(label, np.int16), np.array(own))


def test_agreement_tells_ranges_and_carried_points_apart() -> None:
    held = sweep([0, 0, 1, IGNORE], [True, False, True, True], [5, 10, 20, 40])
    found = agreement([np.array([0, 1, 1, 0])], [held], STREET, lambda s: s.own)
    assert found["points"] == 2 and found["accuracy"] == found["miou"] == 1
    carried = agreement([np.array([0, 1, 1, 0])], [held], STREET, lambda s: ~s.own)
    assert carried["accuracy"] == 0
    assert carried["accuracy_by_range"] == {
        "0-8 m": None,
        "8-15 m": 0,
        "15-30 m": None,
        "30+ m": None,
    }


def test_places_keep_their_label_within_a_scene_only() -> None:
    points = [float(k) for k in range(8)]
    held = [sweep([0] * 8, [True] * 8, points) for _ in range(3)]
    held[2].scene = "b"
    labels_of = [np.zeros(8, np.int64), np.array([1] + [0] * 7), np.ones(8, np.int64)]
    assert at_same_places(labels_of, held) == 0.5  # every fourth point is looked at
    assert at_same_places(labels_of[1:], held[1:]) is None


def small_recipe(**changes: Any) -> dict[str, Any]:
    return {
        "teacher": {**BUNDLED, "scales": [1.0]},
        "student": SMALL.model_dump(mode="json"),
        "optimizer": {"steps": 1, "batch_size": 1},
        "loss": {"min_confidence": 0.3},
        **changes,
    }


def test_a_study_runs_on_simulated_drives_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(labels={"priors": {"sidewalk": 2.0}})
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "rows.json"
    words = ["--json", str(out), "--recipe", str(tmp_path / "own.yaml"), "--device", "cpu"]
    words += ["--data", DRIVE, "--held-out", DRIVE, "--test", DRIVE]
    words += ["--part", "class priors", "--picture", str(tmp_path / "rows.png")]
    done = CliRunner().invoke(labels.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "not in the study: several teachers, 3D teacher" in done.output
    # With one part, "alone" is all parts and "without" is none of them.
    content = json.loads(out.read_text())
    assert [row["row"] for row in content["rows"]] == [ALL, NONE]
    assert content["same"]["class priors alone"] == ALL
    for row in content["rows"]:
        found = row["agreement"]
        assert found["own"]["points"] > 0 and found["carried"]["points"] > 0
        assert found["all"]["points"] == found["own"]["points"] + found["carried"]["points"]
        assert 0 < row["turned"] <= 1 and 0 < row["places"] <= 1 and "miou" in row["truth"]
    observed = list((tmp_path / "rows.work" / "cache").glob("*.npz"))
    assert len(observed) == 2  # one file per sweep serves all rows
    assert (tmp_path / "rows.png").stat().st_size > 3000
    # Labels that only the part gives are not measured: the part would confirm itself.
    plain = Recipe.model_validate(small_recipe())
    skewed = Recipe.model_validate(small_recipe(labels={"priors": {"sidewalk": 1e6}}))
    cache = tmp_path / "rows.work" / "cache"
    held = held_out_sweeps([DRIVE], skewed, plain, cache, "cpu")
    every = held_out_sweeps([DRIVE], skewed, skewed, cache, "cpu")
    counts = [sum((s.label != IGNORE).sum() for s in sweeps) for sweeps in (held, every)]
    assert 0 < counts[0] < counts[1]
    # The next call finds all rows.
    monkeypatch.setattr(labels, "distill", None)
    again = CliRunner().invoke(labels.app, words)
    assert again.exit_code == 0 and "class priors" in again.output


def test_what_cannot_be_studied_is_refused(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(small_recipe())
    with pytest.raises(InputError, match="no switched-on part rounds; switched-on parts: "):
        labels.LabelStudy(
            recipe, labels.Drives([], []), tmp_path / "a.json", tmp_path, "cpu", ["rounds"]
        )
    words = ["--json", str(tmp_path / "rows.json"), "--data", DRIVE]
    done = CliRunner().invoke(labels.app, words)
    assert done.exit_code == 2 and "--data needs --held-out" in done.output
