# SPDX-License-Identifier: Apache-2.0
"""The occupancy grid over DDS, read as Nav2's static layer reads maps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from fakes import expected_labels
from harness import (
    RELIABLE,
    TIMEOUT_S,
    Attachment,
    Client,
    NodeProcess,
    positions,
    stamped,
    sweep,
    value_of,
    wait_for,
)
from nav_msgs.msg import OccupancyGrid, Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from pcseg_core.labels import LabelSpace

NAMES = LabelSpace.load("street").names
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
COSTS = (0, 20, 100, 100, 40, 100, 100, 100)


@pytest.fixture(scope="module")
def node(client: Client) -> Iterator[Attachment]:
    fixed = ("grid.frame:=fixed", "motion.source:=odometry", "motion.timeout_s:=5.0")
    size = ("grid.size_m:=60.0", "grid.resolution_m:=0.5", "grid.max_height_m:=40.0")
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.1", *fixed, *size) as process:
        yield client.attach(process)


def static_layer(grid: OccupancyGrid) -> dict[tuple[float, float], int]:
    """Costmap values by the corner of each cell, as Nav2's static layer has them.

    Row by row from the origin: 255 (no information) for -1, 254 (lethal) from 100 on, otherwise
    scaled, `trinary_costmap: false` (nav2_costmap_2d, StaticLayer::interpretValue).
    """
    info = grid.info
    assert len(grid.data) == info.width * info.height and info.resolution > 0
    assert info.origin.orientation.w == 1 and grid.header.frame_id
    assert all(-1 <= value <= 100 for value in grid.data)
    found = {}
    for index, value in enumerate(grid.data):
        row, column = divmod(index, info.width)
        corner = (
            round(info.origin.position.x + column * info.resolution, 3),
            round(info.origin.position.y + row * info.resolution, 3),
        )
        found[corner] = 255 if value == -1 else 254 if value >= 100 else int(value / 100 * 254)
    return found


def odometry(seconds: int, x: float) -> Odometry:
    """The LiDAR at (x, 2, 0), turned by 90 degrees."""
    message = Odometry(child_frame_id="os_sensor")
    message.header.frame_id, message.header.stamp.sec = "odom", seconds
    pose = message.pose.pose
    pose.position.x, pose.position.y = x, 2.0
    pose.orientation.z = pose.orientation.w = np.sqrt(0.5)
    return message


def test_the_grid_in_the_fixed_frame(node: Attachment, client: Client) -> None:
    topic = f"{node.namespace}/odometry"
    publisher = client.node.create_publisher(Odometry, topic, RELIABLE)
    wait_for(publisher.get_subscription_count, "the node's subscription of Odometry")
    grids = node.listen(OccupancyGrid, "grid", LATCHED)
    for seconds in (10, 11, 12):
        publisher.publish(odometry(seconds, 100.0))
    sent = stamped(sweep(20_000), (11, 0))
    node.exchange(sent)
    grid = grids.get(timeout=TIMEOUT_S)
    assert grid.header.frame_id == "odom" and grid.header.stamp == sent.header.stamp
    assert (grid.info.width, grid.info.height) == (120, 120)
    assert (grid.info.origin.position.x, grid.info.origin.position.y) == (70.0, -28.0)
    values, where = static_layer(grid), positions(sent)
    # The x axis of the LiDAR points along y of odom.
    x, y = np.floor(2 * (100.0 - where[:, 1])) / 2, np.floor(2 * (2.0 + where[:, 0])) / 2
    found: dict[tuple[float, float], set[int]] = {}
    for corner, label in zip(zip(x.tolist(), y.tolist()), expected_labels(where)):
        found.setdefault(corner, set()).add(COSTS[label])
    alone = {corner: costs.pop() for corner, costs in found.items() if len(costs) == 1}
    low = {corner: cost for corner, cost in alone.items() if cost < 50 and corner in values}
    assert len(low) > 100
    assert all(values[corner] == int(cost / 100 * 254) for corner, cost in low.items())
    high = [values[corner] for corner, cost in alone.items() if cost == 100 and corner in values]
    assert high.count(254) > 0.5 * len(high)  # beams passed some
    assert 255 in values.values()
    client.node.destroy_publisher(publisher)
    node.deafen()


def test_grids_come_at_their_rate_and_a_late_subscriber_gets_the_last(node: Attachment) -> None:
    assert node.set_parameter("grid.rate_hz", 1.0).successful
    grids = node.listen(OccupancyGrid, "grid", LATCHED)
    stamps = [grids.get(timeout=TIMEOUT_S).header.stamp.sec]
    assert stamps == [11]  # the one of the test before
    node.deafen()


def test_a_grid_without_motion_is_left_out_with_the_reason(node: Attachment) -> None:
    grids = node.listen(OccupancyGrid, "grid", LATCHED)
    grids.get(timeout=TIMEOUT_S)  # latched
    assert node.set_parameter("grid.rate_hz", 50.0).successful
    node.exchange(stamped(sweep(100), (5000, 0)), timeout_s=TIMEOUT_S)
    status = node.report(lambda s: value_of(s, "counted: grid left out") != "")
    assert "the motion is not known" in value_of(status, "reason: grid left out")
    assert grids.empty()
    node.deafen()


def reason(node: Attachment) -> str:
    """Why there is no grid; sweeps are sent until the node has found its subscriber."""
    reasons = [""]

    def told() -> str:
        node.exchange(sweep(100))
        reasons.append(value_of(node.report(lambda _: True), "reason: grid left out"))
        return reasons[-1]

    wait_for(told, "the reason")
    return reasons[-1]


def test_words_without_costs_leave_the_grid_out_with_the_classes_there_are(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.1") as process:
        node = client.attach(process)
        assert node.set_parameter("prompts", ["car", "tree"]).successful
        grids = node.listen(OccupancyGrid, "grid", LATCHED)
        assert "unknown class 'road'; expected one of car, tree" in reason(node)
        assert grids.empty()


def test_grids_beyond_the_bound_are_refused(node: Attachment) -> None:
    result = node.set_parameter("grid.resolution_m", 0.02)
    assert not result.successful
    assert "3000 x 3000 cells is too large" in result.reason


def test_costs_of_another_checkpoint_are_refused(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "costs.yaml"
    file.write_text("".join(f"{name}: 0\n" for name in (*NAMES, "tram")))
    with NodeProcess("checkpoint:=fake", f"grid.costs:={file}") as process:
        node = client.attach(process, active=False)
        words = "unknown class 'tram'; expected one of road, sidewalk, structure"
        wait_for(lambda: words in process.output, "the reason")
        assert node.state() == "unconfigured"
