# SPDX-License-Identifier: Apache-2.0
"""Word study: figures of words and example pictures, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import example_pictures, semantic_kitti, write_word_run
from typer.testing import CliRunner, Result

from benchmarks.studies.words import app


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_word_run(tmp_path_factory.mktemp("run"))


def words(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_words_are_measured_alone_and_together(run: Path, tmp_path: Path) -> None:
    folder = semantic_kitti(tmp_path / "00", 2)
    options = ("--words", "structure: minivan, jeep", "--words", "road: lamp-post")
    result = words(run, "--semantic-kitti", folder, *options, "--json", tmp_path / "f.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "f.json").read_text())
    assert [row["prompt"] for row in report["alone"]] == ["minivan", "jeep", "lamp-post"]
    assert [row["truth"] for row in report["together"]] == ["structure", "road"]
    for row in report["alone"] + report["trained"]:
        assert row["precision"] is None or 0 <= row["precision"] <= 1
        assert (row["recall"] is None) == (row["chance"] == 0)
        if row["answered"] and row["recall"] is not None:
            hits = row["precision"] * row["answered"]
            assert row["recall"] * row["chance"] * report["points"] == pytest.approx(hits)
    assert sum(row["answered"] for row in report["together"]) > 0


def test_example_pictures_are_measured(run: Path, tmp_path: Path) -> None:
    pictures = example_pictures(tmp_path / "examples")
    folder = semantic_kitti(tmp_path / "00", 1)
    result = words(run, "--semantic-kitti", folder, "--pictures", pictures)
    assert result.exit_code == 0 and "all groups at once" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --words"),
        (("--words", "road: jeep", "--pictures", "."), "give either --words"),
        (("--words", "cars: jeep"), "has no class 'cars'"),
        (("--words", "road: jeep", "--json", "x.txt"), "cannot write '.txt'"),
    ],
)
def test_refusals(run: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    folder = semantic_kitti(tmp_path / "00", 1)
    result = words(run, "--semantic-kitti", folder, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
