# SPDX-License-Identifier: Apache-2.0
"""The legend: class names in the colors of the classes, above the sensor, for RViz and Foxglove."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from geometry_msgs.msg import Pose
from rclpy.node import Node
from std_msgs.msg import ColorRGBA

from pcseg_core.labels import LabelSpace
from pcseg_ros import qos, topics
from pcseg_ros.message_types import message_class

_LOWEST_M, _LINE_M, _LETTER_M = 3.0, 0.7, 0.6


class Legend:
    """Publishes the legend once for each frame and set of classes, latched.

    As markers if visualization_msgs is installed, and as a scene if foxglove_msgs is.

    Args:
        node: owner of the topics.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._shown: tuple[str, LabelSpace] | None = None
        self._outputs: list[tuple[Any, Callable[[str, LabelSpace], Any]]] = []
        for name, topic, draw in (
            ("visualization_msgs/msg/MarkerArray", topics.LEGEND, markers),
            ("foxglove_msgs/msg/SceneUpdate", topics.LEGEND_SCENE, scene_update),
        ):
            if (kind := message_class(name)) is not None:
                with qos.creating(topic):
                    publisher: Any = node.create_publisher(kind, topic, qos.latched())
                self._outputs.append((publisher, draw))

    def destroy(self) -> None:
        """End the topics."""
        for publisher, _ in self._outputs:
            self._node.destroy_publisher(publisher)

    def show(self, frame_id: str, space: LabelSpace) -> None:
        """Publish the legend if the frame of the sweeps or the classes have changed."""
        if self._shown is not None and self._shown[0] == frame_id and self._shown[1] is space:
            return
        self._shown = frame_id, space
        for publisher, draw in self._outputs:
            publisher.publish(draw(frame_id, space))


def markers(frame_id: str, space: LabelSpace) -> Any:
    """A visualization_msgs/MarkerArray with a text for each class; it replaces an earlier one."""
    from visualization_msgs.msg import Marker, MarkerArray

    array = MarkerArray(markers=[Marker(action=Marker.DELETEALL)])
    for number, (text, color, pose) in enumerate(_lines(space)):
        marker = Marker(ns="legend", id=number, type=Marker.TEXT_VIEW_FACING, text=text)
        marker.header.frame_id = frame_id
        marker.pose, marker.color, marker.frame_locked = pose, color, True
        marker.scale.z = _LETTER_M
        array.markers.append(marker)
    return array


def scene_update(frame_id: str, space: LabelSpace) -> Any:
    """The same as one entity of a foxglove_msgs/SceneUpdate."""
    from foxglove_msgs.msg import Color, SceneEntity, SceneUpdate, TextPrimitive

    entity = SceneEntity(frame_id=frame_id, id="legend", frame_locked=True)
    for text, color, pose in _lines(space):
        line = TextPrimitive(text=text, pose=pose, billboard=True, font_size=_LETTER_M)
        line.color = Color(r=color.r, g=color.g, b=color.b, a=color.a)
        entity.texts.append(line)
    return SceneUpdate(entities=[entity])


def _lines(space: LabelSpace) -> Iterator[tuple[str, ColorRGBA, Pose]]:
    """Name, color and place of each class, the first one on top."""
    for number, item in enumerate(space.classes):
        red, green, blue = (value / 255 for value in item.color)
        pose = Pose()
        pose.position.z = _LOWEST_M + _LINE_M * (len(space) - 1 - number)
        yield item.name, ColorRGBA(r=red, g=green, b=blue, a=1.0), pose
