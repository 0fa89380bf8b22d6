# SPDX-License-Identifier: Apache-2.0
"""Outputs as images: class ids and confidences of organized clouds."""

from __future__ import annotations

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image, PointCloud2

from pcseg_core.online.label_images import confidence_image, label_image
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_ros import conversions, qos, topics

NOT_ORGANIZED = "label image left out"


class LabelImages:
    """Publishes the label image and the confidence image of organized clouds.

    Args:
        node: owner of the topics.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        names = (topics.LABEL_IMAGE, topics.CONFIDENCE_IMAGE)
        self._labels, self._confidence = (qos.create_output(node, Image, name) for name in names)

    def destroy(self) -> None:
        """End the topics."""
        for publisher in (self._labels, self._confidence):
            self._node.destroy_lifecycle_publisher(publisher)

    def wanted(self) -> bool:
        """There are subscribers."""
        return any(map(qos.has_subscribers, (self._labels, self._confidence)))

    def publish(self, msg: PointCloud2, labeled: LabeledSweep) -> list[tuple[str, str]]:
        """Publish the images that are subscribed, with the header of the sweep.

        Returns:
            (event, reason) of images that cannot be made.
        """
        if not self.wanted():
            return []
        if msg.height <= 1:
            why = f"a cloud of {msg.height} x {msg.width} points is not organized; let the driver "
            return [(NOT_ORGANIZED, why + "send a row for each beam")]
        size = msg.height, msg.width
        if qos.has_subscribers(self._labels):
            pixels = label_image(labeled, *size)
            self._labels.publish(conversions.mono_message(pixels, msg.header))
        if qos.has_subscribers(self._confidence):
            pixels = confidence_image(labeled, *size)
            self._confidence.publish(conversions.mono_message(pixels, msg.header))
        return []
