# SPDX-License-Identifier: Apache-2.0
"""`pcseg bag record`: record topics without `ros2 bag`."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import rclpy
import typer
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rich.console import Console

from pcseg_core.data.bag_reader import type_store
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import PcsegError
from pcseg_ros.message_types import message_class

_LOOK_PERIOD_S = 0.2
_SAVE_PERIOD_S = 1.0
_DEPTH = 50
_EARLY = 1000  # messages that wait for /clock
_console = Console(stderr=True, soft_wrap=True, highlight=False)


def record(
    out: Annotated[Path, typer.Argument(help="Folder of the new bag.")],
    topics: Annotated[list[str], typer.Argument(help="Topics to record; they may appear later.")],
    use_sim_time: Annotated[
        bool, typer.Option("--use-sim-time", help="Record by the time of /clock.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bag at OUT.")] = False,
) -> None:
    """Record ROS 2 topics until Ctrl-C.

    The bag is saved every second. It stays readable if the disk is full or the recorder is killed.
    The exit code is 143 after SIGTERM.
    """
    signals: list[int] = []  # rclpy ends the context, then it calls these handlers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    rclpy.init()
    simulated = Parameter("use_sim_time", value=use_sim_time)
    node = rclpy.create_node(
        "bag_recorder",
        start_parameter_services=False,
        enable_rosout=False,
        parameter_overrides=[simulated],
    )
    try:
        with BagWriter(out, "sqlite3", force=force, live=True) as writer:
            recorder = BagRecorder(node, writer, topics)
            with contextlib.suppress(ExternalShutdownException):
                if not signals:
                    rclpy.spin(node)
            recorder.finish()
        total = sum(writer.counts.values())
        _console.print(f"recorded {total} messages on {len(writer.counts)} topics: {out}")
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    if signal.SIGTERM in signals:
        raise typer.Exit(128 + signal.SIGTERM)


class BagRecorder:
    """Subscribes topics as they appear and writes their messages, stamped with the arrival.

    The arrival is in the time of the node's clock. With simulated time, messages that arrive
    before /clock does are stamped with its first time.

    Args:
        node: subscribes; spin it to record.
        writer: an open live bag, which is saved every second.
        topics: full names. Types that the writer does not know are left out, with a warning.
    """

    def __init__(self, node: Node, writer: BagWriter, topics: list[str]) -> None:
        self._node = node
        self._writer = writer
        self._awaited = set(topics)
        self._early: deque[tuple[str, str, bytes, bool]] = deque(maxlen=_EARLY)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # runs while simulated time stands still
        self._timers = [
            node.create_timer(_LOOK_PERIOD_S, self._look, clock=steady),
            node.create_timer(_SAVE_PERIOD_S, writer.save, clock=steady),
        ]

    def finish(self) -> None:
        """Write the messages that still wait for /clock, by the time of the system."""
        self._write_early(time.time_ns())

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
            now_ns = self._node.get_clock().now().nanoseconds
            if not now_ns:
                self._early.append((topic, msgtype, raw, latched))
                return
            self._write_early(now_ns)
            self._writer.write_raw(topic, msgtype, raw, now_ns, latched)

        self._node.create_subscription(kind, topic, write, wanted, raw=True)

    def _write_early(self, now_ns: int) -> None:
        while self._early:
            topic, msgtype, raw, latched = self._early.popleft()
            self._writer.write_raw(topic, msgtype, raw, now_ns, latched)


def main() -> None:
    """Run as a program."""
    try:
        typer.run(record)
    except PcsegError as error:
        _console.print(f"[red]error:[/] {error}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
