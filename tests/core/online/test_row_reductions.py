# SPDX-License-Identifier: Apache-2.0
"""Reductions of short rows: the native ones say what plain numpy says."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.native import library
from pcseg_core.online import row_reductions as rows

needs_library = pytest.mark.skipif(
    isinstance(library.load(), str), reason="the native library was not built"
)


def assert_same_bits(found: np.ndarray, plain: np.ndarray) -> None:
    """The same bits, except where the compiler contracts multiplications and additions."""
    if platform.machine() == "x86_64":
        np.testing.assert_array_equal(found, plain)
    np.testing.assert_allclose(found, plain, atol=1e-5)


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
    for found, plain in zip((winner, most), rows._numpy_top(values), strict=True):
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
    plain = rows._numpy_means(values, used, group, groups)
    assert_same_bits(found, plain)


@needs_library
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 30), st.integers(1, 12), st.floats(0, 1), st.integers(0, 999))
def test_accumulate_fades_adds_and_compares(
    count: int, columns: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    store = rng.normal(size=(40, columns + 2)).astype(np.float32)
    store[:, -2] = rng.integers(0, 5, 40)
    at = rng.permutation(40)[:count]
    fade, look = rng.random(count, np.float32), rng.normal(size=(count, columns))
    look = look.astype(np.float32)
    native, plain = store.copy(), store.copy()
    winner, below = rows.accumulate(native, at, fade, look.copy(), share)
    others = rows._numpy_accumulate(plain, at, fade, look.copy(), share)
    for i, row in enumerate(at.tolist()):
        sums = fade[i] * store[row, :-2] + look[i]
        number = fade[i] * store[row, -2] + 1
        np.testing.assert_allclose(native[row, :-2], sums, atol=1e-5)
        assert native[row, -2] == pytest.approx(number, abs=1e-5)
        assert winner[i] == native[row, -1] == sums.argmax()
        worth = (1 + share * (number - 1)) / number
        np.testing.assert_allclose(below[i], (sums - sums.max()) * worth, atol=1e-5)
    assert_same_bits(native, plain)
    for found, other in zip((winner, below), others, strict=True):
        assert_same_bits(found, other)


@pytest.mark.parametrize("at", [[0, 5], [-1]])
@pytest.mark.parametrize("native", [True, False])
def test_a_store_has_no_other_rows(
    at: list[int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and isinstance(library.load(), str):
        pytest.skip("the native library was not built")
    if not native:
        monkeypatch.setattr(library, "load", lambda: "not built")
    store = np.ones((5, 4), np.float32)
    fade, look = np.ones(len(at), np.float32), np.zeros((len(at), 2), np.float32)
    with pytest.raises(InputError):
        rows.accumulate(store, np.array(at), fade, look, 0.1)
    assert (store == 1).all()


@needs_library
@pytest.mark.parametrize("used, group", [([5], [0]), ([-1], [0]), ([0], [3]), ([0], [-1])])
def test_rows_and_groups_that_do_not_exist_are_refused(used: list[int], group: list[int]) -> None:
    values = np.zeros((5, 2), np.float32)
    with pytest.raises(InputError):
        rows.means(values, np.array(used), np.array(group, np.int32), 3)


@needs_library
def test_rows_in_any_layout_give_the_same() -> None:
    wide = np.random.default_rng(0).random((9, 8), np.float32)
    for values in (
        wide[::-1],
        wide[:, ::2],
        wide.T,
        wide.astype(np.float64),
        np.broadcast_to(wide[0], (200, 8)),
        wide[::3, 1:4],
    ):
        winner, most = rows.top(values)
        np.testing.assert_array_equal(winner, values.argmax(1))
        np.testing.assert_array_equal(most, values.max(1).astype(np.float32))
        used, group = np.arange(len(values)), np.zeros(len(values), np.int32)
        mean = rows.means(values, used, group, 1)
        np.testing.assert_allclose(mean[0], values.mean(0), atol=1e-5)


def test_shapes_that_differ_are_refused() -> None:
    """The native library would read and write beyond the arrays."""
    values, at = np.zeros((5, 4), np.float32), np.arange(3)
    for wrong in (values[0], values[:, :0], values[None]):
        with pytest.raises(InputError, match="matrix"):
            rows.top(wrong)
        with pytest.raises(InputError, match="matrix"):
            rows.means(wrong, at, at, 3)
    with pytest.raises(InputError, match="one group"):
        rows.means(values, at, at[:2], 3)
    with pytest.raises(InputError, match="number of groups"):
        rows.means(values, at, at, -1)
    fade, look = np.ones(3, np.float32), np.zeros((3, 2), np.float32)
    frozen = values.copy()
    frozen.flags.writeable = False
    for store, fades, looks in (
        (values[:, :3].copy(), fade, look),
        (values[:, ::2], fade, look[:, :0]),
        (values.astype(np.float64), fade, look),
        (frozen, fade, look),
        (values, fade[:2], look),
        (values, fade, look[:2]),
    ):
        with pytest.raises(InputError, match="float32 store"):
            rows.accumulate(store, at, fades, looks, 0.1)
