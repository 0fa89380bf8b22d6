# SPDX-License-Identifier: Apache-2.0
"""Broken PointCloud2 messages are refused and say what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_clouds import F32, U8, XYZ, Message, message, xyz_columns

from pcseg_core.cloud import Field, append_fields, read_cloud
from pcseg_core.errors import InputError


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
