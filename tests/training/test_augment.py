# SPDX-License-Identifier: Apache-2.0
"""Changes of clouds that resemble other ranges and sensors."""

import numpy as np
import pytest
from small_runs import STREET

from pcseg_core.config import parse_section
from pcseg_core.corruptions import CORRUPTIONS
from pcseg_core.distill.pixels import PointPixels
from pcseg_core.errors import InputError
from pcseg_core.labels import IGNORE
from pcseg_core.learning.augment import (
    AugmentConfig,
    augment_intensity,
    augment_points,
    corrupt_some,
    elevation_bands,
    thin,
)
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.finetune import FinetuneRecipe
from pcseg_core.learning.mixing import Cloud
from pcseg_core.learning.recipe import Recipe
from pcseg_core.learning.sectors import LabeledSectors
from pcseg_core.learning.self_labels import RoundsConfig

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


def labeled(points: int = 6000) -> Cloud:
    """Ground and walls around the sensor; the confidence tells the point, the class its kind."""
    rng = np.random.default_rng(0)
    angle, far = rng.uniform(-np.pi, np.pi, points), rng.uniform(5, 60, points)
    height = np.where(np.arange(points) % 2, rng.uniform(-1, 3, points), -1.7)
    xyz = np.stack([far * np.cos(angle), far * np.sin(angle), height], axis=1)
    label = np.where(height < -1.5, STREET.index("road"), STREET.index("vehicle"))
    number = np.arange(points)
    sure = ((number + 1) / points).astype(np.float32)
    return Cloud(xyz.astype(np.float32), np.full(points, 0.3, np.float32), label, sure, number)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_points_keep_their_labels_and_invented_ones_have_none(name: str) -> None:
    before = labeled()
    after = [corrupt_some(before, {name: 1.0}, STREET, np.random.default_rng(s)) for s in (1, 2, 3)]
    moved = 0
    for cloud in after:
        assert len(cloud.xyz) == len(cloud.intensity) == len(cloud.label) == len(cloud.origin)
        assert cloud.xyz.dtype == cloud.intensity.dtype == cloud.confidence.dtype == np.float32
        own = cloud.origin != IGNORE
        np.testing.assert_array_equal(cloud.label[own], before.label[cloud.origin[own]])
        np.testing.assert_array_equal(cloud.confidence[own], before.confidence[cloud.origin[own]])
        assert (cloud.label[~own] == IGNORE).all() and (cloud.confidence[~own] == 0).all()
        same = before.xyz[cloud.origin[own]] == cloud.xyz[own]
        moved += len(before.xyz) - int(own.sum()) + int((~same).any(axis=1).sum())
        moved += int((before.intensity[cloud.origin[own]] != cloud.intensity[own]).sum())
    assert moved > 0
    few = before.take(np.arange(3))
    assert len(corrupt_some(few, {name: 1.0}, STREET, np.random.default_rng(0)).xyz) <= 3


def test_a_share_of_the_clouds_has_each_corruption() -> None:
    before, shares = labeled(600), {"motion-blur": 0.25, "beam-missing": 0.5}
    after = [corrupt_some(before, shares, None, np.random.default_rng(s)) for s in range(200)]
    clean = np.mean([cloud is before for cloud in after])
    fewer = np.mean([len(cloud.xyz) < 600 for cloud in after])
    assert clean == pytest.approx(0.25, abs=0.08) and fewer == pytest.approx(0.5, abs=0.1)
    rng = np.random.default_rng(0)
    assert corrupt_some(before, {}, None, rng) is before
    assert rng.random() == np.random.default_rng(0).random()  # other augmentation stays the same


def test_features_stay_with_the_points_of_corrupted_sectors() -> None:
    cloud = labeled()
    pixels = PointPixels(cloud.origin, image=cloud.confidence[:, None].astype(np.float16))
    sweep = TrainingSweep(
        cloud.xyz, cloud.intensity, cloud.label.astype(np.int16), cloud.confidence, "a", pixels
    )
    recipe = FinetuneRecipe(
        augment={"corrupt": {"crosstalk": 1.0}}, optimizer={"batch_size": 2, "sector_deg": 360}
    )
    for batch in LabeledSectors([sweep], recipe).draw(0):
        assert batch.pixels is not None and batch.pixels.image is not None
        sure = batch.confidence[batch.pixels.point].numpy()
        np.testing.assert_allclose(batch.pixels.image[:, 0].numpy(), sure, atol=1e-3)
        assert len(batch.pixels.point) == (batch.confidence > 0).sum() < len(batch.points.xyz)


def test_wrong_corruptions_are_refused() -> None:
    for shares, expected in (
        ({"hail": 0.1}, "no corruption 'hail'; expected one of fog"),
        ({"fog": -0.1}, "corrupt.fog is -0.1; expected a share in 0..1"),
        ({"fog": 0.6, "snow": 0.6}, "expected a sum up to 1"),
    ):
        with pytest.raises(InputError, match=expected):
            parse_section({"augment": {"corrupt": shares}}, FinetuneRecipe, "own.yaml")
        with pytest.raises(InputError, match=expected):
            parse_section({"corrupt": shares}, RoundsConfig, "own.yaml")
    recipe = FinetuneRecipe(augment={"corrupt": {"wet-ground": 0.1}})
    with pytest.raises(InputError, match=r"wet-ground needs one of .*road.*; the labels have none"):
        LabeledSectors([], recipe)
    assert LabeledSectors([], recipe, STREET).space is STREET
    encoder = {"encoder": {"name": "resnet50"}, "augment": {"corrupt": {"fog": 0.1}}}
    with pytest.raises(InputError, match=r"augment\.corrupt is for training with labels"):
        parse_section(encoder, Recipe, "own.yaml")
