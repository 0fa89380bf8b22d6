# SPDX-License-Identifier: Apache-2.0
"""What moves, over DDS: the field, and the clouds for SLAM and for trackers."""

from __future__ import annotations

from collections.abc import Iterator

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
from nav_msgs.msg import OccupancyGrid, Odometry
from sensor_msgs.msg import PointCloud2, PointField

from pcseg_core.cloud import encode_cloud
from pcseg_core.labels import LabelSpace
from pcseg_ros.conversions import cloud_message

SPACE = LabelSpace.load("street")
STRUCTURE, VEHICLE = SPACE.index("structure"), SPACE.index("vehicle")


@pytest.fixture(scope="module")
def node(client: Client) -> Iterator[Attachment]:
    with NodeProcess(*PAINTED, "moving.enabled:=true") as process:
        yield client.attach(process)


def face(x: float, y: float) -> np.ndarray:
    """(N, 3) side of a vehicle, 2 m wide, seen from x = 0."""
    across, up = np.meshgrid(np.arange(y, y + 2, 0.05), np.arange(-1.0, 0.5, 0.1))
    return np.stack([np.full(across.size, x), across.ravel(), up.ravel()], 1)


def street(number: int, crossing: bool = True, walled: bool = True) -> PointCloud2:
    """A wall, a parked vehicle and one that crosses in front of the wall, 1.2 m in 0.1 s."""
    angle, slope = np.meshgrid(np.arange(-0.8, 0.8, 0.003), np.arange(-0.2, 0.2, 0.01))
    wall = 30.0 * np.stack([np.cos(angle), np.sin(angle), slope], -1).reshape(-1, 3)
    wall = wall[: len(wall) * walled]
    parts = [wall, face(12.0, 5.0)] + ([face(10.0, -6.0 + 1.2 * number)] if crossing else [])
    xyz = np.concatenate(parts).astype(np.float32)
    labels = np.full(len(xyz), VEHICLE)
    labels[: len(wall)] = STRUCTURE
    fields = {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2]}
    fields["intensity"] = (labels / 10).astype(np.float32)
    cloud = cloud_message(PointCloud2().header, encode_cloud(fields))
    return stamped(cloud, (50 + number // 10, number % 10 * 100_000_000))


def odometry(number: int) -> Odometry:
    """A platform that stands."""
    message = Odometry(child_frame_id="os_sensor")
    message.header.frame_id = "odom"
    message.header.stamp = street(number, crossing=False).header.stamp
    message.pose.pose.orientation.w = 1.0
    return message


def test_the_field_and_the_clouds_of_what_moves(node: Attachment, client: Client) -> None:
    topic = f"{node.namespace}/odometry"
    publisher = client.node.create_publisher(Odometry, topic, RELIABLE)
    wait_for(publisher.get_subscription_count, "the node's subscription of Odometry")
    static, moving = (
        node.listen(PointCloud2, name, RELIABLE) for name in ("static_points", "moving_points")
    )
    for number in range(12):
        publisher.publish(odometry(number))
    for number in range(10):
        sent = street(number)
        answer = node.exchange(sent)
    kinds = {f.name: f.datatype for f in answer.fields}
    assert kinds["moving"] == PointField.UINT8
    field, labels = field_of(answer, "moving"), field_of(answer, "label")
    where = positions(answer)
    crossing, parked = (np.isclose(where[:, 0], x) & (labels == VEHICLE) for x in (10.0, 12.0))
    assert np.mean(field[crossing] == 2) > 0.9
    assert (field[parked] == 1).all() and (field[labels == STRUCTURE] == 1).all()
    received = {}
    for name, messages, value in (("static", static, 1), ("moving", moving, 2)):
        while received.get(name) is None or received[name].header != sent.header:
            received[name] = messages.get(timeout=TIMEOUT_S)
        np.testing.assert_array_equal(positions(received[name]), where[field == value])
        assert (field_of(received[name], "moving") == value).all()
    client.node.destroy_publisher(publisher)
    node.deafen()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_grid_alone_has_no_trail_of_what_moves(client: Client, enabled: bool) -> None:
    settings = (*PAINTED, f"moving.enabled:={str(enabled).lower()}", "temporal.enabled:=true")
    with NodeProcess(*settings, "motion.source:=odometry", "grid.rate_hz:=50.0") as process:
        node = client.attach(process)
        topic = f"{node.namespace}/odometry"
        publisher = client.node.create_publisher(Odometry, topic, RELIABLE)
        wait_for(publisher.get_subscription_count, "the node's subscription of Odometry")
        grids = node.listen(OccupancyGrid, "grid", RELIABLE)
        node.mute()
        for number in range(12):
            publisher.publish(odometry(number))
        for number in range(11):  # at last the wall behind the vehicles is not seen
            sent = street(number, walled=number < 10)
            node.send(sent)
            while (grid := grids.get(timeout=TIMEOUT_S)).header.stamp != sent.header.stamp:
                pass
        client.node.destroy_publisher(publisher)
    edge, origin = grid.info.resolution, grid.info.origin.position
    costs = np.array(grid.data).reshape(grid.info.height, grid.info.width)

    def highest(x: float, y: float) -> int:
        """Of the cells along the side of a vehicle, 2 m from y on, and those behind."""
        row, column = int((y - origin.y) / edge), int((x - origin.x) / edge)
        return int(costs[row : row + round(2 / edge), column - 1 : column + 2].max())

    assert highest(10.0, 6.0) == 100 and highest(12.0, 5.0) == 100
    assert [highest(10.0, y) == 100 for y in (-2.0, 0.0, 1.0)] == 3 * [not enabled]


def test_without_motion_all_is_unknown_and_the_reason_is_told(node: Attachment) -> None:
    static = node.listen(PointCloud2, "static_points", RELIABLE)
    later = stamped(street(0), (9000, 0))
    field = field_of(node.exchange(later), "moving")
    assert not field.any()
    status = node.report(lambda s: value_of(s, "counted: moving points left out") != "")
    assert "motion of the platform is not known" in value_of(
        status, "reason: moving points left out"
    )
    assert static.empty()
    node.deafen()


def test_what_moves_needs_a_source_of_motion(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "moving.enabled:=true", "motion.source:=none") as process:
        node = client.attach(process, active=False)
        told = "motion.source is none; take tf or odometry for moving.enabled. "
        wait_for(lambda: told in process.output, "the reason")
        assert node.state() == "unconfigured"
        assert not client.node.count_publishers(f"{node.namespace}/static_points")
