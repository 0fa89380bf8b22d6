# SPDX-License-Identifier: Apache-2.0
"""Which sweeps of several LiDARs are united: rates, delays, clocks, restarts."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.data.lidar_sets import LATE, OTHER_CLOCK, REPEATED, LidarSet, LidarSets, join_stamps

MS = 1_000_000
Event = tuple[int, str, int]  # arrival [ms], LiDAR, stamp [ms]


def play(
    sets: LidarSets[int], events: list[Event], origin_ms: int = 10_000
) -> tuple[list[tuple[float, LidarSet[int]]], list[str]]:
    """Sets with the time [ms] at which they left, and why sweeps came into none."""
    given_out: list[tuple[float, LidarSet[int]]] = []
    reasons = []
    for arrival, lidar, stamp in sorted(events):
        while (due := sets.next_deadline_s) is not None and 1e3 * due <= arrival:
            given_out += [(1e3 * due, one) for one in sets.poll(due)]
        reasons.append(sets.add(lidar, (stamp + origin_ms) * MS, stamp, 1e-3 * arrival))
        given_out += [(arrival, one) for one in sets.poll(1e-3 * arrival)]
    while (due := sets.next_deadline_s) is not None:
        given_out += [(1e3 * due, one) for one in sets.poll(due)]
    return given_out, reasons


def steady(lidar: str, count: int, period: int = 100, phase: int = 0, delay: int = 100) -> list:
    return [(phase + k * period + delay, lidar, phase + k * period) for k in range(count)]


def members(given_out: list[tuple[float, LidarSet[int]]]) -> list[dict[str, int]]:
    return [one.items for _, one in given_out]


def test_equal_stamps_and_other_phases_are_joined_at_once() -> None:
    events = steady("a", 5) + steady("b", 5) + steady("c", 5, phase=45)
    given_out, _ = play(LidarSets(["a", "b", "c"], 0.06, 0.08), events)
    assert members(given_out) == [{"a": k, "b": k, "c": k + 45} for k in range(0, 500, 100)]
    assert [round(left) for left, _ in given_out] == [k + 145 for k in range(0, 500, 100)]


def test_a_dead_one_costs_the_deadline_for_half_a_second() -> None:
    events = steady("a", 20) + [e for e in steady("b", 20) if not 500 <= e[2] < 1500]
    sets: LidarSets[int] = LidarSets(["a", "b"], 0.06, 0.08)
    given_out, _ = play(sets, events)
    waits = {
        one.items["a"]: left - one.items["a"] - 100 for left, one in given_out if "a" in one.items
    }
    assert len(waits) == 20 and sets.states["b"].missed == 11
    assert all(waits[k] < 1 for k in range(0, 500, 100))
    assert all(0 <= wait < 81 for wait in waits.values())
    assert all(waits[k] < 1 for k in range(1000, 1600, 100))  # no longer waited for
    assert members(given_out)[-4:] == [{"a": k, "b": k} for k in range(1600, 2000, 100)]


def test_the_first_one_may_die_too() -> None:
    events = steady("a", 5) + steady("b", 15, phase=20)
    given_out, _ = play(LidarSets(["a", "b"], 0.06, 0.08), events)
    assert members(given_out)[5:] == [{"b": 20 + k} for k in range(500, 1500, 100)]


def test_a_faster_one_is_used_whole() -> None:
    events = steady("a", 5) + steady("b", 10, period=50)
    given_out, _ = play(LidarSets(["a", "b"], 0.06, 0.08), events)
    assert sum("b" in one for one in members(given_out)) == 10
    assert sum("a" in one for one in members(given_out)) == 5


def test_a_late_one_is_left_out_and_counted() -> None:
    shortly = steady("a", 5) + steady("b", 5, delay=195)
    given_out, _ = play(LidarSets(["a", "b"], 0.06, 0.05), shortly)
    assert [*sorted(members(given_out), key=str)] == [
        *({"a": k} for k in range(0, 500, 100)),
        *({"b": k} for k in range(0, 500, 100)),
    ]
    events = steady("a", 5) + steady("b", 5, delay=295)
    sets: LidarSets[int] = LidarSets(["a", "b"], 0.06, 0.05)
    given_out, reasons = play(sets, events)
    given_out = [one for one in given_out if "a" in one[1].items]
    assert members(given_out) == [{"a": k} for k in range(0, 500, 100)]
    assert reasons.count(LATE) == 4 and sets.states["b"].unused == {LATE: 4}


def test_another_clock_is_left_out() -> None:
    shifted = [(arrival, "b", stamp + 400) for arrival, _, stamp in steady("b", 9)]
    sets: LidarSets[int] = LidarSets(["a", "b"], 0.06, 0.08)
    given_out, reasons = play(sets, steady("a", 9) + shifted)
    assert members(given_out) == [{"a": k} for k in range(0, 900, 100)]
    assert reasons.count(OTHER_CLOCK) == 9
    assert abs(sets.states["b"].offset_s - 0.4) < 0.01
    waits = [left - one.items["a"] - 100 for left, one in given_out]
    assert max(waits[1:]) < 1  # nor is it waited for


def test_a_bag_that_starts_again_and_repeated_stamps() -> None:
    first, again = steady("a", 20) + steady("b", 20), steady("a", 5) + steady("b", 5)
    later = [(arrival + 3000, lidar, stamp) for arrival, lidar, stamp in again]
    sets: LidarSets[int] = LidarSets(["a", "b"], 0.06, 0.08)
    given_out, reasons = play(sets, [*first, (1950, "a", 1800), *later])
    assert reasons.count(REPEATED) == 1
    both = [one for one in members(given_out) if len(one) == 2]
    assert both[:20] == [{"a": k, "b": k} for k in range(0, 2000, 100)]
    assert both[-4:] == [{"a": k, "b": k} for k in range(100, 500, 100)]


def test_stamps_of_a_recording() -> None:
    stamps = {"a": np.arange(5) * 100 * MS, "b": np.arange(8) * 100 * MS + 300 * MS}
    found = [one.items for one in join_stamps(stamps, 0.06)]
    assert found == [
        *({"a": k} for k in range(3)),
        *({"a": 3 + k, "b": k} for k in range(2)),
        *({"b": k} for k in range(2, 8)),
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.sampled_from("abc"), st.integers(-400, 400)), max_size=40
    )
)
def test_whatever_arrives(raw: list[Event]) -> None:
    """Sweeps are in one set at most, near to each other, on time; stamps of sets increase."""
    events = [(arrival, lidar, arrival + shift) for arrival, lidar, shift in raw]
    arrivals = {(lidar, stamp): arrival for arrival, lidar, stamp in sorted(events, reverse=True)}
    given_out, reasons = play(LidarSets("abc", 0.06, 0.08), events)
    used = [(lidar, stamp) for one in members(given_out) for lidar, stamp in one.items()]
    assert len(used) == len(set(used)) == reasons.count("")
    for left, one in given_out:
        spread = max(one.stamps_ns.values()) - min(one.stamps_ns.values())
        assert spread <= 60 * MS
        assert left <= 1e3 * one.arrived_s + 80.001
        first = min(arrivals[lidar, stamp] for lidar, stamp in one.items.items())
        assert left + 0.001 >= first
    stamps = [one.stamp_ns for _, one in given_out]
    assert stamps == sorted(set(stamps))
