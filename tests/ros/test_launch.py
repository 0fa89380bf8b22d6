# SPDX-License-Identifier: Apache-2.0
"""The launch file, run by the real `ros2 launch` where a ROS distribution is there."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="needs a ROS distribution (launch_ros)")
pytest.importorskip("ros2launch", reason="needs a ROS distribution (ros2launch)")

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from harness import Client, wait_for
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.launch_description_sources import get_launch_description_from_python_launch_file

from pcseg_ros.specs import parameter_specs

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "launch" / "segment.launch.py"


@pytest.fixture(scope="module")
def description() -> LaunchDescription:
    return get_launch_description_from_python_launch_file(str(LAUNCH_FILE))


def arguments_of(description: LaunchDescription) -> dict[str, DeclareLaunchArgument]:
    return {a.name: a for a in description.entities if isinstance(a, DeclareLaunchArgument)}


def test_arguments_are_described_and_name_real_parameters(description: LaunchDescription) -> None:
    from pcseg_ros.config import NodeConfig

    arguments = arguments_of(description)
    assert all(a.description for a in arguments.values())
    process = {
        "cloud_topic", "labeled_topic", "params_file", "namespace", "node_name", "log_level",
        "use_sim_time",
    }  # fmt: skip
    assert set(arguments) - process <= set(parameter_specs(NodeConfig))


def test_arguments_left_out_do_not_override_the_parameter_file(
    description: LaunchDescription,
) -> None:
    context = LaunchContext()
    for argument in arguments_of(description).values():
        if argument.name != "params_file":
            argument.execute(context)
    assert context.launch_configurations["checkpoint"] == ""
    assert context.launch_configurations["cloud_topic"] == "points"


def test_ros2_launch_starts_and_ends_the_node(client: Client, tmp_path: Path) -> None:
    try:
        get_package_share_directory("pcseg_ros")
    except PackageNotFoundError:
        pytest.skip("pcseg_ros is not built in a sourced workspace")
    log = (tmp_path / "log").open("w+")
    topic = f"/launched_{os.getpid()}/points"
    command = ["ros2", "launch", "pcseg_ros", "segment.launch.py", f"cloud_topic:={topic}"]
    process = subprocess.Popen(
        [*command, "checkpoint:=runs/none", "min_confidence:=1"], stdout=log, stderr=log
    )
    try:
        text = (tmp_path / "log").read_text
        wait_for(lambda: "no checkpoint at runs/none" in text(), "the node's message", 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "process has finished cleanly" in text()
        assert "escalating" not in text()  # what launch does after five seconds
    finally:
        process.kill()
        log.close()
