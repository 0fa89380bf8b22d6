# SPDX-License-Identifier: Apache-2.0
"""Inputs of the node: sweeps with their images and the poses of the sensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2

from pcseg_core.body import with_body, without_body
from pcseg_core.cloud import IntensityScale, PointCloud
from pcseg_core.data.calibration import load_calibration
from pcseg_core.data.sample import CameraFrame
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.geometry import Poses
from pcseg_core.input_check import InputStatistics
from pcseg_core.online.pipeline import Sweep
from pcseg_ros import conversions, diagnostics, topics
from pcseg_ros.cameras import AnyImage, create_cameras
from pcseg_ros.config import NodeConfig
from pcseg_ros.diagnostics import SweepStatistics
from pcseg_ros.lidars import Lidars, united
from pcseg_ros.pose_inputs import PoseInputs
from pcseg_ros.qos import SensorSubscription
from pcseg_ros.sensor_poses import JUMP_NS
from pcseg_ros.synchronization import ReceivedSweep, create_synchronizer

_MIN_WAIT_NS = 1_000_000


@dataclass(kw_only=True)
class NodeSweep(Sweep):
    """A decoded sweep, with its messages.

    Attributes:
        received: its messages.
        measured: (N, 3) float32 points as measured, with the robot itself.
    """

    received: ReceivedSweep
    measured: npt.NDArray[np.float32]

    def message(self, cloud: PointCloud) -> PointCloud2:
        """The message as it came; of several LiDARs that of the united sweep.

        Args:
            cloud: the sweep, deskewed.
        """
        if not self.received.parts:
            return self.received.msg
        robot = self.measured is not self.cloud.xyz
        xyz = with_body(cloud.xyz, self.measured) if robot else cloud.xyz
        return united(self.received, cloud, xyz)


class MalformedError(PcsegError):
    """The message of a sweep is malformed; faults of other inputs are never blamed on it."""


class Inputs:
    """Subscriptions of the node; their callbacks run in its executor.

    Args:
        node: owner.
        config: parameters.
        statistics: counts sweeps and faults.
        on_sweep: called with each sweep that has its images, or whose deadline for them is over.
        on_jump: called when time has jumped back.

    Raises:
        InputError: parameters that contradict each other, a calibration that cannot be read, or
            tf2 or message_filters are needed and not installed.

    Attributes:
        cameras: by name.
        intensity: scale of the intensities, held for the topic of one LiDAR.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        statistics: SweepStatistics,
        on_sweep: Callable[[ReceivedSweep], None],
        on_jump: Callable[[], None],
    ) -> None:
        self._node = node
        self._config = config
        self._statistics = statistics
        self._on_sweep = on_sweep
        self._on_jump = on_jump
        self._enabled = False
        self.intensity = IntensityScale(config.intensity_scale)
        self._lidars: Lidars | None = None
        motion = config.motion
        self._times = {"time_field": motion.time_field, "stamp_reference": motion.stamp_reference}
        self._newest_ns = 0
        self._frame = ""
        self._scale_logged = False
        self._counted_drops: dict[str, int] = {}
        path = config.cameras.calibration
        calibration = load_calibration(path) if path else None
        self._pose_inputs = PoseInputs(node, config, calibration, statistics)
        self.cameras = create_cameras(node, config.cameras, calibration, self._on_image, statistics)
        self._synchronizer = create_synchronizer(config.cameras, tuple(self.cameras))
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._deadline = node.create_timer(1.0, self._hand_on, clock=steady)
        self._deadline.cancel()
        self._points: SensorSubscription[PointCloud2] | None = None
        if len(config.points.topics) > 1:
            place = self._pose_inputs.poses.T_united_lidar
            self._lidars = Lidars(node, config, statistics, self._take, place)
        else:
            topic = next(iter(config.points.topics), topics.POINTS)
            arguments = (topic, self._on_points, statistics, "sweeps", config.input_reliability)
            self._points = SensorSubscription(node, PointCloud2, *arguments)
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-JUMP_NS), on_clock_change=False
        )
        self._jumps = node.get_clock().create_jump_callback(
            backwards, post_callback=lambda _: self._on_clock_jump()
        )

    @property
    def topic_names(self) -> list[str]:
        """Topics of the sweeps and the images."""
        clouds = [self._points.topic_name] if self._points else []
        if self._lidars is not None:
            clouds = self._lidars.topic_names
        return [*clouds, *(camera.topic for camera in self.cameras.values())]

    @property
    def enabled(self) -> bool:
        """Sweeps are taken."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        if self._lidars is not None:
            self._lidars.enabled = value

    @property
    def lidar_names(self) -> list[str]:
        """Names of several LiDARs; empty for one."""
        return [] if self._lidars is None else self._lidars.names

    def lidar_values(self) -> dict[str, str]:
        """State of several LiDARs, for /diagnostics."""
        return {} if self._lidars is None else self._lidars.values()

    @property
    def intensities(self) -> str:
        """Scale of the intensities, in words."""
        return str(self.intensity) if self._lidars is None else self._lidars.intensity

    def use_training(self, trained: InputStatistics | None) -> None:
        """Set the intensity scale and the times of the training; parameters come first."""
        if trained is None:
            return
        motion = self._config.motion
        self.intensity = IntensityScale(self._config.intensity_scale, trained.intensity_scale)
        self._times = trained.time_options(motion.time_field, motion.stamp_reference)
        if self._lidars is not None:
            self._lidars.use_scale(self._config.intensity_scale, trained.intensity_scale)

    @property
    def fixed_frame(self) -> str:
        """Frame of the poses of sweeps; empty before the first Odometry."""
        return self._pose_inputs.fixed_frame

    def destroy(self) -> None:
        """End all subscriptions."""
        self._jumps.unregister()
        self._node.destroy_timer(self._deadline)
        if self._points is not None:
            self._points.destroy()
        if self._lidars is not None:
            self._lidars.destroy()
        for camera in self.cameras.values():
            camera.destroy()
        self._pose_inputs.destroy()

    def reset(self) -> None:
        """Forget all messages."""
        self._synchronizer.reset()
        if self._lidars is not None:
            self._lidars.reset()
        self._newest_ns = 0
        self._pose_inputs.reset()

    def counters(self) -> dict[str, int]:
        """Events of the synchronizer, in words."""
        return {k.replace("_", " "): v for k, v in self._synchronizer.counters.items()}

    # --- inference thread ------------------------------------------------------------------------

    def decode(self, received: ReceivedSweep) -> NodeSweep:
        """The sweep for the pipeline; images and poses are taken when it asks for them.

        Raises:
            MalformedError: the message cannot be read.
        """
        try:
            whole = self._read(received)
        except InputError as error:
            raise MalformedError(str(error)) from None
        cloud = without_body(whole, self._config.points.body)
        if self.intensity.final and not self._scale_logged:
            self._scale_logged = True
            self._node.get_logger().info(f"{self.topic_names[0]}: {self.intensity}")
        frames = None
        if received.images:
            frames = lambda: self.frames(received, cloud, received.images)  # noqa: E731
        poses = self._poses(cloud)
        return NodeSweep(cloud, frames, poses, received=received, measured=whole.xyz)

    def _read(self, received: ReceivedSweep) -> PointCloud:
        if self._lidars is not None:
            return self._lidars.unite(received, self._times)
        times = dict(self._times)
        if not self._config.motion.deskew:
            times["time_field"] = "none"
        return conversions.read_sweep(received.msg, self.intensity, **times)

    def frames(
        self, received: ReceivedSweep, cloud: PointCloud, cameras: Iterable[str]
    ) -> list[CameraFrame]:
        """Decoded images of these cameras; those without a usable image or pose are left out.

        Such a camera is counted once for a sweep, however many threads ask for its image.
        """
        frames = []
        deadline_s = time.monotonic() + self._config.motion.timeout_s
        poses = self._pose_inputs.poses
        for name in cameras:
            image = received.images[name]
            try:
                frames.append(self.cameras[name].frame(image, cloud, poses, deadline_s))
            except PcsegError as error:
                if name not in received.unusable:
                    received.unusable.add(name)
                    self._statistics.complain(self._node, f"camera {name} left out", error)
        return frames

    def _poses(self, cloud: PointCloud) -> Poses | None:
        """Poses of the LiDAR; late ones are waited for until `motion.timeout_s` from now."""
        poses = self._pose_inputs.poses
        if not poses.moves:
            return None
        deadline_s = time.monotonic() + self._config.motion.timeout_s
        return lambda stamps: poses.wait(lambda: poses.poses(cloud.frame_id, stamps), deadline_s)

    # --- executor --------------------------------------------------------------------------------

    def _on_points(self, msg: PointCloud2) -> None:
        if self.enabled:
            now = time.monotonic()
            self._take(ReceivedSweep(msg, now, matched_s=now))

    def _take(self, sweep: ReceivedSweep) -> None:
        """Take a sweep of one LiDAR, or of several."""
        self._statistics.receive()
        msg, stamp = sweep.msg, conversions.stamp_ns(sweep.msg.header)
        if stamp < self._newest_ns - JUMP_NS:
            self._jump("stamps of the sweeps jumped back")
        self._newest_ns = max(stamp, self._newest_ns)
        if self._frame and msg.header.frame_id != self._frame:
            change = f"from '{self._frame}' to '{msg.header.frame_id}'; expected one sensor"
            self._statistics.complain(self._node, "frame of the sweeps changed", change)
        self._frame = msg.header.frame_id
        if not self.cameras:
            self._on_sweep(sweep)
            return
        self._synchronizer.add_sweep(stamp, sweep, time.monotonic())
        self._count_drops()
        self._hand_on()

    def _on_image(self, camera: str, msg: AnyImage) -> None:
        if self.enabled:
            self._synchronizer.add_image(camera, conversions.stamp_ns(msg.header), msg)
            self._hand_on()

    def _hand_on(self) -> None:
        """Hand on the sweeps that wait no longer; the timer wakes up at the next deadline."""
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
            self._deadline.timer_period_ns = max(remaining, _MIN_WAIT_NS)
            self._deadline.reset()

    def _count_drops(self) -> None:
        """Count the sweeps that the synchronizer dropped like all others."""
        for counter, reason in diagnostics.SYNCHRONIZER_DROPS.items():
            count = self._synchronizer.counters[counter]
            new = count - self._counted_drops.get(counter, 0)
            if new:
                self._statistics.drop(reason, new)
            self._counted_drops[counter] = count

    def _on_clock_jump(self) -> None:
        self.reset()
        self._jump("clock jumped back")

    def _jump(self, event: str) -> None:
        self._statistics.complain(self._node, event, "past sweeps are forgotten")
        self._newest_ns = 0
        self._on_jump()
