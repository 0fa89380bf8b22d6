# SPDX-License-Identifier: Apache-2.0
"""Transforms by the real tf2 and sweeps matched by the real message_filters, where they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tf2_ros", reason="needs a ROS distribution (tf2_ros)")
pytest.importorskip("tf2_msgs", reason="needs a ROS distribution (tf2_msgs)")

import rclpy
from geometry_msgs.msg import TransformStamped
from harness import Client, NodeProcess, sweep, value_of, wait_for
from nav_msgs.msg import OccupancyGrid
from rclpy.context import Context
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage

from pcseg_core.geometry import from_euler, invert, to_quaternion
from pcseg_ros import qos
from pcseg_ros.config import CameraParameters
from pcseg_ros.sensor_poses import OdometryMotion, SensorPoses, TransformError
from pcseg_ros.synchronization import create_synchronizer
from pcseg_ros.transforms import TfMotion, TransformBuffer

S = 1_000_000_000
T_BASE_LIDAR = from_euler(0.1, 0.0, 0.3, (0.8, 0.0, 1.7))
T_BASE_CAM = from_euler(-1.57, 0.0, -1.57, (1.1, 0.2, 1.5))


def pose_at(stamp_ns: int) -> np.ndarray:
    return from_euler(0, 0, 0.1 * stamp_ns / S, (10.0 * stamp_ns / S, 0.0, 0.0))


def message(parent: str, child: str, T: np.ndarray, stamp_ns: int = 0) -> TFMessage:
    moved = TransformStamped(child_frame_id=child)
    moved.header.frame_id = parent
    moved.header.stamp.sec, moved.header.stamp.nanosec = divmod(stamp_ns, S)
    q, t = to_quaternion(T)
    rotation, translation = moved.transform.rotation, moved.transform.translation
    rotation.x, rotation.y, rotation.z, rotation.w = q.tolist()
    translation.x, translation.y, translation.z = t.tolist()
    return TFMessage(transforms=[moved])


@pytest.fixture
def faults() -> list[tuple[str, object]]:
    return []


@pytest.fixture
def buffer(faults: list[tuple[str, object]]) -> Iterator[TransformBuffer]:
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("probe", context=context)
    made = TransformBuffer(node, lambda: None, lambda *fault: faults.append(fault))
    made._on_static(message("base_link", "lidar", T_BASE_LIDAR))
    made._on_static(message("base_link", "cam", T_BASE_CAM))
    for stamp in range(S, 3 * S + 1, S // 20):
        made._on_moving(message("odom", "base_link", pose_at(stamp), stamp))
    yield made
    node.destroy_node()
    context.try_shutdown()


def test_static_transforms_are_kept_and_moving_ones_are_not_static(buffer: TransformBuffer) -> None:
    expected = invert(T_BASE_CAM) @ T_BASE_LIDAR
    found = buffer.static("/cam", "lidar")
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert buffer.static("cam", "lidar") is found
    assert buffer.static("odom", "lidar") is None
    moved = from_euler(0, 0, 0, (9.0, 0, 0))
    buffer._on_static(message("base_link", "cam", moved))  # calibrated anew
    recalibrated = buffer.static("cam", "lidar")
    np.testing.assert_allclose(recalibrated, invert(moved) @ T_BASE_LIDAR, atol=1e-9)
    with pytest.raises(TransformError, match="no transform from 'lidar' to 'nowhere': "):
        buffer.static("nowhere", "lidar")


def test_time_travel_through_the_fixed_frame(buffer: TransformBuffer) -> None:
    image_ns, sweep_ns = 2 * S, 2 * S + 50_000_000
    in_world = pose_at(sweep_ns) @ T_BASE_LIDAR
    expected = invert(pose_at(image_ns) @ T_BASE_CAM) @ in_world
    direct = buffer.between("cam", image_ns, "lidar", sweep_ns, "odom")
    np.testing.assert_allclose(direct, expected, atol=1e-6)
    poses = SensorPoses(TfMotion(buffer, "odom"), buffer, None)
    composed = poses.T_cam_lidar("front", "/front", "cam", image_ns, "lidar", sweep_ns)
    np.testing.assert_allclose(composed, expected, atol=1e-6)
    stamps = np.array([image_ns, sweep_ns])
    by_tf = TfMotion(buffer, "odom").poses("lidar", stamps)
    one_by_one = [buffer.pose("odom", "lidar", int(stamp)) for stamp in stamps]
    np.testing.assert_array_equal(by_tf, one_by_one)


@pytest.mark.parametrize(
    "stamp, expected", [(3 * S + 10_000_000, True), (5 * S, False), (S // 2, False)]
)
def test_only_expected_transforms_are_waited_for(
    buffer: TransformBuffer, stamp: int, expected: bool
) -> None:
    with pytest.raises(TransformError) as caught:
        buffer.pose("odom", "lidar", stamp)
    assert caught.value.expected == expected
    assert str(caught.value).startswith("no transform from 'lidar' to 'odom': ")
    with pytest.raises(TransformError) as caught:
        buffer.pose("odom", "radar", stamp)
    assert not caught.value.expected


def test_camera_that_turns_against_the_lidar(buffer: TransformBuffer) -> None:
    for stamp in range(S, 3 * S + 1, S // 20):
        turned = from_euler(0, 0, stamp / S, (0, 0, 1))
        buffer._on_moving(message("base_link", "pan", turned, stamp))
    poses = SensorPoses(TfMotion(buffer, "odom"), buffer, None)
    image_ns, sweep_ns = 2 * S + 25_000_000, 2 * S
    found = poses.T_cam_lidar("pan", "/pan", "pan", image_ns, "lidar", sweep_ns)
    at_image = pose_at(image_ns) @ from_euler(0, 0, image_ns / S, (0, 0, 1))
    expected = invert(at_image) @ pose_at(sweep_ns) @ T_BASE_LIDAR
    np.testing.assert_allclose(found, expected, atol=2e-4)
    with pytest.raises(TransformError, match=r"motion\.source"):
        SensorPoses(None, buffer, None).T_cam_lidar(
            "pan", "/pan", "pan", image_ns, "lidar", sweep_ns
        )


def test_bag_in_a_loop_restarts(buffer: TransformBuffer, faults: list[tuple[str, object]]) -> None:
    buffer._on_moving(message("odom", "base_link", np.eye(4), S // 10))
    assert faults == [("transforms jumped back", "'base_link' by 2.9 s")]
    np.testing.assert_allclose(buffer.pose("odom", "lidar", S // 10), T_BASE_LIDAR, atol=1e-9)
    with pytest.raises(TransformError):
        buffer.pose("odom", "lidar", 2 * S)


def test_odometry_about_the_base_takes_the_place_of_the_lidar_from_tf(
    buffer: TransformBuffer,
) -> None:
    motion = OdometryMotion(None, buffer)
    for stamp in (S, 2 * S):
        motion.add("base_link", stamp, pose_at(stamp))
    (pose,) = motion.poses("lidar", np.array([S]))
    np.testing.assert_allclose(pose, pose_at(S) @ T_BASE_LIDAR, atol=1e-9)


def test_broken_transforms_are_left_out(
    buffer: TransformBuffer, faults: list[tuple[str, object]]
) -> None:
    broken = message("odom", "base_link", np.eye(4), 3 * S + 50_000_000)
    broken.transforms[0].transform.rotation.w = 0.0
    buffer._on_moving(broken)
    lost = message("odom", "base_link", np.eye(4), 3 * S + 50_000_000)
    lost.transforms[0].transform.translation.x = np.nan
    buffer._on_moving(lost)
    far = message("base_link", "lidar", np.eye(4))
    far.transforms[0].transform.translation.z = np.inf
    buffer._on_static(far)
    for parent, child in (("", "base_link"), ("odom", ""), ("/base_link", "base_link")):
        buffer._on_moving(message(parent, child, np.eye(4), 3 * S + 50_000_000))
    assert [(event, str(why).partition(":")[0]) for event, why in faults] == [
        ("transform refused", "'odom' to 'base_link'"),
        ("transform refused", "'odom' to 'base_link'"),
        ("transform refused", "'base_link' to 'lidar'"),
        ("transform refused", "'' to 'base_link'"),
        ("transform refused", "'odom' to ''"),
        ("transform refused", "'base_link' to 'base_link'"),
    ]
    np.testing.assert_allclose(
        buffer.pose("odom", "lidar", 3 * S), pose_at(3 * S) @ T_BASE_LIDAR, atol=1e-6
    )


def test_a_frame_with_two_parents_is_pointed_out(
    buffer: TransformBuffer, faults: list[tuple[str, object]]
) -> None:
    buffer._on_static(message("/base_link", "/lidar", T_BASE_LIDAR))
    assert faults == []
    buffer._on_static(message("imu", "lidar", T_BASE_LIDAR))
    (fault,) = faults
    assert fault[0] == "frame with two parents"
    assert str(fault[1]).startswith("'lidar' is placed in 'base_link' and in 'imu'")


def test_stamps_before_1970_have_no_transform(
    buffer: TransformBuffer, faults: list[tuple[str, object]]
) -> None:
    buffer._on_moving(message("odom", "early", np.eye(4), -5 * S))
    assert "after 1970" in str(faults[-1][1])
    with pytest.raises(TransformError, match="after 1970") as caught:
        buffer.pose("odom", "lidar", -5 * S)
    assert not caught.value.expected


def test_tf_stops_and_comes_back_over_dds(client: Client) -> None:
    with NodeProcess(
        "checkpoint:=fake",
        "diagnostics_period_s:=0.1",
        "temporal.enabled:=true",
        "motion.source:=tf",
        "motion.required:=true",
        "motion.timeout_s:=1.0",
    ) as process:
        node = client.attach(process)
        moving = client.node.create_publisher(TFMessage, "/tf", 10)
        static = client.node.create_publisher(TFMessage, "/tf_static", qos.latched())
        static.publish(message("base_link", "os_sensor", T_BASE_LIDAR))
        wait_for(moving.get_subscription_count, "a subscriber of /tf")
        wait_for(static.get_subscription_count, "a subscriber of /tf_static")

        def drive(begin_s: float, end_s: float) -> None:
            for stamp in range(round(begin_s * S), round(end_s * S) + 1, S // 10):
                moving.publish(message("odom", "base_link", pose_at(stamp), stamp))

        drive(10, 11)
        assert node.exchange(sweep(10, stamp=(10, 950_000_000))).width == 10
        node.send(sweep(11, stamp=(11, 500_000_000)))  # TF has stopped
        node.report(lambda s: value_of(s, "dropped: motion not known") == "1")
        node.send(sweep(12, stamp=(13, 0)))
        node.report(lambda s: value_of(s, "dropped: motion not known") == "2")
        drive(13, 14)
        assert node.exchange(sweep(13, stamp=(13, 950_000_000))).width == 13


def test_the_grid_in_a_fixed_frame_waits_for_the_frame(client: Client) -> None:
    with NodeProcess(
        "checkpoint:=fake",
        "diagnostics_period_s:=0.1",
        "grid.frame:=fixed",
        "grid.rate_hz:=50.0",
        "motion.source:=tf",
        "motion.timeout_s:=1.0",
    ) as process:
        node = client.attach(process)
        grids = node.listen(OccupancyGrid, "grid", qos.latched())
        moving = client.node.create_publisher(TFMessage, "/tf", 10)
        static = client.node.create_publisher(TFMessage, "/tf_static", qos.latched())
        wait_for(moving.get_subscription_count, "a subscriber of /tf")
        wait_for(static.get_subscription_count, "a subscriber of /tf_static")

        def left_out() -> bool:
            node.exchange(sweep(100, stamp=(10, 0)))  # no transform at all
            status = node.report(lambda _: True)
            return "the motion is not known" in value_of(status, "reason: grid left out")

        wait_for(left_out, "the reason")
        static.publish(message("base_link", "os_sensor", T_BASE_LIDAR))
        for stamp in range(10 * S, 12 * S + 1, S // 10):
            moving.publish(message("odom", "base_link", pose_at(stamp), stamp))
        node.exchange(sweep(100, stamp=(11, 0)))
        grid = grids.get(timeout=20)
        assert (grid.header.frame_id, grid.header.stamp.sec) == ("odom", 11)
        place = (pose_at(11 * S) @ T_BASE_LIDAR)[:3, 3]
        middle = grid.info.origin.position.x + 20, grid.info.origin.position.y + 20
        np.testing.assert_allclose(middle, place[:2], atol=0.21)


def stamped(kind: type, stamp_ns: int) -> Any:
    made = kind()
    made.header.stamp.sec, made.header.stamp.nanosec = divmod(stamp_ns, S)
    return made


@pytest.mark.parametrize(
    "sync, offset, matches",
    [
        ("exact", 0, 1),
        ("exact", 1, 0),
        ("approximate", 9_000_000, 1),
        ("approximate", 90_000_000, 0),
    ],
)
def test_message_filters(sync: str, offset: int, matches: int) -> None:
    pytest.importorskip("message_filters", reason="needs a ROS distribution (message_filters)")
    config = CameraParameters.model_validate({"sync": sync, "tolerance_s": 0.02})
    synchronizer = create_synchronizer(config, ("a", "b"))
    cloud = stamped(PointCloud2, 5 * S)
    begin = time.monotonic()
    synchronizer.add_sweep(5 * S, SimpleNamespace(msg=cloud), begin)
    synchronizer.add_image("a", 5 * S, stamped(Image, 5 * S))
    assert synchronizer.poll(begin) == []
    synchronizer.add_image("b", 5 * S + offset, stamped(Image, 5 * S + offset))
    found = synchronizer.poll(begin + 0.5)
    assert len(found) == matches
    if matches:
        assert found[0].sweep.msg is cloud and set(found[0].images) == {"a", "b"}
        assert found[0].stamps_ns["b"] == 5 * S + offset
        assert found[0].waited_s == pytest.approx(0.5)
