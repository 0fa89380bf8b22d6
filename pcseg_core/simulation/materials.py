# SPDX-License-Identifier: Apache-2.0
"""Classes, materials, and their appearance to LiDAR and cameras."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class Class(IntEnum):
    """Ids of the label space "simulation" (`label_spaces/simulation.yaml`)."""

    ROAD = 0
    LANE_MARKING = 1
    PARKING = 2
    SIDEWALK = 3
    TERRAIN = 4
    BUILDING = 5
    FENCE = 6
    WALL = 7
    VEGETATION = 8
    TRUNK = 9
    CAR = 10
    TRUCK = 11
    BUS = 12
    BICYCLE = 13
    MOTORCYCLE = 14
    PERSON = 15
    RIDER = 16
    POLE = 17
    TRAFFIC_SIGN = 18
    TRAFFIC_LIGHT = 19
    SKY = 20  # pixels only


class Material(IntEnum):
    """Selects texture, gloss and reflectivity of a surface."""

    MATT = 0
    METAL = 1
    PAINT = 2  # bodywork of vehicles
    CABIN = 3  # bodywork with windows all around
    COACH = 4  # long bodywork with a band of windows
    TIRE = 5
    FACADE = 6
    ROOF = 7
    BRICK = 8
    LEAVES = 9
    BARK = 10
    WOOD = 11
    CLOTH = 12
    SKIN = 13
    SIGN = 14
    SIGNAL = 15  # head of a traffic light
    GLASS = 16
    PLANKS = 17
    # the ground
    ASPHALT = 18
    ROAD_PAINT = 19
    BAYS = 20  # where cars park
    PAVING = 21
    GRASS = 22
    CURB = 23


# Reflectivity at 905 nm and normal incidence, relative to a white target. Signs are retroreflective
# and stay bright at any angle and distance.
_REFLECTIVITY = {
    Material.MATT: 0.45,
    Material.METAL: 0.35,
    Material.PAINT: 0.45,
    Material.CABIN: 0.40,
    Material.COACH: 0.45,
    Material.TIRE: 0.06,
    Material.FACADE: 0.42,
    Material.ROOF: 0.28,
    Material.BRICK: 0.36,
    Material.LEAVES: 0.50,
    Material.BARK: 0.28,
    Material.WOOD: 0.42,
    Material.CLOTH: 0.45,
    Material.SKIN: 0.40,
    Material.SIGN: 1.00,
    Material.SIGNAL: 0.20,
    Material.GLASS: 0.05,
    Material.PLANKS: 0.38,
    Material.ASPHALT: 0.13,
    Material.ROAD_PAINT: 0.55,
    Material.BAYS: 0.16,
    Material.PAVING: 0.28,
    Material.GRASS: 0.40,
    Material.CURB: 0.30,
}
REFLECTIVITY: npt.NDArray[np.float32] = np.array(
    [_REFLECTIVITY[material] for material in Material], dtype=np.float32
)

# Specular reflection of the sky at normal incidence; larger at grazing angles.
GLOSS: npt.NDArray[np.float32] = np.zeros(len(Material), np.float32)
GLOSS[[Material.PAINT, Material.CABIN, Material.COACH]] = 0.10
GLOSS[[Material.METAL, Material.SIGN]] = 0.04
GLOSS[Material.GLASS] = 0.18

GROUND_CLASS: dict[Material, Class] = {
    Material.ASPHALT: Class.ROAD,
    Material.ROAD_PAINT: Class.LANE_MARKING,
    Material.BAYS: Class.PARKING,
    Material.PAVING: Class.SIDEWALK,
    Material.GRASS: Class.TERRAIN,
    Material.CURB: Class.SIDEWALK,
}


def ground_classes(material: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """(N,) class ids of ground materials (N,)."""
    table = np.full(len(Material), -1, np.int16)
    for known, label in GROUND_CLASS.items():
        table[known] = label
    result: npt.NDArray[np.int16] = table[material]
    return result
