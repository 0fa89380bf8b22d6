# SPDX-License-Identifier: Apache-2.0
"""Memory, threads, files and latency of the node while it processes a bag in a loop.

    python -m benchmarks.soak BAG --minutes 30 --json OUT [--parameter temporal.enabled:=true ...]

Node and player are subprocesses that communicate over DDS. The warm-up (--warm-up) does not count:
libraries allocate, and the heap grows until it holds the buffers of all sweeps. Growth is the
median of the last tenth of the samples minus that of the first tenth after the warm-up, so that
single sweeps do not matter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pcseg_core.data.bag import BagRecording
from pcseg_core.errors import PcsegError
from pcseg_core.files import write_atomic
from pcseg_ros.subprocesses import applied, local_domain, run_module

NODE = "pcseg_ros"
_START_S = 180.0
LIMIT_MB = 20.0
LIMIT_THREADS = 0
LIMIT_FILES = 0


def process_state(pid: int) -> dict[str, float]:
    """Resident memory (MB), threads and open files of a process, from /proc."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        "rss_mb": int(values["VmRSS"].split()[0]) * 1024 / 1e6,
        "threads": int(values["Threads"]),
        "files": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
    }


class Watcher:
    """Subscribes the labeled clouds and the reports of the node.

    Args:
        overlays: cameras whose overlays are subscribed too.
        environment: with the ROS domain.
    """

    def __init__(self, overlays: list[str], environment: Mapping[str, str]) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import Image, PointCloud2

        from pcseg_ros.health import NodeHealth

        with applied(environment):
            rclpy.init(args=[])
        self.node = rclpy.create_node("soak", start_parameter_services=False, enable_rosout=False)
        self.sweeps = self.overlays = 0
        self.node.create_subscription(
            PointCloud2, "/soak/labeled_points", self._on_cloud, QoSProfile(depth=5)
        )
        for camera in overlays:
            self.node.create_subscription(Image, f"/soak/overlay/{camera}", self._on_overlay, 5)
        self.health = NodeHealth(self.node, "/soak/segment_node")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def close(self) -> None:
        """End the node of this process."""
        import rclpy

        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def _on_cloud(self, message: Any) -> None:
        self.sweeps += 1

    def _on_overlay(self, message: Any) -> None:
        self.overlays += 1

    def spin(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Spin until a condition holds, or for a time. True if it holds."""
        end = time.monotonic() + limit_s
        while not until() and time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.1)
        return until()


def soak(
    bag: Path,
    checkpoint: str,
    minutes: float,
    period_s: float,
    rate: float,
    more: list[str],
    overlays: list[str],
) -> list[dict[str, float]]:
    """Samples of the running node, one every `period_s`."""
    topic = BagRecording(bag, camera_topics=[], poses="none").cloud_topic
    samples: list[dict[str, float]] = []
    logs = Path(os.environ.get("TMPDIR", "/tmp")) / f"soak-{os.getpid()}"
    environment = local_domain()
    given = [f"checkpoint:={checkpoint}", *more] if checkpoint else more
    parameters = [part for text in given for part in ("-p", text)]
    remapped = ["-r", f"points:={topic}", "-r", "__ns:=/soak", "-r", "odometry:=/odometry"]
    command = [NODE, "--ros-args", *parameters, *remapped]
    with (
        closing(Watcher(overlays, environment)) as watcher,
        run_module(command, environment, logs / "node.log") as node,
    ):
        health = watcher.health
        watcher.spin(lambda: health.active or health.failed or node.poll() is not None, _START_S)
        if not health.active:
            raise PcsegError(f"the node did not become active; see {logs / 'node.log'}")
        play = ["pcseg_ros.bag_play", str(bag), "--loop", "--rate", str(rate)]
        with run_module([*play, "--wait-for-subscriber"], environment, logs / "player.log"):
            begin = time.monotonic()
            while (elapsed := time.monotonic() - begin) < 60 * minutes:
                watcher.spin(lambda: False, period_s)
                if node.poll() is not None:
                    raise PcsegError(f"the node ended after {elapsed:.0f} s; see {logs}")
                samples.append(_sample(elapsed, node.pid, watcher))
                _show(samples[-1], minutes)
    return samples


def _sample(elapsed: float, pid: int, watcher: Watcher) -> dict[str, float]:
    latency = {
        key: float(watcher.health.values.get(f"{stage} {p} (ms)", "nan"))
        for key, stage, p in (
            ("latency_ms", "latency", "p50"),
            ("latency_p95_ms", "latency", "p95"),
            ("inference_ms", "inference", "p50"),
            ("queue_ms", "queue", "p50"),
        )
    }
    state = process_state(pid)
    return {
        "time_s": elapsed,
        "sweeps": watcher.sweeps,
        "overlays": watcher.overlays,
        **state,
        **latency,
    }


def _show(sample: dict[str, float], minutes: float) -> None:
    if sys.stderr.isatty():
        text = f"{sample['time_s'] / 60:.1f} of {minutes:g} min, {sample['rss_mb']:.0f} MB"
        print(f"\r{text}, {sample['sweeps']:.0f} sweeps", end="", file=sys.stderr)


def judge(samples: list[dict[str, float]], warm_up_s: float) -> dict[str, float]:
    """Growth from the end of the warm-up to the end of the run, and the latencies at both."""
    kept = [s for s in samples if s["time_s"] >= warm_up_s]
    if len(kept) < 10:
        raise PcsegError("too short: at least 10 samples are needed after the warm-up")
    tenth = max(1, len(kept) // 10)
    first, last = kept[:tenth], kept[-tenth:]
    result: dict[str, float] = {"minutes": samples[-1]["time_s"] / 60, "sweeps": last[-1]["sweeps"]}
    result["overlays"] = last[-1]["overlays"]
    for key in ("rss_mb", "threads", "files", "latency_ms", "latency_p95_ms", "inference_ms"):
        start, end = (float(np.median([s[key] for s in part])) for part in (first, last))
        result |= {f"{key}_start": start, f"{key}_end": end}
    result["rss_growth_mb"] = result["rss_mb_end"] - result["rss_mb_start"]
    result["rss_max_mb"] = max(s["rss_mb"] for s in kept)
    return result


def main() -> int:
    """Run, print and write the figures; 1 if the node grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("--checkpoint", default="", help="run directory; the bundled one if empty")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-up", type=float, default=10.0, help="minutes that do not count")
    parser.add_argument("--period", type=float, default=5.0, help="between samples, s")
    parser.add_argument("--rate", type=float, default=1.0, help="speed of the bag")
    parser.add_argument("--parameter", action="append", default=[], help="name:=value, of the node")
    parser.add_argument("--overlay", action="append", default=[], help="camera to subscribe")
    parser.add_argument("--json", type=Path, required=True)
    chosen = parser.parse_args()
    try:
        samples = soak(
            chosen.bag,
            chosen.checkpoint,
            chosen.minutes,
            chosen.period,
            chosen.rate,
            chosen.parameter,
            chosen.overlay,
        )
        result = judge(samples, 60 * chosen.warm_up)
    except PcsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomic(chosen.json, json.dumps({"result": result, "samples": samples}, indent=1))
    for key, value in result.items():
        print(f"{key:20s} {value:10.2f}")
    grew = (
        result["rss_growth_mb"] > LIMIT_MB
        or result["threads_end"] - result["threads_start"] > LIMIT_THREADS
        or result["files_end"] - result["files_start"] > LIMIT_FILES
    )
    return int(grew)


if __name__ == "__main__":
    sys.exit(main())
