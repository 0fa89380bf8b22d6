# SPDX-License-Identifier: Apache-2.0
"""`pcseg bag record`: by /clock, and readable after SIGKILL."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import Client, wait_for
from node_process import ROOT
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from pcseg_core.data.bag_reader import BagFile
from pcseg_ros.qos import latched

SPACE = f"/record{os.getpid()}"


def start(out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pcseg_ros.bag_record", str(out), *arguments]
    return subprocess.Popen(command, cwd=ROOT)


def times(path: Path) -> list[int]:
    """Times of the stored messages, s."""
    files = list(path.glob("*.db3"))
    if not files:
        return []
    with closing(sqlite3.connect(f"file:{files[0]}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT timestamp FROM messages ORDER BY id").fetchall()
        except sqlite3.OperationalError:  # it is being created
            return []
    return [time_ns // 10**9 for (time_ns,) in rows]


def test_a_killed_recorder_leaves_a_readable_bag(client: Client, tmp_path: Path) -> None:
    topic = f"{SPACE}/words"
    publisher = client.node.create_publisher(String, topic, 10)
    with start(tmp_path / "bag", topic) as process:
        try:
            wait_for(publisher.get_subscription_count, "the recorder")
            publisher.publish(String(data="kept"))
            wait_for(lambda: times(tmp_path / "bag"), "the message on the disk")
            about = tmp_path / "bag" / "metadata.yaml"
            wait_for(lambda: "message_count: 1" in about.read_text(), "the metadata")
        finally:
            process.send_signal(signal.SIGKILL)
    bag = BagFile(tmp_path / "bag")
    assert bag.counts == {topic: 1}
    client.node.destroy_publisher(publisher)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_store_and_say_so(client: Client, tmp_path: Path, number: int, code: int) -> None:
    topic, log = f"{SPACE}/signals", tmp_path / "log"
    publisher = client.node.create_publisher(String, topic, 10)
    command = [sys.executable, "-m", "pcseg_ros.bag_record", str(tmp_path / "bag"), topic]
    with log.open("w") as stream, subprocess.Popen(command, cwd=ROOT, stderr=stream) as process:
        try:
            wait_for(publisher.get_subscription_count, "the recorder")
            publisher.publish(String(data="kept"))
            wait_for(lambda: times(tmp_path / "bag"), "the message on the disk")
            process.send_signal(number)
            assert process.wait(20) == code
        finally:
            process.kill()
    assert "recorded 1 messages" in log.read_text() and "Traceback" not in log.read_text()
    assert BagFile(tmp_path / "bag").counts == {topic: 1}
    assert {p.name for p in (tmp_path / "bag").iterdir()} == {"metadata.yaml", "bag.db3"}
    client.node.destroy_publisher(publisher)


def test_simulated_time_stamps_the_recording(client: Client, tmp_path: Path) -> None:
    topic = f"{SPACE}/simulated"
    publisher = client.node.create_publisher(String, topic, latched(depth=100))
    clock = client.node.create_publisher(Clock, "/clock", 10)
    publisher.publish(String(data="before the clock"))
    with start(tmp_path / "bag", topic, "--use-sim-time") as process:
        try:
            wait_for(publisher.get_subscription_count, "the recorder")
            wait_for(clock.get_subscription_count, "the recorder's clock")
            message = Clock()
            message.clock.sec = 1000

            def stored() -> bool:
                clock.publish(message)  # lost while the recorder has not matched it yet
                publisher.publish(String(data="after"))
                time.sleep(0.2)
                return len(times(tmp_path / "bag")) >= 2

            time.sleep(0.5)
            wait_for(stored, "both messages")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert set(times(tmp_path / "bag")) == {1000}
    stored_words = [bytes(raw) for *_, raw in BagFile(tmp_path / "bag").messages([topic])]
    assert any(b"before the clock" in words for words in stored_words)
    client.node.destroy_publisher(publisher)
    client.node.destroy_publisher(clock)
