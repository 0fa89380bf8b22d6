# SPDX-License-Identifier: Apache-2.0
"""Things such as persons and vehicles: found in labeled sweeps, put on the ground of others.

A thing keeps its distance to the sensor: its density fits. It hides what is behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pcseg_core.labels import IGNORE
from pcseg_core.learning.dataset import TrainingSweep
from pcseg_core.learning.mixing import Cloud, MixConfig, turned

Array = npt.NDArray[Any]
Rng = np.random.Generator

_CELL_M = 0.4  # points of a thing are in cells that touch; also of free ground
_LEAST_POINTS = 15
_LEAST_HEIGHT_M, _GREATEST_WIDTH_M = 0.5, 7.0
_GREATEST_GAP_M = 0.8  # between the ground and the lowest point of a thing
_AROUND_M = 1.0  # around a thing, whose ground is looked for or must be free
_ROUGH_M = 0.35  # greatest unevenness of free ground
_FAR_M = 60.0  # things are not put farther away
_STEP_M = 1.0  # greatest difference of the heights of the sensor above the two grounds
_GROUND_CELLS = 4  # with points, of the cells of free ground
_LEAST_SEEN = 0.5  # share of a thing that nothing before it hides
_TRIES = 8
_RAY_DEG = 0.5  # points in one angular cell are on one ray
_BEHIND_M = 0.2


@dataclass
class Thing:
    """Points of one thing.

    Attributes:
        cloud: its points where they were measured; IGNORE for labels with too little confidence.
        label: its class.
        scene: of its sweep.
        center: (2,) x and y of its middle [m].
        radius: of the circle around it [m].
        ground: height of the ground around it [m].
    """

    cloud: Cloud
    label: int
    scene: str
    center: Array
    radius: float
    ground: float


class Things:
    """Things of labeled sweeps.

    Args:
        sweeps: labeled sweeps.
        required: least confidence of a label, see `TrainingSweep.confident`.
        config: which classes have things, how many are drawn and how much they are scaled.

    Attributes:
        by_class: class -> scene -> things.
    """

    def __init__(
        self, sweeps: Iterable[TrainingSweep], required: float | Array, config: MixConfig
    ) -> None:
        self.config = config
        labels: Counter[int] = Counter()
        inside: Counter[int] = Counter()
        found: dict[int, dict[str, list[Thing]]] = {}
        for sweep in sweeps:
            counts = np.bincount(sweep.label[sweep.label != IGNORE])
            labels.update(dict(enumerate(counts.tolist())))
            for thing in find_things(sweep, required):
                inside[thing.label] += len(thing.cloud.xyz)
                found.setdefault(thing.label, {}).setdefault(thing.scene, []).append(thing)
        self.by_class = {
            label: found[label]
            for label in sorted(found)
            if inside[label] >= config.thing_share * labels[label]
        }

    def draw(self, rng: Rng) -> list[Thing]:
        """Up to `config.things` things: classes evenly, then scenes, then things."""
        drawn: list[Thing] = []
        classes = [list(scenes.values()) for scenes in self.by_class.values()]
        for _ in range(rng.integers(self.config.things + 1) if classes else 0):
            scenes = classes[rng.integers(len(classes))]
            things = scenes[rng.integers(len(scenes))]
            thing = things[rng.integers(len(things))]
            drawn.append(scaled(thing, 1 + rng.uniform(-1, 1) * self.config.thing_scale))
        return drawn


def find_things(sweep: TrainingSweep, required: float | Array) -> Iterator[Thing]:
    """Clusters of one label that stand on the ground and have the size of a thing.

    At least half of the labels of a cluster are confident.
    """
    confident = sweep.confident(required)
    numbers = np.arange(len(confident))
    parts = (sweep.xyz, sweep.intensity, confident, sweep.confidence, numbers)
    by_x = sweep.xyz[np.argsort(sweep.xyz[:, 0])]
    for label, chosen in _clusters_of_labels(sweep):
        points = sweep.xyz[chosen]
        low, high = points.min(0), points.max(0)
        center, radius = (low + high)[:2] / 2, float(np.hypot(*(high - low)[:2])) / 2
        if 2 * radius > _GREATEST_WIDTH_M or np.mean(confident[chosen] != IGNORE) < 0.5:
            continue
        reach = radius + _AROUND_M
        near = by_x[slice(*np.searchsorted(by_x[:, 0], (center[0] - reach, center[0] + reach)))]
        near = near[np.abs(near[:, 1] - center[1]) < reach]
        ground = float(np.percentile(near[:, 2], 2))
        if high[2] - ground >= _LEAST_HEIGHT_M and low[2] - ground <= _GREATEST_GAP_M:
            cloud = Cloud(*(part[chosen] for part in parts))
            yield Thing(cloud, label, sweep.scene, center, radius, ground)


def _clusters_of_labels(sweep: TrainingSweep) -> Iterator[tuple[int, Array]]:
    """Label and positions (K,) of the points of each cluster that is not tiny."""
    for label in np.unique(sweep.label[sweep.label != IGNORE]).tolist():
        rows = np.flatnonzero(sweep.label == label)
        numbers = clusters(sweep.xyz[rows, :2])
        order = np.argsort(numbers, kind="stable")
        for members in np.split(rows[order], np.cumsum(np.bincount(numbers))[:-1]):
            if len(members) >= _LEAST_POINTS:
                yield label, members


def clusters(xy: Array) -> Array:
    """(N,) number of the cluster of each point (N, 2): cells of `_CELL_M` that touch."""
    cell = np.floor((xy - xy.min(0)) / _CELL_M).astype(np.intp)
    filled = np.zeros(cell.max(0) + 1, bool)
    filled[tuple(cell.T)] = True
    numbers, _ = ndimage.label(filled, np.ones((3, 3)))
    result: Array = numbers[tuple(cell.T)]
    return result


def scaled(thing: Thing, factor: float) -> Thing:
    """The thing, larger or smaller about the ground under its middle."""
    if factor == 1:
        return thing
    foot = np.append(thing.center, thing.ground).astype(np.float32)
    xyz = (thing.cloud.xyz - foot) * np.float32(factor) + foot
    return replace(thing, cloud=replace(thing.cloud, xyz=xyz), radius=thing.radius * factor)


def paste(cloud: Cloud, things: Iterable[Thing], middle: float, width: float, rng: Rng) -> Cloud:
    """Put things on free ground of a sector; those without a place are left out.

    Args:
        cloud: points of the sector.
        things: of other sweeps.
        middle: azimuth of the middle of the sector [deg].
        width: of the sector [deg].
        rng: random numbers.
    """
    ground, rays = Ground(cloud.xyz), spherical(cloud.xyz)
    for thing in things:
        placed = place(thing, ground, middle, width, rng)
        if placed is None:
            continue
        own = spherical(placed.xyz)
        hidden, seen = occlusion(rays, own)
        if seen.mean() < _LEAST_SEEN:
            continue
        ground.add(placed.xyz)
        cloud = cloud.take(~hidden).joined(placed.take(seen))
        rays = np.concatenate([rays[~hidden], own[seen]])
    return cloud


class Ground:
    """Lowest and highest point of each square of a grid, without points far away.

    Args:
        xyz: (N, 3) points [m].
    """

    def __init__(self, xyz: Array) -> None:
        side = 2 * int(_FAR_M / _CELL_M)
        self.low = np.full((side, side), np.inf, np.float32)
        self.high = np.full((side, side), -np.inf, np.float32)
        self.add(xyz)

    def add(self, xyz: Array) -> None:
        """Take in further points."""
        cell = np.floor((xyz[:, :2] + _FAR_M) / _CELL_M).astype(np.intp)
        inside = ((cell >= 0) & (cell < len(self.low))).all(1)
        rows, columns = cell[inside].T
        np.minimum.at(self.low, (rows, columns), xyz[inside, 2])
        np.maximum.at(self.high, (rows, columns), xyz[inside, 2])

    def free(self, spot: Array, reach: float) -> float | None:
        """Height of the ground around a spot (2,), None unless it is seen, even and empty [m]."""
        first, last = np.floor((spot + _FAR_M + [[-reach], [reach]]) / _CELL_M).astype(np.intp)
        if first.min() < 0 or last.max() >= len(self.low):
            return None
        block = tuple(slice(a, b + 1) for a, b in zip(first, last))
        low, highest = self.low[block], self.high[block].max()
        low = low[np.isfinite(low)]
        if len(low) < _GROUND_CELLS or highest - low.min() > _ROUGH_M:
            return None
        return float(np.median(low))


def place(thing: Thing, ground: Ground, middle: float, width: float, rng: Rng) -> Cloud | None:
    """The points of a thing at its own distance, on free and even ground; None without any."""
    x, y = thing.center
    distance, azimuth = np.hypot(x, y), np.arctan2(y, x)
    for _ in range(_TRIES):
        target = np.radians(middle + rng.uniform(-0.45, 0.45) * min(width, 360.0))
        spot = distance * np.array([np.cos(target), np.sin(target)])
        height = ground.free(spot, thing.radius + _AROUND_M)
        if height is not None and abs(height - thing.ground) <= _STEP_M:
            moved = turned(thing.cloud, np.degrees(target - azimuth))
            moved.xyz[:, 2] += np.float32(height - thing.ground)
            return moved
    return None


def spherical(xyz: Array) -> Array:
    """(N, 3) azimuth [deg], elevation [deg] and range [m] of points (N, 3)."""
    flat = np.hypot(xyz[:, 0], xyz[:, 1])
    azimuth = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    return np.stack(
        [azimuth, np.degrees(np.arctan2(xyz[:, 2], flat)), np.hypot(flat, xyz[:, 2])], 1
    )


def occlusion(rays: Array, own: Array) -> tuple[Array, Array]:
    """What a pasted thing hides, and what of it is seen.

    Args:
        rays: (N, 3) points of the sector, see `spherical`.
        own: (K, 3) points of the thing.

    Returns:
        (N,) bool, points behind the thing, whose cells are widened by one to close the gaps
        between beams; (K,) bool, points of the thing that nothing of the sector hides.
    """
    middle, margin = own[0, 0], 2 * _RAY_DEG

    def angles(points: Array) -> Array:
        return np.stack([(points[:, 0] - middle + 180) % 360 - 180, points[:, 1]], 1)

    angle, other = angles(own), angles(rays)
    low, high = angle.min(0) - margin, angle.max(0) + margin
    near = np.flatnonzero(((other >= low) & (other <= high)).all(1))
    cell, cell_near = (
        tuple(((a - low) / _RAY_DEG).astype(np.intp).T) for a in (angle, other[near])
    )
    rays = rays[near]
    shape = np.ceil((high - low) / _RAY_DEG).astype(np.intp) + 1
    nearest, before = np.full(shape, np.inf), np.full(shape, np.inf)
    np.minimum.at(nearest, cell, own[:, 2])
    np.minimum.at(before, cell_near, rays[:, 2])
    hidden = np.zeros(len(other), bool)
    front = ndimage.minimum_filter(nearest, 3, mode="constant", cval=np.inf)
    hidden[near] = rays[:, 2] > front[cell_near] + _BEHIND_M
    return hidden, own[:, 2] <= before[cell] + _BEHIND_M
