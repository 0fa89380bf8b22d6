# SPDX-License-Identifier: Apache-2.0
"""Transforms from /tf and /tf_static by tf2, at the stamps of the messages and never at another."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.time import Time

from pcseg_core.errors import InputError
from pcseg_ros import conversions, qos
from pcseg_ros.sensor_poses import JUMP_NS, SILENT_S, TransformError

Float64 = npt.NDArray[np.float64]

CACHE_S = 10.0


def has_tf2() -> bool:
    """tf2_ros and its messages are installed."""
    return find_spec("tf2_ros") is not None and find_spec("tf2_msgs") is not None


class TransformBuffer:
    """The tf2 buffer of a node, filled by subscriptions that the node's executor serves.

    `tf2_ros.TransformListener` with its own thread would spin the whole node a second time.

    Args:
        node: owner of the subscriptions.
        changed: called after new transforms.
        complain: called with (event, reason) for each fault of a transform.
    """

    def __init__(
        self, node: Node, changed: Callable[[], None], complain: Callable[[str, object], None]
    ) -> None:
        from tf2_msgs.msg import TFMessage
        from tf2_ros import Buffer, TransformException

        self._node = node
        self._changed = changed
        self._complain = complain
        self._failure: type[Exception] = TransformException
        self._buffer: Any = Buffer(Duration(seconds=CACHE_S))
        self._static: dict[tuple[str, str], Float64] = {}
        self._newest: dict[str, int] = {}
        self._parents: dict[str, str] = {}
        self._subscriptions = [
            node.create_subscription(TFMessage, "/tf", self._on_moving, QoSProfile(depth=100)),
            node.create_subscription(
                TFMessage, "/tf_static", self._on_static, qos.latched(depth=100)
            ),
        ]

    def destroy(self) -> None:
        """End the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def reset(self) -> None:
        """Forget moving transforms; static ones stay."""
        self._buffer.clear()
        self._newest.clear()

    def static(self, target: str, source: str) -> Float64 | None:
        """T_target_source if the frames do not move against each other, else None.

        Raises:
            TransformError: nothing connects the frames.
        """
        key = (_plain(target), _plain(source))
        if key[0] == key[1]:
            return np.eye(4)
        if key not in self._static:
            try:
                if self._latest_ns(*key):
                    return None
                found = self._look(lambda: self._buffer.lookup_transform_core(*key, Time()))
            except TransformError as error:
                raise _unknown(*key, error) from None
            self._static[key] = found
        return self._static[key]

    def pose(self, fixed: str, frame: str, stamp_ns: int) -> Float64:
        """T_fixed_frame at a stamp.

        Raises:
            TransformError: it is unknown.
        """
        target, source = _plain(fixed), _plain(frame)
        return self._at(
            lambda: self._buffer.lookup_transform_core(target, source, _time(stamp_ns)),
            (target, source),
            [(target, source, stamp_ns)],
        )

    def between(
        self, target: str, target_ns: int, source: str, source_ns: int, fixed: str
    ) -> Float64:
        """T_target_source between two moments, through a frame that does not move.

        Raises:
            TransformError: it is unknown.
        """
        target, source, fixed = _plain(target), _plain(source), _plain(fixed)
        arguments = (target, _time(target_ns), source, _time(source_ns), fixed)
        return self._at(
            lambda: self._buffer.lookup_transform_full_core(*arguments),
            (target, source),
            [(fixed, target, target_ns), (fixed, source, source_ns)],
        )

    def _at(
        self, look: Callable[[], Any], frames: tuple[str, str], needed: list[tuple[str, str, int]]
    ) -> Float64:
        try:
            return self._look(look)
        except TransformError as error:
            raise _unknown(*frames, error, self._expected(needed)) from None

    def _expected(self, needed: list[tuple[str, str, int]]) -> bool:
        try:
            behind = [stamp - self._latest_ns(target, source) for target, source, stamp in needed]
        except TransformError:
            return False
        return 0 < max(behind) < SILENT_S * 1e9

    def _latest_ns(self, target: str, source: str) -> int:
        """Newest time at which a transform is known; 0 if it is static."""
        try:
            return int(self._buffer.get_latest_common_time(target, source).nanoseconds)
        except self._failure as error:
            raise TransformError(str(error)) from None

    def _look(self, look: Callable[[], Any]) -> Float64:
        try:
            return conversions.read_transform(look().transform)
        except (InputError, self._failure) as error:
            raise TransformError(str(error)) from None

    def _on_static(self, msg: Any) -> None:
        self._static.clear()
        for transform in msg.transforms:
            self._set(transform, self._buffer.set_transform_static)
        self._changed()

    def _on_moving(self, msg: Any) -> None:
        for transform in msg.transforms:
            stamp = conversions.stamp_ns(transform.header)
            child = transform.child_frame_id
            back_ns = self._newest.get(child, stamp) - stamp
            if back_ns > JUMP_NS:
                self._complain("transforms jumped back", f"'{child}' by {1e-9 * back_ns:.1f} s")
                self.reset()  # tf2 itself would ignore what is older than its cache
            self._newest[child] = max(stamp, self._newest.get(child, stamp))
            self._set(transform, self._buffer.set_transform)
        self._changed()

    def _set(self, transform: Any, store: Callable[[Any, str], None]) -> None:
        parent, child = _plain(transform.header.frame_id), _plain(transform.child_frame_id)
        try:
            if not parent or not child or parent == child:  # tf2 would log each one
                raise InputError("expected the names of two frames")
            if conversions.stamp_ns(transform.header) < 0:  # rclpy cannot ask for its time
                raise InputError("expected a stamp after 1970")
            conversions.read_transform(transform.transform)
            store(transform, self._node.get_name())
        except (InputError, self._failure) as error:
            self._complain("transform refused", f"'{parent}' to '{child}': {error}")
            return
        before, self._parents[child] = self._parents.get(child, parent), parent
        if before != parent:
            found = f"'{child}' is placed in '{before}' and in '{parent}'; expected one publisher"
            self._complain("frame with two parents", found)


class TfMotion:
    """Motion of the platform by lookups in tf2; a `pcseg_ros.sensor_poses.Motion`.

    Args:
        buffer: the transforms.
        fixed: frame without jumps.
    """

    def __init__(self, buffer: TransformBuffer, fixed: str) -> None:
        self._buffer = buffer
        self._fixed = fixed

    def poses(self, lidar: str, stamps_ns: npt.NDArray[np.int64]) -> Float64:
        """See `Motion`."""
        found = np.empty((len(stamps_ns), 4, 4))
        for index in np.argsort(-stamps_ns):
            found[index] = self._buffer.pose(self._fixed, lidar, int(stamps_ns[index]))
        return found

    def camera(self, camera: str, image_ns: int, lidar: str, sweep_ns: int) -> Float64:
        """See `Motion`; through the fixed frame."""
        return self._buffer.between(camera, image_ns, lidar, sweep_ns, self._fixed)


def _unknown(target: str, source: str, error: Exception, expected: bool = False) -> TransformError:
    """What tf2 says, behind the frames: it names one of them, or both at its end."""
    return TransformError(f"no transform from '{source}' to '{target}': {error}", expected)


def _plain(frame: str) -> str:
    return frame.lstrip("/")  # tf2 refuses the leading slash that ROS 1 drivers wrote


def _time(stamp_ns: int) -> Time:
    if stamp_ns < 0:
        raise TransformError(f"no transforms at stamp {stamp_ns} ns; expected one after 1970")
    return Time(nanoseconds=stamp_ns)
