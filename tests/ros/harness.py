# SPDX-License-Identifier: Apache-2.0
"""A client that talks to nodes over DDS, and the messages that it sends."""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from node_process import TIMEOUT_S, NodeProcess
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2, PointField

from pcseg_core.cloud import encode_cloud, structured
from pcseg_ros.conversions import cloud_message

START_S = 60.0  # of a process on a busy machine
_ANSWER_S = 5.0  # after which a request is repeated
_GOALS = {  # transition -> state after it
    "configure": "inactive",
    "activate": "active",
    "deactivate": "inactive",
    "cleanup": "unconfigured",
    "shutdown": "finalized",
}
RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
PAINTED = (  # the fake takes the labels from the intensities; poses come from odometry
    "checkpoint:=fake:painted=1",
    "intensity_scale:=1.0",
    "diagnostics_period_s:=0.1",
    "motion.source:=odometry",
    "motion.timeout_s:=5.0",
)


class Client:
    """Publishes sweeps to nodes and collects their answers."""

    def __init__(self) -> None:
        rclpy.init()
        self.node = rclpy.create_node("test_client")
        self._services: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the node and its thread."""
        rclpy.try_shutdown()
        self._thread.join(5.0)
        self.node.destroy_node()

    def attach(self, process: NodeProcess, active: bool = True) -> Attachment:
        """Topics and services of a node, once it is active (or just there)."""
        attachment = Attachment(self, process)
        begun = self._service(GetState, process.service("get_state")).service_is_ready
        wait_for(lambda: begun() or process.process.poll() is not None, "a start", START_S)
        attachment.state()  # its services are there
        if active:
            what = f"active; said: {process.output}"
            wait_for(lambda: attachment.state() == "active", what, START_S)
            wait_for(attachment.connected, "topics to match")
        return attachment

    def call(self, kind: Any, name: str, request: Any, tries: int = 1) -> Any:
        """Answer of a service; `tries` beyond 1 repeat the request, which must change nothing."""
        for _ in range(tries):
            answer = self.ask(kind, name, request, TIMEOUT_S / tries)
            if answer is not None:
                return answer
        raise self.no_answer(name)

    def ask(self, kind: Any, name: str, request: Any, timeout_s: float) -> Any:
        """Answer of a service, or None.

        An answer is lost while DDS has not matched the server's writer with our reader yet.
        """
        service = self._service(kind, name)
        assert service.wait_for_service(TIMEOUT_S), f"service {name} does not exist"
        done = threading.Event()
        future = service.call_async(request)
        future.add_done_callback(lambda _: done.set())
        return future.result() if done.wait(timeout_s) else None

    def no_answer(self, name: str) -> AssertionError:
        """The error about a service that does not answer."""
        threads = "\n".join(
            f"{thread.name}:\n" + "".join(traceback.format_stack(frames[thread.ident]))
            for frames in [sys._current_frames()]
            for thread in threading.enumerate()
            if thread.ident in frames
        )
        return AssertionError(f"service {name} does not answer; threads here:\n{threads}")

    def _service(self, kind: Any, name: str) -> Any:
        if name not in self._services:
            self._services[name] = self.node.create_client(kind, name)
        return self._services[name]

    def _spin(self) -> None:
        while rclpy.ok():
            try:
                self._executor.spin()
            except Exception:
                # The executor may find a subscription that a test destroys at the same moment.
                if rclpy.ok():
                    traceback.print_exc()


class Attachment:
    """One node under test, seen from outside."""

    def __init__(self, client: Client, process: NodeProcess) -> None:
        self._client = client
        self._process = process
        self.namespace = process.namespace
        self.received: queue.Queue[PointCloud2] = queue.Queue()
        self.reports: queue.Queue[DiagnosticStatus] = queue.Queue()
        node, space = client.node, process.namespace
        self._publisher = node.create_publisher(PointCloud2, f"{space}/points", RELIABLE)
        self._extra: list[Any] = []
        self.arrivals_s: dict[int, float] = {}  # whole seconds of the stamp -> monotonic clock
        self._output = node.create_subscription(
            PointCloud2, f"{space}/labeled_points", self._on_output, RELIABLE
        )
        self._diagnostics = node.create_subscription(
            DiagnosticArray, "/diagnostics", self._on_report, 10
        )

    def listen(self, kind: type, topic: str, qos: Any = 10) -> queue.Queue[Any]:
        """Messages of one more topic of the node, from when its publisher is found."""
        messages: queue.Queue[Any] = queue.Queue()
        name = f"{self.namespace}/{topic}"
        subscription = self._client.node.create_subscription(kind, name, messages.put, qos)
        self._extra.append(subscription)
        wait_for(lambda: subscription.get_publisher_count(), f"a publisher of {topic}")
        return messages

    def mute(self) -> None:
        """End the subscription of the labeled clouds."""
        self._client.node.destroy_subscription(self._output)

    def deafen(self) -> None:
        """End the subscriptions of `listen`."""
        while self._extra:
            self._client.node.destroy_subscription(self._extra.pop())

    def call(self, kind: Any, name: str, **request: Any) -> Any:
        """Answer of one of the node's private services."""
        return self._client.call(kind, self._process.service(name), kind.Request(**request))

    def connected(self) -> bool:
        """Both directions have found each other."""
        node, space = self._client.node, self._process.namespace
        publishers = node.count_publishers(f"{space}/labeled_points")
        return bool(self._publisher.get_subscription_count() and publishers)

    def send(self, cloud: PointCloud2 | bytes) -> None:
        """Publish a sweep, a message or a serialized one."""
        self._publisher.publish(cloud)

    def exchange(self, cloud: PointCloud2 | bytes, timeout_s: float = TIMEOUT_S) -> PointCloud2:
        """Send a sweep and wait for its answer."""
        self.send(cloud)
        return self.received.get(timeout=timeout_s)

    def state(self) -> str:
        """Lifecycle state by service."""
        response = self._client.call(
            GetState,
            self._process.service("get_state"),
            GetState.Request(),
            tries=round(TIMEOUT_S / _ANSWER_S),
        )
        return str(response.current_state.label)

    def change(self, transition: str | int) -> bool:
        """Ask for a lifecycle transition by its label or id.

        If the answer is lost, the state tells whether the transition took place.
        """
        key = "label" if isinstance(transition, str) else "id"
        request = ChangeState.Request(transition=Transition(**{key: transition}))
        name, before = self._process.service("change_state"), self.state()
        for _ in range(round(TIMEOUT_S / _ANSWER_S)):
            answer = self._client.ask(ChangeState, name, request, _ANSWER_S)
            if answer is not None:
                return bool(answer.success)
            if (now := self.state()) != before:
                return now == _GOALS.get(str(transition))
        raise self._client.no_answer(name)

    def set_parameter(self, name: str, value: Any) -> Any:
        """SetParametersResult of one change."""
        request = SetParameters.Request(parameters=[Parameter(name=name, value=_value(value))])
        service = self._process.service("set_parameters")
        return self._client.call(SetParameters, service, request).results[0]

    def get_parameter(self, name: str) -> ParameterValue:
        """Value of a parameter."""
        request = GetParameters.Request(names=[name])
        service = self._process.service("get_parameters")
        values = self._client.call(GetParameters, service, request).values
        return values[0] if values else ParameterValue()

    def dump_parameters(self) -> dict[str, Any]:
        """All parameters by name, as plain values."""
        names = self._client.call(
            ListParameters, self._process.service("list_parameters"), ListParameters.Request()
        ).result.names
        request = GetParameters.Request(names=names)
        values = self._client.call(
            GetParameters, self._process.service("get_parameters"), request
        ).values
        plain = [parameter_value_to_python(value) for value in values]
        return {n: list(v) if isinstance(v, (array, list)) else v for n, v in zip(names, plain)}

    def describe_parameter(self, name: str) -> Any:
        """Descriptor of a parameter."""
        request = DescribeParameters.Request(names=[name])
        service = self._process.service("describe_parameters")
        return self._client.call(DescribeParameters, service, request).descriptors[0]

    def report(self, accept: Callable[[DiagnosticStatus], bool]) -> DiagnosticStatus:
        """The next diagnostic status of this node that is accepted."""
        end = time.monotonic() + TIMEOUT_S
        while True:
            status = self.reports.get(timeout=max(0.01, end - time.monotonic()))
            if accept(status):
                return status

    def _on_output(self, message: PointCloud2) -> None:
        self.arrivals_s[message.header.stamp.sec] = time.monotonic()
        self.received.put(message)

    def _on_report(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(self._process.namespace.lstrip("/") + "/"):
                self.reports.put(status)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll until a condition holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def value_of(status: DiagnosticStatus, key: str) -> str:
    """One value of a diagnostic status, "" if it is not there."""
    return next((str(v.value) for v in status.values if v.key == key), "")


def sweep(points: int = 1000, stamp: tuple[int, int] = (7, 89), seed: int = 0) -> PointCloud2:
    """A cloud as an Ouster driver lays it out: padded, with fields of many types."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-30, 30, (3, points)).astype(np.float32)
    encoded = encode_cloud(
        {
            "x": xyz[0],
            "y": xyz[1],
            "z": xyz[2],
            "intensity": rng.uniform(0, 1, points).astype(np.float32),
            "t": rng.integers(0, 10**8, points).astype(np.uint32),
            "reflectivity": rng.integers(0, 2**16, points).astype(np.uint16),
            "ring": rng.integers(0, 64, points).astype(np.uint8),
        }
    )
    return stamped(cloud_message(PointCloud2().header, encoded), stamp)


def stamped(cloud: PointCloud2, stamp: tuple[int, int], frame: str = "os_sensor") -> PointCloud2:
    """The cloud with another header."""
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = stamp
    cloud.header.frame_id = frame
    return cloud


def field_of(cloud: PointCloud2, name: str) -> np.ndarray:
    """Values of a field, (N,)."""
    return np.asarray(structured(cloud)[name]).reshape(-1)


def positions(cloud: PointCloud2) -> np.ndarray:
    """(N, 3) coordinates."""
    return np.stack([field_of(cloud, axis) for axis in "xyz"], axis=1)


def layout(cloud: PointCloud2) -> list[tuple[str, int, int, int]]:
    """Fields as plain values."""
    return [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields]


def raw_cloud(**attributes: Any) -> PointCloud2:
    """A small cloud of x, y, z with attributes overridden, for malformed messages."""
    fields = [PointField(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate("xyz")]
    defaults: dict[str, Any] = {
        "height": 1,
        "width": 10,
        "fields": fields,
        "is_bigendian": False,
        "point_step": 12,
        "row_step": 120,
        "data": bytes(120),
        "is_dense": True,
    }
    return stamped(PointCloud2(**(defaults | attributes)), (1, 0))


def _value(value: Any) -> ParameterValue:
    if isinstance(value, bool):
        return ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=value)
    if isinstance(value, int):
        return ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
    if isinstance(value, float):
        return ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
    if isinstance(value, list):
        return ParameterValue(type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=value)
    return ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)
