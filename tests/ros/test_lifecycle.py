# SPDX-License-Identifier: Apache-2.0
"""Lifecycle transitions by service, failures to configure, quality of service, overload."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

import rclpy
from harness import Client, NodeProcess, field_of, stamped, sweep, value_of, wait_for
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import GetState
from node_process import new_namespace
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2

from pcseg_ros.config import NodeConfig
from pcseg_ros.parameter_file import read


def test_the_whole_life_by_service(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "autostart:=false") as process:
        node = client.attach(process, active=False)
        assert node.state() == "unconfigured"
        assert not node.change("activate")
        assert node.change("configure") and node.state() == "inactive"
        wait_for(node.connected, "topics to match")
        node.send(sweep(10))
        with pytest.raises(queue.Empty):
            node.received.get(timeout=0.3)
        assert node.change("activate") and node.state() == "active"
        assert node.exchange(sweep(10)).width == 10
        assert node.change("deactivate") and node.state() == "inactive"
        assert node.change("activate") and node.exchange(sweep(11)).width == 11
        assert node.change("deactivate") and node.change("cleanup")
        assert node.state() == "unconfigured"
        assert node.get_parameter("class_names").type == 0  # not set: no checkpoint
        assert node.change("configure") and node.change("activate")
        wait_for(node.connected, "topics to match")
        assert node.exchange(sweep(12)).width == 12
        assert node.change("shutdown") and node.state() == "finalized"
        assert process.stop()[0] == 0


def test_transitions_that_the_state_does_not_allow_are_refused(client: Client) -> None:
    """As a lifecycle manager requests them from a node that starts by itself."""
    by_label = ("configure", "activate", "cleanup", "destroy", "unknown")
    by_id = (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP, 250)
    with NodeProcess("checkpoint:=fake") as process:
        node = client.attach(process)
        granted = [t for t in (*by_label, *by_id) if node.change(t)]
        assert granted == []
        assert node.state() == "active"
        assert node.exchange(sweep(10)).width == 10
        assert "Traceback" not in process.output


def test_missing_checkpoint_leaves_the_node_unconfigured_and_says_why(client: Client) -> None:
    with NodeProcess("checkpoint:=runs/none", "diagnostics_period_s:=0.2") as process:
        node = client.attach(process, active=False)
        wait_for(lambda: "no checkpoint at 'runs/none'" in process.output, "the message")
        assert node.state() == "unconfigured"
        assert not node.change("configure")
        assert node.state() == "unconfigured"
        status = node.report(lambda status: status.level == status.ERROR)
        assert "no checkpoint at 'runs/none'" in status.message
        assert "Traceback" not in process.output
        assert process.stop()[0] == 0


@pytest.mark.parametrize(
    "parameter, words",
    [
        ("min_confidence:=2.0", "'min_confidence' is 2.0"),
        ("backend:=cudnn", "'backend' is 'cudnn'"),
        ("device:=tpu", "'device' is 'tpu'"),
        ("diagnostics_period_s:=often", "'diagnostics_period_s' is 'often'"),
        ("motion.stamp_is:=end", "'motion.stamp_is' is now called 'stamp_reference'"),
        ("temporal.new_evidence:=0.1", "'temporal.new_evidence' is now called 'correlation"),
        ("teacher.trust:=1.0", "'teacher.trust' is now called 'camera_weight'"),
        ("instance_classes:=vehicle", "expected a list, such as ['vehicle']"),
        ("clouds.filtered_points.min_confidence:=0.5", "expected a list, such as [0.5]"),
        ("filter_classes:=['vehicle']", "is now called 'clouds.filtered_points.classes'"),
        ("clouds.names:=['points']", "'points' cannot be the name of a cloud"),
        ("clouds.filtered_points.min_confidence:=[0.5, 2.0]", "expected numbers from 0 to 1"),
        ("motion.fixed_frame:=''", "'motion.fixed_frame' is ''"),
        ("points.body:=[0.0, 0.0, 1.0]", "expected x_min, y_min, z_min, x_max, y_max, z_max"),
    ],
)
def test_wrong_parameters_end_the_start_with_one_line(parameter: str, words: str) -> None:
    with NodeProcess(parameter, "checkpoint:=fake") as process:
        assert process.process.wait(20) == 2
        process._reader.join(1)
        assert words in process.output
        assert "Traceback" not in process.output


def test_empty_lists_of_a_parameter_file_are_defaults(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("/**: {ros__parameters: {checkpoint: fake, prompts: [], instance_classes: []}}")
    with NodeProcess(params=file) as process:
        node = client.attach(process)
        assert list(node.get_parameter("instance_classes").string_array_value) == [
            "vehicle",
            "person",
        ]
        assert "parameter 'prompts' is empty: its default is used" in process.output


def test_dumped_parameters_can_be_loaded(client: Client, tmp_path: Path) -> None:
    """As `ros2 param dump` writes them."""
    own = lambda values: {n: v for n, v in values.items() if not n.startswith("qos")}  # noqa: E731
    file = tmp_path / "dumped.yaml"
    with NodeProcess("checkpoint:=fake", "min_confidence:=0.25") as process:
        node = client.attach(process)
        dumped = node.dump_parameters()
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": dumped}}))
    assert "cameras.topics" in dumped and "class_names" in dumped
    with NodeProcess(params=file) as process:
        node = client.attach(process)
        assert node.exchange(sweep(10)).width == 10
        assert own(node.dump_parameters()) == own(dumped)
        assert "unknown" not in process.output
    assert read(file) == NodeConfig(checkpoint="fake", min_confidence=0.25)


def test_unknown_class_of_the_filter_is_refused_at_configuring(client: Client) -> None:
    for given, why in (
        ("clouds.filtered_points.classes:=['vehicle', 'unicorn']", "classes: unknown class"),
        ("output.probabilities:=['unicorn']", "output.probabilities: unknown class"),
        ("instance_classes:=['unicorn']", "instance_classes: unknown class"),
    ):
        with NodeProcess("checkpoint:=fake", given) as process:
            node = client.attach(process, active=False)
            wait_for(lambda why=why: f"{why} 'unicorn'" in process.output, "the reason")
            assert node.state() == "unconfigured"


def test_a_node_without_autostart_says_what_to_do(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "autostart:=false") as process:
        command = f"ros2 lifecycle set {process.namespace}/segment_node configure"
        wait_for(lambda: command in process.output, "the command")


@contextlib.contextmanager
def newcomer() -> Iterator[Node]:
    """A node that joins now, so that DDS tells it what there is.

    Fast DDS may keep for ever what ended while two processes still discovered each other.
    """
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("newcomer", context=context)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_wrong_names_and_qos_of_topics_are_refused_and_leave_nothing(client: Client) -> None:
    space = new_namespace()
    motion = ("temporal.enabled:=true", "motion.source:=odometry")
    history = f"qos_overrides.{space}/points.subscription.history:=keep_everything"
    with NodeProcess("checkpoint:=fake", *motion, history, namespace=space) as process:
        node = client.attach(process, active=False)
        refused = "not configured: topic 'points': Unexpected QoS override for policy `history`"
        wait_for(lambda: refused in process.output, "the reason")
        assert not node.change("configure")
        assert "Traceback" not in process.output
        with newcomer() as observer:
            service = process.service("get_state")
            known = observer.create_client(GetState, service).service_is_ready
            wait_for(lambda: known() and observer.count_publishers("/diagnostics"), "the node")
            topics = (f"{space}/odometry", f"{space}/points")
            wait_for(lambda: not any(map(observer.count_subscribers, topics)), "an end of inputs")


def test_unknown_parameter_is_pointed_out_and_whole_numbers_are_floats(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "min_confidense:=0.3", "max_age_s:=0") as process:
        client.attach(process)
        assert "did you mean 'min_confidence'?" in process.output
    with NodeProcess("checkpoint:=fake", "temporal:=true") as process:
        client.attach(process)
        assert "did you mean 'temporal.enabled'?" in process.output


@pytest.mark.parametrize("reliability", ["auto", "best_effort"])
def test_follows_a_best_effort_publisher(client: Client, reliability: str) -> None:
    with NodeProcess("checkpoint:=fake", f"input_reliability:={reliability}") as process:
        node = client.attach(process)
        weak = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        publisher = client.node.create_publisher(PointCloud2, f"{process.namespace}/points", weak)
        try:
            wait_for(publisher.get_subscription_count, "the node to follow")

            def answered(points: int) -> bool:
                publisher.publish(sweep(points))  # lost while the node has not matched it yet
                with contextlib.suppress(queue.Empty):
                    return bool(node.received.get(timeout=1.0).width == points)
                return False

            wait_for(lambda: answered(10), "an answer to the best effort publisher")
            node.send(sweep(11))  # the reliable one still matches
            wait_for(lambda: node.received.get(timeout=5).width == 11, "an answer to the other")
        finally:
            client.node.destroy_publisher(publisher)


def test_returns_to_reliable_when_the_best_effort_publisher_is_gone(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.1") as process:
        node = client.attach(process)
        topic = f"{process.namespace}/points"

        def requested() -> ReliabilityPolicy | None:
            found = client.node.get_subscriptions_info_by_topic(topic)
            return found[0].qos_profile.reliability if len(found) == 1 else None

        weak = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        for _ in range(2):
            publisher = client.node.create_publisher(PointCloud2, topic, weak)
            wait_for(lambda: "has a best effort publisher" in process.output, "the node to follow")
            wait_for(lambda: requested() == ReliabilityPolicy.BEST_EFFORT, "best effort")
            client.node.destroy_publisher(publisher)
            wait_for(lambda: requested() == ReliabilityPolicy.RELIABLE, "reliable")
        wait_for(node.connected, "topics to match")
        node.send(sweep(12))
        wait_for(lambda: node.received.get(timeout=5).width == 12, "an answer")


def test_two_publishers_and_changing_frames_are_pointed_out(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.1") as process:
        node = client.attach(process)
        topic = f"{process.namespace}/points"
        second = client.node.create_publisher(PointCloud2, topic, 10)
        try:
            node.report(lambda s: value_of(s, "counted: sweeps of several publishers") == "1")
            assert f"{topic} is published by /test_client, /test_client" in process.output
            for number, frame in enumerate(("a", "b", "a")):
                node.exchange(stamped(sweep(10), (number + 1, 0), frame))
            key = "counted: frame of the sweeps changed"
            node.report(lambda s: value_of(s, key) == "2")
            assert "from 'a' to 'b'; expected one sensor" in process.output
        finally:
            client.node.destroy_publisher(second)


def test_reliable_input_refuses_a_best_effort_publisher_and_warns(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "input_reliability:=reliable") as process:
        client.attach(process)
        weak = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        publisher = client.node.create_publisher(PointCloud2, f"{process.namespace}/points", weak)
        try:
            wait_for(lambda: "input_reliability" in process.output, "the warning")
            assert publisher.get_subscription_count() == 0
        finally:
            client.node.destroy_publisher(publisher)


def test_topics_can_be_remapped(client: Client) -> None:
    rules = ("points:=velodyne_points",)
    with NodeProcess("checkpoint:=fake", remap=rules) as process:
        client.attach(process, active=False)
        topic = f"{process.namespace}/velodyne_points"
        wait_for(lambda: client.node.count_subscribers(topic) == 1, topic)


def test_overload_labels_the_newest_sweep_and_counts_the_others(client: Client) -> None:
    """A LiDAR at many times the rate of inference: what comes out is fresh, nothing is lost."""
    count, period_s, delay_s = 30, 0.02, 0.15
    with NodeProcess(f"checkpoint:=fake:delay={delay_s}", "diagnostics_period_s:=0.1") as process:
        node = client.attach(process)
        sent_s = {}
        for number in range(count):
            sent_s[number] = time.monotonic()
            node.send(sweep(100, stamp=(number, 0)))
            time.sleep(period_s)
        numbers: list[int] = []
        while not numbers or numbers[-1] != count - 1:
            numbers.append(node.received.get(timeout=5).header.stamp.sec)
        assert numbers == sorted(set(numbers))  # each once, in order, ending with the last
        ages = [node.arrivals_s[n] - sent_s[n] for n in numbers]
        assert max(ages) < 2 * delay_s + 2 * period_s + 0.1  # at most one waits for one in work
        status = node.report(lambda s: value_of(s, "sweeps published") == str(len(numbers)))
        replaced = int(value_of(status, "dropped: replaced by a newer sweep"))
        assert replaced > 0
        assert int(value_of(status, "sweeps received")) == len(numbers) + replaced
        # The transport itself keeps only the newest, should the executor be late.
        assert count // 2 < int(value_of(status, "sweeps received")) <= count


def test_failing_inference_is_an_error_in_diagnostics_not_the_end(client: Client) -> None:
    with NodeProcess("checkpoint:=fake:fail_every=2", "diagnostics_period_s:=0.1") as process:
        node = client.attach(process)
        node.exchange(sweep(10))
        node.send(sweep(11))
        status = node.report(lambda status: status.level == status.ERROR)
        assert value_of(status, "dropped: out of memory") == "1"
        assert node.exchange(sweep(12)).width == 12
        assert "CUDA out of memory (simulated)" in process.output


def test_idle_without_subscriber(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.1") as process:
        node = client.attach(process)
        node.exchange(sweep(10))
        client.node.destroy_subscription(node._output)
        wait_for(
            lambda: not client.node.count_subscribers(f"{process.namespace}/labeled_points"),
            "the subscriber to go",
        )
        time.sleep(0.2)
        node.send(sweep(10))
        status = node.report(lambda s: value_of(s, "dropped: nobody subscribes") == "1")
        assert status.level == status.OK
        assert value_of(status, "sweeps published") == "1"


def test_services_answer_during_inference(client: Client) -> None:
    with NodeProcess("checkpoint:=fake:delay=1.5") as process:
        node = client.attach(process)
        node.send(sweep(10))
        time.sleep(0.2)
        begin = time.monotonic()
        assert node.set_parameter("min_confidence", 0.5).successful
        assert time.monotonic() - begin < 1.0
        behind = node.received.get(timeout=5)
        assert field_of(behind, "label").size == 10
