# SPDX-License-Identifier: Apache-2.0
"""What the launch files start: the node, RViz, a player and a recorder of bags."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, RegisterEventHandler
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import Shutdown
from launch.events.process import ProcessExited, ProcessStarted
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

# Arguments that are parameters of the node: name -> (parameter, type, description). Left empty, the
# value of the parameter file holds.
PARAMETERS = {
    "checkpoint": ("checkpoint", str, "Run directory of `pcseg distill`, or a checkpoint file"),
    "device": ("device", str, "Where inference runs: auto, cpu, cuda or cuda:N"),
    "prompts": ("prompts", list, "Classes in words, separated by ';': 'vehicle: car, truck; tree'"),
    "min_confidence": ("min_confidence", float, "Labels with less confidence are dropped, 0 to 1"),
    "publish_rgb": ("publish_rgb", bool, "Add the class color as the field rgb: true or false"),
    "cameras": ("cameras.topics", list, "Image topics, separated by ';'; .../compressed is JPEG"),
    "calibration": ("cameras.calibration", str, "Calibration file; without one TF is asked"),
    "motion": ("motion.source", str, "Motion of the platform: auto, tf, odometry or none"),
    "fixed_frame": ("motion.fixed_frame", str, "Frame without jumps in /tf, usually odom"),
    "temporal": ("temporal.enabled", bool, "Smooth labels over time: true or false"),
    "teacher": ("teacher.weights", str, "Camera teacher whose labels are published as well"),
    "autostart": ("autostart", bool, "Configure and activate at start; false: a manager does"),
    "use_sim_time": ("use_sim_time", bool, "Take the time from /clock; true with a bag"),
}
TOPICS = {
    "cloud_topic": ("points", "Input, sensor_msgs/PointCloud2"),
    "labeled_topic": ("labeled_points", "Output, the same type"),
    "odometry_topic": ("odometry", "Input, nav_msgs/Odometry, where motion is odometry"),
}
RECORDED = ("labeled_points", "filtered_points", "teacher_points", "label_info")


def node_arguments() -> list[DeclareLaunchArgument]:
    """Launch arguments of the node and of RViz."""
    share = FindPackageShare("pcseg_ros")
    files = {
        "params_file": ("segment.yaml", "YAML file with parameters"),
        "rviz_config": ("segment.rviz", "Layout of RViz"),
    }
    others = {
        "namespace": ("", "Namespace of the node"),
        "node_name": ("segment_node", "Its name"),
        "log_level": ("info", "debug, info, warn, error or fatal"),
        "rviz": ("false", "Start RViz: true or false"),
    }
    return [
        *(_argument(name, "", text) for name, (_, _, text) in PARAMETERS.items()),
        *(_argument(name, default, text) for name, (default, text) in TOPICS.items()),
        *(_argument(name, default, text) for name, (default, text) in others.items()),
        *(
            DeclareLaunchArgument(
                name, default_value=PathJoinSubstitution([share, "config", file]), description=text
            )
            for name, (file, text) in files.items()
        ),
    ]


def _argument(name: str, default: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value=default, description=description)


def segment_node(context: LaunchContext, simulated: bool = False) -> LifecycleNode:
    """The node, as the arguments say.

    Args:
        context: with the arguments.
        simulated: take the time from /clock unless `use_sim_time` says otherwise.
    """
    given = {
        parameter: _value(name, kind, context)
        for name, (parameter, kind, _) in PARAMETERS.items()
        if LaunchConfiguration(name).perform(context)
    }
    return LifecycleNode(
        package="pcseg_ros",
        executable="segment_node",
        name=LaunchConfiguration("node_name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {"use_sim_time": simulated},
            *([given] if given else []),
        ],
        remappings=[(own, LaunchConfiguration(name)) for name, (own, _) in TOPICS.items()],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
    )


def rviz_node(context: LaunchContext, simulated: bool = False) -> list[Node]:
    """RViz, where it is asked for."""
    if LaunchConfiguration("rviz").perform(context).lower() not in ("true", "1"):
        return []
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=LaunchConfiguration("namespace"),
            arguments=["-d", LaunchConfiguration("rviz_config")],
            parameters=[{"use_sim_time": simulated}],
            remappings=[("labeled_points", LaunchConfiguration("labeled_topic"))],
        )
    ]


def when_active(
    node: LifecycleNode, actions: Sequence[LaunchDescriptionEntity]
) -> list[LaunchDescriptionEntity]:
    """The node, and actions that follow once it is active; the launch ends where it cannot be."""

    def follow(event: ProcessExited, context: LaunchContext) -> Sequence[LaunchDescriptionEntity]:
        if event.returncode == 0:
            return actions
        return [EmitEvent(event=Shutdown(reason="the node could not be started"))]

    def ask(event: ProcessStarted, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        command = [sys.executable, "-m", "pcseg_ros.health", node.node_name]
        waiting = ExecuteProcess(cmd=command, name="wait_for_node", output="screen")
        return [RegisterEventHandler(OnProcessExit(target_action=waiting, on_exit=follow)), waiting]

    return [RegisterEventHandler(OnProcessStart(target_action=node, on_start=ask)), node]


def player(bag: str, rate: str, loop: bool) -> ExecuteProcess:
    """Plays a bag with /clock: `ros2 bag` where it is installed, else our own player."""
    again = ["--loop"] if loop else []
    if find_spec("ros2bag") is not None:
        # It does not wait for subscribers; they find it meanwhile.
        wait = ["--delay", "2", "--disable-keyboard-controls"]
        command = ["ros2", "bag", "play", bag, "--clock", "100", "--rate", rate, *wait, *again]
    else:
        own = [sys.executable, "-m", "pcseg_ros.bag_play", bag, "--wait-for-subscriber"]
        command = [*own, "--clock", "100", "--rate", rate, *again]
    return ExecuteProcess(cmd=command, name="bag_player", output="screen")


def recorder(context: LaunchContext, folder: str) -> ExecuteProcess:
    """Records what the node publishes: `ros2 bag` where it is installed, else our own recorder."""
    space = LaunchConfiguration("namespace").perform(context).strip("/")
    labeled = LaunchConfiguration("labeled_topic").perform(context)
    names = [labeled, *RECORDED[1:]]
    topics = [n if n.startswith("/") else "/" + "/".join(filter(None, (space, n))) for n in names]
    topics.append("/diagnostics")
    if find_spec("ros2bag") is not None:
        # Humble knows no --topics; from Jazzy on topics without it are deprecated.
        named = topics if os.environ.get("ROS_DISTRO") == "humble" else ["--topics", *topics]
        command = ["ros2", "bag", "record", "-o", folder, *named]
    else:
        command = [sys.executable, "-m", "pcseg_ros.bag_record", folder, *topics]
    return ExecuteProcess(cmd=command, name="bag_recorder", output="screen", sigterm_timeout="10")


def _value(name: str, kind: type, context: LaunchContext) -> object:
    if kind is list:
        parts = LaunchConfiguration(name).perform(context).split(";")
        return [part.strip() for part in parts if part.strip()]
    return ParameterValue(LaunchConfiguration(name), value_type=kind)
