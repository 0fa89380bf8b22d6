# SPDX-License-Identifier: Apache-2.0
"""Bayes fusion of class evidence over the sweeps and cameras of a scene.

World voxels hold the probability of each class. Every observation updates them by Bayes' rule,
p <- p l / sum(p l). Moving objects would smear their class along their path, so points at a place
that another sweep sees through are fused within their own sweep only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.distill.evidence import Evidence, world_keys
from pcseg_core.geometry import elevation, invert, transform
from pcseg_core.labels import IGNORE

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_VIEWS = 1 << 22  # numbers of views of one voxel
_ROUNDS = 12  # of expectation maximization


class ConsolidationConfig(Section):
    """Voxels, noise of single observations, and the detection of moving points."""

    renamed: ClassVar[dict[str, str]] = {"doubt": "observation_noise"}

    voxel_m: float = Field(
        0.0, ge=0, le=2, description="Edge of the world voxels [m]; 0 fuses nothing"
    )
    observation_noise: float = Field(
        0.5, gt=0, lt=1, description="Uniform mixing weight of each observation (label smoothing)"
    )
    estimate_noise: bool = Field(
        False, description="Estimate which classes looks confuse, by the looks at the same voxels"
    )
    noise_prior: float = Field(
        200.0,
        gt=0,
        description="Looks of the constant noise, per class, that the estimate starts at",
    )
    look_deg: float = Field(
        0.0,
        ge=0,
        le=90,
        description="Sweeps that see a voxel from directions within this angle, and distances "
        "within look_ratio, are one look [deg]; 0 takes every sweep for a look of its own",
    )
    look_ratio: float = Field(
        1.5, ge=1.05, le=10, description="Ratio of distances within which sweeps are one look"
    )
    look_exponent: float = Field(
        1.0,
        ge=0,
        le=1,
        description="n looks count as n to the power of this; below 1 for looks that share errors",
    )
    own_weight: float = Field(
        1.0, ge=0, description="Weight of the sweep's own look relative to those of other sweeps"
    )
    margin_m: float = Field(
        0.6, gt=0, description="A place is empty if another sweep measures this far beyond it [m]"
    )
    margin_ratio: float = Field(
        0.03, ge=0, lt=1, description="The same as a share of the distance; the larger one counts"
    )
    cell_deg: float = Field(
        1.5, gt=0.05, le=10, description="Cell of the range images that find empty places [deg]"
    )
    window: int = Field(
        60, ge=2, description="Sweeps fused together; longer scenes are split into such windows"
    )
    neighbors: int = Field(
        4, ge=1, description="Sweeps before, and as many after, that are tested for empty places"
    )


def consolidate(
    clouds: Sequence[npt.NDArray[np.floating]],
    poses: Sequence[npt.NDArray[np.float64]],
    evidence: Sequence[Evidence],
    config: ConsolidationConfig,
    confusion: Float64 | None = None,
) -> list[Float32]:
    """Class probabilities of all points of a scene after all its observations.

    Args:
        clouds: (N_i, 3) finite points of each sweep in its LiDAR frame, deskewed [m].
        poses: (4, 4) T_world_lidar of each sweep, in the order of time.
        evidence: class evidence of each sweep.
        config: voxels, noise and motion.
        confusion: of one look, see `constant_confusion`; None takes the constant noise of `config`.

    Returns:
        Per sweep (N_i, C) probabilities that sum to 1; zeros for points in voxels without evidence.
    """
    if confusion is None:
        confusion = constant_confusion(evidence[0].sums.shape[1], config.observation_noise)
    found: list[Float32] = []
    for part, looks in _windows(clouds, poses, evidence, config):
        logs = looks.logs(confusion)
        voxels, seen = looks.fused(logs, config.look_exponent)
        for rows, own, groups in zip(looks.rows, evidence[part], looks.groups):
            points = voxels[rows]
            points[own.index] += (config.own_weight - 1) * logs[groups]
            found.append(np.where(seen[rows, None], _softmax(points), 0).astype(np.float32))
    return found


def constant_confusion(classes: int, noise: float) -> Float64:
    """(C, C + 1) probability that a look at class k shows class j, or none in the last column.

    Every look is right, or shows any class with a probability of `noise` in all.
    """
    confusion = np.full((classes, classes + 1), noise / classes)
    confusion[:, :classes] += (1 - noise) * np.eye(classes)
    return confusion


@dataclass
class NoiseEstimate:
    """Noise of one look, by expectation maximization over voxels with several looks.

    The class of a voxel is latent, looks are annotators with one common confusion (Dawid and
    Skene, 1979). The constant noise is the start, and
    `noise_prior` looks of it keep classes apart that are seldom seen.

    Attributes:
        config: voxels, noise and motion.
    """

    config: ConsolidationConfig
    _found: list[_Looks] = field(default_factory=list)

    def add(
        self,
        clouds: Sequence[npt.NDArray[np.floating]],
        poses: Sequence[npt.NDArray[np.float64]],
        evidence: Sequence[Evidence],
    ) -> None:
        """Add a scene; arguments as for `consolidate`."""
        for _, looks in _windows(clouds, poses, evidence, self.config):
            repeated = looks.repeated()
            if len(repeated.voxel):
                self._found.append(repeated)

    def estimate(self) -> Float64 | None:
        """(C, C + 1) as `constant_confusion`; None if no voxel has several looks."""
        if not self._found:
            return None
        classes = self._found[0].shares.shape[1] - 1
        start = confusion = constant_confusion(classes, self.config.observation_noise)
        frequency = np.full(classes, 1 / classes)
        for _ in range(_ROUNDS):
            counts = self.config.noise_prior * start
            for looks in self._found:
                counts += looks.confused(confusion, frequency, self.config.look_exponent)
            totals = counts.sum(1)
            confusion, frequency = counts / totals[:, None], totals / totals.sum()
        return confusion


def probabilities_alone(evidence: Evidence, count: int, confusion: Float64) -> Float32:
    """Class probabilities (count, C) of the points of a sweep by its own look; 0 where unseen."""
    found = np.zeros((count, evidence.sums.shape[1]), np.float32)
    shares = _with_none(evidence.sums / evidence.weights[:, None])
    weight = np.minimum(1, evidence.weights)[:, None]
    found[evidence.index] = _softmax(weight * np.log(np.maximum(shares @ confusion.T, 1e-9)))
    return found


@dataclass(frozen=True)
class _Looks:
    """Independent looks at the voxels of a scene.

    Attributes:
        voxel: (G,) voxel of each look.
        shares: (G, C + 1) mean class probabilities of a look, and what they lack to 1.
        weight: (G,) in 0..1.
        count: number V of voxels.
        rows: (N_i,) per sweep, voxel of each point.
        groups: (M_i,) per sweep, look of each seen point.
    """

    voxel: Int64
    shares: Float64
    weight: Float64
    count: int
    rows: list[Int64]
    groups: list[Int64]

    def logs(self, confusion: Float64) -> Float64:
        """(G, C) weighted log likelihood of each look for each class."""
        result: Float64 = self.weight[:, None] * np.log(np.maximum(self.shares @ confusion.T, 1e-9))
        return result

    def fused(self, logs: Float64, exponent: float) -> tuple[Float64, Bool]:
        """(V, C) log probabilities up to a constant, and which voxels have a look."""
        total = _sums(self.voxel, logs, self.count)
        weight = np.bincount(self.voxel, self.weight, self.count).astype(np.float64)
        fused: Float64 = total * _damping(weight, exponent)[:, None]
        return fused, weight > 0

    def repeated(self) -> _Looks:
        """The looks at voxels with several of them; without the points."""
        several = np.bincount(self.voxel, minlength=self.count)[self.voxel] > 1
        _, voxel = np.unique(self.voxel[several], return_inverse=True)
        count = int(voxel.max(initial=-1)) + 1
        return _Looks(voxel, self.shares[several], self.weight[several], count, [], [])

    def confused(self, confusion: Float64, frequency: Float64, exponent: float) -> Float64:
        """(C, C + 1) expected number of looks that show j at class k, of a frequency (C,)."""
        voxels, _ = self.fused(self.logs(confusion), exponent)
        likely = _softmax(voxels + np.log(frequency))[self.voxel]
        likelihood = np.maximum(self.shares @ confusion.T, 1e-9)
        joint = (likely * self.weight[:, None] / likelihood).T @ self.shares
        counts: Float64 = joint * confusion
        return counts


def _windows(
    clouds: Sequence[npt.NDArray[np.floating]],
    poses: Sequence[npt.NDArray[np.float64]],
    evidence: Sequence[Evidence],
    config: ConsolidationConfig,
) -> Iterator[tuple[slice, _Looks]]:
    """The looks of each window of sweeps."""
    for first in range(0, len(clouds), config.window):
        part = slice(first, first + config.window)
        yield part, _looks(clouds[part], poses[part], evidence[part], config)


def _looks(
    clouds: Sequence[npt.NDArray[np.floating]],
    poses: Sequence[npt.NDArray[np.float64]],
    evidence: Sequence[Evidence],
    config: ConsolidationConfig,
) -> _Looks:
    moving = moving_points(clouds, poses, config)
    start = invert(poses[0])  # world coordinates may be too large for the keys of voxels
    poses = [start @ pose for pose in poses]
    keys = [world_keys(xyz, pose, config.voxel_m) for xyz, pose in zip(clouds, poses)]
    count, rows = _rows(keys, moving)
    views = []
    for i, (xyz, pose, own, row) in enumerate(zip(clouds, poses, evidence, rows)):
        direction = _direction(xyz[own.index], pose, config) if config.look_deg else i
        views.append(row[own.index] * _VIEWS + direction)
    # Points of one voxel in one look are one observation: their errors are not independent.
    known, group = np.unique(np.concatenate(views), return_inverse=True)
    weights = np.concatenate([own.weights for own in evidence]).astype(np.float64)
    sums = np.concatenate([own.sums for own in evidence])
    total = np.bincount(group, weights, len(known))
    shares = _sums(group, sums, len(known)) / np.maximum(total, 1e-9)[:, None]
    ends = np.cumsum([len(own.index) for own in evidence])[:-1]
    weight = np.minimum(1, total)
    return _Looks(known // _VIEWS, _with_none(shares), weight, count, rows, np.split(group, ends))


def _direction(
    xyz: npt.NDArray[np.floating], pose: npt.NDArray[np.float64], config: ConsolidationConfig
) -> Int64:
    """(N,) number of the direction and the distance that points are seen from, in the world."""
    rays = xyz @ pose[:3, :3].T
    azimuth = np.arctan2(rays[:, 1], rays[:, 0]) + np.pi
    around = (azimuth / np.radians(config.look_deg)).astype(np.int64)
    distance = np.maximum(np.linalg.norm(rays, axis=1), 1.0)
    steps = (np.log(distance) / np.log(config.look_ratio)).astype(np.int64)
    looks: Int64 = steps * 4096 + around
    return looks


def _damping(weight: Float64, exponent: float) -> Float64:
    """Factor that makes n looks count as n to the power of an exponent."""
    result: Float64 = np.maximum(weight, 1.0) ** (exponent - 1)
    return result


def _softmax(logs: Float64) -> Float64:
    odds = np.exp(logs - logs.max(1, keepdims=True))
    result: Float64 = odds / odds.sum(1, keepdims=True)
    return result


def _with_none(shares: npt.NDArray[np.floating]) -> Float64:
    """(M, C + 1): shares (M, C), and what they lack to 1."""
    return np.column_stack([shares, np.maximum(0, 1 - shares.sum(1))]).astype(np.float64)


def _sums(at: Int64, values: npt.NDArray[np.floating], count: int) -> Float64:
    """(count, C) sums of the rows of values (M, C) by their place (M,)."""
    return np.stack([np.bincount(at, column, count) for column in values.T], axis=1)


def likeliest(probabilities: Float32) -> tuple[npt.NDArray[np.int16], Float32]:
    """(N,) labels, IGNORE for rows of zeros, and their probability, from (N, C)."""
    best = probabilities.argmax(1)
    confidence: Float32 = probabilities[np.arange(len(best)), best]
    labels = np.where(confidence > 0, best, IGNORE).astype(np.int16)
    return labels, np.minimum(confidence, np.float32(1))


def moving_points(
    clouds: Sequence[npt.NDArray[np.floating]],
    poses: Sequence[npt.NDArray[np.float64]],
    config: ConsolidationConfig,
) -> list[Bool]:
    """Points at places that a sweep before or after sees through.

    A sweep sees through a place if it measured something in that direction (3 x 3 cells of its
    range image) and all of it lies beyond the place by more than a margin. Thin and porous objects
    let single rays through, but not all rays around them.

    Args:
        clouds: (N_i, 3) finite points of each sweep in its LiDAR frame, deskewed [m].
        poses: (4, 4) T_world_lidar of each sweep, in the order of time.
        config: margins, cells and number of neighbors.

    Returns:
        Per sweep (N_i,) bool.
    """
    images = [_nearest_around(xyz, config.cell_deg) for xyz in clouds]
    found = []
    for i, (xyz, pose) in enumerate(zip(clouds, poses)):
        empty = np.zeros(len(xyz), bool)
        for j in range(max(0, i - config.neighbors), min(len(clouds), i + config.neighbors + 1)):
            if j != i:
                there = transform(invert(poses[j]) @ pose, xyz)
                empty |= _seen_through(there, images[j], config)
        found.append(empty)
    return found


def _seen_through(
    xyz: npt.NDArray[np.floating], image: Float32, config: ConsolidationConfig
) -> Bool:
    distance = np.linalg.norm(xyz, axis=1)
    margin = np.maximum(config.margin_m, config.margin_ratio * distance)
    nearest = image[_cells(xyz, config.cell_deg)]
    result: Bool = np.isfinite(nearest) & (nearest > distance + margin)
    return result


def _nearest_around(xyz: npt.NDArray[np.floating], cell_deg: float) -> Float32:
    """Range image of the nearest return in each cell and the eight around it; inf for none."""
    rows, columns = _shape(cell_deg)
    image = np.full((rows, columns), np.inf, np.float32)
    np.minimum.at(image, _cells(xyz, cell_deg), np.linalg.norm(xyz, axis=1).astype(np.float32))
    around = np.minimum(np.minimum(np.roll(image, 1, 1), np.roll(image, -1, 1)), image)
    padded = np.pad(around, ((1, 1), (0, 0)), constant_values=np.inf)
    nearest: Float32 = np.minimum(np.minimum(padded[:-2], padded[2:]), around)
    return nearest


def _shape(cell_deg: float) -> tuple[int, int]:
    return int(np.ceil(180 / cell_deg)) + 1, max(3, round(360 / cell_deg))


def _cells(
    xyz: npt.NDArray[np.floating], cell_deg: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Row by elevation and column by azimuth of each point's direction."""
    _, columns = _shape(cell_deg)
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0]) / (2 * np.pi) + 0.5
    row = (np.degrees(elevation(xyz)) + 90) / cell_deg
    return row.astype(np.intp), (azimuth * columns).astype(np.intp) % columns


def _rows(
    keys: Sequence[npt.NDArray[np.int64]], moving: Sequence[Bool]
) -> tuple[int, list[npt.NDArray[np.int64]]]:
    """Number of voxels, and the voxel of every point; moving points have voxels per sweep."""
    places, place = np.unique(np.concatenate(keys), return_inverse=True)
    owner = np.concatenate([np.where(m, i + 1, 0) for i, m in enumerate(moving)])
    voxels, row = np.unique(owner * len(places) + place, return_inverse=True)
    return len(voxels), np.split(row, np.cumsum([len(k) for k in keys])[:-1])
