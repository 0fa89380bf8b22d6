# SPDX-License-Identifier: Apache-2.0
"""Replays: flicker on known pairs, labels from a side folder, and the command as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from pcseg_core.cli import app
from pcseg_core.data import open_recording
from pcseg_core.demo.live import ReplayResult
from pcseg_core.errors import InputError
from pcseg_core.evaluation.contenders import Live
from pcseg_core.evaluation.replay import evaluate_replay, own_labels
from pcseg_core.evaluation.side_labels import SideLabels
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.metrics.flicker import Flicker, Pairing

DRIVE = "simulated:seed=100003,sweeps=4,beams=24,columns=400,cameras=1,width=160,height=96"
STREET = LabelSpace.load("street")


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_pairs_are_points_at_the_same_place() -> None:
    pairing = Pairing(stride=1)
    first = np.array([[0, 0, 0], [5, 0, 0], [np.nan, 0, 0], [9, 0, 0]], float)
    assert pairing.add(first) is None
    second = np.array([[5.05, 0, 0], [np.nan, 0, 0], [0, 0.3, 0], [9, 0, 0]], float)
    pairs = pairing.add(second)
    assert pairs is not None
    assert (pairs[0].tolist(), pairs[1].tolist()) == ([0, 3], [1, 3])
    assert pairing.add(np.full((2, 3), np.nan)) is not None  # nothing to pair, but no fault
    assert pairing.add(first) is None  # the sweep before had no point


def test_flicker_counts_changed_labels_among_the_known() -> None:
    flicker, pairs = Flicker(), (np.array([0, 1, 2]), np.array([2, 1, 0]))
    assert flicker.add(np.array([0, 1, 2]), None) is None
    assert flicker.add(np.array([2, 5, -1]), pairs) == 0.5  # same, changed, no label
    assert flicker.add(np.array([2, 5, 7]), pairs) == 0.5  # partner without label, same, changed
    assert flicker.share == 0.5


def truth_as_answers(drop: int | None = None, wrong: int | None = None) -> ReplayResult:
    """The exact labels of the drive as if a node had given them, of one sweep none or all wrong."""
    drive = open_recording(DRIVE)
    result = ReplayResult("DDS", len(drive), stages_ms={"latency": (40.0, 55.0)})
    for index in range(len(drive)):
        sample = drive[index]
        labels = truth_of(sample, STREET).astype(np.int32)
        if index == wrong:
            labels = np.where(labels < 0, -1, (labels + 1) % len(STREET)).astype(np.int32)
        if index == drop:
            result.dropped = {"replaced by a newer sweep": 1}
        else:
            result.labels[sample.stamp_ns] = labels
    return result


def test_exact_answers_have_exact_figures() -> None:
    drive = open_recording(DRIVE)
    perfect = Live("perfect", "a", STREET, truth_as_answers())
    partial = Live("partial", "b", STREET, truth_as_answers(drop=1, wrong=2))
    report = evaluate_replay(drive, [perfect, partial], own_labels(drive, STREET))
    assert (report.miou, report.accuracy, report.drop_rate) == (1.0, 1.0, 0.0)
    assert (report.latency_ms_p50, report.latency_ms_p95) == (40.0, 55.0)
    other = report.others[0]
    assert other.drop_rate == 0.25 and other.dropped == {"replaced by a newer sweep": 1}
    assert other.accuracy == pytest.approx(2 / 3, abs=0.01)  # of three sweeps one is wrong
    assert report.flicker is not None and other.flicker is not None
    assert report.flicker < 0.05 and other.flicker > 0.95  # there and back again
    assert "partial" not in report.per_sweep[1].accuracy
    assert report.per_sweep[2].flicker["partial"] > 0.95  # compared with the last one answered
    assert report.scene is not None and report.scene.labels.keys() == {"perfect", "partial"}


def test_the_command_on_a_simulated_drive(tmp_path: Path) -> None:
    recipe = tmp_path / "teacher.yaml"
    teacher = {"weights": "bundled:simulation_teacher", "label_space": "simulation", "scales": [2]}
    recipe.write_text(yaml.safe_dump({"teacher": teacher, "labels": {"label_space": "street"}}))
    report, picture = tmp_path / "report.json", tmp_path / "report.png"
    result = evaluate(
        DRIVE,
        "--checkpoint",
        "bundled",
        "--temporal",
        "--cameras",
        "--teacher",
        recipe,
        "--json",
        report,
        "--picture",
        picture,
    )
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_text())
    assert {"miou", "flicker", "latency_ms_p50", "latency_ms_p95", "drop_rate", "rss_mb"} <= set(
        content
    )
    assert content["name"] == "bundled + cameras, smoothed"
    names = [other["name"] for other in content["others"]]
    assert names == ["bundled + cameras", "bundled"]
    assert content["others"][1]["miou"] > 0.2 and content["rss_mb"] > 50
    assert content["latency_ms_p50"] > content["others"][1]["latency_ms_p50"] > 0
    assert content["flicker"] < content["others"][1]["flicker"]
    assert 0.3 < content["others"][1]["camera_agreement"] < 1
    assert len(content["per_sweep"]) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "mIoU" in result.output and "flicker" in result.output


def test_labels_beside_the_recording(tmp_path: Path) -> None:
    """Written under the sweeps' names, or in their order; numbers explained or SemanticKITTI's."""
    drive = open_recording(DRIVE)
    named, ordered = tmp_path / "named" / "labels", tmp_path / "ordered"
    named.mkdir(parents=True)
    ordered.mkdir()
    road, car = 40, 10  # of SemanticKITTI
    for index in range(len(drive)):
        truth = truth_of(drive[index], STREET)
        (truth + 1).astype("<u4").tofile(named / f"{index:06d}.label")
        kitti = np.select([truth == 0, truth == 5], [road, car], 0).astype("<u4")
        kitti.tofile(ordered / f"frame{index}.label")
    space = STREET.to_dict() | {"raw_ids": {k + 1: n for k, n in enumerate(STREET.names)}}
    (named.parent / "labels.yaml").write_text(yaml.safe_dump(space))
    perfect = Live("perfect", "a", STREET, truth_as_answers())
    for folder, classes in ((named.parent, 6), (ordered, 2)):
        judges = SideLabels(folder, len(drive)).judges(STREET)
        report = evaluate_replay(drive, [perfect], judges)
        assert report.miou == 1.0
        assert len([v for v in report.iou.values() if v is not None]) >= classes
    with pytest.raises(InputError, match=r"no \.label files"):
        SideLabels(tmp_path, 4)
    (named / "000002.label").write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match="10 labels for a sweep"):
        evaluate_replay(drive, [perfect], SideLabels(named.parent, 4).judges(STREET))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--temporal"], "--checkpoint"),
        (["--checkpoint", "bundled", "--source", "x"], "leave out"),
        (["--checkpoint", "bundled", "--cameras"], "--teacher"),
        (["--checkpoint", "bundled", "--live", "--temporal"], "without --live"),
        (["--checkpoint", "bundled", "--live"], "plays bags"),
        (["--params", "p.yaml"], "--checkpoint"),
        (["--checkpoint", "bundled", "--params", "p.yaml"], "--live too"),
        (["--checkpoint", "bundled", "--live", "--params", "/nowhere.yaml"], "no such file"),
        (["--checkpoint", "bundled", "--labels", "/nowhere"], "no such folder"),
        (["--checkpoint", "nothing-here"], "nothing-here"),
    ],
)
def test_what_does_not_go_together_is_said(arguments: list[str], message: str) -> None:
    result = evaluate(DRIVE, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_prompts_in_the_parameters_of_the_node_are_refused(tmp_path: Path) -> None:
    params = tmp_path / "node.yaml"
    params.write_text("/**: {ros__parameters: {prompts: ['tree', '*']}}")
    result = evaluate(DRIVE, "--checkpoint", "bundled", "--live", "--params", str(params))
    assert result.exit_code == 2 and "prompts change what labels mean" in result.output
    params.write_text("/**: {ros__parameters: {prompts: ['']}}")
    result = evaluate(DRIVE, "--checkpoint", "bundled", "--live", "--params", str(params))
    assert "plays bags" in result.output  # the next thing that is wrong
