# SPDX-License-Identifier: Apache-2.0
"""Primitives: the solids of a scene except the ground, one row of a table each.

A solid is a unit shape (cube of side 2, ball of radius 1, cylinder of radius 1 and height 2)
scaled by `half`, rotated by `rotation` and moved to `center`: p = rotation @ (half * q) + center.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Vector: TypeAlias = "Sequence[float] | Array"  # of three


class Kind(IntEnum):
    """Shape of a primitive in its unit frame."""

    BOX = 0  # |x|, |y|, |z| <= 1
    TAPERED = 1  # box with walls inclined inwards, see `taper`
    ELLIPSOID = 2  # |q| <= 1
    CYLINDER = 3  # x^2 + y^2 <= 1, |z| <= 1
    FOLIAGE = 4  # shell of an ellipsoid with holes, a crown of leaves
    FENCE = 5  # box with gaps between its bars along x
    RING = 6  # cylinder open along its axis: the rim of a bicycle wheel


PRIMITIVE = np.dtype(
    [
        ("kind", np.int8),
        ("rotation", np.float64, (3, 3)),
        ("center", np.float64, (3,)),  # [m]
        ("half", np.float64, (3,)),  # half extents [m]
        # TAPERED only: inward shift of the front (+x), rear (-x) and side walls at the top, as a
        # fraction of the half extent; 1 for both sides makes a gable roof.
        ("taper", np.float64, (3,)),
        ("velocity", np.float64, (3,)),  # [m/s], within a sweep
        ("label", np.int16),  # id in the label space "simulation"
        ("instance", np.int32),  # -1: none
        ("material", np.int8),  # see `materials.Material`
        ("albedo", np.float32, (3,)),  # linear RGB [0..1]
        ("texture", np.float32, (4,)),  # parameters of the material's texture
    ]
)


def rotation_matrix(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """(3, 3) rotation about z, then y, then x of the rotated frame [rad]."""
    cy, sy = math.cos(yaw), math.sin(yaw)
    cp, sp = math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def solid(
    kind: Kind,
    center: Vector,
    size: Vector,
    label: int,
    material: int,
    albedo: Vector,
    *,
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0),
    taper: Sequence[float] = (0.0, 0.0, 0.0),
    texture: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
) -> Array:
    """One row (1,) of the table: full `size` [m], `turn` = yaw, pitch, roll [rad]."""
    row = np.zeros(1, PRIMITIVE)
    row["kind"], row["label"], row["material"], row["instance"] = kind, label, material, -1
    row["rotation"], row["center"] = rotation_matrix(*turn), center
    row["half"] = np.maximum(np.asarray(size, dtype=np.float64) / 2, 1e-3)
    row["taper"], row["albedo"], row["texture"] = taper, albedo, texture
    return row


def rod(
    start: Vector, end: Vector, radius: float, label: int, material: int, albedo: Vector
) -> Array:
    """A cylinder between two points."""
    begin, stop = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    axis = stop - begin
    length = float(np.linalg.norm(axis))
    pitch = float(np.arctan2(np.hypot(axis[0], axis[1]), axis[2]))
    yaw = float(np.arctan2(axis[1], axis[0]))
    return solid(
        Kind.CYLINDER,
        (begin + stop) / 2,
        (2 * radius, 2 * radius, length),
        label,
        material,
        albedo,
        turn=(yaw, pitch, 0.0),
    )


def join(parts: Sequence[Array]) -> Array:
    """Concatenate tables (`np.concatenate` would compare the record types field by field)."""
    table = np.empty(sum(len(part) for part in parts), PRIMITIVE)
    end = 0
    for part in parts:
        start, end = end, end + len(part)
        table[start:end] = part
    return table


def place(parts: Array, pose: Array, instance: int | None = None) -> Array:
    """Move primitives with a pose (4, 4); set their instance id if one is given."""
    moved = parts.copy()
    moved["rotation"] = pose[:3, :3] @ parts["rotation"]
    moved["center"] = parts["center"] @ pose[:3, :3].T + pose[:3, 3]
    if instance is not None:
        moved["instance"] = instance
    result: Array = moved
    return result


def pose_at(x: float, y: float, z: float, yaw: float) -> Array:
    """(4, 4) upright pose."""
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrix(yaw)
    pose[:3, 3] = (x, y, z)
    return pose


_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


def corners(primitives: Array) -> Array:
    """(P, 8, 3) corners of the bounding boxes of the primitives [m]."""
    scaled = _CORNERS * primitives["half"][:, None, :]
    turned: Array = np.einsum("pij,pkj->pki", primitives["rotation"], scaled)
    result: Array = turned + primitives["center"][:, None, :]
    return result


def distance(primitives: Array, point: Array) -> Array:
    """(P,) distance of a point from the bounding box of each primitive, 0 inside [m]."""
    local = np.einsum("pji,pj->pi", primitives["rotation"], point - primitives["center"])
    outside = np.maximum(np.abs(local) - primitives["half"], 0.0)
    gap: Array = np.linalg.norm(outside, axis=1)
    return gap
