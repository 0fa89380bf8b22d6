# SPDX-License-Identifier: Apache-2.0
"""Towns: named styles of streets, buildings, plants and traffic, as different domains; and the
weather of a drive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.errors import InputError

Color = tuple[float, float, float]  # linear RGB [0..1]
Range = tuple[float, float]


@dataclass(frozen=True)
class Town:
    """Style of a town; lengths in meters, densities as probabilities per place by default."""

    block_m: Range = (55.0, 95.0)  # between the centers of parallel streets
    lane_m: Range = (3.2, 3.8)
    bend_m: float = 8.0  # deviation of streets from straight lines
    relief_m: float = 1.6  # height of the hills
    parking: float = 0.6  # streets with bays along the curb
    crosswalks: float = 0.6  # crossings with zebra stripes
    sidewalk_m: float = 2.4
    verge_m: float = 0.0  # grass between curb and sidewalk
    gardens: bool = True  # lots are grass rather than paved
    parks: float = 0.08  # blocks without buildings
    car_parks: float = 0.05
    setback_m: Range = (2.0, 5.0)  # from the sidewalk to the facade
    front_m: Range = (10.0, 20.0)  # width of a building
    gap_m: Range = (2.0, 6.0)  # between buildings
    stories: tuple[int, int] = (2, 4)
    gables: float = 0.6
    balconies: float = 0.2
    brick: float = 0.2
    fences: float = 0.3
    walls: float = 0.15
    hedges: float = 0.2
    street_trees: float = 0.5
    garden_trees: float = 0.3
    conifers: float = 0.2
    bushes: float = 0.4
    lamps_m: float = 28.0  # distance between street lamps
    signs: float = 0.5
    signals: float = 0.4  # crossings with traffic lights
    parked: float = 0.65  # occupied bays
    trucks: float = 0.08  # of all vehicles
    buses: float = 0.04
    traffic: float = 0.35  # moving vehicles per 20 m of lane
    people: float = 0.5  # per 10 m of sidewalk
    bicycles: float = 0.25
    facades: tuple[Color, ...] = ((0.55, 0.48, 0.38), (0.60, 0.56, 0.50), (0.45, 0.35, 0.28))
    roofs: tuple[Color, ...] = ((0.30, 0.12, 0.08), (0.14, 0.13, 0.13))
    leaves: tuple[Color, ...] = ((0.08, 0.16, 0.04), (0.12, 0.20, 0.05))
    asphalt: Color = (0.085, 0.085, 0.09)
    paving: Color = (0.26, 0.25, 0.24)
    grass: Color = (0.10, 0.17, 0.05)
    curb_m: float = 0.14  # height of blocks above the road
    hedge_m: Range = (0.8, 1.9)  # height of hedges
    backed: float = 0.0  # fences and walls with a hedge behind them
    wall_m: Range = (0.8, 2.2)  # height of garden walls
    annexes: float = 0.0  # garages and sheds in front gardens, per building
    relief: float = 0.0  # facades with bays, porches and steps
    posts: Range = (1.0, 1.0)  # thickness of street furniture, of the usual one
    verge_bushes: float = 0.0  # per 5 m of verge
    vans: float = 0.12  # of the cars
    high_vans: float = 0.0  # of the cars
    # Rough surfaces, for LiDARs alone; see `roughness`.
    leaves_m: float = 0.0  # depth that rays enter crowns
    grass_m: float = 0.0  # height of grass
    lumps_m: float = 0.0  # deviation of lawns from the level

    @property
    def rough(self) -> bool:
        """Whether any surface is rough."""
        return self.leaves_m + self.grass_m + self.lumps_m > 0


TOWNS: dict[str, Town] = {
    "center": Town(
        block_m=(60.0, 100.0),
        parking=0.5,
        sidewalk_m=3.4,
        gardens=False,
        parks=0.1,
        car_parks=0.03,
        setback_m=(0.0, 0.6),
        front_m=(12.0, 26.0),
        gap_m=(0.0, 0.6),
        stories=(4, 9),
        gables=0.1,
        balconies=0.45,
        fences=0.05,
        walls=0.05,
        hedges=0.05,
        street_trees=0.45,
        garden_trees=0.0,
        bushes=0.05,
        lamps_m=24.0,
        signs=0.8,
        signals=0.8,
        buses=0.08,
        traffic=0.5,
        people=0.9,
        bicycles=0.4,
        relief_m=0.8,
        bend_m=4.0,
        facades=(
            (0.42, 0.38, 0.33),
            (0.30, 0.30, 0.32),
            (0.50, 0.42, 0.32),
            (0.36, 0.22, 0.16),
            (0.55, 0.54, 0.52),
        ),
    ),
    "suburb": Town(
        block_m=(60.0, 90.0),
        lane_m=(2.9, 3.4),
        bend_m=12.0,
        relief_m=3.0,
        parking=0.3,
        crosswalks=0.25,
        sidewalk_m=1.8,
        verge_m=1.6,
        parks=0.12,
        car_parks=0.0,
        setback_m=(4.0, 8.0),
        front_m=(9.0, 15.0),
        gap_m=(4.0, 9.0),
        stories=(1, 2),
        gables=0.95,
        balconies=0.05,
        brick=0.35,
        fences=0.45,
        walls=0.12,
        hedges=0.35,
        street_trees=0.6,
        garden_trees=0.7,
        conifers=0.3,
        bushes=0.8,
        lamps_m=35.0,
        signs=0.35,
        signals=0.05,
        parked=0.5,
        trucks=0.04,
        buses=0.02,
        traffic=0.2,
        people=0.3,
        bicycles=0.3,
        facades=((0.66, 0.62, 0.54), (0.58, 0.50, 0.38), (0.70, 0.70, 0.68), (0.40, 0.46, 0.48)),
        roofs=((0.32, 0.12, 0.07), (0.16, 0.15, 0.15), (0.24, 0.16, 0.11)),
    ),
    "old-town": Town(
        block_m=(45.0, 70.0),
        lane_m=(2.8, 3.2),
        bend_m=14.0,
        relief_m=3.0,
        parking=0.35,
        crosswalks=0.35,
        sidewalk_m=1.6,
        gardens=False,
        parks=0.1,
        car_parks=0.0,
        setback_m=(0.0, 0.3),
        front_m=(7.0, 13.0),
        gap_m=(0.0, 0.3),
        stories=(2, 4),
        gables=0.9,
        balconies=0.25,
        brick=0.15,
        fences=0.05,
        walls=0.1,
        hedges=0.05,
        street_trees=0.2,
        garden_trees=0.0,
        conifers=0.05,
        bushes=0.1,
        lamps_m=20.0,
        signs=0.6,
        signals=0.15,
        trucks=0.05,
        buses=0.02,
        traffic=0.2,
        people=0.9,
        bicycles=0.6,
        facades=(
            (0.70, 0.52, 0.28),
            (0.62, 0.34, 0.22),
            (0.72, 0.66, 0.50),
            (0.46, 0.54, 0.48),
            (0.66, 0.50, 0.44),
        ),
        roofs=((0.36, 0.13, 0.07), (0.28, 0.11, 0.07)),
        paving=(0.30, 0.26, 0.22),
        asphalt=(0.12, 0.115, 0.11),
    ),
    "industrial": Town(
        block_m=(80.0, 120.0),
        lane_m=(3.5, 4.2),
        bend_m=5.0,
        relief_m=1.0,
        parking=0.7,
        crosswalks=0.25,
        sidewalk_m=2.0,
        verge_m=1.2,
        parks=0.05,
        car_parks=0.35,
        setback_m=(5.0, 12.0),
        front_m=(22.0, 40.0),
        gap_m=(6.0, 14.0),
        stories=(2, 3),
        gables=0.15,
        balconies=0.0,
        brick=0.3,
        fences=0.6,
        walls=0.3,
        hedges=0.1,
        street_trees=0.25,
        garden_trees=0.2,
        conifers=0.15,
        bushes=0.4,
        lamps_m=32.0,
        signs=0.6,
        signals=0.3,
        parked=0.6,
        trucks=0.38,
        buses=0.05,
        traffic=0.4,
        people=0.2,
        bicycles=0.1,
        facades=((0.45, 0.46, 0.48), (0.30, 0.36, 0.42), (0.58, 0.56, 0.52), (0.34, 0.30, 0.28)),
        roofs=((0.20, 0.20, 0.21),),
        grass=(0.14, 0.16, 0.06),
        asphalt=(0.10, 0.10, 0.10),
    ),
    "avenue": Town(
        block_m=(70.0, 110.0),
        lane_m=(3.6, 4.4),
        parking=0.9,
        crosswalks=0.8,
        sidewalk_m=3.0,
        verge_m=1.8,
        parks=0.15,
        setback_m=(1.5, 4.0),
        stories=(3, 6),
        gables=0.35,
        balconies=0.6,
        hedges=0.35,
        street_trees=0.85,
        bushes=0.5,
        signals=0.6,
        trucks=0.08,
        buses=0.1,
        traffic=0.45,
        people=0.6,
        bicycles=0.4,
        leaves=((0.20, 0.17, 0.03), (0.26, 0.14, 0.03), (0.14, 0.18, 0.04)),
        facades=((0.64, 0.58, 0.46), (0.52, 0.50, 0.48), (0.60, 0.44, 0.34)),
    ),
}

OPEN_LAND: dict[str, Town] = {
    "field": Town(
        block_m=(150.0, 220.0),
        setback_m=(200.0, 200.0),  # beyond the blocks: no buildings
        parking=0.0,
        crosswalks=0.0,
        parks=0.0,
        car_parks=0.0,
        street_trees=0.0,
        bushes=0.0,
        lamps_m=400.0,
        signs=0.05,
        signals=0.0,
        traffic=0.02,
        people=0.0,
        bicycles=0.0,
    )
}
"""Styles that no drive gets by chance."""


def find_town(name: str) -> Town:
    """Town by name.

    Raises:
        InputError: no such town.
    """
    known = TOWNS | OPEN_LAND
    if name not in known:
        raise InputError(f"no town '{name}'; known towns: {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class Weather:
    """Light of a drive.

    Attributes:
        sun: (3,) unit vector toward the sun.
        sun_color, sky_color, horizon_color: linear RGB, 1 is white paint in full sun.
        haze_m: distance at which contrast is 37 %.
    """

    name: str
    sun: npt.NDArray[np.float64]
    sun_color: npt.NDArray[np.float32]
    sky_color: npt.NDArray[np.float32]
    horizon_color: npt.NDArray[np.float32]
    haze_m: float


# name: sun's elevation [deg], sun, sky and horizon color, haze [m]
_WEATHERS: dict[str, tuple[Range, Color, Color, Color, Range]] = {
    "clear": ((30, 65), (1.05, 1.0, 0.9), (0.20, 0.36, 0.72), (0.58, 0.70, 0.88), (900, 1800)),
    "evening": ((12, 24), (1.05, 0.75, 0.48), (0.22, 0.28, 0.50), (0.85, 0.66, 0.48), (500, 1000)),
    "overcast": ((40, 70), (0.16, 0.16, 0.16), (0.62, 0.65, 0.70), (0.74, 0.76, 0.79), (350, 700)),
    "hazy": ((35, 60), (0.55, 0.53, 0.50), (0.50, 0.56, 0.64), (0.72, 0.74, 0.75), (150, 260)),
}


def draw_weather(rng: np.random.Generator) -> Weather:
    """Random weather of a drive; clear in half of the drives."""
    names = list(_WEATHERS)
    name = names[int(rng.choice(len(names), p=[0.46, 0.16, 0.24, 0.14]))]
    elevation_deg, sun, sky, horizon, haze = _WEATHERS[name]
    elevation, azimuth = np.radians(rng.uniform(*elevation_deg)), rng.uniform(0, 2 * np.pi)
    flat = np.cos(elevation)
    toward: npt.NDArray[Any] = np.array(
        [np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)]
    )
    tint = rng.uniform(0.93, 1.07, (3, 3))
    colors = [(np.asarray(c) * t).astype(np.float32) for c, t in zip((sun, sky, horizon), tint)]
    return Weather(name, toward, colors[0], colors[1], colors[2], float(rng.uniform(*haze)))
