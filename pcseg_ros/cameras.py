# SPDX-License-Identifier: Apache-2.0
"""Cameras of the node: their topics, and their images as frames of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from pcseg_core.camera import CameraModel
from pcseg_core.cloud import PointCloud
from pcseg_core.data.calibration import Calibration
from pcseg_core.data.sample import CameraFrame
from pcseg_core.errors import InputError
from pcseg_ros import conversions, qos
from pcseg_ros.config import CameraParameters
from pcseg_ros.diagnostics import SweepStatistics
from pcseg_ros.qos import SensorSubscription
from pcseg_ros.sensor_poses import SensorPoses

AnyImage: TypeAlias = "Image | CompressedImage"


class Camera:
    """One camera.

    Args:
        node: owner of the subscriptions.
        name: of the camera.
        topic, info_topic: of its images and their CameraInfo.
        model: from the calibration file; None takes it from CameraInfo.
        on_image: called with the name and each image.
        statistics: counts lost images.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        topic: str,
        info_topic: str,
        model: CameraModel | None,
        on_image: Callable[[str, AnyImage], None],
        statistics: SweepStatistics,
    ) -> None:
        self._node = node
        self.name = name
        self.topic = topic
        self._rectified = "rect" in topic.removesuffix("/compressed").rpartition("/")[2]
        self._model = model
        self.time_offset_ns = 0  # of the calibration, added to the stamps of the images
        self._info: CameraInfo | None = None
        self._problem = f"no CameraInfo on {info_topic}"
        kind = CompressedImage if topic.endswith("/compressed") else Image
        self._images = SensorSubscription(
            node, kind, topic, lambda msg: on_image(name, msg), statistics, f"images of {name}"
        )
        self._infos: Subscription[CameraInfo] | None = None
        if model is None:
            with qos.creating(info_topic):
                self._infos = node.create_subscription(
                    CameraInfo, info_topic, self._on_info, qos.sensor(reliable=False)
                )

    def destroy(self) -> None:
        """End the subscriptions."""
        self._images.destroy()
        if self._infos is not None:
            self._node.destroy_subscription(self._infos)

    def frame(
        self, msg: AnyImage, cloud: PointCloud, poses: SensorPoses, deadline_s: float
    ) -> CameraFrame:
        """An image, with the transform from the sweep's LiDAR frame to the image's camera frame.

        Args:
            msg: the image.
            cloud: the sweep.
            poses: of camera and LiDAR.
            deadline_s: time of the monotonic clock until which transforms are waited for.

        Raises:
            InputError: no CameraInfo, another image size, or an image that does not decode.
            TransformError: the pose of the camera is unknown.
        """
        model = self._model
        if model is None:
            raise InputError(self._problem)
        frame, stamp = msg.header.frame_id, conversions.stamp_ns(msg.header) + self.time_offset_ns
        T = poses.wait(
            lambda: poses.T_cam_lidar(
                self.name, self.topic, frame, stamp, cloud.frame_id, cloud.stamp_ns
            ),
            deadline_s,
        )
        image = conversions.read_image(msg, self.name, (model.width, model.height))
        return CameraFrame(self.name, stamp, model, T, image)

    def _on_info(self, msg: CameraInfo) -> None:
        """Keep the newest calibration; most messages repeat the previous one."""
        header, msg.header = msg.header, type(msg.header)()
        if msg == self._info:
            return
        self._info = msg
        try:
            self._model = conversions.read_camera(msg, self._rectified)
        except InputError as error:
            self._model, self._problem = None, str(error)
            self._node.get_logger().error(f"camera {self.name} ({header.frame_id}): {error}")


def create_cameras(
    node: Node,
    config: CameraParameters,
    calibration: Calibration | None,
    on_image: Callable[[str, AnyImage], None],
    statistics: SweepStatistics,
) -> dict[str, Camera]:
    """The configured cameras by name.

    Raises:
        InputError: a topic is named twice or has a wrong name, or the numbers of topics differ.
    """
    images = tuple(_expanded(node, topic) for topic in config.topics)
    if len(set(images)) != len(images):
        raise InputError("cameras.topics: each topic may appear once")
    if config.info_topics and len(config.info_topics) != len(config.topics):
        raise InputError(
            f"cameras.info_topics: {len(config.info_topics)} topics for {len(config.topics)} image "
            "topics; give one for each, or none"
        )
    infos = config.info_topics or tuple(info_topic(topic) for topic in images)
    cameras = {}
    for name, topic, info in zip(camera_names(images), images, infos):
        calibrated = None if calibration is None else calibration.camera(name, topic)
        model = None if calibrated is None else calibrated.model()
        cameras[name] = Camera(node, name, topic, info, model, on_image, statistics)
        cameras[name].time_offset_ns = 0 if calibrated is None else calibrated.time_offset_ns
    return cameras


def _expanded(node: Node, topic: str) -> str:
    """The topic with the names that `~` and braces stand for, which no camera's name can hold."""
    return node.resolve_topic_name(topic, only_expand=True) if set(topic) & set("~{") else topic


def camera_names(topics: Sequence[str]) -> list[str]:
    """Names by the namespaces of image topics; equal ones are replaced by the whole topic.

    For example "camera/front" for /camera/front/image_raw.
    """
    bases = [topic.removesuffix("/compressed") for topic in topics]
    names = [(base.rpartition("/")[0] or base).strip("/") for base in bases]
    return [n if names.count(n) == 1 else b.strip("/") for n, b in zip(names, bases)]


def info_topic(topic: str) -> str:
    """CameraInfo topic of an image topic, by the convention of image_transport."""
    namespace, slash, _ = topic.removesuffix("/compressed").rpartition("/")
    return f"{namespace}{slash}camera_info"
