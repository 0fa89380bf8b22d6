# SPDX-License-Identifier: Apache-2.0
"""The launch file, run by the real `ros2 launch` where a ROS distribution is there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("launch_ros", reason="needs a ROS distribution (launch_ros)")
pytest.importorskip("ros2launch", reason="needs a ROS distribution (ros2launch)")

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from harness import Client, wait_for
from launch import LaunchContext
from launch.actions import DeclareLaunchArgument
from launch.launch_description_sources import get_launch_description_from_python_launch_file
from node_process import runs

from pcseg_core.cloud import encode_cloud
from pcseg_core.data.bag_reader import BagFile
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError
from pcseg_ros import launching
from pcseg_ros.parameter_file import parameter_specs

FOLDER = Path(__file__).resolve().parents[2] / "launch"
FILES = sorted(path.name for path in FOLDER.glob("*.launch.py"))


def arguments_of(file: str) -> dict[str, DeclareLaunchArgument]:
    description = get_launch_description_from_python_launch_file(str(FOLDER / file))
    return {a.name: a for a in description.entities if isinstance(a, DeclareLaunchArgument)}


def test_arguments_are_described_and_name_real_parameters() -> None:
    from pcseg_ros.config import NodeConfig

    assert len(FILES) == 2
    for file in FILES:
        arguments = arguments_of(file)
        assert all(a.description for a in arguments.values())
        assert set(launching.PARAMETERS) | set(launching.TOPICS) <= set(arguments)
    specs = parameter_specs(NodeConfig)
    assert set(launching.PARAMETERS.values()) <= set(specs)
    described = arguments_of("segment.launch.py")
    for name, parameter in launching.PARAMETERS.items():
        assert described[name].description.startswith(specs[parameter].description)
    assert "separated by ';'" in described["cameras"].description


def context_of(**given: str) -> LaunchContext:
    """The arguments of segment.launch.py with their defaults."""
    context = LaunchContext()
    files = {"params_file": str(FOLDER.parent / "config" / "segment.yaml"), "rviz_config": ""}
    context.launch_configurations.update(files | given)
    for argument in arguments_of("segment.launch.py").values():
        argument.execute(context)
    return context


def parameters_of(simulated: bool = False, **given: str) -> list[Any]:
    """What the node is started with, the parameter file left out."""
    node = launching.segment_node(context_of(**given), simulated)
    return list(node._Node__parameters[1:])


def names_of(given: Any) -> set[str]:
    return {"".join(part.text for part in key) for key in given}


def test_arguments_left_out_do_not_override_the_parameter_file() -> None:
    assert parameters_of() == []
    (given,) = parameters_of(cameras="/a/image_raw; /b/image_raw", min_confidence="0.5")
    assert names_of(given) == {"cameras.topics", "min_confidence"}


def test_simulated_time_is_set_where_a_bag_is_played_or_it_is_given() -> None:
    for given in (parameters_of(simulated=True), parameters_of(use_sim_time="false")):
        assert names_of(given[0]) == {"use_sim_time"}
    (rviz,) = launching.rviz_node(context_of(rviz="true", use_sim_time="true"))
    assert names_of(rviz._Node__parameters[0]) == {"use_sim_time"}


def test_a_missing_parameter_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"params_file: no file .*absent\.yaml"):
        parameters_of(params_file="absent.yaml")


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


def test_the_node_ends_when_ros2_launch_is_terminated(client: Client, tmp_path: Path) -> None:
    try:
        get_package_share_directory("pcseg_ros")
    except PackageNotFoundError:
        pytest.skip("pcseg_ros is not built in a sourced workspace")
    log = (tmp_path / "log").open("w+")
    text = (tmp_path / "log").read_text
    command = ["ros2", "launch", "pcseg_ros", "segment.launch.py", "checkpoint:=runs/none"]
    with subprocess.Popen(command, stdout=log, stderr=log) as process:
        wait_for(lambda: "no checkpoint at runs/none" in text(), "the node's message", 30)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    (pid,) = re.findall(r"process started with pid \[(\d+)\]", text())
    wait_for(lambda: not runs(int(pid)), "the end of the node")


@pytest.mark.parametrize(
    "given, told",
    [
        ("checkpoint:=runs/none", "is not configured: no checkpoint at runs/none"),
        ("min_confidence:=2.0", "'min_confidence' is 2.0"),  # ends the process of the node
    ],
)
def test_replay_ends_where_the_node_cannot_start(
    client: Client, tmp_path: Path, given: str, told: str
) -> None:
    try:
        get_package_share_directory("pcseg_ros")
    except PackageNotFoundError:
        pytest.skip("pcseg_ros is not built in a sourced workspace")
    bag = tmp_path / "bag"
    with BagWriter(bag) as writer:
        cloud = encode_cloud({axis: np.zeros(5, np.float32) for axis in "xyz"})
        writer.write_cloud("/lidar", cloud, "lidar", 10**18)
    arguments = [f"bag:={bag}", f"out:={tmp_path / 'out'}", given]
    ended = subprocess.run(
        ["ros2", "launch", "pcseg_ros", "replay.launch.py", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
    )
    text = ended.stdout + ended.stderr
    assert told in text
    assert "bag_player" not in text


def test_bags_by_ros2_bag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, which are those of the distribution's version."""
    monkeypatch.setattr(launching, "find_spec", lambda name: name == "ros2bag" or None)
    context = LaunchContext()
    context.launch_configurations.update(namespace="front", labeled_topic="labeled_points")
    context.launch_configurations["ros_namespace"] = "/robot"  # of PushRosNamespace

    def words(process: Any) -> list[str]:
        return ["".join(part.perform(context) for part in word) for word in process.cmd]

    played = words(launching.player("drive", "0.5", loop=True))
    assert played[:4] == ["ros2", "bag", "play", "drive"]
    assert played[4:8] == ["--clock", "100", "--rate", "0.5"]
    assert "--loop" in played
    topics = ["labeled_points", "teacher_points", "label_info"]
    recorded = [*(f"/robot/front/{topic}" for topic in topics), "/diagnostics"]
    for distribution, named in (("humble", []), ("jazzy", ["--topics"])):
        monkeypatch.setenv("ROS_DISTRO", distribution)
        command = words(launching.recorder(context, "out", launching.RECORDED))
        start = ["ros2", "bag", "record", "--use-sim-time", "-o", "out"]
        assert command == [*start, *named, *recorded]
    context.launch_configurations["namespace"] = "/alone"
    command = words(launching.recorder(context, "out", ["labeled_points", "/diagnostics"]))
    assert command[-2:] == ["/alone/labeled_points", "/diagnostics"]


def test_replay_plays_a_bag_and_records_the_answers(client: Client, tmp_path: Path) -> None:
    try:
        get_package_share_directory("pcseg_ros")
    except PackageNotFoundError:
        pytest.skip("pcseg_ros is not built in a sourced workspace")
    bag, out, log = tmp_path / "bag", tmp_path / "out", (tmp_path / "log").open("w+")
    rng = np.random.default_rng(0)
    with BagWriter(bag) as writer:
        for number in range(10):
            xyz = rng.uniform(-20, 20, (3, 2000)).astype(np.float32)
            encoded = encode_cloud(dict(zip("xyz", xyz)))
            writer.write_cloud("/lidar", encoded, "lidar", 10**18 + number * 200_000_000)
    space, params = f"/replayed_{os.getpid()}", tmp_path / "params.yaml"
    pair = (
        "{names: [ground_points, rest], ground_points: {classes: [road]}, rest: {classes: ['*']}}"
    )
    params.write_text(
        f"/**:\n  ros__parameters:\n    grid: {{rate_hz: 50.0}}\n    clouds: {pair}\n"
    )
    arguments = [f"bag:={bag}", f"out:={out}", "cloud_topic:=/lidar", f"namespace:={space}"]
    outputs = ("grid", "ground_points", "rest", "legend")
    arguments.append("record:=" + "; ".join((*launching.RECORDED, *outputs)))
    arguments.append(f"params_file:={params}")
    command = ["ros2", "launch", "pcseg_ros", "replay.launch.py", *arguments]
    with subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            code = process.wait(120)
        finally:
            process.kill()
    text = (tmp_path / "log").read_text()
    assert code == 0, text
    recorded = BagFile(out)
    assert recorded.counts[f"{space}/labeled_points"] >= 5, text
    assert recorded.counts["/diagnostics"] >= 1
    assert all(recorded.counts[f"{space}/{name}"] for name in outputs), recorded.counts
    assert f"{space}/filtered_points" not in recorded.counts
    for _, bag_ns, _ in recorded.messages([f"{space}/labeled_points"]):
        assert 10**18 <= bag_ns < 10**18 + 10**11  # the time of the played bag
    if find_spec("vision_msgs") is not None:
        assert recorded.counts[f"{space}/label_info"] == 1, text
