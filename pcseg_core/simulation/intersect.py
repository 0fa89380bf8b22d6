# SPDX-License-Identifier: Apache-2.0
"""Ray intersection with unit shapes: one vectorized function per kind of primitive.

Rays are in the unit frame of their primitive: the components of the origin `o` and the direction
`d` are tuples of three arrays that broadcast to (K, S); rows (K,) are of the table. The result is t
(K, S) float32, infinity for a miss. The direction keeps the scale of the world, so t is in meters.

All except the ellipsoid use the slab method (Kay and Kajiya, 1986): a convex solid is an
intersection of slabs, and a ray hits it if it enters the last slab before it leaves the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.primitives import Kind

Array = npt.NDArray[Any]
Vector = tuple[Array, Array, Array]

NEAREST = np.float32(1e-3)  # closer hits are rounding errors: rays start outside of solids [m]
RING_HOLE = 0.72  # squared inner radius of a ring, as a fraction of the outer one
_FENCE_RAIL = 0.82  # above and below this |z| a fence is solid


def _slab(o: Array, d: Array) -> tuple[Array, Array]:
    inverse = np.float32(1.0) / d
    first, second = (np.float32(-1.0) - o) * inverse, (np.float32(1.0) - o) * inverse
    return np.minimum(first, second), np.maximum(first, second)


def _entry(enter: Array, leave: Array) -> Array:
    hit = (enter <= leave) & (enter > NEAREST)
    return np.where(hit, enter, np.float32(np.inf))


def box(o: Vector, d: Vector, rows: Array) -> Array:
    """Cube of side 2."""
    enter, leave = _slab(o[0], d[0])
    for axis in (1, 2):
        low, high = _slab(o[axis], d[axis])
        enter, leave = np.maximum(enter, low), np.minimum(leave, high)
    return _entry(enter, leave)


def taper_planes(taper: Array) -> list[tuple[int, float, Array]]:
    """Inclined walls as (axis, sign, a): inside where sign * q[axis] + a * q[z] <= 1 - a."""
    front, rear, side = (taper[:, k] / 2 for k in range(3))
    return [(0, 1.0, front), (0, -1.0, rear), (1, 1.0, side), (1, -1.0, side)]


def tapered(o: Vector, d: Vector, rows: Array) -> Array:
    """Box with walls inclined inwards."""
    enter, leave = _slab(o[2], d[2])
    for axis, sign, a in taper_planes(rows["taper"].astype(np.float32)):
        lean, way = a[:, None], np.float32(sign)
        facing = way * d[axis] + lean * d[2]
        t = ((1 - lean) - (way * o[axis] + lean * o[2])) / facing
        enter = np.where(facing < 0, np.maximum(enter, t), enter)
        leave = np.where(facing > 0, np.minimum(leave, t), leave)
    return _entry(enter, leave)


def _round(o: tuple[Array, ...], d: tuple[Array, ...]) -> tuple[Array, Array]:
    """Entry and exit of rays at |q| = 1; NaN for a miss.

    Computed from the point of closest approach, which is exact in float32 for small distant bodies
    (the textbook quadratic is not).
    """
    squared = sum(k * k for k in d)
    middle = -sum(p * k for p, k in zip(o, d)) / squared
    away = sum((p + middle * k) ** 2 for p, k in zip(o, d))
    reach = np.sqrt((1 - away) / squared)
    return middle - reach, middle + reach


def ellipsoid(o: Vector, d: Vector, rows: Array) -> Array:
    """Unit ball."""
    return _entry(*_round(o, d))


def _cylinder_span(o: Vector, d: Vector) -> tuple[Array, Array, Array]:
    enter, leave = _round(o[:2], d[:2])
    low, high = _slab(o[2], d[2])
    return np.maximum(enter, low), np.minimum(leave, high), low > enter


def cylinder(o: Vector, d: Vector, rows: Array) -> Array:
    """Cylinder along z, closed at both ends."""
    enter, leave, _ = _cylinder_span(o, d)
    return _entry(enter, leave)


def ring(o: Vector, d: Vector, rows: Array) -> Array:
    """Cylinder with open ends inside the rim."""
    enter, leave, end = _cylinder_span(o, d)
    t = _entry(enter, leave)
    squared = (o[0] + enter * d[0]) ** 2 + (o[1] + enter * d[1]) ** 2
    return np.where(end & (squared < np.float32(RING_HOLE)), np.float32(np.inf), t)


def foliage_hole(at: Sequence[Array], threshold: Array, phase: Array) -> Array:
    """Whether a crown is open at local positions [m]; the pattern belongs to the tree and does not
    depend on the viewpoint."""
    x, y, z = at
    k = np.float32(2 * np.pi / 0.42)
    waves = np.sin(k * (x + 0.3 * y + 0.5 * z) + phase)
    waves += np.sin(k * (1.1 * y - 0.4 * x + 0.2 * z) + 2 * phase)
    waves += np.sin(k * (1.2 * z + 0.2 * x - 0.5 * y) + 3 * phase)
    result: Array = waves > threshold
    return result


def foliage(o: Vector, d: Vector, rows: Array) -> Array:
    """Shell with holes: a ray may pass, or enter and hit the far side."""
    enter, leave = _round(o, d)
    half, texture = (rows[name].astype(np.float32)[:, :, None] for name in ("half", "texture"))
    best = np.full(enter.shape, np.inf, np.float32)
    for t in (leave, enter):
        at = [(p + t * k) * half[:, axis] for axis, (p, k) in enumerate(zip(o, d))]
        solid = ~foliage_hole(at, texture[:, 0], texture[:, 1]) & (t > NEAREST)
        best = np.where(solid, t, best)
    return best


def fence(o: Vector, d: Vector, rows: Array) -> Array:
    """Thin box with upright bars: texture = (distance between bars [m], filled fraction)."""
    t = box(o, d, rows)
    texture = rows["texture"].astype(np.float32)
    half_length = rows["half"][:, 0].astype(np.float32)[:, None]
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    gap = np.mod((x + 1) * half_length / texture[:, :1], 1) > texture[:, 1:2]
    open_ = gap & (np.abs(z) < _FENCE_RAIL) & (np.abs(x) < 0.999)
    return np.where(open_, np.float32(np.inf), t)


SHAPES: dict[Kind, Callable[[Vector, Vector, Array], Array]] = {
    Kind.BOX: box,
    Kind.TAPERED: tapered,
    Kind.ELLIPSOID: ellipsoid,
    Kind.CYLINDER: cylinder,
    Kind.FOLIAGE: foliage,
    Kind.FENCE: fence,
    Kind.RING: ring,
}


def unit_normals(kind: Kind, q: Array, taper: Array) -> Array:
    """(M, 3) outward normals, of any length, of unit shapes at surface points `q` (M, 3)."""
    if kind in (Kind.ELLIPSOID, Kind.FOLIAGE):
        return q
    if kind in (Kind.CYLINDER, Kind.RING):
        end = q[:, 0] ** 2 + q[:, 1] ** 2 < q[:, 2] ** 2
        flat, up = np.zeros_like(q), np.sign(q[:, 2])
        flat[:, 2] = up
        side = q * np.array([1, 1, 0], q.dtype)
        return np.where(end[:, None], flat, side)
    planes = taper_planes(taper if kind == Kind.TAPERED else np.zeros_like(taper))
    normals = np.zeros((len(planes) + 2, *q.shape), q.dtype)
    gaps = np.empty((len(planes) + 2, len(q)), q.dtype)
    for k, (axis, sign, a) in enumerate(planes):
        normals[k, :, axis], normals[k, :, 2] = sign, a
        gaps[k] = sign * q[:, axis] + a * q[:, 2] - (1 - a)
    for k, sign in ((-2, 1.0), (-1, -1.0)):
        normals[k, :, 2] = sign
        gaps[k] = sign * q[:, 2] - 1
    result: Array = normals[np.argmax(gaps, axis=0), np.arange(len(q))]
    return result
