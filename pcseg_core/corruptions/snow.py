# SPDX-License-Identifier: Apache-2.0
"""Snowfall: flakes in front of surfaces return the pulse, and far surfaces get lost.

Flakes are spheres of 100 kg/m^3. Their diameters are distributed exponentially, with the slope of
Gunn and Marshall, "The distribution with size of aggregate snowflakes", Journal of Meteorology 15,
1958, and their number follows from the snowfall rate and the terminal speed, as in Hahner et al.,
"LiDAR Snowfall Simulation for Robust 3D Object Detection", CVPR 2022. Single flakes are not placed
in space: the strongest flake of each beam is drawn from its exact distribution, each beam for
itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from pcseg_core.corruptions.corrupted import (
    Array,
    Corrupted,
    LabeledCloud,
    Rng,
    Severity,
    corrupted,
    ranges_of,
)

_RATE_MMPH: dict[Severity, float] = {"light": 0.5, "moderate": 1.0, "heavy": 2.5}
_SPEED_MPS: dict[Severity, float] = {"light": 2.0, "moderate": 1.6, "heavy": 1.6}
_WATER_PER_SNOW = 10.0  # density of water over that of a flake
_DIVERGENCE_RAD = 3e-3
_SNOW = 0.9  # reflectivity of a flake
_DARKEST = 0.05  # reflectivity of a surface without intensity
_BLIND_M = 1.0
_PULSE_M = 1.5  # of 10 ns: nearer to the surface, a flake merges with it
_LIMIT = 0.01  # share of the returns of the clean sweep that mark the limit of detection


@dataclass(frozen=True)
class Snowfall:
    """Flakes in the air.

    Attributes:
        number: per volume [1/m^3].
        slope: of the exponential distribution of the diameters [1/m].
    """

    number: float
    slope: float

    @classmethod
    def of(cls, severity: Severity) -> Snowfall:
        """From the snowfall rate [mm of water per hour] and the terminal speed [m/s]."""
        rate = _RATE_MMPH[severity]
        volume = rate * 1e-3 / 3600 / _SPEED_MPS[severity] * _WATER_PER_SNOW
        slope = 2550 * rate**-0.48 / _WATER_PER_SNOW ** (1 / 3)  # melted to fallen diameter
        return cls(volume * slope**3 / np.pi, slope)

    @property
    def extinction(self) -> float:
        """Area of the flakes per volume [1/m]."""
        return float(np.pi / 2 * self.number / self.slope**2)


def snow(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """Snowfall of 0.5, 1.0 or 2.5 mm/h.

    A point moves to a flake that returns more than the surface. The intensity of the others falls
    with the transmission of the air. They are lost if less returns than the weakest percent of the
    clean sweep.
    """
    intensity, distance = scene.intensity("snow"), ranges_of(scene.cloud)
    fall = Snowfall.of(severity)
    finite = scene.cloud.finite & (distance > 0)
    r, clean = distance[finite], intensity[finite].astype(np.float64)
    through = clean * np.exp(-2 * fall.extinction * r)
    waiting, place = rng.exponential(size=len(r)), rng.random(len(r))
    strength, k = strongest_flake(fall, r, waiting)
    hit = strength > np.maximum(through, _DARKEST) / r**2
    where = np.zeros(len(r))
    where[hit] = flake_distance(k[hit], r[hit], place[hit])
    hit &= (where >= _BLIND_M) & (where <= r - _PULSE_M)
    limit = np.quantile(clean / r**2, _LIMIT) if len(r) else 0.0
    keep, invented = np.ones(len(distance), bool), np.zeros(len(distance), bool)
    keep[finite], invented[finite] = hit | (through / r**2 >= limit) | (clean / r**2 < limit), hit
    xyz, seen = scene.cloud.xyz.copy(), intensity.copy()
    xyz[finite] *= np.where(hit, where / r, 1.0)[:, None].astype(np.float32)
    seen[finite] = np.where(hit, np.minimum(strength * where**2, 1.0), through)
    return corrupted(scene.cloud, keep=keep, xyz=xyz, intensity=seen, invented=invented)


def strongest_flake(fall: Snowfall, distance: Array, waiting: Array) -> tuple[Array, Array]:
    """Power of the strongest flake in front of each surface.

    A flake of diameter D at r covers (D / (w r))^2 of a beam of divergence w and returns the power
    s = 0.9 (D / (w r))^2 / r^2, where a white surface at r returns 1 / r^2. The number of flakes
    above s up to R is a Poisson variable of mean M(s) = n pi/8 w^2 R^3 h(k R^2), with
    h(x) = x^-1.5 gamma(1.5, x) and k = slope w (s / 0.9)^0.5; the strongest one is where M(s) is a
    unit exponential variable.

    Args:
        fall: the snowfall.
        distance: (N,) R of the surfaces [m], above 0.
        waiting: (N,) unit exponential numbers.

    Returns:
        s (N,) [1/m^2], 0 without a flake, and k (N,) [1/m^2].
    """
    beam = fall.number * np.pi / 8 * _DIVERGENCE_RAD**2 * distance**3
    log_h, log_x = _inverse()
    wanted = np.log(np.maximum(waiting, 1e-12) / beam)
    k = np.exp(np.interp(wanted, log_h, log_x)) / distance**2
    power = _SNOW * (k / (fall.slope * _DIVERGENCE_RAD)) ** 2
    return np.where(wanted < log_h[-1], power, 0.0), k


def flake_distance(k: Array, distance: Array, place: Array) -> Array:
    """(N,) distances r of the strongest flakes [m], of the density r^4 exp(-k r^2) up to R.

    Args:
        k: (N,) of `strongest_flake`.
        distance: (N,) R of the surfaces [m].
        place: (N,) uniform numbers in 0..1.
    """
    from scipy.special import gammainc, gammaincinv

    where: Array = np.sqrt(gammaincinv(2.5, place * gammainc(2.5, k * distance**2)) / k)
    return where


@functools.cache
def _inverse() -> tuple[Array, Array]:
    """Logarithms of h, rising, and of its argument."""
    from scipy.special import gamma, gammainc

    x = np.logspace(-6, 5, 2000)
    h = gammainc(1.5, x) * gamma(1.5) / x**1.5
    return np.log(h)[::-1], np.log(x)[::-1]
