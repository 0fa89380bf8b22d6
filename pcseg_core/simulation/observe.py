# SPDX-License-Identifier: Apache-2.0
"""Hits of rays in a scene: solids or ground, with class, instance, normal and material."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Material, ground_classes
from pcseg_core.simulation.raycast import Rays, cast, sorted_tiles, surface
from pcseg_core.simulation.scene import Scene
from pcseg_core.simulation.textures import Patch, glass

Array = npt.NDArray[Any]

_TWIGS_M = 0.12
_WAVES = np.array([(1.0, 0.3, 0.5), (-0.4, 1.1, 0.2), (0.2, -0.5, 1.2)])
# 0.15 of the points are above: by the law of Beer and Lambert exp(-0.5 a s) of the light goes
# through a crown of s = 3.8 m with a leaf area of a = 1 m^2 in 1 m^3 and leaves of any direction.
_GAP_LEVEL = 1.3


class Hits:
    """Hits of N rays.

    Attributes:
        range: (N,) float64 along the ray [m], infinity for nothing.
        row: (N,) int64 row of `table`, -1 for none.
        on_ground: (N,) bool.
        curb: (N,) bool, the face of a curb.
        points: (N, 3) float64 in world axes [m], NaN for nothing.
        table: the primitives.
    """

    def __init__(
        self, scene: Scene, table: Array, rays: Rays, range_: Array, row: Array, curb: Array
    ) -> None:
        self.scene, self.table, self.rays = scene, table, rays
        self.range, self.row = range_, row
        self.on_ground = np.isfinite(range_) & (row < 0)
        self.curb = curb & self.on_ground
        self.points = rays.reference + rays.origin + range_[:, None] * rays.direction
        self.points[~np.isfinite(range_)] = np.nan

    @cached_property
    def solid(self) -> Array:
        """Indices of the rays that hit a primitive."""
        return np.flatnonzero(self.row >= 0)

    @cached_property
    def ground(self) -> Array:
        """Indices of the rays that hit the ground."""
        return np.flatnonzero(self.on_ground)

    @cached_property
    def material(self) -> Array:
        """(N,) int8 of `Material`, -1 for nothing."""
        material = np.full(len(self.row), -1, np.int8)
        material[self.solid] = self.table["material"][self.row[self.solid]]
        at = self.points[self.ground]
        material[self.ground] = self.scene.ground.materials(
            at[:, 0], at[:, 1], self.curb[self.ground]
        )
        return material

    @cached_property
    def label(self) -> Array:
        """(N,) int16 class ids of the space "simulation", -1 for nothing."""
        label = np.full(len(self.row), -1, np.int16)
        label[self.solid] = self.table["label"][self.row[self.solid]]
        label[self.ground] = ground_classes(self.material[self.ground])
        return label

    @cached_property
    def instance(self) -> Array:
        """(N,) int32 instance ids, -1 for none."""
        instance = np.full(len(self.row), -1, np.int32)
        instance[self.solid] = self.table["instance"][self.row[self.solid]]
        return instance

    @cached_property
    def _surface(self) -> tuple[Array, Array, Array]:
        points = self.points[self.solid]
        if self.rays.time is not None:  # back to the position of the primitive in the table
            velocity = self.table["velocity"][self.row[self.solid]]
            points = points - velocity * self.rays.time[self.solid, None]
        return surface(self.table, self.row[self.solid], points)

    @cached_property
    def normal(self) -> Array:
        """(N, 3) float32 unit normals in world axes, toward the sensor; 0 for nothing."""
        normal = np.zeros((len(self.row), 3), np.float32)
        normal[self.solid] = self._surface[0]
        at = self.points[self.ground]
        normal[self.ground] = self.scene.ground.normals(
            at[:, 0], at[:, 1], self.curb[self.ground], self.rays.direction[self.ground]
        )
        away = np.einsum("ij,ij->i", normal, self.rays.direction) > 0
        normal[away] *= -1
        return normal

    @cached_property
    def patches(self) -> list[tuple[Material, Array, Patch]]:
        """For each material: its rays and their surface points."""
        _, normal, local = self._surface
        material = self.material[self.solid]
        found = []
        for kind in np.unique(material):
            own = np.flatnonzero(material == kind)
            rays = self.solid[own]
            row = self.row[rays]
            patch = Patch(
                local[own],
                normal[own],
                self.table["half"].astype(np.float32)[row],
                self.table["albedo"][row],
                self.table["texture"][row],
                self.range[rays].astype(np.float32),
            )
            found.append((Material(kind), rays, patch))
        return found

    @cached_property
    def glass(self) -> Array:
        """(N,) bool: hit a window pane."""
        pane = np.zeros(len(self.row), bool)
        for material, rays, patch in self.patches:
            pane[rays] = glass(material, patch)
        return pane


def observe(scene: Scene, rays: Rays, time_s: float, far_m: float) -> Hits:
    """Cast rays into a scene.

    Args:
        time_s: time of the drive at which the times of the rays are 0.
        far_m: maximum range [m].
    """
    return _meet(scene, scene.at(time_s, rays.reference, far_m), rays, far_m)


def past_leaves(hits: Hits, far_m: float) -> Hits:
    """The same rays; those that find a gap between leaves go on to what is behind all leaves.

    The pattern of the gaps is fixed in the world. Its scale is that of twigs: a beam is as wide at
    40 m, and part of it goes on.
    """
    gap = np.flatnonzero(hits.material == Material.LEAVES)
    gap = gap[_between_leaves(hits.points[gap])]
    if len(gap) == 0:
        return hits
    closed = np.flatnonzero(hits.table["material"] != Material.LEAVES)
    behind = _meet(hits.scene, hits.table[closed], hits.rays.take(gap), far_m)
    range_, row, curb = hits.range.copy(), hits.row.copy(), hits.curb.copy()
    range_[gap], curb[gap] = behind.range, behind.curb
    row[gap] = -1
    row[gap[behind.solid]] = closed[behind.row[behind.solid]]
    return Hits(hits.scene, hits.table, hits.rays, range_, row, curb)


def _between_leaves(points: Array) -> Array:
    """(M,) bool: no leaf is in the way at points (M, 3), in the share `_GAPS` of them."""
    wave = np.sin(2 * np.pi / _TWIGS_M * points @ _WAVES.T + np.arange(3)).sum(axis=1)
    gap: Array = wave > _GAP_LEVEL
    return gap


def _meet(scene: Scene, table: Array, rays: Rays, far_m: float) -> Hits:
    origin = rays.reference + rays.origin
    ground, curb = scene.ground.cast(origin, rays.direction, far_m)
    limit = ground.astype(np.float32)
    distance, row = cast(table, rays, limit)
    met = row >= 0
    range_ = np.where(met, distance.astype(np.float64), ground)
    range_[range_ > far_m] = np.inf
    row = np.where(np.isfinite(range_), row, -1)
    return Hits(scene, table, rays, range_, row, curb)


@dataclass(frozen=True)
class Probe:
    """Free rays, for example to test visibility in a scene."""

    scene: Scene
    far_m: float = 250.0

    def cast(self, origin: Array, direction: Array, time_s: float) -> Hits:
        """Cast rays (N, 3) from one point (3,) at one time."""
        unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        rays = Rays(
            np.asarray(origin, dtype=np.float64),
            np.zeros((1, 3), np.float32),
            unit.astype(np.float32),
            None,
            np.eye(3),
            sorted_tiles(unit),
        )
        return observe(self.scene, rays, time_s, self.far_m)
