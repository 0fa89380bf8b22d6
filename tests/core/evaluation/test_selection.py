# SPDX-License-Identifier: Apache-2.0
"""`pcseg select`: doubtful sweeps, unlike each other, spread over recordings."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pcseg_core.cli import app
from pcseg_core.data.sweep_list import read_list
from pcseg_core.errors import InputError
from pcseg_core.evaluation.selection import Candidate, Opinion, select
from pcseg_core.evaluation.selection_picture import point_colors
from pcseg_core.geometry import from_euler, invert, transform
from pcseg_core.labels import IGNORE

DRIVE = "simulated:seed=100004,sweeps=3,beams=16,columns=256,cameras=1,width=96,height=64"
RECIPE = "teacher: {weights: 'bundled:simulation_teacher', label_space: simulation, scales: [1]}\n"


def candidate(index: int, entropy: float, place: float = 0.0, source: str = "a") -> Candidate:
    """A candidate with features at a place of a line, unless all are at 0."""
    features = np.array([place, 0.0])
    return Candidate(source, index, None, "s", f"{index}", {"entropy": entropy}, features)


def places(chosen: list[Candidate]) -> list[tuple[str, int]]:
    return [(one.source, one.index) for one in chosen]


def test_the_most_doubtful_come_first_unless_they_are_alike() -> None:
    pool = [candidate(k, 0.9 - 0.1 * k, place=k) for k in range(4)]
    assert places(select(pool, 1)) == [("a", 0)]
    twins = [candidate(0, 0.9, 0.0), candidate(1, 0.8, 0.01), candidate(2, 0.5, 5.0)]
    first, second = select(twins, 2)
    assert places([first, second]) == [("a", 0), ("a", 2)]
    assert first.novelty == 1 and second.novelty == 1 and first.score == 1
    assert places(select(twins, 9)) == [("a", 0), ("a", 2), ("a", 1)]  # no more than there are


def test_recordings_give_equal_numbers_as_far_as_they_have_as_many() -> None:
    pool = [candidate(k, 0.9, k) for k in range(10)]
    pool += [candidate(k, 0.1, k, "b") for k in range(10)]
    pool += [candidate(0, 0.05, 3.5, "c")]
    chosen = [one.source for one in select(pool, 7)]
    assert {name: chosen.count(name) for name in "abc"} == {"a": 3, "b": 3, "c": 1}
    assert len(select(pool, 21)) == 21


def test_reasons_count_by_rank_and_may_be_unknown() -> None:
    def given(index: int, **reasons: float) -> Candidate:
        return replace(candidate(index, 0), reasons=reasons)

    pool = [
        given(0, entropy=0.5, teacher=0.0),
        given(1, entropy=0.4, teacher=0.9),  # ranks 2 and 2 of 3 and 2
        given(2, entropy=0.1),
    ]
    first = select(pool, 1)[0]
    assert first.index == 1 and first.score == pytest.approx((2 / 3 + 1) / 2)


def opinion(index: int, label: np.ndarray, teacher: np.ndarray | None = None) -> Opinion:
    """A sweep of points of one flat ground, 1 m further on each time."""
    x, y = np.mgrid[8:28, -10:10]
    world = np.stack([x.ravel() / 2 + 0.25, y.ravel() / 2 + 0.25, np.full(400, 0.25)], axis=1)
    pose = from_euler(0, 0, 0.1 * index, (1.0 * index, 0, 1.7))
    xyz = transform(invert(pose), world).astype(np.float32)
    return Opinion(xyz, pose, label, np.full(400, 0.5), teacher, np.zeros(2))


def test_disagreements_are_those_of_points_that_both_label() -> None:
    before = opinion(0, np.zeros(400, np.int64))
    label = np.where(np.arange(400) < 100, 1, 0)
    teacher = np.where(np.arange(400) < 50, IGNORE, 0)
    now = opinion(1, label, teacher)
    differs, both = now.time_differs(before)
    assert both.all() and differs.sum() == 100 and differs[:100].all()
    differs, both = now.teacher_differs
    assert both.sum() == 350 and differs.sum() == 50
    assert not now.time_differs(None)[1].any()
    assert not replace(now, pose=None).time_differs(before)[1].any()
    colors = point_colors(now, before)
    assert colors[60, 0] > 0.8 > colors[60, 1]  # red: the teacher differs
    assert len({tuple(color) for color in colors.tolist()}) == 3


def test_the_command_writes_a_list_and_a_sheet(tmp_path: Path) -> None:
    recipe, out, sheet = tmp_path / "recipe.yaml", tmp_path / "list.csv", tmp_path / "sheet.png"
    recipe.write_text(RECIPE)
    arguments = ["select", DRIVE, "--checkpoint", "bundled", "--recipe", recipe, "--budget", "2"]
    options = ["--out", out, "--picture", sheet]
    result = CliRunner().invoke(app, [*map(str, [*arguments, *options])])
    assert result.exit_code == 0, result.output
    assert "2 of 3 sweeps" in result.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 2 and all(row["source"] == DRIVE for row in rows)
    assert all(0 < float(row["entropy"]) < 1 and 0 < float(row["teacher"]) < 1 for row in rows)
    assert sum(row["time"] == "" for row in rows) == sum(row["index"] == "0" for row in rows)
    assert read_list(out, DRIVE) == {int(row["index"]) for row in rows}
    assert Image.open(sheet).size[0] == 1600
    with pytest.raises(InputError, match="names no sweep of other; it names those of simulated:"):
        read_list(out, "other")
    out.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a list of `pcseg select`"):
        read_list(out, DRIVE)
    alone = ["label", DRIVE, "--recipe", recipe, "--out", tmp_path / "labels", "--only", out]
    refused = CliRunner().invoke(app, [*map(str, alone)])
    assert refused.exit_code == 2 and "give --format too" in refused.output
