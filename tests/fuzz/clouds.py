# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 messages of any layout, datatypes, byte order, sizes and times."""

from __future__ import annotations

import functools
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pcseg_core.cloud import PointCloud, append_fields, read_cloud
from pcseg_core.cloud_layout import DATATYPES, TYPES, EncodedCloud, Field, structured
from pcseg_core.data.bag_reader import CLOUD, stamp_ns, type_store
from pcseg_core.data.messages import cloud as cloud_message
from pcseg_core.input_check import InputCheck, InputStatistics
from pcseg_core.labels import from_wire, to_wire

from .harness import Target
from .images import deserialized
from .mutations import FLOATS, mutated
from .valid import check_cloud, same

NAMES = ("intensity", "reflectivity", "ring", "line", "t", "time", "timestamp", "stamps_ns", "rgb")
NAMES += ("offset_time", "time_ms", "label", "confidence", "instance", "", "x", "normal", "i")
CODES = ("f4", "f4", "f4", "f8", "u1", "i1", "u2", "i2", "u4", "i4")
STAMP = 1_700_000_000


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A serialized PointCloud2; most are well formed in an unusual layout."""
    height = draw(st.sampled_from([1, 1, 1, 2, 3, 16, 0]))
    width = draw(st.sampled_from([0, 1, 2, 5, 40, 130, 130]))
    fields, step = _fields(draw)
    step += draw(st.sampled_from([0, 0, 1, 4, 100]))
    row = width * step + draw(st.sampled_from([0, 0, 0, 1, 7, 4096]))
    big = draw(st.booleans())
    data = _content(draw, fields, (height, width, step, row), big)
    encoded = EncodedCloud(height, width, fields, big, step, row, array("B", data.tobytes()), True)
    if draw(st.integers(0, 3)) == 0:
        _spoil(draw, encoded)
    stamp = draw(st.sampled_from([0, STAMP, -5, 2**31 - 1])) * 10**9
    frame = draw(st.sampled_from(["lidar", "", "/lidar", "f" * 300]))
    raw = bytes(type_store().serialize_cdr(cloud_message(encoded, frame, stamp), CLOUD))
    return draw(mutated([raw], 2)) if draw(st.integers(0, 7)) == 0 else raw


def _fields(draw: st.DrawFn) -> tuple[list[Field], int]:
    """x, y and z with other fields between, before and behind; and the bytes of a point."""
    axes = draw(st.sampled_from(["f4", "f4", "f4", "f8", "i2", "u4"]))
    wanted = [("x", axes, 1), ("y", axes, 1), ("z", axes, 1)]
    others = draw(st.lists(st.sampled_from(NAMES), max_size=6))
    for name in others:
        count = draw(st.sampled_from([1, 1, 1, 1, 0, 2, 5]))
        place = draw(st.integers(0, len(wanted)))
        wanted.insert(place, (name, draw(st.sampled_from(CODES)), count))
    fields, offset = [], 0
    for name, code, count in wanted:
        offset += draw(st.sampled_from([0, 0, 0, 1, 4]))
        fields.append(Field(name, offset, DATATYPES[code], count))
        offset += np.dtype(code).itemsize * max(1, count)
    if draw(st.integers(0, 4)) == 0:
        fields = list(draw(st.permutations(fields)))
    return fields, offset


def _content(
    draw: st.DrawFn, fields: list[Field], size: tuple[int, int, int, int], big: bool
) -> np.ndarray:
    """Bytes of the points: plausible coordinates and times, with special values in between."""
    height, width, step, row = size
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    special = draw(st.lists(st.sampled_from(FLOATS), max_size=4))
    rows = rng.integers(0, 256, (height, row), dtype=np.uint8)
    points = rows[:, : width * step].reshape(height * width, step)
    for field in fields:
        code = ("" if TYPES[field.datatype].endswith("1") else "<>"[big]) + TYPES[field.datatype]
        kind = np.dtype(code)
        values = _values(draw, field.name, len(points), rng, kind).astype(np.float64)
        for number in special if len(points) else ():
            values[rng.integers(len(points))] = number
        with np.errstate(all="ignore"):
            if kind.kind in "iu":
                limits = np.iinfo(kind)
                values = np.clip(np.nan_to_num(values), float(limits.min), float(limits.max))
            encoded = values.astype(kind).view(np.uint8).reshape(-1, kind.itemsize)
        points[:, field.offset : field.offset + kind.itemsize] = encoded
    rows[:, : width * step] = points.reshape(height, width * step)
    return rows.reshape(-1)


def _values(
    draw: st.DrawFn, name: str, count: int, rng: np.random.Generator, kind: np.dtype[Any]
) -> np.ndarray:
    if "time" in name or name in ("t", "stamps_ns"):
        unit = draw(st.sampled_from([1.0, 1e3, 1e6, 1e9]))
        base = draw(st.sampled_from([0.0, 0.0, STAMP, -0.05, 1e5]))
        span = draw(st.sampled_from([0.1, 0.1, 0.0, 3.0, 100.0]))
        return (base + np.linspace(0, span, count)) * unit
    if name in ("x", "y", "z"):
        return rng.normal(0, draw(st.sampled_from([20.0, 20.0, 0.0, 5e5])), count)
    top = draw(st.sampled_from([1.0, 255.0, 65535.0, 2.0]))
    return rng.uniform(0, top, count) if kind.kind == "f" else rng.integers(0, int(top) + 1, count)


def _spoil(draw: st.DrawFn, cloud: EncodedCloud) -> None:
    """One thing that is wrong."""
    numbers = st.sampled_from([0, 1, 3, 255, 4096, 2**20, 2**31, 2**32 - 1])
    kind = draw(st.sampled_from(["size", "row", "step", "field", "data", "many", "overlap"]))
    if kind == "size":
        cloud.height, cloud.width = draw(numbers), draw(numbers)
    elif kind == "row":
        cloud.row_step = draw(numbers)
    elif kind == "step":
        cloud.point_step = draw(numbers)
    elif kind == "field" and cloud.fields:
        field = draw(st.sampled_from(cloud.fields))
        changed = draw(st.sampled_from(["offset", "datatype", "count"]))
        limit = 255 if changed == "datatype" else 2**32 - 1
        setattr(field, changed, min(draw(numbers), limit))
    elif kind == "data":
        keep = draw(st.integers(0, len(cloud.data)))
        cloud.buffer = cloud.buffer[:keep]
    elif kind == "many":
        cloud.fields = cloud.fields * draw(st.sampled_from([2, 40, 200]))
    elif kind == "overlap":
        for field in cloud.fields:
            field.offset = 0


def message(case: bytes) -> Any:
    """The message of a case; InputError for bytes that are none."""
    return deserialized(case, CLOUD, "cloud")


def check_read(case: bytes, folder: Path) -> None:
    """The cloud is what its layout says, and the same in another layout."""
    msg = message(case)
    cloud = read_cloud(msg)
    check_cloud(cloud, int(msg.height) * int(msg.width))
    again = read_cloud(_relaid(msg))
    for name in ("xyz", "intensity", "time", "ring"):
        assert same(getattr(cloud, name), getattr(again, name)), name
    assert (cloud.stamp_ns, list(cloud.extra)) == (again.stamp_ns, list(again.extra))
    for name, values in cloud.extra.items():
        assert same(values, again.extra[name]), name
    kept = np.flatnonzero(cloud.finite)
    check_cloud(cloud.select(kept), len(kept))


def _relaid(msg: Any) -> Any:
    """The message with the other byte order, padded points and rows, and exact offsets."""
    points = structured(msg)
    order = ">" if not msg.is_bigendian else "<"
    fields, offset = [], 3
    columns = []
    for name in points.dtype.names or ():
        kind = points.dtype[name]
        base, shape = kind.base.newbyteorder(order), kind.shape
        fields.append(Field(name, offset, DATATYPES[base.kind + str(base.itemsize)], *shape))
        columns.append((name, (base, shape), offset))
        offset += kind.itemsize + 1
    dtype = np.dtype(
        {
            "names": [c[0] for c in columns],
            "formats": [c[1] for c in columns],
            "offsets": [c[2] for c in columns],
            "itemsize": offset,
        }
    )
    height, width = points.shape
    row = width * offset + (5 if width else 0)
    data = np.full(height * row, 0xAB, np.uint8)
    out = np.ndarray((height, width), dtype, buffer=data.data, strides=(row, offset))
    for name in points.dtype.names or ():
        out[name] = points[name]
    bytes_ = array("B", data.tobytes())
    moved = EncodedCloud(height, width, fields, not msg.is_bigendian, offset, row, bytes_, True)
    return cloud_message(moved, msg.header.frame_id, stamp_ns(msg.header))


def check_append(case: bytes, folder: Path) -> None:
    """Labels are added to every point; other fields and the organization stay."""
    msg = message(case)
    points = structured(msg)
    labels = (np.arange(points.size) % 7 - 1).astype(np.int32)
    confidence = np.linspace(0, 1, points.size, dtype=np.float32)
    encoded = append_fields(msg, {"label": to_wire(labels), "confidence": confidence})
    assert (encoded.height, encoded.width) == points.shape
    assert len(encoded.data) == encoded.height * encoded.row_step
    assert encoded.row_step == encoded.width * encoded.point_step
    written = structured(encoded)
    assert np.array_equal(from_wire(written["label"]).ravel(), labels)
    assert np.array_equal(written["confidence"].ravel(), confidence)
    for name in points.dtype.names or ():
        if name not in ("label", "confidence"):
            assert points[name].tobytes() == written[name].tobytes(), name
    _check_filtered(msg, encoded, labels)


@functools.cache
def _conversions() -> Any:
    """The conversions of the node, or None without rclpy."""
    try:
        from pcseg_ros import conversions
    except ImportError:
        return None
    return conversions


def _check_filtered(msg: Any, encoded: EncodedCloud, labels: np.ndarray) -> None:
    """The node's filtered cloud holds the bytes of the chosen points."""
    conversions = _conversions()
    if conversions is None:
        return
    from std_msgs.msg import Header

    labeled = conversions.cloud_message(Header(), encoded)
    chosen = labels >= 2
    kept = structured(*conversions.filtered_messages(labeled, [chosen]))
    assert kept.size == np.count_nonzero(chosen)
    for name in kept.dtype.names or ():
        values = structured(encoded)[name]
        expected = values.reshape(len(chosen), *values.shape[2:])[chosen]
        assert kept[name].tobytes() == expected.tobytes(), name
    assert np.array_equal(conversions.read_labels(labeled), labels)


@functools.cache
def segmenter() -> Any:
    """A small network with random weights."""
    import torch

    from pcseg_core.checkpoint import CheckpointMeta
    from pcseg_core.labels import LabelSpace
    from pcseg_core.models.student import Student, StudentConfig
    from pcseg_core.online.segmenter import Segmenter

    torch.manual_seed(0)
    space = LabelSpace.load("street")
    config = StudentConfig(depth=14, width=0.25, voxel_size_m=0.5)
    described = CheckpointMeta(student=config.model_dump(), label_space=space.to_dict())
    return Segmenter(Student(config, len(space)), space, described, device="cpu")


def check_segment(case: bytes, folder: Path) -> None:
    """Every point has a class of the table or none, and a confidence of 0..1."""
    from pcseg_core.online.pipeline import Pipeline, Sweep
    from pcseg_core.online.pipeline_config import PipelineConfig

    cloud = read_cloud(message(case))
    config = PipelineConfig.model_validate(
        {"motion": {"deskew": True}, "temporal": {"enabled": True}}
    )
    _check_statistics(cloud)
    pipeline = Pipeline(segmenter(), config)
    result = pipeline.process(Sweep(cloud, None, _drive))
    check_labels(cloud, result.labels, result.confidence, len(result.label_space))
    for event, reason in result.problems:
        assert len(event) + len(reason) <= 1000


def _check_statistics(cloud: PointCloud) -> None:
    """A sweep with returns has statistics, which are stored and compared with."""
    if not cloud.finite.any():
        return
    found = InputStatistics.measure([cloud])
    assert InputStatistics.model_validate_json(found.model_dump_json()) == found
    assert len(InputCheck(found)(cloud)) < 1000


def check_labels(
    cloud: PointCloud, labels: np.ndarray, confidence: np.ndarray, classes: int
) -> None:
    """One label and confidence for each point, in their ranges."""
    assert labels.shape == confidence.shape == (len(cloud),)
    assert labels.min(initial=-1) >= -1 and labels.max(initial=-1) < classes
    assert np.isfinite(confidence).all()
    assert confidence.min(initial=0) >= 0 and confidence.max(initial=0) <= 1 + 1e-6
    assert (labels[~cloud.finite] == -1).all()


def _drive(stamps: np.ndarray) -> np.ndarray:
    """Poses of a platform that drives along x at 10 m/s."""
    poses = np.tile(np.eye(4), (len(stamps), 1, 1))
    poses[:, 0, 3] = (np.asarray(stamps, np.float64) - STAMP * 1e9) * 1e-8 % 1e6
    return poses


TARGETS = (
    Target("cloud-read", messages, check_read, ("cloud",), 150),
    Target("cloud-append", messages, check_append, ("cloud",), 80),
    Target("cloud-segment", messages, check_segment, ("cloud", "points", "deskew"), 25),
)
