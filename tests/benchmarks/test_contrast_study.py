# SPDX-License-Identifier: Apache-2.0
"""Contrast study: what the methods change, rows that are stored, data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL, STREET, semantic_kitti, write_run

from benchmarks.studies import contrast
from benchmarks.studies.study import Data
from pcseg_core.errors import InputError
from pcseg_core.learning.recipe import Recipe
from pcseg_core.vision.encoder_kinds import ESPNetv2FeaturesConfig
from pcseg_core.vision.superpixel_kinds import SuperpixelConfig
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config


def recipe() -> Recipe:
    weights = Path("w.safetensors")
    return Recipe(
        encoder=ESPNetv2FeaturesConfig(name="espnetv2", weights=weights),
        student=SMALL,
        superpixels=SuperpixelConfig(name="semantic", teacher=ESPNetv2Config(weights=weights)),
    )


def test_methods_differ_in_what_they_are_named_for() -> None:
    loss = {m: contrast.method_recipe(recipe(), m, 3).loss for m in contrast.METHODS}
    assert contrast.method_recipe(recipe(), "slic contrast", 3).superpixels.name == "slic"
    assert contrast.method_recipe(recipe(), "semantic contrast", 3).superpixels.name == "semantic"
    assert contrast.method_recipe(recipe(), "regression", 3).seed == 3
    assert loss["semantic contrast"] == loss["slic contrast"]
    assert loss["+ temporal"].temporal > 0 == loss["+ temporal"].point_to_segment
    assert loss["+ point-to-segment"].point_to_segment > 0
    assert loss["regression"].superpixel == 0 < loss["regression"].regression
    assert {m: r.temperature for m, r in loss.items()} == dict.fromkeys(loss, 0.07)


def test_an_ablation_goes_on_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def pretrain(_drives: Any, found: Recipe, out: Path, *_: Any) -> None:
        calls.append(f"{out.name}/{found.seed}")
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_run(out, found.seed)

    monkeypatch.setattr(contrast, "pretrain", pretrain)
    data = Data(
        [],
        fit=[f"semantic-kitti:{semantic_kitti(tmp_path / '00', 1)}"],
        test=[f"semantic-kitti:{semantic_kitti(tmp_path / '01x', 1)}"],
    )
    methods = ["raw inputs", "random", "slic contrast", "regression"]

    def run(base: Recipe) -> contrast.ContrastStudy:
        return contrast.ContrastStudy(
            base, data, tmp_path / "rows.json", tmp_path / "work", STREET, "cpu", methods
        )

    with pytest.raises(KeyboardInterrupt):
        run(recipe()).run(2, lambda _: None)
    kept = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(r["method"], r["seed"]) for r in kept] == [
        ("raw inputs", 0),
        ("random", 0),
        ("slic contrast", 0),
        ("regression", 0),
        ("random", 1),
    ]
    content = run(recipe()).run(2, lambda _: None)
    assert content["rows"][:5] == kept and len(content["rows"]) == 7
    assert calls == [
        "slic_contrast-0/0",
        "regression-0/0",
        "slic_contrast-1/1",
        "slic_contrast-1/1",
        "regression-1/1",
    ]
    assert {r["method"]: r["seeds"] for r in content["summary"]} == {
        "raw inputs": 1,
        "random": 2,
        "slic contrast": 2,
        "regression": 2,
    }
    contrast.draw(content, tmp_path / "rows.png")
    with pytest.raises(InputError, match="other settings"):
        run(recipe().model_copy(update={"student": SMALL.model_copy(update={"width": 0.5})}))
    with pytest.raises(InputError, match="no method nonsense"):
        contrast.ContrastStudy(
            recipe(), data, tmp_path / "n", tmp_path, STREET, "cpu", ["nonsense"]
        )


def test_test_and_training_towns_differ() -> None:
    data = contrast.simulated_data()

    def town(source: str) -> str:
        return source.split("town=")[1].split(",")[0]

    assert not set(map(town, data.test)) & set(map(town, data.train + data.fit))
    seeds = [source.split("seed=")[1].split(",")[0] for source in data.train + data.fit + data.test]
    assert len(set(seeds)) == len(seeds)


def test_a_folder_is_searched_for_recordings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to train on"):
        contrast.folder_data(tmp_path, [], [])
    for name in (
        "raw/d_sync/velodyne_points",
        "object/training/velodyne",
        "object/training/image_2",
        "object/training/calib",
    ):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match="labeled"):
        contrast.folder_data(tmp_path, [], [])
    semantic_kitti(tmp_path / "labeled" / "00", 1)
    data = contrast.folder_data(tmp_path, [], [])
    assert [s.split(":")[0] for s in data.train] == ["kitti-raw", "kitti-object"]
    assert data.split and data.fit == data.test
    assert not contrast.folder_data(tmp_path, ["a"], ["b"]).split
