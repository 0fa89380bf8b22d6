# SPDX-License-Identifier: Apache-2.0
"""Wet ground: a film of water darkens the road, and weak returns are lost.

The reflectivity of the ground, its geometry and the depth of the film follow Hahner et al., "LiDAR
Snowfall Simulation for Robust 3D Object Detection", CVPR 2022. The film is the published model of
Lekner and Dorf, "Why some things are darker when wet", Applied Optics 27(7), 1988, for light that
returns the way it came.
"""

from __future__ import annotations

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
from pcseg_core.labels import IGNORE

_WATER_MM: dict[Severity, float] = {"light": 0.2, "moderate": 1.0, "heavy": 1.2}
_NOISE_FLOOR: dict[Severity, float] = {"light": 0.3, "moderate": 0.3, "heavy": 0.7}
_PAVEMENT_MM = 1.2  # depth of the pores, from which on the film is closed
_FEWEST_POINTS = 1000
_POWER_FACTOR = 15.0  # power of the laser over the mean return of the ground
_DARKEST, _BRIGHTEST = 0.05, 1.0
_WATER = 1.33  # refractive index
_REFLECTED = 0.066  # share of diffuse light that water reflects from outside
_RECYCLED = 1 - (1 - _REFLECTED) / _WATER**2  # and from inside
_BIN_M, _FULL_BIN = 5.0, 20

GROUND = frozenset(
    {
        "road",
        "parking",
        "sidewalk",
        "other-ground",
        "lane-marking",
        "driveable_surface",
        "other_flat",
        "ground",
    }
)
"""Names of the paved classes, in all label spaces."""


def wet_ground(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """Water of 0.2, 1.0 or 1.2 mm on paved ground; sweeps with fewer than 1000 such points stay.

    Incidence is that on flat ground. Returns of the wet ground below 0.3, 0.3 or 0.7 times its
    weakest dry returns are lost. Points with an intensity of 0, which tells nothing, stay.
    """
    intensity, distance = scene.intensity("wet-ground"), ranges_of(scene.cloud)
    ground = scene.of_classes(GROUND, "wet-ground") != IGNORE
    ground &= scene.cloud.finite & (scene.cloud.xyz[:, 2] < 0)
    if np.count_nonzero(ground) < _FEWEST_POINTS:
        return corrupted(scene.cloud)
    r, dry = distance[ground], intensity[ground].astype(np.float64)
    cosine = np.clip(-scene.cloud.xyz[ground, 2] / r, 1e-3, 1)
    reflectivity = _reflectivity(dry, cosine, r)
    blend = min(_WATER_MM[severity] / _PAVEMENT_MM, 1.0)
    wet = dry * (1 - blend + blend * wet_share(cosine, reflectivity))
    changed, keep = intensity.copy(), np.ones(len(intensity), bool)
    changed[ground] = wet
    keep[ground] = (dry == 0) | (wet >= _NOISE_FLOOR[severity] * _weakest(dry, r))
    return corrupted(scene.cloud, keep=keep, intensity=changed)


def wet_share(cosine: Array, reflectivity: Array) -> Array:
    """(N,) intensity of ground under a closed film of water relative to that of dry ground.

    T(i)^2 / (n^2 (1 - rho p)): the light crosses the surface twice, is spread by refraction, and
    what the surface reflects back inside (p) hits the ground (rho) again.

    Args:
        cosine: (N,) of the angle of incidence.
        reflectivity: (N,) of the ground in 0..1.
    """
    passed = 1 - fresnel(cosine)
    share: Array = passed**2 / (_WATER**2 * (1 - reflectivity * _RECYCLED))
    return share


def fresnel(cosine: Array) -> Array:
    """(N,) share of unpolarized light that water reflects, from air, by cosine of incidence."""
    inside = np.sqrt(1 - (1 - cosine**2) / _WATER**2)
    across = (cosine - _WATER * inside) / (cosine + _WATER * inside)
    along = (_WATER * cosine - inside) / (_WATER * cosine + inside)
    reflected: Array = (across**2 + along**2) / 2
    return reflected


def _reflectivity(dry: Array, cosine: Array, r: Array) -> Array:
    """(N,) of the ground, from its returns over the power of the laser.

    The power is a multiple of the line through the returns at vertical incidence over range.
    """
    upright = dry / cosine
    power = _POWER_FACTOR * np.polyval(np.polyfit(r, upright, 1), r)
    found: Array = np.clip(upright / np.maximum(power, 1e-6), _DARKEST, _BRIGHTEST)
    return found


def _weakest(dry: Array, r: Array) -> Array:
    """(N,) weakest dry return at each range: a line through the 5 % quantile of bins of 5 m."""
    bins = np.where(dry > 0, (r / _BIN_M).astype(np.int64), -1)
    used = [k for k in np.unique(bins[bins >= 0]) if np.count_nonzero(bins == k) >= _FULL_BIN]
    if not used:
        return np.zeros(len(r))
    middles = (np.array(used) + 0.5) * _BIN_M
    lows = np.array([np.quantile(dry[bins == k], 0.05) for k in used])
    line = np.polyfit(middles, lows, min(1, len(used) - 1))
    weakest: Array = np.maximum(np.polyval(line, r), 0)
    return weakest
