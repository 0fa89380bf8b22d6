# SPDX-License-Identifier: Apache-2.0
"""The PointCloud2 codec: every layout that drivers send, hand-packed bytes, and broken messages."""

from __future__ import annotations

import array
import pickle
import struct
import tracemalloc
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.cloud import (
    TIME_PROBLEM,
    Field,
    PointCloud,
    append_fields,
    encode_cloud,
    guess_intensity_scale,
    pack_rgb,
    read_cloud,
    structured,
    unpack_rgb,
)
from pcseg_core.errors import InputError

F32, F64, U8, U16, U32 = 7, 8, 2, 4, 6
CODES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
STAMP = 1_700_000_000_123_456_789
XYZ = [("x", 0, F32), ("y", 4, F32), ("z", 8, F32)]


@dataclass
class Message:
    """A PointCloud2 as a plain object; nothing of ROS."""

    fields: list[Any]
    data: Any
    height: int = 1
    width: int = 1
    point_step: int = 12
    row_step: int = 12
    is_bigendian: bool = False
    is_dense: bool = True
    header: Any = None


def header(stamp_ns: int = STAMP, frame_id: str = "lidar") -> Any:
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return SimpleNamespace(stamp=stamp, frame_id=frame_id)


def message(
    layout: list[tuple[str, int, int]],
    columns: dict[str, Any],
    step: int,
    height: int = 1,
    row_padding: int = 0,
    big: bool = False,
    stamp_ns: int = STAMP,
) -> Message:
    """Pack columns with `struct`, byte by byte, independent of the code under test."""
    letters = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}
    count = len(next(iter(columns.values())))
    width = count // height
    row_step = width * step + row_padding
    data = bytearray(b"\xee" * (row_step * height))
    for name, offset, datatype in layout:
        for i, value in enumerate(columns[name]):
            at = i // width * row_step + i % width * step + offset
            number = float(value) if datatype >= F32 else int(value)
            struct.pack_into((">" if big else "<") + letters[datatype], data, at, number)
    fields = [SimpleNamespace(name=n, offset=o, datatype=d, count=1) for n, o, d in layout]
    return Message(fields, bytes(data), height, width, step, row_step, big, True, header(stamp_ns))


def xyz_columns(count: int) -> dict[str, np.ndarray]:
    values = np.arange(3 * count, dtype=np.float32).reshape(count, 3) / 8 - 2
    return {axis: values[:, i] for i, axis in enumerate("xyz")}


def xyz_of(columns: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float32)


# --- reading ---------------------------------------------------------------------------------

VELODYNE = [*XYZ, ("intensity", 12, F32), ("ring", 16, U16), ("time", 18, F32)]  # 22 bytes
OUSTER = [
    *XYZ,
    ("intensity", 16, F32),
    ("t", 20, U32),
    ("reflectivity", 24, U16),
    ("ring", 26, U8),
    ("ambient", 28, U16),
    ("range", 32, U32),
]
HESAI = [*XYZ, ("intensity", 12, F32), ("timestamp", 16, F64), ("ring", 24, U16)]  # 26 bytes
XYZIRCAEDT = [
    *XYZ,
    ("intensity", 12, U8),
    ("return_type", 13, U8),
    ("channel", 14, U16),
    ("azimuth", 16, F32),
    ("elevation", 20, F32),
    ("distance", 24, F32),
    ("time_stamp", 28, U32),
]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("height", "padding"), [(1, 0), (1, 6), (4, 0), (4, 10)])
def test_velodyne_layout_unaligned_padded_organized_and_big_endian(
    big: bool, height: int, padding: int
) -> None:
    count = 12
    columns = xyz_columns(count) | {
        "intensity": np.linspace(0, 255, count, dtype=np.float32),
        "ring": np.arange(count) * 5,
        "time": np.linspace(-0.1, 0, count, dtype=np.float32),
    }
    cloud = read_cloud(message(VELODYNE, columns, 22, height, padding, big))
    assert (cloud.height, cloud.width, len(cloud)) == (height, count // height, count)
    assert (cloud.frame_id, cloud.stamp_ns) == ("lidar", STAMP)
    np.testing.assert_array_equal(cloud.xyz, xyz_of(columns))
    np.testing.assert_allclose(cloud.intensity, columns["intensity"] / 255, rtol=1e-6)
    np.testing.assert_array_equal(cloud.ring, columns["ring"])
    np.testing.assert_allclose(cloud.time, columns["time"], atol=1e-8)
    for values in (cloud.xyz, cloud.intensity, cloud.ring, cloud.time):
        assert values is not None
        assert values.dtype.isnative
        assert values.flags.aligned


def test_ouster_layout_keeps_other_fields() -> None:
    count = 8
    columns = xyz_columns(count) | {
        "intensity": np.linspace(0, 900, count),
        "t": np.arange(count) * 12_500_000,
        "reflectivity": np.arange(count) * 3,
        "ring": np.arange(count),
        "ambient": np.arange(count) + 7,
        "range": np.arange(count) * 1000,
    }
    cloud = read_cloud(message(OUSTER, columns, 48, height=2))
    np.testing.assert_allclose(cloud.time, columns["t"] * 1e-9, atol=1e-12)
    np.testing.assert_array_equal(cloud.ring, columns["ring"])
    assert set(cloud.extra) == {"reflectivity", "ambient", "range"}
    np.testing.assert_array_equal(cloud.extra["range"], columns["range"])
    assert cloud.extra["ambient"].dtype == np.uint16


def test_hesai_absolute_times_become_relative_to_the_stamp() -> None:
    relative = np.array([0.0, 0.025, 0.0999])
    columns = xyz_columns(3) | {
        "intensity": [0, 1, 2],
        "timestamp": STAMP * 1e-9 + relative,
        "ring": [0, 1, 2],
    }
    cloud = read_cloud(message(HESAI, columns, 26))
    np.testing.assert_allclose(cloud.time, relative, atol=5e-7)  # what float64 seconds hold


def test_hesai_points_without_return_have_no_time() -> None:
    columns = xyz_columns(3) | {
        "intensity": [0, 1, 2],
        "timestamp": [0.0, STAMP * 1e-9, STAMP * 1e-9 + 0.05],
        "ring": [0, 1, 2],
    }
    time = read_cloud(message(HESAI, columns, 26)).time
    assert time is not None
    assert np.isnan(time[0])
    np.testing.assert_allclose(time[1:], [0, 0.05], atol=5e-7)


def test_livox_absolute_nanoseconds_in_float64() -> None:
    columns = xyz_columns(3) | {
        "intensity": [0, 1, 2],
        "timestamp": STAMP + np.array([0.0, 2e7, 9e7]),
        "ring": [0, 1, 2],
    }
    cloud = read_cloud(message(HESAI, columns, 26))
    np.testing.assert_allclose(cloud.time, [0, 0.02, 0.09], atol=1e-6)


def test_autoware_layout_has_uint8_intensity_channel_and_nanoseconds() -> None:
    columns = xyz_columns(3) | {
        "intensity": [0, 51, 255],
        "return_type": [1, 1, 1],
        "channel": [0, 64, 127],
        "azimuth": [0, 1, 2],
        "elevation": [0, 1, 2],
        "distance": [1, 2, 3],
        "time_stamp": [0, 1_000, 99_000_000],
    }
    cloud = read_cloud(message(XYZIRCAEDT, columns, 32))
    np.testing.assert_allclose(cloud.intensity, [0, 0.2, 1], rtol=1e-6)
    np.testing.assert_array_equal(cloud.ring, [0, 64, 127])
    np.testing.assert_allclose(cloud.time, [0, 1e-6, 0.099], atol=1e-12)


def timed(values: Any, datatype: int, **kwargs: Any) -> np.ndarray:
    layout = [*XYZ, ("time", 12, datatype)]
    columns = xyz_columns(len(values)) | {"time": values}
    cloud = read_cloud(message(layout, columns, 20), **kwargs)
    assert cloud.time is not None
    return cloud.time


SWEEP = np.linspace(0, 0.1, 200)


@pytest.mark.parametrize(
    ("per_second", "datatype"),
    [(1, F32), (1e3, F32), (1e6, F32), (1e9, F64), (1e9, U32), (1e6, U32)],
)
def test_unit_of_times_is_found_from_the_duration_of_a_sweep(
    per_second: float, datatype: int
) -> None:
    np.testing.assert_allclose(timed(SWEEP * per_second, datatype), SWEEP, atol=2e-6)


def test_unit_can_be_given() -> None:
    np.testing.assert_allclose(timed(SWEEP * 1e3, F32, time_unit="us"), SWEEP * 1e-3, atol=1e-9)


def test_impossible_times_are_left_out_and_say_what_to_set() -> None:
    msg = message([*XYZ, ("time", 12, F64)], xyz_columns(200) | {"time": SWEEP * 1e12}, 20)
    cloud = read_cloud(msg)
    assert cloud.time is None
    ((event, reason),) = cloud.problems
    assert event == TIME_PROBLEM and "time_unit" in reason
    nothing = read_cloud(msg, time_field="none")
    assert nothing.time is None and not nothing.problems


@pytest.mark.parametrize(
    ("stamp_reference", "first"), [("start", 0), ("mid", -0.05), ("end", -0.1)]
)
def test_stamp_can_mark_start_middle_or_end(stamp_reference: str, first: float) -> None:
    np.testing.assert_allclose(
        timed(SWEEP + 0.03, F32, stamp_reference=stamp_reference)[0], first, atol=1e-7
    )
    absolute = timed(SWEEP + STAMP * 1e-9 + 0.5, F64, stamp_reference=stamp_reference)
    np.testing.assert_allclose(absolute[0], first, atol=1e-6)


def test_clock_that_is_not_the_stamps_is_taken_from_the_first_point() -> None:
    np.testing.assert_allclose(timed(SWEEP + 4321.5, F64), SWEEP, atol=1e-9)  # since power-on


def test_time_field_by_name() -> None:
    columns = xyz_columns(2) | {"time": [0.0, 0.1], "when": [0.2, 0.3]}
    msg = message([*XYZ, ("time", 12, F32), ("when", 16, F32)], columns, 20)
    np.testing.assert_allclose(read_cloud(msg, time_field="when").time, [0.2, 0.3], rtol=1e-6)
    with pytest.raises(InputError, match=r"no time field 'nope'.*when"):
        read_cloud(msg, time_field="nope")
    with pytest.raises(InputError, match="time_unit must be"):
        read_cloud(msg, time_unit="minutes")


def test_nan_points_keep_their_slot() -> None:
    columns = xyz_columns(6)
    columns["y"][2] = np.nan
    columns["x"][4] = np.inf
    cloud = read_cloud(message(XYZ, columns, 12, height=2))
    np.testing.assert_array_equal(cloud.finite, [1, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(cloud.xyz, xyz_of(columns))


def test_all_nan_and_zero_points() -> None:
    nothing = read_cloud(message(XYZ, dict.fromkeys("xyz", np.full(5, np.nan)), 12))
    assert len(nothing) == 5
    assert not nothing.finite.any()
    fields = message(XYZ, xyz_columns(1), 12).fields
    for height, width in ((0, 0), (1, 0), (0, 7)):
        msg = Message(fields, b"", height, width, 12, 12 * width)
        cloud = read_cloud(msg)
        assert (len(cloud), cloud.xyz.shape) == (0, (0, 3))
        assert len(append_fields(msg, {"label": np.zeros(0, np.uint32)}).data) == 0


def test_float64_and_integer_coordinates_and_any_order() -> None:
    columns = {"z": [3, -3], "x": [1.5, -1.5], "y": [2.25, 1e300]}
    cloud = read_cloud(message([("z", 0, 3), ("x", 3, F64), ("y", 11, F64)], columns, 19))
    np.testing.assert_array_equal(cloud.xyz, [[1.5, 2.25, 3], [-1.5, np.inf, -3]])


def test_fields_with_a_count_padding_and_repeats() -> None:
    """Sub-arrays are kept; unnamed padding and a repeated name are not in the way; count 0 is 1."""
    data = struct.pack("<fff4sHHf", 1, 2, 3, b"....", 7, 8, 9.0)
    fields = [
        Field("x", 0, F32, 0),
        Field("y", 4, F32),
        Field("z", 8, F32),
        Field("", 12, U8, 4),
        Field("pair", 16, U16, 2),
        Field("w", 20, F32),
        Field("w", 0, F32),
    ]
    cloud = read_cloud(Message(fields, data, point_step=24, row_step=24))
    np.testing.assert_array_equal(cloud.xyz, [[1, 2, 3]])
    np.testing.assert_array_equal(cloud.extra["pair"], [[7, 8]])
    np.testing.assert_array_equal(cloud.extra["w"], [9])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "array", "uint8", "int8", "list"])
def test_data_of_every_message_library(kind: Any) -> None:
    columns = xyz_columns(4)
    msg = message(XYZ, columns, 12)
    convert = {
        "array": lambda d: array.array("B", d),
        "uint8": lambda d: np.frombuffer(d, np.uint8),
        "int8": lambda d: np.frombuffer(d, np.int8),
        "list": list,
    }.get(kind, kind)
    cloud = read_cloud(replace(msg, data=convert(msg.data)))
    np.testing.assert_array_equal(cloud.xyz, xyz_of(columns))


def test_ros1_header_and_no_header() -> None:
    msg = message(XYZ, xyz_columns(1), 12)
    stamp = SimpleNamespace(secs=5, nsecs=7)
    msg.header = SimpleNamespace(stamp=stamp, frame_id="velodyne")
    assert read_cloud(msg).stamp_ns == 5_000_000_007
    msg.header = None
    assert read_cloud(msg).frame_id == ""


def test_reading_is_a_view_where_the_layout_allows() -> None:
    data = np.zeros(4 * 16, np.uint8)
    fields = [Field(n, o, t) for n, o, t in [*XYZ, ("intensity", 12, F32)]]
    msg = Message(fields, data, 1, 4, 16, 64)
    cloud = read_cloud(msg)
    assert np.shares_memory(cloud.xyz, data)
    assert np.shares_memory(cloud.intensity, data)
    assert np.shares_memory(structured(msg), data)
    data[:4] = np.frombuffer(np.float32(42).tobytes(), np.uint8)
    assert cloud.xyz[0, 0] == 42
    with pytest.raises(ValueError, match="read-only"):
        cloud.xyz[0, 0] = 1


def test_structured_views_padded_rows_without_a_copy() -> None:
    data = np.arange(2 * (3 * 12 + 5), dtype=np.uint8)
    view = structured(Message([Field(*f) for f in XYZ], data, 2, 3, 12, 41))
    assert view.shape == (2, 3)
    assert np.shares_memory(view, data)
    assert view["z"][1, 2].tobytes() == data[41 + 2 * 12 + 8 : 41 + 36].tobytes()


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (np.array([0, 200], np.uint8), 1 / 255),
        (np.array([0, 20], np.uint16), 1 / 255),
        (np.array([0, 60000], np.uint16), 1 / 65536),
        (np.array([0, 0.9], np.float32), 1),
        (np.array([np.nan, 3, 255], np.float32), 1 / 255),
        (np.array([256], np.float32), 1 / 256),
        (np.array([np.nan], np.float32), 1),
        (np.zeros(0, np.float32), 1),
    ],
)
def test_intensity_scale_guess(values: np.ndarray, scale: float) -> None:
    assert guess_intensity_scale(values) == pytest.approx(scale)


def test_intensity_scale_given() -> None:
    columns = xyz_columns(2) | {"intensity": [1, 100]}
    msg = message([*XYZ, ("intensity", 12, F32)], columns, 16)
    np.testing.assert_allclose(read_cloud(msg, intensity_scale=0.01).intensity, [0.01, 1])


# --- broken messages -------------------------------------------------------------------------


def broken(**changes: Any) -> Message:
    return replace(message(XYZ, xyz_columns(6), 12, height=2), **changes)


@pytest.mark.parametrize(
    ("msg", "expected"),
    [
        (broken(fields=[Field("x", 0, F32), Field("y", 4, F32)]), "no field z .*fields: x, y"),
        (broken(fields=[]), "no field x, y, z .*none"),
        (broken(data=bytes(71)), "71 bytes.*36 \\* 2 = 72.*truncated"),
        (broken(data=b""), "0 bytes"),
        (broken(row_step=35), "row_step = 35 is shorter"),
        (broken(fields=[Field("x", 0, 9)]), "'x' has the unknown datatype 9"),
        (broken(fields=[Field("x", 0, 0)]), "unknown datatype 0"),
        (broken(fields=[Field("x", 9, F32)]), "'x' covers bytes 9 to 13, outside point_step = 12"),
        (broken(fields=[Field("x", 0, F32, 4)]), "bytes 0 to 16"),
        (broken(fields=[Field("x", -4, F32)]), "bytes -4 to 0"),
        (broken(height=-1), "impossible size: height -1"),
        (broken(point_step=2**32 - 1), "point_step 4294967295"),
        (broken(point_step=0, fields=[]), "no field x"),
        (broken(width=10**12, row_step=12 * 10**12), "truncated"),
        (
            Message([Field(a, 0, 2) for a in "xyz"], bytes(2**25 + 1), 1, 2**25 + 1, 1),
            "at most 335",
        ),
        (broken(fields=[Field(f"f{i}", 0, 2) for i in range(257)]), "257 fields, expected at most"),
        (broken(fields=[Field(f"f{i}", 0, F32) for i in range(13)]), "52 bytes of points of 12"),
        (broken(fields=[Field("x", 0, F32, 2), Field("y", 4, F32), Field("z", 8, F32)]), "count 1"),
    ],
)
def test_broken_messages_say_what_is_wrong(msg: Message, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read_cloud(msg)


def test_the_number_of_points_is_bounded() -> None:
    count = 2**25 + 1
    msg = Message([Field(a, 0, U8) for a in "xyz"], np.zeros(count, np.uint8), 1, count, 1, count)
    with pytest.raises(InputError, match="at most 33554432"):
        read_cloud(msg)


small = st.integers(-2, 40)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["x", "y", "z", "t", "", "ring"]), small, st.integers(-1, 10)),
        max_size=6,
    ),
    st.tuples(small, small, small, st.integers(-2, 500)),
    st.binary(max_size=600),
    st.booleans(),
)
def test_no_message_does_worse_than_a_clear_error(
    layout: list[tuple[str, int, int]], sizes: tuple[int, ...], data: bytes, big: bool
) -> None:
    msg = Message([Field(*f) for f in layout], data, *sizes, is_bigendian=big)
    try:
        cloud = read_cloud(msg)
    except InputError as error:
        assert str(error).startswith("cloud: ")
        return
    assert len(cloud) == max(0, sizes[0]) * max(0, sizes[1])
    out = append_fields(msg, {"label": np.zeros(len(cloud), np.uint32)})
    assert len(read_cloud(out)) == len(cloud)


def test_cloud_of_one_row_may_leave_row_step_out() -> None:
    msg = replace(message(XYZ, xyz_columns(3), 12), row_step=0)
    assert len(read_cloud(msg)) == 3


def test_rings_of_any_number_type() -> None:
    columns = xyz_columns(5) | {"ring": np.array([np.nan, -1, 7, 1e9, np.inf])}
    cloud = read_cloud(message([*XYZ, ("ring", 12, F32)], columns, 16))
    assert cloud.ring.tolist() == [0, 0, 7, 65535, 65535]


# --- writing ---------------------------------------------------------------------------------


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


def test_fields_are_converted_when_they_are_asked_for() -> None:
    """Unaligned fields over the same bytes would each be a copy."""
    layout = [*XYZ, *((f"f{i}", 13, F64) for i in range(10))]
    columns = xyz_columns(50_000)
    raw = np.zeros((50_000, 29), np.uint8)
    raw[:, :12] = np.ascontiguousarray(xyz_of(columns)).view(np.uint8)
    msg = Message([Field(*f) for f in layout], raw.reshape(-1), 1, 50_000, 29, 29 * 50_000)
    tracemalloc.start()
    cloud = read_cloud(msg)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_500_000  # ten fields are 4 MB
    assert len(cloud.extra) == 10 and cloud.extra["f3"].shape == (50_000,)
    assert cloud.extra.get("f10") is None
    assert set(replace(cloud, frame_id="other").select(np.arange(3)).extra) == set(cloud.extra)
    back = pickle.loads(pickle.dumps(cloud))
    np.testing.assert_array_equal(back.extra["f9"], cloud.extra["f9"])


# --- PointCloud ------------------------------------------------------------------------------


def test_select_by_mask_and_by_index() -> None:
    cloud = PointCloud(
        np.arange(12).reshape(4, 3),
        intensity=np.arange(4),
        time=np.arange(4),
        ring=np.arange(4),
        frame_id="lidar",
        stamp_ns=5,
        height=2,
        width=2,
        extra={"azimuth": np.arange(4.0)},
    )
    assert cloud.xyz.dtype == np.float32
    part = cloud.select(np.array([False, True, False, True]))
    assert (part.height, part.width, part.frame_id, part.stamp_ns) == (1, 2, "lidar", 5)
    swapped = cloud.select(np.array([3, 1]))
    np.testing.assert_array_equal(swapped.xyz, part.xyz[::-1])
    for values in (swapped.intensity, swapped.time, swapped.ring, swapped.extra["azimuth"]):
        np.testing.assert_array_equal(values, [3, 1])
    assert len(cloud.select(np.zeros(4, bool))) == 0


def test_organization_defaults_to_one_row() -> None:
    cloud = PointCloud(np.zeros((5, 3)))
    assert (cloud.height, cloud.width) == (1, 5)
    assert PointCloud(np.zeros((6, 3)), height=2).width == 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"xyz": np.zeros((3, 2))},
        {"xyz": np.zeros((3, 3)), "intensity": np.zeros(2)},
        {"xyz": np.zeros((3, 3)), "height": 2, "width": 2},
        {"xyz": np.zeros((3, 3)), "extra": {"a": np.zeros(4)}},
        {"xyz": [["a", "b", "c"]]},
        {"xyz": [[1, 2, None]]},
        {"xyz": np.zeros((3, 3)), "intensity": np.zeros(3, complex)},
    ],
)
def test_clouds_that_do_not_fit_together(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cloud:"):
        PointCloud(**arguments)


def test_exact_zeros_are_no_returns() -> None:
    cloud = PointCloud([[0, 0, 0], [0, 0, 1e-3], [-0.0, 0, -0.0], [np.nan, 0, 0], [3, 0, 0]])
    np.testing.assert_array_equal(cloud.finite, [0, 1, 0, 0, 1])


def test_intensities_far_above_one_raise_a_warning() -> None:
    xyz = np.ones((5000, 3))
    with pytest.warns(UserWarning, match=r"100 % of the intensities exceed 1.*such as 255"):
        PointCloud(xyz, np.linspace(0, 255, 5000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intensity = np.linspace(0, 1, 5000)
        intensity[7] = 1e30
        PointCloud(xyz, intensity)
