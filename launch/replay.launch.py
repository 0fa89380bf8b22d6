# SPDX-License-Identifier: Apache-2.0
"""Play a bag to the node, record its outputs, and end with the bag.

    ros2 launch pcseg_ros replay.launch.py bag:=drive out:=labeled cloud_topic:=/velodyne_points

Takes the arguments of segment.launch.py too. The time is that of the bag,
also in the recording.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration

from pcseg_ros import launching

_LAST_SWEEPS_S = 3.0


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; start recorder and node, then the player."""
    own = [
        DeclareLaunchArgument("bag", description="Bag to play"),
        DeclareLaunchArgument("out", description="Folder of the new bag with the outputs"),
        DeclareLaunchArgument(
            "record",
            default_value="; ".join(launching.RECORDED),
            description="Outputs to record, separated by ';', such as filtered_points",
        ),
        DeclareLaunchArgument("rate", default_value="1.0", description="Speed of the bag"),
    ]
    start = OpaqueFunction(function=_start)
    return LaunchDescription([*own, *launching.node_arguments(), start])


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    bag, out, rate = (LaunchConfiguration(n).perform(context) for n in ("bag", "out", "rate"))
    record = LaunchConfiguration("record").perform(context)
    outputs = [name.strip() for name in record.split(";") if name.strip()]
    node = launching.segment_node(context, simulated=True)
    player = launching.player(bag, rate, loop=False)
    finish = TimerAction(
        period=_LAST_SWEEPS_S, actions=[EmitEvent(event=Shutdown(reason="the bag has been played"))]
    )
    return [
        RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[finish])),
        launching.recorder(context, out, outputs),
        *launching.when_active(node, [player]),
        *launching.rviz_node(context, simulated=True),
    ]
