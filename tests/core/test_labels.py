# SPDX-License-Identifier: Apache-2.0
"""Label spaces: the official tables, groupings checked by name, user files and their mistakes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pcseg_core.errors import InputError
from pcseg_core.labels import (
    IGNORE,
    WIRE_UNLABELED,
    LabelSpace,
    available,
    from_wire,
    grouping,
    regroup,
    to_wire,
)

KITTI = LabelSpace.load("semantic_kitti")
NUSCENES = LabelSpace.load("nuscenes16")
CITYSCAPES = LabelSpace.load("cityscapes")
STREET = LabelSpace.load("street")
MERGED = LabelSpace.load("street_merged_ground")


def named(src: LabelSpace, dst: LabelSpace) -> dict[str, str | None]:
    """A grouping as names, None for what is ignored."""
    table = grouping(src, dst)
    return {s: dst.names[d] if d >= 0 else None for s, d in zip(src.names, table)}


def test_spaces_that_come_with_the_package() -> None:
    sizes = {name: len(LabelSpace.load(name)) for name in available()}
    assert (
        sizes.items()
        >= {
            "semantic_kitti": 19,
            "nuscenes16": 16,
            "cityscapes": 19,
            "street": 8,
            "street_merged_ground": 6,
        }.items()
    )


def test_ids_are_positions_and_colors_differ() -> None:
    for name in available():
        space = LabelSpace.load(name)
        assert [c.id for c in space.classes] == list(range(len(space)))
        assert space.palette.shape == (len(space), 3)
        assert space.palette.dtype == np.uint8
        assert len(np.unique(space.palette, axis=0)) == len(space)


def test_street_order() -> None:
    assert STREET.names == (
        "road",
        "sidewalk",
        "structure",
        "vegetation",
        "terrain",
        "vehicle",
        "person",
        "pole",
    )
    assert MERGED.names == ("ground", "structure", "vegetation", "vehicle", "person", "pole")


def test_semantic_kitti_raw_ids_follow_the_official_learning_map() -> None:
    official = {
        0: 0,
        1: 0,
        10: 1,
        11: 2,
        13: 5,
        15: 3,
        16: 5,
        18: 4,
        20: 5,
        30: 6,
        31: 7,
        32: 8,
        40: 9,
        44: 10,
        48: 11,
        49: 12,
        50: 13,
        51: 14,
        52: 0,
        60: 9,
        70: 15,
        71: 16,
        72: 17,
        80: 18,
        81: 19,
        99: 0,
        252: 1,
        253: 7,
        254: 6,
        255: 8,
        256: 5,
        257: 5,
        258: 4,
        259: 5,
    }
    assert KITTI.raw_to_id == {raw: learning - 1 for raw, learning in official.items()}
    assert KITTI.names[8] == "road"
    assert KITTI.classes[8].color == (255, 0, 255)


def test_cityscapes_raw_ids_follow_the_train_ids() -> None:
    train = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert {raw: id_ for raw, id_ in CITYSCAPES.raw_to_id.items() if id_ >= 0} == dict(
        zip(train, range(19))
    )


def test_raw_ids_of_a_label_file() -> None:
    raw = np.array([[40, 252, 0], [52, 7777, 99]], dtype=np.uint32)
    expected = [[KITTI.index("road"), KITTI.index("car"), -1], [-1, -1, -1]]
    np.testing.assert_array_equal(KITTI.from_raw(raw), expected)
    with_instance = raw | (3 << 16)
    assert (KITTI.from_raw(with_instance) == -1).all()  # the caller masks the instance off
    np.testing.assert_array_equal(KITTI.from_raw(with_instance & 0xFFFF), expected)


def test_semantic_kitti_into_street() -> None:
    assert named(KITTI, STREET) == {
        "road": "road",
        "parking": "road",
        "other-ground": "road",
        "sidewalk": "sidewalk",
        "building": "structure",
        "fence": "structure",
        "vegetation": "vegetation",
        "trunk": "vegetation",
        "terrain": "terrain",
        "car": "vehicle",
        "truck": "vehicle",
        "other-vehicle": "vehicle",
        "bicycle": "vehicle",
        "motorcycle": "vehicle",
        "person": "person",
        "bicyclist": "person",
        "motorcyclist": "person",
        "pole": "pole",
        "traffic-sign": "pole",
    }


def test_cityscapes_into_street_ignores_the_sky() -> None:
    names = named(CITYSCAPES, STREET)
    assert names["sky"] is None
    assert [n for n, group in names.items() if group is None] == ["sky"]
    assert names["rider"] == "person"
    assert names["traffic light"] == "pole"


def test_nuscenes_into_street_and_merged_ground() -> None:
    names = named(NUSCENES, STREET)
    ignored = ["traffic_cone", "other_flat"]
    assert sorted(n for n, group in names.items() if group is None) == sorted(ignored)
    assert names["trailer"] == names["construction_vehicle"] == "vehicle"
    assert named(NUSCENES, MERGED)["other_flat"] == "ground"  # its own grouping, not via street


@pytest.mark.parametrize("src", [KITTI, CITYSCAPES, STREET], ids=lambda s: s.name)
def test_merged_ground_is_street_with_three_classes_as_one(src: LabelSpace) -> None:
    merged = {"road": "ground", "sidewalk": "ground", "terrain": "ground"}
    expected = {n: merged.get(g, g) if g else None for n, g in named(src, STREET).items()}
    assert named(src, MERGED) == expected


@pytest.mark.parametrize(
    ("src", "dst"),
    [*itertools.permutations([KITTI, NUSCENES, CITYSCAPES], 2)],
    ids=lambda s: s.name,
)
def test_fine_spaces_into_each_other_agree_with_street(src: LabelSpace, dst: LabelSpace) -> None:
    """Whatever a class maps to means the same in street; manmade and riders are known to differ."""
    into_street, dst_street = named(src, STREET), named(dst, STREET)
    known = {
        "pole",
        "traffic-sign",
        "traffic light",
        "traffic sign",
        "bicyclist",
        "motorcyclist",
        "other-ground",
        "other_flat",
    }
    for name, target in named(src, dst).items():
        if target is not None and name not in known:
            assert into_street[name] == dst_street[target], (name, target)


def test_same_space_is_the_identity_and_unknown_ways_are_errors() -> None:
    np.testing.assert_array_equal(grouping(KITTI, KITTI), np.arange(19))
    with pytest.raises(InputError, match=r"'street' into 'cityscapes'.*street_merged_ground"):
        grouping(STREET, CITYSCAPES)


def test_regroup_labels() -> None:
    table = grouping(KITTI, STREET)
    labels = np.array([[KITTI.index("trunk"), -1], [99, KITTI.index("car")]], dtype=np.int16)
    np.testing.assert_array_equal(regroup(labels, table), [[3, -1], [-1, 5]])


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_wire_and_colors(dtype: type) -> None:
    wire = to_wire(np.array([0, IGNORE, 7], dtype))
    assert wire.dtype == np.uint32
    np.testing.assert_array_equal(wire, [0, WIRE_UNLABELED, 7])
    np.testing.assert_array_equal(from_wire(wire), [0, -1, 7])
    colors = STREET.colorize(np.array([0, -1, 50]), ignored=(9, 9, 9))
    np.testing.assert_array_equal(colors, [[128, 64, 128], [9, 9, 9], [9, 9, 9]])


def test_round_trip_through_json() -> None:
    """Checkpoints keep their label space as JSON."""
    for name in available():
        space = LabelSpace.load(name)
        copy = LabelSpace.from_dict(json.loads(json.dumps(space.to_dict())))
        assert copy == space
        assert copy.raw_to_id == space.raw_to_id
        assert copy.groupings == space.groupings


def own_space(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": "yard",
        "classes": [
            {"name": "crate", "color": [1, 2, 3], "synonyms": ["box"]},
            {"name": "forklift", "color": [4, 5, 6]},
        ],
        "raw_ids": {7: "crate", 9: None},
        "groupings": {"street": {"vehicle": ["forklift"], "structure": ["crate"]}},
    }
    return content | changes


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_own_space_from_a_file_reaches_street_and_beyond(tmp_path: Path) -> None:
    space = LabelSpace.load(write(tmp_path / "yard.yaml", own_space()))
    assert space.names == ("crate", "forklift")
    assert space.classes[0].synonyms == ("box",)
    np.testing.assert_array_equal(space.from_raw([7, 9, 8]), [0, -1, -1])
    assert named(space, STREET) == {"crate": "structure", "forklift": "vehicle"}
    assert named(space, MERGED) == {"crate": "structure", "forklift": "vehicle"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (own_space(classes=[]), "list of 'classes'"),
        (own_space(name=3), "needs 'name'"),
        (own_space(colors=1), "unknown keys \\['colors'\\]"),
        (own_space(classes=[{"name": "a", "color": [0, 0, 256]}]), "'color' must be"),
        (own_space(classes=[{"name": "a"}]), "'color' must be"),
        (own_space(classes=["a"]), "needs a 'name'"),
        (own_space(classes=[{"name": "a", "color": [0, 0, 0], "shade": 1}]), "unknown keys"),
        (own_space(classes=[{"name": "a", "color": [0, 0, 0]}] * 2), "found twice: a"),
        (own_space(raw_ids={7: "ghost"}), "raw id 7 names the class 'ghost'"),
        (own_space(raw_ids={"x": "crate"}), "'x' is not an integer"),
        (own_space(raw_ids={70000: "crate"}), "between 0 and 65535"),
        (own_space(groupings={"street": {"road": ["ghost"]}}), "'ghost' is not one"),
        (own_space(groupings={"street": {"a": ["crate"], "b": ["crate"]}}), "given twice"),
        (own_space(classes=5), "list of 'classes'"),
        (own_space(raw_ids=[1]), "'raw_ids' must"),
        (own_space(groupings=["street"]), "'groupings' must"),
        (own_space(groupings={"street": ["crate"]}), "'groupings' must"),
        (["a list"], "found a list"),
        ({**own_space(), 5: 1, "x": 2}, "unknown keys \\['5', 'x'\\]"),
        (own_space(classes=[{"name": "a"}] * 5000), "5000 classes, expected at most 4096"),
        (own_space(groupings={"street": {"road": [["crate"]]}}), "'\\['crate'\\]' is not one"),
        (own_space(groupings={3: {"road": ["crate"]}}), "'groupings' must"),
        (own_space(raw_ids={None: "crate"}), "None is not an integer"),
        (own_space(raw_ids={float("inf"): "crate"}), "inf is not an integer"),
        (
            own_space(classes=[{"name": "a", "color": [0, 0, 0], "synonyms": 5}]),
            "'synonyms' must be a list of words",
        ),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, content: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        LabelSpace.load(write(tmp_path / "own.yaml", content))


def test_grouping_into_a_class_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yaml", own_space(groupings={"street": {"sea": ["crate"]}}))
    with pytest.raises(InputError, match="'street' has no class 'sea'"):
        grouping(LabelSpace.load(path), STREET)


def test_unknown_space_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no label space 'kitty'.*cityscapes.*street"):
        LabelSpace.load("kitty")
    with pytest.raises(InputError, match="cannot read"):
        LabelSpace.load(tmp_path / "missing.yaml")
