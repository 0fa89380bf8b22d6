# SPDX-License-Identifier: Apache-2.0
"""Observations: deskewed for everything across sweeps, stored once, damaged files redone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcseg_core.distill.cache import MappedArray, SweepCache, read_arrays, write_arrays
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.image_views import ImageView
from pcseg_core.distill.labeling import label_scene
from pcseg_core.distill.observation import (
    ClassEvidence,
    Observation,
    Observer,
    StoredObservation,
    scenes,
)
from pcseg_core.distill.pixels import PixelSampler, PointPixels
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.errors import InputError
from pcseg_core.geometry import transform
from pcseg_core.labels import IGNORE, LabelSpace, truth_of
from pcseg_core.metrics.confusion import Confusion
from pcseg_core.simulation.recording import SimulatedDrive

STREET = LabelSpace.load("street")


def quiet(_done: int, _total: int) -> None:
    pass


class ExactTeacher:
    """The true classes of the pixels of a simulated recording."""

    def __init__(self, drive: SimulatedDrive) -> None:
        self.label_space = drive.label_space
        frames = [frame for sample in drive for frame in sample.cameras]
        self.known = {frame.image.tobytes(): frame.labels for frame in frames}

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        labels = self.known[image.tobytes()]
        return np.stack([labels == c for c in range(len(self.label_space))]).astype(np.float32)

    def features(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def drive() -> SimulatedDrive:
    """A fast, turning vehicle whose LiDAR takes 0.2 s for a sweep."""
    return SimulatedDrive(
        11,
        sweeps=8,
        beams=32,
        columns=512,
        cameras=1,
        width=320,
        height=192,
        rate_hz=5.0,
        speed_mps=20.0,
        turns=1.0,
        range_noise_m=0.0,
    )


@pytest.fixture(scope="module")
def observed(
    drive: SimulatedDrive, tmp_path_factory: pytest.TempPathFactory
) -> list[StoredObservation]:
    config, folder = PseudoLabelConfig(), tmp_path_factory.mktemp("observed")
    evidence = ClassEvidence(ExactTeacher(drive), config, {"name": "exact"})
    return Observer(folder, STREET, evidence).observe({"drive": drive}, quiet)


def test_sweeps_are_deskewed_exactly(
    drive: SimulatedDrive, observed: list[StoredObservation]
) -> None:
    sample, sweep = drive[3], observed[3].load()
    cloud, finite = sample.cloud, sample.cloud.finite
    assert sample.trajectory is not None and cloud.time is not None
    assert np.array_equal(sweep.xyz, cloud.xyz[finite])
    stamps = cloud.stamp_ns + np.round(cloud.time[finite] * 1e9).astype(np.int64)
    poses = sample.trajectory.at_many(stamps)
    world = transform(poses, cloud.xyz[finite].astype(np.float64))
    again = transform(sweep.pose, sweep.deskewed.astype(np.float64))
    assert np.abs(again - world).max() < 2e-3
    assert np.linalg.norm(sweep.deskewed - sweep.xyz, axis=1).max() > 1  # the vehicle moves


def propagated_miou(sweeps: list[Observation]) -> float:
    """Mean IoU of the labels of points that no camera sees at the time."""
    config = PseudoLabelConfig(propagate_voxel_m=0.3, propagate_min_weight=0.5)
    confusion = Confusion(len(STREET))
    for sweep, (labels, _) in zip(sweeps, label_scene(sweeps, config)):
        assert sweep.truth is not None and sweep.evidence is not None
        unseen = np.ones(len(labels), bool)
        unseen[sweep.evidence.index] = False
        known = unseen & (labels != IGNORE)
        confusion.update(labels[known], sweep.truth[known])
    assert confusion.points > 5000
    return confusion.miou


def test_labels_are_propagated_through_deskewed_voxels(observed: list[StoredObservation]) -> None:
    sweeps = [stored.load() for stored in observed]
    assert propagated_miou(sweeps) > 0.75
    # Voxels of the points as measured are smeared by more than a meter.
    assert propagated_miou([replace(sweep, deskewed=sweep.xyz) for sweep in sweeps]) < 0.6


def test_the_truth_is_that_of_the_finite_points(
    drive: SimulatedDrive, observed: list[StoredObservation]
) -> None:
    sample, sweep = drive[0], observed[0].load()
    assert np.array_equal(sweep.truth, truth_of(sample, STREET)[sample.cloud.finite])


def test_evidence_and_pixels_count_finite_points_alone(drive: SimulatedDrive) -> None:
    """Points without a return keep their slot in the cloud, and have none in an observation."""
    sample = drive[0]
    holes = np.arange(len(sample.cloud)) % 3 == 0
    sample.cloud.xyz = np.where(holes[:, None], np.nan, sample.cloud.xyz)
    teacher, config = ExactTeacher(drive), PseudoLabelConfig()
    observer = Observer(
        Path("unused"),
        STREET,
        ClassEvidence(teacher, config, {}),
        PixelSampler(config, {}, image=teacher.features),
    )
    seen = observer.observe_sample(sample, "drive")
    assert len(seen.xyz) == sample.cloud.finite.sum() and np.isfinite(seen.xyz).all()
    assert seen.evidence is not None and seen.pixels is not None and seen.truth is not None
    votes = seen.evidence.sums.argmax(1)
    right = votes == seen.truth[seen.evidence.index]
    assert len(right) > 300 and right.mean() > 0.95
    # The red value of the pixel under each point, whatever was left out before it.
    assert seen.pixels.image is not None and len(seen.pixels.point) == len(seen.pixels.image)
    assert np.isin(seen.pixels.point, seen.evidence.index).all()


def whole() -> Observation:
    """An observation with every part."""
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(6, 3)).astype(np.float32)
    rows = np.array([0, 2, 5], np.int32)
    view = ImageView(
        rng.random((4, 3, 5)).astype(np.float16),
        rng.integers(0, 4, (3, 5)).astype(np.int32),
        np.arange(4, dtype=np.int16),
        rows,
        np.zeros((3, 2), np.int16),
        np.array([0, IGNORE, 1], np.int32),
    )
    return Observation(
        "drive-000003",
        "drive/a",
        3,
        xyz,
        xyz + 1,
        np.ones(6, np.float32),
        np.eye(4),
        np.arange(6, dtype=np.int16),
        Evidence(rows, np.ones(3, np.float32), rng.random((3, 2)).astype(np.float32)),
        PointPixels(rows, rng.random((3, 4)).astype(np.float16), None, rows, np.eye(6)),
        (view, replace(view, mirrored=view.features[:, :, ::-1])),
    )


def test_every_part_is_stored_and_features_stay_on_disk(tmp_path: Path) -> None:
    before = whole()
    before.save(tmp_path / "x.npz")
    after = StoredObservation(tmp_path / "x.npz", "drive-000003", "drive/a", 3, True).load()
    assert (after.name, after.scene, after.index, after.posed) == (
        before.name,
        before.scene,
        before.index,
        True,
    )
    for part in ("xyz", "deskewed", "intensity", "pose", "truth"):
        assert np.array_equal(getattr(after, part), getattr(before, part)), part
    assert before.evidence and after.evidence and before.pixels and after.pixels
    for name, value in vars(before.evidence).items():
        assert np.array_equal(getattr(after.evidence, name), value), name
    assert isinstance(after.pixels.image, MappedArray) and after.pixels.text is None
    assert np.array_equal(after.pixels.image, before.pixels.image)
    assert np.array_equal(after.pixels.image[[2, 0]], before.pixels.image[[2, 0]])
    assert np.array_equal(after.pixels.patch_image, np.eye(6))
    first, second = after.images
    assert isinstance(first.features, MappedArray) and first.mirrored is None
    assert np.array_equal(first.features, before.images[0].features)
    assert second.mirrored is not None
    assert np.array_equal(second.mirrored[:, 1, 2], before.images[1].mirrored[:, 1, 2])


def test_mapped_arrays_hold_no_file_open(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.npz", {"a/features": np.arange(12.0).reshape(3, 4)})
    opened = len(list(Path("/proc/self/fd").iterdir()))
    arrays = [read_arrays(tmp_path / "x.npz", ("/features",))["a/features"] for _ in range(50)]
    assert all(array[1, 2] == 6 and len(array) == 3 for array in arrays)
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened


def test_files_follow_the_umask_and_what_they_depend_on(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_arrays(tmp_path / "x.npz", {"a": np.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.npz").stat().st_mode & 0o777 == 0o644
    cache, other = SweepCache(tmp_path, {"a": 1}), SweepCache(tmp_path, {"a": 2})
    paths = {cache.path("s", "r", 1), other.path("s", "r", 1), cache.path("t", "r", 1)}
    assert len(paths) == 3 and {path.name[:9] for path in paths} == {"r-000001-"}


class Counting:
    """A recording that counts how often its samples are read."""

    def __init__(self, drive: SimulatedDrive) -> None:
        self.drive, self.read = drive, 0
        self.name, self.label_space, self.pose_source = drive.name, drive.label_space, "exact"
        self.scenes, self.skipped = drive.scenes, Counter[str]()

    def __len__(self) -> int:
        return len(self.drive)

    def __getitem__(self, index: int) -> object:
        self.read += 1
        return self.drive[index]


def test_observing_resumes_and_redoes_damaged_files(drive: SimulatedDrive, tmp_path: Path) -> None:
    recording = Counting(drive)
    first = Observer(tmp_path, STREET).observe({"d": recording}, quiet, every=3)
    assert [stored.index for stored in first] == [0, 3, 6] and recording.read == 3
    assert [name for name, _ in scenes(first)] == [f"d/{drive.name}"]
    first[1].path.write_bytes(first[1].path.read_bytes()[:900])
    with pytest.raises(InputError, match="damaged .* run again"):
        first[1].load()
    again = Observer(tmp_path, STREET).observe({"d": recording}, quiet, every=3)
    assert again == first and recording.read == 4
    assert len(again[1].load().xyz) > 0
    with pytest.raises(InputError, match=r"none of the 3 sweeps.*3x .*no camera sees any point"):
        blind = ClassEvidence(ExactTeacher(drive), PseudoLabelConfig(), {})
        away = Counting(SimulatedDrive(4, sweeps=3, beams=4, columns=64, cameras=0))
        Observer(tmp_path, evidence=blind).observe({"e": away}, quiet)
