# SPDX-License-Identifier: Apache-2.0
"""Tracks as outputs of the node: a cloud of their states, detections, and markers."""

from __future__ import annotations

import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from geometry_msgs.msg import Point, Pose, Quaternion
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import ColorRGBA, Header

from pcseg_core.cloud import EncodedCloud
from pcseg_core.cloud_layout import DATATYPES, Field
from pcseg_core.geometry import to_quaternion
from pcseg_core.labels import LabelSpace
from pcseg_core.online.instances import id_sums
from pcseg_core.online.pipeline import LabeledSweep
from pcseg_core.online.tracks import Track
from pcseg_ros import conversions, qos, topics
from pcseg_ros.message_types import message_class

Float64 = npt.NDArray[np.float64]

LEFT_OUT = "tracks left out"

_FLOATS = ("x", "y", "z", "length", "width", "height", "vx", "vy", "vz", "yaw", "age", "confidence")
_STATE_TYPE = np.dtype(
    [("floats", "<f4", 12), ("id", "<u4"), ("label", "<u4"), ("seen", "u1"), ("gap", "V3")]
)
_STATE_FIELDS = (
    *(Field(name, 4 * k, DATATYPES["f4"]) for k, name in enumerate(_FLOATS)),
    *(Field(name, 4 * k, DATATYPES["u4"]) for k, name in enumerate(("id", "label"), 12)),
    Field("seen", 56, DATATYPES["u1"]),
)
_LINE_M, _LETTER_M, _ARROW_M = 0.06, 0.7, 0.18
_AHEAD_S = 1.0  # a velocity is drawn as the way in this time
_SHOWN_MPS = 0.5  # from which it is drawn
_FAINT = 0.35  # opacity of what is not seen now
_CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
# Rows of _CORNERS in an order that draws the twelve edges as one line.
_OUTLINE = (0, 4, 6, 2, 0, 1, 5, 4, 5, 7, 6, 7, 3, 2, 3, 1)


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
            ("visualization_msgs/msg/MarkerArray", topics.TRACK_MARKERS, TrackMarkers()),
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
        wanted = [output for output in self._outputs if qos.has_subscribers(output[0])]
        confidence = confidence_of(labeled) if wanted else {}
        for publisher, draw in wanted:
            publisher.publish(draw(header, tracks, space, confidence))
        return []


def confidence_of(labeled: LabeledSweep) -> dict[int, float]:
    """Mean confidence of the points of each track that is seen."""
    assert labeled.tracked is not None
    known = [track.id for track in labeled.tracked.tracks]
    if not known:
        return {}
    first, count = min(known), max(known) - min(known) + 1
    counts, sums = id_sums(labeled.tracked.instances, labeled.confidence, first, count)
    at = np.array(known) - first
    counts, sums = counts[at], sums[at]
    means = (sums / np.maximum(counts, 1)).tolist()
    return {id_: mean for id_, mean, seen in zip(known, means, counts.tolist()) if seen}


def states(
    header: Header, tracks: Sequence[Track], space: LabelSpace, confidence: dict[int, float]
) -> PointCloud2:
    """A cloud with a point at the center of each track, and what is known of it as fields."""
    T, size, velocity = _arrays(tracks)
    records = np.zeros(len(tracks), _STATE_TYPE)
    floats = records["floats"]
    floats[:, :3], floats[:, 3:6], floats[:, 6:9] = T[:, :3, 3], size, velocity
    floats[:, 9] = np.arctan2(T[:, 1, 0], T[:, 0, 0])
    floats[:, 10] = [track.age_s for track in tracks]
    floats[:, 11] = [confidence.get(track.id, 0.0) for track in tracks]
    for name in ("id", "label", "seen"):
        records[name] = [getattr(track, name) for track in tracks]
    buffer = array.array("B", records.tobytes())
    step, dense = records.itemsize, bool(np.isfinite(floats[:, :3]).all())
    fields = list(_STATE_FIELDS)
    cloud = EncodedCloud(1, len(tracks), fields, False, step, step * len(tracks), buffer, dense)
    return conversions.cloud_message(header, cloud)


def _arrays(tracks: Sequence[Track]) -> tuple[Float64, Float64, Float64]:
    """Poses (K, 4, 4), sizes (K, 3) and velocities (K, 3) of tracks."""
    T = np.array([track.T_lidar_box for track in tracks]).reshape(-1, 4, 4)
    size = np.array([track.size for track in tracks]).reshape(-1, 3)
    return T, size, np.array([track.velocity for track in tracks]).reshape(-1, 3)


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


class TrackMarkers:
    """Draws tracks as a visualization_msgs/MarkerArray that replaces the one before.

    For each track its outline, its class and id, and its way in a second; faint if it is not seen.
    The messages are used again: a result holds until the next call. To make them anew takes ten
    times as long.
    """

    def __init__(self) -> None:
        self._drawn: list[_Drawn] = []
        self._clear: Any = None

    def __call__(
        self,
        header: Header,
        tracks: Sequence[Track],
        space: LabelSpace,
        confidence: dict[int, float],
    ) -> Any:
        """Draw tracks; the confidence is not shown."""
        from visualization_msgs.msg import Marker, MarkerArray

        self._drawn += [_Drawn() for _ in range(len(tracks) - len(self._drawn))]
        T, size, velocity = _arrays(tracks)
        center = T[:, :3, 3]
        corners = (_CORNERS * size[:, None]) @ T[:, :3, :3].swapaxes(1, 2) + center[:, None]
        top = center + T[:, :3, 2] * (size[:, 2:] / 2 + _LETTER_M)
        ends = np.stack([center, center + _AHEAD_S * velocity], 1)
        moves = np.linalg.norm(velocity, axis=1) >= _SHOWN_MPS
        self._clear = self._clear or Marker(action=Marker.DELETEALL)
        shown = [self._clear]
        places = np.concatenate([corners, top[:, None], ends], 1).tolist()
        for drawn, track, own in zip(self._drawn, tracks, places):
            drawn.move(own)
            drawn.name(header, track, space)
            shown += (drawn.outline, drawn.text)
        shown += [drawn.arrow for drawn, one in zip(self._drawn, moves.tolist()) if one]
        message = MarkerArray()
        message._markers = shown  # past the setter, see _Drawn.move
        return message


class _Drawn:
    """The markers of one track."""

    def __init__(self) -> None:
        from visualization_msgs.msg import Marker

        self._shown: tuple[int, int, bool] | None = None
        self._space: LabelSpace | None = None
        corners, ends = [Point() for _ in _CORNERS], [Point(), Point()]
        self.outline = Marker(ns="outline", type=Marker.LINE_STRIP)
        self.outline.points = [corners[row] for row in _OUTLINE]
        self.outline.scale.x = _LINE_M
        self.text = Marker(ns="id", type=Marker.TEXT_VIEW_FACING)
        self.text.scale.z = _LETTER_M
        self.arrow = Marker(ns="velocity", type=Marker.ARROW, points=ends)
        self.arrow.scale.x, self.arrow.scale.y = _ARROW_M, 2 * _ARROW_M
        self._points = (*corners, self.text.pose.position, *ends)

    def move(self, places: list[list[float]]) -> None:
        """Set the corners of the outline, the place of the text, and the ends of the arrow."""
        # Past the setters, which check each value: that takes longer than all else of markers.
        for point, (x, y, z) in zip(self._points, places):
            point._x, point._y, point._z = x, y, z

    def name(self, header: Header, track: Track, space: LabelSpace) -> None:
        """Set the id, the text and the color, where they change, and the header."""
        for marker in (self.outline, self.text, self.arrow):
            marker._header = header
        shown = track.id, track.label, track.seen
        if shown == self._shown and space is self._space:
            return
        self._shown, self._space = shown, space
        red, green, blue = (value / 255 for value in space.classes[track.label].color)
        color = ColorRGBA(r=red, g=green, b=blue, a=1.0 if track.seen else _FAINT)
        for marker in (self.outline, self.text, self.arrow):
            marker.id, marker.color = track.id & 0x7FFFFFFF, color
        self.text.text = f"{space.names[track.label]} {track.id}"


def _pose(T: npt.NDArray[Any]) -> Pose:
    (x, y, z, w), place = to_quaternion(T)
    position = Point(**dict(zip("xyz", place.tolist())))
    return Pose(position=position, orientation=Quaternion(x=x, y=y, z=z, w=w))
