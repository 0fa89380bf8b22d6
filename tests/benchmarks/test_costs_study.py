# SPDX-License-Identifier: Apache-2.0
"""Cost study: every part runs, memory is that of the part, rows resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies import costs, costs_parts
from benchmarks.studies.costs_inputs import Inputs, store
from benchmarks.studies.costs_parts import PARTS, Part, measure
from pcseg_core.errors import InputError

OPTIONS = "seed=100,town=center,sweeps=2,cameras=1,width=96,height=64,beams=16,columns=128"
DRIVE = f"simulated:{OPTIONS}"
LARGE = ("SAM", "ESPNetv2", "MaskCLIP", "SegFormer", "Mask2Former", "encoder")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("costs")
    store(DRIVE, folder)
    return Inputs.load(folder)


@pytest.mark.parametrize("name", [n for n in PARTS if not any(word in n for word in LARGE)])
def test_every_part_runs_again_and_again(name: str, inputs: Inputs, tmp_path: Path) -> None:
    if "Patchwork" in name:
        pytest.importorskip("pypatchworkpp")
    action = PARTS[name].make(inputs, tmp_path)
    action()
    action()  # as often as it is measured


def test_memory_is_that_of_the_run(inputs: Inputs) -> None:
    count = 8 << 20  # float64: 64 MB

    def make(*_: object) -> costs_parts.Action:
        np.ones(2 * count).sum()  # of the preparation alone
        return lambda: np.ones(count).sum()

    found = measure(Part("image", make), inputs, rounds=1)
    assert set(found) == {"ms", "cpu_ms", "memory_mb"} and 60 <= found["memory_mb"] < 100


def test_slow_parts_run_once(inputs: Inputs) -> None:
    calls: list[int] = []
    for slow in (True, False):
        measure(Part("image", lambda *_: lambda: calls.append(1), slow=slow), inputs, rounds=3)
    assert len(calls) == 1 + 4


def test_a_part_that_fails_tells_why(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> costs_parts.Action:
        raise OSError("no\nweights")

    class End(list[object]):
        send = list.append

    monkeypatch.setitem(PARTS, "broken", Part("image", failing))
    answers = End()
    costs_parts._answer(answers, "broken", inputs.folder, 1, 1, "cpu")
    assert answers == [{"error": "OSError: no weights"}]


def test_a_study_resumes_and_tries_failed_parts_again(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(
        [
            {"ms": 20.0, "cpu_ms": 10.0, "memory_mb": 3.0},
            {"error": "no weights"},
            {"ms": 500.0, "cpu_ms": 250.0, "memory_mb": 40.0},
        ]
    )
    monkeypatch.setattr(costs, "costs_of", lambda *_: next(answers))
    out, first, second = tmp_path / "rows.json", "superpixels: SLIC", "superpixels: SAM ViT-B"
    words = ["--json", str(out), "--drive", DRIVE, "--work", str(inputs.folder)]
    words += ["--part", first, "--part", second, "--picture", str(tmp_path / "costs.png")]
    done = CliRunner().invoke(costs.app, words, catch_exceptions=False)
    assert done.exit_code == 0 and "not measured: no weights" in done.output
    assert f"| {first} | image |  | 10.0 | 0.10 | 20.0 | 3 |" in done.output
    again = CliRunner().invoke(costs.app, words, catch_exceptions=False)
    assert f"| {second} | image | random | 250.0 | 2.50 | 500.0 | 40 |" in again.output
    content = json.loads(out.read_text())
    assert [row["row"] for row in content["rows"]] == [first, second]
    assert content["image"] == [96, 64] and content["cpu"]
    assert (tmp_path / "costs.png").is_file()


def test_a_gpu_takes_the_parts_that_run_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "torch_device", lambda name: name)
    parts = costs.CostStudy(DRIVE, tmp_path / "rows.json", tmp_path, device="cuda").parts
    assert "teacher: bundled" in parts and "step: student" in parts
    assert "ground: RANSAC" not in parts and "step: draw 4 sectors" not in parts
    with pytest.raises(InputError, match="no part ground: RANSAC"):
        costs.CostStudy(DRIVE, tmp_path / "rows.json", tmp_path, ["ground: RANSAC"], device="cuda")


def test_unknown_parts_and_recordings_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no part radar"):
        costs.CostStudy(DRIVE, tmp_path / "rows.json", tmp_path, ["radar"])
    with pytest.raises(InputError, match="lacks a pose or an image"):
        store("simulated:sweeps=2,cameras=0,beams=1,columns=16", tmp_path)
    with pytest.raises(InputError, match="expected two sweeps with poses"):
        store("simulated:sweeps=1,cameras=0,beams=1,columns=16", tmp_path)
