# SPDX-License-Identifier: Apache-2.0
"""The process ends cleanly and soon, whatever it is doing."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import Client, NodeProcess, sweep, wait_for
from node_process import FAKE_NODE, ROOT, runs

from pcseg_ros.process import END_WITH_PARENT

LIMIT_S = 2.0


def assert_clean(process: NodeProcess, number: int, times: int = 1) -> None:
    code, elapsed = process.stop(number, times)
    assert code == 0, process.output
    assert elapsed < LIMIT_S
    for word in ("Traceback", "terminate called", "Segmentation", "rror"):
        assert word not in process.output


@pytest.mark.parametrize(
    "number, times", [(signal.SIGINT, 1), (signal.SIGINT, 3), (signal.SIGTERM, 1)]
)
def test_signals_while_working(client: Client, number: int, times: int) -> None:
    with NodeProcess("checkpoint:=fake:delay=0.05") as process:
        node = client.attach(process)
        node.exchange(sweep(100))
        for _ in range(3):
            node.send(sweep(100))
        assert_clean(process, number, times)


def test_signal_inside_a_long_inference(client: Client) -> None:
    with NodeProcess("checkpoint:=fake:delay=30") as process:
        node = client.attach(process)
        node.send(sweep(10))
        time.sleep(0.3)
        assert_clean(process, signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_the_checkpoint_loads(client: Client, number: int) -> None:
    with NodeProcess("checkpoint:=fake:load=30") as process:
        wait_for(lambda: "loading" in process.output, "the load")
        assert_clean(process, number)


def test_signal_while_unconfigured(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "autostart:=false") as process:
        client.attach(process, active=False)
        assert_clean(process, signal.SIGTERM)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
@pytest.mark.parametrize("parameter", ["load=0", "load=60"])
def test_a_node_of_a_launch_file_ends_with_its_parent(parameter: str, tmp_path: Path) -> None:
    """As `ros2 launch` ends on SIGTERM: at once."""
    log = tmp_path / "log"
    log.touch()  # the shell opens it a little later
    node = [sys.executable, str(FAKE_NODE), "--ros-args", "-p", f"checkpoint:=fake:{parameter}"]
    command = f"{shlex.join(node)} > {log} 2>&1 & echo $!; wait"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = os.environ | {END_WITH_PARENT: "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            wait_for(lambda: "loading" in log.read_text(), "the start")
            parent.kill()
            wait_for(lambda: not runs(pid), "the end of the node")
        finally:
            parent.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
