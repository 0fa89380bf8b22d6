# SPDX-License-Identifier: Apache-2.0
"""Play a bag over DDS to a `segment_node` and collect the labels that it publishes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2

from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import ODOMETRY, TF
from pcseg_core.errors import PcsegError
from pcseg_core.evaluation.live import LIDAR_OPTIONS, ReplayResult
from pcseg_ros.conversions import read_labels, stamp_ns
from pcseg_ros.health import NodeHealth
from pcseg_ros.subprocesses import applied, local_domain, run_module, tail

_START_S = 120.0  # loading torch and the network on a busy machine
_GRACE_S = 20.0  # beyond the duration of the bag: start of the player, last labels
_REPORT_S = 5.0


def replay(
    bag: Path,
    checkpoint: Path,
    logs: Path,
    params: Path | None = None,
    lidars: Mapping[str, Any] | None = None,
    rate: float = 1.0,
) -> ReplayResult:
    """Run a node and a player as subprocesses, in a local ROS domain.

    Args:
        bag: bag whose sweeps are played.
        checkpoint: checkpoint of the node.
        logs: folder for node.log and player.log.
        params: ROS parameter file of the node, which then gets all topics of the bag; None plays
            the sweeps, of several LiDARs with the transforms, to a node with default parameters.
        lidars: options of `BagRecording` that unite the sweeps of several LiDARs; the node does
            the same.
        rate: speed; 1 is as recorded.

    Raises:
        PcsegError: the node or the player ended or did not answer in time; with its last output.
    """
    recording = BagRecording(bag, camera_topics=[], poses="none", **(lidars or {}))
    count = len(recording)
    lasts_s = (recording[count - 1].stamp_ns - recording[0].stamp_ns) * 1e-9 / rate
    node, player = _commands(recording, checkpoint, params, rate, lidars or {})
    environment, log = local_domain(), logs / "node.log"
    with _Listener(environment) as listener, run_module(node, environment, log) as process:
        listener.wait(listener.active, _START_S, process, log)
        with run_module(player, environment, logs / "player.log") as playing:
            listener.wait(lambda: playing.poll() is not None, lasts_s + _GRACE_S, process, log)
        listener.try_wait(lambda: listener.accounted(count), _REPORT_S)
    labels = {stamp_ns(message.header): read_labels(message) for message in listener.clouds}
    for stamp in labels.keys() - set(recording.clouds.stamps_ns.tolist()):
        del labels[stamp]  # without its first LiDAR a sweep has another stamp
    dropped = listener.drops()
    lost = count - len(labels) - sum(dropped.values())
    if lost > 0:
        dropped["lost on the way"] = lost
    return ReplayResult("DDS", count, labels, dropped, listener.stages())


def _commands(
    recording: BagRecording,
    checkpoint: Path,
    params: Path | None,
    rate: float,
    lidars: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """Modules with arguments: the node, and the player of the recording."""
    node = ["pcseg_ros", "--ros-args", *(["--params-file", str(params)] if params else [])]
    node += ["-p", f"checkpoint:={checkpoint}", "-r", "__ns:=/demo"]
    topics = list(recording.cloud_topics)
    if len(topics) == 1:
        node += ["-r", f"points:={topics[0]}"]
    node += _reading(topics, recording.body, lidars)
    for odometry in recording.bag.of_type(ODOMETRY)[:1]:
        node += ["-r", f"odometry:={odometry}"]
    player = ["pcseg_ros.bag_play", str(recording.path), "--wait-for-subscriber"]
    player += ["--rate", str(rate)]
    if len(topics) > 1:  # the node needs their places
        topics += recording.bag.of_type(TF)
    for topic in topics if params is None else ():
        player += ["--topics", topic]
    return node, player


def _reading(topics: Sequence[str], body: Sequence[float], lidars: Mapping[str, Any]) -> list[str]:
    """Arguments of a node that takes the sweeps of these topics as the reader of the bag does."""
    several = {**lidars, "cloud_topic": f"[{', '.join(map(repr, topics))}]"}
    values = {**(several if len(topics) > 1 else {}), "body": list(body) or ""}
    if "max_lidar_offset_s" in values:
        values["max_lidar_offset_s"] = float(values["max_lidar_offset_s"])  # as ROS wants a double
    given = [f"{LIDAR_OPTIONS[option]}:={value}" for option, value in values.items() if value != ""]
    return [word for parameter in given for word in ("-p", parameter)]


class _Listener:
    """Subscribes the outputs of the node, in a context of its own.

    Args:
        environment: with the ROS domain.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.clouds: list[PointCloud2] = []
        self._context = Context()
        self._environment = environment

    def __enter__(self) -> _Listener:
        with applied(self._environment):
            rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(
            "replay", context=self._context, start_parameter_services=False, enable_rosout=False
        )
        reliable = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(
            PointCloud2, "/demo/labeled_points", self.clouds.append, reliable
        )
        self._health = NodeHealth(self._node, "/demo/segment_node")
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    @property
    def values(self) -> dict[str, str]:
        """Values of the node's last report."""
        return self._health.values

    def active(self) -> bool:
        """The node is active and its labels would arrive."""
        return self._health.active and self._node.count_publishers("/demo/labeled_points") > 0

    def accounted(self, count: int) -> bool:
        """The node's last report covers all sweeps, and their labels have arrived."""
        answered = int(self.values.get("sweeps published", 0))
        return answered <= len(self.clouds) and answered + sum(self.drops().values()) >= count

    def drops(self) -> dict[str, int]:
        """Dropped sweeps by reason."""
        return {k[9:]: int(v) for k, v in self.values.items() if k.startswith("dropped: ")}

    def stages(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile of each stage in the node [ms]."""
        names = [k.removesuffix(" p50 (ms)") for k in self.values if k.endswith(" p50 (ms)")]
        kept = [name for name in names if name != "age"]  # the stamps of the bag are old
        return {name: (self._stage(name, "p50"), self._stage(name, "p95")) for name in kept}

    def _stage(self, name: str, percentile: str) -> float:
        return float(self.values[f"{name} {percentile} (ms)"])

    def wait(
        self,
        condition: Callable[[], bool],
        limit_s: float,
        node: subprocess.Popen[bytes],
        log: Path,
    ) -> None:
        """Spin until a condition holds.

        Raises:
            PcsegError: it does not hold within the limit, or the node ended.
        """

        def running() -> bool:
            return node.poll() is None

        self.try_wait(lambda: condition() or self._health.failed or not running(), limit_s)
        if self._health.fault:
            raise PcsegError(f"the node is {self._health.fault}")
        if not running() or not condition():
            reason = f"gave no answer within {limit_s:.0f} s" if running() else "ended"
            raise PcsegError(f"the node {reason}; its last output:\n{tail(log)}")

    def try_wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Spin until a condition holds, or for `limit_s`. True if it holds."""
        deadline = time.monotonic() + limit_s
        while not (met := condition()) and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.05)
        return met
