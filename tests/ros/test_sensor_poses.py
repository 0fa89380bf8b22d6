# SPDX-License-Identifier: Apache-2.0
"""Poses of the sensors: exact cases, and nothing assumed if nothing is known."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.calibration import Calibration
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.geometry import Trajectory, from_euler, invert, transform, undo_motion
from pcseg_ros.sensor_poses import OdometryMotion, SensorPoses, TransformError

S = 1_000_000_000
T_BODY_LIDAR = from_euler(0, 0, 0.5, (1.0, 0.0, 2.0))
LATE = np.array([S + 10_000_000])  # after Odometry until S
T_CAM_LIDAR = from_euler(-np.pi / 2, 0, -np.pi / 2, (0.1, -0.2, 0.3))


def pose_at(stamp_ns: int) -> np.ndarray:
    """Drives along x at 10 m/s and turns at 0.2 rad/s."""
    t = stamp_ns / S
    return from_euler(0, 0, 0.2 * t, (10.0 * t, 0.0, 0.0))


def at(motion: OdometryMotion, lidar: str, stamp_ns: int) -> np.ndarray:
    """T_odom_lidar at one stamp."""
    return motion.poses(lidar, np.array([stamp_ns]))[0]


def driving(until_ns: int = 5 * S, place: np.ndarray | None = T_BODY_LIDAR) -> OdometryMotion:
    motion = OdometryMotion(place, None)
    for stamp in range(0, until_ns + 1, S // 50):
        motion.add("base_link", stamp, pose_at(stamp))
    return motion


def test_pose_between_two_messages_and_the_place_of_the_lidar() -> None:
    stamp = 2 * S + 7_000_000
    found = at(driving(), "lidar", stamp)
    np.testing.assert_allclose(found, pose_at(stamp) @ T_BODY_LIDAR, atol=1e-6)


@pytest.mark.parametrize(
    "stamp, expected, words",
    [
        (-1, False, "begins later"),
        (5 * S + 1, True, "ends 0.000 s before"),
        (5 * S + S // 2, True, "ends 0.500 s before"),
        (6 * S + 1, False, "ends 1.000 s before"),  # it has stopped: not worth waiting for
    ],
)
def test_nothing_is_extrapolated(stamp: int, expected: bool, words: str) -> None:
    with pytest.raises(TransformError, match=words) as caught:
        at(driving(), "lidar", stamp)
    assert caught.value.expected == expected


def test_gap_unknown_place_and_no_messages() -> None:
    motion = driving()
    motion.add("base_link", 8 * S, pose_at(8 * S))
    with pytest.raises(TransformError, match="gap"):
        at(motion, "lidar", 7 * S)
    with pytest.raises(TransformError, match="T_body_lidar of 'lidar'"):
        at(driving(place=None), "lidar", S)
    np.testing.assert_allclose(at(driving(place=None), "/base_link", S), pose_at(S), atol=1e-12)
    with pytest.raises(TransformError, match="no Odometry"):
        at(OdometryMotion(None, None), "lidar", S)


def test_odometry_of_a_wrong_frame_is_not_waited_for() -> None:
    poses = SensorPoses(driving(place=None), None, None)
    deadline_s = time.monotonic() + 60
    with pytest.raises(TransformError, match="T_body_lidar of 'lidar'") as caught:
        poses.wait(lambda: poses.poses("lidar", LATE + 4 * S), deadline_s)
    assert not caught.value.expected


def test_a_jump_back_starts_anew_and_late_messages_are_left() -> None:
    motion = driving()
    motion.add("base_link", 4 * S + 1, np.eye(4))  # out of order: not used
    np.testing.assert_allclose(at(motion, "base", 4 * S), pose_at(4 * S) @ T_BODY_LIDAR)
    motion.add("base_link", S, np.eye(4))
    np.testing.assert_allclose(at(motion, "base", S), T_BODY_LIDAR)
    with pytest.raises(TransformError):
        at(motion, "base", 4 * S)


def test_memory_is_bounded() -> None:
    motion = driving(60 * S)
    assert len(motion._stamps) <= 501


def poses_of(motion: OdometryMotion | None) -> SensorPoses:
    cameras = {"front": {"T_cam_lidar": T_CAM_LIDAR.tolist()}}
    return SensorPoses(motion, None, Calibration.model_validate({"cameras": cameras}))


def test_camera_at_another_time_than_the_sweep() -> None:
    image_ns, sweep_ns = 2 * S, 2 * S + 40_000_000
    T = poses_of(driving()).T_cam_lidar("front", "/front/image", "f", image_ns, "lidar", sweep_ns)
    world = np.array([[30.0, 4.0, 1.0]])
    in_lidar = transform(invert(pose_at(sweep_ns) @ T_BODY_LIDAR), world)
    in_camera = transform(T_CAM_LIDAR @ invert(pose_at(image_ns) @ T_BODY_LIDAR), world)
    np.testing.assert_allclose(transform(T, in_lidar), in_camera, atol=1e-6)
    still = poses_of(None).T_cam_lidar("front", "/front/image", "f", image_ns, "lidar", sweep_ns)
    np.testing.assert_allclose(still, T_CAM_LIDAR)


def recorded() -> Trajectory:
    """The same motion as a recording has it."""
    stamps = np.arange(0, 5 * S + 1, S // 50)
    return Trajectory(stamps, np.stack([pose_at(s) for s in stamps])).mounted(T_BODY_LIDAR)


def test_poses_equal_those_of_a_recording_bit_for_bit() -> None:
    motion, trajectory = driving(), recorded()
    between = np.random.default_rng(0).integers(0, 5 * S, 200)
    stamps = np.concatenate([between, trajectory.stamps_ns])  # also those of the messages
    np.testing.assert_array_equal(motion.poses("lidar", stamps), trajectory.at_many(stamps))
    for stamp in stamps:
        np.testing.assert_array_equal(at(motion, "lidar", int(stamp)), trajectory.at(int(stamp)))


def test_the_newest_pose_stays_the_same_when_the_next_one_arrives() -> None:
    rng, motion = np.random.default_rng(0), OdometryMotion(T_BODY_LIDAR, None)
    stamps = range(0, 5 * S, S // 50)
    newest = []
    for stamp in stamps:
        motion.add("base_link", stamp, from_euler(*rng.uniform(-1, 1, 3), rng.uniform(-9, 9, 3)))
        newest.append(at(motion, "lidar", stamp))
    later = motion.poses("lidar", np.array(stamps))
    np.testing.assert_array_equal(later[1:], newest[1:])  # a first pose is not interpolated


def test_camera_transforms_equal_those_of_a_recording_bit_for_bit() -> None:
    sensors, trajectory = poses_of(driving()), recorded()
    camera = CameraModel.pinhole(20.0, 20.0, 31.5, 23.5, 64, 48)
    for image_ns in np.random.default_rng(1).integers(2 * S, 3 * S, 50).tolist():
        frame = CameraFrame("front", image_ns, camera, T_CAM_LIDAR, np.zeros((48, 64, 3)))
        cloud = PointCloud(np.zeros((1, 3), np.float32), stamp_ns=2 * S + 40_000_000)
        sample = Sample(cloud, [frame], trajectory)
        live = sensors.T_cam_lidar("front", "/front", "f", image_ns, "lidar", cloud.stamp_ns)
        np.testing.assert_array_equal(live, sample.T_cam_lidar(0))


def test_camera_without_calibration_or_motion_is_never_guessed() -> None:
    with pytest.raises(TransformError, match="no camera 'rear'"):
        poses_of(driving()).T_cam_lidar("rear", "/rear/image", "r", S, "lidar", S)
    with pytest.raises(TransformError, match="ends"):
        poses_of(driving()).T_cam_lidar("front", "/front/image", "f", 6 * S, "lidar", S)


def test_deskewed_points_are_where_the_lidar_saw_them_at_its_stamp() -> None:
    stamp = 3 * S
    times = np.linspace(0, 0.1, 500)
    world = np.random.default_rng(0).uniform(-30, 30, (500, 3))
    poses = np.stack([pose_at(stamp + int(1e9 * t)) @ T_BODY_LIDAR for t in times])
    seen = np.stack([transform(invert(T), p) for T, p in zip(poses, world)])
    sensors = poses_of(driving())
    xyz = seen.astype(np.float32)
    moved = undo_motion(xyz, times, lambda stamps: sensors.poses("lidar", stamps), stamp)
    expected = transform(invert(poses[0]), world)
    assert np.abs(seen - expected).max() > 0.5  # there is something to correct
    np.testing.assert_allclose(moved, expected, atol=2e-3)


def test_utm_coordinates_give_the_same_points_and_images() -> None:
    origin = np.eye(4)
    origin[:3, 3] = 500_000.0, 5_500_000.0, 3_000.0
    far = OdometryMotion(T_BODY_LIDAR, None)
    for stamp in range(0, 5 * S + 1, S // 50):
        far.add("base_link", stamp, origin @ pose_at(stamp))
    times, xyz = np.linspace(0, 0.1, 500), np.random.default_rng(0).uniform(-30, 30, (500, 3))
    here, there = (
        undo_motion(xyz, times, partial(poses_of(motion).poses, "lidar"), 3 * S)
        for motion in (driving(), far)
    )
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)
    asked = ("front", "/front/image", "f", 3 * S + 7, "lidar", 3 * S + 40_000_000)
    np.testing.assert_allclose(
        poses_of(far).T_cam_lidar(*asked), poses_of(driving()).T_cam_lidar(*asked), atol=1e-7
    )


def test_waits_for_a_late_pose() -> None:
    motion = driving(S)
    waiting = poses_of(motion)

    def arrive() -> None:
        motion.add("base_link", S + 20_000_000, pose_at(S + 20_000_000))
        waiting.notify()

    timer = threading.Timer(0.1, arrive)
    timer.start()
    begin = time.monotonic()
    waiting.wait(lambda: waiting.poses("lidar", LATE), begin + 5.0)
    assert 0.05 < time.monotonic() - begin < 2.0


def test_waits_no_longer_than_allowed_and_not_for_what_will_not_come() -> None:
    waiting = poses_of(driving(S))
    begin = time.monotonic()
    with pytest.raises(TransformError):
        waiting.wait(lambda: waiting.poses("lidar", LATE), begin + 0.1)
    assert 0.1 <= time.monotonic() - begin < 1.0
    begin = time.monotonic()
    with pytest.raises(TransformError):
        waiting.wait(lambda: waiting.poses("lidar", np.array([9 * S])), begin + 5.0)
    assert time.monotonic() - begin < 1.0
