# SPDX-License-Identifier: Apache-2.0
"""`pcseg bag play`: publish the messages of a bag without `ros2 bag`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import rclpy
import typer
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from rich.console import Console
from rosbags.interfaces import Connection, ConnectionExtRosbag2
from rosgraph_msgs.msg import Clock

from pcseg_core.data.bag_reader import BagFile
from pcseg_core.errors import InputError, Terminated
from pcseg_core.progress import bar
from pcseg_ros.message_types import message_class

Publishers: TypeAlias = "dict[str, Publisher[Any]]"
_NS = 1_000_000_000
_POLL_S = 0.05
_SETTLE_S = 1.5
_DEPTH = 10
_LATCHED_DEPTH = 100
_LAST_WORDS = Duration(seconds=2)
_console = Console(stderr=True, soft_wrap=True, highlight=False)


def play(
    bag: Annotated[Path, typer.Argument(help="Bag folder, or a .mcap or .db3 file.")],
    rate: Annotated[float, typer.Option(min=0.01, help="Speed; 1 is as recorded.")] = 1.0,
    loop: Annotated[bool, typer.Option("--loop", help="Start again at the end.")] = False,
    topics: Annotated[
        list[str] | None, typer.Option(help="Only this topic; repeat for several.")
    ] = None,
    wait_for_subscriber: Annotated[
        bool, typer.Option("--wait-for-subscriber", help="Begin when a topic is subscribed.")
    ] = False,
    clock: Annotated[
        float, typer.Option(min=0.0, help="Publish /clock at this rate (Hz); 0 for no /clock.")
    ] = 0.0,
) -> None:
    """Publish the messages of a bag over ROS 2 at the recorded rate."""
    with _ros() as node:
        player = BagPlayer(node, BagFile(bag), topics or None, clock_hz=clock)
        for line in player.warnings:
            _console.print(f"[yellow]warning:[/] {line}")
        if wait_for_subscriber:
            _console.print(f"waiting for a subscriber of any of {', '.join(player.topics)}")
            player.wait_for_subscriber()
        player.run(rate)
        while loop:
            player.run(rate)
        player.flush()
    total = sum(player.published.values())
    _console.print(f"published {total} messages on {len(player.topics)} topics")


class BagPlayer:
    """Publishes the messages of a bag without deserializing them.

    Args:
        node: creates the publishers; it need not spin.
        bag: source of the messages.
        topics: only these; None for all whose message type is installed.
        clock_hz: rate of /clock, which is the time of recording; 0 for no /clock.

    Attributes:
        topics: published topics.
        warnings: why topics are left out.
        published: number of messages by topic.

    Raises:
        InputError: a chosen topic is not in the bag, or no topic can be published.
    """

    def __init__(
        self, node: Node, bag: BagFile, topics: Collection[str] | None, clock_hz: float = 0.0
    ) -> None:
        self._bag = bag
        self.warnings: list[str] = []
        self.published: Counter[str] = Counter()
        self._publishers = self._create_publishers(node, _choose(bag, topics))
        self.topics = tuple(self._publishers)
        if not self._publishers:
            raise InputError(f"{bag.path}: nothing to play. {' '.join(self.warnings)}")
        self._clock = node.create_publisher(Clock, "/clock", 10) if clock_hz else None
        self._clock_hz = clock_hz

    def wait_for_subscriber(self) -> None:
        """Return soon after one of the topics that are not latched has a subscriber.

        The delay lets other subscribers match, which takes up to a second.
        """
        lively = [
            p
            for p in self._publishers.values()
            if p.qos_profile.durability != DurabilityPolicy.TRANSIENT_LOCAL
        ]
        while not any(p.get_subscription_count() for p in lively or self._publishers.values()):
            time.sleep(_POLL_S)
        time.sleep(_SETTLE_S)

    def run(self, rate: float = 1.0) -> None:
        """Publish all messages once, at `rate` times the recorded rate.

        Raises:
            InputError: the bag is corrupt; the messages before the damage have been published.
        """
        total = sum(self._bag.counts[topic] for topic in self.topics)
        with bar(f"playing {self._bag.path.name}", total, transient=True) as played:
            pace: _Pace | None = None
            for connection, bag_ns, raw in self._bag.messages(self.topics):
                pace = pace or _Pace(bag_ns, rate, self._clock, self._clock_hz)
                pace.wait_until(bag_ns)
                self._publishers[connection.topic].publish(bytes(raw))
                self.published[connection.topic] += 1
                played.advance()

    def flush(self) -> None:
        """Wait until reliable subscribers have all messages, two seconds at most."""
        for publisher in self._publishers.values():
            if publisher.get_subscription_count():
                publisher.wait_for_all_acked(_LAST_WORDS)

    def _create_publishers(self, node: Node, chosen: dict[str, Connection]) -> Publishers:
        publishers: Publishers = {}
        for topic, connection in chosen.items():
            kind = message_class(connection.msgtype)
            if kind is None:
                self.warnings.append(
                    f"{topic} is left out: the message type {connection.msgtype} is not installed."
                )
                continue
            publishers[topic] = node.create_publisher(kind, topic, _offered_qos(connection))
        return publishers


class _Pace:
    """Maps times of recording to times of publishing, and publishes /clock."""

    def __init__(
        self, begin_ns: int, rate: float, clock: Publisher | None, clock_hz: float
    ) -> None:
        self._begin_ns = begin_ns
        self._begin_s = time.monotonic()
        self._rate = rate
        self._clock = clock
        self._tick_ns = int(_NS * rate / clock_hz) if clock_hz else 0
        self._next_tick_ns = begin_ns

    def wait_until(self, bag_ns: int) -> None:
        """Sleep until a message is due."""
        while self._clock is not None and self._next_tick_ns <= bag_ns:
            self._sleep_until(self._next_tick_ns)
            self._clock.publish(Clock(clock=Time(nanoseconds=self._next_tick_ns).to_msg()))
            self._next_tick_ns += self._tick_ns
        self._sleep_until(bag_ns)

    def _sleep_until(self, bag_ns: int) -> None:
        due_s = self._begin_s + (bag_ns - self._begin_ns) / _NS / self._rate
        time.sleep(max(0.0, due_s - time.monotonic()))


def _choose(bag: BagFile, topics: Collection[str] | None) -> dict[str, Connection]:
    """Topic -> its connection, of the topics with messages."""
    present = {c.topic: c for c in bag.connections if c.msgcount}
    unknown = [topic for topic in topics or () if topic not in present]
    if unknown:
        raise InputError(
            f"{bag.path}: no messages on {', '.join(unknown)}; it has {', '.join(sorted(present))}"
        )
    return {topic: c for topic, c in present.items() if topics is None or topic in topics}


def _offered_qos(connection: Connection) -> QoSProfile:
    """Reliability and durability as recorded; reliable and volatile if unknown."""
    assert isinstance(connection.ext, ConnectionExtRosbag2)
    recorded = connection.ext.offered_qos_profiles
    reliable = not recorded or any(q.reliability.name != "BEST_EFFORT" for q in recorded)
    latched = any(q.durability.name == "TRANSIENT_LOCAL" for q in recorded)
    latched = latched or connection.topic.rpartition("/")[2] == "tf_static"
    return QoSProfile(
        depth=_LATCHED_DEPTH if latched else _DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


@contextmanager
def _ros() -> Iterator[Node]:
    """A node for the block. Ctrl-C ends the block without an error."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("bag_player", start_parameter_services=False, enable_rosout=False)
    try:
        yield node
    except Terminated:
        raise
    except KeyboardInterrupt:
        _console.print("stopped")
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    typer.run(play)
