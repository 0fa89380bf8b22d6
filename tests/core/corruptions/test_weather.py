# SPDX-License-Identifier: Apache-2.0
"""Fog, wet ground and snow against formulas and simulations written out in the tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from pcseg_core.cloud import PointCloud
from pcseg_core.corruptions import LabeledCloud, Severity, corrupt
from pcseg_core.corruptions.fog import fog_return
from pcseg_core.corruptions.snow import Snowfall, flake_distance, strongest_flake
from pcseg_core.corruptions.wet_ground import fresnel, wet_share
from pcseg_core.labels import LabelSpace

STREET = LabelSpace.load("street")
LIGHT_MPS = 299_792_458.0


def ahead(distances: np.ndarray, intensity: float) -> LabeledCloud:
    """Points at given distances, in all directions of a cone."""
    turn = np.linspace(0, 6, len(distances))
    xyz = distances[:, None] * np.stack([np.cos(turn), np.sin(turn) * 0.8, np.sin(turn) * 0.6], 1)
    return LabeledCloud(
        PointCloud(xyz.astype(np.float32), np.full(len(xyz), intensity, np.float32))
    )


def soft_power(alpha: float, r: float) -> float:
    """Integral of the pulse over fog up to r, by a general integrator."""

    def integrand(t: float) -> float:
        s = r - LIGHT_MPS * t / 2
        if s <= 0.9:
            return 0.0
        seen = min((s - 0.9) / 0.1, 1.0)
        return float(np.sin(np.pi * t / 40e-9) ** 2 * np.exp(-2 * alpha * s) * seen / s**2)

    return quad(integrand, 0, 40e-9, limit=400, points=[2 * (r - 1) / LIGHT_MPS])[0]


@pytest.mark.parametrize("alpha", [0.0, 0.06])
def test_the_return_of_fog_is_the_largest_integral_up_to_the_surface(alpha: float) -> None:
    ranges = np.arange(1.0, 12.0, 0.1)
    powers = [soft_power(alpha, r) for r in ranges]
    strength, place = fog_return(alpha, np.array([50.0, 2.0]))
    assert strength[0] == pytest.approx(max(powers), rel=0.03)
    assert place[0] == pytest.approx(ranges[int(np.argmax(powers))], abs=0.2)
    assert strength[1] == pytest.approx(soft_power(alpha, 2.0), rel=0.03)
    assert place[1] == pytest.approx(2.0, abs=0.11)


def test_fog_dims_near_surfaces_and_hides_far_ones() -> None:
    scene = ahead(np.linspace(2, 80, 2000), 0.3)
    result = corrupt("fog", "heavy", scene, sweep=1)
    alpha = np.random.default_rng((0, 1, 0)).choice((0.0, 0.005, 0.01, 0.02, 0.03, 0.06))
    before, after = (np.linalg.norm(c.xyz, axis=1) for c in (scene.cloud, result.cloud))
    hidden = result.invented
    assert hidden[before > 60].all()
    assert not hidden[before < 8].any()
    assert result.cloud.intensity is not None
    dimmed = 0.3 * np.exp(-2 * alpha * before[~hidden])
    np.testing.assert_allclose(result.cloud.intensity[~hidden], dimmed, rtol=1e-5)
    assert (after[hidden] <= before[hidden] + 1e-4).all()
    along = np.sum(scene.cloud.xyz * result.cloud.xyz, 1) / (before * after)
    np.testing.assert_allclose(along, 1, atol=1e-6)


def test_thicker_fog_hides_more() -> None:
    scene = ahead(np.linspace(2, 80, 2000), 0.3)
    severities: tuple[Severity, ...] = ("light", "moderate", "heavy")
    hidden = [corrupt("fog", severity, scene).invented.sum() for severity in severities]
    assert hidden[0] < hidden[1] < hidden[2]


def test_water_reflects_by_fresnel() -> None:
    assert fresnel(np.array([1.0]))[0] == pytest.approx((0.33 / 2.33) ** 2)
    assert fresnel(np.array([0.0]))[0] == pytest.approx(1.0)
    brewster = np.cos(np.arctan(1.33))  # the part polarized in the plane vanishes
    across = (1.33**2 - 1) / (1.33**2 + 1)
    assert fresnel(np.array([brewster]))[0] == pytest.approx(across**2 / 2)
    # 0.98^2 / 1.7689 = 0.5429; the ground of 0.5 gets 47.2 % of its light back: / (1 - 0.236)
    assert wet_share(np.array([1.0]), np.array([0.5]))[0] == pytest.approx(0.7105, abs=1e-3)


def road(count: int, height: float = 1.7) -> tuple[LabeledCloud, np.ndarray]:
    """Ground whose returns at vertical incidence are equal, and walls; cosines of incidence."""
    rng = np.random.default_rng(0)
    xyz = np.zeros((count + 500, 3), np.float32)
    xyz[:, 0], xyz[:, 2] = rng.uniform(2, 30, count + 500), -height
    xyz[count:, 2] = 1.0
    r = np.linalg.norm(xyz, axis=1)
    cosine = height / r
    intensity = np.where(xyz[:, 2] < 0, 0.9 * cosine, 0.4).astype(np.float32)
    names = np.where(xyz[:, 2] < 0, STREET.index("road"), STREET.index("structure"))
    return LabeledCloud(PointCloud(xyz, intensity), names, STREET), cosine


@pytest.mark.parametrize(
    ("severity", "blend", "floor"),
    [("light", 0.2 / 1.2, 0.3), ("moderate", 1.0 / 1.2, 0.3), ("heavy", 1.0, 0.7)],
)
def test_wet_ground_returns_what_the_film_lets_through(
    severity: Severity, blend: float, floor: float
) -> None:
    scene, cosine = road(4000)
    result = corrupt("wet-ground", severity, scene)
    dry, wet = scene.cloud.intensity, result.cloud.intensity
    assert dry is not None
    assert wet is not None
    ground = result.source < 4000
    assert np.count_nonzero(~ground) == 500
    np.testing.assert_array_equal(wet[~ground], dry[result.source[~ground]])
    share = wet_share(cosine[result.source], np.full(len(wet), 1 / 15))
    expected = dry[result.source] * (1 - blend + blend * share)
    np.testing.assert_allclose(wet[ground], expected[ground], rtol=1e-4)
    lost = np.setdiff1d(np.arange(4000), result.source)
    ratio = 1 - blend + blend * wet_share(cosine, np.full(len(cosine), 1 / 15))
    if severity == "heavy":  # the far ground goes, and the near ground stays
        assert cosine[lost].max() < cosine[result.source[ground]].max()
        assert len(lost) > 500
    assert ratio[lost].max(initial=0) < 1.6 * floor or not len(lost)


def test_little_ground_stays_dry() -> None:
    scene, _ = road(999)
    result = corrupt("wet-ground", "heavy", scene)
    np.testing.assert_array_equal(result.cloud.intensity, scene.cloud.intensity)
    assert len(result.cloud) == len(scene.cloud)


def test_flakes_fill_the_volume_of_the_snowfall() -> None:
    fall = Snowfall.of("moderate")  # 1 mm/h at 1.6 m/s, ten times as thin as water
    volume = np.pi * fall.number / fall.slope**3  # integral of pi/6 D^3 n slope exp(-slope D)
    assert volume == pytest.approx(1e-3 / 3600 / 1.6 * 10)
    assert fall.slope == pytest.approx(2550 / 10 ** (1 / 3))
    assert Snowfall.of("heavy").extinction > Snowfall.of("light").extinction


def test_the_strongest_flake_is_that_of_flakes_thrown_into_the_beam() -> None:
    fall, far, beams, width = Snowfall.of("moderate"), 15.0, 4000, 3e-3
    rng = np.random.default_rng(0)
    count = rng.poisson(fall.number * np.pi / 12 * width**2 * far**3, beams)
    beam = np.repeat(np.arange(beams), count)
    r = far * rng.random(len(beam)) ** (1 / 3)
    size = rng.exponential(1 / fall.slope, len(beam))
    power = 0.9 * (size / (width * r)) ** 2 / r**2
    strongest, order = np.zeros(beams), np.argsort(power)
    strongest[beam[order]] = power[order]
    distance = np.zeros(beams)
    distance[beam[order]] = r[order]
    waiting, place = rng.exponential(size=beams), rng.random(beams)
    drawn, k = strongest_flake(fall, np.full(beams, far), waiting)
    where = flake_distance(k, np.full(beams, far), place)
    shares = (0.2, 0.5, 0.8)
    thrown, found = np.quantile(strongest, shares), np.quantile(drawn, shares)
    np.testing.assert_allclose(np.log(found), np.log(thrown), atol=0.15)
    hit = strongest > 0
    np.testing.assert_allclose(
        np.quantile(where[drawn > 0], shares), np.quantile(distance[hit], shares), rtol=0.05
    )


def test_snow_hides_far_surfaces_and_never_what_is_nearer_than_a_pulse() -> None:
    distances = np.append(np.repeat([2.0, 20.0, 70.0], 2000), np.full(200, 120.0))
    scene = ahead(distances, 0.3)
    result = corrupt("snow", "moderate", scene)
    shares = np.bincount(result.source[result.invented] // 2000, minlength=3) / 2000
    assert shares[0] == 0
    assert 0.02 < shares[1] < shares[2] - 0.1
    after = np.linalg.norm(result.cloud.xyz, axis=1)
    before = np.linalg.norm(scene.cloud.xyz, axis=1)[result.source]
    assert (after[result.invented] <= before[result.invented] - 1.5 + 1e-3).all()
    assert after[result.invented].min() >= 1.0 - 1e-6
    assert result.cloud.intensity is not None
    through = 0.3 * np.exp(-2 * Snowfall.of("moderate").extinction * before[~result.invented])
    np.testing.assert_allclose(result.cloud.intensity[~result.invented], through, rtol=1e-5)


def test_surfaces_at_the_limit_of_detection_get_lost_in_snow() -> None:
    scene = ahead(np.linspace(5, 100, 5000), 0.3)
    result = corrupt("snow", "heavy", scene)
    lost = np.setdiff1d(np.arange(5000), result.source)
    assert len(lost) > 50
    assert np.linalg.norm(scene.cloud.xyz[lost], axis=1).min() > 70
