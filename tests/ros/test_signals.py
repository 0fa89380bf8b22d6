# SPDX-License-Identifier: Apache-2.0
"""The process ends cleanly and soon, whatever it is doing."""

from __future__ import annotations

import signal
import time

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from harness import Client, NodeProcess, sweep, wait_for

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
