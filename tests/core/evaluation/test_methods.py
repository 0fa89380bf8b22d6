# SPDX-License-Identifier: Apache-2.0
"""Variants of a pipeline share the network and the teacher, and give what each gives alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.data import Sample, open_recording
from pcseg_core.evaluation.methods import PipelineMethod, variants
from pcseg_core.evaluation.replay import evaluate_replay, recorded_labels
from pcseg_core.labels import LabelSpace
from pcseg_core.online.pipeline import ImmediateCameras, LabeledSweep, MotionError, Pipeline, Sweep
from pcseg_core.online.pipeline_config import (
    CameraUseConfig,
    MotionConfig,
    PipelineConfig,
    SmoothingConfig,
)
from pcseg_core.online.segmenter import Segmentation, Segmenter
from pcseg_core.vision.pixel_classes import load_teacher
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

DRIVE = "simulated:seed=100003,sweeps=3,beams=16,columns=300,cameras=1,width=160,height=96"


class Network:
    """A segmenter that counts its runs."""

    def __init__(self) -> None:
        self.segmenter = Segmenter.load("bundled", device="cpu")
        self.label_space = self.segmenter.label_space
        self.trained_on = self.segmenter.trained_on
        self.runs = 0
        self.spent_ms = 0.0

    def set_prompts(self, prompts: Sequence[str] | None) -> LabelSpace:
        raise NotImplementedError

    def segment(self, cloud: PointCloud, probabilities: bool = False) -> Segmentation:
        self.runs += 1
        result = self.segmenter.segment(cloud, probabilities)
        self.spent_ms = sum(result.timings_ms.values())
        return result


class Teacher:
    """A teacher that counts its images."""

    def __init__(self) -> None:
        config = ESPNetv2Config(
            weights="bundled:simulation_teacher", label_space="simulation", scales=(1.0,)
        )
        self.teacher = load_teacher(config)
        self.label_space = self.teacher.label_space
        self.images = 0

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        self.images += 1
        return self.teacher.probabilities(image)

    def features(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@pytest.mark.parametrize("deskew", [False, True])
def test_shared_work_is_done_once_and_changes_nothing(deskew: bool) -> None:
    drive, network, teacher = open_recording(DRIVE), Network(), Teacher()
    motion, fuse = MotionConfig(deskew=deskew), CameraUseConfig(fuse=True)
    with_cameras = PipelineConfig(motion=motion, teacher=fuse)
    full = with_cameras.model_copy(update={"temporal": SmoothingConfig(enabled=True)})
    methods = variants("m", "c", network, full, teacher)
    assert [method.name for method in methods] == ["m + cameras, smoothed", "m + cameras", "m"]
    alone = [
        Pipeline(network.segmenter, full, ImmediateCameras(teacher.teacher)),
        Pipeline(network.segmenter, with_cameras, ImmediateCameras(teacher.teacher)),
        Pipeline(network.segmenter, PipelineConfig(motion=motion)),
    ]
    for index in range(len(drive)):
        sweep = Sweep.of(drive[index])
        for method, pipeline in zip(methods, alone):
            prediction, expected = method.predict(sweep), pipeline.process(sweep)
            assert prediction is not None
            assert np.array_equal(prediction.labels, expected.labels)
    assert (network.runs, teacher.images) == (3, 3)


def test_shared_time_counts_for_every_variant() -> None:
    sweep, network = Sweep.of(open_recording(DRIVE)[0]), Network()
    config = PipelineConfig(temporal=SmoothingConfig(enabled=True))
    for method in variants("m", "c", network, config):
        prediction = method.predict(sweep)
        assert prediction is not None and prediction.milliseconds is not None
        assert prediction.milliseconds > network.spent_ms > 0
        assert method.latency_ms == (round(prediction.milliseconds, 2),) * 2
    assert network.runs == 1


def test_variants_map_intensities_as_the_node_does() -> None:
    (method,) = variants("m", "c", Network(), PipelineConfig())
    known = method.pipeline.trained_on
    assert known is not None and known == Segmenter.load("bundled", device="cpu").trained_on


def test_without_a_teacher_there_is_no_variant_with_cameras() -> None:
    config = PipelineConfig(teacher=CameraUseConfig(fuse=True))
    assert [method.name for method in variants("m", "c", Network(), config)] == ["m"]


class Gap(Pipeline):
    """Does not know the motion at one sweep."""

    missing_ns = 0

    def process(self, sweep: Sweep) -> LabeledSweep:
        if sweep.cloud.stamp_ns == self.missing_ns:
            raise MotionError("unknown")
        return super().process(sweep)


def test_a_dropped_sweep_is_counted_and_the_next_is_compared_with_the_last_labeled_one() -> None:
    drive, segmenter = open_recording(DRIVE), Segmenter.load("bundled", device="cpu")
    samples: list[Sample] = [drive[index] for index in range(3)]
    gap = Gap(segmenter)
    gap.missing_ns = samples[1].stamp_ns
    methods = [PipelineMethod("whole", "c", Pipeline(segmenter)), PipelineMethod("gap", "c", gap)]
    report = evaluate_replay(drive, methods, recorded_labels(drive, LabelSpace.load("street")))
    assert report.drop_rate == 0 and report.others[0].drop_rate == pytest.approx(1 / 3)
    assert report.others[0].dropped == {"motion not known": 1}
    shown = [sorted(sweep.flicker) for sweep in report.per_sweep]
    assert shown == [[], ["whole"], ["gap", "whole"]]
    alone = evaluate_replay(
        Skipping(samples[::2]),
        [PipelineMethod("alone", "c", Pipeline(segmenter))],
        recorded_labels(drive, LabelSpace.load("street")),
    )
    assert report.per_sweep[2].flicker["gap"] == alone.per_sweep[1].flicker["alone"]


class Skipping:
    """A recording of given samples."""

    name, pose_source = "skipping", "exact"

    def __init__(self, samples: list[Sample]) -> None:
        self.samples, self.label_space = samples, samples[0].label_space
        self.scenes, self.skipped = [""] * len(samples), {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
