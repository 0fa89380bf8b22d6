# SPDX-License-Identifier: Apache-2.0
"""One sweep from message to message, in the inference thread."""

from __future__ import annotations

import itertools
import time
import traceback
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import PointCloud2

from pcseg_core.errors import InputError
from pcseg_ros import conversions, diagnostics
from pcseg_ros.config import NodeConfig
from pcseg_ros.parameters import SectionParameters
from pcseg_ros.statistics import SweepStatistics

_LOG_PERIOD_S = 5.0
_STAGES = ("queue", "decode", "inference", "encode")


@dataclass
class Sweep:
    """A message waiting for inference, and when it came in (monotonic clock, s)."""

    msg: PointCloud2
    received_s: float


class SweepLabeler:
    """Labels sweeps and publishes them.

    Args:
        node: for its clock and log.
        segmenter: a `pcseg_core.online.segmenter.Segmenter`.
        publisher: of PointCloud2.
        settings: parameters, read anew for every sweep.
        statistics: where sweeps are counted.
    """

    def __init__(
        self,
        node: Node,
        segmenter: Any,
        publisher: Any,
        settings: SectionParameters[NodeConfig],
        statistics: SweepStatistics,
    ) -> None:
        self._node = node
        self._segmenter = segmenter
        self._publisher = publisher
        self._settings = settings
        self._statistics = statistics

    def label(self, sweep: Sweep) -> None:
        """Label and publish one sweep, or count why not.

        Raises:
            InputError: the message is malformed.
        """
        config, marks = self._settings.current(), [sweep.received_s, time.monotonic()]
        if reason := self._reason_to_skip(sweep.msg, config):
            self._statistics.drop(reason)
            return
        cloud = conversions.read_sweep(sweep.msg, config.intensity_scale)
        marks.append(time.monotonic())
        result = self._segmenter.segment(cloud)
        marks.append(time.monotonic())
        labeled = conversions.labeled_message(
            sweep.msg,
            result.labels,
            result.confidence,
            min_confidence=config.min_confidence,
            space=self._segmenter.label_space if config.publish_rgb else None,
        )
        self._publisher.publish(labeled)
        marks.append(time.monotonic())
        steps = [1e3 * (after - before) for before, after in itertools.pairwise(marks)]
        stages = {**dict(zip(_STAGES, steps)), "latency": sum(steps)}
        self._statistics.publish({**stages, "age": 1e3 * self._age_s(sweep.msg)})

    def give_up(self, sweep: Sweep, error: Exception) -> None:
        """Count and report a sweep whose labeling raised; the node goes on."""
        if not self._node.context.ok():
            return  # the process is ending
        malformed = isinstance(error, InputError)
        self._statistics.drop(diagnostics.MALFORMED if malformed else diagnostics.FAILED)
        text = str(error) if malformed else "".join(traceback.format_exception(error))
        stamp = conversions.stamp_ns(sweep.msg.header)
        self._node.get_logger().error(
            f"sweep {stamp} dropped: {text}", throttle_duration_sec=_LOG_PERIOD_S
        )

    def _reason_to_skip(self, msg: PointCloud2, config: NodeConfig) -> str:
        if config.only_when_subscribed and not self._publisher.get_subscription_count():
            return diagnostics.UNSUBSCRIBED
        if config.max_age_s and self._age_s(msg) > config.max_age_s:
            self._node.get_logger().warning(
                f"sweep is {self._age_s(msg):.3f} s old, more than max_age_s; does the sensor "
                "stamp with this node's clock, and is use_sim_time right?",
                throttle_duration_sec=_LOG_PERIOD_S,
            )
            return diagnostics.TOO_OLD
        return ""

    def _age_s(self, msg: PointCloud2) -> float:
        now_ns = self._node.get_clock().now().nanoseconds
        return 1e-9 * (now_ns - conversions.stamp_ns(msg.header))
