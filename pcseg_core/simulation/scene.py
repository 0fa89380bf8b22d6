# SPDX-License-Identifier: Apache-2.0
"""A scene: streets, static and moving objects, and weather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.ground import Ground
from pcseg_core.simulation.materials import Class
from pcseg_core.simulation.population import BlockFiller
from pcseg_core.simulation.primitives import join
from pcseg_core.simulation.route import Route
from pcseg_core.simulation.streets import Block, Streets
from pcseg_core.simulation.towns import Weather
from pcseg_core.simulation.traffic import Mover, Traffic

Array = npt.NDArray[Any]

_DETAIL_M = 90.0  # blocks nearer to the route are filled completely
_BACKDROP_M = 190.0  # farther blocks up to here have buildings and trees


@dataclass(frozen=True)
class Scene:
    """Everything visible on a drive.

    Attributes:
        ground: terrain and streets.
        still: table of static primitives.
        movers: moving objects.
        weather: light and haze.
    """

    ground: Ground
    still: Array
    movers: tuple[Mover, ...]
    weather: Weather

    def at(self, time_s: float, around: Array, radius_m: float) -> Array:
        """Primitives within a distance of a point (3,) at a time."""
        gap = np.linalg.norm(self.still["center"][:, :2] - around[:2], axis=1)
        near = self.still[gap - np.linalg.norm(self.still["half"], axis=1) < radius_m]
        moving = [m.at(time_s) for m in self.movers if m.near(time_s, around, radius_m)]
        return join([near, *moving])


def build_scene(
    weather: Weather, ground: Ground, route: Route, times: Array, along: Array, seed: int
) -> Scene:
    """Fill the surroundings of a route.

    Args:
        times: (K,) [s]; along: (K,) distance of the recording vehicle along the route [m].
        seed: of random placement.
    """
    blocks = []
    for i, j, block, detailed in _blocks_near(ground.streets, route):
        rng = np.random.default_rng([seed, 1, i, j])
        blocks.append(BlockFiller(ground, block, rng).fill(detailed))
    count = 0
    for table in blocks:
        count = _renumber(table, count)
    movers = Traffic(ground, route, times, along, np.random.default_rng([seed, 2])).draw()
    for k, mover in enumerate(movers):
        # one id for the vehicle, the next for its rider
        mover.parts["instance"] = count + 2 * k + (mover.parts["label"] == Class.RIDER)
    return Scene(ground, join(blocks), tuple(movers), weather)


def _renumber(table: Array, first: int) -> int:
    """Renumber the instance ids of a block from `first`; returns the next free id."""
    things = table["instance"] >= 0
    ids, number = np.unique(table["instance"][things], return_inverse=True)
    table["instance"][things] = number + first
    return first + len(ids)


def _blocks_near(streets: Streets, route: Route) -> list[tuple[int, int, Block, bool]]:
    """Blocks to fill as (i, j, block, whether completely)."""
    u, v = streets.to_plan(route.xy[::20, 0], route.xy[::20, 1])
    found = []
    for i, j in np.ndindex(streets.use.shape):
        block = streets.block(i, j)
        du = np.maximum(np.maximum(block.u0 - u, u - block.u1), 0)
        dv = np.maximum(np.maximum(block.v0 - v, v - block.v1), 0)
        gap = float(np.hypot(du, dv).min())
        if gap < _BACKDROP_M:
            found.append((i, j, block, gap < _DETAIL_M))
    return found
