# SPDX-License-Identifier: Apache-2.0
"""The pipeline against its parts called by hand, and where inputs are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pcseg_core.cloud import TIME_PROBLEM, PointCloud, encode_cloud, read_cloud
from pcseg_core.data import Sample, open_recording
from pcseg_core.errors import InputError
from pcseg_core.geometry import Trajectory, deskew
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_core.online.camera_fusion import CameraFusionConfig, CameraLabeler, fuse_cameras
from pcseg_core.online.camera_observers import Evidence
from pcseg_core.online.output_clouds import entropy
from pcseg_core.online.pipeline import ImmediateCameras, MotionError, Pipeline
from pcseg_core.online.pipeline_config import (
    CameraUseConfig,
    MotionConfig,
    PipelineConfig,
    SmoothingConfig,
)
from pcseg_core.online.segmenter import Segmenter
from pcseg_core.online.sweep import (
    NO_EVIDENCE,
    NO_MOTION,
    NO_TIMES,
    NOT_FINITE,
    OUT_OF_RANGE,
    UNLIKE_TRAINING,
    LabeledSweep,
    Sweep,
)
from pcseg_core.online.temporal import TemporalBuffer
from pcseg_core.online.tracks import Tracked
from pcseg_core.simulation.recording import SimulatedDrive
from pcseg_core.vision.pixel_classes import PixelClasses, load_teacher
from pcseg_core.vision.teachers.espnetv2 import ESPNetv2Config

DRIVE = "simulated:seed=100003,sweeps=3,beams=16,columns=300,cameras=1,width=160,height=96"
DESKEW = MotionConfig(deskew=True)
SMOOTH = SmoothingConfig(enabled=True)
FUSE = CameraUseConfig(fuse=True, camera_weight=0.5)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    drive = open_recording(DRIVE)
    return [drive[index] for index in range(len(drive))]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def teacher() -> PixelClasses:
    config = ESPNetv2Config(
        weights="bundled:simulation_teacher", label_space="simulation", scales=(2.0,), flip=False
    )
    return load_teacher(config)


def test_points_of_a_high_entropy_become_unlabeled(
    samples: list[Sample], segmenter: Segmenter, teacher: PixelClasses
) -> None:
    """As the segmenter's own limit does; with cameras, of the fused probabilities."""
    sample, limited = samples[0], PipelineConfig(max_entropy=0.4)
    result = Pipeline(segmenter, limited).process(Sweep.of(sample))
    strict = Segmenter.load("bundled", device="cpu", max_entropy=0.4)
    expected = strict.segment(sample.cloud).labels
    assert 0.1 < np.mean(result.labels == IGNORE) < 0.9
    assert np.mean(result.labels == expected) > 0.999
    both = PipelineConfig(max_entropy=0.4, teacher=FUSE, temporal=SMOOTH)
    pipeline = Pipeline(segmenter, both, ImmediateCameras(teacher))
    fused = pipeline.process(Sweep.of(sample), probabilities=True)
    unsure = entropy(fused.probabilities, len(fused.labels)) > 0.4
    assert (fused.labels[unsure] == IGNORE).all() and (fused.labels[~unsure] >= 0).any()
    assert 0.1 < unsure.mean() < 0.9


@pytest.mark.parametrize("deskewed", [False, True])
def test_all_steps_in_their_order(
    samples: list[Sample], segmenter: Segmenter, teacher: PixelClasses, deskewed: bool
) -> None:
    motion = MotionConfig(deskew=deskewed)
    config = PipelineConfig(min_confidence=0.6, motion=motion, temporal=SMOOTH, teacher=FUSE)
    pipeline = Pipeline(segmenter, config, ImmediateCameras(teacher))
    labeler = CameraLabeler(teacher, segmenter.label_space)
    buffer = TemporalBuffer(SMOOTH, len(segmenter.label_space))
    for sample in samples:
        cloud, trajectory, pose = sample.cloud, sample.trajectory, sample.T_world_lidar
        assert cloud.time is not None and trajectory is not None and pose is not None
        before = cloud.xyz.copy()
        xyz = deskew(cloud.xyz, cloud.time, trajectory, cloud.stamp_ns) if deskewed else cloud.xyz
        given = segmenter.segment(PointCloud(xyz, intensity=cloud.intensity), probabilities=True)
        assert given.probabilities is not None
        images = [labeler.label(frame) for frame in sample.frames_at_sweep()]
        weight = CameraFusionConfig(camera_weight=0.5)
        fused = fuse_cameras(xyz, given.probabilities, images, weight)
        labels, confidence = buffer.update(xyz, fused, pose, cloud.stamp_ns)
        expected = np.where(confidence >= 0.6, labels, IGNORE)
        result = pipeline.process(Sweep.of(sample))
        moved_m = np.nanmax(np.abs(result.cloud.xyz - before))
        assert moved_m > 0.1 if deskewed else moved_m == 0
        assert np.nanmax(np.abs(result.cloud.xyz - xyz)) < 0.005  # poses every 10 ms, not all
        assert np.mean(result.labels == expected) > 0.99
        assert 0.05 < np.mean(result.labels == IGNORE) < 0.95
        assert np.array_equal(cloud.xyz, before, equal_nan=True)
        assert result.stages_ms.keys() == {"motion", "inference", "fusion"}
        assert {"voxelize", "infer"} <= result.inference_ms.keys() and not result.problems


def test_labels_are_the_same_in_utm_coordinates(
    samples: list[Sample], segmenter: Segmenter, teacher: PixelClasses
) -> None:
    """Far from the origin of the world, at whole voxels of the buffer from where it is."""
    config = PipelineConfig(motion=DESKEW, temporal=SMOOTH, teacher=FUSE)
    near, far = (Pipeline(segmenter, config, ImmediateCameras(teacher)) for _ in range(2))
    for sample in samples:
        trajectory = sample.trajectory
        assert trajectory is not None
        poses = trajectory.poses.copy()
        poses[:, :3, 3] += (500_000.0, 5_500_000.0, 3_000.0)
        moved = replace(sample, trajectory=Trajectory(trajectory.stamps_ns, poses))
        expected, result = near.process(Sweep.of(sample)), far.process(Sweep.of(moved))
        assert not result.problems
        step_m = np.nanmax(np.abs(result.cloud.xyz - sample.cloud.xyz))
        assert step_m > 0.1
        assert np.nanmax(np.abs(result.cloud.xyz - expected.cloud.xyz)) < 1e-5
        assert np.mean(result.labels == expected.labels) > 0.9999
        assert np.mean(np.abs(result.confidence - expected.confidence) < 1e-3) > 0.9999


def test_warming_up_leaves_no_trace(
    samples: list[Sample], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PipelineConfig(motion=DESKEW, temporal=SMOOTH)
    cold, warm = Pipeline(segmenter, config), Pipeline(segmenter, config)
    warm.warm_up(replace(samples[1].cloud, stamp_ns=samples[0].cloud.stamp_ns - 10**8))
    made: list[int] = []
    monkeypatch.setattr(TemporalBuffer, "__init__", lambda *_: made.append(1))
    warm.process(Sweep.of(samples[0]))
    assert not made  # its memory is there before the first sweep
    monkeypatch.undo()
    warm.reset()
    for sample in samples:
        expected, result = cold.process(Sweep.of(sample)), warm.process(Sweep.of(sample))
        assert np.array_equal(result.labels, expected.labels)
        assert np.array_equal(result.confidence, expected.confidence)
    assert warm.counters == cold.counters
    far = Sweep(replace(samples[0].cloud, xyz=samples[0].cloud.xyz * 0.01))
    fresh = Pipeline(segmenter)
    fresh.warm_up(samples[0].cloud)
    assert [event for event, _ in fresh.process(far).problems] == [UNLIKE_TRAINING]


def test_labels_of_a_recording_do_not_depend_on_earlier_sweeps() -> None:
    """Sweeps of another sensor than the training's, one of them unreadable."""

    class Drive(SimulatedDrive):
        def __getitem__(self, index: int) -> Sample:
            if index == 1:
                raise InputError("sweep 1 is truncated")
            sample = super().__getitem__(index)
            assert sample.cloud.intensity is not None
            sample.cloud.intensity = sample.cloud.intensity ** (0.3 + 0.1 * index)
            return sample

    drive = Drive(7001, sweeps=4, beams=32, columns=512, cameras=0)
    network = Segmenter.load("bundled")
    resumed, whole, live = Pipeline(network), Pipeline(network), Pipeline(network)
    for pipeline in (resumed, whole):
        pipeline.match_intensities(drive)
    for index in (0, 2, 3):
        labels = whole.process(Sweep.of(drive[index])).labels
        live_labels = live.process(Sweep.of(drive[index])).labels
    assert np.array_equal(resumed.process(Sweep.of(drive[3])).labels, labels)
    assert np.array_equal(live_labels, labels)  # the same three sweeps


def test_the_default_is_the_network_alone(samples: list[Sample], segmenter: Segmenter) -> None:
    expected = segmenter.segment(samples[0].cloud)
    result = Pipeline(segmenter).process(Sweep.of(samples[0]))
    assert np.array_equal(result.labels, expected.labels)
    assert np.array_equal(result.confidence, expected.confidence)
    assert result.cloud is samples[0].cloud and result.label_space is expected.label_space


@pytest.mark.parametrize("smooth", [False, True])
def test_probabilities_on_request_are_those_of_the_labels(
    samples: list[Sample], segmenter: Segmenter, smooth: bool
) -> None:
    config = PipelineConfig(temporal=SmoothingConfig(enabled=smooth))
    plain, asked = Pipeline(segmenter, config), Pipeline(segmenter, config)
    for sample in samples[:2]:
        expected = plain.process(Sweep.of(sample))
        found = asked.process(Sweep.of(sample), probabilities=True)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.confidence, expected.confidence)
        assert expected.probabilities is None and found.probabilities is not None
        known = found.labels != IGNORE
        likely = found.probabilities
        np.testing.assert_array_equal(likely[known].argmax(1), found.labels[known])
        np.testing.assert_allclose(likely[known].max(1), found.confidence[known], rtol=1e-5)
        assert (likely[~known] == 0).all()


class Lost:
    """Knows the pose of one stamp, or none."""

    def __init__(self, known_ns: int | None) -> None:
        self.known_ns = known_ns

    def __call__(self, stamps_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        if any(stamp != self.known_ns for stamp in stamps_ns.tolist()):
            raise InputError("no pose there")
        return np.tile(np.eye(4), (len(stamps_ns), 1, 1))


@pytest.mark.parametrize("known", [False, True])
def test_unknown_motion_is_reported_or_refused(
    samples: list[Sample], segmenter: Segmenter, known: bool
) -> None:
    cloud = samples[0].cloud
    sweep = Sweep(cloud, poses=Lost(cloud.stamp_ns if known else None))
    config = PipelineConfig(motion=DESKEW, temporal=SMOOTH)
    result = Pipeline(segmenter, config).process(sweep)
    assert result.problems == [(NO_MOTION, "no pose there")] and result.cloud is cloud
    assert np.array_equal(result.labels, segmenter.segment(cloud).labels)
    required = PipelineConfig(motion=MotionConfig(deskew=True, required=True))
    with pytest.raises(MotionError, match="no pose there"):
        Pipeline(segmenter, required).process(sweep)
    still = Pipeline(segmenter, required).process(Sweep(cloud))  # a platform without poses
    assert not still.problems


class Cameras:
    """Gives one evidence for all sweeps, and notes the clouds that it is shown."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.clouds: list[PointCloud] = []

    def observe(self, sweep: Sweep, cloud: PointCloud, space: LabelSpace) -> Callable[[], Evidence]:
        self.clouds.append(cloud)
        return lambda: self.evidence


def test_late_evidence_is_reported(samples: list[Sample], segmenter: Segmenter) -> None:
    sweep, late = Sweep.of(samples[0]), Cameras(None)
    result = Pipeline(segmenter, PipelineConfig(teacher=FUSE), late).process(sweep)
    assert [event for event, _ in result.problems] == [NO_EVIDENCE]
    assert np.array_equal(result.labels, segmenter.segment(sweep.cloud).labels)
    assert not Pipeline(segmenter, PipelineConfig(), late).process(sweep).problems  # not fused


def test_cameras_see_the_deskewed_cloud_and_only_sweeps_with_images(
    samples: list[Sample], segmenter: Segmenter
) -> None:
    cameras = Cameras([])
    pipeline = Pipeline(segmenter, PipelineConfig(motion=DESKEW), cameras)
    result = pipeline.process(Sweep.of(samples[0]))
    pipeline.process(Sweep(samples[0].cloud))
    assert [cloud is result.cloud for cloud in cameras.clouds] == [True]


def test_reset_forgets_earlier_sweeps(samples: list[Sample], segmenter: Segmenter) -> None:
    config, pipelines = PipelineConfig(temporal=SMOOTH), []
    for history in ([], [samples[0]], [samples[0], None]):
        pipeline = Pipeline(segmenter, config)
        for sample in history:
            _ = pipeline.reset() if sample is None else pipeline.process(Sweep.of(sample))
        pipelines.append(pipeline)
    fresh, smoothed, reset = (p.process(Sweep.of(samples[1])) for p in pipelines)
    assert not np.array_equal(smoothed.confidence, fresh.confidence)
    assert np.array_equal(reset.confidence, fresh.confidence)
    assert np.array_equal(reset.labels, fresh.labels)
    assert not pipelines[2].counters


def test_deskewing_without_times_is_reported(samples: list[Sample], segmenter: Segmenter) -> None:
    cloud = samples[0].cloud
    assert cloud.intensity is not None
    columns = {**dict(zip("xyz", cloud.xyz.T)), "intensity": cloud.intensity}
    columns["fire_time"] = np.zeros(len(cloud), np.float32)
    bare = replace(read_cloud(encode_cloud(columns)), stamp_ns=cloud.stamp_ns)
    pipeline = Pipeline(segmenter, PipelineConfig(motion=DESKEW))
    poses = samples[0].trajectory
    assert poses is not None
    result = pipeline.process(Sweep(bare, poses=poses.at_many))
    assert [event for event, _ in result.problems] == [NO_TIMES]
    assert "fire_time" in result.problems[0][1] and (result.labels >= 0).any()
    unknown = replace(cloud, time=np.full(len(cloud), np.nan))
    result = pipeline.process(Sweep(unknown, poses=poses.at_many))
    assert [event for event, _ in result.problems] == [NO_TIMES]
    assert not Pipeline(segmenter).process(Sweep(bare)).problems  # nobody asked


def test_times_that_are_left_out_are_reported(samples: list[Sample], segmenter: Segmenter) -> None:
    cloud = samples[0].cloud
    assert cloud.time is not None and cloud.intensity is not None
    columns = {**dict(zip("xyz", cloud.xyz.T)), "intensity": cloud.intensity}
    columns["time"] = cloud.time * 1e7
    read = read_cloud(encode_cloud(columns), time_unit="s")
    result = Pipeline(segmenter, PipelineConfig(motion=DESKEW)).process(Sweep(read))
    assert [event for event, _ in result.problems] == [TIME_PROBLEM]
    assert np.array_equal(result.labels, segmenter.segment(read).labels)


@pytest.mark.parametrize("seconds", [3e5, 21.0])
def test_a_sweep_of_days_asks_for_no_poses(segmenter: Segmenter, seconds: float) -> None:
    asked: list[int] = []

    def poses(stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        asked.append(len(stamps))
        return np.tile(np.eye(4), (len(stamps), 1, 1))

    cloud = PointCloud(np.ones((2, 3)), time=np.array([0, seconds]), stamp_ns=10**18)
    result = Pipeline(segmenter, PipelineConfig(motion=DESKEW)).process(Sweep(cloud, poses=poses))
    assert [event for event, _ in result.problems] == [NO_MOTION] and asked == [1]
    assert (result.labels >= 0).all()


def test_a_sweep_without_its_last_pose_asks_for_the_ends_only(segmenter: Segmenter) -> None:
    asked: list[int] = []

    def poses(stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        asked.append(len(stamps))
        if stamps[-1] > 10**18:
            raise InputError("not yet")
        return np.tile(np.eye(4), (len(stamps), 1, 1))

    cloud = PointCloud(np.ones((2, 3)), time=np.array([0, 4.0]), stamp_ns=10**18)
    result = Pipeline(segmenter, PipelineConfig(motion=DESKEW)).process(Sweep(cloud, poses=poses))
    assert result.problems == [(NO_MOTION, "not yet")] and asked == [1, 2]


def test_clouds_in_other_units_are_reported(samples: list[Sample], segmenter: Segmenter) -> None:
    cloud = samples[0].cloud
    result = Pipeline(segmenter).process(Sweep(replace(cloud, xyz=cloud.xyz * 1000)))
    assert [event for event, _ in result.problems] == [UNLIKE_TRAINING, OUT_OF_RANGE]
    assert result.problems[1][1].startswith("100 % of the points")
    assert result.out_of_range == np.count_nonzero(cloud.finite)


def test_confidences_that_are_not_finite_are_no_labels(
    samples: list[Sample], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = segmenter.segment(samples[0].cloud)
    wrong.confidence[:5], wrong.confidence[5] = np.nan, np.inf
    monkeypatch.setattr(segmenter, "segment", lambda *_, **__: wrong)
    result = Pipeline(segmenter).process(Sweep.of(samples[0]))
    assert [event for event, _ in result.problems] == [NOT_FINITE]
    assert (result.labels[:6] == IGNORE).all() and np.isfinite(result.confidence).all()


def test_a_cloud_is_refused_with_the_right_call(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match=r"got PointCloud.*pcseg_core\.Sweep\("):
        Pipeline(segmenter).process(PointCloud(np.ones((2, 3))))  # type: ignore[arg-type]


def test_a_part_of_a_sweep_keeps_what_is_known_of_its_points() -> None:
    space = LabelSpace.load("street")
    cloud = PointCloud(np.arange(12, dtype=np.float32).reshape(4, 3), stamp_ns=5)
    ids = np.arange(4)
    whole = LabeledSweep(cloud, ids.astype(np.int32), np.ones(4, np.float32), space, {}, {})
    whole.moving = ids.astype(np.uint8)
    whole.tracked = Tracked(ids.astype(np.uint32), ())
    part = whole.part(slice(1, 3))
    np.testing.assert_array_equal(part.cloud.xyz, cloud.xyz[1:3])
    assert part.tracked is not None and part.moving is not None and part.probabilities is None
    for values in (part.labels, part.moving, part.tracked.instances):
        assert values.tolist() == [1, 2]
