# SPDX-License-Identifier: Apache-2.0
"""Reductions of short rows: the native ones say what plain numpy says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.online import rows
from pcseg_core.sparse.native import library

needs_library = pytest.mark.skipif(
    isinstance(library.load(), str), reason="the native library was not built"
)


@needs_library
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 3), st.integers(0, 999))
def test_top_is_the_first_of_the_largest(count: int, columns: int, extra: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wide = rng.integers(-3, 4, (count, columns + extra)).astype(np.float32)  # many are equal
    values = wide[:, :columns]
    winner, most = rows.top(values)
    assert winner.dtype == np.int32 and most.dtype == np.float32
    np.testing.assert_array_equal(winner, values.argmax(1) if count else [])
    np.testing.assert_array_equal(most, values.max(1) if count else [])
    for found, plain in zip((winner, most), rows._plain_top(values), strict=True):
        np.testing.assert_array_equal(found, plain)


@needs_library
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 9), st.integers(0, 999))
def test_means_by_group(count: int, columns: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((count, columns), dtype=np.float32)
    used = np.flatnonzero(rng.random(count) < 0.7)
    group = rng.integers(0, groups, len(used)).astype(np.int32)
    found = rows.means(values, used, group, groups)
    for g in range(groups):
        member = values[used[group == g]].astype(np.float64)
        expected = member.mean(0) if len(member) else np.zeros(columns)
        np.testing.assert_allclose(found[g], expected, atol=1e-6)
    plain = rows._plain_means(values, used, group, groups)
    np.testing.assert_allclose(found, plain, atol=1e-6)


@needs_library
@pytest.mark.parametrize("used, group", [([5], [0]), ([-1], [0]), ([0], [3]), ([0], [-1])])
def test_rows_and_groups_that_do_not_exist_are_refused(used: list[int], group: list[int]) -> None:
    values = np.zeros((5, 2), np.float32)
    with pytest.raises(InputError):
        rows.means(values, np.array(used), np.array(group, np.int32), 3)
