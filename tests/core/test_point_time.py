# SPDX-License-Identifier: Apache-2.0
"""Per-point times: unit and span from the bulk, wrong times cost their points alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.cloud import TIME_PROBLEM, encode_cloud, read_cloud
from pcseg_core.point_time import (
    LONGEST_SWEEP_S,
    TIME_NAMES,
    find_time_field,
    possible_time_fields,
    read_time,
    unit_of_name,
)

STAMP = 1_700_000_000_123_456_789
N = 20_000
SWEEP = np.linspace(0, 0.1, N)


def times(values: np.ndarray, unit: str = "auto") -> tuple[np.ndarray, str]:
    result, problem = read_time(values, unit, "auto", STAMP)
    assert result is not None
    return result, problem


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ((SWEEP * 1e9).astype(np.uint32), 3604361924),
        (SWEEP.copy(), 3600.0),
        (SWEEP.astype(np.float32), -1e30),
        ((SWEEP * 1e6).astype(np.uint32), 2**32 - 1),
        (SWEEP + STAMP * 1e-9, 1.0),
        (SWEEP * 1e9 + STAMP, 1e9),
    ],
)
def test_outliers_are_unknown_for_their_points_alone(values: np.ndarray, wrong: float) -> None:
    values[:10] = wrong
    result, problem = times(values)
    assert np.isnan(result[:10]).all() and problem.startswith(f"10 of {N} points")
    np.testing.assert_allclose(result[10:], SWEEP[10:], atol=2e-6 if values[20] < 1e9 else 6e-5)


def test_unknown_times_are_no_problem() -> None:
    values = SWEEP.copy()
    values[::2] = np.nan
    result, problem = times(values)
    assert not problem and np.array_equal(np.isnan(result), np.isnan(values))
    nothing, problem = times(np.full(5, np.nan))
    assert np.isnan(nothing).all() and not problem
    absolute = SWEEP + STAMP * 1e-9
    absolute[: N // 2 + 5000] = 0  # no returns: most of the points
    result, problem = times(absolute)
    assert not problem and np.isnan(result[0]) and result[-1] == pytest.approx(0.1, abs=1e-2)


@pytest.mark.parametrize("values", [[0, 3e5], [0.0, 6.0], [-1e308, 1e308], np.arange(300) * 1e20])
def test_times_longer_than_a_sweep_are_left_out_whatever_its_size(values: list[float]) -> None:
    result, problem = read_time(np.asarray(values, np.float64), "auto", "auto", STAMP)
    assert result is None and "more than 5 s" in problem and "time_unit" in problem


def test_a_given_unit_is_bounded_too() -> None:
    result, problem = read_time(SWEEP * 1e3, "s", "auto", STAMP)
    assert result is None and "span 100 s as s" in problem


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("stamps", SWEEP),
        ("time_offset_ns", (SWEEP * 1e9).astype(np.int32)),
        ("offset_ns", (SWEEP * 1e9).astype(np.int32)),
        ("offset_us", SWEEP.astype(np.float32) * 1e6),
        ("t_ms", SWEEP.astype(np.float32) * 1e3),
        ("timestamp_s", SWEEP),
    ],
)
def test_names_of_drivers_and_data_sets(name: str, values: np.ndarray) -> None:
    few = encode_cloud({a: np.ones(3, np.float32) for a in "xyz"} | {name: values[[0, 9, -1]]})
    cloud = read_cloud(few)  # too few points for a guess: the suffix gives the unit
    np.testing.assert_allclose(cloud.time, SWEEP[[0, 9, -1]], atol=1e-6)
    assert not cloud.problems and name not in cloud.extra


def test_units_of_names() -> None:
    assert unit_of_name("time_offset_ns") == "ns" and unit_of_name("t_us") == "us"
    assert unit_of_name("time") == unit_of_name("stamps") == unit_of_name("ns") == "auto"
    assert not [n for n in TIME_NAMES if n not in possible_time_fields(TIME_NAMES) and n != "t"]


def test_fields_that_look_like_times() -> None:
    names = ["x", "intensity", "rings", "fire_time", "gpsTime", "packet_stamp", "dt_ns", "offset"]
    assert possible_time_fields(names) == ["fire_time", "gpsTime", "packet_stamp", "dt_ns"]


def test_a_sweep_is_not_refused_for_its_times() -> None:
    columns = {a: np.ones(300, np.float32) for a in "xyz"} | {"time": np.arange(300) * 1e9}
    cloud = read_cloud(encode_cloud(columns))
    assert len(cloud) == 300 and cloud.time is None
    assert [event for event, _ in cloud.problems] == [TIME_PROBLEM]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(), max_size=30),
    st.sampled_from(["auto", "s", "ms", "us", "ns"]),
    st.sampled_from(["auto", "start", "mid", "end"]),
    st.sampled_from(["f8", "f4", "u4", "i4", "u1"]),
    st.integers(1, 20),
)
def test_any_times_give_a_possible_sweep_or_none(
    values: list[float], unit: str, reference: str, dtype: str, repeats: int
) -> None:
    with np.errstate(all="ignore"):
        stored = np.repeat(np.array(values), repeats).astype(dtype)
    result, problem = read_time(stored, unit, reference, STAMP)
    if result is None:
        assert problem
        return
    known = result[np.isfinite(result)]
    assert result.shape == stored.shape and not np.isinf(result).any()
    assert len(known) == 0 or np.ptp(known) <= LONGEST_SWEEP_S + 1e-9
    assert np.abs(known).max(initial=0) <= 20


def test_a_preferred_field_is_taken_where_it_is() -> None:
    assert find_time_field(["t", "time", "other"], "auto:other") == "other"
    assert find_time_field(["t", "time"], "auto:other") == find_time_field(["t", "time"], "auto")
    assert find_time_field(["x"], "auto:other") is None
