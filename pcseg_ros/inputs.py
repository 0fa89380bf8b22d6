# SPDX-License-Identifier: Apache-2.0
"""What the node listens to: sweeps with their images, transforms, odometry."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2

from pcseg_core.data.calibration import Calibration, load_calibration
from pcseg_core.errors import InputError
from pcseg_ros import conversions, diagnostics, topics
from pcseg_ros.cameras import create_cameras
from pcseg_ros.config import NodeConfig
from pcseg_ros.matching import create_synchronizer
from pcseg_ros.motion import OdometryMotion, TfMotion
from pcseg_ros.rig import JUMP_NS, Motion, Rig
from pcseg_ros.statistics import SweepStatistics
from pcseg_ros.subscriptions import SensorSubscription
from pcseg_ros.transforms import TransformBuffer, has_tf2

_LEAST_WAIT_NS = 1_000_000


@dataclass
class Sweep:
    """A sweep waiting for inference.

    Attributes:
        msg: the message.
        received_s: when it came in (monotonic clock, s).
        images: camera -> its image message.
        matched_s: when it had its images.
    """

    msg: PointCloud2
    received_s: float
    images: dict[str, Any] = field(default_factory=dict)
    matched_s: float = 0.0


class Inputs:
    """Subscriptions of the node; the callbacks run in its executor.

    Args:
        node: owner.
        config: parameters.
        statistics: where sweeps and faults are counted.
        on_sweep: called with each sweep that has its images or waits no longer for them.
        on_jump: called when time has jumped back.

    Raises:
        InputError: parameters that contradict each other, a calibration that cannot be read, or
            tf2 or message_filters needed and not installed.

    Attributes:
        enabled: whether sweeps are taken.
        cameras: by name.
        rig: where sensors are.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        statistics: SweepStatistics,
        on_sweep: Callable[[Sweep], None],
        on_jump: Callable[[], None],
    ) -> None:
        self._node = node
        self._statistics = statistics
        self._on_sweep = on_sweep
        self._on_jump = on_jump
        self.enabled = False
        self._newest_ns = 0
        self._told_drops: dict[str, int] = {}
        self._transforms: TransformBuffer | None = None
        self._odometry: OdometryMotion | None = None
        self._odometry_subscription: Any = None
        calibration = load_calibration(config.cameras.calibration) if _calibrated(config) else None
        self.rig = self._create_rig(config, calibration)
        self.cameras = create_cameras(node, config.cameras, calibration, self._on_image)
        self._synchronizer = create_synchronizer(config.cameras, tuple(self.cameras))
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._deadline = node.create_timer(1.0, self._give_out, clock=steady)
        self._deadline.cancel()
        self._points = SensorSubscription(
            node, PointCloud2, topics.POINTS, self._on_points, config.input_reliability
        )
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-JUMP_NS), on_clock_change=False
        )
        self._jumps = node.get_clock().create_jump_callback(
            backwards, post_callback=lambda _: self._on_clock_jump()
        )

    @property
    def topic_name(self) -> str:
        """Full name of the topic of the sweeps."""
        return self._points.topic_name

    def destroy(self) -> None:
        """End all subscriptions."""
        self._jumps.unregister()
        self._node.destroy_timer(self._deadline)
        self._points.destroy()
        for camera in self.cameras.values():
            camera.destroy()
        if self._transforms is not None:
            self._transforms.destroy()
        if self._odometry_subscription is not None:
            self._node.destroy_subscription(self._odometry_subscription)

    def reset(self) -> None:
        """Forget all messages."""
        self._synchronizer.reset()
        self._newest_ns = 0
        for source in (self._transforms, self._odometry):
            if source is not None:
                source.reset()

    def counters(self) -> dict[str, int]:
        """What happened to messages in the synchronizer, in words."""
        return {k.replace("_", " "): v for k, v in self._synchronizer.counters.items()}

    # --- set-up ----------------------------------------------------------------------------------

    def _create_rig(self, config: NodeConfig, calibration: Calibration | None) -> Rig:
        source = config.motion.source
        wanted = config.cameras.topics or config.temporal.enabled or config.motion.deskew
        if not wanted:
            return Rig(None, None, None)
        if source == "none" and (config.temporal.enabled or config.motion.deskew):
            raise InputError("temporal.enabled and motion.deskew need motion.source")
        if source == "auto":
            source = "tf" if has_tf2() else "odometry"
        if source == "tf" and not has_tf2():
            raise InputError("motion.source is tf, but tf2_ros is not installed; use odometry")
        if has_tf2():
            self._transforms = TransformBuffer(self._node, lambda: self.rig.notify())
        elif config.cameras.topics and calibration is None:
            raise InputError("cameras need cameras.calibration where tf2_ros is not installed")
        return Rig(self._create_motion(source, config, calibration), self._transforms, calibration)

    def _create_motion(
        self, source: str, config: NodeConfig, calibration: Calibration | None
    ) -> Motion | None:
        if source == "none":
            return None
        if source == "tf":
            return TfMotion(self._transforms, config.motion.fixed_frame)
        place = None if calibration is None else calibration.body()
        self._odometry = OdometryMotion(place, self._transforms)
        self._odometry_subscription = self._node.create_subscription(
            Odometry, topics.ODOMETRY, self._on_odometry, QoSProfile(depth=50)
        )
        return self._odometry

    # --- executor --------------------------------------------------------------------------------

    def _on_points(self, msg: PointCloud2) -> None:
        if not self.enabled:
            return
        self._statistics.receive()
        stamp, now = conversions.stamp_ns(msg.header), time.monotonic()
        if stamp < self._newest_ns - JUMP_NS:
            self._jump("stamps of the sweeps jumped back")
        self._newest_ns = max(stamp, self._newest_ns)
        sweep = Sweep(msg, now, matched_s=now)
        if not self.cameras:
            self._on_sweep(sweep)
            return
        self._synchronizer.add_sweep(stamp, sweep, now)
        self._count_drops()
        self._give_out()

    def _on_image(self, camera: str, msg: Any) -> None:
        if self.enabled:
            self._synchronizer.add_image(camera, conversions.stamp_ns(msg.header), msg)
            self._give_out()

    def _on_odometry(self, msg: Odometry) -> None:
        try:
            pose = conversions.read_odometry(msg)
        except InputError as error:
            self._node.get_logger().error(f"odometry: {error}", throttle_duration_sec=5.0)
            return
        assert self._odometry is not None
        self._odometry.add(msg.child_frame_id, conversions.stamp_ns(msg.header), pose)
        self.rig.notify()

    def _give_out(self) -> None:
        """Hand on the sweeps that wait no longer, and be back when the next one must not."""
        self._deadline.cancel()
        now = time.monotonic()
        for match in self._synchronizer.poll(now):
            for camera in match.missing:
                self._statistics.note(f"without camera {camera}")
            match.sweep.images, match.sweep.matched_s = match.images, now
            self._on_sweep(match.sweep)
        due = self._synchronizer.next_deadline_s
        if due is not None:
            remaining = int(1e9 * (due - now))
            self._deadline.timer_period_ns = max(remaining, _LEAST_WAIT_NS)
            self._deadline.reset()

    def _count_drops(self) -> None:
        """Sweeps that the synchronizer dropped count as all others do."""
        for counter, reason in diagnostics.SYNCHRONIZER_DROPS.items():
            count = self._synchronizer.counters[counter]
            for _ in range(count - self._told_drops.get(counter, 0)):
                self._statistics.drop(reason)
            self._told_drops[counter] = count

    def _on_clock_jump(self) -> None:
        self.reset()
        self._jump("clock jumped back")

    def _jump(self, what: str) -> None:
        self._node.get_logger().warning(f"{what}: starting anew", throttle_duration_sec=1.0)
        self._statistics.note(what)
        self._newest_ns = 0
        self._on_jump()


def _calibrated(config: NodeConfig) -> bool:
    return bool(config.cameras.calibration)
