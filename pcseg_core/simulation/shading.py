# SPDX-License-Identifier: Apache-2.0
"""Light: sun with shadows, sky from above, mirrors and haze."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.ground_look import ground_color
from pcseg_core.simulation.materials import GLOSS, Class, Material
from pcseg_core.simulation.observe import Hits
from pcseg_core.simulation.primitives import distance
from pcseg_core.simulation.raycast import shadowed
from pcseg_core.simulation.textures import blotches, solid_color
from pcseg_core.simulation.towns import Weather

Array = npt.NDArray[Any]

_SHADOW_M = 70.0  # shadows of solids are cast this far from the camera
_CASTER_M = 40.0  # by solids this much farther away
_LIFT_M = 0.03  # offset of points from their surface for the shadow test
_GROUND_BOUNCE = np.array((0.16, 0.15, 0.13), np.float32)


def radiance(hits: Hits) -> Array:
    """(N, 3) float32 linear light along each ray; 1 is white paint in full sun."""
    weather = hits.scene.weather
    light = sky(weather, hits.rays.direction)
    met = np.flatnonzero(np.isfinite(hits.range))
    albedo, normal = _albedo(hits)[met], hits.normal[met]
    lit = albedo * _irradiance(hits, met, normal)
    lit = _mirrored(hits, met, normal, lit)
    fade = np.exp(-hits.range[met] / weather.haze_m).astype(np.float32)[:, None]
    light[met] = lit * fade + weather.horizon_color * (1 - fade)
    return light


def sky(weather: Weather, direction: Array) -> Array:
    """(N, 3) float32 light of the sky, with clouds and a glow around the sun."""
    up = np.clip(direction[:, 2], 0.0, 1.0)[:, None]
    color = weather.horizon_color + (weather.sky_color - weather.horizon_color) * np.sqrt(up)
    plane = direction[:, :2] / (np.abs(direction[:, 2:]) + 0.12)
    clouds = blotches(plane[:, 0] + 40, plane[:, 1] + 40, 0.015)
    cover = np.clip((clouds - 0.05) * 2.5, 0, 0.8)[:, None]
    bright = weather.horizon_color * 0.5 + 0.5
    color = color + cover * (bright - color)
    glow = np.clip(direction @ weather.sun.astype(np.float32), 0, 1)[:, None] ** 60
    lit: Array = (color + 0.5 * glow * weather.sun_color).astype(np.float32)
    return lit


def _albedo(hits: Hits) -> Array:
    albedo = np.zeros((len(hits.row), 3), np.float32)
    for material, rays, patch in hits.patches:
        albedo[rays] = solid_color(material, patch)
    at = hits.points[hits.ground]
    streets = hits.scene.ground.streets
    u, v = streets.to_plan(at[:, 0], at[:, 1])
    albedo[hits.ground] = ground_color(
        streets.town, hits.material[hits.ground], u, v, hits.range[hits.ground]
    )
    return albedo


def _irradiance(hits: Hits, met: Array, normal: Array) -> Array:
    """Light on points: sun, sky and ground."""
    weather = hits.scene.weather
    toward = weather.sun.astype(np.float32)
    cosine = np.clip(normal @ toward, 0, None)
    leaves = hits.material[met] == Material.LEAVES
    cosine[leaves] = 0.35 + 0.5 * cosine[leaves]  # leaves have all orientations and transmit light
    sun = np.where(_in_shade(hits, met, normal, cosine), 0.0, cosine)[:, None]
    above = (0.5 + 0.5 * normal[:, 2:]).astype(np.float32)
    around = 0.55 * above * (weather.sky_color + weather.horizon_color) / 2
    around[_below_vehicles(hits, met)] *= 0.3
    bounce = (1 - above) * _GROUND_BOUNCE * weather.sun_color
    return 0.85 * sun.astype(np.float32) * weather.sun_color + around + bounce


def _in_shade(hits: Hits, met: Array, normal: Array, cosine: Array) -> Array:
    shade = np.zeros(len(met), bool)
    if hits.scene.weather.name == "overcast":
        return shade
    asked = np.flatnonzero((cosine > 0) & (hits.range[met] < _SHADOW_M))
    rays = met[asked]
    reference = hits.rays.reference
    points = (hits.points[rays] - reference).astype(np.float32) + _LIFT_M * normal[asked]
    casters = hits.table[distance(hits.table, reference) < _SHADOW_M + _CASTER_M]
    shade[asked] = shadowed(casters, reference, points, hits.scene.weather.sun)
    return shade


def _below_vehicles(hits: Hits, met: Array) -> Array:
    """Indices of ground points below a vehicle."""
    near = np.flatnonzero(hits.on_ground[met] & (hits.range[met] < _SHADOW_M))
    vehicle = np.isin(hits.table["label"], (Class.CAR, Class.TRUCK, Class.BUS))
    reference = hits.rays.reference
    points = (hits.points[met[near]] - reference).astype(np.float32)
    dark: Array = near[shadowed(hits.table[vehicle], reference, points, np.array([0.0, 0.0, 1.0]))]
    return dark


def _mirrored(hits: Hits, met: Array, normal: Array, lit: Array) -> Array:
    """Add reflections of the sky on glossy surfaces (Schlick's approximation of Fresnel)."""
    gloss = np.where(hits.glass[met], GLOSS[Material.GLASS], GLOSS[hits.material[met]])
    shiny = np.flatnonzero(gloss > 0)
    direction, facing = hits.rays.direction[met[shiny]], normal[shiny]
    cosine = -np.einsum("ij,ij->i", direction, facing)
    mirrored = direction + 2 * cosine[:, None] * facing
    share = gloss[shiny] + (1 - gloss[shiny]) * 0.7 * (1 - np.clip(cosine, 0, 1)) ** 5
    seen = sky(hits.scene.weather, mirrored)
    seen[mirrored[:, 2] < 0.02] *= 0.35  # reflects the street, not the sky
    share = share[:, None].astype(np.float32)
    lit[shiny] = lit[shiny] * (1 - share) + seen * share
    return lit
