# SPDX-License-Identifier: Apache-2.0
"""Lifecycle node that labels every point of every sweep it accepts."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from pcseg_core.bundled import BUNDLED
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.labels import LabelSpace
from pcseg_ros import diagnostics, topics
from pcseg_ros.classes import ClassAnnouncer
from pcseg_ros.config import NodeConfig
from pcseg_ros.fusion import SweepFusion
from pcseg_ros.inputs import Inputs, Sweep
from pcseg_ros.labeling import SweepLabeler
from pcseg_ros.live_classes import LiveClasses
from pcseg_ros.loading import load_segmenter, load_teacher
from pcseg_ros.outputs import SweepOutputs
from pcseg_ros.parameters import SectionParameters
from pcseg_ros.process import ServedNode, leave, serve
from pcseg_ros.resources import process_values
from pcseg_ros.services import NodeServices
from pcseg_ros.statistics import SweepStatistics
from pcseg_ros.worker import LatestWorker

_STOP_TIMEOUT_S = 10.0


class SegmentNode(LifecycleNode, ServedNode):
    """Subscribes `points`, publishes `labeled_points`.

    configure loads the checkpoint, activate starts the work, deactivate stops it and keeps the
    model, cleanup frees it. One thread runs inference on the newest sweep; the executor stays free
    for services and parameters.

    Args:
        segmenter_factory: makes the segmenter from the configuration; where it raises, configuring
            fails and the node stays unconfigured.
        arguments: further arguments of `rclpy.node.Node`.

    Raises:
        InputError: parameters that do not fit `NodeConfig`.
    """

    def __init__(
        self, segmenter_factory: Callable[[NodeConfig], Any] = load_segmenter, **arguments: Any
    ) -> None:
        arguments.setdefault("node_name", "segment_node")
        super().__init__(automatically_declare_parameters_from_overrides=True, **arguments)
        self._segmenter_factory = segmenter_factory
        self._segmenter: Any = None
        self._announcer = ClassAnnouncer(self)
        self._live_classes = LiveClasses(self, self, self._announcer.announce)
        self._settings = SectionParameters(self, NodeConfig)
        self._statistics = SweepStatistics()
        self._inputs: Inputs | None = None
        self._outputs: SweepOutputs | None = None
        self._fusion: SweepFusion | None = None
        self._labeler: SweepLabeler | None = None
        self._worker: LatestWorker[Sweep] | None = None
        self._fault = ""
        self._switches = NodeServices(self, self._reset)
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, 1)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # goes on while simulated time stands
        self.create_timer(self.config.diagnostics_period_s, self._report, clock=steady)

    @property
    def config(self) -> NodeConfig:
        """The parameters as they are now."""
        return self._settings.current()

    @property
    def state(self) -> str:
        """Primary lifecycle state, seen from the outside of a transition."""
        if self._segmenter is None:
            return "unconfigured"
        return "inactive" if self._worker is None else "active"

    @property
    def label_space(self) -> LabelSpace | None:
        """The classes in force; None without a checkpoint."""
        return None if self._segmenter is None else self._segmenter.label_space

    @property
    def prompted(self) -> bool:
        """The classes come from the parameter `prompts`."""
        return bool(self.config.prompts)

    def set_prompts(self, prompts: Sequence[str]) -> LabelSpace:
        """Change the classes from the next sweep on.

        Raises:
            InputError: no checkpoint, or words that it does not know; the classes stay.
        """
        if self._labeler is None:
            raise InputError("prompts need a configured node")
        return self._labeler.set_prompts(prompts)

    def start(self) -> None:
        """Configure and activate without being asked, where `autostart` is set."""
        if self.config.autostart and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def close(self, timeout_s: float) -> bool:
        """End all threads; False if one is still busy after `timeout_s`."""
        worker, self._worker = self._worker, None
        ended = worker is None or worker.stop(timeout_s)
        return (self._fusion is None or self._fusion.stop(timeout_s)) and ended

    # --- lifecycle -------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the checkpoint; on failure stay unconfigured and say why."""
        config = self.config
        try:
            self._segmenter = self._segmenter_factory(config)
            self._create_topics(config)
            if config.prompts:
                self.set_prompts(config.prompts)
            self._announcer.announce(self._segmenter.label_space)
        except Exception as error:
            self._release()
            self._explain_failure(error)
            return TransitionCallbackReturn.FAILURE
        self._fault = ""
        self._explain_start(config.checkpoint or BUNDLED)
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the inference thread."""
        labeler = self._labeler
        assert labeler is not None and self._inputs is not None and self._fusion is not None
        self._fusion.start()
        self._worker = LatestWorker(labeler.label, labeler.give_up, name="inference")
        self._inputs.enabled = True
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the inference thread after the sweep in work; the model stays loaded."""
        if self._inputs is not None:
            self._inputs.enabled = False
        if not self.close(_STOP_TIMEOUT_S):
            self.get_logger().error(f"inference did not end within {_STOP_TIMEOUT_S} s")
            return TransitionCallbackReturn.ERROR
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and the topics."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    # From whatever state; and after a failed transition, to be unconfigured again.
    on_shutdown = on_error = on_cleanup

    def _create_topics(self, config: NodeConfig) -> None:
        # Destroying a subscription while a multi-threaded executor spins crashes on Humble
        # (rclpy#1150), so they live until cleanup, and sweeps are ignored while inactive.
        self._inputs = Inputs(self, config, self._statistics, self._on_sweep, self._forget)
        teacher = load_teacher(config)
        self._outputs = SweepOutputs(self, list(self._inputs.cameras), teacher is not None)
        self._fusion = SweepFusion(
            self, self._inputs, self._outputs, self._statistics, teacher, config
        )
        self._labeler = SweepLabeler(
            self, self._segmenter, self._fusion, self._outputs, self._settings, self._statistics
        )

    def _release(self) -> None:
        self.close(_STOP_TIMEOUT_S)
        self._announcer.withdraw()
        for ends in (self._inputs, self._outputs):
            if ends is not None:
                ends.destroy()
        self._segmenter = self._inputs = self._outputs = self._fusion = self._labeler = None

    def _explain_start(self, checkpoint: str) -> None:
        assert self._inputs is not None
        names = ", ".join(self._segmenter.label_space.names)
        self.get_logger().info(f"checkpoint '{checkpoint}' with the classes {names}")
        sources = [self._inputs.topic_name, *(c.topic for c in self._inputs.cameras.values())]
        output = self.resolve_topic_name(topics.LABELED)
        self.get_logger().info(f"{', '.join(sources)} -> {output}")

    def _explain_failure(self, error: Exception) -> None:
        self._fault = f"not configured: {error}"
        self.get_logger().error(self._fault)
        if not isinstance(error, (PcsegError, OSError)):
            self.get_logger().error("".join(traceback.format_exception(error)))

    # --- executor --------------------------------------------------------------------------------

    def _on_sweep(self, sweep: Sweep) -> None:
        """Hand the newest sweep to the inference thread."""
        if self._worker is None:
            return
        if not self._switches.enabled:
            self._statistics.drop(diagnostics.DISABLED)
        elif self._worker.offer(sweep):
            self._statistics.drop(diagnostics.REPLACED)

    def _forget(self) -> None:
        """Time has jumped back: what is known of the past counts no more."""
        if self._fusion is not None:
            self._fusion.forget()

    def _reset(self) -> None:
        """Forget sweeps, images, transforms and what was smoothed."""
        if self._worker is not None and self._worker.discard():
            self._statistics.drop(diagnostics.RESET)
        if self._inputs is not None:
            self._inputs.reset()
        self._forget()

    def _report(self) -> None:
        """The state of the node on /diagnostics."""
        summary, config = self._statistics.summary(), self.config
        level, message = diagnostics.judge(self.state, self._fault, summary)
        values = {"state": self.state, "checkpoint": config.checkpoint or BUNDLED}
        values["device"] = str(getattr(self._segmenter, "device", config.device))
        values |= diagnostics.values_of(summary) | process_values()
        for part in (self._inputs, self._fusion):
            if part is not None:
                values |= {f"counted: {k}": str(v) for k, v in part.counters().items()}
        name = self.get_fully_qualified_name().lstrip("/")
        report = diagnostics.report(f"{name}: segmentation", level, message, values)
        report.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(report)


def main(
    args: Sequence[str] | None = None,
    segmenter_factory: Callable[[NodeConfig], Any] = load_segmenter,
) -> NoReturn:
    """Spin the node; ends the process. `pcseg_ros.__main__` is the program around it."""
    leave(serve(lambda: SegmentNode(segmenter_factory), args))
