# SPDX-License-Identifier: Apache-2.0
"""State of a running node from /diagnostics, and a program that waits until it is active.

    python -m pcseg_ros.health /segment_node

The launch files play bags after it. They do not use the event of the transition, which is lost if
it is published before its subscription has matched; reports are repeated.
"""

from __future__ import annotations

import time
from typing import Annotated

import rclpy
import typer
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rich.console import Console

from pcseg_ros import topics

_REMIND_S = 10.0
_console = Console(stderr=True, soft_wrap=True, highlight=False)


class NodeHealth:
    """The newest report of one node.

    Args:
        node: subscribes; spin it to receive reports.
        name: full name of the observed node, like "/segment_node".

    Attributes:
        values: keys and values of the report; empty before the first.
        fault: why the node could not be configured, or "".
    """

    def __init__(self, node: Node, name: str) -> None:
        self.values: dict[str, str] = {}
        self.fault = ""
        self._prefix = f"{name.strip('/')}:"
        node.create_subscription(DiagnosticArray, topics.DIAGNOSTICS, self._on_report, 10)

    @property
    def state(self) -> str:
        """Lifecycle state; "" before the first report."""
        return self.values.get("state", "")

    @property
    def active(self) -> bool:
        """The node labels sweeps."""
        return self.state == "active"

    @property
    def failed(self) -> bool:
        """The node could not be configured."""
        return bool(self.fault)

    def _on_report(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(self._prefix):
                self.values = {pair.key: pair.value for pair in status.values}
                failed = self.state == "unconfigured" and status.level == DiagnosticStatus.ERROR
                self.fault = status.message if failed else ""


def wait(
    name: Annotated[str, typer.Argument(help="Full name of the node, like /segment_node.")],
) -> None:
    """Return when the node is active; fail if it could not be configured."""
    rclpy.init()
    node = rclpy.create_node(
        f"wait_for_{name.rpartition('/')[2]}", start_parameter_services=False, enable_rosout=False
    )
    health, remind_s = NodeHealth(node, name), time.monotonic() + _REMIND_S
    try:
        while not (health.active or health.failed):
            rclpy.spin_once(node, timeout_sec=0.5)
            if time.monotonic() > remind_s:
                remind_s += _REMIND_S
                _console.print(f"waiting for {name} ({health.state or 'silent'})")
    except (KeyboardInterrupt, ExternalShutdownException):
        raise typer.Exit(1) from None
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    if health.fault:
        _console.print(f"[red]error:[/] {name} is {health.fault}")
        raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(wait)
