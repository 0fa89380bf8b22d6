# SPDX-License-Identifier: Apache-2.0
"""Quality of service: profiles, and subscriptions that adapt to their publishers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NameValidationException
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from pcseg_core.errors import InputError
from pcseg_ros.diagnostics import SweepStatistics

try:
    from rclpy.event_handler import (
        QoSMessageLostInfo,
        SubscriptionEventCallbacks,
        UnsupportedEventTypeError,
    )
except ImportError:  # Humble
    from rclpy.qos_event import (
        QoSMessageLostInfo,
        SubscriptionEventCallbacks,
        UnsupportedEventTypeError,
    )

Message = TypeVar("Message")
Reliability = Literal["auto", "reliable", "best_effort"]
_WATCH_PERIOD_S = 1.0


# Functions, not constants: rclpy writes overrides into the profiles.
def sensor(reliable: bool, depth: int = 5) -> QoSProfile:
    """Profile of sensor inputs, of which only the newest counts.

    The depth is that of the sensor data profile (REP-2003). With depth 1, a sweep is lost if the
    next one begins before all its fragments have arrived.
    """
    kind = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=kind)


def result() -> QoSProfile:
    """Profile of outputs: reliable, which matches every subscriber.

    With this depth, a recorder that is delayed for half a second loses nothing.
    """
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE
    )


def latched(depth: int = 1) -> QoSProfile:
    """Profile of what is published once: late subscribers receive it too."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


@contextmanager
def creating(topic: str) -> Iterator[None]:
    """Raise InputError for what rclpy raises if a topic cannot be created."""
    try:
        yield
    except (AssertionError, NameValidationException, RuntimeError, TypeError, ValueError) as error:
        reason = f"{error}".strip().partition("\n")[0] or "a value of another type is expected"
        raise InputError(
            f"topic '{topic}': {reason}; check its name and the parameters qos_overrides.*"
        ) from error


def create_output(
    node: LifecycleNode, kind: type[Message], topic: str, profile: QoSProfile | None = None
) -> LifecyclePublisher[Message]:
    """Publisher of results, whose profile the parameters `qos_overrides` may change.

    Args:
        node: owner.
        kind: type of the messages.
        topic: name.
        profile: delivery; None takes `result`.

    Raises:
        InputError: the name of the topic or a parameter in `qos_overrides` is wrong.
    """
    overrides = QoSOverridingOptions.with_default_policies()
    with creating(topic):
        return node.create_lifecycle_publisher(
            kind, topic, profile or result(), qos_overriding_options=overrides
        )


def has_subscribers(publisher: Publisher) -> bool:
    """Somebody subscribes the topic."""
    return bool(publisher.get_subscription_count())


class SensorSubscription(Generic[Message]):
    """Subscription that is as reliable as its publishers allow.

    A best effort subscription matches every publisher, but with the default settings of Fast DDS
    it loses nearly all messages above 0.5 MB, such as sweeps: their fragments do not fit into the
    shared memory at once and are not sent again. So "auto" requests reliable delivery. It falls
    back to best effort while there is a publisher that does not offer it.

    Lost messages and topics with several publishers are counted.

    Args:
        node: owner; its executor runs `callback`.
        statistics: counts events.
        what: names the messages in events, such as "sweeps".
        reliability: "auto", or a fixed one.
        depth: of the queue.

    Raises:
        InputError: the name of the topic or a parameter in `qos_overrides` is wrong.
    """

    def __init__(
        self,
        node: Node,
        kind: type[Message],
        topic: str,
        callback: Callable[[Message], None],
        statistics: SweepStatistics,
        what: str,
        reliability: Reliability = "auto",
        depth: int = 5,
    ) -> None:
        self._node = node
        self._arguments = (kind, topic, callback)
        self._statistics = statistics
        self._what = what
        self._adapts = reliability == "auto"
        self._reliable = reliability != "best_effort"
        self._depth = depth
        self._publishers = 1
        self._ended = False
        with creating(topic):
            self._subscription = self._create()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # runs while simulated time stands still
        self._timer = node.create_timer(_WATCH_PERIOD_S, self._watch, clock=steady)

    @property
    def topic_name(self) -> str:
        """Full name of the topic, remappings applied."""
        return str(self._subscription.topic_name)

    def destroy(self) -> None:
        """End the subscription."""
        self._ended = True
        self._node.destroy_timer(self._timer)
        self._node.destroy_subscription(self._subscription)

    def _create(self) -> Subscription[Message]:
        try:
            return self._subscribe(self._on_lost)
        except UnsupportedEventTypeError:  # of some middlewares
            return self._subscribe(None)

    def _subscribe(
        self, on_lost: Callable[[QoSMessageLostInfo], None] | None
    ) -> Subscription[Message]:
        return self._node.create_subscription(
            *self._arguments,
            sensor(self._reliable, self._depth),
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=self._on_incompatible, message_lost=on_lost
            ),
            qos_overriding_options=QoSOverridingOptions(
                (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)
            ),
        )

    def _on_lost(self, event: QoSMessageLostInfo) -> None:
        self._statistics.note(f"{self._what} lost on the way", event.total_count_change)

    def _on_incompatible(self, event: object) -> None:
        if not self._adapts:
            self._node.get_logger().warning(
                f"a publisher of {self.topic_name} offers less than this subscription requests; "
                "set the parameter input_reliability to best_effort or auto"
            )
        elif self._reliable:
            # Not here: this runs inside the event handler of the subscription to be replaced.
            assert self._node.executor is not None
            self._node.executor.create_task(self._replace, False)

    def _watch(self) -> None:
        """Return to reliable delivery, and point out several publishers."""
        publishers = self._node.get_publishers_info_by_topic(self.topic_name)
        if len(publishers) > max(self._publishers, 1):
            names = ", ".join(sorted(f"{p.node_namespace}/{p.node_name}" for p in publishers))
            self._statistics.complain(
                self._node,
                f"{self._what} of several publishers",
                f"{self.topic_name} is published by {names.replace('//', '/')}; expected one",
            )
        self._publishers = len(publishers)
        weak = [p for p in publishers if p.qos_profile.reliability != ReliabilityPolicy.RELIABLE]
        if self._adapts and not self._reliable and not weak:
            self._replace(reliable=True)

    def _replace(self, reliable: bool) -> None:
        if self._ended or reliable == self._reliable:
            return
        found = "no best effort publisher any more" if reliable else "a best effort publisher"
        self._node.get_logger().info(f"{self.topic_name} has {found}: following")
        before, self._reliable = self._subscription, reliable
        self._subscription = self._create()
        self._node.destroy_subscription(before)
