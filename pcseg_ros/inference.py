# SPDX-License-Identifier: Apache-2.0
"""From a received sweep to published labels: decode, `Pipeline.process`, publish, in one thread."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import PointCloud2

from pcseg_core.data.sample import CameraFrame
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.online.pipeline import MotionError, Pipeline
from pcseg_core.online.sweep import NO_MOTION
from pcseg_ros import conversions, diagnostics
from pcseg_ros.calibration_monitor import CalibrationThread
from pcseg_ros.camera_teacher import CameraTeacher, PendingEvidence
from pcseg_ros.config import NodeConfig
from pcseg_ros.diagnostics import SweepStatistics
from pcseg_ros.inputs import Inputs, MalformedError
from pcseg_ros.lidars import UnplacedError
from pcseg_ros.loading import NodeSegmenter, usual_sweep
from pcseg_ros.outputs import SweepOutputs
from pcseg_ros.overlays import Drawing, OverlayThread
from pcseg_ros.parameters import SectionParameters
from pcseg_ros.synchronization import ReceivedSweep
from pcseg_ros.worker import LatestWorker

if TYPE_CHECKING:
    from pcseg_core.vision.pixel_classes import PixelClasses


class Inference:
    """Labels the newest sweep and publishes it, from configuring the node to cleaning it up.

    Args:
        node: owner of the topics.
        segmenter: the network.
        teacher: camera teacher, or None.
        settings: parameters; live ones are read for each sweep.
        statistics: counts sweeps.

    Raises:
        InputError: see `Inputs`.

    Attributes:
        inputs: subscriptions.
        enabled: sweeps are labeled; otherwise they are dropped.
        device, engine: what the network runs on; see `NodeSegmenter`.
    """

    def __init__(
        self,
        node: LifecycleNode,
        segmenter: NodeSegmenter,
        teacher: PixelClasses | None,
        settings: SectionParameters[NodeConfig],
        statistics: SweepStatistics,
    ) -> None:
        self._node = node
        self._settings = settings
        self._statistics = statistics
        self._busy = threading.Lock()  # the classes must not change while a sweep is processed
        self._worker: LatestWorker[ReceivedSweep] | None = None
        self._overlays: OverlayThread | None = None
        self._teacher: CameraTeacher | None = None
        self.enabled = True
        self.device, self.engine = str(segmenter.device), segmenter.engine
        config = settings.current()
        self.inputs = Inputs(node, config, statistics, self._offer, self._forget)
        cameras, lidars = list(self.inputs.cameras), self.inputs.lidar_names
        self._outputs = SweepOutputs(node, cameras, teacher is not None, config, lidars)
        if teacher is not None:
            wanted = self._outputs.teacher_wanted
            self._teacher = CameraTeacher(
                teacher,
                config.teacher,
                wanted,
                self._publish_teacher,
                partial(self._complain, "teacher failed"),
            )
        self._monitor = CalibrationThread(
            config.cameras.monitor,
            node.get_logger(),
            partial(self._complain, "calibration monitor failed"),
        )
        self._pipeline = Pipeline(segmenter, config, self._teacher)
        self.inputs.use_training(self._pipeline.trained_on)
        self._match_logged = False
        self._prompts: list[str] | None = None  # None: the classes of the checkpoint

    @property
    def running(self) -> bool:
        """The inference thread runs."""
        return self._worker is not None

    @property
    def label_space(self) -> LabelSpace:
        """The current classes."""
        return self._pipeline.label_space

    @property
    def intensity(self) -> str:
        """Scale of the intensities, and how they are mapped to those of the training."""
        return "; ".join(filter(None, (self.inputs.intensities, str(self._pipeline.intensities))))

    def set_prompts(
        self, prompts: Sequence[str], check: Callable[[LabelSpace], None]
    ) -> LabelSpace:
        """Change the classes from the next sweep on; waits for the sweep in process.

        Args:
            prompts: the classes in words.
            check: raises InputError for classes that do not fit the outputs.

        Raises:
            InputError: words that the checkpoint does not know, or the check; the classes stay.
        """
        with self._busy:
            space = self._pipeline.set_prompts(list(prompts))
            try:
                check(space)
            except InputError:
                self._pipeline.set_prompts(self._prompts)
                raise
            self._prompts = list(prompts)
            return space

    def warm_up(self) -> None:
        """Label a simulated sweep, so that the first real one is not late."""
        self._pipeline.warm_up(usual_sweep())

    def start(self) -> None:
        """Start the threads and take sweeps."""
        if self._teacher is not None:
            self._teacher.start()
        if self.inputs.cameras:
            on_error = partial(self._complain, "overlay failed")
            self._overlays = OverlayThread(self._outputs, self._frames, on_error)
            self._monitor.start()
        self._worker = LatestWorker(self._label, self._give_up, name="inference")
        self.inputs.enabled = True

    def stop(self, timeout_s: float) -> bool:
        """Ignore sweeps and end the threads; False if one still runs after `timeout_s`."""
        self.inputs.enabled = False
        worker, overlays = self._worker, self._overlays
        self._worker = self._overlays = None
        parts = (worker, self._teacher, overlays, self._monitor)
        ended = [part.stop(timeout_s) for part in parts if part is not None]
        return all(ended)

    def destroy(self) -> None:
        """End all topics."""
        self.inputs.destroy()
        self._outputs.destroy()

    def reset(self) -> None:
        """Forget past sweeps, images and transforms."""
        if self._worker is not None and self._worker.discard():
            self._statistics.drop(diagnostics.RESET)
        self.inputs.reset()
        self._forget()

    def counters(self) -> dict[str, int]:
        """Events of the synchronizer and of the smoothing, and tracks, in words."""
        smoothing = self._pipeline.counters.items()
        return (
            self.inputs.counters()
            | {f"smoothing {k.replace('_', ' ')}": v for k, v in smoothing}
            | self._pipeline.track_counters
        )

    def warnings(self) -> list[str]:
        """What is wrong with the cameras."""
        return self._monitor.warnings()

    def calibration(self) -> dict[str, str]:
        """What is known of the calibration of the cameras, as keys and values of a status."""
        return self._monitor.values()

    # --- executor --------------------------------------------------------------------------------

    def _offer(self, received: ReceivedSweep) -> None:
        """Hand the newest sweep to the inference thread."""
        if self._worker is None:
            return
        if not self.enabled:
            self._statistics.drop(diagnostics.DISABLED)
        elif self._worker.offer(received):
            self._statistics.drop(diagnostics.REPLACED)

    def _forget(self) -> None:
        self._pipeline.reset()

    # --- inference thread ------------------------------------------------------------------------

    def _label(self, received: ReceivedSweep) -> None:
        begin = time.monotonic()
        config = self._settings.current()
        self._outputs.show_legend(received.msg.header.frame_id, self.label_space)
        if reason := self._reason_to_skip(received.msg, config):
            self._statistics.drop(reason)
            return
        with self._busy:
            sweep = self.inputs.decode(received)
            decoded = time.monotonic()
            self._pipeline.config = config
            outputs, pipeline = self._outputs, self._pipeline
            labeled = pipeline.process(
                sweep,
                probabilities=outputs.needs_probabilities(config),
                located=outputs.needs_pose(config),
                moving=outputs.needs_moving(config),
                tracks=config.thing_rules() if outputs.needs_tracks() else None,
            )
            self._report_match()
            processed = time.monotonic()
            remembered = partial(pipeline.remembered, labeled)
            frame = self.inputs.fixed_frame
            needed = outputs.united_wanted(config)
            msg = sweep.message(labeled.cloud) if needed else received.msg
            problems = outputs.publish(msg, labeled, config, frame, remembered, received.parts)
        end = time.monotonic()
        for event, why in labeled.problems + problems:
            self._statistics.complain(self._node, event, why)
        stages_ms = {
            "wait": 1e3 * (received.matched_s - received.received_s),
            "queue": 1e3 * (begin - received.matched_s),
            "decode": 1e3 * (decoded - begin),
            **labeled.stages_ms,
            "encode": 1e3 * (end - processed),
            "latency": 1e3 * (end - received.received_s),
            "age": 1e3 * self._age_s(received.msg),
        }
        self._statistics.publish(stages_ms)
        self._outputs.publish_times(stages_ms)
        if self._overlays is not None:
            self._overlays.offer(Drawing(labeled, received))
        self._monitor.offer(sweep, labeled.cloud)

    def _report_match(self) -> None:
        """Log once how the intensities of the sensor are mapped."""
        match = self._pipeline.intensities
        if match.held and not self._match_logged:
            self._match_logged = True
            if str(match):
                self._node.get_logger().warning(f"{self.inputs.topic_names[0]}: {match}")

    def _give_up(self, received: ReceivedSweep, error: Exception) -> None:
        """Count and log a sweep that could not be labeled."""
        if not self._node.context.ok():
            return  # the process is ending
        reason = self._reason_of(error)
        self._statistics.drop(reason, why=error)
        failed = reason == diagnostics.FAILED
        text = "".join(traceback.format_exception(error)) if failed else str(error)
        stamp = conversions.stamp_ns(received.msg.header)
        kind = f"{reason} {type(error).__name__}"
        if self._statistics.begins(kind):
            self._node.get_logger().error(f"sweep {stamp} dropped: {text} {diagnostics.COUNTED}")

    def _reason_to_skip(self, msg: PointCloud2, config: NodeConfig) -> str:
        if config.only_when_subscribed and not self._outputs.wanted():
            return diagnostics.UNSUBSCRIBED
        if config.max_age_s and self._age_s(msg) > config.max_age_s:
            if self._statistics.begins(diagnostics.TOO_OLD):
                self._node.get_logger().warning(
                    f"sweep is {self._age_s(msg):.3f} s old, more than max_age_s; does the sensor "
                    "stamp with this node's clock, and is use_sim_time right?"
                )
            return diagnostics.TOO_OLD
        return ""

    def _reason_of(self, error: Exception) -> str:
        """Why a sweep with this error is dropped."""
        if isinstance(error, MotionError):
            return NO_MOTION
        if isinstance(error, MalformedError):
            return diagnostics.MALFORMED
        if isinstance(error, UnplacedError):
            return diagnostics.UNPLACED
        if "out of memory" not in str(error):  # torch raises RuntimeError or a subclass
            return diagnostics.FAILED
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()  # frees cached blocks of other sizes for the next sweep
        return diagnostics.OUT_OF_MEMORY

    def _age_s(self, msg: PointCloud2) -> float:
        now_ns = self._node.get_clock().now().nanoseconds
        return 1e-9 * (now_ns - conversions.stamp_ns(msg.header))

    # --- other threads ---------------------------------------------------------------------------

    def _publish_teacher(self, pending: PendingEvidence) -> None:
        if self._outputs.teacher_wanted():
            labels = pending.labels()
            msg = pending.sweep.message(labels.cloud)
            self._outputs.publish_teacher(msg, labels, self._settings.current())

    def _frames(self, drawing: Drawing, cameras: Sequence[str]) -> Sequence[CameraFrame]:
        return self.inputs.frames(drawing.received, drawing.labeled.cloud, cameras)

    def _complain(self, event: str, error: Exception) -> None:
        if self._node.context.ok():
            self._statistics.complain(self._node, event, error)
