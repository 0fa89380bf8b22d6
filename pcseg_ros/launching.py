# SPDX-License-Identifier: Apache-2.0
"""Parts of the launch files: the node, RViz, a player and a recorder of bags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, RegisterEventHandler
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import Shutdown
from launch.events.process import ProcessExited, ProcessStarted
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from pcseg_core.children import module_command
from pcseg_core.errors import InputError
from pcseg_ros.config import NodeConfig
from pcseg_ros.parameter_file import NODE_NAME, ParameterSpec, parameter_specs
from pcseg_ros.process import END_WITH_PARENT

# Launch argument -> parameter of the node. If it is empty, the value of the parameter file holds.
PARAMETERS = {
    "checkpoint": "checkpoint",
    "device": "device",
    "prompts": "prompts",
    "min_confidence": "min_confidence",
    "publish_rgb": "publish_rgb",
    "lidars": "points.topics",
    "cameras": "cameras.topics",
    "calibration": "cameras.calibration",
    "motion": "motion.source",
    "fixed_frame": "motion.fixed_frame",
    "temporal": "temporal.enabled",
    "teacher": "teacher.weights",
    "autostart": "autostart",
}
TOPICS = {
    "cloud_topic": ("points", "Input, sensor_msgs/PointCloud2"),
    "labeled_topic": ("labeled_points", "Output, sensor_msgs/PointCloud2"),
    "odometry_topic": ("odometry", "Input, nav_msgs/Odometry, if motion is odometry"),
}
_SPECS = parameter_specs(NodeConfig)
RECORDED = ("labeled_points", "teacher_points", "label_info", "/diagnostics")


def node_arguments() -> list[DeclareLaunchArgument]:
    """Launch arguments of the node and of RViz."""
    share = FindPackageShare("pcseg_ros")
    files = {
        "params_file": ("segment.yaml", "YAML file with parameters"),
        "rviz_config": ("segment.rviz", "Layout of RViz"),
    }
    others = {
        "use_sim_time": (
            "",
            "Take the time from /clock: true or false; empty is true with a bag, else as the "
            "parameter file says",
        ),
        "namespace": ("", "Namespace of the node"),
        "node_name": (NODE_NAME, "Name of the node"),
        "log_level": ("info", "debug, info, warn, error or fatal"),
        "rviz": ("false", "Start RViz: true or false"),
    }
    return [
        *(_argument(name, "", _description(_SPECS[p])) for name, p in PARAMETERS.items()),
        *(_argument(name, default, text) for name, (default, text) in TOPICS.items()),
        *(_argument(name, default, text) for name, (default, text) in others.items()),
        *(
            DeclareLaunchArgument(
                name, default_value=PathJoinSubstitution([share, "config", file]), description=text
            )
            for name, (file, text) in files.items()
        ),
    ]


def _description(spec: ParameterSpec) -> str:
    notes = [spec.description, spec.constraints]
    if spec.is_array:
        notes.append("separated by ';'")
    elif spec.kind is bool:
        notes.append("true or false")
    return "; ".join(note for note in notes if note)


def _argument(name: str, default: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value=default, description=description)


def segment_node(context: LaunchContext, simulated: bool = False) -> LifecycleNode:
    """The node with the parameters of the launch arguments.

    Args:
        context: holds the arguments.
        simulated: take the time from /clock unless `use_sim_time` says otherwise.

    Raises:
        InputError: the parameter file is missing; launch itself would start without it.
    """
    params_file = Path(LaunchConfiguration("params_file").perform(context))
    if not params_file.is_file():
        raise InputError(f"params_file: no file {params_file}; give an existing parameter file")
    given = {
        parameter: _value(name, _SPECS[parameter], context)
        for name, parameter in PARAMETERS.items()
        if LaunchConfiguration(name).perform(context)
    }
    given |= _clock(context, simulated)
    return LifecycleNode(
        package="pcseg_ros",
        executable="segment_node",
        name=LaunchConfiguration("node_name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), *([given] if given else [])],
        remappings=[(own, LaunchConfiguration(name)) for name, (own, _) in TOPICS.items()],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
        additional_env={END_WITH_PARENT: "1"},
    )


def _clock(context: LaunchContext, simulated: bool) -> dict[str, object]:
    """`use_sim_time` where it is given or a bag is played; else the parameter file decides."""
    if LaunchConfiguration("use_sim_time").perform(context):
        return {
            "use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
        }
    return {"use_sim_time": True} if simulated else {}


def rviz_node(context: LaunchContext, simulated: bool = False) -> list[Node]:
    """RViz, if the argument `rviz` is true."""
    if LaunchConfiguration("rviz").perform(context).lower() not in ("true", "1"):
        return []
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=LaunchConfiguration("namespace"),
            arguments=["-d", LaunchConfiguration("rviz_config")],
            parameters=[clock] if (clock := _clock(context, simulated)) else [],
            remappings=[("labeled_points", LaunchConfiguration("labeled_topic"))],
        )
    ]


def when_active(
    node: LifecycleNode, actions: Sequence[LaunchDescriptionEntity]
) -> list[LaunchDescriptionEntity]:
    """The node, then actions once it is active.

    The launch ends if the node cannot be configured, or if its process ends: wrong parameters end
    it at once, and nobody would report to what waits for it.
    """

    def follow(event: ProcessExited, context: LaunchContext) -> Sequence[LaunchDescriptionEntity]:
        if event.returncode == 0:
            return actions
        return [EmitEvent(event=Shutdown(reason="the node could not be started"))]

    def ask(event: ProcessStarted, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        command = module_command("pcseg_ros.health", node.node_name)
        waiting = ExecuteProcess(cmd=command, name="wait_for_node", output="screen")
        return [RegisterEventHandler(OnProcessExit(target_action=waiting, on_exit=follow)), waiting]

    def end(event: ProcessExited, context: LaunchContext) -> Sequence[LaunchDescriptionEntity]:
        if context.is_shutdown:
            return []
        return [EmitEvent(event=Shutdown(reason="the node has ended"))]

    return [
        RegisterEventHandler(OnProcessStart(target_action=node, on_start=ask)),
        RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end)),
        node,
    ]


def player(bag: str, rate: str, loop: bool) -> ExecuteProcess:
    """Plays a bag with /clock: `ros2 bag` if it is installed, else `pcseg_ros.bag_play`."""
    again = ["--loop"] if loop else []
    if find_spec("ros2bag") is not None:
        # It does not wait for subscribers; the delay lets them match.
        wait = ["--delay", "2", "--disable-keyboard-controls"]
        command = ["ros2", "bag", "play", bag, "--clock", "100", "--rate", rate, *wait, *again]
    else:
        options = ["--wait-for-subscriber", "--clock", "100", "--rate", rate, *again]
        command = module_command("pcseg_ros.bag_play", bag, *options)
    return ExecuteProcess(cmd=command, name="bag_player", output="screen")


def recorder(context: LaunchContext, folder: str, names: Sequence[str]) -> ExecuteProcess:
    """Records the outputs of the node: `ros2 bag` if installed, else `pcseg_ros.bag_record`.

    Args:
        context: holds the arguments, and the namespace that groups push.
        folder: of the new bag.
        names: outputs; without a leading slash they are in the namespace of the node.
    """
    pushed = context.launch_configurations.get("ros_namespace", "")
    space = LaunchConfiguration("namespace").perform(context)
    if not space.startswith("/"):
        space = f"{pushed}/{space}"
    labeled = LaunchConfiguration("labeled_topic").perform(context)
    renamed = [labeled if name == "labeled_points" else name for name in names]
    absolute = [n if n.startswith("/") else f"/{space}/{n}" for n in renamed]
    topics = ["/" + "/".join(filter(None, topic.split("/"))) for topic in absolute]
    if find_spec("ros2bag") is not None:
        # Humble has no --topics; from Jazzy on, topics without it are deprecated.
        named = topics if os.environ.get("ROS_DISTRO") == "humble" else ["--topics", *topics]
        command = ["ros2", "bag", "record", "--use-sim-time", "-o", folder, *named]
    else:
        command = module_command("pcseg_ros.bag_record", "--use-sim-time", folder, *topics)
    return ExecuteProcess(cmd=command, name="bag_recorder", output="screen", sigterm_timeout="10")


def _value(name: str, spec: ParameterSpec, context: LaunchContext) -> object:
    if spec.is_array:
        parts = LaunchConfiguration(name).perform(context).split(";")
        return [part.strip() for part in parts if part.strip()]
    kind = spec.kind if spec.kind in (bool, int, float) else str
    return ParameterValue(LaunchConfiguration(name), value_type=kind)
