# SPDX-License-Identifier: Apache-2.0
"""Intensities: what a LiDAR reports of the light that a surface returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.simulation.materials import GLOSS, REFLECTIVITY, Material
from pcseg_core.simulation.observe import Hits
from pcseg_core.simulation.smooth_noise import SmoothNoise

Array = npt.NDArray[Any]

_PATCH_M = 7.0  # size of patches of worn ground


class Receiver(Section):
    """How the returned light becomes an intensity. Sensors differ in all of it."""

    full_power_m: float = Field(
        default=12.0, gt=0, description="Up to this range the gain compensates the distance [m]."
    )
    falloff: float = Field(
        default=1.4, ge=0, le=4, description="Power of the distance beyond `full_power_m`."
    )
    near_m: float = Field(
        default=0.0, ge=0, description="Nearer returns are out of focus and weaker [m]."
    )
    incidence: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Power of the cosine of the incidence; 0 if the sensor compensates it.",
    )
    gain: float = Field(default=1.0, gt=0, description="Factor on all intensities.")
    gamma: float = Field(default=1.0, gt=0, description="Power that compresses intensities.")
    weakest: float = Field(
        default=0.004,
        ge=0,
        description="Weakest return, relative to a white target at `full_power_m`; weaker ones are "
        "lost.",
    )
    zero: float = Field(
        default=0.0,
        ge=0,
        description="Weakest return, before the gain, that is not reported with intensity 0.",
    )
    beam_scatter: float = Field(
        default=0.0, ge=0, description="Relative deviation of the gains of the beams."
    )
    material_scatter: float = Field(
        default=0.0, ge=0, description="Relative deviation of the reflectivities of materials."
    )
    patches: float = Field(
        default=0.0, ge=0, description="Relative deviation of the reflectivity of ground, by place."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the scatter.")

    def power(self, hits: Hits) -> Array:
        """(N,) returned power relative to a white target, by material, angle and distance.

        0 for no hit. Lambertian surfaces return the cosine of the angle of incidence. The gain of
        the receiver compensates short distances; beyond, intensity falls with the square of the
        distance (compare Jutzi and Gross, 2009).
        """
        material = hits.material
        table = self._reflectivity()
        power = np.where(material >= 0, table[material], 0.0)
        power = np.where(hits.glass, table[Material.GLASS], power)
        tone = np.ones(len(power))
        tone[hits.solid] = 0.6 + 0.8 * hits.table["albedo"][hits.row[hits.solid]].mean(axis=1)
        if self.patches:
            tone[hits.ground] = self._worn(hits.points[hits.ground])
        retro = material == Material.SIGN
        cosine = np.abs(np.einsum("ij,ij->i", hits.normal, hits.rays.direction))
        gloss = GLOSS[material]
        matt = cosine if self.incidence == 1 else cosine**self.incidence
        shape = np.where(retro, 1.0, (1 - gloss) * matt + 3 * gloss * cosine**16)
        full = self.full_power_m
        falloff = (full / np.maximum(hits.range, full)) ** self.falloff
        if self.near_m:
            falloff *= np.minimum(hits.range / self.near_m, 1.0) ** 1.5
        lit: Array = power * np.where(retro, 1.0, tone) * shape * falloff
        return lit

    def reported(self, power: Array, ring: Array) -> Array:
        """(N,) intensities in 0..1 of returned powers (N,) of beams (N,)."""
        value = np.where(power < self.zero, 0.0, power)
        if self.beam_scatter:
            rng = np.random.default_rng([self.seed, 1])
            value = value * np.exp(rng.normal(0, self.beam_scatter, int(ring.max()) + 1))[ring]
        if self.gain != 1:
            value = value * self.gain
        if self.gamma != 1:
            value = value**self.gamma
        clipped: Array = np.clip(value, 0, 1)
        return clipped

    def _reflectivity(self) -> Array:
        if not self.material_scatter:
            return REFLECTIVITY
        rng = np.random.default_rng([self.seed, 2])
        scattered = REFLECTIVITY * np.exp(rng.normal(0, self.material_scatter, len(REFLECTIVITY)))
        scattered[Material.SIGN] = 1.0
        return np.clip(scattered, 0.01, 1.0)

    def _worn(self, at: Array) -> Array:
        rng = np.random.default_rng([self.seed, 3])
        worn: Array = np.exp(self.patches * SmoothNoise(rng, _PATCH_M)(at[:, 0], at[:, 1]))
        return worn
