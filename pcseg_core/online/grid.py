# SPDX-License-Identifier: Apache-2.0
"""Occupancy grid around the sensor, from labels over time and the newest sweep's free space."""

from __future__ import annotations

import os
from ctypes import byref, c_double, c_float, pointer
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy import ndimage

from pcseg_core.config import LIVE, Section
from pcseg_core.errors import InputError
from pcseg_core.labels import LabelSpace
from pcseg_core.native.library import check, library, optional_library, thread_count
from pcseg_core.native.structures import GridArgs, Points
from pcseg_core.online.class_maps import read_class_map
from pcseg_core.online.free_space import Beams, FreeSpace
from pcseg_core.online.pipeline import LabeledSweep, Voxels

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

UNKNOWN = -1
"""Value of cells that nothing is known about."""

MAX_CELLS = 4_000_000
"""Largest number of cells of a grid."""

_OCCUPIED = 50  # least cost of what is no ground
_UNLABELED = "unlabeled"
_MIN_SHARE = 0.3  # of the evidence in a cell: less is taken for wrong labels at its edges
_LEAST_WEIGHT = 0.05  # older voxels count nothing
_MARGIN_M = 0.5  # by which beams must reach beyond a place that they passed
_CLEARANCE_M = 0.35  # above the ground: beams lower than this see the ground soon after


class GridConfig(Section):
    """The occupancy grid."""

    costs: str = Field(
        "",
        description="File (YAML) with the cost of each class, 0 free to 100 occupied, -1 for no "
        "evidence; empty takes that of the package for the classes road, sidewalk, structure, "
        "vegetation, terrain, vehicle, person and pole",
    )
    frame: Literal["sensor", "fixed"] = Field(
        "sensor",
        description="Frame of the grid: that of the sweeps, or fixed for one without jumps "
        "(motion.fixed_frame, or that of Odometry), which needs the motion of the platform",
    )
    resolution_m: float = Field(
        0.2, ge=0.02, le=10.0, description="Edge of a cell, m", json_schema_extra=LIVE
    )
    size_m: float = Field(
        40.0, gt=0.0, le=2000.0, description="Edge of the grid, m", json_schema_extra=LIVE
    )
    rate_hz: float = Field(
        2.0, gt=0.0, le=50.0, description="Grids per second, Hz", json_schema_extra=LIVE
    )
    decay_s: float = Field(
        1.0,
        gt=0.0,
        le=60.0,
        description="Time in which the evidence of the buffer (temporal.enabled) fades to 1/e, s; "
        "without the buffer a grid shows the newest sweep alone",
        json_schema_extra=LIVE,
    )
    max_height_m: float = Field(
        0.5,
        ge=-100.0,
        le=100.0,
        description="Height above the sensor up to which points count, m",
        json_schema_extra=LIVE,
    )

    @property
    def cells(self) -> int:
        """Cells along an edge."""
        return max(round(self.size_m / self.resolution_m), 1)

    @model_validator(mode="after")
    def _check_cells(self) -> GridConfig:
        if self.cells**2 > MAX_CELLS:
            raise ValueError(
                f"a grid of {self.cells} x {self.cells} cells is too large, expected at most "
                f"{MAX_CELLS:,}; increase resolution_m or reduce size_m"
            )
        return self


@dataclass(frozen=True)
class Grid:
    """An occupancy grid, as nav_msgs/OccupancyGrid has it.

    Attributes:
        costs: (rows, columns) int8, 0 to 100 or UNKNOWN; rows along y, columns along x.
        origin_m: x and y of the corner of cell (0, 0) in the frame of the grid.
        height_m: z of the ground below the sensor in that frame, of the sensor if it is unknown.
        resolution_m: edge of a cell.
    """

    costs: npt.NDArray[np.int8]
    origin_m: tuple[float, float]
    height_m: float
    resolution_m: float


@dataclass(frozen=True)
class Evidence:
    """What a grid is drawn from, in the LiDAR frame.

    Attributes:
        points: (3, M) float32 [m]; other than returns do not count.
        labels: (M,) class ids, -1 for none.
        weight: (M,) float32; None if all are 1.
    """

    points: Float32
    labels: Array
    weight: Float32 | None = None


def read_costs(file: str | os.PathLike[str], space: LabelSpace) -> npt.NDArray[np.int8]:
    """(C + 1,) int8 cost of each class; the last one, which the label -1 reads, is of no class.

    Raises:
        InputError: the file cannot be read, its classes are not those of the space, or a cost is
            no integer from -1 to 100.
    """
    source, values = read_class_map(file, "costs_street.yaml", space, (_UNLABELED,))
    for name, value in values.items():
        if type(value) is not int or not -1 <= value <= 100:
            raise InputError(
                f"{source}: '{name}' is {value!r:.80}; expected an integer from 0 to 100, or -1"
            )
    last = values.get(_UNLABELED, UNKNOWN)
    return np.array([*(values[name] for name in space.names), last], np.int8)


def sweep_evidence(labeled: LabeledSweep) -> Evidence:
    """The points of one sweep, each with the weight 1."""
    return Evidence(labeled.cloud.xyz.T, labeled.labels)


def memory_s(decay_s: float) -> float:
    """Age of voxels from which on they have nearly no weight [s]."""
    return -decay_s * float(np.log(_LEAST_WEIGHT))


def voxel_evidence(voxels: Voxels, decay_s: float) -> Evidence:
    """Voxels of the temporal buffer, whose weight fades with their age."""
    points, labels, age = voxels
    return Evidence(points, labels, np.exp(age / np.float32(-decay_s)))


def draw_grid(
    evidence: Evidence,
    sweep: Float32,
    T_grid_lidar: Array,
    costs: Array,
    config: GridConfig,
    beams: Beams | None = None,
) -> Grid:
    """Draw the grid around the sensor.

    A cell has the highest cost that at least 30 % of its evidence has. Costly evidence that the
    newest sweep saw through is left out: it was something that has moved on. Cells without evidence
    are free where beams passed close above the ground.

    Args:
        evidence: labeled points or voxels.
        sweep: (3, N) points of the newest sweep, LiDAR frame [m].
        T_grid_lidar: (4, 4) pose of the LiDAR in the frame of the grid.
        costs: (C + 1,) from `read_costs`.
        config: size and resolution.
        beams: of these points, if they start elsewhere than at the origin or are several of a beam.
    """
    free = FreeSpace(sweep, beams)
    if optional_library() is None:
        return _numpy_draw(evidence, free, T_grid_lidar, costs, config)
    side, edge, place = config.cells, config.resolution_m, T_grid_lidar[:3, 3]
    origin = _origin(place, config)
    points = np.asarray(evidence.points, np.float32)
    labels = np.ascontiguousarray(evidence.labels, np.int32)
    weight = evidence.weight
    weight = None if weight is None else np.ascontiguousarray(weight, np.float32)
    costs, found = np.ascontiguousarray(costs, np.int8), np.empty((side, side), np.int8)
    below = c_float()
    args = GridArgs(
        Points.of(points.T),
        labels.ctypes.data,
        None if weight is None else weight.ctypes.data,
        costs.ctypes.data,
        found.ctypes.data,
        pointer(below),
        free.views(_MARGIN_M),
        (c_float * 9)(*T_grid_lidar[:3, :3].ravel().tolist()),
        (c_float * 2)(*(place[:2] - origin).tolist()),
        (c_double * 2)(*(origin - place[:2]).tolist()),
        edge,
        _MIN_SHARE,
        config.max_height_m,
        _CLEARANCE_M,
        side,
        len(costs) - 1,
    )
    check(library().pcseg_draw_grid(byref(args), thread_count()))
    low = 0.0 if np.isnan(below.value) else below.value
    return Grid(found, (float(origin[0]), float(origin[1])), float(place[2]) + low, edge)


def _origin(place: Array, config: GridConfig) -> Array:
    """(2,) corner of the grid around a place: cells stay where they are."""
    edge = config.resolution_m
    corner: Array = np.floor(place[:2] / edge - config.cells / 2) * edge
    return corner


def _numpy_draw(
    evidence: Evidence, free: FreeSpace, T_grid_lidar: Array, costs: Array, config: GridConfig
) -> Grid:
    evidence = _returns(evidence)
    assert evidence.weight is not None
    side, edge, place = config.cells, config.resolution_m, T_grid_lidar[:3, 3]
    origin = _origin(place, config)
    cost = costs.take(evidence.labels, mode="wrap")
    turned = _turned(T_grid_lidar, evidence.points)
    cell = _cells(turned, place[:2] - origin, side, edge)
    used = (cell >= 0) & (cost != UNKNOWN) & (turned[2] <= config.max_height_m)
    suspects = np.flatnonzero(used & (cost >= _OCCUPIED))
    passed = free.passed(evidence.points[:, suspects], _MARGIN_M)
    used[suspects[_gone(cell[suspects], passed, evidence.weight[suspects], side**2)]] = False
    chosen = np.flatnonzero(used)
    cell, cost, height = cell[chosen], cost[chosen], turned[2, chosen]
    found = _highest(cell, cost, evidence.weight[chosen], costs, side**2)
    low = _ground(cell, cost, height, side)
    if low is not None:
        unknown = np.flatnonzero(found == UNKNOWN)
        centers = _centers(unknown, origin - place[:2], side, edge, low[unknown] + _CLEARANCE_M)
        back = np.eye(4)
        back[:3, :3] = T_grid_lidar[:3, :3].T
        found[unknown[free.passed(_turned(back, centers), _MARGIN_M)]] = 0
    x, y = map(float, origin)
    below = 0.0 if low is None else float(low.reshape(side, side)[side // 2, side // 2])
    return Grid(found.reshape(side, side), (x, y), float(place[2]) + below, edge)


def _returns(evidence: Evidence) -> Evidence:
    """The evidence without points that are no returns, with weights."""
    points, weight = evidence.points, evidence.weight
    with np.errstate(invalid="ignore", over="ignore"):
        kept = np.flatnonzero(np.isfinite(points.sum(0)) & points.any(0))
    weight = np.ones(len(kept), np.float32) if weight is None else weight[kept]
    return Evidence(points[:, kept], evidence.labels[kept], weight)


def _gone(
    cell: Array, passed: npt.NDArray[np.bool_], weight: Float32, count: int
) -> npt.NDArray[np.bool_]:
    """(M,) bool: seen through, or seen before in a cell that was mostly seen through.

    Beams cannot pass the foot of what has moved on: they see the ground right behind it.
    """
    through = np.bincount(cell, weight * passed, count)
    mostly = through > 0.5 * np.bincount(cell, weight, count)
    gone: npt.NDArray[np.bool_] = passed | (mostly[cell] & (weight < 1))
    return gone


def _turned(pose: Array, points: Float32) -> Float32:
    """Points (3, M) in the axes of the other frame, origin unchanged."""
    turned: Float32 = pose[:3, :3].astype(np.float32) @ points
    return turned


def _cells(points: Float32, offset: Array, side: int, edge: float) -> npt.NDArray[np.int64]:
    """(M,) cell of each point, -1 outside of the grid."""
    column, row = (
        np.floor((points[axis] + np.float32(offset[axis])) / np.float32(edge)) for axis in (0, 1)
    )
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    return np.where(inside, row * side + column, -1).astype(np.int64)


def _highest(
    cell: Array, cost: Array, weight: Float32, costs: Array, count: int
) -> npt.NDArray[np.int8]:
    """(count,) highest cost of each cell that enough of its evidence has; UNKNOWN without any.

    Evidence of a higher cost counts for the lower ones too, so that two rare costs do not hide
    each other.
    """
    levels = np.unique(costs)[::-1]
    place = np.zeros(256, np.int64)
    place[levels] = np.arange(len(levels))
    at = place.take(cost, mode="wrap") * count + cell
    shares = np.bincount(at, weight, len(levels) * count).reshape(-1, count)
    least = np.maximum(_MIN_SHARE * shares.sum(0), np.finfo(np.float64).tiny)
    found, higher = np.full(count, UNKNOWN, np.int8), np.zeros(count)
    for level, share in zip(levels, shares):
        higher += share
        found[(found == UNKNOWN) & (higher >= least)] = level
    return found


def _ground(cell: Array, cost: Array, height: Float32, side: int) -> Float32 | None:
    """(side * side,) height of the nearest ground relative to the sensor [m]; None without any."""
    low = np.flatnonzero(cost < _OCCUPIED)
    count = np.bincount(cell[low], minlength=side**2)
    if not count.any():
        return None
    mean = np.bincount(cell[low], height[low], side**2) / np.maximum(count, 1)
    near = ndimage.distance_transform_edt(
        (count == 0).reshape(side, side), return_distances=False, return_indices=True
    )
    filled: Float32 = mean.reshape(side, side)[tuple(near)].ravel().astype(np.float32)
    return filled


def _centers(cell: Array, offset: Array, side: int, edge: float, height: Float32) -> Float32:
    """(3, M) centers of cells at these heights, relative to the sensor in the grid's axes."""
    row, column = np.divmod(cell, side)
    x, y = (column + 0.5) * edge + offset[0], (row + 0.5) * edge + offset[1]
    return np.stack([x, y, height]).astype(np.float32)
