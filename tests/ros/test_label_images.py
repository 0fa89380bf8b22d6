# SPDX-License-Identifier: Apache-2.0
"""Label and confidence images, their classes, and the legend, over DDS."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import Attachment, Client, NodeProcess, field_of, positions, sweep, value_of, wait_for
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, PointCloud2

from pcseg_core.labels import WIRE_UNLABELED, LabelSpace
from pcseg_ros import qos

SPACE = LabelSpace.load("street")


@pytest.fixture(scope="module")
def node(client: Client) -> Iterator[Attachment]:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.1") as process:
        yield client.attach(process)


def organized(height: int = 4, width: int = 50) -> PointCloud2:
    """A sweep in rows, with a point that is no return."""
    sent = sweep(height * width)
    data = np.frombuffer(sent.data, np.uint8).reshape(height * width, -1).copy()
    data[7, :4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    sent.data = data.tobytes()
    sent.height, sent.width, sent.row_step = height, width, width * sent.point_step
    return sent


def semantic_layer_pixels(
    mask: Image, confidence: Image, cloud: PointCloud2
) -> list[tuple[int, float, float]]:
    """(class id, confidence, x) of each pixel, as Nav2's semantic segmentation layer reads them.

    mono8 images of one size; pixel v * width + u of both belongs to the point of that number of the
    cloud, which has float32 coordinates; pixels whose point is not finite are left out. The three
    messages are matched by their stamps (README of semantic_segmentation_layer).
    """
    assert mask.encoding == confidence.encoding == "mono8"
    assert (mask.height, mask.width) == (confidence.height, confidence.width)
    assert mask.step == confidence.step == mask.width
    assert mask.header == confidence.header == cloud.header
    assert mask.width * mask.height == cloud.width * cloud.height == len(mask.data)
    where = positions(cloud)
    assert where.dtype == np.float32
    rows = zip(mask.data, confidence.data, where)
    return [(int(i), int(c), float(p[0])) for i, c, p in rows if np.isfinite(p[2])]


def test_images_are_pixel_by_pixel_the_cloud(node: Attachment) -> None:
    images = [
        node.listen(Image, name, qos_profile_sensor_data)
        for name in ("label_image", "confidence_image")
    ]
    sent = organized()
    answer = node.exchange(sent)
    mask, confidence = (received.get(timeout=20) for received in images)
    node.deafen()
    pixels = semantic_layer_pixels(mask, confidence, answer)
    labels, sure = field_of(answer, "label"), field_of(answer, "confidence")
    expected = np.where(labels == WIRE_UNLABELED, 255, labels)
    assert expected[7] == 255 and np.count_nonzero(expected == 255) == 1
    assert list(mask.data) == expected.tolist()
    np.testing.assert_allclose(list(confidence.data), 255 * sure, atol=0.5)
    assert confidence.data[7] == 0
    assert len(pixels) == 200 and {i for i, _, _ in pixels} == {*range(8), 255}


def test_an_unorganized_cloud_has_no_images_and_says_so(node: Attachment) -> None:
    images = node.listen(Image, "label_image", qos_profile_sensor_data)
    node.exchange(sweep(100))
    status = node.report(lambda s: value_of(s, "counted: label image left out") != "")
    assert "1 x 100 points is not organized" in value_of(status, "reason: label image left out")
    assert images.empty()
    node.exchange(organized())
    assert images.get(timeout=20).height == 4
    node.deafen()


def test_outputs_whose_message_package_is_absent_are_named(client: Client) -> None:
    names = {
        "vision_msgs": ["track_boxes", "label_info", "label_image_info"],
        "visualization_msgs": ["track_markers", "legend"],
        "foxglove_msgs": ["legend_scene"],
    }
    with NodeProcess("checkpoint:=fake") as process:
        node = client.attach(process)
        node.exchange(sweep(10))
        for package, topics in names.items():
            there = find_spec(package) is not None
            reason = f"not published without {package}: {', '.join(topics)}; install the package"
            if there:
                assert reason not in process.output
            else:  # the pipe of the node may lag behind its answer
                wait_for(lambda said=reason: said in process.output, reason)
            topic = f"{node.namespace}/{topics[-1]}"
            assert bool(client.node.count_publishers(topic)) == there


def latched(node: Attachment, kind: Any, topic: str) -> Any:
    """The message that a late subscriber receives."""
    received = node.listen(kind, topic, qos.latched())
    try:
        return received.get(timeout=20)
    finally:
        node.deafen()


def test_the_classes_of_the_image_are_latched(node: Attachment) -> None:
    """The layer takes names to ids of one byte from a latched LabelInfo."""
    messages = pytest.importorskip("vision_msgs.msg", reason="needs vision_msgs")
    for topic, unlabeled in (("label_image_info", 255), ("label_info", WIRE_UNLABELED)):
        info = latched(node, messages.LabelInfo, topic)
        ids = {item.class_name: item.class_id for item in info.class_map}
        assert ids == {**{name: i for i, name in enumerate(SPACE.names)}, "unlabeled": unlabeled}


def test_the_legend_follows_the_frame_and_the_classes(node: Attachment) -> None:
    messages = pytest.importorskip("visualization_msgs.msg", reason="needs visualization_msgs")
    node.exchange(sweep(10))
    array = latched(node, messages.MarkerArray, "legend")
    first, *texts = array.markers
    assert first.action == first.DELETEALL
    assert [t.text for t in texts] == list(SPACE.names)
    assert {(t.type, t.header.frame_id, t.frame_locked) for t in texts} == {(9, "os_sensor", True)}
    colors = [[t.color.r, t.color.g, t.color.b] for t in texts]
    np.testing.assert_allclose(colors, SPACE.palette / 255, atol=1e-6)
    heights = [t.pose.position.z for t in texts]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == len(texts)
    assert all(t.scale.z > 0 and t.color.a == 1 for t in texts)
    assert node.set_parameter("prompts", ["car", "tree"]).successful
    node.exchange(sweep(10))
    wait_for(
        lambda: (
            [m.text for m in latched(node, messages.MarkerArray, "legend").markers[1:]]
            == ["car", "tree"]
        ),
        "the legend of the new classes",
    )
    if find_spec("foxglove_msgs") is not None:
        scene = latched(node, __import__("foxglove_msgs.msg").msg.SceneUpdate, "legend_scene")
        (entity,) = scene.entities
        assert [text.text for text in entity.texts] == ["car", "tree"]
        assert (entity.id, entity.frame_id, entity.frame_locked) == ("legend", "os_sensor", True)
