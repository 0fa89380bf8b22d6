# SPDX-License-Identifier: Apache-2.0
"""Ray casting against a table of primitives, in tiles of neighboring rays.

Rays are grouped into tiles of 64 neighbors. A primitive is tested only against tiles that its
bounds overlap, nearest primitives first; tiles already covered by nearer hits are skipped.
Arithmetic is float32 relative to a reference point near the sensor: errors are below a millimeter
at 200 m.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pcseg_core.simulation.intersect import SHAPES, unit_normals
from pcseg_core.simulation.primitives import Kind, corners, distance

Array = npt.NDArray[Any]

TILE = 64  # rays in a tile
_RUN = 16  # neighboring tiles tested together first
_SIDE = 8  # side of a square tile on a grid of rays
_CHUNK = 1536  # pairs of primitive and tile at once, for the cache
_FIRST_ROUND = 2  # primitives per tile in the first round; each later round doubles
_NONE = np.int64(0x7FFFFFFF)
# Pairs of corners (see `primitives.corners`) that differ in one coordinate.
_EDGES = np.array([(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit])


@dataclass(frozen=True)
class Tiles:
    """Rays grouped by direction.

    Attributes:
        order: (T, 64) index of each ray; rays may repeat to fill a tile.
        center: (T, 2) center of the bounds of a tile: azimuth and elevation [rad].
        half: (T, 2) half width of the bounds [rad].
    """

    order: Array
    center: Array
    half: Array


@dataclass(frozen=True)
class Rays:
    """Rays of one measurement, in world axes.

    Attributes:
        reference: (3,) float64 point that `origin` is relative to, and viewpoint of the bounds of
            primitives.
        origin: (N, 3) or (1, 3) float32 [m].
        direction: (N, 3) float32 unit vectors.
        time: (N,) float32 since the time of the positions of primitives [s], or None.
        frame: (3, 3) rotation from world axes to the axes of the angles of tiles (x forward, y
            left, z up).
        tiles: groups of rays.
        slack_m, slack_rad: motion of the sensor during the measurement.
    """

    reference: Array
    origin: Array
    direction: Array
    time: Array | None
    frame: Array
    tiles: Tiles
    slack_m: float = 0.0
    slack_rad: float = 0.0

    def take(self, index: Array) -> Rays:
        """Some of the rays (K,), in other tiles."""
        direction = self.direction[index]
        return replace(
            self,
            origin=self.origin if len(self.origin) == 1 else self.origin[index],
            direction=direction,
            time=None if self.time is None else self.time[index],
            tiles=sorted_tiles(direction @ self.frame.T),
        )


def angles(direction: Array) -> tuple[Array, Array]:
    """Azimuth (counter-clockwise from +x) and elevation [rad] of vectors (..., 3)."""
    x, y, z = direction[..., 0], direction[..., 1], direction[..., 2]
    return np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))


def grid_tiles(direction: Array, height: int, width: int) -> Tiles:
    """Tiles of a grid of rays (height * width, 3) in sensor axes."""
    rows, columns = (-(-n // _SIDE) * _SIDE for n in (height, width))
    index = np.arange(height * width).reshape(height, width)
    index = np.pad(index, ((0, rows - height), (0, columns - width)), mode="edge")
    blocks = index.reshape(rows // _SIDE, _SIDE, columns // _SIDE, _SIDE).swapaxes(1, 2)
    return _bounded(direction, blocks.reshape(-1, TILE))


def sorted_tiles(direction: Array, cell_rad: float = 0.04) -> Tiles:
    """Tiles of unordered rays (N, 3), by cells of azimuth and elevation."""
    azimuth, elevation = (np.floor(a / cell_rad) for a in angles(direction))
    return _bounded(direction, chunked(np.lexsort((azimuth, elevation))))


def chunked(order: Array) -> Array:
    """(T, 64) from (N,), padded with the last one."""
    missing = -len(order) % TILE
    return np.concatenate([order, np.repeat(order[-1:], missing)]).reshape(-1, TILE)


def _bounded(direction: Array, order: Array) -> Tiles:
    azimuth, elevation = (a[order] for a in angles(direction))
    turn = _wrap(azimuth - azimuth[:, :1])
    bounds = [
        ((low + high) / 2 + base, (high - low) / 2)
        for base, low, high in (
            (azimuth[:, 0], turn.min(axis=1), turn.max(axis=1)),
            (0.0, elevation.min(axis=1), elevation.max(axis=1)),
        )
    ]
    center, half = (np.stack(pair, axis=1).astype(np.float32) for pair in zip(*bounds))
    over_pole = np.abs(elevation).max(axis=1) > np.pi / 2 - 0.02
    half[over_pole | (half[:, 0] > 3), 0] = np.pi
    return Tiles(order, center, half + np.float32(1e-5))


def _wrap(angle: Array) -> Array:
    wrapped: Array = np.mod(angle + np.pi, 2 * np.pi) - np.pi
    return wrapped


def angular_bounds(local: Array, slack_m: float | Array, slack_rad: float) -> tuple[Array, Array]:
    """Bounds (center, half), each (P, 2) [rad], of boxes seen from the origin.

    Args:
        local: (P, 8, 3) corners in the sensor's axes [m].
        slack_m: relative motion of sensor and box [m], one or (P,).
        slack_rad: rotation of the sensor.
    """
    ends = local[:, _EDGES, :2]
    along = ends[:, :, 1] - ends[:, :, 0]
    length = np.maximum((along**2).sum(-1), 1e-12)
    nearest = np.clip(-(ends[:, :, 0] * along).sum(-1) / length, 0, 1)
    near = np.linalg.norm(ends[:, :, 0] + nearest[..., None] * along, axis=-1).min(axis=1)
    near, far = near - slack_m, np.hypot(local[..., 0], local[..., 1]).max(axis=1) + slack_m
    azimuth = np.arctan2(local[..., 1], local[..., 0])
    turn = _wrap(azimuth - azimuth[:, :1])
    around = (np.ptp(turn, axis=1) >= np.pi) | (near <= 0.05)
    near = np.where(around, 0.0, near)
    spread = slack_m / np.maximum(near, 0.05) + slack_rad
    half_azimuth = np.where(around, np.pi, np.ptp(turn, axis=1) / 2 + spread)
    middle = (turn.max(axis=1) + turn.min(axis=1)) / 2 + azimuth[:, 0]
    top, bottom = local[..., 2].max(axis=1) + slack_m, local[..., 2].min(axis=1) - slack_m
    high = np.arctan2(top, np.where(top > 0, near, far)) + slack_rad
    low = np.arctan2(bottom, np.where(bottom < 0, near, far)) - slack_rad
    center = np.stack([middle, (high + low) / 2], axis=1)
    half = np.stack([half_azimuth, (high - low) / 2], axis=1)
    return center.astype(np.float32), half.astype(np.float32)


def cast(primitives: Array, rays: Rays, limit: Array) -> tuple[Array, Array]:
    """First primitive hit by each ray.

    Args:
        primitives: table (P,) in world axes.
        limit: (N,) float32 maximum range (the ground, the far end) [m].

    Returns:
        range (N,) float32 [m], `limit` without a nearer primitive; and row (N,) int64 of the
        primitive, -1 for none.
    """
    tiles = rays.tiles
    tau = 0.0 if rays.time is None else float(np.abs(rays.time).max(initial=0.0))
    slack = rays.slack_m + np.linalg.norm(primitives["velocity"], axis=1) * tau
    seen = (corners(primitives) - rays.reference) @ rays.frame.T
    center, half = angular_bounds(seen, slack, rays.slack_rad)
    near = np.maximum(distance(primitives, rays.reference) - slack, 0.0).astype(np.float32)
    row, tile = _overlaps(center, half, tiles.center, tiles.half, period=2 * np.pi)
    best = _pack(limit[tiles.order], _NONE)
    _search(primitives, rays, row, tile, near[row], best)
    return _unpack(best, tiles.order, len(limit))


def shadowed(primitives: Array, reference: Array, points: Array, sun: Array) -> Array:
    """(N,) bool: whether a primitive is between points and the sun.

    Args:
        points: (N, 3) float32 relative to `reference`, slightly outside of solids [m].
        sun: (3,) unit vector toward the sun.
    """
    if len(points) == 0 or len(primitives) == 0:
        return np.zeros(len(points), bool)
    plane = np.linalg.svd(sun[None])[2][1:]  # two directions perpendicular to the sun
    at = points @ plane.T.astype(np.float32)
    cell = np.floor(at / 1.5)
    order = chunked(np.lexsort((cell[:, 1], cell[:, 0])))
    low, high = at[order].min(axis=1), at[order].max(axis=1)
    flat = (corners(primitives) - reference) @ plane.T
    box_low, box_high = flat.min(axis=1).astype(np.float32), flat.max(axis=1).astype(np.float32)
    row, tile = _overlaps(
        (box_low + box_high) / 2, (box_high - box_low) / 2, (low + high) / 2, (high - low) / 2
    )
    rays = Rays(
        reference, points, sun.astype(np.float32)[None], None, np.eye(3), Tiles(order, low, high)
    )
    best = np.full(order.shape, _pack(np.full(1, np.inf, np.float32), _NONE)[0])
    # "near" beyond everything: a tile is done when all its points are in the shade
    _search(primitives, rays, row, tile, np.full(len(row), 1e30, np.float32), best)
    return _unpack(best, order, len(points))[1] >= 0


def surface(primitives: Array, row: Array, points: Array) -> tuple[Array, Array, Array]:
    """Normals and local coordinates of points (M, 3) float64 on the primitives `row` (M,).

    Returns:
        normal in world axes (M, 3), outward; normal in the primitive's axes (M, 3); position in
        the primitive's axes relative to its center (M, 3) [m]; float32 all.
    """
    rotation = primitives["rotation"].astype(np.float32)[row]
    half = primitives["half"].astype(np.float32)[row]
    offset = (points - primitives["center"][row]).astype(np.float32)
    local = np.einsum("mji,mj->mi", rotation, offset)
    kinds, unit = primitives["kind"][row], local / half
    normal = np.empty_like(unit)
    for kind in np.unique(kinds):
        own = kinds == kind
        taper = primitives["taper"].astype(np.float32)[row[own]]
        normal[own] = unit_normals(Kind(kind), unit[own], taper)
    normal /= half
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    return np.einsum("mij,mj->mi", rotation, normal), normal, local


def _overlaps(
    center: Array, half: Array, tile_center: Array, tile_half: Array, period: float = 0.0
) -> tuple[Array, Array]:
    """Rows and tiles whose bounds overlap in both coordinates.

    Runs of tiles are tested first; the first coordinate may be an angle with a `period`.
    """
    runs = -(-len(tile_center) // _RUN)
    member = np.minimum(np.arange(runs * _RUN).reshape(runs, _RUN), len(tile_center) - 1)
    offset = tile_center[member] - tile_center[member[:, :1]]
    if period:
        offset[..., 0] -= np.float32(period) * np.round(offset[..., 0] / np.float32(period))
    low = (offset - tile_half[member]).min(axis=1)
    high = (offset + tile_half[member]).max(axis=1)
    run_center = tile_center[member[:, 0]] + (low + high) / 2
    row, run = _overlap_pairs(center, half, run_center, (high - low) / 2, period)
    tile = (run[:, None] * _RUN + np.arange(_RUN)).ravel()
    row = np.repeat(row, _RUN)
    row, tile = row[tile < len(tile_center)], tile[tile < len(tile_center)]
    hit = _overlap(center[row], half[row], tile_center[tile], tile_half[tile], period)
    return row[hit], tile[hit]


def _overlap_pairs(
    center: Array, half: Array, run_center: Array, run_half: Array, period: float
) -> tuple[Array, Array]:
    rows, runs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    step = max(1, 250_000 // max(len(run_center), 1))
    for start in range(0, len(center), step):
        part = slice(start, start + step)
        row, run = np.nonzero(
            _overlap(center[part, None], half[part, None], run_center, run_half, period)
        )
        rows.append(row + start)
        runs.append(run)
    return np.concatenate(rows), np.concatenate(runs)


def _overlap(a: Array, a_half: Array, b: Array, b_half: Array, period: float) -> Array:
    """Whether rectangles (..., 2), given by center and half size, overlap."""
    gap = np.abs(a[..., 0] - b[..., 0])
    if period:
        gap = np.abs(gap - np.float32(period) * np.rint(gap / np.float32(period)))
    hit: Array = gap <= a_half[..., 0] + b_half[..., 0]
    hit &= np.abs(a[..., 1] - b[..., 1]) <= a_half[..., 1] + b_half[..., 1]
    return hit


def _pack(t: Array, row: Array | np.int64) -> Array:
    """Range and row in one int64, ordered by range: bits of positive floats keep their order."""
    key: Array = (t.astype(np.float32).view(np.int32).astype(np.int64) << 32) | row
    return key


def _unpack(best: Array, order: Array, count: int) -> tuple[Array, Array]:
    flat = np.empty(count, np.int64)
    flat[order.ravel()] = best.ravel()
    row, t = flat & _NONE, _range(flat)
    return t, np.where((row == _NONE) | np.isinf(t), -1, row)


def _range(best: Array) -> Array:
    return (best >> 32).astype(np.int32).view(np.float32)


def _search(
    primitives: Array, rays: Rays, row: Array, tile: Array, near: Array, best: Array
) -> None:
    """Lower `best` (T, 64) with the pairs of primitive and tile given, nearest first."""
    order = np.lexsort((near, tile))
    row, tile, near = row[order], tile[order], near[order]
    rank = np.arange(len(tile)) - np.searchsorted(tile, tile)
    table = _Solids(primitives, rays)
    start, size = 0, _FIRST_ROUND
    while len(row):
        turn = rank < start + size
        covered = _range(best.max(axis=1))
        turn &= near <= covered[tile]
        for kind in np.unique(primitives["kind"][row[turn]]):
            chosen = np.flatnonzero(turn & (primitives["kind"][row] == kind))
            for first in range(0, len(chosen), _CHUNK):
                part = chosen[first : first + _CHUNK]
                _lower(
                    best,
                    tile[part],
                    _pack(table.meet(Kind(kind), row[part], tile[part]), row[part][:, None]),
                )
        left = rank >= start + size
        row, tile, near, rank = row[left], tile[left], near[left], rank[left]
        start, size = start + size, 2 * size


def _lower(best: Array, tile: Array, key: Array) -> None:
    first = np.flatnonzero(np.diff(tile, prepend=-1))
    own = tile[first]
    best[own] = np.minimum(best[own], np.minimum.reduceat(key, first, axis=0))


class _Solids:
    """Primitives and rays as contiguous float32."""

    def __init__(self, primitives: Array, rays: Rays) -> None:
        self.rows = primitives
        scale = 1.0 / primitives["half"][:, :, None]
        self.to_unit = (np.swapaxes(primitives["rotation"], 1, 2) * scale).astype(np.float32)
        self.center = (primitives["center"] - rays.reference).astype(np.float32)
        self.velocity = primitives["velocity"].astype(np.float32)
        order = rays.tiles.order
        self.direction = _by_tile(rays.direction, order)
        self.origin = _by_tile(rays.origin, order)
        self.time = None if rays.time is None else rays.time.astype(np.float32)[order]

    def meet(self, kind: Kind, row: Array, tile: Array) -> Array:
        """(K, 64) range along each ray of the tiles to the primitives."""
        to_unit = self.to_unit[row]
        offset = self._gather(self.origin, tile) - self.center[row].T[:, :, None]
        if self.time is not None:
            moving = np.flatnonzero(self.velocity[row].any(axis=1))
            time = self.time[tile[moving]]
            offset[:, moving] -= self.velocity[row[moving]].T[:, :, None] * time
        direction = self._gather(self.direction, tile)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return SHAPES[kind](_turn(to_unit, offset), _turn(to_unit, direction), self.rows[row])

    @staticmethod
    def _gather(vectors: Array, tile: Array) -> Array:
        return vectors if vectors.shape[1] == 1 else vectors[:, tile]


def _by_tile(vectors: Array, order: Array) -> Array:
    """(3, T, 64) from (N, 3), or (3, 1, 1) if all rays share one vector."""
    if len(vectors) == 1:
        return np.ascontiguousarray(vectors.T[:, :, None], np.float32)
    return np.stack([np.ascontiguousarray(vectors[:, k], np.float32)[order] for k in range(3)])


def _turn(matrix: Array, vector: Array) -> tuple[Array, Array, Array]:
    """Rows of matrix (K, 3, 3) times vector (3, K or 1, S)."""
    x, y, z = vector
    m = matrix[:, :, :, None]
    return (
        m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2] * z,
        m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2] * z,
        m[:, 2, 0] * x + m[:, 2, 1] * y + m[:, 2, 2] * z,
    )
