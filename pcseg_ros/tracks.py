# SPDX-License-Identifier: Apache-2.0
"""Tracks as outputs of the node: a cloud of their states, detections, and markers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from geometry_msgs.msg import Point, Pose, Quaternion
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import ColorRGBA, Header

from pcseg_core.cloud import encode_cloud
from pcseg_core.geometry import to_quaternion
from pcseg_core.labels import LabelSpace
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_core.online.tracks import Track
from pcseg_ros import conversions, qos, topics
from pcseg_ros.message_types import message_class

LEFT_OUT = "tracks left out"

_STATE = ("x", "y", "z", "length", "width", "height", "vx", "vy", "vz", "yaw", "age")
_LINE_M, _LETTER_M, _ARROW_M = 0.06, 0.7, 0.18
_AHEAD_S = 1.0  # a velocity is drawn as the way in this time
_SHOWN_MPS = 0.5  # from which it is drawn
_FAINT = 0.35  # opacity of what is not seen now
# Corners of a box in an order that draws its twelve edges as one line.
_OUTLINE = (
    *((-1, -1, -1), (1, -1, -1), (1, 1, -1), (-1, 1, -1), (-1, -1, -1), (-1, -1, 1), (1, -1, 1)),
    *((1, -1, -1), (1, -1, 1), (1, 1, 1), (1, 1, -1), (1, 1, 1), (-1, 1, 1), (-1, 1, -1)),
    *((-1, 1, 1), (-1, -1, 1)),
)


class TrackOutputs:
    """Publishers of the tracks.

    Args:
        node: owner of the topics.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._outputs: list[tuple[LifecyclePublisher[Any], Callable[..., Any]]] = []
        for name, topic, draw in (
            ("sensor_msgs/msg/PointCloud2", topics.TRACKS, states),
            ("vision_msgs/msg/Detection3DArray", topics.TRACK_BOXES, detections),
            ("visualization_msgs/msg/MarkerArray", topics.TRACK_MARKERS, markers),
        ):
            if (kind := message_class(name)) is not None:
                self._outputs.append((qos.create_output(node, kind, topic), draw))

    def destroy(self) -> None:
        """End the topics."""
        for publisher, _ in self._outputs:
            self._node.destroy_lifecycle_publisher(publisher)

    def wanted(self) -> bool:
        """There are subscribers."""
        return any(qos.has_subscribers(publisher) for publisher, _ in self._outputs)

    def publish(self, header: Header, labeled: LabeledSweep) -> list[tuple[str, str]]:
        """Publish what is subscribed, with the header of the sweep.

        Returns:
            (event, reason) of tracks that are not known.
        """
        if labeled.tracked is None:
            return []
        if labeled.pose is None:
            return [(LEFT_OUT, "the motion of the platform is not known")]
        tracks, space = labeled.tracked.tracks, labeled.label_space
        for publisher, draw in self._outputs:
            if qos.has_subscribers(publisher):
                publisher.publish(draw(header, tracks, space, confidence_of(labeled)))
        return []


def confidence_of(labeled: LabeledSweep) -> dict[int, float]:
    """Mean confidence of the points of each track that is seen."""
    assert labeled.tracked is not None
    rows = np.flatnonzero(labeled.tracked.instances)
    ids, number = np.unique(labeled.tracked.instances[rows], return_inverse=True)
    total = np.bincount(number, labeled.confidence[rows], len(ids))
    mean = total / np.bincount(number, minlength=len(ids))
    return dict(zip(ids.tolist(), mean.tolist()))


def states(
    header: Header, tracks: Sequence[Track], space: LabelSpace, confidence: dict[int, float]
) -> PointCloud2:
    """A cloud with a point at the center of each track, and what is known of it as fields."""
    rows = [
        (*track.T_lidar_box[:3, 3], *track.size, *track.velocity, _yaw(track), track.age_s)
        for track in tracks
    ]
    table = np.array(rows, np.float32).reshape(len(tracks), len(_STATE))
    fields: dict[str, npt.NDArray[Any]] = dict(zip(_STATE, table.T))
    fields["confidence"] = np.array([confidence.get(t.id, 0.0) for t in tracks], np.float32)
    fields["id"] = np.array([track.id for track in tracks], np.uint32)
    fields["label"] = np.array([track.label for track in tracks], np.uint32)
    fields["seen"] = np.array([track.seen for track in tracks], np.uint8)
    return conversions.cloud_message(header, encode_cloud(fields))


def _yaw(track: Track) -> float:
    """Heading about the z axis of the sensor [rad]."""
    return float(np.arctan2(track.T_lidar_box[1, 0], track.T_lidar_box[0, 0]))


def detections(
    header: Header, tracks: Sequence[Track], space: LabelSpace, confidence: dict[int, float]
) -> Any:
    """The tracks that are seen, as a vision_msgs/Detection3DArray; it has no velocities."""
    from vision_msgs.msg import Detection3D, Detection3DArray, ObjectHypothesisWithPose

    array = Detection3DArray(header=header)
    for track in tracks:
        if track.seen:
            result = ObjectHypothesisWithPose()
            result.hypothesis.class_id = space.names[track.label]
            result.hypothesis.score = confidence.get(track.id, 0.0)
            result.pose.pose = _pose(track.T_lidar_box)
            found = Detection3D(header=header, results=[result], id=str(track.id))
            found.bbox.center = result.pose.pose
            size = found.bbox.size
            size.x, size.y, size.z = track.size.tolist()
            array.detections.append(found)
    return array


def markers(
    header: Header, tracks: Sequence[Track], space: LabelSpace, confidence: dict[int, float]
) -> Any:
    """A visualization_msgs/MarkerArray that replaces the one before.

    For each track its outline, its class and id, and its way in a second; faint if it is not seen.
    """
    from visualization_msgs.msg import Marker, MarkerArray

    def marker(track: Track, ns: str, kind: int) -> Any:
        made = Marker(header=header, ns=ns, id=track.id & 0x7FFFFFFF, type=kind)
        red, green, blue = (value / 255 for value in space.classes[track.label].color)
        opacity = 1.0 if track.seen else _FAINT
        made.color = ColorRGBA(r=red, g=green, b=blue, a=opacity)
        array.markers.append(made)
        return made

    array = MarkerArray(markers=[Marker(action=Marker.DELETEALL)])
    for track in tracks:
        outline = marker(track, "outline", Marker.LINE_STRIP)
        outline.scale.x = _LINE_M
        ends = np.array(_OUTLINE) * track.size / 2
        outline.points = _points(ends @ track.T_lidar_box[:3, :3].T + track.T_lidar_box[:3, 3])
        top = track.T_lidar_box @ [0.0, 0.0, track.size[2] / 2 + _LETTER_M, 1.0]
        text = marker(track, "id", Marker.TEXT_VIEW_FACING)
        text.scale.z, text.text = _LETTER_M, f"{space.names[track.label]} {track.id}"
        text.pose.position = _points(top[None, :3])[0]
        if np.linalg.norm(track.velocity) >= _SHOWN_MPS:
            arrow = marker(track, "velocity", Marker.ARROW)
            arrow.scale.x, arrow.scale.y = _ARROW_M, 2 * _ARROW_M
            start = track.T_lidar_box[:3, 3]
            arrow.points = _points(np.stack([start, start + _AHEAD_S * track.velocity]))
    return array


def _points(xyz: npt.NDArray[Any]) -> list[Point]:
    return [Point(x=x, y=y, z=z) for x, y, z in xyz.tolist()]


def _pose(T: npt.NDArray[Any]) -> Pose:
    (x, y, z, w), place = to_quaternion(T)
    return Pose(position=_points(place[None])[0], orientation=Quaternion(x=x, y=y, z=z, w=w))
