# SPDX-License-Identifier: Apache-2.0
"""Bayes fusion of class evidence over a scene: exact values, motion, large coordinates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.distill.consolidation import (
    ConsolidationConfig,
    NoiseEstimate,
    consolidate,
    likeliest,
    moving_points,
    probabilities_alone,
)
from pcseg_core.distill.evidence import Evidence
from pcseg_core.distill.labeling import label_scene
from pcseg_core.distill.observation import Observation
from pcseg_core.distill.pseudo_labels import PseudoLabelConfig
from pcseg_core.labels import IGNORE, LabelSpace

CONFIG = ConsolidationConfig(voxel_m=0.5, observation_noise=0.2)
HERE = np.eye(4)


def evidence_of(rows: dict[int, list[float]], weight: float = 1.0) -> Evidence:
    """Evidence of some points of a sweep, by their position."""
    index = np.array(list(rows), np.int32)
    sums = np.array(list(rows.values()), np.float32).reshape(len(rows), -1) * weight
    return Evidence(index, np.full(len(rows), weight, np.float32), sums)


def pose(x: float, y: float = 0.0, yaw_deg: float = 0.0) -> np.ndarray:
    c, s = np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg))
    return np.array([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def wall(x: float, half: float = 12.0, step: float = 0.1) -> np.ndarray:
    """Points of a wall across the x axis."""
    y, z = np.meshgrid(np.arange(-half, half, step), np.arange(-1.5, 3, step))
    return np.stack([np.full(y.size, x), y.ravel(), z.ravel()], 1).astype(np.float32)


def test_two_observations_multiply_and_are_flattened_by_their_noise() -> None:
    cloud = np.array([[5.0, 0.1, 0.1]], np.float32)
    found = consolidate(
        [cloud] * 2,
        [HERE] * 2,
        [evidence_of({0: [0.9, 0.1]}), evidence_of({0: [0.6, 0.4]})],
        CONFIG,
    )
    first, second = (0.8 * 0.9 + 0.1) * (0.8 * 0.6 + 0.1), (0.8 * 0.1 + 0.1) * (0.8 * 0.4 + 0.1)
    expected = [first / (first + second), second / (first + second)]
    assert np.allclose(found[0], [expected], atol=1e-6) and np.array_equal(found[0], found[1])


def test_points_of_one_voxel_in_one_sweep_are_one_observation() -> None:
    crowd = np.tile(np.array([[5.1, 0.1, 0.1]], np.float32), (50, 1))
    evidence = evidence_of({i: [0.7, 0.3] for i in range(50)})
    found = consolidate([crowd], [HERE], [evidence], CONFIG)
    assert np.allclose(found[0], [[0.8 * 0.7 + 0.1, 0.8 * 0.3 + 0.1]] * 50, atol=1e-6)


def test_observations_of_little_weight_count_less() -> None:
    cloud = np.array([[5.0, 0.1, 0.1]], np.float32)
    faint = consolidate([cloud], [HERE], [evidence_of({0: [0.9, 0.1]}, 0.5)], CONFIG)[0][0, 0]
    odds = np.sqrt((0.8 * 0.9 + 0.1) / (0.8 * 0.1 + 0.1))
    assert faint == pytest.approx(odds / (1 + odds), abs=1e-6)


def test_what_a_camera_saw_once_is_known_in_all_sweeps_through_their_poses() -> None:
    world = np.array([[8.2, 1.2, 0.2], [-6.2, 3.2, 0.2]])
    poses = [pose(4e6, 5e6), pose(4e6 + 3, 5e6 - 1, 90.0)]  # meters of a map projection
    clouds = [
        np.array([(np.linalg.inv(p) @ [x + 4e6, y + 5e6, z, 1])[:3] for x, y, z in world])
        for p in poses
    ]
    found = consolidate(
        clouds,
        poses,
        [
            evidence_of({0: [0.0, 1.0, 0.0]}),
            Evidence(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 3), np.float32)),
        ],
        CONFIG,
    )
    assert np.allclose(found[0], found[1]) and found[1][0].argmax() == 1
    assert found[1][0].sum() == pytest.approx(1) and not found[1][1].any()


def test_a_place_that_another_sweep_sees_through_holds_something_that_moves() -> None:
    behind = wall(20)
    car = np.array([[10.0, y, z] for y in (-0.5, 0, 0.5) for z in (0, 0.5)], np.float32)
    gone = np.array([[10.0, y, z] for y in (5.0, 5.5) for z in (0, 0.5)], np.float32)
    clouds = [np.concatenate([behind, car]), np.concatenate([behind, gone])]
    first, second = moving_points(clouds, [HERE, HERE], CONFIG)
    assert first[len(behind) :].all() and second[len(behind) :].all()
    assert not first[: len(behind)].any() and not second[: len(behind)].any()


def test_things_that_stand_still_are_kept_whatever_the_view() -> None:
    behind = wall(20)
    z = np.arange(-1.5, 3, 0.05)
    pole = np.stack([np.full(len(z), 9.0), np.full(len(z), 1.0), z], 1)
    here = np.concatenate([behind, pole])
    there = np.linalg.inv(pose(1.0, 0.4, 5.0))
    moved = np.concatenate(
        [behind, pole + np.array([0, 0, 0.025])]
    )  # other points of the same pole
    moved = moved @ there[:3, :3].T + there[:3, 3]
    still = moving_points([here, moved], [HERE, pose(1.0, 0.4, 5.0)], CONFIG)
    assert not still[0].any() and not still[1].any()


def test_nothing_is_seen_through_where_nothing_came_back_or_something_is_nearer() -> None:
    car = np.array([[10.0, 0.0, 0.0]], np.float32)
    sky = np.array([[-10.0, 0.0, 0.0]], np.float32)  # only behind the sensor
    hidden = np.array([[5.0, 0.0, 0.0]], np.float32)
    for other in (sky, hidden):
        assert not moving_points([car, other], [HERE, HERE], CONFIG)[0].any()


def test_moving_things_neither_give_nor_take_labels() -> None:
    behind = wall(20)
    place = np.array([[10.0, 0.0, 0.0]], np.float32)
    car, later = np.concatenate([behind, place]), np.concatenate([behind, place])
    empty = behind
    evidence = [
        evidence_of({len(behind): [0.9, 0.1], 0: [0.5, 0.5]}),
        evidence_of({0: [0.5, 0.5]}),
        evidence_of({len(behind): [0.2, 0.8], 0: [0.5, 0.5]}),
    ]
    found = consolidate([car, empty, later], [HERE] * 3, evidence, CONFIG)
    assert found[0][-1] == pytest.approx([0.82, 0.18], abs=1e-6)
    assert found[2][-1] == pytest.approx([0.26, 0.74], abs=1e-6)
    # With the empty sweep out of reach, both looks are taken for one thing.
    blind = CONFIG.model_copy(update={"margin_m": 50.0})
    joined = consolidate([car, empty, later], [HERE] * 3, evidence, blind)
    assert np.allclose(joined[0][-1], joined[2][-1])


def test_the_likeliest_class_and_none_for_the_unseen() -> None:
    labels, confidence = likeliest(np.array([[0.2, 0.8], [0, 0], [1, 0]], np.float32))
    assert labels.tolist() == [1, IGNORE, 0] and confidence == pytest.approx([0.8, 0, 1])


def test_long_drives_are_fused_in_parts() -> None:
    cloud = np.array([[5.0, 0.1, 0.1]], np.float32)
    evidence = [evidence_of({0: [0.9, 0.1]})] * 2 + [evidence_of({0: [0.1, 0.9]})] * 2
    short = CONFIG.model_copy(update={"window": 2})
    found = consolidate([cloud] * 4, [HERE] * 4, evidence, short)
    assert [f[0].argmax() for f in found] == [0, 0, 1, 1]
    assert consolidate([cloud] * 4, [HERE] * 4, evidence, CONFIG)[0][0] == pytest.approx([0.5, 0.5])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_observations_commute(sweeps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    clouds = [rng.uniform(-4, 4, (30, 3)).astype(np.float32) for _ in range(sweeps)]
    evidence = []
    for _ in clouds:
        index = np.sort(rng.choice(30, 20, replace=False)).astype(np.int32)
        weights = rng.uniform(0.05, 2, 20).astype(np.float32)
        sums = rng.dirichlet(np.ones(3), 20).astype(np.float32) * weights[:, None]
        evidence.append(Evidence(index, weights, sums))

    still = CONFIG.model_copy(update={"voxel_m": 2.0, "margin_m": 99.0})
    found = consolidate(clouds, [HERE] * sweeps, evidence, still)
    order = rng.permutation(sweeps)
    again = consolidate(
        [clouds[i] for i in order], [HERE] * sweeps, [evidence[i] for i in order], still
    )
    for place, i in enumerate(order):
        assert np.allclose(again[place], found[i], atol=1e-5)
    sums = np.concatenate(found).sum(1)
    assert np.all(np.isclose(sums, 1, atol=1e-5) | (sums == 0))


def test_distillation_consolidates_where_it_is_asked_to() -> None:
    cloud = np.array([[5.0, 0.1, 0.1], [-5.0, 0.1, 0.1]], np.float32)
    classes = len(LabelSpace.load("street"))

    def seen(index: int, first: float) -> Observation:
        row = [first, 1 - first, *[0.0] * (classes - 2)]
        ones, evidence = np.ones(2, np.float32), evidence_of({0: row})
        return Observation("a", "s", index, cloud, cloud, ones, HERE, evidence=evidence)

    config = PseudoLabelConfig(consolidation=CONFIG)
    found = label_scene([seen(0, 0.9), seen(1, 0.6)], config)
    assert [labels.tolist() for labels, _ in found] == [[0, IGNORE]] * 2
    noise = 0.2 / classes
    odds = [(0.8 * a + noise) * (0.8 * b + noise) for a, b in ((0.9, 0.6), (0.1, 0.4))]
    odds += [noise**2] * (classes - 2)
    assert found[0][1] == pytest.approx([odds[0] / sum(odds), 0])


def test_sweeps_from_one_place_are_one_look() -> None:
    cloud = np.array([[5.0, 0.1, 0.1]], np.float32)
    evidence = [evidence_of({0: [0.9, 0.1]})] * 3
    looks = CONFIG.model_copy(update={"look_deg": 15.0})
    once = consolidate([cloud], [HERE], evidence[:1], CONFIG)[0]
    assert np.allclose(consolidate([cloud] * 3, [HERE] * 3, evidence, looks)[0], once)
    # The same voxel from the side is another look.
    side = np.linalg.inv(pose(5.0, -5.0))
    turned = (side @ np.array([5.0, 0.1, 0.1, 1]))[:3][None].astype(np.float32)
    both = consolidate([cloud, turned], [HERE, pose(5.0, -5.0)], evidence[:2], looks)[0]
    assert both[0, 0] > once[0, 0] + 0.05


def test_looks_that_share_errors_add_up_more_slowly() -> None:
    cloud = np.array([[5.0, 0.1, 0.1]], np.float32)
    evidence = [evidence_of({0: [0.9, 0.1]})] * 4
    damped = CONFIG.model_copy(update={"look_exponent": 0.5})
    found = consolidate([cloud] * 4, [HERE] * 4, evidence, damped)[0][0]
    odds = ((0.8 * 0.9 + 0.1) / (0.8 * 0.1 + 0.1)) ** 2
    assert found == pytest.approx([odds / (1 + odds), 1 / (1 + odds)], abs=1e-6)


def test_a_sweeps_own_look_may_count_more_than_those_of_others() -> None:
    cloud = np.array([[5.0, 0.1, 0.1]], np.float32)
    evidence = [evidence_of({0: [0.8, 0.2]}), evidence_of({0: [0.1, 0.9]})]
    own = CONFIG.model_copy(update={"own_weight": 3.0})
    found = consolidate([cloud] * 2, [HERE] * 2, evidence, own)
    assert [f[0].argmax() for f in found] == [0, 1]
    assert [f[0].argmax() for f in consolidate([cloud] * 2, [HERE] * 2, evidence, CONFIG)] == [1, 1]


def test_the_confusion_of_looks_is_found_without_truth() -> None:
    rng = np.random.default_rng(0)
    true = np.repeat([0, 1, 2], 400)
    confusion = np.array([[0.95, 0.03, 0.02], [0.4, 0.55, 0.05], [0.05, 0.05, 0.9]])
    cloud = np.stack([np.arange(len(true)) + 0.25, 0 * true, 0 * true], 1).astype(np.float32)
    evidence = []
    for _ in range(6):
        shown = np.array([rng.choice(3, p=confusion[k]) for k in true])
        evidence.append(evidence_of(dict(enumerate((0.97 * np.eye(3)[shown] + 0.01).tolist()))))
    config = CONFIG.model_copy(update={"estimate_noise": True, "noise_prior": 20.0})
    scene = [cloud] * 6, [HERE] * 6, evidence
    estimate = NoiseEstimate(config)
    assert estimate.estimate() is None
    estimate.add(*scene)
    found = estimate.estimate()
    assert found is not None and np.abs(found[:, :3] - confusion).max() < 0.08
    right = consolidate(*scene, config, found)[0].argmax(1) == true
    usual = consolidate(*scene, config)[0].argmax(1) == true
    assert right[true == 1].mean() > usual[true == 1].mean() + 0.1


def test_a_single_sweep_uses_the_confusion_of_other_scenes() -> None:
    confusion = np.array([[0.9, 0.1, 0], [0.4, 0.6, 0]])
    found = probabilities_alone(evidence_of({1: [1.0, 0.0]}), 2, confusion)
    assert found[0].tolist() == [0, 0]
    assert found[1] == pytest.approx([0.9 / 1.3, 0.4 / 1.3], abs=1e-6)


def test_carried_labels_are_less_sure_than_own_ones() -> None:
    cloud = np.array([[5.0, 0.1, 0.1]], np.float32)
    row, none = [0.9, 0.1, *[0.0] * 6], Evidence(*(np.zeros((0, *s)) for s in ((), (), (8,))))
    none.index = none.index.astype(np.int32)
    sweeps = [
        Observation("a", "s", i, cloud, cloud, np.ones(1, np.float32), HERE, evidence=e)
        for i, e in enumerate((evidence_of({0: row}), none))
    ]
    config = PseudoLabelConfig(propagate_min_weight=1, carried_confidence=0.5)
    (_, own), (label, carried) = label_scene(sweeps, config)
    assert own == pytest.approx([0.9]) and carried == pytest.approx([0.45]) and label[0] == 0
