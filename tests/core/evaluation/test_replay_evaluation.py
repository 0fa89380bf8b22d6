# SPDX-License-Identifier: Apache-2.0
"""Replays: flicker on known pairs, labels of another folder, the command as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from pcseg_core.cli import app
from pcseg_core.data import open_recording
from pcseg_core.errors import InputError
from pcseg_core.evaluation import live
from pcseg_core.evaluation.external_labels import ExternalLabels
from pcseg_core.evaluation.live import LiveMethod, ReplayResult
from pcseg_core.evaluation.replay import evaluate_replay, recorded_labels
from pcseg_core.labels import LabelSpace, truth_of
from pcseg_core.metrics.flicker import Flicker, Pairing
from pcseg_core.online.pipeline_config import (
    CameraUseConfig,
    MotionConfig,
    PipelineConfig,
    SmoothingConfig,
)
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.simulation.to_bag import write_simulated_bag
from pcseg_core.vision.pixel_classes import TeacherConfig
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

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


def truth_as_labels(drop: int | None = None, wrong: int | None = None) -> ReplayResult:
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
    perfect = LiveMethod("perfect", "a", STREET, truth_as_labels())
    partial = LiveMethod("partial", "b", STREET, truth_as_labels(drop=1, wrong=2))
    report = evaluate_replay(drive, [perfect, partial], recorded_labels(drive, STREET))
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
    perfect = LiveMethod("perfect", "a", STREET, truth_as_labels())
    for folder, classes in ((named.parent, 6), (ordered, 2)):
        truth = ExternalLabels(folder, drive).ground_truth(STREET)
        report = evaluate_replay(drive, [perfect], truth)
        assert report.miou == 1.0
        assert len([v for v in report.iou.values() if v is not None]) >= classes
    with pytest.raises(InputError, match=r"no \.label files"):
        ExternalLabels(tmp_path, drive)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "other.label").write_bytes(b"\0" * 40)
    others = ExternalLabels(tmp_path / "others", drive).ground_truth(STREET)
    report = evaluate_replay(drive, [perfect], others)
    assert report.miou is None and "no sweep has labels in" in " ".join(report.notes)
    (named / "000002.label").write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match="10 labels for a sweep"):
        evaluate_replay(drive, [perfect], ExternalLabels(named.parent, drive).ground_truth(STREET))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--temporal"], "--checkpoint"),
        (["--checkpoint", "bundled", "--source", "x"], "leave out"),
        (["--checkpoint", "bundled", "--cameras"], "--teacher"),
        (["--checkpoint", "bundled", "--live", "--temporal"], "without --live"),
        (["--checkpoint", "bundled", "--live", "--deskew"], "without --live"),
        (["--checkpoint", "bundled", "--live"], "needs a rosbag2"),
        (["--params", "p.yaml"], "no such file"),
        (["--params", "p.yaml", "--source", "x"], "leave out"),
        (["--params", "p.yaml", "--temporal"], "set temporal.enabled"),
        (["--checkpoint", "bundled", "--live", "--params", "/nowhere.yaml"], "no such file"),
        (["--checkpoint", "bundled", "--labels", "/nowhere"], "no such folder"),
        (["--checkpoint", "nothing-here"], "nothing-here"),
    ],
)
def test_what_does_not_go_together_is_said(arguments: list[str], message: str) -> None:
    result = evaluate(DRIVE, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


class FakeTeacher(CameraUseConfig):
    weights: str = ""
    scale: float = 1.0

    def teacher_config(self) -> TeacherConfig | None:
        if not self.weights:
            return None
        return ESPNetv2Config(
            weights=Path(self.weights), label_space="simulation", scales=(self.scale,), flip=False
        )


class FakeNode(PipelineConfig):
    """Parameters of a node, as `NodeParameters` describes them."""

    checkpoint: str = ""
    device: str = "auto"
    backend: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    prompts: tuple[str, ...] = ()
    teacher: FakeTeacher = FakeTeacher()
    topics: tuple[str, ...] = ()

    def recording_options(self) -> dict[str, object]:
        return {"max_image_offset_s": 0.2, "camera_topics": list(self.topics)}


@dataclass
class Parameters:
    """The entry point of the node's parameters, for any file."""

    config: FakeNode

    def load(self) -> Callable[[Path], FakeNode]:
        return lambda path: self.config


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeNode], None]:
    """Installs parameters as those of every file."""

    def install(config: FakeNode) -> None:
        monkeypatch.setattr(live, "_plugin", {"parameters": Parameters(config)}.get)

    return install


def test_prompts_in_the_parameters_of_the_node_are_refused(
    tmp_path: Path, node: Callable[[FakeNode], None]
) -> None:
    params = tmp_path / "node.yaml"
    params.touch()
    arguments = ["--checkpoint", "bundled", "--live", "--params", str(params)]
    node(FakeNode(prompts=("tree", "*")))
    result = evaluate(DRIVE, *arguments)
    assert result.exit_code == 2 and "prompts change the meaning" in result.output
    node(FakeNode())
    assert "needs a rosbag2" in evaluate(DRIVE, *arguments).output  # the next thing that is wrong


def test_without_the_package_of_the_node_there_are_no_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_plugin", lambda name: None)
    (tmp_path / "node.yaml").touch()
    result = evaluate(DRIVE, "--params", tmp_path / "node.yaml")
    assert result.exit_code == 2 and "pcseg_ros is not installed" in result.output


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drive = SimulatedDrive(
        100_003, sweeps=4, beams=24, columns=400, cameras=1, width=160, height=96, speed_mps=8.0
    )
    return write_simulated_bag(drive, tmp_path_factory.mktemp("bags") / "drive").path


def test_parameters_of_the_node_decide_the_pipeline(
    bag: Path, tmp_path: Path, node: Callable[[FakeNode], None]
) -> None:
    def figures(*arguments: object) -> dict[str, dict[str, float]]:
        result = evaluate(bag, *arguments, "--json", tmp_path / "report.json")
        assert result.exit_code == 0, result.output
        content = json.loads((tmp_path / "report.json").read_text())
        kept = ("miou", "flicker", "unlabeled")
        return {m["name"]: {k: m[k] for k in kept} for m in (content, *content["others"])}

    def by_parameters(config: FakeNode) -> dict[str, dict[str, float]]:
        node(config)
        return figures("--params", params)

    params = tmp_path / "node.yaml"
    params.touch()
    smooth, deskew = SmoothingConfig(enabled=True), MotionConfig(deskew=True)
    smoothed = by_parameters(FakeNode(temporal=smooth))
    assert list(smoothed) == ["bundled, smoothed", "bundled"]
    assert smoothed == figures("--checkpoint", "bundled", "--temporal")
    deskewed = by_parameters(FakeNode(temporal=smooth, motion=deskew))
    assert deskewed == figures("--checkpoint", "bundled", "--temporal", "--deskew")
    assert all(deskewed[name]["miou"] != smoothed[name]["miou"] for name in smoothed)
    sure = by_parameters(FakeNode(min_confidence=0.9))["bundled"]
    assert sure["unlabeled"] > smoothed["bundled"]["unlabeled"] + 0.05
    teacher = FakeTeacher(weights="bundled:simulation_teacher", scale=2.0, fuse=True)
    topics = ("/camera_0/image/compressed",)
    fused = by_parameters(FakeNode(teacher=teacher, topics=topics))
    assert list(fused) == ["bundled + cameras", "bundled"]
    assert fused["bundled"] == smoothed["bundled"] != fused["bundled + cameras"]


def test_a_bag_is_decoded_and_paired_as_the_node_does(
    bag: Path, tmp_path: Path, node: Callable[[FakeNode], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, object]] = []

    def note(source: str, **options: object) -> object:
        opened.append(options)
        raise InputError("seen enough")

    monkeypatch.setattr("pcseg_core.data.open_recording", note)
    params = tmp_path / "node.yaml"
    params.touch()
    node(FakeNode(topics=("/camera",)))
    evaluate(bag, "--params", params)
    evaluate(f"bag:{bag}?max_image_offset_s=0.3", "--params", params)
    node(FakeNode())
    evaluate(bag, "--params", params)
    evaluate(bag, "--checkpoint", "bundled")
    evaluate(DRIVE, "--checkpoint", "bundled")
    trained = Segmenter.load("bundled").trained_on
    assert [options.pop("trained", None) for options in opened] == [trained] * 4 + [None]
    assert opened == [
        {"max_image_offset_s": 0.2, "camera_topics": ["/camera"]},
        {"camera_topics": ["/camera"]},
        {"max_image_offset_s": 0.2},
        {"max_image_offset_s": 0.05, "intensity_scale": 0.0},
        {},
    ]
