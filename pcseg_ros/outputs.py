# SPDX-License-Identifier: Apache-2.0
"""Outputs of the node: labeled clouds, overlays and times, computed only for subscribers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float64, Header

from pcseg_core.cloud import pack_rgb
from pcseg_core.data.sample import CameraFrame
from pcseg_core.labels import MOVING, STATIC, UNKNOWN, LabelSpace
from pcseg_core.online.class_maps import autoware_ids
from pcseg_core.online.output_clouds import (
    ExtraFields,
    append_labels,
    autoware_cloud,
    choose_points,
    minimal_cloud,
)
from pcseg_core.online.overlay import draw_labels
from pcseg_core.online.pipeline import LabeledSweep, Voxels
from pcseg_core.projection import project_cloud
from pcseg_ros import conversions, qos, topics
from pcseg_ros.config import NodeConfig
from pcseg_ros.grids import GridOutput
from pcseg_ros.label_images import LabelImages
from pcseg_ros.legend import Legend
from pcseg_ros.tracks import TrackOutputs

_UNLABELED_COLOR = (200, 200, 200)


MOVING_LEFT_OUT = "moving points left out"


class SweepOutputs:
    """Publishers of the node.

    Args:
        node: owner; clouds and overlays are published while it is active.
        cameras: names; each has an overlay.
        teacher: there is a teacher whose labels are published.
        config: parameters; they name the clouds, and say if there is what moves, and tracks.
        lidars: names of several LiDARs, whose sweeps are published each by itself too.

    Raises:
        InputError: a parameter in `qos_overrides` is wrong.
    """

    def __init__(
        self,
        node: LifecycleNode,
        cameras: Sequence[str],
        teacher: bool,
        config: NodeConfig,
        lidars: Sequence[str] = (),
    ) -> None:
        self._node = node
        self._labeled = qos.create_output(node, PointCloud2, topics.LABELED)
        self._parts = {
            name: qos.create_output(node, PointCloud2, topics.LABELED_PART.format(lidar=name))
            for name in lidars
        }
        self._clouds = {
            name: qos.create_output(node, PointCloud2, name) for name in config.clouds.names
        }
        kinds = {topics.STATIC: STATIC, topics.MOVING: MOVING} if config.moving.enabled else {}
        self._moving = {
            kind: qos.create_output(node, PointCloud2, name) for name, kind in kinds.items()
        }
        self._teacher = qos.create_output(node, PointCloud2, topics.TEACHER) if teacher else None
        self._autoware_ids = np.zeros(0, np.uint8)
        self._autoware_of: LabelSpace | None = None
        self._overlays = {
            name: qos.create_output(node, Image, topics.OVERLAY.format(camera=name))
            for name in cameras
        }
        self._images = LabelImages(node)
        self._grid = GridOutput(node)
        self._tracks = TrackOutputs(node) if config.tracks.enabled else None
        self._legend = Legend(node)
        self._times = {
            stage: node.create_publisher(Float64, topics.TIMES.format(stage=stage), qos.result())
            for stage in topics.STAGES
        }

    def destroy(self) -> None:
        """End all topics."""
        for publisher in (
            *self._all_clouds(),
            *self._overlays.values(),
            *([self._teacher] if self._teacher else []),
        ):
            self._node.destroy_lifecycle_publisher(publisher)
        self._images.destroy()
        self._grid.destroy()
        if self._tracks is not None:
            self._tracks.destroy()
        self._legend.destroy()
        for times in self._times.values():
            self._node.destroy_publisher(times)

    def wanted(self) -> bool:
        """There are subscribers of the labels."""
        publishers = (*self._all_clouds(), *self._overlays.values())
        return self.others_wanted() or any(map(qos.has_subscribers, publishers))

    def united_wanted(self, config: NodeConfig) -> bool:
        """An output of the united sweep, not of one LiDAR, is published."""
        clouds = any(map(qos.has_subscribers, self._united_clouds()))
        return clouds or self.others_wanted() or not config.only_when_subscribed

    def others_wanted(self) -> bool:
        """There are subscribers of label images, the grid or tracks."""
        return self._images.wanted() or self._grid.wanted() or self._tracks_wanted()

    def needs_pose(self, config: NodeConfig) -> bool:
        """The grid is subscribed and drawn in the fixed frame."""
        return config.grid.frame == "fixed" and self._grid.wanted()

    def needs_moving(self, config: NodeConfig) -> bool:
        """The clouds of what is static and what moves, or clouds with the field, are subscribed.

        Or a grid from the buffer, which then has no trails of what moves.
        """
        if not self._moving:
            return False
        grid = config.temporal.enabled and self._grid.wanted()
        return grid or any(map(qos.has_subscribers, self._all_clouds()))

    def needs_tracks(self) -> bool:
        """The tracks, or clouds with the field, are subscribed."""
        clouds = self._tracks is not None and any(map(qos.has_subscribers, self._all_clouds()))
        return clouds or self._tracks_wanted()

    def _tracks_wanted(self) -> bool:
        return self._tracks is not None and self._tracks.wanted()

    def show_legend(self, frame_id: str, space: LabelSpace) -> None:
        """Publish the legend of the classes where the sweeps are."""
        self._legend.show(frame_id, space)

    def needs_probabilities(self, config: NodeConfig) -> bool:
        """The clouds that are subscribed have fields that need the probabilities of all classes."""
        output = config.output
        fields = output.profile == "autoware" or output.entropy or output.probabilities
        return bool(fields) and any(map(qos.has_subscribers, self._all_clouds()))

    def _all_clouds(self) -> list[LifecyclePublisher[PointCloud2]]:
        return [*self._united_clouds(), *self._parts.values()]

    def _united_clouds(self) -> list[LifecyclePublisher[PointCloud2]]:
        return [self._labeled, *self._clouds.values(), *self._moving.values()]

    def teacher_wanted(self) -> bool:
        """There are subscribers of the teacher's labels."""
        return self._teacher is not None and qos.has_subscribers(self._teacher)

    def wanted_overlays(self) -> list[str]:
        """Cameras whose overlay has subscribers."""
        return [name for name, out in self._overlays.items() if qos.has_subscribers(out)]

    def publish(
        self,
        msg: PointCloud2,
        labeled: LabeledSweep,
        config: NodeConfig,
        fixed_frame: str,
        remembered: Callable[[float], Voxels | None],
        parts: Mapping[str, PointCloud2] | None = None,
    ) -> list[tuple[str, str]]:
        """Publish the clouds, images and the grid of a sweep.

        Args:
            msg: the sweep; of a united one only the header is needed unless `united_wanted`.
            labeled: its labels.
            config: parameters.
            fixed_frame, remembered: see `GridOutput.publish`.
            parts: LiDAR -> its sweep as it came, in the order of the points of a united sweep.

        Returns:
            (event, reason) of what cannot be made.
        """
        problems = self._publish_clouds(msg, labeled, config, parts or {})
        problems += self._images.publish(msg, labeled)
        if self._tracks is not None:
            problems += self._tracks.publish(msg.header, labeled)
        return problems + self._grid.publish(msg, labeled, config.grid, fixed_frame, remembered)

    def _publish_clouds(
        self,
        msg: PointCloud2,
        labeled: LabeledSweep,
        config: NodeConfig,
        parts: Mapping[str, PointCloud2],
    ) -> list[tuple[str, str]]:
        wanted = any(map(qos.has_subscribers, self._all_clouds()))
        if not wanted and config.only_when_subscribed:
            return []
        fields = _fields(labeled, config)
        self._publish_parts(parts, labeled, config, fields)
        if parts and not self.united_wanted(config):
            return []
        cloud = self._encode(msg, labeled, config, fields)
        self._labeled.publish(cloud)
        chosen = self._chosen(labeled, config)
        messages = conversions.filtered_messages(cloud, [points for _, points in chosen])
        for (publisher, _), message in zip(chosen, messages):
            publisher.publish(message)
        if labeled.moving is not None and labeled.pose is None:
            return [(MOVING_LEFT_OUT, "the motion of the platform is not known")]
        return []

    def _chosen(
        self, labeled: LabeledSweep, config: NodeConfig
    ) -> list[tuple[LifecyclePublisher[PointCloud2], npt.NDArray[np.bool_]]]:
        """The clouds with a part of the points that have subscribers, and these points (N,)."""
        chosen = [
            (publisher, choose_points(config.clouds.rules, name, labeled))
            for name, publisher in self._clouds.items()
            if qos.has_subscribers(publisher)
        ]
        if labeled.moving is None or labeled.pose is None:
            return chosen
        return chosen + [
            (publisher, labeled.moving == kind)
            for kind, publisher in self._moving.items()
            if qos.has_subscribers(publisher)
        ]

    def _publish_parts(
        self,
        parts: Mapping[str, PointCloud2],
        labeled: LabeledSweep,
        config: NodeConfig,
        fields: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Publish the sweep of each LiDAR with its part of the labels."""
        first = 0
        for name, msg in parts.items():
            rows = slice(first, first + msg.height * msg.width)
            first = rows.stop
            if qos.has_subscribers(self._parts[name]):
                own = {field: values[rows] for field, values in fields.items()}
                self._parts[name].publish(self._encode(msg, labeled.part(rows), config, own))

    def labeled_message(
        self, msg: PointCloud2, labeled: LabeledSweep, config: NodeConfig
    ) -> PointCloud2:
        """The sweep in the profile, and with the fields, that the parameters select."""
        return self._encode(msg, labeled, config, _fields(labeled, config))

    def _encode(
        self,
        msg: PointCloud2,
        labeled: LabeledSweep,
        config: NodeConfig,
        fields: Mapping[str, npt.NDArray[Any]],
    ) -> PointCloud2:
        output, space = config.output, labeled.label_space
        if output.profile == "autoware":
            if self._autoware_of is not space:
                self._autoware_ids = autoware_ids(output.class_map, space)
                self._autoware_of = space
            cloud = autoware_cloud(msg, labeled, self._autoware_ids)
        else:
            extra = ExtraFields(output.entropy, output.probabilities, fields)
            encode = minimal_cloud if output.profile == "minimal" else append_labels
            cloud = encode(msg, labeled, extra)
        return conversions.cloud_message(msg.header, cloud)

    def publish_overlay(self, header: Header, frame: CameraFrame, labeled: LabeledSweep) -> None:
        """Publish the labels of a sweep drawn over an image, with the header of the image."""
        projection = project_cloud(labeled.cloud.xyz, frame.T_cam_lidar, frame.camera)
        colors = labeled.label_space.colorize(labeled.labels, ignored=_UNLABELED_COLOR)
        picture = draw_labels(frame.image, projection, colors)
        self._overlays[frame.name].publish(conversions.image_message(picture, header))

    def publish_teacher(self, msg: PointCloud2, labeled: LabeledSweep, config: NodeConfig) -> None:
        """Publish the sweep with the labels of the camera teacher."""
        if self._teacher is not None:
            self._teacher.publish(self.labeled_message(msg, labeled, config))

    def publish_times(self, stages: Mapping[str, float]) -> None:
        """Publish the durations of a sweep's stages, ms."""
        for stage, duration in stages.items():
            publisher = self._times.get(stage)
            if publisher is not None and qos.has_subscribers(publisher):
                publisher.publish(Float64(data=float(duration)))


def _fields(labeled: LabeledSweep, config: NodeConfig) -> dict[str, npt.NDArray[Any]]:
    """The fields `instance` (uint32), `moving` (uint8) and `rgb` (float32), if selected."""
    fields: dict[str, npt.NDArray[Any]] = {}
    space = labeled.label_space
    if config.tracks.enabled:
        tracked = labeled.tracked
        nothing = np.zeros(len(labeled.labels), np.uint32)
        fields["instance"] = nothing if tracked is None else tracked.instances
    elif config.publish_instances:
        fields["instance"] = config.thing_rules().cluster(labeled.cloud.xyz, labeled.labels, space)
    if config.moving.enabled:
        unknown = np.full(len(labeled.labels), UNKNOWN, np.uint8)
        fields["moving"] = unknown if labeled.moving is None else labeled.moving
    if config.publish_rgb:
        fields["rgb"] = pack_rgb(space.colorize(labeled.labels))
    return fields
