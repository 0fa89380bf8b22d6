# SPDX-License-Identifier: Apache-2.0
"""Convert a simulated drive into a rosbag2 with labels in the clouds."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from pcseg_core.cloud import EncodedCloud, encode_cloud
from pcseg_core.data.bag_writer import BagWriter, Format
from pcseg_core.data.sample import CameraFrame
from pcseg_core.errors import InputError
from pcseg_core.files import write_atomic
from pcseg_core.geometry import compose, invert
from pcseg_core.labels import to_wire
from pcseg_core.progress import tracked
from pcseg_core.simulation.lidar import Sweep
from pcseg_core.simulation.recording import SimulatedDrive

CLOUD_TOPIC = "/lidar/points"  # of the first LiDAR
ODOMETRY_TOPIC = "/odometry"
BASE_FRAME, FIXED_FRAME = "base_link", "odom"
_POSE_STRIDE = 2  # of the poses of the exact trajectory, at 100 Hz
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class _Recorded:
    """The sweeps, and the images from the start of the first to that of the next."""

    sweeps: list[Sweep]
    clouds: list[EncodedCloud]
    frames: list[CameraFrame]
    images: list[npt.NDArray[np.uint8] | bytes]


def write_simulated_bag(
    drive: SimulatedDrive,
    out: str | os.PathLike[str],
    format: Format = "mcap",
    raw_images: bool = False,
    compress: bool = False,
    force: bool = False,
    workers: int = 2,
) -> BagWriter:
    """Write a drive as a bag: clouds, images with CameraInfo, /tf_static, /tf and Odometry.

    Frames: odom -> base_link (moving), base_link -> each LiDAR and -> each camera's optical frame
    (static). Each LiDAR has a topic, /lidar/points is the first. Clouds have the fields x, y, z,
    intensity, ring, time (float32, s since the stamp), label (uint32, ids of the label space in
    labels.yaml), instance (int32) and, with two returns per beam, return_type (uint8 of
    `ReturnType`). Calibration and stamps are as reported by the drive, including faults. A sweep,
    whose stamp is its start, is recorded at its end.

    Args:
        drive: with a stride of 1, since a bag holds every sweep.
        out: folder of the new bag.
        format: "mcap" or "sqlite3".
        raw_images: write sensor_msgs/Image; else CompressedImage (JPEG).
        compress: zstd.
        force: replace a bag at `out`.
        workers: number of rendering threads.

    Returns:
        The closed writer, for its `path` and `counts`.

    Raises:
        InputError: `out` is taken or cannot be written, or the stride is not 1.
    """
    if drive.options.stride != 1:
        raise InputError(
            f"{drive.name}: a bag holds every sweep, but the drive has stride "
            f"{drive.options.stride}; make it with stride 1"
        )
    with BagWriter(out, format=format, compress=compress, force=force) as writer:
        _write_static(writer, drive)
        _write_poses(writer, drive)
        recorded = _record(drive, raw_images, workers)
        for moment in tracked(recorded, f"Writing {writer.path.name}", total=len(drive)):
            for spec, sweep, encoded in zip(drive.world.lidars, moment.sweeps, moment.clouds):
                lidar, stamp = sweep.cloud.frame_id, sweep.cloud.stamp_ns
                measured_ns = stamp + round(1e9 * spec.sweep_s)  # a driver sends whole sweeps
                writer.write_cloud(f"/{lidar}/points", encoded, lidar, stamp, measured_ns)
            for frame, image in zip(moment.frames, moment.images):
                _write_image(writer, frame, image)
    classes = yaml.safe_dump(drive.label_space.to_dict(), sort_keys=False)
    write_atomic(writer.path / "labels.yaml", classes)  # label space, for readers
    return writer


def camera_frame_id(name: str) -> str:
    """Frame of a camera: x right, y down, z forward."""
    return f"{name}_optical"


def _record(drive: SimulatedDrive, raw_images: bool, workers: int) -> Iterator[_Recorded]:
    """Render sweep by sweep, a few sweeps ahead of the writer."""
    drive.world.scene, drive.world.trajectory  # built once, before threads ask for it  # noqa: B018
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[_Recorded]] = deque()
        for index in range(len(drive)):
            ahead.append(pool.submit(_record_one, drive, index, raw_images))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _record_one(drive: SimulatedDrive, index: int, raw_images: bool) -> _Recorded:
    sweeps = [drive.sweep_of(k, index) for k in range(len(drive.world.lidars))]
    frames = drive.images_between(drive.stamp_ns(index), drive.stamp_ns(index + 1))
    images = [frame.image if raw_images else _jpeg(frame.image) for frame in frames]
    return _Recorded(sweeps, [_encode(sweep) for sweep in sweeps], frames, images)


def _encode(sweep: Sweep) -> EncodedCloud:
    cloud = sweep.cloud
    assert cloud.intensity is not None and cloud.ring is not None and cloud.time is not None
    columns: dict[str, npt.NDArray[Any]] = {
        "x": cloud.xyz[:, 0],
        "y": cloud.xyz[:, 1],
        "z": cloud.xyz[:, 2],
        "intensity": cloud.intensity,
        "ring": cloud.ring,
        "time": cloud.time.astype(np.float32),
        "label": to_wire(sweep.label.astype(np.int32)),
        "instance": sweep.instance,
        **cloud.extra,
    }
    return encode_cloud(columns, cloud.height, cloud.width)


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _write_image(
    writer: BagWriter, frame: CameraFrame, image: npt.NDArray[np.uint8] | bytes
) -> None:
    frame_id, topic, stamp = camera_frame_id(frame.name), f"/{frame.name}", frame.stamp_ns
    if isinstance(image, bytes):
        writer.write_compressed_image(f"{topic}/image/compressed", image, "jpeg", frame_id, stamp)
    else:
        writer.write_image(f"{topic}/image", image, frame_id, stamp)
    writer.write_camera_info(f"{topic}/camera_info", frame.camera, frame_id, stamp)


def _write_static(writer: BagWriter, drive: SimulatedDrive) -> None:
    world = drive.world
    transforms: dict[tuple[str, str], npt.NDArray[Any]] = {
        (BASE_FRAME, spec.name): spec.T_body_lidar for spec in world.lidars
    }
    for k, spec in enumerate(world.cameras):
        reported = drive.faults.T_cam_lidar(world.T_cam_lidar(k), drive.options.seed, k)
        pose = compose(world.T_body_lidar, invert(reported))
        transforms[(BASE_FRAME, camera_frame_id(spec.name))] = pose
    writer.write_tf(transforms, drive.stamp_ns(0), static=True)


def _write_poses(writer: BagWriter, drive: SimulatedDrive) -> None:
    """/tf and Odometry of base_link at 50 Hz, with a margin before and after the sweeps."""
    trajectory = drive.world.trajectory
    margin_ns = 200_000_000
    low, high = drive.stamp_ns(0) - margin_ns, drive.stamp_ns(len(drive)) + margin_ns
    kept = np.flatnonzero((trajectory.stamps_ns >= low) & (trajectory.stamps_ns <= high))
    T_lidar_base = invert(drive.world.T_body_lidar)
    for k in kept[::_POSE_STRIDE]:
        stamp, pose = int(trajectory.stamps_ns[k]), trajectory.poses[k] @ T_lidar_base
        after = trajectory.poses[min(k + 1, len(trajectory) - 1)] @ T_lidar_base
        before = trajectory.poses[max(k - 1, 0)] @ T_lidar_base
        span = (
            trajectory.stamps_ns[min(k + 1, len(trajectory) - 1)]
            - trajectory.stamps_ns[max(k - 1, 0)]
        ) * 1e-9
        linear = pose[:3, :3].T @ (after[:3, 3] - before[:3, 3]) / span
        turn = before[:3, :3].T @ after[:3, :3]
        skew = (turn - turn.T)[[2, 0, 1], [1, 2, 0]] / 2 / span
        writer.write_tf({(FIXED_FRAME, BASE_FRAME): pose}, stamp)
        writer.write_odometry(
            ODOMETRY_TOPIC, pose, FIXED_FRAME, BASE_FRAME, stamp, linear.tolist(), skew.tolist()
        )
