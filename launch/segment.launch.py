# SPDX-License-Identifier: Apache-2.0
"""Start the segmentation node; without a checkpoint it takes the bundled one.

    ros2 launch pcseg_ros segment.launch.py checkpoint:=runs/first cloud_topic:=/velodyne_points

The arguments are the values that most setups change; everything else is in the parameter file.
An argument that is given overrides the parameter file.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

# Arguments that are parameters of the node: name -> (type, description). Left empty, the value of
# the parameter file holds.
PARAMETERS = {
    "checkpoint": (str, "Run directory of `pcseg distill`, or a checkpoint file"),
    "device": (str, "Where inference runs: auto, cpu, cuda or cuda:N"),
    "min_confidence": (float, "Points labeled with less confidence become unlabeled, 0 to 1"),
    "publish_rgb": (bool, "Add the class colour as the field rgb: true or false"),
    "autostart": (bool, "Configure and activate at start; false leaves it to a manager"),
    "use_sim_time": (bool, "Take the time from /clock, as for bags played with --clock"),
}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    default_file = PathJoinSubstitution([FindPackageShare("pcseg_ros"), "config", "segment.yaml"])
    topics = [
        DeclareLaunchArgument(
            "cloud_topic", default_value="points", description="Input, sensor_msgs/PointCloud2"
        ),
        DeclareLaunchArgument(
            "labeled_topic", default_value="labeled_points", description="Output, the same type"
        ),
    ]
    process = [
        DeclareLaunchArgument(
            "params_file", default_value=default_file, description="YAML file with parameters"
        ),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node"),
        DeclareLaunchArgument("node_name", default_value="segment_node", description="Its name"),
        DeclareLaunchArgument(
            "log_level", default_value="info", description="debug, info, warn, error or fatal"
        ),
    ]
    parameters = [
        DeclareLaunchArgument(name, default_value="", description=description)
        for name, (_, description) in PARAMETERS.items()
    ]
    arguments = [*parameters, *topics, *process]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start_node)])


def _start_node(context: LaunchContext) -> list[LifecycleNode]:
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, (kind, _) in PARAMETERS.items()
        if LaunchConfiguration(name).perform(context)
    }
    node = LifecycleNode(
        package="pcseg_ros",
        executable="segment_node",
        name=LaunchConfiguration("node_name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), given],
        remappings=[
            ("points", LaunchConfiguration("cloud_topic")),
            ("labeled_points", LaunchConfiguration("labeled_topic")),
        ],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
    )
    return [node]
