# SPDX-License-Identifier: Apache-2.0
"""Fog: weaker returns of surfaces, and returns of the fog itself.

Model: Hahner et al., "Fog Simulation on Real LiDAR Point Clouds for 3D
Object Detection in Adverse Weather", ICCV 2021, after Rasshofer, Spies and Spies, "Influences of
weather phenomena on automotive laser radar systems", Advances in Radio Science 9, 2011.
"""

from __future__ import annotations

import functools

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

_LIGHT_MPS = 299_792_458.0
_PULSE_S = 20e-9  # half-power width of the pulse
_BLIND_M, _FULL_VIEW_M = 0.9, 1.0  # the receiver sees nothing before, everything behind
_BACKSCATTER: dict[Severity, float] = {"light": 0.008, "moderate": 0.05, "heavy": 0.2}
_EXTINCTION = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06)  # drawn per sweep [1/m]
_SURFACE = 1e-6 / np.pi  # differential reflectivity of a surface [1/sr]
_TABLE_M, _FARTHEST_M = 0.1, 200.0
_FINE_M = 0.02  # step of the integral
_SPREAD_M = 10.0


def fog(scene: LabeledCloud, severity: Severity, rng: Rng) -> Corrupted:
    """Fog with an extinction drawn per sweep, and a backscatter of 0.008, 0.05 or 0.2.

    The intensity of a surface falls by exp(-2 alpha r). Where the return of the fog in front of it
    is stronger, the point moves there. The distance of the fog is multiplied by r over a number
    between r - 10 m (at least r / 2) and r + 10 m, and is never farther than the surface.
    """
    intensity, distance = scene.intensity("fog"), ranges_of(scene.cloud)
    alpha = float(rng.choice(_EXTINCTION))
    spread = rng.uniform(np.maximum(distance - _SPREAD_M, distance / 2), distance + _SPREAD_M)
    strength, place = fog_return(alpha, distance)
    hard = intensity * np.exp(-2 * alpha * distance)
    soft = intensity * distance**2 * (_BACKSCATTER[severity] / _SURFACE) * strength
    hit = scene.cloud.finite & (soft > hard)
    scale = np.ones(len(distance))
    scale[hit] = np.minimum(place[hit] / spread[hit], 1.0)
    seen = np.where(hit, np.minimum(soft, 1.0), hard)
    xyz = scene.cloud.xyz * scale[:, None].astype(np.float32)
    return corrupted(scene.cloud, xyz=xyz, intensity=seen, invented=hit)


def fog_return(alpha: float, distance: Array) -> tuple[Array, Array]:
    """Strongest return of the fog in front of surfaces.

    Args:
        alpha: extinction [1/m].
        distance: (N,) of the surfaces [m].

    Returns:
        The largest value of the integral over the pulse (N,) [s/m^2], to be multiplied by the
        power and the backscatter, and the distance at which the sensor measures it (N,) [m].
    """
    strengths, places = _table(alpha)
    row = np.clip((distance / _TABLE_M + 1e-3).astype(np.int64) - 1, 0, len(strengths) - 1)
    return strengths[row], places[row]


@functools.lru_cache(maxsize=len(_EXTINCTION))
def _table(alpha: float) -> tuple[Array, Array]:
    """Strongest return up to each range, in steps of 0.1 m, and where it is.

    Power at range R: integral over 0 <= t <= 2 tau of sin^2(pi t / 2 tau) f(R - c t / 2), with
    f(s) = exp(-2 alpha s) xi(s) / s^2, where xi is the share of the beam that the receiver sees.
    """
    s = np.arange(1, round(_FARTHEST_M / _FINE_M) + 1) * _FINE_M
    seen = np.clip((s - _BLIND_M) / (_FULL_VIEW_M - _BLIND_M), 0, 1)
    f = np.exp(-2 * alpha * s) * seen / s**2
    length = _LIGHT_MPS * _PULSE_S
    pulse = np.sin(np.pi * np.arange(0, length, _FINE_M) / length) ** 2
    power = np.convolve(f, pulse)[: len(s)] * (2 * _FINE_M / _LIGHT_MPS)
    every = round(_TABLE_M / _FINE_M)
    power, s = power[every - 1 :: every], s[every - 1 :: every]
    strongest = np.maximum.accumulate(power)
    rising = power >= strongest
    return strongest, s[np.maximum.accumulate(np.where(rising, np.arange(len(s)), 0))]
