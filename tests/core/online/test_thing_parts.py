# SPDX-License-Identifier: Apache-2.0
"""Parts of things, natively and by plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_and_numpy import SEEDS, both, properties

from pcseg_core.native import library
from pcseg_core.online.thing_parts import Rectangles, join_parts

pytestmark = pytest.mark.skipif(
    isinstance(library.load(), str), reason="the native library was not built"
)


@properties
@given(SEEDS, st.integers(0, 40), st.floats(2.0, 30.0))
def test_parts_of_things(seed: int, count: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    bottom = rng.uniform(-2, -1, count)
    found = Rectangles.of(
        rng.uniform(-spread, spread, (count, 2)) + 4e5,
        rng.uniform(0, np.pi / 2, count),
        rng.uniform(0.05, 3.0, (count, 2)),
        bottom,
        bottom + rng.uniform(0.05, 3.0, count),
        rng.integers(0, 4, count),
    )
    sensor = np.array([4e5, 4e5, 0.0])
    native, expected = both(lambda: join_parts(found, sensor))
    np.testing.assert_array_equal(native, expected)


def test_pairs_at_limits_are_the_same() -> None:
    """Behind each other and beside each other, just nearer or farther than parts are."""
    for gap in (0.4, 0.6, 1.2, 1.4, 1.7, 1.9):
        for way, width, most in (
            ((gap + 0.2, 0.0), 1.0, 1.3),
            ((gap + 0.2, 0.0), 1.5, 1.8),
            ((0.0, gap + 1.5), 1.5, 0.5),
        ):
            center = np.array([(20.0, 0.0), (20.0 + way[0], way[1])])
            size, low = np.tile([0.2, width], (2, 1)), np.array([-1.7, -1.2])
            found = Rectangles.of(center, np.zeros(2), size, low, low + 1.0, np.full(2, 2))
            native, expected = both(lambda found=found: join_parts(found, np.zeros(3)))
            one = gap < most
            assert native.tolist() == expected.tolist() == ([0, 0] if one else [0, 1])
