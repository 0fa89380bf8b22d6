# SPDX-License-Identifier: Apache-2.0
"""Writing PointCloud2: appended fields, new clouds, colors."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_clouds import CODES, U32, VELODYNE, XYZ, Message, message, xyz_columns

from pcseg_core.cloud import (
    Field,
    append_fields,
    encode_cloud,
    pack_rgb,
    read_cloud,
    structured,
    unpack_rgb,
)
from pcseg_core.errors import InputError


@pytest.mark.parametrize("big", [False, True])
def test_appended_fields_leave_everything_else_as_it_was(big: bool) -> None:
    count = 6
    columns = xyz_columns(count) | {
        "intensity": np.arange(count),
        "ring": np.arange(count),
        "time": np.zeros(count),
    }
    columns["x"][3] = np.nan
    msg = message(VELODYNE, columns, 22, height=2, row_padding=7, big=big)
    label = np.arange(count, dtype=np.uint32) + 65530
    confidence = np.linspace(0, 1, count, dtype=np.float32)
    out = append_fields(msg, {"label": label, "confidence": confidence})
    names = ["x", "y", "z", "intensity", "ring", "time", "label", "confidence"]
    assert [f.name for f in out.fields] == names
    assert (out.height, out.width, out.is_bigendian, out.is_dense) == (2, 3, big, False)
    assert (out.point_step, out.row_step, len(out.data)) == (32, 96, 192)  # 22, to 24, + 4 + 4
    raw = np.frombuffer(msg.data, np.uint8).reshape(2, 73)[:, :66].reshape(6, 22)
    np.testing.assert_array_equal(out.data.reshape(6, 32)[:, :22], raw)  # the bytes themselves
    np.testing.assert_array_equal(out.data.reshape(6, 32)[:, 22:24], 0)
    order = ">" if big else "<"
    for i in range(count):
        packed = struct.unpack_from(order + "If", out.data.tobytes(), 32 * i + 24)
        assert packed == (label[i], confidence[i])


def test_appended_twice_is_overwritten_in_place() -> None:
    msg = message(XYZ, xyz_columns(2), 12)
    first = append_fields(msg, {"label": np.array([1, 2], np.uint32)})
    second = append_fields(first, {"label": np.array([3, 4], np.uint32)})
    assert second.point_step == first.point_step
    np.testing.assert_array_equal(structured(second)["label"], [[3, 4]])
    np.testing.assert_array_equal(structured(first)["label"], [[1, 2]])  # untouched
    other = append_fields(second, {"label": np.array([5, 6], np.uint8)})
    assert [f.name for f in other.fields] == ["x", "y", "z", "label"]
    np.testing.assert_array_equal(structured(other)["label"], [[5, 6]])
    with pytest.raises(InputError, match="already has the field label"):
        append_fields(first, {"label": np.array([3, 4], np.uint32)}, replace=False)


def test_a_label_that_shares_bytes_is_added_anew() -> None:
    """A union of fields: to overwrite the label would move the points."""
    layout = [*XYZ, ("label", 0, U32)]
    msg = message(layout, {"label": np.zeros(2, np.uint32), **xyz_columns(2)}, 12)
    msg.data = message(XYZ, xyz_columns(2), 12).data
    out = append_fields(msg, {"label": np.array([1, 2], np.uint32)})
    np.testing.assert_array_equal(structured(out)["x"], structured(msg)["x"])
    np.testing.assert_array_equal(structured(out)["label"], [[1, 2]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros(3, np.uint32), "shape \\(3,\\) for 2 points"),
        (np.zeros(2, np.int64), "int64; PointCloud2 has"),
        (np.zeros(2, np.float16), "float16"),
        (np.zeros(2, bool), "bool"),
        (np.zeros((2, 2, 2), np.uint8), "shape"),
    ],
)
def test_values_that_cannot_be_appended(values: np.ndarray, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        append_fields(message(XYZ, xyz_columns(2), 12), {"label": values})


def test_encode_and_read_back() -> None:
    xyz = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    fields = {axis: xyz[:, i] for i, axis in enumerate("xyz")} | {
        "ring": np.arange(6, dtype=np.uint16),
        "stamp": np.arange(6, dtype=np.float64),
        "pair": np.arange(12, dtype=np.int8).reshape(6, 2),
    }
    out = encode_cloud(fields, 2, 3)
    assert {f.name: f.offset for f in out.fields} == {
        "x": 0,
        "y": 4,
        "z": 8,
        "ring": 12,
        "stamp": 16,
        "pair": 24,
    }
    assert (out.point_step, out.is_dense, out.height, out.width) == (32, True, 2, 3)
    cloud = read_cloud(out)
    assert np.shares_memory(cloud.xyz, out.data)
    np.testing.assert_array_equal(cloud.xyz, xyz)
    np.testing.assert_array_equal(cloud.extra["pair"], fields["pair"])
    xyz[2, 1] = np.nan
    assert not encode_cloud({axis: xyz[:, i] for i, axis in enumerate("xyz")}).is_dense
    with pytest.raises(InputError, match="no fields"):
        encode_cloud({})


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Message, dict[str, np.ndarray]]:
    """A message with random fields at random, possibly unaligned offsets, and its columns."""
    height, width = draw(st.integers(1, 3)), draw(st.integers(0, 5))
    big = draw(st.booleans())
    fields, offset = [], 0
    for i in range(draw(st.integers(1, 6))):
        offset += draw(st.integers(0, 3))
        datatype, count = draw(st.integers(1, 8)), draw(st.integers(1, 3))
        fields.append(Field(f"f{i}", offset, datatype, count))
        offset += int(CODES[datatype][1]) * count
    step = offset + draw(st.integers(0, 9))
    row_step = width * step + draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    data = rng.integers(0, 256, row_step * height, dtype=np.uint8)
    columns = {}
    for f in fields:
        size = int(CODES[f.datatype][1]) * f.count
        chunks = [
            data[r * row_step + c * step + f.offset :][:size].tobytes()
            for r in range(height)
            for c in range(width)
        ]
        values = np.frombuffer(b"".join(chunks), (">" if big else "<") + CODES[f.datatype])
        columns[f.name] = values.reshape(height * width, f.count)
    return Message(fields, data, height, width, step, row_step, big), columns


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit by bit, whatever the byte order (random bytes make NaN)."""
    native = [np.ascontiguousarray(v, v.dtype.newbyteorder("=")).tobytes() for v in (a, b)]
    return native[0] == native[1]


@settings(max_examples=150, deadline=None)
@given(layouts(), st.booleans())
def test_random_layouts_round_trip(
    case: tuple[Message, dict[str, np.ndarray]], three: bool
) -> None:
    msg, columns = case
    points = structured(msg)
    for name, expected in columns.items():
        assert same(points[name].reshape(expected.shape), expected)
    count = msg.height * msg.width
    label = np.arange(count, dtype=np.uint32)
    new: dict[str, np.ndarray] = {"label": label, "confidence": label.astype(np.float32) / 7}
    if three:
        new["vector"] = np.arange(3 * count, dtype=np.float64).reshape(count, 3)
    out = append_fields(msg, new)
    back = structured(out)
    for name, expected in (columns | new).items():
        assert same(back[name].reshape(expected.shape), expected)
    assert back.shape == (msg.height, msg.width)
    assert len(out.data) == out.row_step * out.height


def test_rgb_bits() -> None:
    colors = np.array([[255, 0, 1], [18, 52, 86], [0, 0, 0]], np.uint8)
    packed = pack_rgb(colors)
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed.view(np.uint32), [0xFF0001, 0x123456, 0])
    np.testing.assert_array_equal(unpack_rgb(packed), colors)
    np.testing.assert_array_equal(unpack_rgb(packed.view(np.uint32)), colors)
