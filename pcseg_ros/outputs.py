# SPDX-License-Identifier: Apache-2.0
"""What the node publishes of a sweep. Nothing is computed that nobody subscribes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float64

from pcseg_core.labels import LabelSpace
from pcseg_core.online.instances import cluster_instances
from pcseg_core.online.overlay import draw_labels
from pcseg_core.projection import Projection
from pcseg_ros import conversions, qos, topics
from pcseg_ros.config import NodeConfig


@dataclass
class CameraView:
    """An image with a sweep in it.

    Attributes:
        image: (H, W, 3) RGB.
        projection: of the sweep's points into it.
        header: of its message.
    """

    image: npt.NDArray[np.uint8]
    projection: Projection
    header: Any


@dataclass
class LabeledSweep:
    """A sweep with its labels.

    Attributes:
        msg: the message that came in.
        xyz: (N, 3) points as the network saw them, m.
        labels: (N,) class ids, -1 where there is none or its confidence is too low.
        confidence: (N,) float32.
        space: what the ids mean.
    """

    msg: PointCloud2
    xyz: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    confidence: npt.NDArray[np.float32]
    space: LabelSpace


class SweepOutputs:
    """Publishers of labeled clouds, overlays and times.

    Args:
        node: owner; overlays and clouds go out while it is active.
        cameras: names, for one overlay each.
        teacher: whether there is one whose labels are published.
    """

    def __init__(self, node: LifecycleNode, cameras: Sequence[str], teacher: bool) -> None:
        self._node = node
        self._labeled = self._create(PointCloud2, topics.LABELED)
        self._filtered = self._create(PointCloud2, topics.FILTERED)
        self._teacher = self._create(PointCloud2, topics.TEACHER) if teacher else None
        self._overlays = {
            name: self._create(Image, topics.OVERLAY.format(camera=name)) for name in cameras
        }
        self._times = {
            stage: node.create_publisher(Float64, topics.TIMES.format(stage=stage), qos.result())
            for stage in topics.STAGES
        }

    def destroy(self) -> None:
        """End all topics."""
        clouds = [self._labeled, self._filtered, self._teacher, *self._overlays.values()]
        for publisher in clouds:
            if publisher is not None:
                self._node.destroy_lifecycle_publisher(publisher)
        for publisher in self._times.values():
            self._node.destroy_publisher(publisher)

    def wanted(self) -> bool:
        """Somebody subscribes what comes of the student."""
        publishers = (self._labeled, self._filtered, *self._overlays.values())
        return any(_has_subscribers(publisher) for publisher in publishers)

    def teacher_wanted(self) -> bool:
        """Somebody subscribes the teacher's labels."""
        return self._teacher is not None and _has_subscribers(self._teacher)

    def wanted_overlays(self) -> list[str]:
        """Cameras whose overlay somebody subscribes."""
        return [name for name, out in self._overlays.items() if _has_subscribers(out)]

    def publish_clouds(self, sweep: LabeledSweep, config: NodeConfig) -> None:
        """Publish the labeled cloud, then what is filtered of it."""
        filtered = _has_subscribers(self._filtered)
        if not (filtered or _has_subscribers(self._labeled) or not config.only_when_subscribed):
            return
        cloud = labeled_message(sweep, config)
        self._labeled.publish(cloud)
        if filtered:
            chosen = _of_classes(sweep.labels, config.filter_classes, sweep.space)
            self._filtered.publish(conversions.filtered_message(cloud, chosen))

    def publish_overlay(self, camera: str, sweep: LabeledSweep, view: CameraView) -> None:
        """Publish the picture of a sweep over one camera's image."""
        colors = sweep.space.colorize(sweep.labels, ignored=(200, 200, 200))
        picture = draw_labels(view.image, view.projection, colors)
        self._overlays[camera].publish(conversions.image_message(picture, view.header))

    def publish_teacher(self, sweep: LabeledSweep, config: NodeConfig) -> None:
        """Publish the sweep with the labels of the camera teacher."""
        if self._teacher is not None:
            self._teacher.publish(labeled_message(sweep, config))

    def publish_times(self, stages: Mapping[str, float]) -> None:
        """Publish the durations of a sweep's stages, ms, by name."""
        for stage, duration in stages.items():
            publisher = self._times.get(stage)
            if publisher is not None and _has_subscribers(publisher):
                publisher.publish(Float64(data=float(duration)))

    def _create(self, kind: type, topic: str) -> Any:
        overrides = QoSOverridingOptions.with_default_policies()
        return self._node.create_lifecycle_publisher(
            kind, topic, qos.result(), qos_overriding_options=overrides
        )


def labeled_message(sweep: LabeledSweep, config: NodeConfig) -> PointCloud2:
    """The sweep's message with the fields that the parameters ask for."""
    instances = None
    if config.publish_instances:
        names = sweep.space.names
        things = [names.index(name) for name in config.instance_classes if name in names]
        instances = cluster_instances(
            sweep.xyz,
            sweep.labels,
            things,
            cell_m=config.instance_cell_m,
            min_points=config.instance_min_points,
        )
    return conversions.labeled_message(
        sweep.msg,
        sweep.labels,
        sweep.confidence,
        instances=instances,
        space=sweep.space if config.publish_rgb else None,
    )


def _of_classes(
    labels: npt.NDArray[Any], names: Sequence[str], space: LabelSpace
) -> npt.NDArray[np.bool_]:
    """(N,) bool: labeled, and of one of these classes if any are given."""
    if not names:
        return np.asarray(labels >= 0)
    chosen = [space.names.index(name) for name in names if name in space.names]
    return np.isin(labels, chosen)


def _has_subscribers(publisher: Any) -> bool:
    return bool(publisher.get_subscription_count())
