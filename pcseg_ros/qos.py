# SPDX-License-Identifier: Apache-2.0
"""Quality of service of the topics. Fresh objects: rclpy writes overrides into them."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def sensor(reliable: bool) -> QoSProfile:
    """For sensor input, of which only the newest counts.

    The depth is that of the sensor data profile (REP-2003): with depth 1 a sweep whose fragments
    are not all there yet is lost as soon as the next one begins. The node itself skips to the
    newest, and counts.
    """
    kind = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=kind)


def result() -> QoSProfile:
    """For output: reliable matches every subscriber.

    With as many as this kept for those that have not taken them yet, a recorder that is held up
    for half a second misses none.
    """
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE
    )


def latched(depth: int = 1) -> QoSProfile:
    """For what is published once: late subscribers get it too."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
