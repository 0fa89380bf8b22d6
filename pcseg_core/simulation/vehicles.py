# SPDX-License-Identifier: Apache-2.0
"""Vehicles in their own frame: x forward, origin on the ground below the center."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.materials import Class, Material
from pcseg_core.simulation.primitives import Kind, join, place, pose_at, rod, solid

Array = npt.NDArray[Any]

_PAINTS = np.array(
    [
        (0.60, 0.60, 0.60),
        (0.75, 0.75, 0.74),
        (0.03, 0.03, 0.035),
        (0.10, 0.10, 0.11),
        (0.28, 0.29, 0.30),
        (0.45, 0.04, 0.04),
        (0.04, 0.10, 0.32),
        (0.08, 0.20, 0.38),
        (0.05, 0.16, 0.09),
        (0.50, 0.42, 0.24),
        (0.65, 0.38, 0.04),
        (0.20, 0.13, 0.09),
    ]
)
# First texture parameter of painted parts
LIGHTS, PLATES = 1.0, 2.0
_RUBBER, _STEEL, _DARK = (0.02, 0.02, 0.02), (0.25, 0.25, 0.26), (0.04, 0.04, 0.045)
_QUARTER = np.pi / 2


@dataclass(frozen=True)
class _Form:
    """Shape of a car; the windows end at `bonnet` and `deck` at the belt line."""

    length: float
    height: float
    clearance: float
    belt: float  # height of the belt line, of the whole
    bonnet: float  # of the length, from the middle
    deck: float
    front_lean: float  # see `taper` of a primitive
    rear_lean: float


_FORMS = (
    _Form(4.6, 1.45, 0.24, 0.60, 0.22, -0.36, 0.62, 0.52),  # saloon
    _Form(4.0, 1.50, 0.24, 0.60, 0.22, -0.49, 0.60, 0.22),  # hatchback
    _Form(4.6, 1.72, 0.28, 0.60, 0.24, -0.495, 0.46, 0.16),  # SUV
    _Form(5.0, 2.00, 0.24, 0.55, 0.36, -0.498, 0.34, 0.04),  # van
    _Form(5.9, 2.60, 0.28, 0.48, 0.40, -0.498, 0.30, 0.02),  # high van
)


def paint(rng: np.random.Generator) -> Array:
    """A color of bodywork."""
    color: Array = np.clip(_PAINTS[rng.integers(len(_PAINTS))] * rng.uniform(0.8, 1.2), 0, 0.85)
    return color


def _wheel(x: float, y: float, radius: float, width: float, label: int) -> Array:
    return solid(
        Kind.CYLINDER,
        (x, y, radius),
        (2 * radius, 2 * radius, width),
        label,
        Material.TIRE,
        _RUBBER,
        turn=(0.0, 0.0, _QUARTER),
        texture=(radius, 0, 0, 0),
    )


def _wheels(xs: list[float], track: float, radius: float, width: float, label: int) -> list[Array]:
    return [_wheel(x, side * track / 2, radius, width, label) for x in xs for side in (-1, 1)]


def car(rng: np.random.Generator, vans: float = 0.12, high_vans: float = 0.0) -> Array:
    """Saloon, hatchback, estate, SUV, or with the given probabilities a van or a high van."""
    other = (1 - vans - high_vans) / 0.88
    shares = [0.34 * other, 0.34 * other, 0.2 * other, vans, high_vans]
    form = _FORMS[int(rng.choice(len(_FORMS), p=shares))]
    length, height = form.length * rng.uniform(0.95, 1.06), form.height * rng.uniform(0.97, 1.04)
    width = rng.uniform(1.72, 1.86) + (0.1 if form.height > 1.6 else 0.0)
    color, label = paint(rng), Class.CAR
    clearance, belt, radius = form.clearance, height * form.belt, form.clearance + 0.08
    bonnet, deck = form.bonnet * length, form.deck * length
    lower = clearance + (belt - clearance) * 0.62
    parts = [
        solid(
            Kind.BOX,
            (0, 0, (clearance + lower) / 2),
            (length, width, lower - clearance),
            label,
            Material.PAINT,
            color,
            texture=(PLATES, 0, 0, 0),
        ),
        solid(
            Kind.TAPERED,
            (0, 0, (lower + belt) / 2),
            (length * 0.985, width * 1.01, belt - lower),
            label,
            Material.PAINT,
            color,
            taper=(0.14, 0.06, 0.06),
            texture=(LIGHTS, 0, 0, 0),
        ),
        solid(
            Kind.TAPERED,
            ((bonnet + deck) / 2, 0, (belt + height) / 2),
            (bonnet - deck, width * 0.94, height - belt),
            label,
            Material.CABIN,
            color,
            taper=(form.front_lean, form.rear_lean, 0.24),
        ),
        *_wheels([0.31 * length, -0.30 * length], width - 0.16, radius, 0.22, label),
        *[
            solid(
                Kind.BOX,
                (bonnet - 0.25, side * (width / 2 + 0.08), belt + 0.05),
                (0.12, 0.2, 0.14),
                label,
                Material.PAINT,
                color,
            )
            for side in (-1, 1)
        ],
    ]
    return join(parts)


def truck(rng: np.random.Generator) -> Array:
    """Lorry with a box body, or a smaller one with an open bed."""
    length, label = rng.uniform(6.5, 10.5), Class.TRUCK
    color = paint(rng)
    cargo = np.clip(paint(rng) * 0.5 + 0.35, 0, 0.8)
    height, width, nose = rng.uniform(2.9, 3.7), rng.uniform(2.2, 2.5), rng.uniform(1.6, 2.0)
    cab_x = length / 2 - nose / 2
    bed = length - nose - 0.25
    bed_x = -length / 2 + bed / 2
    load = height if rng.random() < 0.75 else 1.55
    axles = [length / 2 - 0.9, -length / 2 + 1.1]
    axles += [-length / 2 + 2.3] if length > 8 else []
    parts = [
        solid(
            Kind.TAPERED,
            (cab_x, 0, 1.0),
            (nose, width, 1.1),
            label,
            Material.PAINT,
            color,
            taper=(0.03, 0, 0.0),
            texture=(LIGHTS, 0, 0, 0),
        ),
        solid(
            Kind.TAPERED,
            (cab_x, 0, 2.05),
            (nose, width * 0.97, 1.0),
            label,
            Material.CABIN,
            color,
            taper=(0.22, 0.02, 0.1),
        ),
        solid(Kind.BOX, (bed_x, 0, 0.85), (bed, width * 0.5, 0.3), label, Material.METAL, _DARK),
        solid(
            Kind.BOX,
            (bed_x, 0, (1.05 + load) / 2),
            (bed, width, load - 1.05),
            label,
            Material.PLANKS,
            cargo,
            texture=(rng.uniform(0.4, 1.2), 0, 0, 0),
        ),
        *_wheels(axles, width - 0.3, 0.48, 0.3, label),
        *[
            solid(
                Kind.BOX,
                (length / 2 - 0.2, side * (width / 2 + 0.15), 2.0),
                (0.15, 0.25, 0.45),
                label,
                Material.METAL,
                _DARK,
            )
            for side in (-1, 1)
        ],
    ]
    return join(parts)


def bus(rng: np.random.Generator) -> Array:
    """City bus."""
    length, width, height, label = rng.uniform(9.5, 12.5), 2.5, rng.uniform(2.9, 3.2), Class.BUS
    color = np.array([(0.55, 0.06, 0.05), (0.70, 0.55, 0.08), (0.08, 0.22, 0.45), (0.6, 0.6, 0.58)])
    parts = [
        solid(
            Kind.TAPERED,
            (0, 0, (0.32 + height) / 2),
            (length, width, height - 0.32),
            label,
            Material.COACH,
            color[rng.integers(4)] * rng.uniform(0.8, 1.1),
            taper=(0.03, 0.01, 0.03),
            texture=(rng.uniform(1.3, 1.8), height, 0, 0),
        ),
        solid(
            Kind.BOX,
            (-length * 0.15, 0, height + 0.12),
            (length * 0.35, width * 0.7, 0.24),
            label,
            Material.METAL,
            (0.5, 0.5, 0.5),
        ),
        *_wheels([length / 2 - 2.4, -length / 2 + 3.0], width - 0.26, 0.48, 0.28, label),
    ]
    return join(parts)


def bicycle(rng: np.random.Generator) -> Array:
    """Bicycle without rider."""
    label, color = Class.BICYCLE, paint(rng)
    hub = (0.34, 0.52)  # height of the hubs, distance from the middle
    crank, saddle, head = (-0.06, 0.0, 0.30), (-0.22, 0.0, 0.86), (0.36, 0.0, 0.88)
    wheels = [
        solid(
            Kind.RING,
            (x, 0, hub[0]),
            (0.68, 0.68, 0.045),
            label,
            Material.TIRE,
            _RUBBER,
            turn=(0.0, 0.0, _QUARTER),
            texture=(0.34, 0, 0, 0),
        )
        for x in (-hub[1], hub[1])
    ]
    tubes = [
        rod(start, end, 0.022, label, Material.METAL, color)
        for start, end in (
            (crank, saddle),
            (crank, head),
            (saddle, head),
            ((-hub[1], 0, hub[0]), crank),
            ((-hub[1], 0, hub[0]), saddle),
            ((hub[1], 0, hub[0]), head),
        )
    ]
    bar = rod((0.40, -0.28, 0.98), (0.40, 0.28, 0.98), 0.018, label, Material.METAL, _DARK)
    seat = solid(Kind.ELLIPSOID, (-0.24, 0, 0.92), (0.28, 0.15, 0.08), label, Material.MATT, _DARK)
    return join([*wheels, *tubes, bar, seat])


def motorcycle(rng: np.random.Generator) -> Array:
    """Motorcycle or scooter without rider."""
    label, color = Class.MOTORCYCLE, paint(rng)
    parts = [
        _wheel(0.66, 0, 0.31, 0.13, label),
        _wheel(-0.66, 0, 0.31, 0.16, label),
        solid(
            Kind.TAPERED,
            (0.05, 0, 0.55),
            (0.9, 0.34, 0.46),
            label,
            Material.PAINT,
            color,
            taper=(0.2, 0.2, 0.25),
        ),
        solid(Kind.ELLIPSOID, (0.18, 0, 0.86), (0.52, 0.30, 0.26), label, Material.PAINT, color),
        solid(Kind.BOX, (-0.42, 0, 0.80), (0.75, 0.28, 0.12), label, Material.MATT, _DARK),
        rod((0.66, 0, 0.31), (0.42, 0, 1.02), 0.05, label, Material.METAL, _STEEL),
        rod((0.42, -0.36, 1.04), (0.42, 0.36, 1.04), 0.025, label, Material.METAL, _DARK),
        solid(Kind.ELLIPSOID, (0.62, 0, 0.86), (0.2, 0.22, 0.22), label, Material.METAL, _STEEL),
    ]
    return join(parts)


def with_rider(machine: Array, rider: Array, forward_m: float, up_m: float) -> Array:
    """A two-wheeler with rider."""
    return join([machine, place(rider, pose_at(forward_m, 0.0, up_m, 0.0))])
