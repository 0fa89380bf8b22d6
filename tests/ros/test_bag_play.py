# SPDX-License-Identifier: Apache-2.0
"""`pcseg bag play`: a bag over DDS, unchanged, at its own pace."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import Client, NodeProcess, sweep, wait_for
from node_process import ROOT
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

COUNT = 5
PERIOD_NS = 100_000_000
START_NS = 1_700_000_000_000_000_000
_numbers = itertools.count()


def recorded(number: int) -> PointCloud2:
    """Message number of the bag."""
    return sweep(500, stamp=(number, 5), seed=number)


def latched_qos() -> Qos:
    never = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST,
        1,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL,
        never,
        never,
        QosLiveliness.AUTOMATIC,
        never,
        False,
    )


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Clouds at 10 Hz, one latched string, one message of a type that is not installed."""
    path = tmp_path_factory.mktemp("bags") / "drive"
    space = f"/bag{os.getpid()}_{next(_numbers)}"
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register({"nobody_msgs/msg/Thing": ([], [("data", (1, ("string", 0)))])})
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        add: Any = lambda name, kind, **more: writer.add_connection(  # noqa: E731
            f"{space}/{name}", kind, typestore=store, **more
        )
        clouds = add("points", "sensor_msgs/msg/PointCloud2")
        latched = add("info", "std_msgs/msg/String", offered_qos_profiles=[latched_qos()])
        thing = add("thing", "nobody_msgs/msg/Thing")
        text = bytes(serialize_message(String(data="hello")))
        writer.write(latched, START_NS, text)
        writer.write(thing, START_NS, text)
        for number in range(COUNT):
            writer.write(clouds, START_NS + number * PERIOD_NS, serialize_message(recorded(number)))
    return path, space


class Listener:
    """Messages of one topic with their times of arrival."""

    def __init__(self, client: Client, kind: type, topic: str, qos: Any = 50) -> None:
        self.client = client
        self.messages: list[Any] = []
        self.times_s: list[float] = []
        self.subscription = client.node.create_subscription(kind, topic, self._on_message, qos)

    def _on_message(self, message: Any) -> None:
        self.messages.append(message)
        self.times_s.append(time.monotonic())

    def close(self) -> None:
        self.client.node.destroy_subscription(self.subscription)


@pytest.fixture
def clouds(client: Client, bag: tuple[Path, str]) -> Iterator[Listener]:
    listener = Listener(client, PointCloud2, f"{bag[1]}/points")
    yield listener
    listener.close()


# The command line with the plugin registered, as installing the package does.
PROGRAM = """
from importlib.metadata import EntryPoint
import pcseg_core.cli as cli
plugin = EntryPoint("bag-play", "pcseg_ros.bag_play:play", cli.PLUGIN_GROUP)
cli.entry_points = lambda group: [plugin]
cli.main()
"""


def start(path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "bag", "play", str(path), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(player: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = player.communicate(timeout=30)
    assert player.returncode == code, output
    assert "Traceback" not in output
    return output


def test_messages_arrive_unchanged_in_order_and_on_time(
    bag: tuple[Path, str], clouds: Listener
) -> None:
    output = finish(start(bag[0], "--wait-for-subscriber"))
    assert clouds.messages == [recorded(number) for number in range(COUNT)]
    lasted = clouds.times_s[-1] - clouds.times_s[0]
    assert lasted == pytest.approx((COUNT - 1) * PERIOD_NS * 1e-9, abs=0.15)
    assert "nobody_msgs/msg/Thing is not installed" in output
    assert f"published {COUNT + 1} messages on 2 topics" in output


def test_rate(bag: tuple[Path, str], clouds: Listener) -> None:
    finish(start(bag[0], "--wait-for-subscriber", "--rate", "4"))
    assert len(clouds.messages) == COUNT
    assert clouds.times_s[-1] - clouds.times_s[0] == pytest.approx(0.1, abs=0.08)


def test_latched_topic_reaches_a_late_subscriber(client: Client, bag: tuple[Path, str]) -> None:
    player = start(bag[0], "--loop", "--topics", f"{bag[1]}/info", "--topics", f"{bag[1]}/points")
    wait_for(lambda: client.node.count_publishers(f"{bag[1]}/info"), "the player", 30)
    time.sleep(0.3)  # the message is out
    latched = QoSProfile(
        depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
    )
    late = Listener(client, String, f"{bag[1]}/info", latched)
    try:
        wait_for(lambda: late.messages, "the latched message")
        assert late.messages[0].data == "hello"
    finally:
        late.close()
        player.send_signal(signal.SIGINT)
        assert "stopped" in finish(player)


def test_loop_starts_again_until_interrupted(bag: tuple[Path, str], clouds: Listener) -> None:
    player = start(bag[0], "--loop", "--wait-for-subscriber", "--rate", "4")
    wait_for(lambda: len(clouds.messages) > 2 * COUNT, "the third round", 30)
    player.send_signal(signal.SIGINT)
    finish(player)
    expected = itertools.cycle([recorded(number) for number in range(COUNT)])
    assert clouds.messages == list(itertools.islice(expected, len(clouds.messages)))


def test_clock_covers_the_recording(client: Client, bag: tuple[Path, str]) -> None:
    listener = Listener(client, Clock, "/clock")
    try:
        wait = ("--wait-for-subscriber", "--topics", f"{bag[1]}/points")
        clouds = Listener(client, PointCloud2, f"{bag[1]}/points")
        finish(start(bag[0], *wait, "--clock", "50"))
        clouds.close()
    finally:
        listener.close()
    ticks = np.array([m.clock.sec * 10**9 + m.clock.nanosec for m in listener.messages])
    assert (np.diff(ticks) == 20_000_000).all()
    assert len(ticks) >= 15  # of 21; the first may go out before the subscription matches
    assert ticks[-1] == START_NS + (COUNT - 1) * PERIOD_NS


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nowhere",), "nowhere: no such bag"),
        (("BAG", "--topics", "/other"), "no messages on /other"),
    ],
)
def test_errors_are_one_line(bag: tuple[Path, str], arguments: tuple[str, ...], words: str) -> None:
    path, *options = (str(bag[0]) if a == "BAG" else a for a in arguments)
    output = finish(start(Path(path), *options), code=2)
    assert words in output


def test_a_played_bag_is_labeled_completely(client: Client, bag: tuple[Path, str]) -> None:
    """Every sweep of the bag comes back from the node with its stamp."""
    with NodeProcess("checkpoint:=fake", remap=(f"points:={bag[1]}/points",)) as process:
        topic = f"{process.namespace}/labeled_points"
        answers = Listener(client, PointCloud2, topic)
        try:
            wait_for(lambda: client.node.count_publishers(topic), "the node")
            finish(start(bag[0], "--wait-for-subscriber"))
            wait_for(lambda: len(answers.messages) == COUNT, "all answers")
        finally:
            answers.close()
        assert [message.header.stamp.sec for message in answers.messages] == list(range(COUNT))
