# SPDX-License-Identifier: Apache-2.0
"""Textures of the ground: asphalt, paint, paving and grass, by world position."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Material
from pcseg_core.simulation.textures import blotches, grain
from pcseg_core.simulation.towns import Town

Array = npt.NDArray[Any]


def ground_color(town: Town, material: Array, u: Array, v: Array, distance: Array) -> Array:
    """(M, 3) albedo, linear RGB.

    Args:
        material: (M,) of `Material`. u, v: (M,) position in the street plan [m].
        distance: (M,) from the camera [m].
    """
    color = np.empty((len(u), 3), np.float32)
    base = {
        Material.ASPHALT: np.asarray(town.asphalt),
        Material.BAYS: np.asarray(town.asphalt) * (1.25, 1.22, 1.18),
        Material.ROAD_PAINT: np.full(3, 0.62),
        Material.PAVING: np.asarray(town.paving),
        Material.GRASS: np.asarray(town.grass),
        Material.CURB: np.full(3, 0.33),
    }
    for kind, tone in base.items():
        own = np.flatnonzero(material == kind)
        if len(own):
            look = _LOOKS[kind](u[own], v[own], distance[own])
            color[own] = tone.astype(np.float32) * look[:, None]
    dry = blotches(u + 11, v - 7, 0.22)[:, None] * np.array((0.35, 0.12, 0.0), np.float32)
    lawn = material == Material.GRASS
    color[lawn] *= 1 + dry[lawn]
    return np.clip(color, 0.0, 0.9)


def _asphalt(u: Array, v: Array, distance: Array) -> Array:
    patches = grain(u + 0.7 * v, v * 0.3, 2.8)
    look = 1 + 0.22 * blotches(u, v, 0.09) + np.where(patches > 0.82, 0.25, 0.0)
    look += 0.12 * grain(u, v, 0.03) * np.clip(8 / distance, 0.2, 1)
    crack = np.abs(blotches(u * 1.3 + 5, v * 1.1, 0.05)) < 0.006
    look *= 1 - 0.35 * (crack & (distance < 25))
    return look


def _paint(u: Array, v: Array, distance: Array) -> Array:
    worn = blotches(u + 3, v + 9, 0.05) + 0.5 * grain(u, v, 0.05)
    return 1 - 0.45 * np.clip(worn, 0, 1) + 0.06 * grain(u, v, 0.03)


def _paving(u: Array, v: Array, distance: Array) -> Array:
    joint = (np.mod(u, 0.5) < 0.025) | (np.mod(v, 0.5) < 0.025)
    slabs = grain(u, v, 0.5)
    look = 1 + 0.13 * slabs + 0.12 * blotches(u, v, 0.07) + 0.05 * grain(u, v, 0.03)
    return look - 0.3 * (joint & (distance < 16))


def _grass(u: Array, v: Array, distance: Array) -> Array:
    near = np.clip(10 / distance, 0.25, 1)
    return 1 + 0.35 * blotches(u, v, 0.04) + 0.35 * grain(u, v, 0.04) * near


def _curb(u: Array, v: Array, distance: Array) -> Array:
    return 1 + 0.15 * grain(u, v, 0.8) + 0.1 * blotches(u, v, 0.03)


_LOOKS = {
    Material.ASPHALT: _asphalt,
    Material.BAYS: _asphalt,
    Material.ROAD_PAINT: _paint,
    Material.PAVING: _paving,
    Material.GRASS: _grass,
    Material.CURB: _curb,
}
