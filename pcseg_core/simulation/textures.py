# SPDX-License-Identifier: Apache-2.0
"""Textures of materials as functions of the position on a solid.

Textures depend on the position and a fixed noise table: a wall looks the same in every image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.furniture import ROUND_BAN, ROUND_ORDER, STREET_NAME, TRIANGLE
from pcseg_core.simulation.materials import Material
from pcseg_core.simulation.vehicles import LIGHTS, PLATES

Array = npt.NDArray[Any]

_SIZE = 512  # side of the noise table
_WINDOW = np.array((0.045, 0.055, 0.065), np.float32)  # dark glass


def _noise_table() -> tuple[Array, Array]:
    """White and smooth noise in [-1, 1], periodic."""
    rng = np.random.default_rng(20240229)
    fine = rng.uniform(-1, 1, (_SIZE, _SIZE))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_SIZE), np.fft.fftfreq(_SIZE)))
    spectrum = np.fft.fft2(rng.normal(size=(_SIZE, _SIZE))) / np.maximum(frequency, 1 / 128) ** 1.2
    soft = np.fft.ifft2(spectrum).real
    return fine.astype(np.float32), (soft / np.abs(soft).max()).astype(np.float32)


_FINE, _SOFT = _noise_table()


def _look_up(table: Array, u: Array, v: Array, cell_m: float) -> Array:
    i = (np.floor(u / cell_m)).astype(np.int64) & (_SIZE - 1)
    j = (np.floor(v / cell_m)).astype(np.int64) & (_SIZE - 1)
    result: Array = table[i, j]
    return result


def grain(u: Array, v: Array, cell_m: float) -> Array:
    """White noise of cells at positions [m], in [-1, 1]."""
    return _look_up(_FINE, u, v, cell_m)


def speckle(x: Array, y: Array, z: Array, cell_m: float) -> Array:
    """White noise of cubes in space [m], in [-1, 1]."""
    level = np.floor(z / cell_m)
    return _look_up(_FINE, x + 37 * cell_m * level, y + 101 * cell_m * level, cell_m)


def blotches(u: Array, v: Array, cell_m: float) -> Array:
    """Smooth noise at positions [m], in [-1, 1]; `cell_m` is its finest detail."""
    return _look_up(_SOFT, u, v, cell_m)


@dataclass
class Patch:
    """Points on solids of one material.

    Attributes:
        local: (M, 3) position in the solid's axes relative to its center [m].
        normal: (M, 3) outward unit normal in the solid's axes.
        half: (M, 3) half extents [m].
        albedo: (M, 3) the solid's own color.
        texture: (M, 4) its texture parameters.
        distance: (M,) from the camera [m]; detail below a pixel is omitted.
    """

    local: Array
    normal: Array
    half: Array
    albedo: Array
    texture: Array
    distance: Array

    def wall(self) -> tuple[Array, Array, Array]:
        """Horizontal and vertical position on vertical faces [m], and a mask of these points."""
        on_end = np.abs(self.normal[:, 0]) > np.abs(self.normal[:, 1])
        across = np.where(on_end, self.local[:, 1], self.local[:, 0])
        return across, self.local[:, 2] + self.half[:, 2], np.abs(self.normal[:, 2]) < 0.7

    def shade(self, amount: Array) -> Array:
        """The solid's color, lighter or darker by `amount`."""
        shaded: Array = self.albedo * (1 + amount)[:, None]
        return shaded


def facade_windows(patch: Patch) -> tuple[Array, Array, Array, Array]:
    """Windows of a facade: glass (M,) bool, frame (M,) bool, column and story of each point.

    texture: distance between windows, story height [m], window share, style.
    """
    across, up, upright = patch.wall()
    pitch, story, share = patch.texture[:, 0], patch.texture[:, 1], patch.texture[:, 2]
    up = up - 2.5  # foundations
    column, level = np.floor(across / pitch), np.floor(up / story)
    u, v = across / pitch - column - 0.5, up / story - level - 0.52
    style = np.mod(patch.texture[:, 3], 4)
    ground_floor = level == 0
    wide = np.where((style == 2) & ground_floor, 0.86, np.where(style == 3, 0.96, share))
    tall = np.where((style == 2) & ground_floor, 0.74, np.where(style == 1, 0.7, 0.5))
    top = patch.half[:, 2] * 2 - 2.5
    inside = upright & (up > 0.4) & (level < np.floor(top / story + 0.05))
    margin = np.where(np.abs(patch.normal[:, 0]) > 0.7, patch.half[:, 1], patch.half[:, 0])
    inside &= np.abs(across) < margin - 0.4
    frame = inside & (np.abs(u) < wide / 2 + 0.07 / pitch) & (np.abs(v) < tall / 2 + 0.07 / story)
    glass = inside & (np.abs(u) < wide / 2) & (np.abs(v) < tall / 2)
    glass &= (np.abs(u) > 0.012) | (wide > 0.8)
    return glass, frame, column, level


def _facade(patch: Patch) -> Array:
    across, up, _ = patch.wall()
    dirt = 0.16 * blotches(across + patch.half[:, 0] * 7, up, 0.05)
    dirt -= 0.25 * np.exp(-np.maximum(up - 2.5, 0) / 0.5)
    color = patch.shade(dirt + 0.05 * grain(across, up, 0.04))
    brick = patch.texture[:, 3] >= 4
    color[brick] *= (1 - 0.35 * _brick_joints(across, up, patch.distance))[brick, None]
    glass, frame, column, level = facade_windows(patch)
    color[frame] = np.clip(0.35 + 0.6 * patch.albedo[frame], 0, 0.85)
    seed = column * 3.0 + level * 17.0 + patch.half[:, 0] * 31.0
    look = grain(seed, seed * 1.7, 1.0)
    pane = _WINDOW * (1.4 + look)[:, None]
    pane[look > 0.72] = (0.42, 0.38, 0.30)  # curtains
    color[glass] = pane[glass]
    door = (np.mod(column, 4) == 1) & (level == 0) & frame & ~glass
    color[door] = patch.albedo[door] * 0.4
    return color


def _brick_joints(across: Array, up: Array, distance: Array) -> Array:
    row = np.floor(up / 0.08)
    joint = (np.mod(up, 0.08) < 0.014) | (np.mod(across + 0.13 * np.mod(row, 2), 0.26) < 0.014)
    return np.where(distance < 14, joint.astype(np.float32), np.float32(0.2))


def _brick(patch: Patch) -> Array:
    across, up, _ = patch.wall()
    tone = 0.25 * grain(across, up * 2, 0.18) + 0.12 * blotches(across, up, 0.06)
    return patch.shade(tone - 0.4 * _brick_joints(across, up, patch.distance))


def _roof(patch: Patch) -> Array:
    along, up = patch.local[:, 0], patch.local[:, 2]
    rows = np.mod(up, 0.22) < 0.05
    tone = 0.15 * blotches(along, up, 0.08) + 0.10 * grain(along, up, 0.22)
    return patch.shade(tone - 0.3 * (rows & (patch.distance < 40)))


def _paint(patch: Patch) -> Array:
    """Bodywork with door gaps, lights and number plates."""
    x, y, z = patch.local.T
    color = patch.shade(0.02 * blotches(x, z, 0.02))
    side = np.abs(patch.normal[:, 1]) > 0.6
    gap = side & (np.abs(np.abs(x - 0.1) - 0.62) < 0.012) & (patch.half[:, 0] > 1.6)
    color[gap & (patch.distance < 18)] *= 0.3
    end = np.abs(patch.normal[:, 0]) > 0.6
    lights = end & (patch.texture[:, 0] == LIGHTS) & (np.abs(y) > 0.55 * patch.half[:, 1])
    lights &= np.abs(z) < 0.65 * patch.half[:, 2]
    color[lights & (x > 0)] = (0.75, 0.75, 0.70)
    color[lights & (x < 0)] = (0.42, 0.015, 0.012)
    plates = end & (patch.texture[:, 0] == PLATES)
    color[plates & (np.abs(z) < 0.5 * patch.half[:, 2]) & (np.abs(y) > 0.45) & (x > 0)] *= 0.4
    color[plates & (np.abs(y) < 0.27) & (np.abs(z - 0.05) < 0.06)] = (0.72, 0.72, 0.66)
    sill = (patch.texture[:, 0] == PLATES) & (z < -0.55 * patch.half[:, 2])
    color[sill] = (0.03, 0.03, 0.03)
    return color


def cabin_glass(patch: Patch) -> Array:
    """(M,) bool: windows of the cabin of a car or truck."""
    x, y, z = (patch.local / patch.half).T
    share = (z + 1) / 2
    tall = (share > 0.10) & (share < 0.86)
    side = np.abs(patch.normal[:, 1]) > 0.6
    pillar = side & ((np.abs(x + 0.05) < 0.035) | (np.abs(x) > 0.80 - 0.25 * share))
    edge = ~side & (np.abs(y) > 0.88 - 0.12 * share)
    result: Array = tall & (np.abs(patch.normal[:, 2]) < 0.93) & ~pillar & ~edge
    return result


def _cabin(patch: Patch) -> Array:
    color = patch.albedo.copy()
    color[cabin_glass(patch)] = _WINDOW
    result: Array = color
    return result


def coach_glass(patch: Patch) -> Array:
    """(M,) bool: the band of windows around a bus. texture: distance between pillars, height."""
    across, up, upright = patch.wall()
    up, height = up + 0.32, patch.texture[:, 1]
    end = np.abs(patch.normal[:, 0]) > 0.7
    band = (up > np.where(end, 0.38, 0.46) * height) & (up < 0.84 * height)
    pillar = np.mod(across, patch.texture[:, 0]) < 0.09
    return upright & band & (end | ~pillar)


def _coach(patch: Patch) -> Array:
    across, up, upright = patch.wall()
    color = patch.shade(0.03 * blotches(across, up, 0.05))
    color[upright & (np.abs(up - 0.62) < 0.08)] = (0.6, 0.6, 0.58)
    color[coach_glass(patch)] = _WINDOW
    end = np.abs(patch.normal[:, 0]) > 0.7
    lights = end & (np.abs(across) > 0.75 * patch.half[:, 1]) & (np.abs(up - 0.6) < 0.14)
    color[lights & (patch.local[:, 0] > 0)] = (0.75, 0.75, 0.7)
    color[lights & (patch.local[:, 0] < 0)] = (0.4, 0.02, 0.02)
    return color


def _tire(patch: Patch) -> Array:
    """Rubber with a rim; texture: radius [m]."""
    radius = np.hypot(patch.local[:, 0], patch.local[:, 1]) / np.maximum(patch.texture[:, 0], 0.01)
    color = patch.albedo.copy()
    rim = (radius < 0.62) & (np.abs(patch.normal[:, 2]) > 0.7)
    angle = np.arctan2(patch.local[:, 1], patch.local[:, 0])
    spoke = (np.mod(angle * 5 / (2 * np.pi), 1) < 0.55) | (radius < 0.2) | (radius > 0.52)
    color[rim] = np.where(spoke[rim, None], 0.42, 0.06)
    result: Array = color
    return result


def _leaves(patch: Patch) -> Array:
    x, y, z = patch.local.T
    clumps = blotches(x + 0.6 * z, y - 0.4 * z + 3, 0.012)
    leaf = speckle(x, y, z, 0.06) * np.clip(14 / patch.distance, 0.35, 1.0)
    bough = speckle(x, y, z, 0.23)
    inner = -0.2 * (z < 0)
    return patch.shade(0.3 * clumps + 0.4 * leaf + 0.25 * bough + inner)


def _bark(patch: Patch) -> Array:
    angle = np.arctan2(patch.local[:, 1], patch.local[:, 0])
    return patch.shade(0.35 * grain(angle * 0.5, patch.local[:, 2] * 0.15, 0.05))


def _wood(patch: Patch) -> Array:
    return patch.shade(0.2 * grain(patch.local[:, 0], patch.local[:, 2] * 0.05, 0.06))


def _cloth(patch: Patch) -> Array:
    x, y, z = patch.local.T
    return patch.shade(0.25 * blotches(x + y, z, 0.008))


def _sign(patch: Patch) -> Array:
    """Faces of traffic signs; their backs are gray metal."""
    face = patch.texture[:, 0]
    disc = (face == ROUND_BAN) | (face == ROUND_ORDER)
    # a disc lies in its own x, y; plates and triangles in y, z
    u = np.where(disc, patch.local[:, 0], patch.local[:, 2])
    v = patch.local[:, 1]
    size = np.where(disc, patch.half[:, 0], patch.half[:, 1])
    color = patch.albedo.copy()
    radius = np.hypot(u, v) / size
    red = np.array((0.55, 0.02, 0.02), np.float32)
    color[(face == ROUND_BAN) & (radius > 0.72)] = red
    middle = (radius < 0.5) & (np.abs(v) < 0.45 * size) & (np.abs(u) < 0.1)
    color[(face == ROUND_BAN) & middle] = 0.03
    color[(face == ROUND_ORDER) & (np.abs(v) < 0.12 * size) & (radius < 0.6)] = 0.75
    share = (u / patch.half[:, 2] + 1) / 2
    rim = (share < 0.16) | (np.abs(v) > size * (0.78 - 0.97 * share))
    color[(face == TRIANGLE) & rim] = red
    color[(face == STREET_NAME) & (np.abs(u) < 0.05) & (np.abs(v) < 0.8 * size)] = 0.7
    behind = np.where(disc, patch.normal[:, 2] > 0, patch.normal[:, 0] > -0.5)
    color[behind] = (0.30, 0.30, 0.31)
    result: Array = color
    return result


def _signal(patch: Patch) -> Array:
    """Three lamps on the -x side; texture: index of the lit one (0 is red, at the top)."""
    color = patch.albedo.copy()
    y, z = patch.local[:, 1], patch.local[:, 2]
    lamps = ((0.9, 0.05, 0.03), (0.95, 0.5, 0.03), (0.08, 0.8, 0.3))
    for k, lit in enumerate(lamps):
        lens = (np.hypot(y, z - 0.29 * (1 - k)) < 0.11) & (patch.normal[:, 0] < -0.7)
        on = lens & (patch.texture[:, 0] == k)
        color[lens] = np.asarray(lit, np.float32) * 0.12
        color[on] = np.asarray(lit, np.float32) * 1.6
    result: Array = color
    return result


def _planks(patch: Patch) -> Array:
    across, up, _ = patch.wall()
    ribs = np.mod(across, np.maximum(patch.texture[:, 0], 0.1)) < 0.05
    return patch.shade(0.06 * blotches(across, up, 0.05) - 0.25 * ribs)


def _plain(patch: Patch) -> Array:
    x, y, z = patch.local.T
    return patch.shade(0.08 * blotches(x + y, z, 0.03))


SOLIDS: dict[Material, Callable[[Patch], Array]] = {
    Material.PAINT: _paint,
    Material.CABIN: _cabin,
    Material.COACH: _coach,
    Material.TIRE: _tire,
    Material.FACADE: _facade,
    Material.ROOF: _roof,
    Material.BRICK: _brick,
    Material.LEAVES: _leaves,
    Material.BARK: _bark,
    Material.WOOD: _wood,
    Material.CLOTH: _cloth,
    Material.SIGN: _sign,
    Material.SIGNAL: _signal,
    Material.PLANKS: _planks,
}


def solid_color(material: Material, patch: Patch) -> Array:
    """(M, 3) albedo, linear RGB, of points on solids of one material."""
    return np.clip(SOLIDS.get(material, _plain)(patch), 0.0, 1.6).astype(np.float32)


_GLASS: dict[Material, Callable[[Patch], Array]] = {
    Material.CABIN: cabin_glass,
    Material.COACH: coach_glass,
    Material.FACADE: lambda patch: facade_windows(patch)[0],
}


def glass(material: Material, patch: Patch) -> Array:
    """(M,) bool: points that are window panes."""
    find = _GLASS.get(material)
    return np.zeros(len(patch.local), bool) if find is None else find(patch)
