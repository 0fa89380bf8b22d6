# SPDX-License-Identifier: Apache-2.0
"""Reading PointCloud2: the layouts that drivers send, times, rings, intensities, views."""

from __future__ import annotations

import array
import pickle
import struct
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packed_clouds import (
    F32,
    F64,
    STAMP,
    U8,
    U16,
    U32,
    VELODYNE,
    XYZ,
    Message,
    message,
    xyz_columns,
    xyz_of,
)

from pcseg_core.cloud import (
    TIME_PROBLEM,
    Field,
    append_fields,
    guess_intensity_scale,
    read_cloud,
    structured,
)
from pcseg_core.errors import InputError

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


def test_cloud_of_one_row_may_leave_row_step_out() -> None:
    msg = replace(message(XYZ, xyz_columns(3), 12), row_step=0)
    assert len(read_cloud(msg)) == 3


def test_rings_of_any_number_type() -> None:
    columns = xyz_columns(5) | {"ring": np.array([np.nan, -1, 7, 1e9, np.inf])}
    cloud = read_cloud(message([*XYZ, ("ring", 12, F32)], columns, 16))
    assert cloud.ring.tolist() == [0, 0, 7, 65535, 65535]


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
