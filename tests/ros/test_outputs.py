# SPDX-License-Identifier: Apache-2.0
"""Services, further outputs and parameters that name classes, over DDS."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from fakes import expected_labels
from harness import (
    TIMEOUT_S,
    Attachment,
    Client,
    NodeProcess,
    field_of,
    positions,
    sweep,
    value_of,
    wait_for,
)
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from pcseg_core.labels import WIRE_UNLABELED, LabelSpace
from pcseg_core.online.instances import cluster_instances
from pcseg_ros.topics import DIAGNOSTICS, LABELED, POINTS, TIMES, TOPICS

FILTER = "clouds.filtered_points.classes"
NAMES = LabelSpace.load("street").names


@pytest.fixture(scope="module")
def process() -> Iterator[NodeProcess]:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.2") as started:
        yield started


@pytest.fixture(scope="module")
def attached(client: Client, process: NodeProcess) -> Attachment:
    return client.attach(process)


@pytest.fixture
def node(attached: Attachment) -> Iterator[Attachment]:
    yield attached
    attached.deafen()


def test_disabled_node_ignores_sweeps_and_counts_them(node: Attachment) -> None:
    assert node.call(SetBool, "enable", data=False).success
    node.send(sweep(10))
    status = node.report(lambda s: value_of(s, "dropped: disabled") == "1")
    assert status.level == status.OK and node.received.empty()
    assert node.call(SetBool, "enable", data=True).success
    assert node.exchange(sweep(10)).width == 10


def test_reset_answers_while_sweeps_go_on(node: Attachment) -> None:
    assert node.call(Trigger, "reset").success
    assert node.exchange(sweep(10)).width == 10


def test_filtered_cloud_has_the_chosen_points_with_all_their_fields(node: Attachment) -> None:
    filtered = node.listen(PointCloud2, "filtered_points")
    sent = sweep(500)
    labels = expected_labels(positions(sent))
    for names, chosen in (
        (["vehicle", "pole"], np.isin(labels, [NAMES.index("vehicle"), NAMES.index("pole")])),
        ([], labels >= 0),
    ):
        assert node.set_parameter(FILTER, names).successful
        answer = node.exchange(sent)
        part = filtered.get(timeout=5)
        assert part.header == sent.header
        assert [f.name for f in part.fields] == [f.name for f in answer.fields]
        for name in ("x", "t", "ring", "label", "confidence"):
            np.testing.assert_array_equal(field_of(part, name), field_of(answer, name)[chosen])


def test_returns_from_the_robot_have_no_label_and_are_in_no_other_cloud(client: Client) -> None:
    clouds = ("clouds.names:=['rest']", "clouds.rest.classes:=['*', 'unlabeled']")
    with NodeProcess("checkpoint:=fake", "points.body:=[-9, -9, -9, 9, 9, 9]", *clouds) as process:
        node = client.attach(process)
        rest = node.listen(PointCloud2, "rest")
        sent = sweep(2000)
        answer, part = node.exchange(sent), rest.get(timeout=TIMEOUT_S)
    where, labels = positions(sent), field_of(answer, "label")
    inside = (np.abs(where) <= 9).all(1)
    assert 20 < inside.sum() < 200
    np.testing.assert_array_equal(positions(answer), where)
    np.testing.assert_array_equal(labels == WIRE_UNLABELED, inside)
    np.testing.assert_array_equal(positions(part), where[~inside])


def test_filter_of_an_unknown_class_is_refused_by_name(node: Attachment) -> None:
    result = node.set_parameter(FILTER, ["vehicle", "unicorn"])
    assert not result.successful
    assert f"{FILTER}: unknown class 'unicorn'" in result.reason and "vegetation" in result.reason


def test_instances_follow_the_labels(node: Attachment) -> None:
    sent = sweep(20_000)
    try:
        assert node.set_parameter("instance_min_points", 3).successful
        assert node.set_parameter("publish_instances", True).successful
        answer = node.exchange(sent)
    finally:
        assert node.set_parameter("publish_instances", False).successful
    (field,) = [f for f in answer.fields if f.name == "instance"]
    assert field.datatype == PointField.UINT32
    things = [NAMES.index("vehicle"), NAMES.index("person")]
    labels = expected_labels(positions(sent))
    expected = cluster_instances(positions(sent), labels, things, cell_m=0.3, min_points=3)
    assert expected.max() > 5
    np.testing.assert_array_equal(field_of(answer, "instance"), expected)


def test_times_are_published_where_subscribed(node: Attachment) -> None:
    latency = node.listen(Float64, "segment_node/debug/latency_ms")
    inference = node.listen(Float64, "segment_node/debug/inference_ms")
    node.exchange(sweep(100))
    assert 0 < inference.get(timeout=5).data < latency.get(timeout=5).data < 5000


def test_topics_and_services_are_those_of_the_table(
    node: Attachment, client: Client, process: NodeProcess
) -> None:
    space, name = process.namespace, f"{process.namespace}/segment_node"
    services = dict(client.node.get_service_names_and_types())  # of its namespace, by their names
    for topic in TOPICS:
        full = topic.name.replace("~", name).format(camera="none", lidar="none", stage="latency")
        full = full if full.startswith("/") else f"{space}/{full}"
        if topic.direction == "service":
            assert [t.replace("/srv", "") for t in services[full]] == [topic.kind]
        elif topic.name in (POINTS, LABELED, TIMES, DIAGNOSTICS):
            find = client.node.get_publishers_info_by_topic
            if topic.direction == "in":
                find = client.node.get_subscriptions_info_by_topic
            kinds = {endpoint.topic_type for endpoint in find(full)}
            assert kinds == {topic.kind.replace("/", "/msg/")}


def test_diagnostics_tell_memory_and_threads(node: Attachment) -> None:
    status = node.report(lambda _: True)
    assert float(value_of(status, "memory (MiB)")) > 20
    assert int(value_of(status, "threads")) >= 2


def test_prompts_change_the_classes_of_the_next_sweep(node: Attachment) -> None:
    sent = sweep(300)
    assert node.set_parameter("prompts", ["vehicle: car, truck, bus", "bäume", "*"]).successful
    labels = field_of(node.exchange(sent), "label")
    known = labels != WIRE_UNLABELED
    np.testing.assert_array_equal(labels[known], (expected_labels(positions(sent)) % 3)[known])
    wait_for(
        lambda: (
            list(node.get_parameter("class_names").string_array_value) == ["vehicle", "bäume", "*"]
        ),
        "class names",
    )
    assert len(node.get_parameter("class_colors").string_array_value) == 3
    assert node.set_parameter(FILTER, ["bäume"]).successful
    assert node.set_parameter(FILTER, []).successful


@pytest.mark.parametrize(
    "prompts, words",
    [(["car", "quagga"], "quagga"), ([], "empty"), ([f"word{i}" for i in range(300)], "word0")],
)
def test_refused_prompts_leave_the_old_ones(
    node: Attachment, prompts: list[str], words: str
) -> None:
    assert node.set_parameter("prompts", ["car", "tree"]).successful
    result = node.set_parameter("prompts", prompts)
    assert not result.successful and words in result.reason
    assert list(node.get_parameter("prompts").string_array_value) == ["car", "tree"]
    labels = field_of(node.exchange(sweep(50)), "label")
    assert set(labels.tolist()) <= {0, 1}


def test_prompts_at_the_start_and_a_word_nobody_knows(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "prompts:=['car','bush']") as process:
        node = client.attach(process)
        assert set(field_of(node.exchange(sweep(50)), "label").tolist()) <= {0, 1}
    with NodeProcess("checkpoint:=fake", "prompts:=['quagga']") as process:
        node = client.attach(process, active=False)
        wait_for(lambda: "no embedding of 'quagga'" in process.output, "the reason")
        assert node.state() == "unconfigured"


def test_nothing_is_computed_that_nobody_subscribes(client: Client) -> None:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.1") as process:
        node = client.attach(process)
        node.mute()
        filtered = node.listen(PointCloud2, "filtered_points")

        def answered() -> bool:
            node.send(sweep(10))
            with contextlib.suppress(queue.Empty):
                return bool(filtered.get(timeout=0.5).width == 10)
            return False

        wait_for(answered, "a filtered cloud")  # which alone keeps the node at work
        node.deafen()

        def idle() -> bool:
            node.send(sweep(10))
            return "nobody subscribes" in node.report(lambda _: True).message

        wait_for(idle, "the node to be idle")
        assert filtered.empty()
