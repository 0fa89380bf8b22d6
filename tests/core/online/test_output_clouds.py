# SPDX-License-Identifier: Apache-2.0
"""Layouts of labeled clouds, class maps, and the points of named clouds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud, encode_cloud, structured
from pcseg_core.errors import InputError
from pcseg_core.labels import WIRE_UNLABELED, LabelSpace
from pcseg_core.online.class_maps import AUTOWARE_CLASSES, autoware_ids
from pcseg_core.online.output_clouds import (
    ExtraFields,
    append_labels,
    check_clouds,
    choose_points,
    entropy,
    minimal_cloud,
)
from pcseg_core.online.pipeline import LabeledSweep

SPACE = LabelSpace.load("street")


@dataclass
class Rule:
    classes: tuple[str, ...] = ()
    min_confidence: tuple[float, ...] = ()
    max_range_m: float = 0.0


def labeled(labels: list[int], confidence: list[float] | None = None) -> LabeledSweep:
    """Points at x = 1, 2, 3, ...; rows of probabilities with the confidence for the label."""
    count = len(labels)
    sure = np.array([0.9] * count if confidence is None else confidence, np.float32)
    xyz = np.zeros((count, 3), np.float32)
    xyz[:, 0] = np.arange(1, count + 1)
    likely = np.repeat(((1 - sure) / 7)[:, None], 8, axis=1).astype(np.float32)
    known = np.flatnonzero(np.array(labels) >= 0)
    likely[known, np.array(labels)[known]] = sure[known]
    likely[np.array(labels) < 0] = 0
    found = np.array(labels, np.int32)
    return LabeledSweep(PointCloud(xyz), found, sure, SPACE, probabilities=likely)


def test_the_entropy_is_relative_to_that_of_equal_probabilities() -> None:
    rows = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0] * 4], np.float32)
    np.testing.assert_allclose(entropy(rows, 4), [0, 1, 0.5, np.nan], atol=1e-6)
    assert np.isnan(entropy(None, 3)).tolist() == [True] * 3
    assert entropy(np.ones((2, 1), np.float32), 2).tolist() == [0, 0]


def test_fields_on_request_follow_the_label() -> None:
    sweep = labeled([0, 5, -1])
    msg = encode_cloud({axis: sweep.cloud.xyz[:, i] for i, axis in enumerate("xyz")})
    extra = ExtraFields(entropy=True, probabilities=("road", "vehicle"))
    for encode in (append_labels, minimal_cloud):
        cloud = structured(encode(msg, sweep, extra)).ravel()
        names = ["x", "y", "z", "label", "confidence", "entropy", "p_road", "p_vehicle"]
        assert list(cloud.dtype.names) == names
        assert cloud["label"].tolist() == [0, 5, WIRE_UNLABELED]
        np.testing.assert_allclose(cloud["p_road"], [0.9, 0.1 / 7, 0], rtol=1e-6)
        np.testing.assert_allclose(cloud["p_vehicle"], [0.1 / 7, 0.9, 0], rtol=1e-6)
        assert np.isnan(cloud["entropy"]).tolist() == [False, False, True]
    sweep.probabilities = None  # as a camera teacher gives it
    cloud = structured(append_labels(msg, sweep, extra)).ravel()
    assert np.isnan(cloud["p_road"]).all() and np.isnan(cloud["entropy"]).all()


def test_the_map_of_the_package_covers_the_street_classes() -> None:
    names = [*AUTOWARE_CLASSES, "INVALID"]
    ids = np.minimum(autoware_ids("", SPACE), len(AUTOWARE_CLASSES))
    found = dict(zip([*SPACE.names, "none"], (names[i] for i in ids)))
    flat, built = "FLAT_SURFACE", "STRUCTURE"
    assert found == {
        "road": flat,
        "sidewalk": flat,
        "terrain": flat,
        "structure": built,
        "pole": built,
        "vegetation": "VEGETATION",
        "vehicle": "CAR",
        "person": "PEDESTRIAN",
        "none": "INVALID",
    }


@pytest.mark.parametrize(
    "change, words",
    [
        ("unicorn: CAR", "unknown class 'unicorn'; expected one of road, sidewalk"),
        ("road: STREET", "'road' is 'STREET'; expected one of CAR, TRUCK"),
        ("road: 8", "'road' is 8; expected one of CAR"),
    ],
)
def test_wrong_class_maps_are_refused(tmp_path: Path, change: str, words: str) -> None:
    given = dict.fromkeys(SPACE.names, "INVALID")
    name, _, value = change.partition(": ")
    lines = [f"{k}: {v}" for k, v in {**given, name: value}.items()]
    (tmp_path / "map.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=words) as caught:
        autoware_ids(tmp_path / "map.yaml", SPACE)
    assert "map.yaml" in str(caught.value)


def test_a_class_map_must_name_every_class_of_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("road: FLAT_SURFACE")
    with pytest.raises(InputError, match="'sidewalk' of the checkpoint is missing"):
        autoware_ids(tmp_path / "map.yaml", SPACE)
    kitti = LabelSpace.load("semantic_kitti")
    with pytest.raises(InputError, match=r"unknown class .*; expected one of car, bicycle"):
        autoware_ids("", kitti)


GROUND = ("road", "sidewalk", "terrain")


@pytest.mark.parametrize(
    "rules, expected",
    [
        ({"a": Rule()}, [0, 1, 2, 3]),
        ({"a": Rule(min_confidence=(0.6,))}, [1, 2]),
        ({"a": Rule(("vehicle",))}, [1, 2]),
        ({"a": Rule(("vehicle", "person"), (0.85, 0.2))}, [2, 3]),
        ({"b": Rule(GROUND), "a": Rule(("*",))}, [1, 2, 3]),
        ({"b": Rule(GROUND), "a": Rule(("*", "unlabeled"))}, [1, 2, 3, 5]),
        ({"a": Rule(("*",)), "b": Rule(GROUND)}, [0, 1, 2, 3]),
        ({"b": Rule(GROUND), "a": Rule(("person", "*"), (0.5, 0.85))}, [2]),
        ({"a": Rule(("*", "unlabeled"), max_range_m=2.5)}, [0, 1]),
    ],
)
def test_points_of_a_cloud(rules: dict[str, Rule], expected: list[int]) -> None:
    sweep = labeled([0, 5, 5, 6, -1, -1], [0.5, 0.8, 0.9, 0.3, 0.0, 0.0])
    sweep.cloud.xyz[4] = np.nan  # no return
    assert np.flatnonzero(choose_points(rules, "a", sweep)).tolist() == expected


def test_ground_and_the_rest_part_the_labeled_points() -> None:
    rules = {"ground": Rule(GROUND), "nonground": Rule(("*",)), "obstacles": Rule(("vehicle",))}
    sweep = labeled([*range(8), -1] * 3)
    ground, rest, _ = (choose_points(rules, name, sweep) for name in rules)
    assert (ground ^ rest).tolist() == (sweep.labels >= 0).tolist()
    assert not (ground & rest).any()


def test_a_cloud_with_an_unknown_class_is_refused() -> None:
    with pytest.raises(InputError, match=r"clouds\.a\.classes: unknown class 'unicorn'; .* pole"):
        check_clouds({"a": Rule(("*", "unlabeled", "unicorn"))}, SPACE)
