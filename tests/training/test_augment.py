# SPDX-License-Identifier: Apache-2.0
"""Changes of clouds that resemble other ranges and sensors."""

import numpy as np
import pytest

from pcseg_core.learning.augment import (
    AugmentConfig,
    augment_intensity,
    augment_points,
    elevation_bands,
    thin,
)

STILL = AugmentConfig(
    rotate=False, flip=False, scale=0, shift_z_m=0, tilt_deg=0, jitter_m=0, intensity_gain=0
)


class Fixed(np.random.Generator):
    """Random numbers whose ranges end at what is drawn: uniform gives the upper end."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low=0.0, high=1.0, size=None):  # type: ignore[no-untyped-def, override]
        return high if size is None else np.full(size, high)


def sphere(radius_m: float) -> np.ndarray:
    """A point in the middle of every cell of 0.4 by 0.2 degrees, up to 20 degrees of elevation."""
    azimuth, elevation = np.radians(
        np.meshgrid(np.arange(-180, 180, 0.2) + 0.1, np.arange(-20, 20, 0.4) + 0.2)
    )
    flat = np.cos(elevation)
    rays = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]
    return (radius_m * np.stack(rays, -1).reshape(-1, 3)).astype(np.float32)


@pytest.mark.parametrize("beams", [0.0, 1.0])
def test_near_points_are_kept_as_often_as_if_measured_from_afar(beams: float) -> None:
    config = AugmentConfig(thin_m=20, thin_beams=beams)
    for radius, share in ((5.0, 1 / 16), (10.0, 1 / 4), (19.0, 0.9025), (25.0, 1.0)):
        kept = thin(sphere(radius), config, Fixed())
        assert kept.mean() == pytest.approx(share, abs=0.01)


def test_thinned_beams_are_evenly_spaced() -> None:
    points = sphere(10.0)
    kept = thin(points, AugmentConfig(thin_m=20, thin_beams=1), Fixed())
    bands = np.unique(elevation_bands(points[kept], 0.4))
    assert len(bands) == 50 and set(np.diff(bands)) <= {1, 2, 3}


def test_a_coarse_sensor_keeps_every_kth_band_and_column() -> None:
    points = sphere(10.0)
    for seed in range(8):
        kept = thin(points, AugmentConfig(coarse=1.0), np.random.default_rng(seed))
        bands = np.unique(elevation_bands(points[kept], 0.4))
        (step,) = set(np.diff(bands))
        columns = kept.sum() / len(bands)
        assert step in (2, 3, 4) and round(1800 / columns) in (1, 2, 3)
    assert thin(points, AugmentConfig(), np.random.default_rng(0)).all()


def test_axes_are_stretched_alone() -> None:
    points = sphere(10.0)[::50]
    moved = augment_points(
        points, STILL.model_copy(update={"stretch": 0.2}), np.random.default_rng(0)
    )
    factors = moved / points
    assert np.ptp(factors, axis=0) == pytest.approx(0, abs=1e-3)
    assert len(np.unique(factors[0].round(3))) == 3 and np.abs(factors[0] - 1).max() <= 0.2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.0, 0.25, 1.0]),
        ({"intensity_gamma": 1.0}, [0.0, 0.0625, 1.0]),
        ({"intensity_offset": 0.1}, [0.1, 0.35, 1.0]),
        ({"intensity_gain": 0.2}, [0.0, 0.3, 1.0]),
        ({"intensity_drop": 1.0}, [0.0, 0.0, 0.0]),
    ],
)
def test_intensities_by_hand(options: dict[str, float], expected: list[float]) -> None:
    values = np.array([0.0, 0.25, 1.0], np.float32)
    found = augment_intensity(values, STILL.model_copy(update=options), Fixed())
    assert found.tolist() == pytest.approx(expected) and found.dtype == np.float32


def test_a_random_curve_of_intensities_rises_and_noise_has_its_deviation() -> None:
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    curved = [
        augment_intensity(
            values, STILL.model_copy(update={"intensity_curve": 1.0}), np.random.default_rng(seed)
        )
        for seed in range(5)
    ]
    for curve in curved:
        assert (np.diff(curve) >= 0).all() and curve[0] == 0 and curve[-1] == pytest.approx(1)
    assert max(np.abs(curve - values).max() for curve in curved) > 0.1
    flat = np.full(20_000, 0.5, np.float32)
    noisy = STILL.model_copy(update={"intensity_noise": 0.05})
    found = augment_intensity(flat, noisy, np.random.default_rng(0))
    assert found.std() == pytest.approx(0.05, rel=0.05)
    assert (flat == 0.5).all()  # the sweep itself stays
