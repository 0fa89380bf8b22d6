# SPDX-License-Identifier: Apache-2.0
"""Several LiDARs of the node: their topics, and their sweeps as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2

from pcseg_core.cloud import IntensityScale, PointCloud
from pcseg_core.data.lidar_sets import LATE, OTHER_CLOCK, LidarSet, LidarSets
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.uniting import MAX_LIDARS, Part, unite, united_message
from pcseg_ros import conversions
from pcseg_ros.cameras import camera_names
from pcseg_ros.config import NodeConfig
from pcseg_ros.diagnostics import SweepStatistics
from pcseg_ros.qos import SensorSubscription
from pcseg_ros.sensor_poses import TransformError
from pcseg_ros.synchronization import ReceivedSweep

Place: TypeAlias = Callable[[str, str, str], "npt.NDArray[np.float64]"]
_MIN_WAIT_NS = 1_000_000


class UnplacedError(PcsegError):
    """No LiDAR of a sweep has a transform into its frame."""


class Lidars:
    """Subscriptions of several LiDARs; their callbacks run in the node's executor.

    Args:
        node: owner.
        config: parameters.
        statistics: counts events.
        on_sweep: called with the sweeps that belong together.
        place: gives T_united_lidar (4, 4) by the frame of the united sweep, and the topic and the
            frame of a LiDAR, or raises TransformError.

    Raises:
        InputError: a topic is named twice or has a wrong name.

    Attributes:
        names: of the LiDARs; their position is the value of the field `source`.
        enabled: sweeps are taken.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        statistics: SweepStatistics,
        on_sweep: Callable[[ReceivedSweep], None],
        place: Place,
    ) -> None:
        self._node = node
        self._statistics = statistics
        self._on_sweep = on_sweep
        self._place = place
        self._frame = config.points.frame
        self.names = lidar_names(config.points.topics)
        self.enabled = False
        self._intensities = {name: IntensityScale(config.intensity_scale) for name in self.names}
        self._frames: dict[str, str] = {}
        self._sets: LidarSets[PointCloud2] = LidarSets(
            self.names, config.points.tolerance_s, config.points.deadline_s
        )
        self._reported: dict[str, tuple[int, float]] = {}
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._deadline = node.create_timer(1.0, self._hand_on, clock=steady)
        self._deadline.cancel()
        self._subscriptions = {
            name: SensorSubscription(
                node,
                PointCloud2,
                topic,
                partial(self._on_points, name),
                statistics,
                f"sweeps of {name}",
                config.input_reliability,
            )
            for name, topic in zip(self.names, config.points.topics)
        }

    @property
    def topic_names(self) -> list[str]:
        """Their topics, remappings applied."""
        return [subscription.topic_name for subscription in self._subscriptions.values()]

    def use_scale(self, factor: float, trained: float | None) -> None:
        """Set the scale of all intensities; see `IntensityScale`."""
        self._intensities = {name: IntensityScale(factor, trained) for name in self.names}

    @property
    def intensity(self) -> str:
        """Scales of the intensities, in words."""
        return "; ".join(f"{name}: {scale}" for name, scale in self._intensities.items())

    def destroy(self) -> None:
        """End the subscriptions."""
        self._node.destroy_timer(self._deadline)
        for subscription in self._subscriptions.values():
            subscription.destroy()

    def reset(self) -> None:
        """Forget all sweeps."""
        self._sets.reset()

    def values(self) -> dict[str, str]:
        """Rate, age, missed sets and clock of each LiDAR, for /diagnostics."""
        now_ns, now_s = self._node.get_clock().now().nanoseconds, time.monotonic()
        values = {}
        for name, state in self._sets.states.items():
            before, since_s = self._reported.get(name, (0, now_s))
            self._reported[name] = state.received, now_s
            rate = (state.received - before) / max(now_s - since_s, 1e-3) if before else 0.0
            values[f"LiDAR {name}: rate (Hz)"] = f"{rate:.2f}"
            if state.received:
                values[f"LiDAR {name}: age (s)"] = f"{1e-9 * (now_ns - state.stamp_ns):.3f}"
                values[f"LiDAR {name}: clock offset (s)"] = f"{state.offset_s:+.3f}"
            values[f"LiDAR {name}: missed"] = str(state.missed)
            for reason, count in state.unused.items():
                values[f"LiDAR {name}: {reason}"] = str(count)
        return values

    # --- inference thread ------------------------------------------------------------------------

    def unite(self, received: ReceivedSweep, times: Mapping[str, str]) -> PointCloud:
        """The sweep of all LiDARs; those that cannot be used are left out of `received` too.

        Raises:
            InputError: none can be read.
            UnplacedError: none has a transform.
        """
        header, parts, used = received.msg.header, [], {}
        error: PcsegError = InputError("no LiDAR")
        for number, name in enumerate(self.names):
            message = received.parts.get(name)
            if message is None:
                continue
            try:
                parts.append(self._part(number, name, message, header.frame_id, times))
                used[name] = message
            except (InputError, TransformError) as reason:
                error = reason
                self._statistics.complain(self._node, f"LiDAR {name} left out", reason)
        if not parts:
            raise error if isinstance(error, InputError) else UnplacedError(str(error))
        received.parts = used
        return unite(parts, conversions.stamp_ns(header), header.frame_id)

    def _part(
        self, number: int, name: str, message: PointCloud2, frame: str, times: Mapping[str, Any]
    ) -> Part:
        cloud = conversions.read_sweep(message, self._intensities[name], **times)
        topic = self._subscriptions[name].topic_name
        return Part(cloud, self._place(frame, topic, cloud.frame_id), number)

    # --- executor --------------------------------------------------------------------------------

    def _on_points(self, name: str, msg: PointCloud2) -> None:
        if not self.enabled:
            return
        self._frames[name] = msg.header.frame_id
        why = self._sets.add(name, conversions.stamp_ns(msg.header), msg, time.monotonic())
        state = self._sets.states[name]
        if why == OTHER_CLOCK:
            told = f"its stamps are {state.offset_s:+.3f} s from those of the first: another clock"
            self._statistics.complain(self._node, f"LiDAR {name} left out", told)
        elif why == LATE:
            told = "its sweep comes after those it belongs to; raise points.deadline_s"
            self._statistics.complain(self._node, f"LiDAR {name} too late", told)
        elif why:
            self._statistics.note(f"LiDAR {name}: {why}")
        self._hand_on()

    def _hand_on(self) -> None:
        """Hand on the sets that wait no longer; the timer wakes up at the next deadline."""
        self._deadline.cancel()
        now = time.monotonic()
        for one in self._sets.poll(now):
            for name in one.missing:
                self._statistics.note(f"without LiDAR {name}")
            self._on_sweep(self._received(one))
        due = self._sets.next_deadline_s
        if due is not None:
            self._deadline.timer_period_ns = max(int(1e9 * (due - now)), _MIN_WAIT_NS)
            self._deadline.reset()

    def _received(self, one: LidarSet[PointCloud2]) -> ReceivedSweep:
        frame = self._frame or next(self._frames[n] for n in self.names if n in self._frames)
        msg = PointCloud2()
        msg.header.frame_id = frame
        msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(one.stamp_ns, 10**9)
        return ReceivedSweep(msg, one.arrived_s, matched_s=time.monotonic(), parts=one.items)


def lidar_names(topics: tuple[str, ...]) -> list[str]:
    """Names of LiDARs by their topics, as `camera_names`.

    Raises:
        InputError: a topic is named twice, or there are too many.
    """
    names = camera_names([topic.lstrip("~/") for topic in topics])
    if len(set(names)) != len(names) or len(names) > MAX_LIDARS:
        raise InputError(
            f"points.topics: {', '.join(topics)}; expected up to {MAX_LIDARS} different topics"
        )
    return names


def united(received: ReceivedSweep, cloud: PointCloud, xyz: npt.NDArray[np.float32]) -> PointCloud2:
    """The message of a united sweep.

    Args:
        received: its messages.
        cloud: their points.
        xyz: (N, 3) the same points, deskewed.
    """
    encoded = united_message(list(received.parts.values()), cloud, xyz)
    return conversions.cloud_message(received.msg.header, encoded)
