# SPDX-License-Identifier: Apache-2.0
"""Selection study: the rows, the choices, the summary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import selection
from benchmarks.studies.study import Row
from pcseg_core.errors import InputError
from pcseg_core.evaluation.selection import Candidate


class Faked(selection.SelectionStudy):
    """The study without rendering and training: more sweeps are better, chosen ones best."""

    def compute(self, way: str, budget: int, seed: int) -> Row:
        better = 2 if way == "select" else 1
        return {"miou": 0.3 + 0.01 * better * budget + 0.001 * seed}


def study_of(folder: Path, steps: tuple[int, int] = (2, 1)) -> Faked:
    return Faked(folder / "rows.json", folder / "work", 2, 3, steps, "cpu")


def test_rows_are_stored_and_summarized(tmp_path: Path) -> None:
    content = study_of(tmp_path).run(2, lambda _: None)
    assert len(content["rows"]) == 2 * (1 + len(selection.BUDGETS) * len(selection.WAYS))
    summary = {(row["way"], row["budget"]): row for row in content["summary"]}
    assert summary["none", 0]["miou"] == pytest.approx(0.3005)
    assert summary["select", 8]["miou"] == pytest.approx(0.4605)
    assert summary["select", 8]["seeds"] == 2
    selection.draw(content, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "rows.json").read_text()) == content
    with pytest.raises(InputError, match="other settings"):
        study_of(tmp_path, (3, 1))


def test_every_way_chooses_places_of_the_pool(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    drives = {name: [None] * 3 for name in study.train_sources}
    study.drives, study.pool = lambda: drives, lambda: [None] * 6  # type: ignore[assignment]
    last = study.train_sources[1]
    pool = [
        Candidate(source, k, None, "", f"{k}", {"entropy": 0.1 * k}, np.array([float(k)]))
        for source in study.train_sources
        for k in range(3)
    ]
    study.candidates = lambda seed: pool  # type: ignore[assignment, misc]
    assert study._chosen("even", 2, 0) == [0, 5]
    assert study._chosen("select", 2, 0) == [2, 4]
    assert last.startswith("simulated:")
    first, other = (study._chosen("random", 4, seed) for seed in (0, 1))
    assert first != other and len(set(first)) == 4 and max(first) < 6
