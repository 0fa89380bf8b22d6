# SPDX-License-Identifier: Apache-2.0
"""Buildings, fences and walls in their own frame: street side at -y, origin on the ground."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Class, Material
from pcseg_core.simulation.primitives import Kind, join, solid
from pcseg_core.simulation.towns import Town

Array = npt.NDArray[Any]

_FOUNDATION = 2.5  # depth of walls below the ground, for slopes [m]


def building(town: Town, rng: np.random.Generator, front: float, depth: float) -> Array:
    """House of `front` by `depth` meters, centered at the origin."""
    stories = int(rng.integers(town.stories[0], town.stories[1] + 1))
    story = rng.uniform(2.8, 3.5) if town.stories[1] > 2 else rng.uniform(2.5, 3.0)
    height = stories * story + 0.3
    color = np.asarray(town.facades[rng.integers(len(town.facades))])
    color = np.clip(color * rng.uniform(0.65, 1.25) * rng.uniform(0.9, 1.1, 3), 0.03, 0.85)
    material = Material.FACADE
    # distance between windows [m], story height [m], share of wall that is window, style
    style = float(rng.integers(0, 4)) + (4.0 if rng.random() < town.brick else 0.0)
    texture = (rng.uniform(1.8, 3.4), story, rng.uniform(0.38, 0.68), style)
    total = height + _FOUNDATION
    body = solid(
        Kind.BOX,
        (0, 0, height - total / 2),
        (front, depth, total),
        Class.BUILDING,
        material,
        color,
        texture=(texture[0], story, texture[2], style),
    )
    roof = _gable if rng.random() < town.gables else _parapet
    parts = [body, *roof(town, rng, front, depth, height, color)]
    if rng.random() < town.balconies and stories > 1:
        parts += _balconies(rng, front, depth, stories, story, texture[0])
    if town.relief and rng.random() < town.relief:
        parts += _bays(rng, front, depth, height, color)
    if stories > 2 and rng.random() < 0.5:
        parts.append(
            solid(
                Kind.BOX,
                (0, -depth / 2 - 0.1, story + 0.15),
                (front, 0.3, 0.3),
                Class.BUILDING,
                Material.MATT,
                np.clip(color * 1.2, 0, 0.9),
            )
        )
    return join(parts)


def _gable(
    town: Town, rng: np.random.Generator, front: float, depth: float, height: float, color: Array
) -> list[Array]:
    rise = depth * rng.uniform(0.25, 0.45)
    tiles = np.asarray(town.roofs[rng.integers(len(town.roofs))]) * rng.uniform(0.7, 1.3)
    hip = rng.uniform(0.2, 0.5) if rng.random() < 0.3 else 0.0
    roof = solid(
        Kind.TAPERED,
        (0, 0, height + rise / 2),
        (front + 0.6, depth + 0.8, rise),
        Class.BUILDING,
        Material.ROOF,
        tiles,
        taper=(hip, hip, 0.98),
    )
    x = rng.uniform(-0.35, 0.35) * front
    chimney = solid(
        Kind.BOX,
        (x, depth * 0.12, height + rise * 0.85),
        (0.6, 0.6, rise * 0.6 + 0.8),
        Class.BUILDING,
        Material.BRICK,
        (0.25, 0.12, 0.09),
    )
    return [roof, chimney]


def _parapet(
    town: Town, rng: np.random.Generator, front: float, depth: float, height: float, color: Array
) -> list[Array]:
    rim = solid(
        Kind.BOX,
        (0, 0, height + 0.2),
        (front + 0.3, depth + 0.3, 0.45),
        Class.BUILDING,
        Material.MATT,
        np.clip(color * rng.uniform(0.6, 1.3), 0, 0.85),
    )
    plant = solid(
        Kind.BOX,
        (rng.uniform(-0.2, 0.2) * front, 0, height + 1.0),
        (3.0, 3.0, 2.0),
        Class.BUILDING,
        Material.MATT,
        (0.3, 0.3, 0.3),
    )
    return [rim, plant]


def _bays(
    rng: np.random.Generator, front: float, depth: float, height: float, color: Array
) -> list[Array]:
    """Bays, porches and steps along the street side."""
    parts = []
    for _ in range(int(rng.integers(1, 5))):
        width, out = rng.uniform(0.8, 4.0), rng.uniform(0.15, 1.2)
        tall = rng.uniform(0.3, min(height, 4.0))
        parts.append(
            solid(
                Kind.BOX,
                (rng.uniform(-0.45, 0.45) * front, -depth / 2 - out / 2, tall / 2 - 0.5),
                (width, out, tall + 1.0),
                Class.BUILDING,
                Material.FACADE,
                color,
                texture=(rng.uniform(1.0, 3.0), 2.8, rng.uniform(0.1, 0.6), 0.0),
            )
        )
    return parts


def annex(town: Town, rng: np.random.Generator) -> Array:
    """Garage or shed."""
    front, depth, height = rng.uniform(2.2, 6.5), rng.uniform(2.5, 6.5), rng.uniform(2.1, 3.0)
    color = np.asarray(town.facades[rng.integers(len(town.facades))]) * rng.uniform(0.6, 1.2)
    return solid(
        Kind.BOX,
        (0, 0, height / 2 - 0.5),
        (front, depth, height + 1.0),
        Class.BUILDING,
        Material.MATT if rng.random() < 0.6 else Material.PLANKS,
        np.clip(color, 0.03, 0.85),
    )


def _balconies(
    rng: np.random.Generator, front: float, depth: float, stories: int, story: float, pitch: float
) -> list[Array]:
    color = np.full(3, rng.uniform(0.15, 0.7))
    columns = max(int(front // (2 * pitch)), 1)
    parts = []
    for level in range(1, min(stories, 6)):
        for k in range(min(columns, 4)):
            x = -front / 2 + (2 * k + 1) * pitch
            parts.append(
                solid(
                    Kind.BOX,
                    (x, -depth / 2 - 0.5, level * story + 0.45),
                    (pitch * 0.95, 1.0, 1.0),
                    Class.BUILDING,
                    Material.MATT,
                    color,
                )
            )
    return parts


def fence(rng: np.random.Generator, length: float) -> Array:
    """Fence of upright bars or boards along x."""
    height = rng.uniform(0.9, 1.8)
    wooden = rng.random() < 0.55
    color = (np.array((0.28, 0.19, 0.11)) if wooden else np.full(3, 0.12)) * rng.uniform(0.5, 1.9)
    texture = (0.16, 0.7, 0, 0) if wooden else (0.13, 0.3, 0, 0)
    return solid(
        Kind.FENCE,
        (0, 0, height / 2),
        (length, 0.05, height),
        Class.FENCE,
        Material.WOOD if wooden else Material.METAL,
        np.clip(color, 0, 0.8),
        texture=texture,
    )


def wall(town: Town, rng: np.random.Generator, length: float) -> Array:
    """Garden wall along x."""
    height = rng.uniform(*town.wall_m)
    brick = rng.random() < 0.5
    color = np.array((0.30, 0.15, 0.10)) if brick else np.full(3, rng.uniform(0.25, 0.6))
    return solid(
        Kind.BOX,
        (0, 0, height / 2 - 0.5),
        (length, 0.25, height + 1.0),
        Class.WALL,
        Material.BRICK if brick else Material.MATT,
        color * rng.uniform(0.8, 1.2),
    )
