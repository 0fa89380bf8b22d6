# SPDX-License-Identifier: Apache-2.0
"""Robustness studies with a segmenter whose errors are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.data import Sample
from pcseg_core.errors import InputError
from pcseg_core.evaluation.condition_store import ConditionStore
from pcseg_core.evaluation.robustness import Plan, measure_robustness
from pcseg_core.evaluation.robustness_report import SINGLE, SMOOTHED, RobustnessReport
from pcseg_core.geometry import Trajectory
from pcseg_core.labels import LabelSpace
from pcseg_core.online.segmenter import Segmentation

STREET = LabelSpace.load("street")
ROAD, STRUCTURE, VEHICLE = (STREET.index(name) for name in ("road", "structure", "vehicle"))


class ByHeight:
    """Road below -1 m, vehicles up to 0.5 m, structure above; sure by 0.8."""

    label_space = STREET

    def __init__(self, most_sweeps: int = 10_000) -> None:
        self.sweeps, self.most_sweeps = 0, most_sweeps

    def set_prompts(self, prompts: Sequence[str] | None) -> LabelSpace:
        return STREET

    def segment(self, cloud: PointCloud, probabilities: bool = False) -> Segmentation:
        self.sweeps += 1
        if self.sweeps > self.most_sweeps:
            raise KeyboardInterrupt
        z = cloud.xyz[:, 2]
        labels = np.select([z < -1, z < 0.5], [ROAD, VEHICLE], STRUCTURE).astype(np.int32)
        rows = np.full((len(z), len(STREET)), 0.2 / 7, np.float32)
        rows[np.arange(len(z)), labels] = 0.8
        return Segmentation(labels, rows.max(1), probabilities=rows, label_space=STREET)


class Drive:
    """A recording of a road, vehicles and walls, whose labels follow from the height."""

    def __init__(self, sweeps: int = 2, labeled: bool = True, poses: bool = False) -> None:
        self.name, self.skipped, self.poses = "drive", Counter[str](), poses
        self.label_space = STREET if labeled else None
        self.pose_source = "exact" if poses else "none"
        self.scenes = [""] * sweeps

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        kind = rng.integers(0, 3, 2000)
        xyz = rng.uniform((-20, -20, 0), (20, 20, 0.4), (2000, 3))
        xyz[:, 2] += np.choose(kind, [-1.7, -0.5, 1.0])
        labels = np.choose(kind, [ROAD, VEHICLE, STRUCTURE]).astype(np.int16)
        stamp_ns = index * 10**8
        ring = rng.integers(0, 64, 2000).astype(np.uint16)
        cloud = PointCloud(xyz.astype(np.float32), rng.random(2000), ring=ring, stamp_ns=stamp_ns)
        stamps, still = np.array([0, 10**10], np.int64), np.tile(np.eye(4), (2, 1, 1))
        trajectory = Trajectory(stamps, still) if self.poses else None
        known = self.label_space is not None
        return Sample(
            cloud,
            trajectory=trajectory,
            labels=labels if known else None,
            label_space=self.label_space,
            name=f"{index:06d}",
        )


def test_a_segmenter_that_beams_do_not_matter_to_keeps_its_miou() -> None:
    plan = Plan(("beam-missing", "crosstalk"), ("light", "heavy"))
    report = measure_robustness("heights", ByHeight(), [Drive()], plan)
    figures = report.methods[SINGLE]
    assert list(report.methods) == [SINGLE]  # no poses, no smoothing
    assert figures.clean.miou == 1.0
    assert figures.clean.calibration_error == pytest.approx(0.2)  # sure by 0.8, always right
    assert figures.clean.points == 4000
    assert report.sources == {"drive": 2}
    assert report.reference == "ground truth"
    beams, noise = (figures.corrupted[name]["heavy"] for name in report.corruptions)
    assert beams.miou == 1.0
    assert 0.3 < beams.lost < 0.75
    # noise has no true class: what is left is right
    assert (noise.miou, noise.points, noise.invented) == (1.0, 3960, 0.01)
    assert figures.rr == {"beam-missing": 1.0, "crosstalk": 1.0}
    assert figures.mrr == 1.0
    assert (figures.ce, figures.mce) == ({}, None)  # the baseline makes no error


def test_errors_under_motion_are_measured_against_truth_and_clean_labels() -> None:
    plan = Plan(("motion-blur",))
    graded = measure_robustness("heights", ByHeight(), [Drive()], plan)
    stable = measure_robustness("heights", ByHeight(), [Drive(labeled=False)], plan)
    first, second = graded.methods[SINGLE], stable.methods[SINGLE]
    assert stable.reference == "clean prediction"
    for severity in plan.severities:
        with_truth = first.corrupted["motion-blur"][severity]
        without = second.corrupted["motion-blur"][severity]
        assert with_truth.miou is not None
        assert with_truth.miou < 1
        # clean labels are the truth here, so that both measure the same
        assert (without.miou, without.agreement) == (with_truth.miou, with_truth.agreement)
        assert without.agreement == with_truth.accuracy
        assert without.calibration_error is None
    assert second.mrr == first.mrr
    assert first.mce == 1.0
    forced = measure_robustness(
        "heights", ByHeight(), [Drive()], Plan(("motion-blur",), stability=True)
    )
    assert forced.reference == "clean prediction"


def test_without_labels_the_clean_prediction_chooses_vehicles_and_ground() -> None:
    plan = Plan(("wet-ground", "incomplete-echo"), ("heavy",))
    report = measure_robustness("heights", ByHeight(), [Drive(2, labeled=False)], plan)
    echo = report.methods[SINGLE].corrupted["incomplete-echo"]["heavy"]
    vehicles = sum(int((Drive()[k].labels == VEHICLE).sum()) for k in range(2))
    assert echo.lost == pytest.approx(0.95 * vehicles / 4000, abs=1e-3)


def test_drives_with_poses_are_also_smoothed_and_compared_with_single_sweeps() -> None:
    plan = Plan(("motion-blur",), ("heavy",))
    report = measure_robustness("heights", ByHeight(), [Drive(3, poses=True)], plan)
    assert list(report.methods) == [SINGLE, SMOOTHED]
    smoothed = report.methods[SMOOTHED]
    assert report.methods[SINGLE].mce == 1.0
    assert smoothed.mce is not None
    assert smoothed.mce != 1.0
    assert smoothed.corrupted["motion-blur"]["heavy"].error_auroc is None
    alone = measure_robustness(
        "heights", ByHeight(), [Drive(3, poses=True)], Plan(("fog",), temporal=False)
    )
    assert list(alone.methods) == [SINGLE]


def test_every_leaves_sweeps_out_and_the_network_runs_once_for_both_methods() -> None:
    segmenter = ByHeight()
    plan = Plan(("fog",), ("light",), every=2)
    report = measure_robustness("heights", segmenter, [Drive(5, poses=True)], plan)
    assert report.sources == {"drive": 3}
    assert segmenter.sweeps == 6  # 3 sweeps, clean and in fog


def test_an_interrupted_study_resumes_and_ends_with_the_same_figures(tmp_path: Path) -> None:
    plan = Plan(("beam-missing", "motion-blur"), ("light", "heavy"))
    whole = measure_robustness("heights", ByHeight(), [Drive()], plan)
    path = tmp_path / "report.json.partial"
    with pytest.raises(KeyboardInterrupt):
        measure_robustness(
            "heights", ByHeight(7), [Drive()], plan, done=ConditionStore(path, {"seed": 1})
        )
    store = ConditionStore(path, {"seed": 1})
    assert list(store) == ["clean", "beam-missing light", "beam-missing heavy"]
    rest, steps = ByHeight(), list[tuple[int, int]]()
    resumed = measure_robustness(
        "heights", rest, [Drive()], plan, done=store, progress=lambda k, n: steps.append((k, n))
    )
    assert resumed == whole
    assert rest.sweeps == 6  # clean again, for the clean labels, and two conditions
    assert steps[-1] == (6, 6)
    assert not ConditionStore(path, {"seed": 2})  # figures of another study are not taken
    store.close()
    assert not path.exists()
    path.write_text("something else")
    with pytest.raises(InputError, match="is in the way"):
        ConditionStore(path, {})


def test_a_baseline_is_another_report_on_the_same_sweeps() -> None:
    class Blind(ByHeight):
        def segment(self, cloud: PointCloud, probabilities: bool = False) -> Segmentation:
            result = super().segment(cloud, probabilities)
            result.labels[:] = ROAD
            return result

    plan = Plan(("motion-blur",), ("heavy",))
    blind = measure_robustness("blind", Blind(), [Drive()], plan)
    seeing = measure_robustness("heights", ByHeight(), [Drive()], plan)
    compared = seeing.compared_with(RobustnessReport.model_validate(blind.model_dump(mode="json")))
    own, other = (r.methods[SINGLE].mious()["motion-blur"][0] for r in (seeing, blind))
    assert compared.methods[SINGLE].mce == pytest.approx((1 - own) / (1 - other))
    assert compared.baseline == "blind"
    assert compared.methods[SINGLE].mrr == seeing.methods[SINGLE].mrr
    longer = measure_robustness("heights", ByHeight(), [Drive(3)], plan)
    with pytest.raises(InputError, match=r"baseline blind: measured with sources drive \(2 sweeps"):
        longer.compared_with(blind)
    foggy = measure_robustness("heights", ByHeight(), [Drive()], Plan(("fog",), ("heavy",)))
    with pytest.raises(InputError, match="baseline blind: no figures of fog"):
        foggy.compared_with(blind)


def test_corruptions_that_the_sweeps_do_not_allow_are_left_out_or_refused() -> None:
    class Gray(Drive):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.cloud.intensity = None
            return sample

    report = measure_robustness("heights", ByHeight(), [Gray(1)], Plan(severities=("light",)))
    assert set(report.left_out) == {"fog", "wet-ground", "snow"}
    assert report.left_out["fog"] == "drive: the clouds have no intensities"
    assert len(report.corruptions) == 5
    with pytest.raises(InputError, match="snow cannot be applied: drive: the clouds have no"):
        measure_robustness("heights", ByHeight(), [Gray(1)], Plan(("snow",)))


def test_bad_input_is_named() -> None:
    class Empty(Drive):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.cloud = sample.cloud.select(np.zeros(0, int))
            sample.labels = sample.labels[:0] if sample.labels is not None else None
            return sample

    with pytest.raises(InputError, match="no corruption 'hail'"):
        Plan(("hail",))
    with pytest.raises(InputError, match="no severity 'extreme'"):
        Plan(severities=("light", "extreme"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="drive: none of its 2 sweeps has points"):
        measure_robustness("heights", ByHeight(), [Empty()], Plan())
    with pytest.raises(InputError, match="drive: no sweeps"):
        measure_robustness("heights", ByHeight(), [Drive(0)], Plan())
    with pytest.raises(InputError, match="drive has no labels and others have"):
        measure_robustness("heights", ByHeight(), [Drive(), Drive(labeled=False)], Plan())
    with pytest.raises(InputError, match="no grouping from label space 'street' into 'cityscapes'"):
        measure_robustness("heights", ByHeight(), [Drive()], Plan(space="cityscapes"))
    with pytest.raises(InputError, match="smoothing needs poses, and drive has none"):
        measure_robustness("heights", ByHeight(), [Drive()], Plan(temporal=True))
