# SPDX-License-Identifier: Apache-2.0
"""Convert a KITTI raw drive into a rosbag2 as recorded by a robot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.cloud import EncodedCloud, encode_cloud
from pcseg_core.data.bag_writer import BagWriter, Format
from pcseg_core.data.kitti import KittiRawRecording
from pcseg_core.data.kitti_files import LIDAR_FRAME
from pcseg_core.data.sample import CameraFrame, Sample
from pcseg_core.errors import InputError
from pcseg_core.geometry import compose, invert
from pcseg_core.progress import tracked

CLOUD_TOPIC = "/velodyne_points"
ODOMETRY_TOPIC = "/odometry"
BASE_FRAME = "base_link"  # the GPS/IMU unit
FIXED_FRAME = "odom"
GRAY = ("image_00", "image_01")


def write_kitti_bag(
    drive: KittiRawRecording,
    out: str | os.PathLike[str],
    format: Format = "mcap",
    raw_images: bool = False,
    compress: bool = False,
    force: bool = False,
) -> BagWriter:
    """Write a drive as a bag: clouds, images with CameraInfo, /tf_static, /tf and Odometry.

    Frames: odom -> base_link (moving), base_link -> velodyne and -> camera_N (static; camera_N is
    the optical frame of the rectified image, so image topics are image_rect*). Unreadable sweeps
    and images are skipped and counted in `drive.skipped`.

    Args:
        drive: the drive.
        out: folder of the new bag.
        format: "mcap" or "sqlite3".
        raw_images: write sensor_msgs/Image instead of CompressedImage with the PNG files.
        compress: zstd.
        force: replace a bag at `out`.

    Returns:
        The closed writer, for its `path` and `counts`.

    Raises:
        InputError: `out` is taken or cannot be written, or no sweep of the drive is readable.
    """
    with BagWriter(out, format=format, compress=compress, force=force) as writer:
        _write_static(writer, drive)
        _write_poses(writer, drive)
        for index in tracked(range(len(drive)), f"Writing {writer.path.name}"):
            try:
                sample = drive[index]
            except InputError as error:
                drive.skipped[f"unreadable sample: {error}"] += 1
                continue
            cloud = _encode(sample)
            writer.write_cloud(CLOUD_TOPIC, cloud, LIDAR_FRAME, sample.stamp_ns)
            for frame in sample.cameras:
                _write_image(writer, drive, frame, drive.frames[index], raw_images)
        if CLOUD_TOPIC not in writer.counts:
            raise InputError(f"{drive.path}: no sweep could be read: {next(iter(drive.skipped))}")
    return writer


def camera_frame_id(name: str) -> str:
    """Optical frame of a camera folder: image_02 has camera_2."""
    return f"camera_{int(name[-2:])}"


def image_topic(name: str) -> str:
    """Image topic of a camera folder: image_rect for gray cameras, image_rect_color for others."""
    leaf = "image_rect" if name in GRAY else "image_rect_color"
    return f"/{camera_frame_id(name)}/{leaf}"


def _write_static(writer: BagWriter, drive: KittiRawRecording) -> None:
    T_base_lidar = invert(drive.T_velo_imu())
    transforms: dict[tuple[str, str], npt.NDArray[Any]] = {(BASE_FRAME, LIDAR_FRAME): T_base_lidar}
    for name, (_, T_cam_lidar) in drive.cameras.items():
        transforms[(BASE_FRAME, camera_frame_id(name))] = compose(T_base_lidar, invert(T_cam_lidar))
    writer.write_tf(transforms, int(drive.stamps[0]), static=True)


def _write_poses(writer: BagWriter, drive: KittiRawRecording) -> None:
    """/tf and Odometry of base_link, at the stamps of the poses."""
    if drive.trajectory is None:
        return
    T_lidar_base = drive.T_velo_imu()
    stamps = drive.trajectory.stamps_ns.tolist()
    poses = drive.trajectory.poses @ T_lidar_base
    for position, (stamp, pose) in enumerate(zip(stamps, poses)):
        writer.write_tf({(FIXED_FRAME, BASE_FRAME): pose}, stamp)
        linear, angular = _velocity(stamps, poses, position)
        writer.write_odometry(ODOMETRY_TOPIC, pose, FIXED_FRAME, BASE_FRAME, stamp, linear, angular)


def _velocity(
    stamps: list[int], poses: npt.NDArray[np.float64], position: int
) -> tuple[list[float], list[float]]:
    """Linear and angular velocity in the moving frame, from differences of poses."""
    before, after = max(0, position - 1), min(len(stamps) - 1, position + 1)
    if before == after:
        return [0.0] * 3, [0.0] * 3
    seconds = (stamps[after] - stamps[before]) * 1e-9
    step = poses[position][:3, :3].T @ (poses[after][:3, 3] - poses[before][:3, 3])
    turn = poses[before][:3, :3].T @ poses[after][:3, :3]
    # For a few degrees, the skew part is the rotation vector up to second order.
    skew = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
    return (step / seconds).tolist(), (skew / seconds).tolist()


def _encode(sample: Sample) -> EncodedCloud:
    xyz = sample.cloud.xyz
    intensity, time = sample.cloud.intensity, sample.cloud.time
    assert intensity is not None and time is not None
    columns = {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2], "intensity": intensity}
    columns["time"] = time.astype(np.float32)
    return encode_cloud(columns)


def _write_image(
    writer: BagWriter, drive: KittiRawRecording, frame: CameraFrame, number: int, raw: bool
) -> None:
    path = drive.image_path(frame.name, number)
    frame_id, topic, stamp = camera_frame_id(frame.name), image_topic(frame.name), frame.stamp_ns
    try:
        pixels = frame.image  # checks that the copied file decodes
    except InputError as error:
        drive.skipped[f"unreadable image: {error}"] += 1
        return
    if raw:
        gray = frame.name in GRAY
        writer.write_image(topic, pixels[:, :, 0] if gray else pixels, frame_id, stamp)
    else:
        writer.write_compressed_image(
            f"{topic}/compressed", path.read_bytes(), _format(path), frame_id, stamp
        )
    writer.write_camera_info(f"/{frame_id}/camera_info", frame.camera, frame_id, stamp)


def _format(path: Path) -> str:
    return path.suffix.lstrip(".").lower()
