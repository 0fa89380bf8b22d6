# SPDX-License-Identifier: Apache-2.0
"""Geometry of sweeps, and what it says about classes."""

from __future__ import annotations

import numpy as np
import pytest

from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.labeling import label_scene
from pcseg_core.distill.observation import Observation
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.distill.shape import Shape, shape_of
from pcseg_core.distill.shape_model import ShapeConfig, ShapeModel
from pcseg_core.labels import LabelSpace

ROAD, WALL, TREE = range(3)


@pytest.fixture(scope="module")
def yard() -> tuple[np.ndarray, np.ndarray]:
    """Level ground 1.7 m below the sensor, a wall and a ragged tree; classes of the points."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(3, 20, 0.3), np.arange(-10, 10, 0.3))
    ground = np.stack([x.ravel(), y.ravel(), rng.normal(-1.7, 0.01, x.size)], 1)
    y, z = np.meshgrid(np.arange(-9, -2, 0.2), np.arange(-1.6, 2.5, 0.2))
    wall = np.stack([rng.normal(12, 0.01, y.size), y.ravel(), z.ravel()], 1)
    tree = rng.uniform([9, 3, 0], [13, 7, 3], (1500, 3))
    parts = [ground, wall, tree]
    classes = np.repeat([ROAD, WALL, TREE], [len(p) for p in parts])
    return np.concatenate(parts).astype(np.float32), classes


@pytest.fixture(scope="module")
def shape(yard: tuple[np.ndarray, np.ndarray]) -> Shape:
    return shape_of(yard[0], np.where(yard[1] == TREE, 0.6, 0.2), "ransac")


def test_height_inclination_and_roughness_of_surfaces(
    yard: tuple[np.ndarray, np.ndarray], shape: Shape
) -> None:
    xyz, classes = yard
    high = xyz[:, 2] > -0.7
    assert shape.ground[classes == ROAD].all() and not shape.ground[high].any()
    assert np.abs(shape.height - xyz[:, 2] - 1.7).max() < 0.15
    assert np.median(shape.upright[classes == ROAD]) < 0.1
    assert np.median(shape.upright[classes == WALL]) > 0.95
    spread = [np.median(shape.spread[classes == c]) for c in (ROAD, WALL, TREE)]
    assert max(spread[:2]) < 0.03 < 0.1 < spread[2]
    below = (classes == ROAD) & (np.abs(xyz[:, 1]) < 1)
    expected = 1.7 / shape.range[below]
    assert np.median(np.abs(shape.incidence[below] - expected)) < 0.03


def test_without_ground_heights_are_unknown() -> None:
    shape = shape_of(np.array([[1.0, 0, 5], [1, 1, 9]], np.float32), np.ones(2), "ransac")
    assert np.isnan(shape.height).all() and not shape.ground.any()
    assert shape_of(np.zeros((0, 3), np.float32), np.zeros(0)).height.shape == (0,)


def fitted(
    yard: tuple[np.ndarray, np.ndarray], shape: Shape, config: ShapeConfig, wrong: float = 0.0
) -> ShapeModel:
    """A model counted at labels, a share of which is wrong at random."""
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(len(yard[1])) < wrong, rng.integers(3, size=len(yard[1])), yard[1])
    model = ShapeModel(np.array([True, False, False]), config)
    model.add(shape, labels, np.ones(len(labels)))
    return model


def test_shapes_tell_classes_apart_although_labels_are_noisy(
    yard: tuple[np.ndarray, np.ndarray], shape: Shape
) -> None:
    logs = fitted(yard, shape, ShapeConfig(weight=1, prior=20), wrong=0.3).logs(shape)
    right = logs.argmax(1) == yard[1]
    assert [right[yard[1] == c].mean() > 0.85 for c in (ROAD, WALL, TREE)] == [True] * 3


def test_what_lies_is_no_structure_and_what_stands_is_no_road(
    yard: tuple[np.ndarray, np.ndarray], shape: Shape
) -> None:
    config = ShapeConfig(weight=0, impossible=0.1)
    logs = fitted(yard, shape, config).logs(shape)
    lying, high = yard[1] == ROAD, (yard[1] == WALL) & (shape.height > 0.6) & (shape.upright > 0.9)
    assert np.allclose(logs[lying], [0, np.log(0.1), np.log(0.1)])
    assert high.any() and np.allclose(logs[high], [np.log(0.1), 0, 0])


def test_classes_that_were_never_seen_gain_and_lose_nothing(
    yard: tuple[np.ndarray, np.ndarray], shape: Shape
) -> None:
    model = ShapeModel(np.zeros(3, bool), ShapeConfig(weight=1))
    assert np.array_equal(model.logs(shape), np.zeros((len(yard[1]), 3)))
    model.add(shape, yard[1], np.where(yard[1] == TREE, 0.0, 1.0))
    assert np.allclose(model.logs(shape)[:, TREE], 0)
    assert np.abs(model.logs(shape)[:, ROAD]).max() > 1


def test_labels_of_single_sweeps_are_corrected_by_shapes(
    yard: tuple[np.ndarray, np.ndarray],
) -> None:
    space = LabelSpace.load("street")
    road, wall = space.index("road"), space.index("structure")
    xyz, classes = yard
    keep = np.flatnonzero(classes != TREE)
    xyz, true = xyz[keep], np.where(classes[keep] == ROAD, road, wall)
    chances = np.full((len(xyz), len(space)), 0.01, np.float32)
    chances[np.arange(len(xyz)), true] = 0.9
    blurred = np.arange(0, len(xyz), 5)  # the pixels of these show the other class
    other = road + wall - true
    chances[blurred, true[blurred]], chances[blurred, other[blurred]] = 0.3, 0.6
    index = np.arange(len(xyz), dtype=np.int32)
    ones = np.ones(len(xyz), np.float32)
    unposed = np.full((4, 4), np.nan)
    seen = Evidence(index, ones, chances)
    sweep = Observation("a", "s", 0, xyz, xyz, 0.2 * ones, unposed, evidence=seen)
    shape = {"weight": 1.0, "ground": "ransac", "prior": 20.0}
    far = PseudoLabelConfig(shape=shape, full_range_m=5)
    for config, right in ((PseudoLabelConfig(), 0.8), (PseudoLabelConfig(shape=shape), 0.97)):
        ((label, _),) = label_scene([sweep], config)
        assert (label == true).mean() == pytest.approx(right, abs=0.03)
    ((again, _),) = label_scene([sweep], far)
    assert np.array_equal(again, label)
