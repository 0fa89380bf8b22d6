# SPDX-License-Identifier: Apache-2.0
"""Where sensors were: exact cases, and nothing assumed where nothing is known."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pcseg_core.cloud import PointCloud
from pcseg_core.data.calibration import Calibration
from pcseg_core.geometry import from_euler, invert, transform
from pcseg_ros.motion import OdometryMotion
from pcseg_ros.rig import Rig, TransformError

S = 1_000_000_000
T_BODY_LIDAR = from_euler(0, 0, 0.5, (1.0, 0.0, 2.0))
T_CAM_LIDAR = from_euler(-np.pi / 2, 0, -np.pi / 2, (0.1, -0.2, 0.3))


def pose_at(stamp_ns: int) -> np.ndarray:
    """Drives along x at 10 m/s and turns at 0.2 rad/s."""
    t = stamp_ns / S
    return from_euler(0, 0, 0.2 * t, (10.0 * t, 0.0, 0.0))


def driving(until_ns: int = 5 * S, place: np.ndarray | None = T_BODY_LIDAR) -> OdometryMotion:
    motion = OdometryMotion(place, None)
    for stamp in range(0, until_ns + 1, S // 50):
        motion.add("base_link", stamp, pose_at(stamp))
    return motion


def test_pose_between_two_messages_and_the_place_of_the_lidar() -> None:
    stamp = 2 * S + 7_000_000
    found = driving().pose("lidar", stamp)
    np.testing.assert_allclose(found, pose_at(stamp) @ T_BODY_LIDAR, atol=1e-6)


@pytest.mark.parametrize(
    "stamp, on_its_way, words",
    [
        (-1, False, "begins later"),
        (5 * S + 1, True, "ends 0.000 s before"),
        (5 * S + S // 2, True, "ends 0.500 s before"),
        (6 * S + 1, False, "ends 1.000 s before"),  # it has stopped: not worth waiting for
    ],
)
def test_nothing_is_extrapolated(stamp: int, on_its_way: bool, words: str) -> None:
    with pytest.raises(TransformError, match=words) as caught:
        driving().pose("lidar", stamp)
    assert caught.value.on_its_way == on_its_way


def test_gap_unknown_place_and_no_messages() -> None:
    motion = driving()
    motion.add("base_link", 8 * S, pose_at(8 * S))
    with pytest.raises(TransformError, match="gap"):
        motion.pose("lidar", 7 * S)
    with pytest.raises(TransformError, match="T_body_lidar of 'lidar'"):
        driving(place=None).pose("lidar", S)
    np.testing.assert_allclose(driving(place=None).pose("/base_link", S), pose_at(S), atol=1e-12)
    with pytest.raises(TransformError, match="no Odometry"):
        OdometryMotion(None, None).pose("lidar", S)


def test_a_jump_back_starts_anew_and_late_messages_are_left() -> None:
    motion = driving()
    motion.add("base_link", 4 * S + 1, np.eye(4))  # out of order: not used
    np.testing.assert_allclose(motion.pose("base", 4 * S), pose_at(4 * S) @ T_BODY_LIDAR)
    motion.add("base_link", S, np.eye(4))
    np.testing.assert_allclose(motion.pose("base", S), T_BODY_LIDAR)
    with pytest.raises(TransformError):
        motion.pose("base", 4 * S)


def test_memory_is_bounded() -> None:
    motion = driving(60 * S)
    assert len(motion._stamps) <= 501


def rig(motion: OdometryMotion | None) -> Rig:
    cameras = {"front": {"T_cam_lidar": T_CAM_LIDAR.tolist()}}
    return Rig(motion, None, Calibration.model_validate({"cameras": cameras}))


def test_camera_at_another_time_than_the_sweep() -> None:
    image_ns, sweep_ns = 2 * S, 2 * S + 40_000_000
    T = rig(driving()).T_cam_lidar("front", "/front/image", "f", image_ns, "lidar", sweep_ns)
    world = np.array([[30.0, 4.0, 1.0]])
    in_lidar = transform(invert(pose_at(sweep_ns) @ T_BODY_LIDAR), world)
    in_camera = transform(T_CAM_LIDAR @ invert(pose_at(image_ns) @ T_BODY_LIDAR), world)
    np.testing.assert_allclose(transform(T, in_lidar), in_camera, atol=1e-6)
    still = rig(None).T_cam_lidar("front", "/front/image", "f", image_ns, "lidar", sweep_ns)
    np.testing.assert_allclose(still, T_CAM_LIDAR)


def test_camera_without_calibration_or_motion_is_never_guessed() -> None:
    with pytest.raises(TransformError, match="no camera 'rear'"):
        rig(driving()).T_cam_lidar("rear", "/rear/image", "r", S, "lidar", S)
    with pytest.raises(TransformError, match="ends"):
        rig(driving()).T_cam_lidar("front", "/front/image", "f", 6 * S, "lidar", S)


def test_deskewed_points_are_where_the_lidar_saw_them_at_its_stamp() -> None:
    stamp = 3 * S
    times = np.linspace(0, 0.1, 500)
    world = np.random.default_rng(0).uniform(-30, 30, (500, 3))
    poses = np.stack([pose_at(stamp + int(1e9 * t)) @ T_BODY_LIDAR for t in times])
    seen = np.stack([transform(invert(T), p) for T, p in zip(poses, world)])
    cloud = PointCloud(seen.astype(np.float32), time=times, frame_id="lidar", stamp_ns=stamp)
    moved = rig(driving()).deskew(cloud)
    expected = transform(invert(poses[0]), world)
    assert np.abs(seen - expected).max() > 0.5  # there is something to correct
    np.testing.assert_allclose(moved, expected, atol=2e-3)


def test_deskew_without_times_or_points_changes_nothing() -> None:
    cloud = PointCloud(np.ones((3, 3), np.float32), stamp_ns=S)
    assert rig(driving()).deskew(cloud) is cloud.xyz
    empty = PointCloud(np.zeros((0, 3), np.float32), time=np.zeros(0), stamp_ns=S)
    assert len(rig(driving()).deskew(empty)) == 0
    timeless = PointCloud(np.ones((3, 3), np.float32), time=np.full(3, np.nan), stamp_ns=S)
    np.testing.assert_array_equal(rig(driving()).deskew(timeless), 1)


def test_waits_for_a_pose_that_is_on_its_way() -> None:
    motion = driving(S)
    waiting = rig(motion)

    def arrive() -> None:
        motion.add("base_link", S + 20_000_000, pose_at(S + 20_000_000))
        waiting.notify()

    timer = threading.Timer(0.1, arrive)
    timer.start()
    begin = time.monotonic()
    waiting.wait(lambda: waiting.pose("lidar", S + 10_000_000), begin + 5.0)
    assert 0.05 < time.monotonic() - begin < 2.0


def test_waits_no_longer_than_allowed_and_not_for_what_will_not_come() -> None:
    waiting = rig(driving(S))
    begin = time.monotonic()
    with pytest.raises(TransformError):
        waiting.wait(lambda: waiting.pose("lidar", S + 10_000_000), begin + 0.1)
    assert 0.1 <= time.monotonic() - begin < 1.0
    begin = time.monotonic()
    with pytest.raises(TransformError):
        waiting.wait(lambda: waiting.pose("lidar", 9 * S), begin + 5.0)
    assert time.monotonic() - begin < 1.0
