# SPDX-License-Identifier: Apache-2.0
"""The scale of intensities: one factor for a topic, whatever single points show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcseg_core.errors import InputError
from pcseg_core.intensity import IntensityScale, guess_intensity_scale


def sweep(top: float, dtype: str = "f4", points: int = 120_000) -> npt.NDArray[np.generic]:
    """Intensities that fill 0..top, many of them dark."""
    return (np.random.default_rng(0).beta(1, 3, points) * top).astype(dtype)


@pytest.mark.parametrize(
    ("top", "dtype", "bright", "factor"),
    [
        (255, "f4", 260, 1 / 255),
        (255, "u2", 260, 1 / 255),
        (255, "u2", 65535, 1 / 255),
        (1, "f4", 1.01, 1),
        (1, "f4", 1e30, 1),
        (1, "f8", np.inf, 1),
        (255, "f4", np.nan, 1 / 255),
        (255, "i4", -1, 1 / 255),
        (4095, "u2", 65535, 1 / 4096),
        (65535, "f4", 1e30, 1 / 65536),
    ],
)
def test_one_bright_point_changes_no_other(
    top: float, dtype: str, bright: float, factor: float
) -> None:
    values = sweep(top, dtype)
    expected = IntensityScale().apply(values)
    values[17] = bright
    scale = IntensityScale()
    scaled = scale.apply(values)
    assert scale.factor == pytest.approx(factor)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(np.delete(scaled, 17), np.delete(expected, 17))


def test_the_factor_is_held_after_the_first_sweeps() -> None:
    scale = IntensityScale(sweeps=3)
    assert (scale.factor, scale.source, str(scale)) == (None, "", "intensity scale not known yet")
    for count in range(1, 4):
        assert not scale.final
        scale.observe(sweep(255))
        assert scale.source == f"guessed from {count} sweep{'s' if count > 1 else ''}"
    assert scale.final and scale.observe(sweep(60000)) == pytest.approx(1 / 255)
    assert str(scale) == "intensity scale 0.00392157 (guessed from 3 sweeps)"


def test_sweeps_without_returns_do_not_count() -> None:
    scale = IntensityScale()
    for values in (np.zeros(0, "f4"), np.zeros(5000, "f4"), np.full(5000, np.nan), np.ones(3)):
        scale.observe(values)
        assert not scale.final
    assert scale.observe(sweep(255)) == pytest.approx(1 / 255)


def test_a_damaged_sweep_among_the_first_is_outvoted() -> None:
    scale = IntensityScale()
    for share in (0, 0.03, 0, 0, 0):
        values = sweep(255)
        values[: int(share * len(values))] = 1e30
        scale.observe(values)
    assert scale.factor == pytest.approx(1 / 255)


def test_dark_sweeps_of_a_bright_sensor_are_recognized() -> None:
    scale = IntensityScale()
    for top in (1, 240, 1):
        scale.observe(sweep(top))
    assert scale.factor == pytest.approx(1 / 255)


def test_given_beats_the_checkpoint_which_beats_the_type_and_the_guess() -> None:
    values = sweep(255, "u1")
    for scale, source, factor in (
        (IntensityScale(0.5, trained=0.25), "given", 0.5),
        (IntensityScale(0, trained=0.25), "checkpoint", 0.25),
        (IntensityScale(), "range of uint8", 1 / 255),
    ):
        assert scale.observe(values) == pytest.approx(factor)
        assert (scale.source, scale.final) == (source, True)


@pytest.mark.parametrize("factor", [-1.0, np.nan, np.inf])
def test_impossible_factors_are_refused(factor: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        IntensityScale(factor)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1.0, 255.0, 1000.0, 4095.0, 65535.0]),
    st.lists(st.floats(width=32), max_size=20),
)
def test_any_few_values_leave_the_factor(top: float, outliers: list[float]) -> None:
    values = sweep(top, points=5000)
    expected = guess_intensity_scale(values)
    values[: len(outliers)] = outliers
    assert guess_intensity_scale(values) == expected
