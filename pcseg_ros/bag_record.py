# SPDX-License-Identifier: Apache-2.0
"""`pcseg bag record`: record topics without `ros2 bag`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated

import rclpy
import typer
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rich.console import Console

from pcseg_core.data.bag_reader import type_store
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import PcsegError
from pcseg_ros.bag_play import message_class

_LOOK_PERIOD_S = 0.2
_DEPTH = 50
_console = Console(stderr=True, soft_wrap=True, highlight=False)


def record(
    out: Annotated[Path, typer.Argument(help="Folder of the new bag.")],
    topics: Annotated[list[str], typer.Argument(help="Topics to record; they may appear later.")],
) -> None:
    """Record ROS 2 topics until Ctrl-C, which completes the bag."""
    rclpy.init()
    node = rclpy.create_node("bag_recorder", start_parameter_services=False, enable_rosout=False)
    try:
        with BagWriter(out) as writer:
            BagRecorder(node, writer, topics)
            with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
                rclpy.spin(node)
        total = sum(writer.counts.values())
        _console.print(f"recorded {total} messages on {len(writer.counts)} topics: {out}")
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


class BagRecorder:
    """Subscribes topics as they appear and writes their messages, stamped with the arrival.

    Args:
        node: subscribes; spin it to record.
        writer: an open bag.
        topics: full names. Types that the writer does not know are left out, with a warning.
    """

    def __init__(self, node: Node, writer: BagWriter, topics: list[str]) -> None:
        self._node = node
        self._writer = writer
        self._awaited = set(topics)
        self._timer = node.create_timer(_LOOK_PERIOD_S, self._look)

    def _look(self) -> None:
        """Subscribe the topics that have appeared."""
        for topic in sorted(self._awaited):
            publishers = self._node.get_publishers_info_by_topic(topic)
            if not publishers:
                continue
            self._awaited.discard(topic)
            kind = message_class(publishers[0].topic_type)
            msgtype = publishers[0].topic_type
            if kind is None or msgtype not in type_store().fielddefs:
                _console.print(f"[yellow]warning:[/] {topic} is left out: unknown type {msgtype}")
                continue
            self._subscribe(topic, msgtype, kind, [p.qos_profile for p in publishers])

    def _subscribe(self, topic: str, msgtype: str, kind: type, offered: list[QoSProfile]) -> None:
        reliable = all(q.reliability == ReliabilityPolicy.RELIABLE for q in offered)
        latched = all(q.durability == DurabilityPolicy.TRANSIENT_LOCAL for q in offered)
        wanted = QoSProfile(
            depth=_DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )

        def write(raw: bytes) -> None:
            self._writer.write_raw(topic, msgtype, raw, time.time_ns(), latched)

        self._node.create_subscription(kind, topic, write, wanted, raw=True)


def main() -> None:
    """Run as a program."""
    try:
        typer.run(record)
    except PcsegError as error:
        _console.print(f"[red]error:[/] {error}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
