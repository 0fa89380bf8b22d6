# SPDX-License-Identifier: Apache-2.0
"""Tracks over DDS: the field, the states, the boxes, the markers, and a clock that jumps."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import (
    PAINTED,
    RELIABLE,
    TIMEOUT_S,
    Attachment,
    Client,
    NodeProcess,
    field_of,
    positions,
    stamped,
    value_of,
    wait_for,
)
from nav_msgs.msg import Odometry
from sensor_msgs.msg import PointCloud2

from pcseg_core.cloud import PointCloud, encode_cloud
from pcseg_core.geometry import from_euler
from pcseg_core.labels import LabelSpace
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_core.online.tracks import Track, Tracked
from pcseg_ros.conversions import cloud_message
from pcseg_ros.message_types import message_class
from pcseg_ros.tracks import TrackMarkers, confidence_of

SPACE = LabelSpace.load("street")
ROAD, VEHICLE = SPACE.index("road"), SPACE.index("vehicle")


@pytest.fixture(scope="module")
def node(client: Client) -> Iterator[Attachment]:
    with NodeProcess(*PAINTED, "tracks.enabled:=true") as process:
        yield client.attach(process)


def vehicle(x: float, y: float) -> np.ndarray:
    """(N, 3) two sides of a vehicle of 4 x 2 x 1.4 m around its corner at (x, y)."""
    along, up = np.meshgrid(np.linspace(0, 1, 40), np.linspace(-1.5, -0.1, 8))
    zero = np.zeros_like(along)
    sides = [np.stack([4 * along, zero, up], -1), np.stack([zero, 2 * along, up], -1)]
    return np.concatenate([side.reshape(-1, 3) for side in sides]) + np.array((x, y, 0))


def street(number: int, first_s: int = 50) -> PointCloud2:
    """A vehicle that drives at 6 m/s and one that stands, before a road; a sweep each 0.1 s."""
    road = np.stack([np.linspace(5, 40, 300), np.full(300, -8.0), np.full(300, -1.6)], 1)
    xyz = np.concatenate([vehicle(8 + 0.6 * number, 2.0), vehicle(20.0, -4.0), road])
    labels = np.where(np.arange(len(xyz)) < len(xyz) - len(road), VEHICLE, ROAD)
    fields = dict(zip("xyz", xyz.T.astype(np.float32)))
    fields["intensity"] = (labels / 10).astype(np.float32)
    cloud = cloud_message(PointCloud2().header, encode_cloud(fields))
    return stamped(cloud, (first_s + number // 10, number % 10 * 100_000_000))


def odometry(sweep: PointCloud2) -> Odometry:
    """A platform that stands, turned by 90 degrees in the fixed frame."""
    message = Odometry(child_frame_id="os_sensor")
    message.header.frame_id, message.header.stamp = "odom", sweep.header.stamp
    message.pose.pose.orientation.z = message.pose.pose.orientation.w = np.sqrt(0.5)
    return message


def newest(messages: queue.Queue[Any], header: Any) -> Any:
    """The message with a header."""
    while True:
        message = messages.get(timeout=TIMEOUT_S)
        if message.header == header:
            return message


def test_ids_states_boxes_and_markers(node: Attachment, client: Client) -> None:
    topic = f"{node.namespace}/odometry"
    publisher = client.node.create_publisher(Odometry, topic, RELIABLE)
    wait_for(publisher.get_subscription_count, "the node's subscription of Odometry")
    states = node.listen(PointCloud2, "tracks", RELIABLE)
    shown = {
        name: node.listen(kind, name, RELIABLE)
        for name, package in (
            ("track_boxes", "vision_msgs/msg/Detection3DArray"),
            ("track_markers", "visualization_msgs/msg/MarkerArray"),
        )
        if (kind := message_class(package)) is not None
    }
    for number in range(12):
        publisher.publish(odometry(street(number)))
    for number in range(10):
        sent = street(number)
        answer = node.exchange(sent)
    ids, where = field_of(answer, "instance"), positions(answer)
    driving, parked = np.unique(ids[where[:, 1] > 1]), np.unique(ids[np.abs(where[:, 1] + 3) < 2])
    assert len(driving) == len(parked) == 1 and driving[0] != parked[0]
    assert not ids[where[:, 1] < -7].any()
    found = newest(states, sent.header)
    assert found.width == 2
    order = [list(field_of(found, "id")).index(one) for one in (driving[0], parked[0])]
    columns = {f.name: field_of(found, f.name)[order] for f in found.fields}
    np.testing.assert_allclose(columns["vx"], (6, 0), atol=0.5)
    np.testing.assert_allclose(columns["vy"], (0, 0), atol=0.3)
    np.testing.assert_allclose(
        positions(found)[order], [(15.4, 3.0, -0.8), (22, -3, -0.8)], atol=0.2
    )
    assert columns["label"].tolist() == [VEHICLE] * 2 and columns["seen"].all()
    np.testing.assert_allclose(columns["length"], 4, atol=0.1)
    np.testing.assert_allclose(np.cos(columns["yaw"][0]), 1, atol=0.01)
    if "track_markers" in shown:
        check_markers(shown["track_markers"], sent.header, found)
    if "track_boxes" in shown:
        check_boxes(newest(shown["track_boxes"], sent.header), found)
    status = node.report(lambda s: value_of(s, "counted: tracks") == "2")
    assert value_of(status, "counted: tracks begun") == "2"
    later = street(0, first_s=20)  # the clock jumped back
    publisher.publish(odometry(later))
    assert field_of(node.exchange(later), "instance").max() == 4
    assert newest(states, later.header).width == 0
    client.node.destroy_publisher(publisher)
    node.deafen()


def check_markers(messages: queue.Queue[Any], header: Any, states: PointCloud2) -> None:
    """One outline and id for each track, and an arrow for the one that drives."""
    while True:
        markers = messages.get(timeout=TIMEOUT_S).markers
        if len(markers) > 1 and markers[1].header == header:
            break
    assert markers[0].action == 3  # delete all
    kinds = [marker.ns for marker in markers[1:]]
    assert sorted(kinds) == ["id", "id", "outline", "outline", "velocity"]
    outline = next(m for m in markers if m.ns == "outline" and m.id == field_of(states, "id")[0])
    ends = np.array([(p.x, p.y, p.z) for p in outline.points])
    size = [field_of(states, name)[0] for name in ("length", "width", "height")]
    np.testing.assert_allclose(sorted(np.ptp(ends, 0)), sorted(size), atol=0.1)
    np.testing.assert_allclose((ends.min(0) + ends.max(0)) / 2, positions(states)[0], atol=1e-4)


def test_markers_that_are_used_again_show_the_newest_tracks() -> None:
    if message_class("visualization_msgs/msg/MarkerArray") is None:
        pytest.skip("needs visualization_msgs")

    def track(id_: int, x: float, vx: float, seen: bool) -> Track:
        pose, size = from_euler(0, 0, 0, (x, 0, 0)), np.array([4.0, 2.0, 1.5])
        return Track(id_, VEHICLE, pose, size, np.array([vx, 0.0, 0.0]), seen, age_s=1.0)

    draw, header = TrackMarkers(), PointCloud2().header
    draw(header, [track(7, 5.0, 3.0, True), track(8, 20.0, 0.0, False)], SPACE, {})
    shown = draw(header, [track(8, 21.0, 2.0, True)], SPACE, {}).markers
    assert [marker.ns for marker in shown] == ["", "outline", "id", "velocity"]
    assert {marker.id for marker in shown[1:]} == {8} and shown[2].text == "vehicle 8"
    assert all(marker.color.a == 1.0 for marker in shown[1:])
    assert sorted({(p.x, p.z) for p in shown[1].points}) == [
        (x, z) for x in (19.0, 23.0) for z in (-0.75, 0.75)
    ]
    assert [p.x for p in shown[3].points] == [21.0, 23.0]
    assert shown[2].pose.position.x == 21.0 and shown[2].pose.position.z > 0.75
    later = PointCloud2().header
    faint = draw(later, [track(8, 22.0, 2.0, False)], SPACE, {}).markers[1:]
    assert all(marker.color.a < 1.0 and marker.header is later for marker in faint)


def test_the_confidence_of_a_track_is_the_mean_of_its_points() -> None:
    pose, nothing = from_euler(0, 0, 0, (0, 0, 0)), np.zeros(3)
    tracks = [Track(id_, VEHICLE, pose, nothing, nothing, True, 1.0) for id_ in (900, 7, 20)]
    ids = np.array([0, 7, 900, 3, 7, 1000, 8, 0], np.uint32)  # 3, 8 and 1000 are no tracks yet
    confidence = np.array([0.1, 0.5, 0.75, 0.2, 1.0, 0.3, 0.4, 0.6], np.float32)
    labels = np.full(8, VEHICLE, np.int32)
    labeled = LabeledSweep(PointCloud(np.zeros((8, 3), np.float32)), labels, confidence, SPACE)
    labeled.tracked = Tracked(ids, tracks)
    assert confidence_of(labeled) == {7: 0.75, 900: 0.75}
    labeled.tracked = Tracked(ids, [])
    assert confidence_of(labeled) == {}


def check_boxes(array: Any, states: PointCloud2) -> None:
    """As vision_msgs/Detection3D says: an id, a class with a score, and a box in the frame."""
    assert [d.id for d in array.detections] == [str(one) for one in field_of(states, "id")]
    for detection, where in zip(array.detections, positions(states)):
        result = detection.results[0]
        assert result.hypothesis.class_id == "vehicle" and 0 < result.hypothesis.score <= 1
        center = detection.bbox.center
        np.testing.assert_allclose(
            (center.position.x, center.position.y, center.position.z), where, atol=1e-4
        )
        assert np.isclose(detection.bbox.size.x, 4, atol=0.1)
        assert np.isclose(center.orientation.z**2 + center.orientation.w**2, 1, atol=1e-3)


def test_without_motion_there_are_no_tracks_and_the_reason_is_told(node: Attachment) -> None:
    states = node.listen(PointCloud2, "tracks", RELIABLE)
    answer = node.exchange(stamped(street(0), (9000, 0)))
    assert not field_of(answer, "instance").any()
    status = node.report(lambda s: value_of(s, "counted: tracks left out") != "")
    assert "motion of the platform is not known" in value_of(status, "reason: tracks left out")
    assert states.empty()
    node.deafen()
