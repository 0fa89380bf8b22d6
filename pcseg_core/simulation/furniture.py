# SPDX-License-Identifier: Apache-2.0
"""Street furniture in its own frame: origin on the ground, road along x."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Class, Material
from pcseg_core.simulation.primitives import Kind, join, rod, solid

Array = npt.NDArray[Any]

# Faces of traffic signs, the first texture parameter
ROUND_BAN, ROUND_ORDER, TRIANGLE, PLATE, STREET_NAME = range(5)
_SIGN_COLORS = [
    (0.75, 0.74, 0.72),
    (0.03, 0.12, 0.50),
    (0.75, 0.74, 0.72),
    (0.04, 0.16, 0.5),
    (0.03, 0.25, 0.10),
]


def _post(height: float, radius: float, color: Any, label: int = Class.POLE) -> Array:
    return rod((0, 0, -0.5), (0, 0, height), radius, label, Material.METAL, color)


def lamp(rng: np.random.Generator) -> Array:
    """Street lamp with an arm over the road."""
    height, reach = rng.uniform(5.5, 8.5), rng.uniform(0.8, 1.8)
    color = np.full(3, rng.uniform(0.08, 0.4))
    return join(
        [
            _post(height, rng.uniform(0.07, 0.11), color),
            rod(
                (0, 0, height - 0.1),
                (reach, 0, height + 0.25),
                0.045,
                Class.POLE,
                Material.METAL,
                color,
            ),
            solid(
                Kind.ELLIPSOID,
                (reach + 0.2, 0, height + 0.25),
                (0.75, 0.28, 0.18),
                Class.POLE,
                Material.METAL,
                np.full(3, 0.5),
            ),
        ]
    )


def utility_pole(rng: np.random.Generator) -> Array:
    """Wooden pole with a cross-bar."""
    height, color = rng.uniform(7.0, 9.5), np.array((0.16, 0.11, 0.07)) * rng.uniform(0.7, 1.3)
    return join(
        [
            rod((0, 0, -0.5), (0, 0, height), 0.13, Class.POLE, Material.WOOD, color),
            rod(
                (0, -1.0, height - 0.5),
                (0, 1.0, height - 0.5),
                0.06,
                Class.POLE,
                Material.WOOD,
                color,
            ),
        ]
    )


def bollard(rng: np.random.Generator) -> Array:
    """Low post that keeps cars off the sidewalk."""
    return _post(rng.uniform(0.8, 1.1), rng.uniform(0.05, 0.09), np.full(3, rng.uniform(0.05, 0.5)))


def sign(rng: np.random.Generator) -> Array:
    """Traffic sign on a post, facing -x (toward traffic along x)."""
    face = int(rng.choice(5, p=[0.3, 0.2, 0.2, 0.2, 0.1]))
    height, size = rng.uniform(2.1, 2.7), rng.uniform(0.6, 0.85)
    color, at = _SIGN_COLORS[face], (-0.07, 0.0, height)
    texture = (float(face), 0, 0, 0)
    if face in (ROUND_BAN, ROUND_ORDER):
        plate = solid(
            Kind.CYLINDER,
            at,
            (size, size, 0.03),
            Class.TRAFFIC_SIGN,
            Material.SIGN,
            color,
            turn=(0.0, np.pi / 2, 0.0),
            texture=texture,
        )
    elif face == TRIANGLE:
        plate = solid(
            Kind.TAPERED,
            at,
            (0.03, size, size * 0.87),
            Class.TRAFFIC_SIGN,
            Material.SIGN,
            color,
            taper=(0.0, 0.0, 0.97),
            texture=texture,
        )
    else:
        shape = (size, size) if face == PLATE else (1.1, 0.3)
        plate = solid(
            Kind.BOX, at, (0.03, *shape), Class.TRAFFIC_SIGN, Material.SIGN, color, texture=texture
        )
    return join([_post(height + 0.3, 0.035, np.full(3, 0.35)), plate])


def traffic_light(rng: np.random.Generator) -> Array:
    """Signal on a post, some with a second head on an arm over the road (along y)."""
    lit = float(rng.integers(3))
    arm = rng.random() < 0.4
    height = 5.6 if arm else 3.4
    color = np.full(3, rng.uniform(0.05, 0.2))
    heads = [(-0.18, 0.0, 2.9)]
    parts = [_post(height, 0.09 if arm else 0.06, color)]
    if arm:
        reach = rng.uniform(2.2, 3.2)
        heads.append((-0.18, reach, height - 0.3))
        parts.append(
            rod(
                (0, 0, height - 0.1),
                (0, reach, height - 0.1),
                0.06,
                Class.POLE,
                Material.METAL,
                color,
            )
        )
    parts += [
        solid(
            Kind.BOX,
            head,
            (0.22, 0.34, 0.95),
            Class.TRAFFIC_LIGHT,
            Material.SIGNAL,
            (0.02, 0.02, 0.02),
            texture=(lit, 0, 0, 0),
        )
        for head in heads
    ]
    return join(parts)
