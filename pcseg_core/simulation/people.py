# SPDX-License-Identifier: Apache-2.0
"""People in their own frame: x forward, origin on the ground below them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Class, Material
from pcseg_core.simulation.primitives import Kind, join, rod, solid

Array = npt.NDArray[Any]

_SKINS = np.array([(0.62, 0.42, 0.32), (0.45, 0.28, 0.18), (0.22, 0.12, 0.07), (0.70, 0.52, 0.42)])
_HAIR = np.array([(0.03, 0.02, 0.02), (0.12, 0.06, 0.03), (0.35, 0.26, 0.14), (0.40, 0.40, 0.40)])


def _cloth(rng: np.random.Generator) -> Array:
    bright = rng.uniform(0.04, 0.7)
    color: Array = np.clip(bright * rng.uniform(0.3, 1.3, 3), 0.01, 0.85)
    return color


def person(rng: np.random.Generator, walking: bool) -> Array:
    """Pedestrian, standing or walking."""
    h = rng.uniform(1.55, 1.92) if rng.random() < 0.88 else rng.uniform(1.0, 1.4)
    broad = rng.uniform(0.9, 1.15)
    stride = rng.uniform(0.12, 0.22) * h if walking else 0.03
    top, legs, skin = _cloth(rng), _cloth(rng) * 0.7, _SKINS[rng.integers(4)]
    hip, shoulder = 0.50 * h, 0.81 * h
    side, reach = 0.055 * h * broad, 0.125 * h * broad
    parts = _head(rng, (0.0, 0.0, 0.925 * h), h, skin, Class.PERSON)
    parts.append(
        solid(
            Kind.ELLIPSOID,
            (0, 0, 0.665 * h),
            (0.16 * h * broad, 0.25 * h * broad, 0.40 * h),
            Class.PERSON,
            Material.CLOTH,
            top,
        )
    )
    for way in (-1, 1):
        foot = (way * stride, way * side, 0.02)
        hand = (-way * stride * 0.8, way * reach * 1.25, hip)
        parts.append(
            rod(
                foot,
                (0, way * side, hip + 0.04),
                0.045 * h * broad,
                Class.PERSON,
                Material.CLOTH,
                legs,
            )
        )
        parts.append(
            rod(
                (0, way * reach, shoulder),
                hand,
                0.028 * h * broad,
                Class.PERSON,
                Material.CLOTH,
                top,
            )
        )
    if rng.random() < 0.3:
        parts.append(
            solid(
                Kind.ELLIPSOID,
                (-0.12 * h, 0, 0.70 * h),
                (0.16 * h, 0.2 * h, 0.28 * h),
                Class.PERSON,
                Material.CLOTH,
                _cloth(rng),
            )
        )
    return join(parts)


def rider(rng: np.random.Generator, lean: float) -> Array:
    """Rider at the origin, feet below, hands ahead; `lean` forward [rad]."""
    top, legs, skin = _cloth(rng), _cloth(rng) * 0.7, _SKINS[rng.integers(4)]
    shoulder = np.array([0.56 * np.sin(lean), 0.0, 0.56 * np.cos(lean)])
    middle = shoulder * 0.52
    parts = _head(rng, tuple(shoulder * 1.38 + (0.03, 0, 0)), 1.75, skin, Class.RIDER, helmet=True)
    parts.append(
        solid(
            Kind.ELLIPSOID,
            middle,
            (0.27, 0.42, 0.68),
            Class.RIDER,
            Material.CLOTH,
            top,
            turn=(0.0, lean, 0.0),
        )
    )
    for way in (-1, 1):
        drop = 0.2 * way
        knee = (0.34, way * 0.12, -0.22 + drop * 0.5)
        foot = (0.16, way * 0.10, -0.58 + drop)
        hand = (0.62, way * 0.24, 0.10)
        parts.append(rod((0, way * 0.10, 0.02), knee, 0.075, Class.RIDER, Material.CLOTH, legs))
        parts.append(rod(knee, foot, 0.055, Class.RIDER, Material.CLOTH, legs))
        upper = shoulder + np.array((0, way * 0.2, -0.05))
        parts.append(rod(upper, hand, 0.048, Class.RIDER, Material.CLOTH, top))
    return join(parts)


def _head(
    rng: np.random.Generator,
    center: tuple[float, ...],
    height: float,
    skin: Array,
    label: int,
    helmet: bool = False,
) -> list[Array]:
    size = 0.135 * height
    cap = _cloth(rng) if helmet else _HAIR[rng.integers(4)]
    top = (center[0] - 0.01, center[1], center[2] + 0.22 * size)
    return [
        solid(
            Kind.ELLIPSOID,
            center,
            (size * 0.85, size * 0.8, size * 1.15),
            label,
            Material.SKIN,
            skin,
        ),
        solid(
            Kind.ELLIPSOID, top, (size * 0.98, size * 0.95, size * 0.85), label, Material.MATT, cap
        ),
    ]
