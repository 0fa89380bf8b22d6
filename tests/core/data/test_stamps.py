# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pcseg_core.data.stamps import longest_increasing, nearest


def test_a_jump_ahead_costs_one_message() -> None:
    np.testing.assert_array_equal(longest_increasing(np.array([1, 2, 99, 3, 4])), [0, 1, 3, 4])


def test_a_clock_set_back_costs_the_shorter_part() -> None:
    np.testing.assert_array_equal(longest_increasing(np.array([7, 8, 1, 2, 3])), [2, 3, 4])


def test_repeats_are_dropped() -> None:
    assert len(longest_increasing(np.array([5, 5, 5]))) == 1
    assert len(longest_increasing(np.array([], dtype=np.int64))) == 0


@given(st.lists(st.integers(0, 8), max_size=12))
def test_it_is_increasing_and_as_long_as_can_be(stamps: list[int]) -> None:
    kept = longest_increasing(np.array(stamps, dtype=np.int64))
    chosen = [stamps[i] for i in kept]
    assert all(a < b for a, b in pairwise(chosen))
    assert all(a < b for a, b in pairwise(kept))
    best = [1] * len(stamps)
    for i in range(len(stamps)):
        best[i] = 1 + max((best[j] for j in range(i) if stamps[j] < stamps[i]), default=0)
    assert len(kept) == max(best, default=0)


@given(st.lists(st.integers(-50, 50), min_size=1, unique=True).map(sorted), st.integers(-60, 60))
def test_nearest(stamps: list[int], stamp: int) -> None:
    found = stamps[nearest(np.array(stamps), stamp)]
    assert abs(found - stamp) == min(abs(s - stamp) for s in stamps)


def test_of_two_stamps_the_one_near_the_others_is_kept() -> None:
    assert longest_increasing(np.array([100, 7, 101, 102])).tolist() == [0, 2, 3]
    assert longest_increasing(np.array([100, 101, 900, 102])).tolist() == [0, 1, 3]
