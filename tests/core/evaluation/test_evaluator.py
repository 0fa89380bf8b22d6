# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a segmenter on labeled sweeps: figures, groupings, faults, pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import Sample
from pcseg_core.errors import InputError
from pcseg_core.evaluation import Report, evaluate, render
from pcseg_core.evaluation.report import panoptic_table
from pcseg_core.geometry import Trajectory
from pcseg_core.labels import LabelSpace
from pcseg_core.online.pipeline import Pipeline
from pcseg_core.online.segmenter import Segmentation

STREET = LabelSpace.load("street")
KITTI = LabelSpace.load("semantic_kitti")


@dataclass
class Reading:
    """Segmenter that takes the labels from the intensity of the cloud."""

    label_space: LabelSpace = STREET

    def segment(self, cloud: PointCloud, probabilities: bool = False) -> Segmentation:
        assert cloud.intensity is not None
        labels = np.round(cloud.intensity).astype(np.int32)
        confidence = np.where(labels < 0, 0, 0.75).astype(np.float32)
        return Segmentation(labels, confidence, label_space=self.label_space)

    def set_prompts(self, prompts: Sequence[str] | None) -> LabelSpace:
        raise NotImplementedError


def reading(space: LabelSpace = STREET) -> Pipeline:
    return Pipeline(Reading(space))


@dataclass
class Samples:
    """A drive held in memory."""

    samples: list[Sample]
    name: str = "memory"
    label_space: LabelSpace | None = None
    pose_source: str = "none"
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def scenes(self) -> list[str]:
        return ["a"] * len(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def sample(
    answers: list[int], truth: list[int] | None, space: LabelSpace = STREET, name: str = "s"
) -> Sample:
    """A sweep on which `Reading` predicts these labels."""
    rng = np.random.default_rng(len(answers))
    xyz = rng.normal(size=(len(answers), 3)).astype(np.float32)
    cloud = PointCloud(xyz, intensity=np.array(answers, np.float32))
    labels = None if truth is None else np.array(truth, np.int16)
    return Sample(cloud, labels=labels, label_space=space, name=name)


def test_figures_over_scans_of_different_size() -> None:
    drive = Samples([sample([0, 0, 1], [0, 0, 1]), sample([0, 0, 0, 4, 4, -1], [0, 1, 4, 4, 4, 4])])
    report = evaluate(reading(), drive)
    # road: 3 hits, 2 false, 0 missed; sidewalk: 1 hit, 1 missed; terrain: 2 hits, 2 missed
    assert report.iou["road"] == pytest.approx(3 / 5)
    assert report.iou["sidewalk"] == pytest.approx(1 / 2)
    assert report.iou["terrain"] == pytest.approx(2 / 4)
    assert report.miou == pytest.approx((3 / 5 + 1 / 2 + 1 / 2) / 3)
    assert report.accuracy == pytest.approx(6 / 9)
    assert report.accuracy_merged_ground == pytest.approx(8 / 9)  # one point has no label
    assert report.iou["person"] is None
    assert [scan.points for scan in report.per_scan] == [3, 6]
    assert report.per_scan[0].miou == 1.0
    assert report.unpredicted[STREET.index("terrain")] == 1
    assert report.calibration_error == pytest.approx(abs(6 / 8 - 0.75))


def test_the_calibration_error_is_a_mean_over_scans() -> None:
    right, wrong = sample([0, 0], [0, 0]), sample([0, 0, 0, 0], [1, 1, 1, 1])
    report = evaluate(reading(), Samples([right, wrong, sample([-1], [0])]))
    found = report.confidence
    assert found is not None and report.confidence_uncalibrated is None
    assert found.error_per_scan == pytest.approx((0.25 + 0.75) / 2)  # the confidence is 0.75
    assert report.calibration_error == pytest.approx(abs(2 / 6 - 0.75))
    assert found.points == [0] * 7 + [6, 0, 0]
    assert found.confidence[7] == 0.75 and found.accuracy[7] == pytest.approx(2 / 6)
    assert found.confidence[0] is None
    assert "calibration error per scan, percent: 50.0" in str(report.table().caption)


def test_predictions_and_truth_of_other_spaces_meet_in_street() -> None:
    names = ["road", "parking", "building", "car", "bicycle", "person"]
    truth = [KITTI.index(name) for name in names] + [-1]
    answers = [STREET.index(name) for name in ["road", "road", "structure", "vehicle"]] + [5, 6, 0]
    report = evaluate(reading(), Samples([sample(answers, truth, KITTI)]))
    assert report.accuracy == 1.0
    assert report.points == 6
    back = evaluate(reading(KITTI), Samples([sample(truth, answers, STREET)]))
    assert back.points == 7
    assert back.accuracy == pytest.approx(6 / 7)  # what has no class there is a miss


def test_baselines_are_measured_on_the_same_points() -> None:
    drive = Samples([sample([0, 1, 5], [0, 0, 5])])
    report = evaluate(reading(), drive, baselines={"all_road": lambda c: np.zeros(len(c), int)})
    assert report.baselines["all_road"].accuracy == pytest.approx(2 / 3)
    assert report.baselines["all_road"].iou["road"] == pytest.approx(2 / 3)
    assert report.baselines["all_road"].iou["vehicle"] == 0.0


def test_sweeps_without_labels_are_counted() -> None:
    drive = Samples([sample([0], None), sample([0], [0], name="labeled")])
    report = evaluate(reading(), drive)
    assert report.scans == 1
    assert report.skipped == {"sweep without labels": 1}
    assert report.example is not None
    assert report.example.name == "labeled"


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no scans"),
        ([sample([0], None)], "none of its 1 sweeps has labels"),
        ([sample([0, 1], [0])], "1 labels for 2 points"),
        ([sample([0, 1], [-1, -1])], "no point has a label"),
    ],
)
def test_drives_that_cannot_be_measured(samples: list[Sample], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(reading(), Samples(samples))


def test_a_space_without_grouping_is_refused() -> None:
    other = LabelSpace.from_dict(
        {"name": "fruit", "classes": [{"name": "apple", "color": [1, 2, 3]}]}
    )
    with pytest.raises(InputError, match="no grouping from label space 'fruit' into 'street'"):
        evaluate(reading(other), Samples([sample([0], [0])]))


def test_one_own_space_needs_no_grouping() -> None:
    report = evaluate(reading(KITTI), Samples([sample([3], [3], KITTI)]), space="semantic_kitti")
    assert report.iou["truck"] == 1.0
    assert report.miou_merged_ground is None


def test_json_has_the_figures_and_reads_back(tmp_path: Path) -> None:
    report = evaluate(reading(), Samples([sample([0, 1], [0, 0])]), checkpoint="runs/x")
    report.write_json(tmp_path / "deep" / "report.json")
    text = (tmp_path / "deep" / "report.json").read_text()
    content = json.loads(text)
    assert content["miou"] == 0.5
    assert content["accuracy"] == 0.5
    assert content["miou_merged_ground"] == 1.0
    assert content["confusion"][0][:2] == [1, 1]
    assert content["checkpoint"] == "runs/x"
    assert Report.model_validate_json(text).miou == report.miou


def test_the_same_input_gives_the_same_report() -> None:
    drive = Samples([sample([0, 1, 4, -1], [0, 0, 4, 4])])
    first, second = (evaluate(reading(), drive).model_dump() for _ in range(2))
    for report in (first, second):
        report["per_scan"][0].pop("milliseconds")
        report.pop("milliseconds_median")
    assert first == second


def test_picture_is_written_whole_and_shows_the_classes(tmp_path: Path) -> None:
    answers = [0] * 300 + [3] * 300
    drive = Samples([sample(answers, [0] * 250 + [3] * 350)])
    report = evaluate(reading(), drive, baselines={"majority": lambda c: np.zeros(len(c), int)})
    render(report, tmp_path / "report.png")
    pixels = np.asarray(Image.open(tmp_path / "report.png").convert("RGB"))
    assert pixels.shape == (1200, 1600, 3)
    for color in STREET.palette[[0, 3]]:
        assert (pixels == color).all(axis=2).sum() > 50
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_a_report_read_from_json_still_draws(tmp_path: Path) -> None:
    report = evaluate(reading(), Samples([sample([0, 1, -1], [0, 0, 0])]))
    render(Report.model_validate_json(report.model_dump_json()), tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 10_000


def with_instances(number: int, posed: bool) -> Sample:
    """A vehicle of 60 points that drives, one that stands, and road; the second is labeled road."""
    side = np.stack([np.linspace(0, 4, 60), np.zeros(60), np.linspace(0, 1.5, 60)], 1)
    places = np.array([(9 + number, 3, 0), (9, -6, 0), (30, 0, 0)])
    xyz = (side + places[:, None]).reshape(-1, 3).astype(np.float32)
    road, vehicle = STREET.index("road"), STREET.index("vehicle")
    answers = np.repeat([vehicle, road, road], 60)
    cloud = PointCloud(xyz, intensity=answers.astype(np.float32), stamp_ns=number * 10**8)
    stamps = np.arange(-1, 10) * 10**8
    trajectory = Trajectory(stamps, np.tile(np.eye(4), (11, 1, 1))) if posed else None
    labels = np.repeat([vehicle, vehicle, road], 60).astype(np.int16)
    ids = np.repeat([4, 0, -1], 60).astype(np.int32)
    return Sample(cloud, trajectory=trajectory, labels=labels, label_space=STREET, instances=ids)


@pytest.mark.parametrize("posed", [True, False])
def test_instances_are_measured_where_the_labels_have_ids(posed: bool, tmp_path: Path) -> None:
    drive = Samples([with_instances(number, posed) for number in range(4)])
    report = evaluate(reading(), drive)
    found = report.panoptic
    assert found is not None and (found.sweeps, found.min_points) == (4, 50)
    vehicle, road = found.classes["vehicle"], found.classes["road"]
    assert (vehicle.pq, vehicle.sq, vehicle.rq) == pytest.approx((2 / 3, 1, 2 / 3))
    assert road.pq == 0  # the IoU is 60 / 120
    assert found.pq == pytest.approx(1 / 3) and found.pq_things == vehicle.pq
    if posed:
        assert found.s_assoc == pytest.approx(0.5) and found.id_switches == 0
        assert found.s_cls == pytest.approx(0.5) and found.lstq == pytest.approx(0.5)
    else:
        assert (found.lstq, found.s_assoc, found.id_switches) == (None, None, None)
    report.write_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["panoptic"]["instances"] == (
        2 if posed else None
    )
    caption = panoptic_table(found).caption
    assert caption == (
        "LSTQ 50.0 (S_assoc 50.0, S_cls 50.0), 0 id switches"
        if posed
        else "no LSTQ: tracks need poses"
    )
    assert evaluate(reading(), Samples([sample([0, 1], [0, 1])])).panoptic is None
