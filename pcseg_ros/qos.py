# SPDX-License-Identifier: Apache-2.0
"""Quality of service: profiles, and subscriptions that adapt to their publishers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

Message = TypeVar("Message")
Reliability = Literal["auto", "reliable", "best_effort"]


# Functions, not constants: rclpy writes overrides into the profiles.
def sensor(reliable: bool) -> QoSProfile:
    """Profile of sensor inputs, of which only the newest counts.

    The depth is that of the sensor data profile (REP-2003). With depth 1, a sweep is lost if the
    next one begins before all its fragments have arrived.
    """
    kind = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=kind)


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


class SensorSubscription(Generic[Message]):
    """Subscription that is as reliable as its publishers allow.

    A best effort subscription matches every publisher, but with the default settings of Fast DDS
    it loses nearly all messages above 0.5 MB, such as sweeps: their fragments do not fit into the
    shared memory at once and are not sent again. So "auto" requests reliable delivery, and falls
    back to best effort as soon as a publisher does not offer it.

    Args:
        node: owner; its executor runs `callback`.
        reliability: "auto", or a fixed one.
    """

    def __init__(
        self,
        node: Node,
        kind: type[Message],
        topic: str,
        callback: Callable[[Message], None],
        reliability: Reliability = "auto",
    ) -> None:
        self._node = node
        self._arguments = (kind, topic, callback)
        self._may_fall_back = reliability == "auto"
        self._ended = False
        self._subscription = self._create(reliable=reliability != "best_effort")

    @property
    def topic_name(self) -> str:
        """Full name of the topic, remappings applied."""
        return str(self._subscription.topic_name)

    def destroy(self) -> None:
        """End the subscription."""
        self._ended = True
        self._node.destroy_subscription(self._subscription)

    def _create(self, reliable: bool) -> Subscription[Message]:
        return self._node.create_subscription(
            *self._arguments,
            sensor(reliable),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
            qos_overriding_options=QoSOverridingOptions(
                (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)
            ),
        )

    def _on_incompatible(self, event: object) -> None:
        if not self._may_fall_back:
            self._node.get_logger().warning(
                f"a publisher of {self.topic_name} offers less than this subscription requests; "
                "set the parameter input_reliability to best_effort or auto"
            )
            return
        self._may_fall_back = False
        # Not here: this runs inside the event handler of the subscription to be replaced.
        assert self._node.executor is not None
        self._node.executor.create_task(self._fall_back)

    def _fall_back(self) -> None:
        if self._ended:
            return
        self._node.get_logger().info(f"{self.topic_name} has a best effort publisher: following")
        before, self._subscription = self._subscription, self._create(reliable=False)
        self._node.destroy_subscription(before)
