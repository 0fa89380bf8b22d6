# SPDX-License-Identifier: Apache-2.0
"""Play a bag over DDS to a `segment_node` of its own and collect its answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2

from pcseg_core.cloud import structured
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import ODOMETRY
from pcseg_core.errors import PcsegError
from pcseg_core.evaluation.live import ReplayResult
from pcseg_core.labels import from_wire
from pcseg_ros.children import quiet_domain, run_module, tail
from pcseg_ros.conversions import stamp_ns
from pcseg_ros.health import NodeHealth

_START_S = 120.0  # torch and the network load, on a busy machine
_GRACE_S = 20.0  # beyond the length of the bag, for the player to start and the last answers
_REPORT_S = 5.0


def replay(
    bag: Path, checkpoint: Path, logs: Path, params: Path | None = None, rate: float = 1.0
) -> ReplayResult:
    """Start a node and a player as processes, and return what the node published.

    They talk over DDS on this machine alone, in a ROS domain drawn by chance.

    Args:
        bag: bag whose sweeps are played.
        checkpoint: what the node loads.
        logs: folder that gets node.log and player.log.
        params: ROS parameter file of the node; all topics of the bag are played then, for it may
            want images and motion. None plays the sweeps alone to a node with default parameters.
        rate: speed; 1 is as recorded.

    Raises:
        PcsegError: the node or the player ended, or did not answer in time; names its log.
    """
    recording = BagRecording(bag, camera_topics=[], poses="none")
    topic, count = recording.cloud_topic, len(recording)
    lasts_s = (recording[count - 1].stamp_ns - recording[0].stamp_ns) * 1e-9 / rate
    with quiet_domain() as environment, _Listener() as listener:
        node = ["pcseg_ros", "--ros-args", *(["--params-file", str(params)] if params else [])]
        node += ["-p", f"checkpoint:={checkpoint}"]
        remapped = ["-r", f"points:={topic}", "-r", "__ns:=/demo"]
        player = ["pcseg_ros.bag_play", str(bag), "--wait-for-subscriber"]
        if params is None:
            player += ["--topics", topic]
        for odometry in recording.bag.of_type(ODOMETRY)[:1]:
            remapped += ["-r", f"odometry:={odometry}"]
        with run_module([*node, *remapped], environment, logs / "node.log") as running:
            listener.wait(listener.active, _START_S, running, logs / "node.log")
            command = [*player, "--rate", str(rate)]
            with run_module(command, environment, logs / "player.log") as playing:
                deadline = lasts_s + _GRACE_S
                listener.wait(lambda: not playing(), deadline, running, logs / "node.log")
            listener.try_wait(lambda: listener.accounted(count), _REPORT_S)
    heard = listener.clouds
    labels = {stamp_ns(m.header): from_wire(structured(m)["label"]).ravel() for m in heard}
    dropped = listener.drops()
    lost = count - len(labels) - sum(dropped.values())
    if lost > 0:
        dropped["lost on the way"] = lost
    return ReplayResult("DDS", count, labels, dropped, listener.stages())


class _Listener:
    """Hears what the node publishes, in a context of its own."""

    def __init__(self) -> None:
        self.clouds: list[PointCloud2] = []
        self._context = Context()

    def __enter__(self) -> _Listener:
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
        """Of the node's last report."""
        return self._health.values

    def active(self) -> bool:
        """The node works and its answers would arrive."""
        return self._health.active and self._node.count_publishers("/demo/labeled_points") > 0

    def accounted(self, count: int) -> bool:
        """The node's last report covers all sweeps, and their answers are here."""
        answered = int(self.values.get("sweeps published", 0))
        return answered <= len(self.clouds) and answered + sum(self.drops().values()) >= count

    def drops(self) -> dict[str, int]:
        """Sweeps that the node dropped, by reason."""
        return {k[9:]: int(v) for k, v in self.values.items() if k.startswith("dropped: ")}

    def stages(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile of each stage in the node [ms]."""
        names = [k.removesuffix(" p50 (ms)") for k in self.values if k.endswith(" p50 (ms)")]
        kept = [name for name in names if name != "age"]  # the bag's stamps are of another day
        return {n: tuple(float(self.values[f"{n} {p} (ms)"]) for p in ("p50", "p95")) for n in kept}  # type: ignore[misc]

    def wait(
        self, condition: Callable[[], bool], limit_s: float, running: Callable[[], bool], log: Path
    ) -> None:
        """Spin until a condition holds.

        Raises:
            PcsegError: it does not within the limit, or the node ended.
        """
        self.try_wait(lambda: condition() or bool(self._health.fault) or not running(), limit_s)
        if self._health.fault:
            raise PcsegError(f"the node is {self._health.fault}")
        if not running() or not condition():
            reason = f"gave no answer within {limit_s:.0f} s" if running() else "ended"
            raise PcsegError(f"the node {reason}; it said:\n{tail(log)}")

    def try_wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Spin until a condition holds, or for `limit_s`; whether it does."""
        deadline = time.monotonic() + limit_s
        while not (met := condition()) and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.05)
        return met
