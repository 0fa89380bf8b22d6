# SPDX-License-Identifier: Apache-2.0
"""Votes over cameras, and labels carried through the world."""

from collections.abc import Sequence

import numpy as np
import pytest

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.distill.consolidation import likeliest
from pcseg_core.distill.pseudo_labels import (
    Evidence,
    PseudoLabelConfig,
    gather_evidence,
    label_points,
    pixel_evidence,
    propagated_shares,
    sample_map,
)
from pcseg_core.labels import IGNORE, group_probabilities

OPTICAL = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


class HalvesTeacher:
    """Class 0 with 0.8 on the left half of every image, class 1 with 0.7 on the right."""

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        values = np.zeros((2, height, width), np.float32)
        values[0, :, : width // 2] = 0.8
        values[1, :, width // 2 :] = 0.7
        return values


def propagate_labels(
    clouds: Sequence[np.ndarray],
    poses: Sequence[np.ndarray],
    evidence: Sequence[Evidence],
    config: PseudoLabelConfig,
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [likeliest(shares) for shares in propagated_shares(clouds, poses, evidence, config)]


def sample_with(cameras: int, xyz: np.ndarray) -> Sample:
    camera = CameraModel.pinhole(50, 50, 49.5, 49.5, 100, 100)
    frames = [
        CameraFrame(str(k), 0, camera, OPTICAL, np.zeros((100, 100, 3), np.uint8))
        for k in range(cameras)
    ]
    return Sample(PointCloud(xyz.astype(np.float32)), frames)


def test_points_take_the_class_of_their_pixel() -> None:
    xyz = np.array([[10, 3, 0], [10, -3, 0], [-10, 3, 0], [np.nan, 0, 0]])
    config = PseudoLabelConfig(border_px=0)
    images = pixel_evidence(sample_with(2, xyz), HalvesTeacher(), np.array([0, 1]), 2)
    evidence = gather_evidence(xyz, images, 2, config)
    labels, confidence = label_points(evidence, 4)
    assert labels.tolist() == [0, 1, IGNORE, IGNORE]
    assert confidence == pytest.approx([0.8, 0.7, 0, 0], abs=1e-5)
    assert evidence.weights == pytest.approx([2, 2], abs=1e-5)


def test_grouping_adds_probabilities_and_drops_the_ignored() -> None:
    probabilities = np.array([0.1, 0.2, 0.3, 0.4], np.float32).reshape(4, 1, 1)
    grouped = group_probabilities(probabilities, np.array([1, 1, IGNORE, 0]), 3)
    assert grouped[:, 0, 0] == pytest.approx([0.4, 0.3, 0.0])


def test_sample_map_is_exact_on_a_plane_at_any_resolution() -> None:
    # value = u of the full-size image; a map of half the size has its centers at odd halves.
    half = np.broadcast_to((np.arange(8) * 2 + 0.5).astype(np.float32), (1, 4, 8))
    uv = np.array([[0.5, 3.0], [7.25, 1.5], [14.5, 7.0]], np.float32)
    assert sample_map(half, uv, (16, 8))[:, 0] == pytest.approx(uv[:, 0])


def evidence_of(index: list[int], sums: list[list[float]]) -> Evidence:
    return Evidence(
        np.array(index, np.int32), np.ones(len(index), np.float32), np.array(sums, np.float32)
    )


def test_labels_are_carried_by_pose_to_sweeps_that_did_not_see_the_point() -> None:
    place = np.array([[10.05, 0.05, 0.05]])
    forward = np.eye(4)
    forward[0, 3] = 20.0  # the vehicle has passed the place: it now lies behind
    clouds = [place, place - forward[:3, 3]]
    seen, unseen = evidence_of([0], [[0.9, 0.1]]), evidence_of([], np.zeros((0, 2)).tolist())
    unseen.sums = np.zeros((0, 2), np.float32)
    config = PseudoLabelConfig(propagate_voxel_m=0.2, propagate_min_weight=1)
    (_, (labels, confidence)) = propagate_labels(
        clouds, [np.eye(4), forward], [seen, unseen], config
    )
    assert labels.tolist() == [0]
    assert confidence == pytest.approx([0.9])


def test_frames_that_agree_outvote_one_that_errs() -> None:
    cloud = np.array([[5.05, 0.05, 0.05]])
    good, bad = [[0.9, 0.1]], [[0.4, 0.6]]
    evidence = [evidence_of([0], s) for s in (good, good, good, bad)]
    config = PseudoLabelConfig(propagate_weight=1.0)
    results = propagate_labels([cloud] * 4, [np.eye(4)] * 4, evidence, config)
    assert [int(labels[0]) for labels, _ in results] == [0, 0, 0, 0]
    # own evidence plus the voxel's mean, (0.4 + 0.775) of a weight of 2
    assert results[3][1] == pytest.approx([(0.4 + 0.775) / 2])


def test_too_little_evidence_is_not_carried() -> None:
    cloud = np.array([[5.05, 0.05, 0.05]])
    seen = evidence_of([0], [[0.9, 0.1]])
    unseen = Evidence(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 2), np.float32))
    config = PseudoLabelConfig(propagate_min_weight=2.0)
    results = propagate_labels([cloud] * 2, [np.eye(4)] * 2, [seen, unseen], config)
    assert results[1][0].tolist() == [IGNORE]
    none_seen = propagate_labels([cloud] * 2, [np.eye(4)] * 2, [unseen, unseen], config)
    assert [labels.tolist() for labels, _ in none_seen] == [[IGNORE], [IGNORE]]


def test_what_moves_neither_gives_nor_takes_labels() -> None:
    cloud = np.array([[5.05, 0.05, 0.05]])
    seen = evidence_of([0], [[0.9, 0.1]])
    unseen = Evidence(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 2), np.float32))
    config = PseudoLabelConfig(propagate_min_weight=1.0)
    clouds, poses, evidence = [cloud] * 3, [np.eye(4)] * 3, [seen, unseen, unseen]
    still, moves = np.array([False]), np.array([True])

    def labeled(*moving: np.ndarray) -> list[bool]:
        shares = propagated_shares(clouds, poses, evidence, config, moving)
        return [bool(s.any()) for s in shares]

    assert labeled(still, still, still) == [True, True, True]
    assert labeled(moves, still, still) == [True, False, False]  # it keeps its own
    assert labeled(still, moves, still) == [True, False, True]


def test_labels_are_carried_in_utm_coordinates_too() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(-20, 20, (500, 3))
    clouds, near, far = [], [], []
    for i in range(3):
        pose = np.eye(4)
        pose[:3, 3] = [0.4 * i, 0.0, 0.0]
        clouds.append((places - pose[:3, 3]).astype(np.float32))
        near.append(pose)
        far.append(pose.copy())
        far[-1][:3, 3] += [500_000.0, 5_400_000.0, 300.0]
    chances = rng.dirichlet(np.ones(2), 500).astype(np.float32)
    unseen = Evidence(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 2), np.float32))
    evidence = [evidence_of(list(range(500)), chances.tolist()), unseen, unseen]
    config = PseudoLabelConfig(propagate_voxel_m=0.25, propagate_min_weight=1)
    expected = propagate_labels(clouds, near, evidence, config)
    assert (expected[2][0] != IGNORE).mean() > 0.9
    for (labels, confidence), (known, sure) in zip(
        propagate_labels(clouds, far, evidence, config), expected
    ):
        np.testing.assert_array_equal(labels, known)
        np.testing.assert_allclose(confidence, sure, atol=1e-6)
