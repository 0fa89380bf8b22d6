# SPDX-License-Identifier: Apache-2.0
"""Corrected labels override those of teachers in their sweep, and by pose around it."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.distill.consolidation import ConsolidationConfig
from pcseg_core.distill.corrected import CorrectedSweeps
from pcseg_core.distill.lidar_teacher import LidarTargets
from pcseg_core.distill.observation import Observation
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.geometry import from_euler, invert, transform
from pcseg_core.labels import IGNORE, LabelSpace

STREET = LabelSpace.load("street")
ROAD, SIDEWALK, TERRAIN = 0, 1, 4
CONFIG = PseudoLabelConfig(propagate_voxel_m=0.5)


def observation(index: int, world: np.ndarray, posed: bool = True) -> Observation:
    """A sweep of points (N, 3) of the world, from 2 m further on for each sweep."""
    pose = from_euler(0, 0, 0.05 * index, (2.0 * index, 0, 1.7))
    xyz = transform(invert(pose), world).astype(np.float32)
    pose = pose if posed else np.full((4, 4), np.nan)
    return Observation(f"{index}", "a", index, xyz, xyz, np.zeros(len(xyz)), pose)


@pytest.fixture
def ground() -> np.ndarray:
    """Points in the middle of cells of 0.5 m of a flat ground, 6 to 16 m ahead."""
    x, y = np.mgrid[12:32, -10:10]
    return np.stack([x.ravel() / 2 + 0.25, y.ravel() / 2 + 0.25, np.full(x.size, 0.25)], axis=1)


def teacher(count: int, confidence: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Sidewalk everywhere, except for some unlabeled points."""
    label = np.full(count, SIDEWALK, np.int16)
    label[::7] = IGNORE
    return label, np.where(label == IGNORE, 0, confidence).astype(np.float32)


def test_corrections_hold_in_their_sweep_and_are_carried(ground: np.ndarray) -> None:
    sweeps = [observation(index, ground) for index in range(3)]
    given = np.where(ground[:, 1] > 0, ROAD, IGNORE)
    corrected = CorrectedSweeps({("a", 1): given}, weight=20)
    labels = [teacher(len(ground)) for _ in sweeps]
    found = corrected.override(sweeps, labels, CONFIG)
    left = ground[:, 1] > 0
    label, confidence = found[1]
    assert (label[left] == ROAD).all() and (confidence[left] == 1).all()
    for label, _ in found:  # where nothing was corrected, all stays
        np.testing.assert_array_equal(label[~left], labels[0][0][~left])
    for label, confidence in (found[0], found[2]):
        assert (label[left] == ROAD).all()
        assert (confidence[left] > 0.9).all() and (confidence[left] < 1).all()
    conflicts = corrected.conflicts
    assert conflicts.sweeps == 1 and conflicts.points == left.sum()
    assert conflicts.pairs == {(SIDEWALK, ROAD): (left & (labels[0][0] == SIDEWALK)).sum()}
    assert conflicts.carried == 2 * left.sum() and conflicts.shared == 0
    first, second, third = conflicts.lines(STREET)
    assert "(100.0 %)" in first and "sidewalk is road" in second and "400 points" in third


def test_the_weight_decides_against_a_sure_teacher(ground: np.ndarray) -> None:
    sweeps = [observation(index, ground) for index in range(2)]
    given = np.full(len(ground), ROAD)
    sure = [teacher(len(ground), confidence=1.0)] * 2
    for weight, expected in ((0.5, SIDEWALK), (2.0, ROAD)):
        label, _ = CorrectedSweeps({("a", 0): given}, weight).override(sweeps, sure, CONFIG)[1]
        known = sure[0][0] != IGNORE
        assert (label[known] == expected).all()
        assert (label[~known] == ROAD).all()
    none = CorrectedSweeps({("a", 0): given}, 0.0).override(sweeps, sure, CONFIG)[1]
    np.testing.assert_array_equal(none[0], sure[0][0])


@pytest.mark.parametrize("reason", ["no poses", "no voxels", "moving"])
def test_nothing_is_carried_without_poses_or_from_what_moves(
    ground: np.ndarray, reason: str
) -> None:
    sweeps = [observation(index, ground, posed=reason != "no poses") for index in range(3)]
    config = CONFIG
    if reason == "no voxels":
        config = PseudoLabelConfig(propagate_voxel_m=0)
    if reason == "moving":  # the sweep after sees through the place of the box
        wall = np.stack([np.full(400, 30.0), *np.random.default_rng(0).uniform(-9, 9, (2, 400))], 1)
        box = np.random.default_rng(1).uniform((10, -0.4, 1), (10.4, 0.4, 1.4), (50, 3))
        sweeps = [observation(0, np.vstack([box, wall])), *[observation(k, wall) for k in (1, 2)]]
        sweeps.append(observation(3, np.vstack([box, wall])))
        config = PseudoLabelConfig(propagate_voxel_m=0.5, consolidation=ConsolidationConfig())
    given = np.full(len(sweeps[0].xyz), ROAD)
    given[50:] = IGNORE if reason == "moving" else ROAD
    labels = [teacher(len(sweep.xyz)) for sweep in sweeps]
    found = CorrectedSweeps({("a", 0): given}, 20.0).override(sweeps, labels, config)
    assert (found[0][0][:50] == ROAD).all()
    for own, other in zip(labels[1:], found[1:]):
        np.testing.assert_array_equal(own[0], other[0])


def test_a_3d_teacher_is_not_asked_about_corrected_points(ground: np.ndarray) -> None:
    given = np.where(ground[:, 1] > 0, ROAD, IGNORE)
    corrected = CorrectedSweeps({("a", 1): given}, 20.0)
    targets = LidarTargets(np.arange(len(ground), dtype=np.int32))
    other, own = (corrected.without_targets(observation(k, ground), targets) for k in (0, 1))
    assert other is targets
    np.testing.assert_array_equal(own.voxel == IGNORE, ground[:, 1] > 0)


def test_contradictions_of_corrected_sweeps_are_counted(ground: np.ndarray) -> None:
    sweeps = [observation(index, ground) for index in range(3)]
    near = ground[:, 0] < 8
    given = {("a", 0): np.full(len(ground), ROAD), ("a", 2): np.where(near, TERRAIN, ROAD)}
    corrected = CorrectedSweeps(given, 20.0)
    found = corrected.override(sweeps, [teacher(len(ground))] * 3, CONFIG)
    assert (found[2][0][near] == TERRAIN).all() and (found[0][0] == ROAD).all()
    assert corrected.conflicts.shared == len(ground)
    assert corrected.conflicts.contradictory == near.sum()
    assert "contradict each other in 80 of the 400 voxels" in corrected.conflicts.lines(STREET)[-1]
