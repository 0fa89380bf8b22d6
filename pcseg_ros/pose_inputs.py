# SPDX-License-Identifier: Apache-2.0
"""Subscriptions that the poses of the sensors come from: /tf, /tf_static and Odometry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nav_msgs.msg import Odometry
from rclpy.node import Node

from pcseg_core.data.calibration import Calibration
from pcseg_core.errors import InputError
from pcseg_ros import conversions, topics
from pcseg_ros.config import NodeConfig
from pcseg_ros.diagnostics import SweepStatistics
from pcseg_ros.qos import SensorSubscription
from pcseg_ros.sensor_poses import Motion, OdometryMotion, SensorPoses
from pcseg_ros.transforms import TfMotion, TransformBuffer, has_tf2


class PoseInputs:
    """Keeps the poses of the sensors up to date; the callbacks run in the node's executor.

    Args:
        node: owner.
        config: parameters.
        calibration: calibration file, if any.
        statistics: counts poses that are refused on arrival.

    Raises:
        InputError: parameters that contradict each other, or tf2 is needed and not installed.

    Attributes:
        poses: poses of the sensors.
        fixed_frame: name of the frame of the poses; that of Odometry is known with its first
            message.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        calibration: Calibration | None,
        statistics: SweepStatistics,
    ) -> None:
        self._node = node
        self._statistics = statistics
        self._transforms: TransformBuffer | None = None
        self._odometry: OdometryMotion | None = None
        self._subscription: SensorSubscription[Odometry] | None = None
        self.poses = SensorPoses(None, None, None)
        self.fixed_frame = config.motion.fixed_frame
        moves = needs_motion(config)
        united = len(config.points.topics) > 1
        if not (moves or united or config.cameras.topics):
            return
        source = _source(config, moves, calibrated=calibration is not None)
        if has_tf2():
            self._transforms = TransformBuffer(
                node, lambda: self.poses.notify(), partial(statistics.complain, node)
            )
        motion = self._create_motion(source, config, calibration)
        self.poses = SensorPoses(motion, self._transforms, calibration)

    def reset(self) -> None:
        """Forget all poses; static transforms stay."""
        for source in (self._transforms, self._odometry):
            if source is not None:
                source.reset()

    def destroy(self) -> None:
        """End the subscriptions."""
        if self._transforms is not None:
            self._transforms.destroy()
        if self._subscription is not None:
            self._subscription.destroy()

    def _create_motion(
        self, source: str, config: NodeConfig, calibration: Calibration | None
    ) -> Motion | None:
        if source == "none":
            return None
        if source == "tf":
            assert self._transforms is not None
            return TfMotion(self._transforms, config.motion.fixed_frame)
        place = None if calibration is None else calibration.body()
        self._odometry = OdometryMotion(place, self._transforms)
        self._subscription = SensorSubscription(
            self._node,
            Odometry,
            topics.ODOMETRY,
            self._on_odometry,
            self._statistics,
            "Odometry",
            depth=50,
        )
        return self._odometry

    def _on_odometry(self, msg: Odometry) -> None:
        try:
            pose = conversions.read_odometry(msg)
        except InputError as error:
            self._statistics.complain(self._node, "Odometry refused", error)
            return
        assert self._odometry is not None
        self.fixed_frame = msg.header.frame_id
        self._odometry.add(msg.child_frame_id, conversions.stamp_ns(msg.header), pose)
        self.poses.notify()


def needs_motion(config: NodeConfig) -> list[str]:
    """Parameters that are set and need the motion of the platform."""
    wanted = {
        "temporal.enabled": config.temporal.enabled,
        "motion.deskew": config.motion.deskew,
        "moving.enabled": config.moving.enabled,
        "tracks.enabled": config.tracks.enabled,
        "grid.frame fixed": config.grid.frame == "fixed",
    }
    return [name for name, is_set in wanted.items() if is_set]


def _source(config: NodeConfig, moves: Sequence[str], calibrated: bool) -> str:
    """Source of the motion: "tf", "odometry" or "none"."""
    source: str = config.motion.source
    if source == "none" and moves:
        raise InputError(
            f"motion.source is none; take tf or odometry for {', '.join(moves)}. For a LiDAR that "
            "stands still, take tf and a static transform to motion.fixed_frame"
        )
    if source == "auto":
        source = "tf" if has_tf2() else "odometry"
    if source == "tf" and not has_tf2():
        raise InputError("motion.source is tf, but tf2_ros is not installed; use odometry")
    if config.cameras.topics and not calibrated and not has_tf2():
        raise InputError("cameras need cameras.calibration if tf2_ros is not installed")
    if len(config.points.topics) > 1 and not calibrated and not has_tf2():
        raise InputError("points.topics need cameras.calibration if tf2_ros is not installed")
    return source
