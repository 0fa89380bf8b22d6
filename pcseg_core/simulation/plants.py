# SPDX-License-Identifier: Apache-2.0
"""Trees, bushes and hedges in their own frame: origin on the ground below the stem."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Class, Material
from pcseg_core.simulation.primitives import Kind, join, solid
from pcseg_core.simulation.towns import Town

Array = npt.NDArray[Any]


def leaf_color(town: Town, rng: np.random.Generator) -> Array:
    """A leaf color of the town."""
    base = np.asarray(town.leaves[rng.integers(len(town.leaves))])
    color: Array = np.clip(base * rng.uniform(0.7, 1.35) * rng.uniform(0.85, 1.15, 3), 0.01, 0.6)
    return color


def _leaves(
    rng: np.random.Generator, center: Any, size: Any, color: Array, openness: float
) -> Array:
    """One ball of leaves; `openness` from 0 (closed) to 1 (mostly holes)."""
    return solid(
        Kind.FOLIAGE,
        center,
        size,
        Class.VEGETATION,
        Material.LEAVES,
        color * rng.uniform(0.88, 1.12),
        turn=(rng.uniform(0, 6.28), 0.0, 0.0),
        texture=(1.5 - 1.5 * openness, rng.uniform(0, 6.28), 0, 0),
    )


def _trunk(rng: np.random.Generator, height: float, radius: float) -> Array:
    color = np.array((0.13, 0.09, 0.06)) * rng.uniform(0.6, 1.5)
    return solid(
        Kind.CYLINDER,
        (0, 0, height / 2 - 0.2),
        (2 * radius, 2 * radius, height + 0.4),
        Class.TRUNK,
        Material.BARK,
        color,
        turn=(rng.uniform(0, 6.28), rng.uniform(0, 0.05), 0.0),
    )


def broadleaf(town: Town, rng: np.random.Generator, scale: float = 1.0) -> Array:
    """Tree with a crown of several balls on a stem."""
    stem = rng.uniform(1.9, 3.2) * scale
    crown = rng.uniform(2.6, 5.0) * scale
    height = crown * rng.uniform(0.8, 1.35)
    color, openness = leaf_color(town, rng), rng.uniform(0.25, 0.75)
    middle = stem + height * 0.42
    parts = [
        _trunk(rng, stem + height * 0.3, rng.uniform(0.10, 0.22) * scale),
        _leaves(rng, (0, 0, middle), (crown * 0.72, crown * 0.72, height * 0.85), color, openness),
    ]
    turn = rng.uniform(0, 6.28)
    for k in range(int(rng.integers(5, 9))):
        angle, out = turn + k * 2.4, crown * rng.uniform(0.22, 0.42)
        size = crown * rng.uniform(0.3, 0.55)
        at = (out * np.cos(angle), out * np.sin(angle), middle + height * rng.uniform(-0.32, 0.38))
        parts.append(_leaves(rng, at, (size, size, size * 0.85), color, openness))
    return join(parts)


def conifer(town: Town, rng: np.random.Generator, scale: float = 1.0) -> Array:
    """Tree with a pointed crown."""
    height, spread = rng.uniform(5.0, 11.0) * scale, rng.uniform(2.2, 3.4) * scale
    color = np.array((0.04, 0.09, 0.04)) * rng.uniform(0.7, 1.6)
    parts = [_trunk(rng, height * 0.4, rng.uniform(0.10, 0.18) * scale)]
    for share in (0.28, 0.45, 0.62, 0.8):
        width = spread * (1.12 - share)
        parts.append(
            _leaves(rng, (0, 0, share * height), (width, width, height * 0.36), color, 0.3)
        )
    return join(parts)


def tree(town: Town, rng: np.random.Generator, scale: float = 1.0) -> Array:
    """A tree of either kind, by its frequency in the town."""
    grow = conifer if rng.random() < town.conifers else broadleaf
    return grow(town, rng, scale)


def bush(town: Town, rng: np.random.Generator) -> Array:
    """One to three low balls of leaves."""
    color, parts = leaf_color(town, rng), []
    for _ in range(int(rng.integers(1, 4))):
        width, height = rng.uniform(0.7, 1.7), rng.uniform(0.6, 1.5)
        at = (rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), height * 0.4)
        parts.append(_leaves(rng, at, (width, width * rng.uniform(0.7, 1.3), height), color, 0.2))
    return join(parts)


def hedge(town: Town, rng: np.random.Generator, length: float) -> Array:
    """Clipped hedge along x."""
    height, width = rng.uniform(*town.hedge_m), rng.uniform(0.5, 0.9)
    return solid(
        Kind.TAPERED,
        (0, 0, height / 2 - 0.2),
        (length, width, height + 0.4),
        Class.VEGETATION,
        Material.LEAVES,
        leaf_color(town, rng),
        taper=(0.01, 0.01, 0.15),
        texture=(9.0, rng.uniform(0, 6.28), 0, 0),
    )
