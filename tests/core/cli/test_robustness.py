# SPDX-License-Identifier: Apache-2.0
"""`pcseg robustness` as a user runs it, on good input and on bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pcseg_core.cli import app

Sequence = Callable[..., Path]


def robustness(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["robustness", *map(str, arguments)])


def test_json_tables_and_chart_of_a_simulated_drive(tiny_run: Path, tmp_path: Path) -> None:
    report, chart = tmp_path / "out" / "report.json", tmp_path / "out" / "chart.png"
    result = robustness(
        tiny_run,
        "simulated:seed=3,sweeps=2,beams=16,columns=128,cameras=0",
        "--severities",
        "light,heavy",
        "--json",
        report,
        "--picture",
        chart,
    )
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_text())
    assert list(content["methods"]) == ["single sweeps", "smoothed over time"]
    single = content["methods"]["single sweeps"]
    assert list(single["corrupted"]) == [
        "fog",
        "wet-ground",
        "snow",
        "motion-blur",
        "beam-missing",
        "crosstalk",
        "incomplete-echo",
        "cross-sensor",
    ]
    assert single["mce"] == pytest.approx(1)
    assert 0 < single["clean"]["calibration_error"] < 1
    assert single["corrupted"]["cross-sensor"]["heavy"]["lost"] > 0.8
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert "cross-sensor" in result.output
    assert sorted(path.name for path in report.parent.iterdir()) == ["chart.png", "report.json"]


def test_a_baseline_of_figures_or_of_a_checkpoint(
    tiny_run: Path, sequence: Sequence, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    source = f"semantic-kitti:{sequence()}"
    common = (tiny_run, source, "--corruptions", "motion-blur,crosstalk")
    assert robustness(*common, "--json", first).exit_code == 0
    again = robustness(*common, "--baseline", first, "--json", second)
    assert again.exit_code == 0, again.output
    run = robustness(*common, "--baseline", tiny_run, "--json", "-")
    assert run.exit_code == 0, run.output
    for figures in (first, second):
        assert json.loads(figures.read_text())["methods"]["single sweeps"]["mce"] == 1
    other = robustness(*common, "--severities", "light", "--baseline", first)
    assert other.exit_code == 2
    assert "measured with severities light, moderate, heavy" in other.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--corruptions", "fog,hail"), "no corruption 'hail'; expected one of fog, wet-ground"),
        (("--severities", "extreme"), "no severity 'extreme'; expected one or more of light"),
        (("--severities", ""), "expected one or more of light"),
        (
            ("--label-space", "cityscapes"),
            "no grouping from label space 'street' into 'cityscapes'",
        ),
        (("--baseline", "nowhere"), "no checkpoint at nowhere"),
        (("--baseline", "nowhere.json"), "--baseline nowhere.json: cannot be read as JSON"),
    ],
)
def test_what_does_not_exist_is_named(
    tiny_run: Path, sequence: Sequence, options: tuple[str, ...], message: str
) -> None:
    result = robustness(tiny_run, f"semantic-kitti:{sequence(scans=1)}", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_json_that_is_no_report(tiny_run: Path, sequence: Sequence, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    source = f"semantic-kitti:{sequence(scans=1)}"
    result = robustness(tiny_run, source, "--baseline", tmp_path / "other.json")
    assert result.exit_code == 2
    assert "no report of `pcseg robustness --json`" in result.output
