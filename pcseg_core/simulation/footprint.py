# SPDX-License-Identifier: Apache-2.0
"""Beams of finite width: an edge that cuts the footprint of a beam gives two returns.

A beam is cast as seven rays of equal power, as in HELIOS++ (Winiwarter et al., Virtual laser
scanning with HELIOS++, Remote Sensing of Environment, 2022): one along the axis and six around it.
The rays that meet one surface make one return, whose power is theirs together. What the rays of a
crown or a fence miss goes on to the surface behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.returns import ReturnType
from pcseg_core.simulation.observe import Hits

Array = npt.NDArray[Any]

RAYS = 7
# A Gaussian beam has the share 1 - exp(-2 (r / w)^2) of its power within r, if w is where the
# intensity falls to 1/e^2. The axis stands for the inner seventh; half of the rest is within this:
_RING = float(np.sqrt(-np.log(3 / 7) / 2))
# Surfaces are different if one is farther than this from the plane of the other [m]. The footprint
# on a road 50 m away is meters long, and yet one surface.
_STEP_M = 0.3


def bundle(direction: Array, columns: int, divergence_mrad: tuple[float, float]) -> Array:
    """Rays of beams, (beams * 7 * columns, 3) unit vectors, the axis first.

    Args:
        direction: (beams * columns, 3) unit vectors of the axes, none of them vertical.
        divergence_mrad: horizontal and vertical full angle at 1/e^2 of the intensity [mrad].
    """
    across = np.stack([-direction[:, 1], direction[:, 0], np.zeros(len(direction))], axis=1)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    up = np.cross(direction, across)
    wide, high = (_RING * mrad / 2e3 for mrad in divergence_mrad)
    turns = np.arange(RAYS - 1) * (2 * np.pi / (RAYS - 1))
    ring = [direction + wide * np.cos(t) * across + high * np.sin(t) * up for t in turns]
    rays = np.stack([direction, *ring]).reshape(RAYS, -1, columns, 3).swapaxes(0, 1)
    unit: Array = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    return unit.reshape(-1, 3)


@dataclass(frozen=True)
class Echoes:
    """What beams return, strongest first: at most one return per beam and surface.

    Attributes:
        beam: (M,) index of the beam.
        ray: (M,) index of the ray that stands for the return: its range and its surface.
        power: (M,) of all rays of the return.
        kind: (M,) uint8 of `ReturnType`.
    """

    beam: Array
    ray: Array
    power: Array
    kind: Array


def split(hits: Hits, range_: Array, columns: int, separation_m: float) -> Array:
    """(7, N) surface that each ray of the beams meets, 0 for the nearest; -1 for none.

    Args:
        hits: of a `bundle`.
        range_: (7 * N,) ranges of the rays, of rough surfaces [m].
        separation_m: surfaces that are nearer together are one return [m].
    """
    range_, normal, points = (_by_beam(v, columns) for v in (range_, hits.normal, hits.points))
    order = np.argsort(range_, axis=0)
    range_ = np.take_along_axis(range_, order, 0)
    normal, points = (np.take_along_axis(v, order[..., None], 0) for v in (normal, points))
    with np.errstate(invalid="ignore"):
        apart = np.diff(range_, axis=0) > separation_m
        step = np.diff(points, axis=0)
        for plane in (normal[:-1], normal[1:]):
            apart &= np.abs(np.einsum("rni,rni->rn", plane, step)) > _STEP_M
    number = np.concatenate([np.zeros((1, range_.shape[1]), np.int64), np.cumsum(apart, axis=0)])
    surface = np.empty_like(number)
    np.put_along_axis(surface, order, np.where(np.isfinite(range_), number, -1), 0)
    return surface


def strongest_and_last(
    surface: Array, power: Array, gain: Array, columns: int, weakest: float
) -> Echoes:
    """The two returns that a LiDAR reports of each beam.

    These are the strongest and the last one or, if the last is the strongest, the second strongest,
    as with Velodyne and Hesai.

    Args:
        surface: (7, N) from `split`.
        power: (7 * N,) of the rays, as if each were a whole beam.
        gain: (7, N) factor on the power of the return of each surface; 0 for lost ones.
        weakest: power that a return needs.
    """
    rays = _by_beam(power, columns)
    total = np.stack([np.where(surface == k, rays, 0).sum(0) for k in range(RAYS)])
    total *= gain / RAYS
    found = total > weakest
    beam = np.flatnonzero(found.any(axis=0))
    total = np.where(found, total, -1.0)[:, beam]
    strong = total.argmax(axis=0)
    last = RAYS - 1 - found[::-1, beam].argmax(axis=0)
    second = np.where(np.arange(RAYS)[:, None] == strong, -1.0, total).argmax(axis=0)
    other = np.where(last == strong, second, last)
    paired = np.flatnonzero(total[other, np.arange(len(beam))] > 0)
    paired = paired[(other != strong)[paired]]
    kind = np.full(len(beam), ReturnType.DUAL_ONLY, np.uint8)
    nearer = strong[paired] < other[paired]
    kind[paired] = _either(nearer, ReturnType.DUAL_STRONGEST_FIRST, ReturnType.DUAL_STRONGEST_LAST)
    weak = _either(nearer, ReturnType.DUAL_WEAK_LAST, ReturnType.DUAL_WEAK_FIRST)
    which = np.concatenate([np.arange(len(beam)), paired])
    chosen = np.concatenate([strong, other[paired]])
    beams = beam[which]
    return Echoes(
        beams,
        _ray(surface[:, beams] == chosen, rays[:, beams], beams, columns),
        total[chosen, which],
        np.concatenate([kind, weak]),
    )


def _ray(own: Array, power: Array, beam: Array, columns: int) -> Array:
    """(M,) index of the axis if it is one of the rays of a return, else of its strongest ray."""
    power = np.where(own, power, -1.0)
    power[0, own[0]] = np.inf
    row, column = np.divmod(beam, columns)
    index: Array = (row * RAYS + power.argmax(axis=0)) * columns + column
    return index


def _by_beam(values: Array, columns: int) -> Array:
    """(7, N, ...) from values (beams * 7 * columns, ...) of the rays of a bundle."""
    rest = values.shape[1:]
    beams = values.reshape(-1, RAYS, columns, *rest).swapaxes(0, 1)
    return np.ascontiguousarray(beams).reshape(RAYS, -1, *rest)


def _either(first: Array, one: ReturnType, other: ReturnType) -> Array:
    return np.where(first, one, other).astype(np.uint8)
