# SPDX-License-Identifier: Apache-2.0
"""Content of a block: buildings, gardens, street furniture, parked cars, people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation import buildings, furniture, people, plants, vehicles
from pcseg_core.simulation.ground import Ground
from pcseg_core.simulation.primitives import join, place, pose_at
from pcseg_core.simulation.route import poses_from_angles
from pcseg_core.simulation.streets import CORNER, Block, BlockUse

Array = npt.NDArray[Any]


class Side:
    """One side of a block: positions by distance along it (counter-clockwise) and inwards."""

    def __init__(self, block: Block, index: int) -> None:
        self.index = index
        self.block = block
        self.length = (block.u1 - block.u0) if index % 2 == 0 else (block.v1 - block.v0)
        self.depth = (block.v1 - block.v0) if index % 2 == 0 else (block.u1 - block.u0)
        self.parking = block.parking[index]
        self.yaw = index * np.pi / 2  # plan direction of increasing distance

    def spot(self, along: float, inward: float) -> tuple[float, float]:
        """Plan coordinates."""
        b = self.block
        spots = [
            (b.u0 + along, b.v0 + inward),
            (b.u1 - inward, b.v0 + along),
            (b.u1 - along, b.v1 - inward),
            (b.u0 + inward, b.v1 - along),
        ]
        return spots[self.index]


class BlockFiller:
    """Fills one block, deterministically for a drive."""

    def __init__(self, ground: Ground, block: Block, rng: np.random.Generator) -> None:
        self.ground, self.streets, self.town = ground, ground.streets, ground.streets.town
        self.block, self.rng = block, rng
        self.parts: list[Array] = []
        self._taken: list[tuple[float, float, float]] = []  # x, y, radius of small things

    def fill(self, detailed: bool) -> Array:
        """All primitives; instance ids are unique within the block.

        Args:
            detailed: include small objects; otherwise only buildings and trees.
        """
        for index in range(4):
            side = Side(self.block, index)
            if detailed:
                self._curbside(side)
            if self.block.use == BlockUse.BUILT:
                self._buildings(side, detailed)
        if self.block.use == BlockUse.PARK:
            self._park()
        if self.block.use == BlockUse.CAR_PARK:
            self._car_park()
        return join(self.parts)

    # -- placing ---------------------------------------------------------------------------

    def _put(
        self,
        parts: Array,
        plan: tuple[float, float],
        plan_yaw: float,
        *,
        lift: float | None = None,
        thing: bool = False,
        tilt: bool = False,
    ) -> None:
        """Place parts at a position of the plan; a `thing` gets its own instance id."""
        x, y = (float(c) for c in self.streets.to_world(*plan))
        yaw = self.streets.heading(*plan, plan_yaw)
        lift = self.ground.curb_m if lift is None else lift
        z = float(self.ground.height(x, y)) + lift
        pose = tilted_pose(self.ground, x, y, z, yaw) if tilt else pose_at(x, y, z, yaw)
        self.parts.append(place(parts, pose, len(self.parts) if thing else None))

    def _free(self, plan: tuple[float, float], radius: float) -> bool:
        """Reserve a disc of the plan if it is free."""
        for x, y, other in self._taken:
            if (plan[0] - x) ** 2 + (plan[1] - y) ** 2 < (radius + other) ** 2:
                return False
        self._taken.append((*plan, radius))
        return True

    def _every(self, side: Side, spacing: float, margin: float) -> Iterator[float]:
        """Positions along a side, jittered by a fifth of their spacing."""
        for at in np.arange(margin, side.length - margin, spacing):
            yield float(at + self.rng.uniform(-0.2, 0.2) * spacing)

    # -- along the curb ---------------------------------------------------------------------

    def _curbside(self, side: Side) -> None:
        town, rng = self.town, self.rng
        outer = max(town.verge_m / 2, 0.55)
        facing = side.yaw + np.pi  # traffic passes with the block on its right
        for at in self._every(side, town.lamps_m, CORNER + 3):
            self._small(furniture.lamp(rng), side.spot(at, outer), side.yaw - np.pi / 2, 0.4)
        if rng.random() < 0.15:
            for at in self._every(side, 30.0, CORNER + 12):
                self._small(furniture.utility_pole(rng), side.spot(at, outer), side.yaw, 0.4)
        for at in self._every(side, 16.0, CORNER + 2):
            if rng.random() < town.signs:
                self._small(furniture.sign(rng), side.spot(at, outer), facing, 0.4)
        if rng.random() < town.signals:
            self._small(furniture.traffic_light(rng), side.spot(CORNER - 1, 0.7), facing, 0.4)
        if rng.random() < 0.2 + 0.3 * (town.verge_m == 0):
            for at in np.arange(CORNER, side.length - CORNER, 1.8)[: rng.integers(4, 14)]:
                self._small(furniture.bollard(rng), side.spot(float(at), 0.3), facing, 0.2)
        self._street_trees(side, outer)
        self._verge_bushes(side)
        self._parked(side)
        self._sidewalk(side)

    def _small(self, parts: Array, plan: tuple[float, float], yaw: float, radius: float) -> None:
        if self._free(plan, radius):
            thin, thick = self.town.posts
            if thin < thick:
                parts["half"][:, :2] *= self.rng.uniform(thin, thick)
            self._put(parts, plan, yaw)

    def _street_trees(self, side: Side, outer: float) -> None:
        if self.rng.random() > self.town.street_trees:
            return
        spacing = self.rng.uniform(7.0, 13.0)
        for at in self._every(side, spacing, CORNER + 4):
            plan = side.spot(at, outer + 0.3)
            if self.rng.random() < 0.85 and self._free(plan, 0.8):
                self._put(plants.broadleaf(self.town, self.rng), plan, side.yaw)

    def _verge_bushes(self, side: Side) -> None:
        town, rng = self.town, self.rng
        if town.verge_bushes == 0 or town.verge_m < 1.2:
            return
        for at in self._every(side, 5.0, CORNER + 2):
            plan = side.spot(at, town.verge_m / 2)
            if rng.random() < town.verge_bushes and self._free(plan, 0.7):
                self._put(plants.bush(town, rng), plan, side.yaw)

    def _parked(self, side: Side) -> None:
        if side.parking == 0:
            return
        at = CORNER + 9.0
        while at < side.length - CORNER - 10:
            length = 6.3
            if self.rng.random() < self.town.parked:
                vehicle, length = self._vehicle()
                drift = self.rng.uniform(-0.12, 0.12)
                plan = side.spot(at + length / 2, -side.parking / 2 + drift)
                yaw = side.yaw + np.pi + self.rng.normal(0, 0.015)
                self._put(vehicle, plan, yaw, lift=0.0, thing=True, tilt=True)
            at += length + self.rng.uniform(0.9, 1.8)

    def _vehicle(self) -> tuple[Array, float]:
        """A parked vehicle and its length."""
        kind = self.rng.random()
        if kind < self.town.trucks * 0.6:
            parts = vehicles.truck(self.rng)
        elif kind > 0.95:
            return vehicles.motorcycle(self.rng), 1.8
        else:
            parts = vehicles.car(self.rng, self.town.vans, self.town.high_vans)
        return parts, vehicle_length(parts)

    def _sidewalk(self, side: Side) -> None:
        town, rng = self.town, self.rng
        for at in self._every(side, 10.0, 2.0):
            if rng.random() < town.people:
                for _ in range(int(rng.integers(1, 3))):
                    inward = town.verge_m + rng.uniform(0.7, town.sidewalk_m - 0.2)
                    plan = side.spot(at + rng.uniform(-1, 1), inward)
                    if self._free(plan, 0.35):
                        yaw = side.yaw + rng.choice([0, np.pi]) + rng.normal(0, 0.4)
                        self._put(people.person(rng, False), plan, yaw, thing=True)
        for at in self._every(side, 25.0, CORNER + 3):
            if rng.random() < town.bicycles:
                for k in range(int(rng.integers(1, 5))):
                    plan = side.spot(at + 0.7 * k, town.verge_m + 0.95)
                    if self._free(plan, 0.34):
                        yaw = side.yaw + np.pi / 2 + rng.normal(0, 0.08)
                        self._put(vehicles.bicycle(rng), plan, yaw, thing=True)

    # -- behind the sidewalk ------------------------------------------------------------------

    def _buildings(self, side: Side, detailed: bool) -> None:
        town, rng = self.town, self.rng
        pavement = town.verge_m + town.sidewalk_m
        setback = pavement + rng.uniform(*town.setback_m)
        deepest = min(14.0 if town.front_m[1] < 30 else 24.0, side.depth / 2 - setback - 1)
        if deepest < 5:
            return
        margin = setback if side.index % 2 == 0 else setback + deepest + 2
        at = margin
        while at < side.length - margin - town.front_m[0] * 0.6:
            front = min(rng.uniform(*town.front_m), side.length - margin - at)
            depth = rng.uniform(0.65, 1.0) * deepest
            back = setback + rng.uniform(0, 0.25) * (town.setback_m[1] - town.setback_m[0])
            middle = at + front / 2
            house = buildings.building(town, rng, front, depth)
            self._put(house, side.spot(middle, back + depth / 2), side.yaw)
            if detailed:
                self._front_garden(side, middle, front, pavement, back)
            at += front + rng.uniform(*town.gap_m)

    def _front_garden(
        self, side: Side, middle: float, front: float, pavement: float, back: float
    ) -> None:
        """Boundary, bushes and trees between the sidewalk and a building."""
        town, rng = self.town, self.rng
        if back - pavement < 1.5:
            return
        self._boundary(side, middle, front, pavement + 0.35)
        if town.annexes and rng.random() < town.annexes and back - pavement > 4:
            along = middle + rng.uniform(-0.4, 0.4) * front
            plan = side.spot(along, rng.uniform(pavement + 1.5, back - 2))
            if self._free(plan, 2.5):
                self._put(buildings.annex(town, rng), plan, side.yaw)
        for _ in range(3):
            plan = side.spot(
                middle + rng.uniform(-0.5, 0.5) * front, rng.uniform(pavement + 1.2, back - 0.3)
            )
            if rng.random() < town.bushes and self._free(plan, 0.9):
                self._put(plants.bush(town, rng), plan, side.yaw)
        plan = side.spot(middle + rng.uniform(-0.5, 0.5) * front, (pavement + back) / 2 + 0.5)
        if back - pavement > 3 and rng.random() < town.garden_trees and self._free(plan, 1.5):
            self._put(plants.tree(town, rng, 0.85), plan, side.yaw)

    def _boundary(self, side: Side, middle: float, front: float, inward: float) -> None:
        """Fence, wall or hedge in pieces of at most 6 m that follow the terrain."""
        town, rng = self.town, self.rng
        makers: list[Callable[[float], Array]] = [
            lambda length: buildings.fence(rng, length),
            lambda length: buildings.wall(town, rng, length),
            lambda length: plants.hedge(town, rng, length),
        ]
        pick = rng.random() - np.cumsum([town.fences, town.walls, town.hedges])
        chosen = np.flatnonzero(pick < 0)
        if len(chosen) == 0:
            return
        self._row(side, middle, front, inward, makers[chosen[0]])
        if town.backed and chosen[0] < 2 and rng.random() < town.backed:
            self._row(side, middle, front, inward + 0.6, makers[2])

    def _row(
        self, side: Side, middle: float, front: float, inward: float, make: Callable[[float], Array]
    ) -> None:
        """Equal pieces side by side, with a gate."""
        rng = self.rng
        pieces = max(int(np.ceil(front / 6)), 2)
        length, gate = front / pieces, int(rng.integers(pieces))
        state = rng.bit_generator.state
        for k in range(pieces):
            rng.bit_generator.state = state  # all pieces equal
            piece = make(length)
            if k != gate:
                at = middle + (k + 0.5 - pieces / 2) * length
                self._put(piece, side.spot(at, inward), side.yaw)

    def _park(self) -> None:
        b, rng, town = self.block, self.rng, self.town
        pavement = town.verge_m + town.sidewalk_m
        area = (b.u1 - b.u0) * (b.v1 - b.v0)
        for maker, count, radius in ((plants.tree, area / 90, 2.2), (plants.bush, area / 160, 1.0)):
            for _ in range(int(count)):
                plan = (
                    rng.uniform(b.u0 + pavement + 2, b.u1 - pavement - 2),
                    rng.uniform(b.v0 + pavement + 2, b.v1 - pavement - 2),
                )
                if self._free(plan, radius):
                    self._put(maker(town, rng), plan, 0.0)
        for _ in range(int(area / 500 * town.people)):
            plan = (rng.uniform(b.u0 + 4, b.u1 - 4), rng.uniform(b.v0 + 4, b.v1 - 4))
            if self._free(plan, 0.4):
                self._put(people.person(rng, False), plan, rng.uniform(0, 6.28), thing=True)

    def _car_park(self) -> None:
        b, rng = self.block, self.rng
        pavement = self.town.verge_m + self.town.sidewalk_m + 2
        for row in np.arange(b.v0 + pavement + 3, b.v1 - pavement - 3, 8.0):
            for column in np.arange(b.u0 + pavement + 2, b.u1 - pavement - 2, 2.6):
                # the middle between the lines that are painted every 2.6 m of the plan
                u = (np.floor(column / 2.6) + 0.5) * 2.6
                if rng.random() < 0.45:
                    yaw = rng.choice([1, -1]) * np.pi / 2 + rng.normal(0, 0.02)
                    car = vehicles.car(rng, self.town.vans, self.town.high_vans)
                    self._put(car, (float(u), float(row)), yaw, thing=True, tilt=True)


def tilted_pose(ground: Ground, x: float, y: float, z: float, yaw: float) -> Array:
    """(4, 4) pose of a vehicle on sloping ground."""
    dx, dy = (float(s) for s in ground.slope(x, y))
    pitch = -np.arctan(dx * np.cos(yaw) + dy * np.sin(yaw))
    roll = np.arctan(dy * np.cos(yaw) - dx * np.sin(yaw))
    columns = (np.array([value]) for value in (x, y, z, yaw, pitch, roll))
    pose: Array = poses_from_angles(*columns)[0]
    return pose


def vehicle_length(parts: Array) -> float:
    """Extent along x of parts in their own frame [m]."""
    half = np.einsum("pj,pj->p", np.abs(parts["rotation"][:, 0, :]), parts["half"])
    x = parts["center"][:, 0]
    return float((x + half).max() - (x - half).min())
