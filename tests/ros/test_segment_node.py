# SPDX-License-Identifier: Apache-2.0
"""The node over DDS: sweeps in, labeled sweeps out."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from fakes import expected_confidence, expected_labels
from harness import (
    Attachment,
    Client,
    NodeProcess,
    field_of,
    layout,
    positions,
    raw_cloud,
    stamped,
    sweep,
    value_of,
)
from sensor_msgs.msg import PointCloud2, PointField

from pcseg_core.cloud import unpack_rgb
from pcseg_core.labels import WIRE_UNLABELED, LabelSpace


@pytest.fixture(scope="module")
def node(client: Client) -> Iterator[Attachment]:
    with NodeProcess("checkpoint:=fake", "diagnostics_period_s:=0.2") as process:
        yield client.attach(process)


def assert_same_sweep(answer: PointCloud2, sent: PointCloud2) -> None:
    """Header, organization, fields and every byte of the input are in the answer."""
    assert answer.header == sent.header
    assert (answer.height, answer.width) == (sent.height, sent.width)
    assert layout(answer)[: len(sent.fields)] == layout(sent)
    for f in sent.fields:
        assert field_of(answer, f.name).tobytes() == field_of(sent, f.name).tobytes()


def on_wire(labels: np.ndarray) -> np.ndarray:
    return np.where(labels < 0, WIRE_UNLABELED, labels)


@pytest.mark.parametrize("points", [1, 1000, 130_000, 400_000])
def test_every_point_comes_back_labeled_in_order(node: Attachment, points: int) -> None:
    for number in range(3):
        sent = sweep(points, stamp=(100 + number, 123_456_789), seed=number)
        answer = node.exchange(sent)
        assert_same_sweep(answer, sent)
        added = [(f.name, f.datatype, f.count) for f in answer.fields[len(sent.fields) :]]
        assert added == [("label", PointField.UINT32, 1), ("confidence", PointField.FLOAT32, 1)]
        np.testing.assert_array_equal(
            field_of(answer, "label"), on_wire(expected_labels(positions(sent)))
        )
        np.testing.assert_array_equal(
            field_of(answer, "confidence"), expected_confidence(positions(sent))
        )


def test_organized_padded_big_endian_cloud_keeps_its_layout(node: Attachment) -> None:
    height, width, step, row_step = 4, 25, 20, 512
    rng = np.random.default_rng(1)
    data = np.zeros((height, row_step), dtype=np.uint8)
    xyz = rng.uniform(-9, 9, (height, width, 3)).astype(">f4")
    block = np.zeros((height, width, step), dtype=np.uint8)
    block[..., 1:13] = xyz.view(np.uint8).reshape(height, width, 12)  # unaligned
    data[:, : width * step] = block.reshape(height, -1)
    fields = [
        PointField(name=n, offset=1 + 4 * i, datatype=7, count=1) for i, n in enumerate("xyz")
    ]
    sent = raw_cloud(
        height=height,
        width=width,
        fields=fields,
        is_bigendian=True,
        point_step=step,
        row_step=row_step,
        data=data.tobytes(),
    )
    answer = node.exchange(sent)
    assert_same_sweep(answer, sent)
    assert answer.is_bigendian
    native = xyz.astype(np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(field_of(answer, "label"), on_wire(expected_labels(native)))


def test_nan_points_keep_their_slot_without_label(node: Attachment) -> None:
    sent = sweep(50)
    values = np.frombuffer(sent.data, dtype=np.uint8).reshape(50, sent.point_step)
    values = values.copy()
    lost = [0, 7, 49]
    values[lost, 4:8] = np.frombuffer(np.float32(np.nan).tobytes(), dtype=np.uint8)  # y
    sent.data = values.tobytes()
    answer = node.exchange(sent)
    labels = field_of(answer, "label")
    assert (labels[lost] == WIRE_UNLABELED).all()
    assert (np.delete(labels, lost) < 8).all()
    assert (field_of(answer, "confidence")[lost] == 0).all()
    assert not answer.is_dense


def test_only_nan_points(node: Attachment) -> None:
    data = np.full(30, np.nan, dtype=np.float32).tobytes()
    answer = node.exchange(raw_cloud(data=data, is_dense=False))
    assert (field_of(answer, "label") == WIRE_UNLABELED).all()
    assert len(field_of(answer, "label")) == 10


def test_zero_points_come_back_as_zero_points(node: Attachment) -> None:
    sent = raw_cloud(width=0, row_step=0, data=b"")
    answer = node.exchange(sent)
    assert answer.width * answer.height == 0
    assert [f.name for f in answer.fields] == ["x", "y", "z", "label", "confidence"]
    assert answer.header == sent.header


def test_existing_label_field_is_replaced_once(node: Attachment) -> None:
    once = node.exchange(sweep(20))
    twice = node.exchange(once)
    names = [f.name for f in twice.fields]
    assert names.count("label") == names.count("confidence") == 1
    np.testing.assert_array_equal(field_of(twice, "label"), field_of(once, "label"))


def test_fields_may_change_between_sweeps(node: Attachment) -> None:
    for sent in (sweep(30), raw_cloud(), sweep(31)):
        assert_same_sweep(node.exchange(sent), sent)


MALFORMED = {
    "no z": raw_cloud(fields=raw_cloud().fields[:2]),
    "no fields": raw_cloud(fields=[]),
    "truncated": raw_cloud(data=bytes(119)),
    "field beyond the point": raw_cloud(point_step=8, row_step=80, data=bytes(80)),
    "row shorter than points": raw_cloud(height=2, row_step=60, data=bytes(240)),
    "unknown datatype": raw_cloud(
        fields=[PointField(name=n, offset=0, datatype=99, count=1) for n in "xyz"]
    ),
    "huge count of points": raw_cloud(width=2**32 - 1, row_step=2**32 - 1),
    "point_step 0": raw_cloud(point_step=0),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_sweep_is_counted_and_the_next_one_labeled(node: Attachment, kind: str) -> None:
    def malformed() -> int:
        return int(value_of(node.report(lambda _: True), "dropped: malformed") or 0)

    before = malformed()
    node.send(MALFORMED[kind])
    node.report(lambda status: value_of(status, "dropped: malformed") == str(before + 1))
    sent = sweep(10)
    assert_same_sweep(node.exchange(sent), sent)


def test_min_confidence_changes_live(node: Attachment) -> None:
    sent = sweep(200)
    behind = positions(sent)[:, 0] <= 0  # labeled with confidence 0.4
    assert behind.any() and not behind.all()
    try:
        assert node.set_parameter("min_confidence", 0.5).successful
        labels = field_of(node.exchange(sent), "label")
        assert (labels[behind] == WIRE_UNLABELED).all()
        assert (labels[~behind] < 8).all()
    finally:
        assert node.set_parameter("min_confidence", 0.0).successful
    assert (field_of(node.exchange(sent), "label") < 8).all()


def test_rgb_carries_the_class_colors(node: Attachment) -> None:
    try:
        assert node.set_parameter("publish_rgb", True).successful
        answer = node.exchange(sweep(100))
    finally:
        assert node.set_parameter("publish_rgb", False).successful
    rgb = unpack_rgb(field_of(answer, "rgb"))
    palette = LabelSpace.load("street").palette
    np.testing.assert_array_equal(rgb, palette[field_of(answer, "label")])


def test_max_age_drops_old_sweeps_and_keeps_new_ones(node: Attachment) -> None:
    try:
        assert node.set_parameter("max_age_s", 5.0).successful
        node.send(sweep(10, stamp=(1, 0)))
        with pytest.raises(queue.Empty):
            node.received.get(timeout=0.5)
        node.report(lambda status: int(value_of(status, "dropped: too old") or 0) > 0)
        fresh = stamped(sweep(10), (int(time.time()), 0))
        assert node.exchange(fresh).header == fresh.header
    finally:
        assert node.set_parameter("max_age_s", 0.0).successful


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("min_confidence", 1.5, "range"),
        ("min_confidence", -0.1, "range"),
        ("min_confidence", float("nan"), "range"),
        ("min_confidence", "high", "type"),
        ("checkpoint", "other", "read-only"),
        ("device", "cpu", "read-only"),
        ("autostart", False, "read-only"),
        ("class_names", ["a"], "read-only"),
    ],
)
def test_changes_that_are_refused(node: Attachment, name: str, value: object, reason: str) -> None:
    before = node.get_parameter(name)
    result = node.set_parameter(name, value)
    assert not result.successful
    assert reason in result.reason
    assert node.get_parameter(name) == before


def test_parameters_describe_themselves(node: Attachment) -> None:
    live = node.describe_parameter("min_confidence")
    assert not live.read_only and "confidence" in live.description
    (ends,) = live.floating_point_range
    assert (ends.from_value, ends.to_value) == (0.0, 1.0)
    assert node.describe_parameter("checkpoint").read_only
    backend = node.describe_parameter("backend")
    assert backend.additional_constraints == "one of: auto, torch, native, triton, torchsparse"
    depth = node.describe_parameter(f"qos_overrides.{node.namespace}/points.subscription.depth")
    assert depth.read_only


def test_class_names_and_colors_are_parameters(node: Attachment) -> None:
    space = LabelSpace.load("street")
    assert node.get_parameter("class_names").string_array_value == list(space.names)
    colors = node.get_parameter("class_colors").string_array_value
    assert [int(c[1:], 16) for c in colors] == [
        int(r) << 16 | int(g) << 8 | int(b) for r, g, b in space.palette
    ]


def test_diagnostics_report_work(node: Attachment) -> None:
    for number in range(3):
        node.exchange(sweep(10, seed=number))
    status = node.report(lambda status: float(value_of(status, "published rate (Hz)")) > 0)
    assert value_of(status, "checkpoint") == "fake"
    assert value_of(status, "state") == "active"
    assert float(value_of(status, "latency p50 (ms)")) <= float(
        value_of(status, "latency p95 (ms)")
    )
    assert value_of(status, "device") == "fake"
    assert value_of(status, "engine") == "fake fp32"
