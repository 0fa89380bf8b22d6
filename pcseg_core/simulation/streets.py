# SPDX-License-Identifier: Apache-2.0
"""The street plan: a bent grid of streets, and the material of the ground.

Streets are straight in plan coordinates (u, v) [m]; two exactly invertible shears bend the plan
into the world. Blocks between the streets are raised by a curb.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Material
from pcseg_core.simulation.towns import Town

Array = npt.NDArray[Any]

CORNER = 5.0  # radius of the blocks' corners [m]
_MARKING = 0.07  # half width of a painted line [m]


class BlockUse(IntEnum):
    """Use of a block."""

    BUILT = 0
    PARK = 1
    CAR_PARK = 2


@dataclass(frozen=True)
class Block:
    """A block in plan coordinates, from curb to curb, and the streets' parking lanes around it."""

    use: BlockUse
    u0: float
    u1: float
    v0: float
    v1: float
    parking: tuple[float, float, float, float]  # width at v0, u1, v1, u0 [m], 0: none


class Streets:
    """Streets u = const and v = const, with their widths and the blocks between them."""

    def __init__(self, town: Town, rng: np.random.Generator, reach_m: float) -> None:
        """Lay out a plan that covers at least `reach_m` around the origin."""
        self.town = town
        self.lines = [self._spaced(rng, reach_m) for _ in range(2)]  # u of streets, v of streets
        counts = [len(line) for line in self.lines]
        self.lane = [rng.uniform(*town.lane_m, size=n) for n in counts]
        self.bays = [np.where(rng.random(n) < town.parking, 2.2, 0.0) for n in counts]
        self.half = [lane + bay for lane, bay in zip(self.lane, self.bays)]
        shares = np.array([1 - town.parks - town.car_parks, town.parks, town.car_parks])
        self.use = rng.choice(3, size=(counts[0] - 1, counts[1] - 1), p=shares)
        self.crosswalk = rng.random(counts) < town.crosswalks
        self._bend = rng.uniform(0, town.bend_m, 2)
        self._rate = 2 * np.pi / rng.uniform(250, 450, 2)
        self._phase = rng.uniform(0, 2 * np.pi, 2)

    def _spaced(self, rng: np.random.Generator, reach_m: float) -> Array:
        up, down = (
            np.cumsum(rng.uniform(*self.town.block_m, size=int(reach_m / self.town.block_m[0]) + 2))
            for _ in range(2)
        )
        return np.concatenate([-down[::-1], [0.0], up])

    def to_world(self, u: Array | float, v: Array | float) -> tuple[Array, Array]:
        """World x, y [m] of plan coordinates."""
        x = u + self._bend[0] * np.sin(self._rate[0] * np.asarray(v) + self._phase[0])
        return x, v + self._bend[1] * np.sin(self._rate[1] * x + self._phase[1])

    def to_plan(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Plan coordinates of world x, y [m]."""
        v = y - self._bend[1] * np.sin(self._rate[1] * x + self._phase[1])
        return x - self._bend[0] * np.sin(self._rate[0] * v + self._phase[0]), v

    def heading(self, u: float, v: float, plan_yaw: float) -> float:
        """World yaw [rad] of a plan direction at a position."""
        step = 0.5
        ends = [
            self.to_world(u + s * step * np.cos(plan_yaw), v + s * step * np.sin(plan_yaw))
            for s in (-1, 1)
        ]
        return float(np.arctan2(ends[1][1] - ends[0][1], ends[1][0] - ends[0][0]))

    def block(self, i: int, j: int) -> Block:
        """Block between streets u[i], u[i + 1] and v[j], v[j + 1]."""
        (us, vs), (hu, hv), (bu, bv) = self.lines, self.half, self.bays
        return Block(
            BlockUse(self.use[i, j]),
            us[i] + hu[i],
            us[i + 1] - hu[i + 1],
            vs[j] + hv[j],
            vs[j + 1] - hv[j + 1],
            (float(bv[j]), float(bu[i + 1]), float(bv[j + 1]), float(bu[i])),
        )

    def _cells(self, u: Array, v: Array) -> tuple[Array, Array]:
        found = []
        for line, at in zip(self.lines, (u, v)):
            cell = np.searchsorted(line, at) - 1
            found.append(np.clip(cell, 0, len(line) - 2))
        return found[0], found[1]

    def inside(self, x: Array, y: Array) -> Array:
        """(N,) distance of positions inside their block, negative on the road [m].

        Signed distance of a rectangle with rounded corners.
        """
        u, v = self.to_plan(x, y)
        return self._inside(u, v, *self._cells(u, v))

    def _inside(self, u: Array, v: Array, i: Array, j: Array) -> Array:
        beyond = []
        for at, cell, line, half in zip((u, v), (i, j), self.lines, self.half):
            low, high = (line[:-1] + half[:-1])[cell], (line[1:] - half[1:])[cell]
            beyond.append(np.abs(at - (low + high) / 2) - (high - low) / 2 + CORNER)
        corner = np.hypot(np.maximum(beyond[0], 0), np.maximum(beyond[1], 0))
        depth: Array = CORNER - corner - np.minimum(np.maximum(beyond[0], beyond[1]), 0)
        return depth

    def materials(self, x: Array, y: Array) -> Array:
        """(N,) int8 `Material` of the ground at world positions."""
        u, v = self.to_plan(x, y)
        i, j = self._cells(u, v)
        depth = self._inside(u, v, i, j)
        town = self.town
        ground = np.full(len(u), Material.ASPHALT, np.int8)
        lot = np.array(
            [Material.GRASS if town.gardens else Material.PAVING, Material.GRASS, Material.BAYS],
            np.int8,
        )
        pavement = town.verge_m + town.sidewalk_m
        ground = np.where(depth > 0, Material.PAVING, ground)
        ground = np.where((depth > 0.15) & (depth < town.verge_m), Material.GRASS, ground)
        ground = np.where(depth > pavement, lot[self.use[i, j]], ground).astype(np.int8)
        bay = (depth > pavement + 1) & (self.use[i, j] == BlockUse.CAR_PARK)
        lines = bay & (np.mod(u, 2.6) < 0.12) & (np.mod(v, 16.0) < 10.0)
        ground[lines] = Material.ROAD_PAINT
        road = np.flatnonzero(depth <= 0)
        ground[road] = self._road(u[road], v[road], i[road], j[road])
        return ground

    def _road(self, u: Array, v: Array, i: Array, j: Array) -> Array:
        """Asphalt, parking bays or paint at positions on the road."""
        lines = [
            cell + (at - line[cell] > (line[cell + 1] - line[cell]) / 2)
            for at, cell, line in zip((u, v), (i, j), self.lines)
        ]
        offset = [at - line[k] for at, line, k in zip((u, v), self.lines, lines)]
        gap = [np.abs(d) - half[k] for d, half, k in zip(offset, self.half, lines)]
        ground = np.full(len(u), Material.ASPHALT, np.int8)
        crosswalk = self.crosswalk[lines[0], lines[1]]
        for axis in (0, 1):  # streets along v, then along u
            other, along = 1 - axis, (v, u)[axis]
            street = (gap[axis] < 0) & (gap[other] > 0)
            side, lane = offset[axis], self.lane[axis][lines[axis]]
            bay, clear = self.bays[axis][lines[axis]] > 0, gap[other] - CORNER
            parking = street & bay & (np.abs(side) > lane) & (clear > 6)
            ground[parking] = Material.BAYS
            dashed = (np.abs(side) < _MARKING) & (np.mod(along, 6.0) < 3.0) & (clear > 5)
            edge = bay & (np.abs(np.abs(side) - lane) < _MARKING) & (clear > 6)
            ends = parking & (np.mod(along, 6.5) < 0.1)
            stripes = (clear > 0.5) & (clear < 3.5) & (np.mod(side, 1.0) < 0.5)
            stripes &= crosswalk & (gap[axis] < -0.3)
            coming = (side * offset[other] < 0) == (axis == 0)
            stop = (clear > 4.2) & (clear < 4.6) & coming & (np.abs(side) < lane - 0.2)
            paint = street & (dashed | edge | ends | stripes | (stop & (np.abs(side) > 0.2)))
            ground[paint] = Material.ROAD_PAINT
        return ground
