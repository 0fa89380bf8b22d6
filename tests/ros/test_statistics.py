# SPDX-License-Identifier: Apache-2.0
"""Counters, percentiles and the diagnostic status that follows from them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

import rclpy
from rclpy.context import Context
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2

from pcseg_ros.diagnostics import Summary, SweepStatistics, judge, values_of
from pcseg_ros.qos import SensorSubscription


def test_rates_are_taken_between_two_summaries() -> None:
    now = [100.0]
    statistics = SweepStatistics(clock=lambda: now[0])
    for _ in range(10):
        statistics.receive()
    statistics.drop("late")
    for milliseconds in range(1, 10):
        statistics.publish({"latency": float(milliseconds)})
    now[0] = 102.0
    first = statistics.summary()
    assert (first.received, first.recent_received, first.elapsed_s) == (10, 10, 2.0)
    assert first.published == 9
    assert first.stages["latency"] == pytest.approx((5.0, 8.6))  # 95 % between 8 and 9
    statistics.drop("late", 3)
    statistics.drop("malformed")
    now[0] = 103.0
    second = statistics.summary()
    assert (second.received, second.recent_received, second.recent_published) == (10, 0, 0)
    assert second.dropped == {"late": 4, "malformed": 1}
    assert second.recent_drops == {"late": 3, "malformed": 1}
    assert second.elapsed_s == 1.0


def test_latencies_cover_the_last_200_sweeps() -> None:
    statistics = SweepStatistics()
    for value in [1000.0] * 200 + [1.0] * 200:
        statistics.publish({"latency": value})
    assert statistics.summary().stages["latency"] == (1.0, 1.0)


def test_an_event_is_logged_when_it_begins_and_counted_while_it_lasts() -> None:
    now, lines = [0.0], []
    logger = SimpleNamespace(warning=lines.append)
    node = SimpleNamespace(get_logger=lambda: logger)
    statistics = SweepStatistics(clock=lambda: now[0])
    for now[0] in np.arange(0.0, 120.0, 0.1):
        statistics.complain(node, "motion not known", f"{now[0]:.0f} s")
        statistics.complain(node, "camera front left out", "no CameraInfo")
    assert [line.split(" (")[0] for line in lines] == [
        "motion not known: 0 s",
        "camera front left out: no CameraInfo",
    ]
    now[0] += 61.0
    statistics.complain(node, "motion not known", "x" * 10_000)
    assert len(lines) == 3
    summary = statistics.summary()
    assert summary.events == {"motion not known": 1201, "camera front left out": 1200}
    values = values_of(summary)
    assert values["reason: camera front left out"] == "no CameraInfo"
    assert values["reason: motion not known"] == "x" * 500


OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"


@pytest.mark.parametrize(
    "state, fault, summary, level, message",
    [
        ("unconfigured", "", Summary(), OK, "unconfigured"),
        ("unconfigured", "not configured: x", Summary(), ERROR, "not configured: x"),
        ("active", "", Summary(), WARN, "no sweeps received"),
        ("active", "", Summary(recent_received=10, recent_published=10), OK, "labeling"),
        ("active", "", Summary(recent_received=10, recent_drops={"malformed": 1}), OK, "labeling"),
        (
            "active",
            "",
            Summary(recent_received=10, recent_drops={"malformed": 2}),
            WARN,
            "sweeps dropped (malformed: 2)",
        ),
        (
            "active",
            "",
            Summary(recent_received=10, recent_drops={"inference failed": 1}),
            ERROR,
            "inference failed: 1 sweeps",
        ),
        (
            "active",
            "",
            Summary(recent_received=10, recent_drops={"nobody subscribes": 10}),
            OK,
            "idle: nobody subscribes",
        ),
        (
            "active",
            "",
            Summary(recent_received=100, recent_events={"confidence not finite": 1}),
            ERROR,
            "confidence not finite: 1 sweeps",
        ),
        (
            "active",
            "",
            Summary(recent_received=10, recent_events={"input unlike the training": 2}),
            WARN,
            "input unlike the training: 2",
        ),
    ],
)
def test_status_of_the_node(
    state: str, fault: str, summary: Summary, level: bytes, message: str
) -> None:
    assert judge(state, fault, summary) == (level, message)


def test_lost_messages_are_counted() -> None:
    """By the event of the middleware, which tests cannot provoke at will."""
    context, statistics = Context(), SweepStatistics()
    rclpy.init(context=context)
    node = Node("probe", context=context)
    made = SensorSubscription(node, PointCloud2, "points", print, statistics, "sweeps")
    made._on_lost(SimpleNamespace(total_count=5, total_count_change=3))
    assert statistics.summary().events == {"sweeps lost on the way": 3}
    made.destroy()
    node.destroy_node()
    rclpy.try_shutdown(context=context)
