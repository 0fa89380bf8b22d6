# SPDX-License-Identifier: Apache-2.0
"""One sweep from message to message, in the inference thread."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2

from pcseg_core.cloud import PointCloud
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE, LabelSpace
from pcseg_ros import conversions, diagnostics
from pcseg_ros.config import NodeConfig
from pcseg_ros.fusion import LOG_PERIOD_S, DroppedError, SweepFusion
from pcseg_ros.inputs import Sweep
from pcseg_ros.memory import reserve
from pcseg_ros.outputs import LabeledSweep, SweepOutputs
from pcseg_ros.parameters import SectionParameters
from pcseg_ros.statistics import SweepStatistics

_USUAL_SWEEPS = 20  # that show how much memory a sweep needs


class SweepLabeler:
    """Labels sweeps and publishes them.

    Args:
        node: for its clock and log.
        segmenter: a `pcseg_core.online.segmenter.Segmenter`.
        fusion: joins sweeps with motion, images and the past.
        outputs: what is published.
        settings: parameters, read anew for every sweep.
        statistics: where sweeps are counted.
    """

    def __init__(
        self,
        node: Node,
        segmenter: Any,
        fusion: SweepFusion,
        outputs: SweepOutputs,
        settings: SectionParameters[NodeConfig],
        statistics: SweepStatistics,
    ) -> None:
        self._node = node
        self._segmenter = segmenter
        self._fusion = fusion
        self._outputs = outputs
        self._settings = settings
        self._statistics = statistics
        self._labeled = 0
        self._busy = threading.Lock()  # the classes must not change while a sweep is in work

    def set_prompts(self, prompts: Sequence[str]) -> LabelSpace:
        """Change the classes from the next sweep on; waits for the sweep in work.

        Raises:
            InputError: words that the checkpoint does not know; the classes stay.
        """
        with self._busy:
            space: LabelSpace = self._segmenter.set_prompts(list(prompts))
            self._fusion.forget()
            return space

    def label(self, sweep: Sweep) -> None:
        """Label and publish one sweep, or count why not.

        Raises:
            InputError: the message is malformed.
            DroppedError: the sweep cannot be labeled, for a reason to be counted.
        """
        config, clock = self._settings.current(), StageClock(sweep.received_s)
        clock.stop("wait", sweep.matched_s)
        clock.stop("queue")
        if reason := self._reason_to_skip(sweep.msg, config):
            self._statistics.drop(reason)
            return
        with self._busy:
            labeled, cloud = self._infer(sweep, config, clock)
            self._outputs.publish_clouds(labeled, config)
            clock.stop("encode")
        stages = clock.stages() | {"age": 1e3 * self._age_s(sweep.msg)}
        self._statistics.publish(stages)
        self._outputs.publish_times(stages)
        self._fusion.show(labeled, sweep, cloud)
        self._labeled += 1
        if self._labeled == _USUAL_SWEEPS:
            threading.Thread(target=reserve, name="reserve", daemon=True).start()

    def give_up(self, sweep: Sweep, error: Exception) -> None:
        """Count and report a sweep whose labeling raised; the node goes on."""
        if not self._node.context.ok():
            return  # the process is ending
        reason = _reason_of(error)
        self._statistics.drop(reason)
        expected = reason != diagnostics.FAILED
        text = str(error) if expected else "".join(traceback.format_exception(error))
        stamp = conversions.stamp_ns(sweep.msg.header)
        self._node.get_logger().error(
            f"sweep {stamp} dropped: {text}", throttle_duration_sec=LOG_PERIOD_S
        )

    def _infer(
        self, sweep: Sweep, config: NodeConfig, clock: StageClock
    ) -> tuple[LabeledSweep, PointCloud]:
        times = config.motion.time_field if config.motion.deskew else "none"
        cloud = conversions.read_sweep(
            sweep.msg,
            config.intensity_scale,
            time_field=times,
            stamp_reference=config.motion.stamp_reference,
        )
        clock.stop("decode")
        pose = self._fusion.locate(cloud)
        clock.stop("motion")
        space = self._segmenter.label_space
        look = self._fusion.look(sweep, cloud, space)
        every = self._fusion.needs_probabilities(pose, look)
        result = self._segmenter.segment(cloud, probabilities=every)
        clock.stop("inference")
        labels, confidence = self._fusion.fuse(result, cloud, sweep, pose, look)
        clock.stop("fusion")
        labels = np.where(confidence >= config.min_confidence, labels, IGNORE)
        return LabeledSweep(sweep.msg, cloud.xyz, labels, confidence, space), cloud

    def _reason_to_skip(self, msg: PointCloud2, config: NodeConfig) -> str:
        if config.only_when_subscribed and not self._outputs.wanted():
            return diagnostics.UNSUBSCRIBED
        if config.max_age_s and self._age_s(msg) > config.max_age_s:
            self._node.get_logger().warning(
                f"sweep is {self._age_s(msg):.3f} s old, more than max_age_s; does the sensor "
                "stamp with this node's clock, and is use_sim_time right?",
                throttle_duration_sec=LOG_PERIOD_S,
            )
            return diagnostics.TOO_OLD
        return ""

    def _age_s(self, msg: PointCloud2) -> float:
        now_ns = self._node.get_clock().now().nanoseconds
        return 1e-9 * (now_ns - conversions.stamp_ns(msg.header))


class StageClock:
    """Durations of the stages of one sweep, from its arrival."""

    def __init__(self, received_s: float) -> None:
        self._begin_s = self._last_s = received_s
        self._stages: dict[str, float] = {}

    def stop(self, stage: str, at_s: float | None = None) -> None:
        """A stage ends now, or ended at a time of the monotonic clock."""
        now = time.monotonic() if at_s is None else at_s
        self._stages[stage] = 1e3 * (now - self._last_s)
        self._last_s = now

    def stages(self) -> dict[str, float]:
        """Stage -> its duration, ms; `latency` is that of the whole."""
        return self._stages | {"latency": 1e3 * (self._last_s - self._begin_s)}


def _reason_of(error: Exception) -> str:
    """Why a sweep is dropped that raised this."""
    if isinstance(error, DroppedError):
        return str(error)
    if isinstance(error, InputError):
        return diagnostics.MALFORMED
    if "out of memory" not in str(error):  # torch raises RuntimeError or a kind of it
        return diagnostics.FAILED
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()  # blocks of other sizes, for the next sweep
    return diagnostics.OUT_OF_MEMORY
