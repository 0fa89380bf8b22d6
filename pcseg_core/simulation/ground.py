# SPDX-License-Identifier: Apache-2.0
"""The ground: hilly terrain with streets lower by the height of a curb."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Material
from pcseg_core.simulation.streets import Streets

Array = npt.NDArray[Any]

_STEEP = -0.15  # steeper rays meet the ground once, near the level guess
_FARTHEST_STEP = 25.0  # largest step of Newton's method, for rays along a slope [m]
_MOST_STEPS = 12  # for rays that converge slowly
_RISING = 0.12  # steeper rising rays never meet the ground; all slopes are smaller
_STEPS = np.array([0, 3, 7, 12, 20, 30, 45, 65, 90, 120, 160, 210, 280], np.float32)  # [m]


class Ground:
    """Heights, normals, materials and ray casting of the ground."""

    def __init__(self, streets: Streets, rng: np.random.Generator, relief_m: float) -> None:
        """Waves of some hundred meters length and up to `relief_m` height."""
        self.streets = streets
        self.curb_m = streets.town.curb_m
        direction = rng.uniform(0, 2 * np.pi, 2)
        rate = 2 * np.pi / rng.uniform(140, 320, 2)
        self._waves = np.stack([np.cos(direction) * rate, np.sin(direction) * rate])  # (2, waves)
        self._phase = rng.uniform(0, 2 * np.pi, 2)
        self._height = relief_m / 2 * rng.uniform(0.4, 1.0, 2)

    def height(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Level of the road [m]; blocks are higher by the curb."""
        x, y = np.asarray(x), np.asarray(y)
        level = np.zeros(np.broadcast(x, y).shape, np.result_type(x, y, np.float32))
        for kx, ky, phase, height in zip(*self._waves, self._phase, self._height):
            level += height * np.sin(kx * x + ky * y + phase)
        return level

    def slope(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
        """Rise of the level per meter along x and y."""
        x, y = np.asarray(x), np.asarray(y)
        dx = np.zeros(np.broadcast(x, y).shape, np.result_type(x, y, np.float32))
        dy = np.zeros_like(dx)
        for kx, ky, phase, height in zip(*self._waves, self._phase, self._height):
            rise = height * np.cos(kx * x + ky * y + phase)
            dx, dy = dx + kx * rise, dy + ky * rise
        return dx, dy

    def standing(self, x: Array, y: Array) -> Array:
        """Height of the surface including curbs [m]."""
        return self.height(x, y) + np.where(self.streets.inside(x, y) > 0, self.curb_m, 0.0)

    def cast(self, origin: Array, direction: Array, far_m: float) -> tuple[Array, Array]:
        """Intersect rays with the ground.

        Args:
            origin: (N, 3) or (1, 3) [m], above the ground. direction: (N, 3) unit vectors.
            far_m: maximum range [m].

        Returns:
            range (N,) float64, infinity without a hit, and curb (N,) bool: hit the face of a
            curb.
        """
        origin = np.broadcast_to(origin, direction.shape)
        t = np.full(len(direction), np.inf)
        curb = np.zeros(len(direction), bool)
        down = np.flatnonzero(direction[:, 2] < _RISING)
        o, d = origin[down].astype(np.float64), direction[down].astype(np.float64)
        upper = self._meet_level(o, d, self.curb_m)
        upper[upper > far_m] = np.inf
        hit = np.flatnonzero(np.isfinite(upper))
        o, d, first = o[hit], d[hit], upper[hit]
        on_block = self._inside(o, d, first) > 0
        low = np.flatnonzero(~on_block)
        second = self._go_on(o[low], d[low], first[low])
        second[second > far_m] = np.inf
        face = np.isfinite(second)
        face[face] = self._inside(o[low[face]], d[low[face]], second[face]) > 0
        at_face = low[face]
        second[face] = self._curb_face(o[at_face], d[at_face], first[at_face], second[face])
        first[low] = second
        t[down[hit]] = first
        curb[down[hit[at_face]]] = True
        return t, curb

    def materials(self, x: Array, y: Array, curb: Array) -> Array:
        """(N,) int8 of `Material`."""
        ground = self.streets.materials(x, y)
        ground[curb] = Material.CURB
        return ground

    def normals(self, x: Array, y: Array, curb: Array, direction: Array) -> Array:
        """(N, 3) float32 unit normals; curb faces are assumed perpendicular to the ray."""
        dx, dy = self.slope(x, y)
        normal = np.stack([-dx, -dy, np.ones_like(dx)], axis=1)
        normal[curb] = -direction[curb] * np.array([1, 1, 0])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        return normal.astype(np.float32)

    def _inside(self, o: Array, d: Array, t: Array) -> Array:
        return self.streets.inside(o[:, 0] + t * d[:, 0], o[:, 1] + t * d[:, 1])

    def _above(self, o: Array, d: Array, t: Array, lift: float) -> Array:
        level = self.height(o[:, 0] + t * d[:, 0], o[:, 1] + t * d[:, 1])
        above: Array = o[:, 2] + t * d[:, 2] - level - lift
        return above

    def _newton(self, o: Array, d: Array, t: Array, lift: float, steps: int = 2) -> Array:
        """Newton's method from guesses within some meters; slopes change by 0.2 % per meter."""
        for _ in range(steps):
            x, y = o[:, 0] + t * d[:, 0], o[:, 1] + t * d[:, 1]
            level, dx, dy = self._level_and_slope(x, y)
            falling = np.minimum(d[:, 2] - dx * d[:, 0] - dy * d[:, 1], -1e-4)
            step = (o[:, 2] + t * d[:, 2] - level - lift) / falling
            t = t - np.clip(step, -_FARTHEST_STEP, _FARTHEST_STEP)
        late = np.flatnonzero(np.abs(step) > 0.05) if len(t) else np.zeros(0, np.int64)
        if len(late) and steps < _MOST_STEPS:  # rays nearly parallel to the slope
            t[late] = self._newton(o[late], d[late], t[late], lift, _MOST_STEPS)
        return t

    def _level_and_slope(self, x: Array, y: Array) -> tuple[Array, Array, Array]:
        level, dx, dy = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
        for kx, ky, phase, height in zip(*self._waves, self._phase, self._height):
            angle = kx * x + ky * y + phase
            rise = height * np.cos(angle)
            level += height * np.sin(angle)
            dx += kx * rise
            dy += ky * rise
        return level, dx, dy

    def _go_on(self, o: Array, d: Array, first: Array) -> Array:
        """Continue rays from the level of the blocks to the level of the road."""
        second = self._newton(o, d, first, 0.0)
        missed = np.abs(self._above(o, d, second, 0.0)) > 1e-5
        missed |= second < first
        second[missed] = self._march(o[missed], d[missed], 0.0, first[missed])
        return second

    def _meet_level(self, o: Array, d: Array, lift: float) -> Array:
        """Range to the terrain raised by `lift`, infinity without a hit."""
        t = np.full(len(d), np.inf)
        steep = np.flatnonzero(d[:, 2] < _STEEP)
        guess = -self._above(o[steep], d[steep], np.zeros(len(steep)), lift) / d[steep, 2]
        t[steep] = self._newton(o[steep], d[steep], guess, lift)
        flat = np.flatnonzero(d[:, 2] >= _STEEP)
        t[flat] = self._march(o[flat], d[flat], lift, np.zeros(len(flat)))
        return t

    def _march(self, o: Array, d: Array, lift: float, begin: Array) -> Array:
        """First crossing of shallow rays after `begin`: fixed steps, the secant, then Newton."""
        found = np.full(len(d), np.inf)
        o32, d32, t32 = (values.astype(np.float32) for values in (o, d, begin))
        left, above = np.arange(len(d)), self._above(o32, d32, t32, lift)
        for start, end in itertools.pairwise(_STEPS):
            after = self._above(o32, d32, t32 + end, lift)
            crossed = after <= 0
            share = above[crossed] / np.maximum(above[crossed] - after[crossed], 1e-9)
            found[left[crossed]] = t32[crossed] + start + share * (end - start)
            on = ~crossed
            left, above = left[on], after[on]
            o32, d32, t32 = o32[on], d32[on], t32[on]
        hit = np.flatnonzero(np.isfinite(found))
        found[hit] = self._newton(o[hit], d[hit], found[hit], lift, steps=3)
        found[found < begin] = np.inf
        return found

    def _curb_face(self, o: Array, d: Array, before: Array, after: Array) -> Array:
        """Where rays enter a block from above the road, by bisection."""
        low, high = before.copy(), after.copy()
        for _ in range(20):
            middle = (low + high) / 2
            inside = self._inside(o, d, middle) > 0
            low, high = np.where(inside, low, middle), np.where(inside, middle, high)
        result: Array = high
        return result
