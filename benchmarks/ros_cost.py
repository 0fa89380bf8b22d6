# SPDX-License-Identifier: Apache-2.0
"""Time that ROS adds to a sweep: from message to arrays, and from labels to message.

    python -m benchmarks.ros_cost --points 125000 --json OUT

Stages: `deserialize` (bytes from DDS to a message), `read` (message to arrays), `encode` (labels
and confidence to a message) and `publish` (message to DDS, with a subscriber in this process).
Judge by the CPU time of the thread; the wall time depends on the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sweeps import load_sweep
from pcseg_core.cloud import encode_cloud
from pcseg_core.files import write_atomic
from pcseg_ros.process import keep_freed_memory

LIMIT_MS = 5.0


def random_sweep(points: int) -> np.ndarray:
    """(N, 4) x, y, z, intensity."""
    rng = np.random.default_rng(0)
    return np.hstack([rng.uniform(-60, 60, (points, 3)), rng.uniform(0, 1, (points, 1))])


def driver_message(points: np.ndarray) -> Any:
    """A cloud with the fields of a Velodyne driver: x, y, z, intensity, ring, time (22 bytes)."""
    from std_msgs.msg import Header

    from pcseg_ros.conversions import cloud_message

    columns = dict(zip(("x", "y", "z", "intensity"), points.T.astype(np.float32)))
    ring = np.arange(len(points), dtype=np.uint16) % 64
    times = np.linspace(0, 0.1, len(points), dtype=np.float32)
    return cloud_message(Header(), encode_cloud({**columns, "ring": ring, "time": times}))


class Clock:
    """Wall and CPU time of named stages, ms."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        """Run a stage and record its times."""
        wall, cpu = time.perf_counter(), time.thread_time()
        result = work()
        self.cpu.setdefault(stage, []).append(1e3 * (time.thread_time() - cpu))
        self.wall.setdefault(stage, []).append(1e3 * (time.perf_counter() - wall))
        return result

    def table(self) -> dict[str, dict[str, float]]:
        """Medians of each stage, and of the sum of all stages."""
        result: dict[str, dict[str, float]] = {}
        for kind, times in (("wall_ms", self.wall), ("cpu_ms", self.cpu)):
            totals = [sum(run) for run in zip(*times.values())]
            for stage, values in {**times, "total": totals}.items():
                result.setdefault(stage, {})[kind] = statistics.median(values)
        return result


def measure(points: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of all stages, without the first rounds."""
    import rclpy
    from rclpy.serialization import deserialize_message, serialize_message
    from sensor_msgs.msg import PointCloud2

    from pcseg_ros import qos
    from pcseg_ros.conversions import labeled_message, read_sweep

    keep_freed_memory()
    rclpy.init(args=[])
    node = rclpy.create_node("ros_cost")
    publisher = node.create_publisher(PointCloud2, "cost", qos.result())
    node.create_subscription(PointCloud2, "cost", lambda _: None, 1)
    raw = serialize_message(driver_message(points))
    labels = np.arange(len(points), dtype=np.int32) % 8
    confidence = np.full(len(points), 0.9, np.float32)
    clock = Clock()
    for number in range(rounds + 5):
        if number == 5:
            clock = Clock()
        message = clock.time("deserialize", partial(deserialize_message, raw, PointCloud2))
        clock.time("read", partial(read_sweep, message, 0.0))
        answer = clock.time("encode", partial(labeled_message, message, labels, confidence))
        clock.time("publish", partial(publisher.publish, answer))
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.try_shutdown()
    return clock.table()


def main() -> int:
    """Measure, print, write; 1 if the median CPU time exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, help="(N, 4) sweep; random points without")
    parser.add_argument("--points", type=int, default=125_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    points = load_sweep(chosen.sweep) if chosen.sweep else random_sweep(chosen.points)
    table = measure(points, chosen.rounds)
    for stage, times in table.items():
        print(f"{stage:12s} {times['wall_ms']:7.2f} ms wall {times['cpu_ms']:7.2f} ms CPU")
    if chosen.json:
        write_atomic(chosen.json, json.dumps({"points": len(points), "stages": table}, indent=1))
    return int(table["total"]["cpu_ms"] > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
