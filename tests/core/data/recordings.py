# SPDX-License-Identifier: Apache-2.0
"""Tiny synthetic recordings in the layouts that the readers know."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import EncodedCloud, encode_cloud
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.geometry import from_euler, invert

SECOND = 1_000_000_000
START = 1_317_042_651 * SECOND
PERIOD = SECOND // 10
SIZE = (40, 20)  # width, height of images
CAMERA = CameraModel.pinhole(30.0, 30.0, 19.5, 9.5, *SIZE)
# LiDAR axes (x forward, y left) to camera axes (z forward, x right), camera 0.2 m above.
T_CAM_LIDAR = np.array(
    [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.2], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
T_BASE_LIDAR = from_euler(0.0, 0.1, 0.0, (0.5, 0.0, 1.0))


def points(count: int = 200, seed: int = 0) -> np.ndarray:
    """(count, 4) float32 x, y, z, reflectance around the sensor."""
    rng = np.random.default_rng(seed)
    cells = rng.uniform([-20, -20, -2, 0], [20, 20, 2, 1], size=(count, 4))
    return cells.astype(np.float32)


def cloud_message(seed: int = 0, **fields: np.ndarray) -> EncodedCloud:
    """The points as a cloud with intensities and further fields."""
    cells = points(seed=seed)
    return encode_cloud(dict(zip(("x", "y", "z", "intensity"), cells.T)) | fields)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file in memory."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def row(values: np.ndarray) -> str:
    """Numbers as text, without loss."""
    return " ".join(repr(float(v)) for v in np.asarray(values).reshape(-1))


def kitti_raw(folder: Path, frames: int = 4, oxts: bool = True) -> Path:
    """A KITTI raw drive with one color camera; the vehicle drives north-east at 10 m/s."""
    day = folder / "2011_09_26"
    drive = day / "2011_09_26_drive_0001_sync"
    K = CAMERA.K
    P = np.hstack([K, K @ [[0.06], [0.0], [0.0]]])
    put(
        day / "calib_cam_to_cam.txt",
        "calib_time: 09-Jan-2012 13:57:47\n"
        f"S_rect_02: {SIZE[0]} {SIZE[1]}\nR_rect_00: {row(from_euler(0.01, 0, 0)[:3, :3])}\n"
        f"P_rect_02: {row(P)}\n",
    )
    put(
        day / "calib_velo_to_cam.txt",
        f"R: {row(T_CAM_LIDAR[:3, :3])}\nT: {row(T_CAM_LIDAR[:3, 3])}\n",
    )
    T_velo_imu = invert(T_BASE_LIDAR)
    put(
        day / "calib_imu_to_velo.txt",
        f"R: {row(T_velo_imu[:3, :3])}\nT: {row(T_velo_imu[:3, 3])}\n",
    )
    stamps = [f"2011-09-26 13:10:51.{100 + 100 * i:03d}000000" for i in range(frames)]
    arrivals = [f"2011-09-26 13:10:51.{110 + 100 * i:03d}000000" for i in range(frames)]
    for i in range(frames):
        name = f"{i:010d}"
        put(drive / "velodyne_points" / "data" / f"{name}.bin", points(seed=i).tobytes())
        put(drive / "image_02" / "data" / f"{name}.png", png(picture(i)))
        if oxts:
            latitude = 49.0 + i * 6e-6
            packet = [latitude, 8.4 + i * 9e-6, 110.0, 0.01, -0.02, 0.8 + 0.01 * i, *[0.0] * 24]
            put(drive / "oxts" / "data" / f"{name}.txt", row(np.array(packet)))
    put(drive / "velodyne_points" / "timestamps.txt", "\n".join(stamps))
    put(drive / "image_02" / "timestamps.txt", "\n".join(arrivals))
    if oxts:
        put(drive / "oxts" / "timestamps.txt", "\n".join(arrivals))
    return drive


def kitti_object(folder: Path, frames: int = 2) -> Path:
    """KITTI object frames with one car each, 10 m ahead and heading left."""
    training = folder / "training"
    P2 = np.hstack([CAMERA.K, np.zeros((3, 1))])
    for i in range(frames):
        name = f"{i:06d}"
        put(training / "velodyne" / f"{name}.bin", points(seed=i).tobytes())
        put(training / "image_2" / f"{name}.png", png(picture(i)))
        put(
            training / "calib" / f"{name}.txt",
            f"P2: {row(P2)}\nR0_rect: {row(np.eye(3))}\nTr_velo_to_cam: {row(T_CAM_LIDAR[:3])}\n\n",
        )
        # type truncated occluded alpha, 2D box, height width length, x y z of the bottom, turn
        car = "Car 0.00 0 0.0 0 0 10 10 1.5 1.6 4.0 0.0 1.75 10.0 3.141592653589793"
        put(
            training / "label_2" / f"{name}.txt",
            f"{car}\nDontCare -1 -1 -10 0 0 1 1 -1 -1 -1 -1000 -1000 -1000 -10\n",
        )
    return training


def semantic_kitti(folder: Path, frames: int = 3, extras: bool = True) -> Path:
    """One SemanticKITTI sequence; `extras` are calibration, poses and gray images."""
    sequence = folder / "sequences" / "00"
    for i in range(frames):
        name = f"{i:06d}"
        put(sequence / "velodyne" / f"{name}.bin", points(seed=i).tobytes())
        raw = np.tile(np.array([40, 10, 252, 0, 99], dtype=np.uint32), 40)
        put(sequence / "labels" / f"{name}.label", (raw | (7 << 16)).astype("<u4").tobytes())
        if extras:
            put(sequence / "image_0" / f"{name}.png", png(picture(i)[:, :, 0]))
    if extras:
        P0 = np.hstack([CAMERA.K, np.zeros((3, 1))])
        put(sequence / "calib.txt", f"P0: {row(P0)}\nTr: {row(T_CAM_LIDAR[:3])}\n")
        # The camera moves 0.5 m along its z axis, forwards, per frame.
        poses = [np.hstack([np.eye(3), [[0.0], [0.0], [0.5 * i]]]) for i in range(frames)]
        put(sequence / "poses.txt", "\n".join(row(pose) for pose in poses))
    return sequence


def nuscenes(folder: Path, lidarseg: bool = True) -> Path:
    """nuScenes tables of one scene with two key frames, one camera and one annotated car."""
    tables = folder / "v1.0-mini"
    stamps = [1_532_402_927_000_000, 1_532_402_927_500_000]  # microseconds
    sensor = [
        {"token": "s-lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
        {"token": "s-cam", "channel": "CAM_FRONT", "modality": "camera"},
    ]
    no_turn = [1.0, 0.0, 0.0, 0.0]
    mounts = [
        {
            "token": "m-lidar",
            "sensor_token": "s-lidar",
            "translation": [1.0, 0.0, 2.0],
            "rotation": no_turn,
            "camera_intrinsic": [],
        },
        # Optical axes in vehicle axes (z forward, x right), as a quaternion w, x, y, z.
        {
            "token": "m-cam",
            "sensor_token": "s-cam",
            "translation": [1.5, 0.0, 1.5],
            "rotation": [0.5, -0.5, 0.5, -0.5],
            "camera_intrinsic": CAMERA.K.tolist(),
        },
    ]
    poses, data, samples, annotations, seg = [], [], [], [], []
    for i, stamp in enumerate(stamps):
        samples.append({"token": f"k{i}", "timestamp": stamp, "scene_token": "scene"})
        for sensor_name, delay, suffix in (("lidar", 0, "pcd.bin"), ("cam", -40_000, "png")):
            token = f"{sensor_name}{i}"
            place = f"samples/{sensor_name}/{i}.{suffix}"
            x = 10.0 * (stamp + delay - stamps[0]) * 1e-6  # 10 m/s along x
            poses.append(
                {
                    "token": f"p-{token}",
                    "timestamp": stamp + delay,
                    "translation": [100.0 + x, 0.0, 0.0],
                    "rotation": no_turn,
                }
            )
            data.append(
                {
                    "token": token,
                    "sample_token": f"k{i}",
                    "ego_pose_token": f"p-{token}",
                    "calibrated_sensor_token": f"m-{sensor_name}",
                    "timestamp": stamp + delay,
                    "filename": place,
                    "is_key_frame": True,
                }
            )
        cells = np.zeros((100, 5), dtype=np.float32)
        cells[:, :4] = points(100, seed=i) * [1, 1, 1, 255]
        cells[:, 4] = np.arange(100) % 32
        put(folder / f"samples/lidar/{i}.pcd.bin", cells.tobytes())
        put(folder / f"samples/cam/{i}.png", png(picture(i)))
        seg.append(
            {"token": f"seg{i}", "sample_data_token": f"lidar{i}", "filename": f"lidarseg/{i}.bin"}
        )
        put(folder / f"lidarseg/{i}.bin", np.full(100, 17, dtype=np.uint8).tobytes())
        annotations.append(
            {
                "token": f"a{i}",
                "sample_token": f"k{i}",
                "instance_token": "i",
                "translation": [111.0, 2.0, 1.0],
                "size": [2.0, 4.0, 1.5],
                "rotation": [np.cos(0.25), 0.0, 0.0, np.sin(0.25)],
            }
        )
    content = {
        "scene": [{"token": "scene", "name": "scene-0001"}],
        "sample": samples,
        "sample_data": data,
        "calibrated_sensor": mounts,
        "sensor": sensor,
        "ego_pose": poses,
        "sample_annotation": annotations,
        "instance": [{"token": "i", "category_token": "c"}],
        "category": [{"token": "c", "name": "vehicle.car"}],
    }
    if lidarseg:
        content["lidarseg"] = seg
    for name, rows in content.items():
        put(tables / f"{name}.json", json.dumps(rows))
    return folder


def lidar_pose(i: float) -> np.ndarray:
    """T_odom_base at sweep `i`: 1 m forward and a slight left turn per sweep."""
    return from_euler(0.0, 0.0, 0.02 * i, (1.0 * i, 0.1 * i, 0.0))


def bag(
    path: Path,
    sweeps: int = 5,
    format: str = "mcap",
    compress: bool = False,
    tf: bool = True,
    odometry: bool = False,
    camera: bool = True,
    extrinsic: bool = True,
    image_delay_ns: int = 20_000_000,
    raw_images: bool = False,
    extra_fields: dict[str, np.ndarray] | None = None,
) -> Path:
    """A bag of a robot with a LiDAR and one camera, 10 Hz each, images a little later."""
    with BagWriter(path, format=format, compress=compress) as writer:
        static = {("base_link", "lidar"): T_BASE_LIDAR}
        if extrinsic:
            static["lidar", "front_optical"] = invert(T_CAM_LIDAR)
        writer.write_tf(static, START, static=True)
        for i in range(sweeps):
            stamp = START + i * PERIOD
            cells = points(seed=i)
            fields = dict(zip(("x", "y", "z", "intensity"), cells.T)) | (extra_fields or {})
            writer.write_cloud("/points", encode_cloud(fields), "lidar", stamp)
            if tf:
                writer.write_tf({("odom", "base_link"): lidar_pose(i)}, stamp)
            if odometry:
                writer.write_odometry("/odometry", lidar_pose(i), "odom", "base_link", stamp)
            if camera:
                late = stamp + image_delay_ns
                if raw_images:
                    writer.write_image("/front/image_raw", picture(i), "front_optical", late)
                else:
                    writer.write_compressed_image(
                        "/front/image_raw/compressed", png(picture(i)), "png", "front_optical", late
                    )
                writer.write_camera_info("/front/camera_info", CAMERA, "front_optical", late)
    return path
