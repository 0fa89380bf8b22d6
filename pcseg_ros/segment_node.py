# SPDX-License-Identifier: Apache-2.0
"""Lifecycle node that labels every point of the sweeps that it receives."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from pcseg_core.bundled import BUNDLED
from pcseg_core.errors import InputError, PcsegError
from pcseg_core.labels import LabelSpace
from pcseg_ros import diagnostics, topics
from pcseg_ros.classes import ClassAnnouncer, ClassParameters, check_classes
from pcseg_ros.config import NodeConfig, node_section
from pcseg_ros.diagnostics import SweepStatistics, process_values
from pcseg_ros.inference import Inference
from pcseg_ros.lifecycle_node import TolerantLifecycleNode
from pcseg_ros.loading import NodeSegmenter, load_segmenter, load_teacher
from pcseg_ros.message_types import absent_outputs
from pcseg_ros.parameter_file import NODE_NAME
from pcseg_ros.parameters import SectionParameters
from pcseg_ros.process import keep_objects, leave, serve

_STOP_TIMEOUT_S = 10.0


class SegmentNode(TolerantLifecycleNode):
    """Subscribes `points`, publishes `labeled_points`.

    configure loads the checkpoint and labels a simulated sweep to warm up, activate starts the
    work, deactivate stops it and keeps the model, cleanup frees it. One thread labels the newest
    sweep, while the executor serves subscriptions, services and parameters.

    Args:
        segmenter_factory: creates the segmenter; if it raises, configuring fails and the node
            stays unconfigured.
        arguments: further arguments of `rclpy.node.Node`.

    Raises:
        InputError: parameters that do not fit `NodeConfig`.
    """

    def __init__(
        self,
        segmenter_factory: Callable[[NodeConfig], NodeSegmenter] = load_segmenter,
        **arguments: Any,
    ) -> None:
        arguments.setdefault("node_name", NODE_NAME)
        super().__init__(automatically_declare_parameters_from_overrides=True, **arguments)
        self._segmenter_factory = segmenter_factory
        self._inference: Inference | None = None
        self._announcer = ClassAnnouncer(self)
        self._class_parameters = ClassParameters(self, self, self._announcer.announce)
        given = {name: p.value for name, p in self.get_parameters_by_prefix("").items()}
        self._settings = SectionParameters(self, node_section(given))
        self._statistics = SweepStatistics()
        self._enabled = True
        self._fault = ""
        self.create_service(Trigger, topics.RESET, self._on_reset)
        self.create_service(SetBool, topics.ENABLE, self._on_enable)
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, 1)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # runs while simulated time stands still
        self.create_timer(self.config.diagnostics_period_s, self._report, clock=steady)

    @property
    def config(self) -> NodeConfig:
        """The current parameters."""
        return self._settings.current()

    @property
    def state(self) -> str:
        """Primary lifecycle state, outside of transitions."""
        if self._inference is None:
            return "unconfigured"
        return "active" if self._inference.running else "inactive"

    @property
    def label_space(self) -> LabelSpace | None:
        """The current classes; None without a checkpoint."""
        return None if self._inference is None else self._inference.label_space

    @property
    def prompted(self) -> bool:
        """The classes come from the parameter `prompts`."""
        return bool(self.config.prompts)

    def changed(self, parameters: Sequence[Parameter]) -> NodeConfig:
        """The parameters after a change; raises InputError if they do not fit."""
        return self._settings.changed(parameters)

    def set_prompts(self, prompts: Sequence[str], config: NodeConfig) -> LabelSpace:
        """Change the classes from the next sweep on.

        Raises:
            InputError: no checkpoint, words that it does not know, or a parameter of `config` that
                names another class; the classes stay.
        """
        if self._inference is None:
            raise InputError("prompts need a configured node")
        return self._inference.set_prompts(prompts, lambda space: check_classes(config, space))

    def start(self) -> None:
        """Configure and activate, if `autostart` is set."""
        if not self.config.autostart:
            name = self.get_fully_qualified_name()
            self.get_logger().info(
                f"autostart is false: run 'ros2 lifecycle set {name} configure', then activate"
            )
        elif self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def close(self, timeout_s: float) -> bool:
        """End all threads; False if one still runs after `timeout_s`."""
        return self._inference is None or self._inference.stop(timeout_s)

    # --- lifecycle -------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the checkpoint; on failure stay unconfigured and log the reason."""
        config = self.config
        try:
            segmenter, teacher = self._segmenter_factory(config), load_teacher(config)
            with self.undoing():
                inference = Inference(self, segmenter, teacher, self._settings, self._statistics)
            inference.enabled = self._enabled
            self._inference = inference
            if config.prompts:
                self.set_prompts(config.prompts, config)
            check_classes(config, inference.label_space)
            inference.warm_up()
            self._announcer.announce(inference.label_space)
        except Exception as error:
            self._release()
            self._explain_failure(error)
            return TransitionCallbackReturn.FAILURE
        self._fault = ""
        self._explain_start(inference, config.checkpoint or BUNDLED)
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the inference thread."""
        assert self._inference is not None
        keep_objects()  # before the first sweep, which would wait for it
        self._inference.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the inference thread after the current sweep; the model stays loaded."""
        if not self.close(_STOP_TIMEOUT_S):
            self.get_logger().error(f"inference did not end within {_STOP_TIMEOUT_S} s")
            return TransitionCallbackReturn.ERROR
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and the topics."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    # From any state, and after a failed transition.
    on_shutdown = on_error = on_cleanup

    def _release(self) -> None:
        # Subscriptions live until here: destroying one while a multi-threaded executor spins
        # crashes on Humble (rclpy#1150).
        self.close(_STOP_TIMEOUT_S)
        self._announcer.withdraw()
        inference, self._inference = self._inference, None
        if inference is not None:
            inference.destroy()
        gc.unfreeze()

    def _explain_start(self, inference: Inference, checkpoint: str) -> None:
        names = ", ".join(inference.label_space.names)
        self.get_logger().info(f"checkpoint '{checkpoint}' with the classes {names}")
        self.get_logger().info(f"runs on {inference.device} by {inference.engine}")
        output = self.resolve_topic_name(topics.LABELED)
        self.get_logger().info(f"{', '.join(inference.inputs.topic_names)} -> {output}")
        for package, outputs in absent_outputs().items():
            self.get_logger().info(
                f"not published without {package}: {', '.join(outputs)}; install the package of "
                f"your ROS distribution: ros-$ROS_DISTRO-{package.replace('_', '-')}"
            )

    def _explain_failure(self, error: Exception) -> None:
        self._fault = f"not configured: {error}"
        self.get_logger().error(self._fault)
        if not isinstance(error, (PcsegError, OSError)):
            self.get_logger().error("".join(traceback.format_exception(error)))

    def refuse(self, error: Exception) -> None:
        """Count and log a message that rclpy or a callback refused."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        self._statistics.complain(self, "message refused", why)

    # --- services --------------------------------------------------------------------------------

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._inference is not None:
            self._inference.reset()
        response.success, response.message = True, "past sweeps and transforms are forgotten"
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = bool(request.data)
        if self._inference is not None:
            self._inference.enabled = self._enabled
        response.success = True
        response.message = "sweeps are labeled" if self._enabled else "sweeps are ignored"
        return response

    # --- diagnostics -----------------------------------------------------------------------------

    def _report(self) -> None:
        """Publish the state of the node."""
        summary, config, inference = self._statistics.summary(), self.config, self._inference
        warnings = [] if inference is None else inference.warnings()
        level, message = diagnostics.judge(self.state, self._fault, summary, warnings)
        device = config.device if inference is None else inference.device
        values = {"state": self.state, "checkpoint": config.checkpoint or BUNDLED, "device": device}
        values |= diagnostics.values_of(summary)
        values |= process_values("" if inference is None else device)
        if inference is not None:
            values["engine"] = inference.engine
            values["intensity"] = inference.intensity
            values |= inference.inputs.lidar_values()
            values |= {f"counted: {k}": str(v) for k, v in inference.counters().items()}
            values |= inference.calibration()
        name = self.get_fully_qualified_name().lstrip("/")
        report = diagnostics.report(f"{name}: segmentation", level, message, values)
        report.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(report)


def main(
    args: Sequence[str] | None = None,
    segmenter_factory: Callable[[NodeConfig], NodeSegmenter] = load_segmenter,
) -> NoReturn:
    """Spin the node; ends the process. `pcseg_ros.__main__` is the program."""
    leave(serve(lambda: SegmentNode(segmenter_factory), args))
