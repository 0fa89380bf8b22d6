# SPDX-License-Identifier: Apache-2.0
"""Rough surfaces: leaves, grass and uneven ground shift where a ray returns.

The solids of a scene are smooth. Their returns are not: light enters a crown before a leaf returns
it, blades of grass stand above the soil, and lawns are not flat.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Material
from pcseg_core.simulation.observe import Hits
from pcseg_core.simulation.smooth_noise import SmoothNoise
from pcseg_core.simulation.towns import Town

Array = npt.NDArray[Any]

_LUMP_M = 6.0  # size of unevenness
_MOST = 0.12  # largest shift of a return from the ground, of its range
_SHALLOWEST = 0.02  # vertical component of rays that a height changes the range of


def shifts(hits: Hits, town: Town, seed: int, rng: np.random.Generator) -> Array:
    """(N,) change of the range by rough surfaces [m]; 0 for smooth ones.

    Args:
        seed: of the unevenness, which belongs to the town.
        rng: draws blades and leaves.
    """
    shift = np.zeros(len(hits.range))
    material = hits.material
    leaves = np.flatnonzero(material == Material.LEAVES)
    shift[leaves] = rng.normal(0, 0.4, len(leaves)) + rng.exponential(1.0, len(leaves))
    shift[leaves] *= town.leaves_m
    grass = np.flatnonzero((material == Material.GRASS) & hits.on_ground)
    height = rng.random(len(grass)) * town.grass_m
    at = hits.points[grass]
    lumps = SmoothNoise(np.random.default_rng([seed, 1]), _LUMP_M)(at[:, 0], at[:, 1])
    height += town.lumps_m * lumps
    slope = np.maximum(-hits.rays.direction[grass, 2], _SHALLOWEST)
    most = _MOST * hits.range[grass]
    shift[grass] = -np.clip(height / slope, -most, most)
    return shift
