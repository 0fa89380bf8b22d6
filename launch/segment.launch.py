# SPDX-License-Identifier: Apache-2.0
"""Start the segmentation node, with the bundled checkpoint if none is given.

    ros2 launch pcseg_ros segment.launch.py checkpoint:=runs/first cloud_topic:=/velodyne_points

The arguments are the parameters that most setups change; all others are in the parameter file.
A given argument overrides the parameter file. With `bag:=DIR` the bag is played as soon
as the node is active.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from pcseg_ros import launching


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    bag = [
        DeclareLaunchArgument("bag", default_value="", description="Bag to play, if any"),
        DeclareLaunchArgument("rate", default_value="1.0", description="Speed of the bag"),
        DeclareLaunchArgument(
            "loop", default_value="false", description="Play the bag in a loop: true or false"
        ),
    ]
    start = OpaqueFunction(function=_start)
    return LaunchDescription([*launching.node_arguments(), *bag, start])


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    bag = LaunchConfiguration("bag").perform(context)
    node = launching.segment_node(context, simulated=bool(bag))
    rviz = launching.rviz_node(context, simulated=bool(bag))
    if not bag:
        return [node, *rviz]
    rate = LaunchConfiguration("rate").perform(context)
    loop = LaunchConfiguration("loop").perform(context).lower() in ("true", "1")
    return [*launching.when_active(node, [launching.player(bag, rate, loop)]), *rviz]
