# SPDX-License-Identifier: Apache-2.0
"""Profiles and named clouds over DDS, read by the rules of the programs that take them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from fakes import expected_confidence, expected_labels
from harness import Attachment, Client, NodeProcess, field_of, layout, positions, sweep, wait_for
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import PointCloud2, PointField

from pcseg_core.errors import InputError
from pcseg_core.labels import WIRE_UNLABELED, LabelClass, LabelSpace
from pcseg_ros.classes import check_classes
from pcseg_ros.config import NodeConfig

NAMES = LabelSpace.load("street").names
GROUND = ("road", "sidewalk", "terrain")
CLOUDS = """
clouds:
  names: [ground_points, nonground_points, obstacles]
  ground_points: {classes: [road, sidewalk, terrain]}
  nonground_points: {classes: ["*"]}
  obstacles: {classes: [vehicle, person], min_confidence: [0.5, 0.0], max_range_m: 20.0}
"""


@pytest.fixture(scope="module")
def node(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attachment]:
    params = tmp_path_factory.mktemp("params") / "params.yaml"
    lines = "".join(f"    {line}\n" for line in CLOUDS.strip().splitlines())
    params.write_text(f"/**:\n  ros__parameters:\n    checkpoint: fake\n{lines}")
    with NodeProcess(params=params) as process:
        yield client.attach(process)


@pytest.fixture
def profile(node: Attachment) -> Iterator[Attachment]:
    """The node, whose profile is `append` again after the test."""
    yield node
    for name, value in (("entropy", False), ("probabilities", []), ("profile", "append")):
        assert node.set_parameter(f"output.{name}", value).successful


def point_xyzcpe(cloud: PointCloud2) -> np.ndarray:
    """The points, as Autoware reads them: it refuses any other layout.

    Six fields of these names, offsets and types with a count of 1; points of 24 bytes; rows and
    data without padding (autoware_point_types, autoware_euclidean_cluster).
    """
    number, byte = PointField.FLOAT32, PointField.UINT8
    expected = [("x", 0, number, 1), ("y", 4, number, 1), ("z", 8, number, 1)]
    expected += [("class_id", 12, byte, 1), ("probability", 16, number, 1)]
    assert layout(cloud) == [*expected, ("entropy", 20, number, 1)]
    assert cloud.point_step == 24 and cloud.row_step == 24 * cloud.width
    assert len(cloud.data) == 24 * cloud.width * cloud.height and not cloud.is_bigendian
    names = [name for name, *_ in layout(cloud)]
    packed = {"names": names, "formats": ["<f4"] * 3 + ["u1", "<f4", "<f4"], "itemsize": 24}
    return np.frombuffer(bytes(cloud.data), {**packed, "offsets": [0, 4, 8, 12, 16, 20]})


def test_autoware_takes_the_cloud(profile: Attachment) -> None:
    assert profile.set_parameter("output.profile", "autoware").successful
    sent = sweep(1000)
    data = np.frombuffer(sent.data, np.uint8).reshape(1000, -1).copy()
    data[5, :4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)  # no return
    sent.data = data.tobytes()
    answer = profile.exchange(sent)
    assert answer.header == sent.header and answer.width == 1000
    points, labels = point_xyzcpe(answer), expected_labels(positions(sent))
    for axis in "xyz":
        np.testing.assert_array_equal(points[axis], field_of(sent, axis))
    # PointCloudClassification: CAR 0, PEDESTRIAN 5, FLAT_SURFACE 8, STRUCTURE 9, VEGETATION 10.
    ids = dict(zip(NAMES, (8, 8, 9, 10, 8, 0, 5, 9)))
    expected = [ids[NAMES[label]] if label >= 0 else 255 for label in labels]
    assert points["class_id"].tolist() == expected
    sure = expected_confidence(positions(sent))
    np.testing.assert_array_equal(points["probability"], np.where(labels < 0, 0, sure))
    rest = (1 - sure) / 7
    found = -(sure * np.log(sure.clip(1e-9)) + 7 * rest * np.log(rest)) / math.log(8)
    np.testing.assert_allclose(points["entropy"][labels >= 0], found[labels >= 0], atol=1e-5)
    assert np.isnan(points["entropy"][5]) and labels[5] < 0


def test_exactly_six_fields_are_kept_by_refusing_more(profile: Attachment) -> None:
    assert profile.set_parameter("output.profile", "autoware").successful
    for name, value in (("publish_rgb", True), ("output.probabilities", ["road"])):
        result = profile.set_parameter(name, value)
        assert not result.successful and f"turn off {name}" in result.reason


def test_minimal_has_twenty_bytes_and_fields_on_request(profile: Attachment) -> None:
    assert profile.set_parameter("output.profile", "minimal").successful
    sent = sweep(500)
    answer = profile.exchange(sent)
    expected = [(axis, 4 * i, PointField.FLOAT32, 1) for i, axis in enumerate("xyz")]
    expected += [("label", 12, PointField.UINT32, 1), ("confidence", 16, PointField.FLOAT32, 1)]
    assert layout(answer) == expected and answer.point_step == 20
    np.testing.assert_array_equal(positions(answer), positions(sent))
    np.testing.assert_array_equal(field_of(answer, "label"), expected_labels(positions(sent)))
    # Elevation mapping takes float32 fields by name ("channels"), one for each class.
    assert profile.set_parameter("output.probabilities", ["road", "terrain"]).successful
    assert profile.set_parameter("output.entropy", True).successful
    answer = profile.exchange(sent)
    channels = {f.name: f.datatype for f in answer.fields[5:]}
    assert channels == dict.fromkeys(("entropy", "p_road", "p_terrain"), PointField.FLOAT32)
    road = field_of(answer, "p_road")
    is_road = field_of(answer, "label") == NAMES.index("road")
    np.testing.assert_array_equal(road[is_road], field_of(answer, "confidence")[is_road])
    assert ((road >= 0) & (road <= 1)).all()


def test_the_pair_of_nav2s_ground_layer_and_obstacles(node: Attachment) -> None:
    """It reads float32 x, y, z of two clouds with sensor data QoS, and transforms by the header."""
    names = ("ground_points", "nonground_points", "obstacles")
    queues = [node.listen(PointCloud2, name, qos_profile_sensor_data) for name in names]
    sent = sweep(2000)
    answer = node.exchange(sent)
    labels, where = field_of(answer, "label"), positions(answer)
    is_ground = np.isin(labels, [NAMES.index(name) for name in GROUND])
    sure = field_of(answer, "confidence")
    vehicle = (labels == NAMES.index("vehicle")) & (sure >= 0.5)
    person = labels == NAMES.index("person")
    near = np.linalg.norm(where, axis=1) <= 20
    chosen = (is_ground, ~is_ground & (labels != WIRE_UNLABELED), (vehicle | person) & near)
    for received, expected in zip(queues, chosen):
        part = received.get(timeout=5)
        assert part.header == sent.header and part.height == 1
        types = {f.name: f.datatype for f in part.fields}
        assert all(types[axis] == PointField.FLOAT32 for axis in "xyz")
        assert 0 < np.count_nonzero(expected) < len(expected)
        np.testing.assert_array_equal(positions(part), where[expected])
    node.deafen()


def test_classes_of_clouds_are_live_and_checked(node: Attachment) -> None:
    name = "clouds.obstacles.classes"
    result = node.set_parameter(name, ["vehicle", "unicorn"])
    assert not result.successful and f"{name}: unknown class 'unicorn'" in result.reason
    result = node.set_parameter(name, ["vehicle", "person", "pole"])
    assert not result.successful and "min_confidence has 2 numbers for 3 classes" in result.reason
    assert not node.set_parameter("clouds.names", ["obstacles"]).successful
    # Prompts that lack the class of a cloud, or of Autoware's map, leave the classes as they are.
    result = node.set_parameter("prompts", ["car", "tree"])
    assert not result.successful and "unknown class 'road'; expected one of car, tree" in (
        result.reason
    )
    labels = field_of(node.exchange(sweep(500)), "label")
    assert labels.max() == len(NAMES) - 1


@pytest.mark.parametrize(
    "names, given, told",
    [
        (["road", "car"], {}, ""),
        (["road"], {"instance_classes": ["vehicle"]}, "instance_classes: unknown class 'vehicle'"),
        (["road", "person"], {"tracks": {"enabled": True}}, ""),
        (["road"], {"tracks": {"enabled": True}}, "instance_classes: unknown class 'vehicle'"),
        (["road"], {"publish_instances": True}, "instance_classes: unknown class 'vehicle'"),
        (["road"], {"moving": {"enabled": True}}, "moving.enabled: no class of road is one that"),
        (["road", "car"], {"moving": {"enabled": True}}, ""),
    ],
)
def test_outputs_that_no_class_of_a_checkpoint_has_are_refused(
    names: list[str], given: dict[str, Any], told: str
) -> None:
    classes = [LabelClass(number, name, (0, 0, 0)) for number, name in enumerate(names)]
    space = LabelSpace("own", tuple(classes))
    with pytest.raises(InputError, match=told) if told else nullcontext():
        check_classes(NodeConfig.model_validate(given), space)


def test_a_class_map_of_another_checkpoint_is_refused(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    file.write_text("".join(f"{name}: CAR\n" for name in (*NAMES, "tram")))
    profile = "output.profile:=autoware"
    with NodeProcess("checkpoint:=fake", profile, f"output.class_map:={file}") as process:
        node = client.attach(process, active=False)
        words = "unknown class 'tram'; expected one of road, sidewalk, structure"
        wait_for(lambda: words in process.output, "the reason")
        file.write_text("".join(f"{name}: CAR\n" for name in NAMES))
        assert node.change("configure")
