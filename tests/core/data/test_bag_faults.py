# SPDX-License-Identifier: Apache-2.0
"""Recordings with faults: one bad item costs one item, and is counted once with its reason."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from camera_bags import FRONT, camera_bag, image_message
from recordings import (
    CAMERA,
    PERIOD,
    START,
    T_BASE_LIDAR,
    T_CAM_LIDAR,
    lidar_pose,
    picture,
    png,
    points,
)

from pcseg_core.cloud import encode_cloud
from pcseg_core.data import messages
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_cameras import no_picture
from pcseg_core.data.bag_info import inspect_bag
from pcseg_core.data.bag_reader import COMPRESSED_IMAGE, IMAGE, ODOMETRY, TF
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError
from pcseg_core.geometry import from_euler, invert


def _findings(report, level: str) -> list[str]:
    return [f.what for f in report.findings if f.level == level]


@pytest.mark.parametrize("encoding", ["yuv422", "yuv422_yuy2", "uyvy", "yuyv"])
def test_cameras_of_packed_yuv_are_usable(tmp_path, encoding: str) -> None:
    path = camera_bag(
        tmp_path / "drive",
        image=lambda i: (FRONT, IMAGE, image_message(START + i * PERIOD, encoding)),
    )
    report, _ = inspect_bag(path)
    assert report.trainable and report.visible > 0


def _double_size(i: int) -> object:
    info = messages.camera_info(CAMERA, "cam", START + i * PERIOD)
    info.width, info.height = 2 * info.width, 2 * info.height
    return info


def _video(i: int) -> tuple[str, str, object]:
    message = messages.compressed_image(bytes(50 + i), "h264", "cam", START + i * PERIOD)
    return f"{FRONT}/compressed", COMPRESSED_IMAGE, message


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"info": _double_size}, "its camera model is for 80x40"),
        ({"image": _video}, "a video"),
        (
            {"image": lambda i: (FRONT, IMAGE, image_message(START + i * PERIOD, "16UC1"))},
            "encoding '16UC1' is not supported",
        ),
    ],
)
def test_images_that_cannot_be_used_decide_the_verdict(tmp_path, parts, reason: str) -> None:
    report, _ = inspect_bag(camera_bag(tmp_path / "drive", **parts))
    assert not report.trainable
    (fault,) = [what for what in _findings(report, "error") if "images of front" in what]
    assert reason in fault and fault.startswith("6 of 6")
    (entry,) = [e for topic, e in report.account.items() if topic.startswith(FRONT)]
    assert (entry.held, entry.used, entry.unexplained) == (6, 0, 0)
    assert reason in str(entry.failed)


def test_a_broken_camera_does_not_take_the_others_along(tmp_path) -> None:
    def extra(writer: BagWriter, i: int) -> None:
        stamp = START + i * PERIOD
        writer.write_message("/rear/image_raw", IMAGE, image_message(stamp, "16UC1"), stamp)
        writer.write_camera_info("/rear/camera_info", CAMERA, "cam", stamp)

    report, recording = inspect_bag(camera_bag(tmp_path / "drive", extra=extra))
    assert report.trainable and [c.topics.name for c in recording.cameras] == ["front"]
    assert any("/rear/image_raw cannot be used" in what for what in _findings(report, "warning"))
    assert "encoding '16UC1'" in str(report.account["/rear/image_raw"].left_out)


@pytest.mark.parametrize("zeros", [1, 3])
def test_the_first_calibrated_camera_info_counts(tmp_path, zeros: int) -> None:
    def info(i: int) -> object:
        message = messages.camera_info(CAMERA, "cam", START + i * PERIOD)
        if i < zeros:
            message.k, message.p = np.zeros(9), np.zeros(12)
        return message

    recording = BagRecording(camera_bag(tmp_path / "drive", info=info))
    np.testing.assert_array_equal(recording.cameras[0].model.K, CAMERA.K)
    assert not [p for p in recording.problems if p.startswith("camera")]


def test_a_calibration_that_changes_is_named(tmp_path) -> None:
    def info(i: int) -> object:
        message = messages.camera_info(CAMERA, "cam", START + i * PERIOD)
        message.k = message.k * (1.0 if i < 4 else 1.5)
        return message

    report, _ = inspect_bag(camera_bag(tmp_path / "drive", info=info))
    assert any("CameraInfo changes" in what for what in _findings(report, "warning"))


def _noisy(size_m: float, size_rad: float) -> Callable[[BagWriter, int], None]:
    def write(writer: BagWriter, i: int) -> None:
        sign = (-1) ** i
        noise = from_euler(0.0, 0.0, sign * size_rad, (sign * size_m, 0.0, 0.0))
        writer.write_tf({("lidar", "cam"): noise @ invert(T_CAM_LIDAR)}, START + i * PERIOD)

    return write


@pytest.mark.parametrize("size", [(3e-6, 0.0), (4e-4, 0.0), (0.0, 4e-4)])
def test_sensors_with_a_little_noise_are_fixed(tmp_path, size: tuple[float, float]) -> None:
    recording = BagRecording(camera_bag(tmp_path / "drive", static=_noisy(*size)), poses="none")
    assert len(recording.cameras) == 1
    np.testing.assert_allclose(recording.cameras[0].T_cam_lidar, T_CAM_LIDAR, atol=5e-3)


@pytest.mark.parametrize("size", [(6e-4, 0.0), (0.0, 6e-4)])
def test_sensors_that_move_by_a_millimeter_are_not_fixed(tmp_path, size) -> None:
    recording = BagRecording(camera_bag(tmp_path / "drive", static=_noisy(*size)), poses="none")
    assert "must be fixed to each other" in recording.problems[0]


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("/infrastructure/cam/image_raw", ""),
        ("/segmentation_cam/image_raw", ""),
        ("/camera/depth_cam/color/image_raw", ""),
        ("/labeling_rig/cam0/image_raw/compressed", ""),
        ("/camera/depth/image_rect_raw", "a depth image"),
        ("/camera/aligned_depth_to_color/image_raw", "a depth image"),
        ("/camera/infra1/image_rect_raw", "an infrared image"),
        ("/pcseg/overlay/compressed", "a picture with drawings"),
        ("/cam/label_image", "labels"),
        ("/camera/image_raw/theora", "a video"),
        ("/camera/image_raw/compressedDepth", "a depth image"),
    ],
)
def test_the_last_part_of_a_name_decides_what_an_image_is(topic: str, reason: str) -> None:
    assert no_picture(topic) == reason


def test_cameras_with_telling_names_are_found_and_the_rest_is_listed(tmp_path) -> None:
    def extra(writer: BagWriter, i: int) -> None:
        for topic in ("/infrastructure/cam/image_raw", "/infrastructure/depth/image_raw"):
            writer.write_image(topic, picture(), "cam", START + i * PERIOD)
        writer.write_camera_info(
            "/infrastructure/cam/camera_info", CAMERA, "cam", START + i * PERIOD
        )

    recording = BagRecording(camera_bag(tmp_path / "drive", extra=extra))
    assert [c.topics.name for c in recording.cameras] == ["front", "infrastructure/cam"]
    left = recording.account.entries()["/infrastructure/depth/image_raw"].left_out
    assert left == {"a depth image, by its name": 6}


def test_unrectified_images_are_not_rectified(tmp_path) -> None:
    info = messages.camera_info(CAMERA, "cam", START)
    info.p, info.d = info.p * 0.5, np.array([-0.3, 0.1, 0.0, 0.0, 0.0])
    path = camera_bag(
        tmp_path / "drive",
        image=lambda i: ("/front/image_unrectified", IMAGE, image_message(START + i * PERIOD)),
        info=lambda i: info,
    )
    (camera,) = BagRecording(path).cameras
    assert not camera.topics.rectified and camera.model.D[0] == -0.3


def test_one_bad_message_among_many_costs_one(tmp_path) -> None:
    def extra(writer: BagWriter, i: int) -> None:
        stamp = START + i * PERIOD
        pose = messages.tf({("odom", "lidar"): lidar_pose(i)}, stamp)
        if i == 2:
            pose.transforms[0].transform.translation.x = float("nan")
        if i == 3:
            pose.transforms[0].transform.rotation.w = 0.0
            pose.transforms[0].transform.rotation.z = 0.0
        if i == 4:
            pose.transforms[0].transform.translation.y = 1e30
        writer.write_message("/tf", TF, pose, stamp)

    recording = BagRecording(camera_bag(tmp_path / "drive", extra=extra))
    assert recording.pose_source == "tf" and len(recording.trajectory) == 3
    assert recording.skipped["/tf: transform of 'lidar' that is no pose"] == 3


@pytest.mark.parametrize("fault", ["nan", "zero", "frame"])
def test_one_bad_odometry_costs_one(tmp_path, fault: str) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        writer.write_tf({("base_link", "lidar"): T_BASE_LIDAR}, START, static=True)
        for i in range(6):
            stamp = START + i * PERIOD
            cloud = encode_cloud(dict(zip("xyz", points(seed=i).T)))
            writer.write_cloud("/points", cloud, "lidar", stamp)
            pose = lidar_pose(i)
            odometry = messages.odometry(pose, "odom", "base_link", stamp, (0, 0, 0), (0, 0, 0))
            if i == 0 and fault == "nan":
                odometry.pose.pose.position.y = float("inf")
            if i == 0 and fault == "zero":
                odometry.pose.pose.orientation.w = odometry.pose.pose.orientation.z = 0.0
            if i == 0 and fault == "frame":
                odometry.child_frame_id = ""
            writer.write_message("/odometry", ODOMETRY, odometry, stamp)
    recording = BagRecording(tmp_path / "drive", poses="odometry")
    assert len(recording.trajectory) == 5
    entry = recording.account.entries()["/odometry"]
    assert (entry.held, entry.used, entry.unexplained) == (6, 5, 0)


def test_messages_in_another_frame_are_left_out(tmp_path) -> None:
    with BagWriter(tmp_path / "drive") as writer:
        for i in range(6):
            cloud = encode_cloud(dict(zip("xyz", points(seed=i).T)))
            frame = "rear_lidar" if i in (0, 3) else "lidar"
            writer.write_cloud("/points", cloud, frame, START + i * PERIOD)
    recording = BagRecording(tmp_path / "drive", poses="none")
    assert recording.lidar_frame == "lidar" and len(recording) == 4
    np.testing.assert_array_equal(recording[0].cloud.xyz, points(seed=1)[:, :3])
    entry = recording.account.entries()["/points"]
    assert (entry.held, entry.used, entry.unexplained) == (6, 4, 0)
    assert entry.left_out == {"frame_id 'rear_lidar' where most messages have 'lidar'": 2}


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("livox_ros_driver2/msg/CustomMsg", "xfer_format"),
        ("velodyne_msgs/msg/VelodyneScan", "packets of the sensor"),
        ("sensor_msgs/msg/PointCloud", "convert it to PointCloud2"),
    ],
)
def test_points_in_other_messages_are_named(tmp_path, kind: str, hint: str) -> None:
    mcap_writer = pytest.importorskip("mcap.writer")
    path = tmp_path / "other.mcap"
    with path.open("wb") as stream:
        writer = mcap_writer.Writer(stream)
        writer.start(profile="ros2")
        schema = writer.register_schema(kind, "ros2msg", b"std_msgs/Header header")
        channel = writer.register_channel("/points", "cdr", schema)
        writer.add_message(channel, log_time=START, data=b"\0\1\0\0", publish_time=START)
        writer.finish()
    with pytest.raises(InputError, match=f"no PointCloud2 topic.*{hint}"):
        BagRecording(path)


def test_the_same_recording_with_png_files_is_usable(tmp_path) -> None:
    path = camera_bag(
        tmp_path / "drive",
        image=lambda i: (
            f"{FRONT}/compressed",
            COMPRESSED_IMAGE,
            messages.compressed_image(png(picture()), "png", "cam", START + i * PERIOD),
        ),
    )
    assert inspect_bag(path)[0].trainable


BASELINE_M = 0.12


@pytest.mark.parametrize("own_frame", [True, False])
def test_the_baseline_of_a_stereo_pair_counts_once(tmp_path, own_frame: bool) -> None:
    """With the frame of the left camera P holds the baseline; with its own frame TF does."""
    left = CAMERA
    P = np.hstack([CAMERA.K, [[-CAMERA.K[0, 0] * BASELINE_M], [0.0], [0.0]]])
    right = replace(CAMERA, P=P)
    T_left_right = from_euler(0.0, 0.0, 0.0, (BASELINE_M, 0.0, 0.0))
    with BagWriter(tmp_path / "drive") as writer:
        static = {("lidar", "left"): invert(T_CAM_LIDAR), ("left", "right"): T_left_right}
        writer.write_tf(static, START, static=True)
        cloud = encode_cloud(dict(zip("xyz", points().T)))
        writer.write_cloud("/points", cloud, "lidar", START)
        for name, model in (("left", left), ("right", right)):
            frame = name if own_frame else "left"
            writer.write_image(f"/{name}/image_raw", picture(), frame, START)
            writer.write_camera_info(f"/{name}/camera_info", model, frame, START)
    sample = BagRecording(tmp_path / "drive", poses="none")[0]
    seen = np.array([[8.0, 0.5, 0.3], [5.0, -0.4, 0.1]])
    pixels = []
    for k, frame in enumerate(sample.cameras):
        T = sample.T_cam_lidar(k)
        pixels.append(frame.camera.project(seen @ T[:3, :3].T + T[:3, 3])[0])
    disparity = pixels[0] - pixels[1]
    np.testing.assert_allclose(disparity[:, 0], CAMERA.K[0, 0] * BASELINE_M / seen[:, 0], rtol=1e-6)
    np.testing.assert_allclose(disparity[:, 1], 0.0, atol=1e-9)


def test_an_odometry_that_fails_leaves_the_bag_without_poses(tmp_path, monkeypatch) -> None:
    def fail(*_args: object) -> None:
        raise InputError("too few points")

    monkeypatch.setattr("pcseg_core.data.bag_poses.find_spec", lambda name: object())
    monkeypatch.setattr("pcseg_core.data.bag.cached_trajectory", fail)
    path = camera_bag(tmp_path / "drive")
    recording = BagRecording(path)
    assert recording.pose_source == "none"
    assert "kiss-icp: too few points" in recording.problems[0]
    with pytest.raises(InputError, match="too few points"):
        BagRecording(path, poses="kiss-icp")
