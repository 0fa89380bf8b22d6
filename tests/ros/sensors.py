# SPDX-License-Identifier: Apache-2.0
"""Cameras and odometry of a node under test, published over DDS."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import Client, wait_for
from nav_msgs.msg import Odometry
from PIL import Image as Picture
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from pcseg_core.geometry import to_quaternion
from pcseg_ros.conversions import image_message

WIDTH, HEIGHT, FOCAL = 64, 48, 40.0
FORWARD = [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]  # optical axis along +x
BACKWARD = [[0, 1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 0]]
K = [FOCAL, 0.0, (WIDTH - 1) / 2, 0.0, FOCAL, (HEIGHT - 1) / 2, 0.0, 0.0, 1.0]


def write_calibration(path: Path, intrinsics: bool = False, **more: Any) -> Path:
    """A calibration file of the cameras `front` and `rear`."""
    inner = {"width": WIDTH, "height": HEIGHT, "K": K} if intrinsics else {}
    cameras = {
        "front": {"T_cam_lidar": FORWARD, **inner},
        "rear": {"T_cam_lidar": BACKWARD, **inner},
    }
    path.write_text(yaml.safe_dump({"cameras": cameras, **more}))
    return path


class Sensors:
    """Publishers of a front camera (raw), a rear one (compressed) and odometry.

    Args:
        client: its node publishes.
        namespace: of the node under test.
    """

    def __init__(self, client: Client, namespace: str) -> None:
        node = client.node
        make = lambda kind, name: node.create_publisher(kind, f"{namespace}/{name}", 10)  # noqa: E731
        self.front = make(Image, "front/image_raw")
        self.rear = make(CompressedImage, "rear/image_raw/compressed")
        self.infos = [make(CameraInfo, f"{name}/camera_info") for name in ("front", "rear")]
        self.odometry = node.create_publisher(
            Odometry, f"{namespace}/odometry", QoSProfile(depth=100)
        )

    def wait(self, cameras: bool = True) -> None:
        """Return when the node listens."""
        wanted = [self.odometry, *((self.front, self.rear) if cameras else ())]
        for publisher in wanted:
            wait_for(publisher.get_subscription_count, f"a subscriber of {publisher.topic_name}")

    def inform(self) -> None:
        """Publish both CameraInfo."""
        for info in self.infos:
            wait_for(info.get_subscription_count, "a subscriber of CameraInfo")
            info.publish(CameraInfo(width=WIDTH, height=HEIGHT, k=K, distortion_model="plumb_bob"))

    def look(self, stamp_s: float, width: int = WIDTH) -> None:
        """Publish an image of the front camera."""
        message = image_message(np.full((HEIGHT, width, 3), 40, np.uint8), Image().header)
        self.front.publish(_stamp(message, stamp_s, "front_optical"))

    def look_back(self, stamp_s: float, keep: int | None = None) -> None:
        """Publish an image of the rear camera, or its first `keep` bytes."""
        content = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(content, "JPEG")
        message = CompressedImage(format="jpeg", data=content.getvalue()[:keep])
        self.rear.publish(_stamp(message, stamp_s, "rear_optical"))

    def drive(
        self, begin_s: float, end_s: float, speed: float = 10.0, body: str = "base_link"
    ) -> None:
        """Publish odometry every 20 ms between two stamps, along x."""
        for number in range(round(begin_s * 50), round(end_s * 50) + 1):
            message = _stamp(Odometry(child_frame_id=body), number / 50, "odom")
            pose = np.eye(4)
            pose[0, 3] = speed * number / 50
            x, y, z, w = to_quaternion(pose)[0].tolist()
            place = message.pose.pose
            place.position.x = pose[0, 3]
            place.orientation.x, place.orientation.y = x, y
            place.orientation.z, place.orientation.w = z, w
            self.odometry.publish(message)

    def place(self, stamp_s: float, x: float, w: float = 1.0, body: str = "base_link") -> None:
        """Publish one Odometry, which may be broken."""
        message = _stamp(Odometry(child_frame_id=body), stamp_s, "odom")
        message.pose.pose.position.x, message.pose.pose.orientation.w = x, w
        self.odometry.publish(message)


def _stamp(message: Any, stamp_s: float, frame: str) -> Any:
    nanoseconds = round(stamp_s * 1e9)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 10**9)
    message.header.frame_id = frame
    return message
