# SPDX-License-Identifier: Apache-2.0
"""Synchronization of sweeps and images: by the core, or by message_filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, TypeAlias

from sensor_msgs.msg import PointCloud2

from pcseg_core.errors import InputError
from pcseg_core.online.synchronizer import Match, Synchronizer
from pcseg_ros import conversions
from pcseg_ros.cameras import AnyImage
from pcseg_ros.config import CameraParameters
from pcseg_ros.sensor_poses import JUMP_NS

_QUEUE = 10


@dataclass
class ReceivedSweep:
    """Messages of one sweep.

    Attributes:
        msg: the sweep.
        received_s: time of its arrival (monotonic clock, s).
        images: camera name -> its image.
        matched_s: time when the images were complete or no longer waited for.
        parts: LiDAR -> its sweep, of several united ones; `msg` then has their header alone.
        unusable: cameras whose image cannot be used, as far as it was looked at.
    """

    msg: PointCloud2
    received_s: float
    images: dict[str, AnyImage] = field(default_factory=dict)
    matched_s: float = 0.0
    parts: dict[str, PointCloud2] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)


class FilteredSynchronizer:
    """The exact or approximate synchronizer of message_filters, used as a `Synchronizer`.

    Only sweeps with an image of every camera are given out. The work per message grows with the
    queue length to the power of the number of cameras; `nearest` suits many cameras.

    Attributes:
        cameras, counters, missing: see `pcseg_core.online.synchronizer.Synchronizer`; messages
            that message_filters drops are not counted.
    """

    def __init__(self, cameras: Sequence[str], tolerance_s: float, exact: bool) -> None:
        from message_filters import ApproximateTimeSynchronizer, SimpleFilter, TimeSynchronizer

        self.cameras = tuple(cameras)
        self.counters: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self._filters = {name: SimpleFilter() for name in ("", *cameras)}
        filters = list(self._filters.values())
        self._synchronizer: Any = (
            TimeSynchronizer(filters, _QUEUE)
            if exact
            else ApproximateTimeSynchronizer(filters, _QUEUE, tolerance_s)
        )
        self._synchronizer.registerCallback(self._on_match)
        self._arrivals: dict[int, tuple[ReceivedSweep, float]] = {}  # by stamp, with the time
        self._newest_ns = 0
        self._ready: list[tuple[Any, ...]] = []

    @property
    def next_deadline_s(self) -> float | None:
        """None: sweeps have no deadline."""
        return None

    def reset(self) -> None:
        """Forget all messages."""
        for queue in self._synchronizer.queues:
            queue.clear()
        self._arrivals.clear()
        self._newest_ns = 0

    def add_image(self, camera: str, stamp_ns: int, item: AnyImage) -> None:
        """Add an image message."""
        self._filters[camera].signalMessage(item)

    def add_sweep(self, stamp_ns: int, item: ReceivedSweep, now_s: float) -> None:
        """Add a sweep."""
        if stamp_ns < self._newest_ns - JUMP_NS:
            self.counters["sweep_jump"] += 1
            self.reset()
        self._newest_ns = max(stamp_ns, self._newest_ns)
        self._arrivals[stamp_ns] = (item, now_s)
        while len(self._arrivals) > _QUEUE:
            del self._arrivals[next(iter(self._arrivals))]
            self.counters["sweep_overflow"] += 1
        self._filters[""].signalMessage(item.msg)

    def poll(self, now_s: float) -> list[Match[ReceivedSweep, AnyImage]]:
        """Sweeps that have all their images."""
        matches = []
        for cloud, *images in self._ready:
            stamp = conversions.stamp_ns(cloud.header)
            if stamp not in self._arrivals:
                continue
            item, arrived_s = self._arrivals.pop(stamp)
            named = dict(zip(self.cameras, images))
            stamps = {name: conversions.stamp_ns(image.header) for name, image in named.items()}
            matches.append(Match(stamp, item, named, stamps, (), now_s - arrived_s))
        self._ready.clear()
        return matches

    def _on_match(self, *messages: Any) -> None:
        self._ready.append(messages)


AnySynchronizer: TypeAlias = "Synchronizer[ReceivedSweep, AnyImage] | FilteredSynchronizer"


def create_synchronizer(config: CameraParameters, cameras: Sequence[str]) -> AnySynchronizer:
    """The configured synchronizer.

    Raises:
        InputError: message_filters is needed and not installed.
    """
    if config.sync == "nearest":
        return Synchronizer[ReceivedSweep, AnyImage](cameras, config.tolerance_s, config.deadline_s)
    if find_spec("message_filters") is None:
        raise InputError(
            f"cameras.sync '{config.sync}' needs message_filters, which is not installed; use "
            "nearest, or install ros-$ROS_DISTRO-message-filters"
        )
    return FilteredSynchronizer(cameras, config.tolerance_s, exact=config.sync == "exact")
