# SPDX-License-Identifier: Apache-2.0
"""Temporal smoothing: class evidence of the last seconds in voxels of the odometry frame."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pcseg_core.config import Section
from pcseg_core.errors import InputError
from pcseg_core.geometry import invert, transform
from pcseg_core.labels import IGNORE
from pcseg_core.online import row_reductions
from pcseg_core.online.free_space import Beams, FreeSpace, half
from pcseg_core.online.voxel_table import VoxelTable, voxel_centers, voxel_keys

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Observations: TypeAlias = "Array | tuple[Array, Array]"

_FLOOR = np.float32(1e-3)  # of a probability: no single observation excludes a class
_FORGOTTEN = 3.0  # memory times until a voxel may be replaced: 5 % of its evidence is left


class TemporalBufferConfig(Section):
    """How past sweeps are weighted, and when they are discarded."""

    voxel_m: float = Field(0.2, gt=0.01, le=2, description="Edge of a voxel of the buffer [m]")
    memory_s: float = Field(2.0, gt=0, le=60, description="Time in which evidence fades to 1/e [s]")
    max_range_m: float = Field(
        60.0, gt=1, le=500, description="Range of smoothing; farther points keep their label [m]"
    )
    renamed: ClassVar[dict[str, str]] = {"new_evidence": "correlation (1 - new_evidence)"}

    correlation: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Correlation of the observations of a voxel; 0 takes them as independent, 1 "
        "counts them as one. Changes the confidence, not the label",
    )
    gate_m: float = Field(
        0.5,
        ge=0,
        le=10,
        description="Free-space gate: reset a voxel that the previous sweep saw through by more "
        "than this [m]; 0 disables it",
    )
    capacity: int = Field(2**20, ge=2**10, le=2**26, description="Maximum number of voxels")
    memory_mb: float = Field(
        256.0,
        ge=1,
        le=65536,
        description="Maximum memory of the voxels [MB]; limits their number with many classes",
    )
    max_gap_s: float = Field(
        1.0, gt=0, le=60, description="Time between sweeps that clears the buffer [s]"
    )
    max_speed_mps: float = Field(
        70.0, gt=0, description="Speed between sweeps that clears the buffer, as a jump [m/s]"
    )
    max_turn_radps: float = Field(
        6.0, gt=0, description="Turn rate between sweeps that clears the buffer, as a jump [rad/s]"
    )


class TemporalBuffer:
    """Fuses the class probabilities of sweeps over time.

    A voxel keeps the sum of the log probabilities of its observations (one per sweep, the mean of
    its points), each weighted by its age: Bayes' rule for conditionally independent observations,
    with exponential forgetting. A point takes the class of its voxel. If a voxel was seen free and
    the new observation disagrees with its class, the earlier evidence is discarded.

    Attributes:
        config: settings.
        classes: number of classes C.
        counters: `reset_time`, `reset_motion` (jumps of stamp and pose), `overflow` (points without
            room for their voxel), `gated` (voxels reset by the free-space gate).
    """

    def __init__(self, config: TemporalBufferConfig, classes: int) -> None:
        self.config = config
        self.classes = classes
        self.counters: Counter[str] = Counter()
        columns = classes + 2  # sums of log probabilities; number of observations; class
        self._table = VoxelTable(
            min(config.capacity, VoxelTable.fitting(1e6 * config.memory_mb, columns)), columns
        )
        self.reset()

    def reset(self) -> None:
        """Discard all sweeps; keeps the counters."""
        self._table.clear()
        self._start_ns: int | None = None
        self._last_ns = 0
        self._last_pose: Array = np.eye(4)
        self._free: FreeSpace | None = None

    def update(
        self,
        xyz: Array,
        observed: Observations,
        T_odom_lidar: Array,
        stamp_ns: int,
        overwrite: bool = False,
        beams: Beams | None = None,
    ) -> tuple[npt.NDArray[np.int32], Float32]:
        """Add a sweep and label its points from all sweeps of the buffer.

        Args:
            xyz: (N, 3) float32 deskewed points in the LiDAR frame at `stamp_ns` [m].
            observed: (N, C) probabilities, rows of 0 for points without a label; or labels (N,), -1
                for none, with their confidences (N,).
            T_odom_lidar: (4, 4) pose in a frame without jumps.
            stamp_ns: of the sweep. A step back, or ahead by more than `max_gap_s`, clears the
                buffer.
            overwrite: replace the rows of `observed`, a float32 array, by the probabilities of the
                buffer; rows of points that it does not hold stay.
            beams: of the points, if they start elsewhere than at the origin or have several
                returns.

        Returns:
            Labels (N,) int32, IGNORE for points without a label, and their probabilities (N,)
            float32.

        Raises:
            InputError: shapes that do not match, or a pose that is not finite.
        """
        probabilities = self._probabilities(observed, len(xyz))
        pose = _checked_pose(T_odom_lidar)
        if xyz.shape != (len(probabilities), 3):
            raise InputError(
                f"temporal buffer: {len(probabilities)} rows of probabilities for points of shape "
                f"{xyz.shape}"
            )
        now = self._advance(pose, stamp_ns)
        columns = np.ascontiguousarray(xyz.T, np.float32)
        used, others = self._split(columns, probabilities)
        points, near = columns.take(used, axis=1), used
        before, self._free = self._free, None
        keys = voxel_keys(points, pose, self.config.voxel_m)
        hit, voxel, first = self._table.locate(keys, now - _FORGOTTEN * self.config.memory_s)
        if voxel.min(initial=0) < 0:
            kept, lost = np.flatnonzero(voxel >= 0), np.flatnonzero(voxel < 0)
            self.counters["overflow"] += len(lost)
            others = np.concatenate([others, used[lost]])
            used, voxel = used[kept], voxel[kept]
        labels = np.full(len(xyz), IGNORE, np.int32)
        confidence = np.zeros(len(xyz), np.float32)
        labels[others], confidence[others] = row_reductions.top(probabilities[others])
        if len(used):
            mean = row_reductions.means(probabilities, used, voxel, len(hit))
            winner, likely = self._fuse(hit, mean, points[:, first], before, now)
            share = np.reciprocal(likely @ np.ones(self.classes, np.float32), dtype=np.float32)
            labels[used] = winner.take(voxel)
            confidence[used] = share.take(voxel)
            if overwrite:
                likely *= share[:, None]
                probabilities[used] = likely.take(voxel, axis=0)
        self._free = self._free_space(points, None if beams is None else beams.take(near))
        return labels, confidence

    def remembered(self, span_s: float) -> tuple[Float32, npt.NDArray[np.int32], Float32]:
        """The voxels that were seen in the last seconds, around the newest sweep.

        Returns:
            Centers (3, M) in the LiDAR frame of the newest sweep [m], class (M,), and time since
            the voxel was seen (M,) [s].
        """
        start = self._last_ns if self._start_ns is None else self._start_ns
        now = (self._last_ns - start) * 1e-9
        keys, rows = self._table.used_since(now - span_s)
        centers = voxel_centers(keys, self._last_pose, self.config.voxel_m)
        labels = self._table.rows[rows, -1].astype(np.int32)
        return centers, labels, np.float32(now) - self._table.seen[rows]

    def _fuse(
        self, hit: Array, observed: Float32, points: Array, before: FreeSpace | None, now: float
    ) -> tuple[npt.NDArray[np.int32], Float32]:
        """Class (M,) of each voxel of the sweep, and (M, C) probabilities relative to its own.

        Args:
            hit: (M,) rows of the voxels.
            observed: (M, C) mean probabilities of each voxel.
            points: (3, M) a point of each voxel.
            before: free space of the previous sweep.
            now: time since the start [s].
        """
        table = self._table
        np.log(np.maximum(observed, _FLOOR, out=observed), out=observed)
        age = np.float32(now) - table.seen[hit]
        fade = np.exp(age / np.float32(-self.config.memory_s))
        if before is not None:
            fade[self._arrived(hit, observed, points, before)] = 0
        table.seen[hit] = now
        # Errors at one place correlate: n observations count as 1 + (n - 1)(1 - correlation).
        winner, below = row_reductions.accumulate(
            table.rows, hit, fade, observed, 1.0 - self.config.correlation
        )
        return winner, np.exp(below, out=below)

    def _arrived(self, hit: Array, observed: Float32, points: Array, before: FreeSpace) -> Array:
        """Voxels that the previous sweep saw free and whose class differs from the new one."""
        flat, end = self._table.rows.reshape(-1), (hit + 1) * (self.classes + 2)
        differs = flat.take(end - 1) != row_reductions.top(observed)[0]
        suspects = np.flatnonzero(differs & (flat.take(end - 2) > 0))
        seen_from_before = transform(self._motion, points[:, suspects].T).T
        arrived = suspects[before.passed(seen_from_before, self.config.gate_m)]
        self.counters["gated"] += len(arrived)
        return arrived

    def _free_space(self, points: Array, beams: Beams | None) -> FreeSpace | None:
        """Free space seen by this sweep, for the gate of the next."""
        if not self.config.gate_m or not points.shape[1]:
            return None
        rows = half(points.shape[1], beams)
        return FreeSpace(points[:, rows], None if beams is None else beams.take(rows))

    def _advance(self, pose: Array, stamp_ns: int) -> float:
        """Time since the start [s]; clears the buffer at jumps of time or pose."""
        if self._start_ns is not None:
            step_s = (stamp_ns - self._last_ns) * 1e-9
            if not 0 < step_s <= self.config.max_gap_s:
                self.counters["reset_time"] += 1
                self.reset()
            elif self._jumped(pose, step_s):
                self.counters["reset_motion"] += 1
                self.reset()
        if self._start_ns is None:
            self._start_ns = stamp_ns
        self._motion = invert(self._last_pose) @ pose  # current to previous LiDAR frame
        self._last_ns, self._last_pose = stamp_ns, pose
        return (stamp_ns - self._start_ns) * 1e-9

    def _jumped(self, pose: Array, step_s: float) -> bool:
        motion = invert(self._last_pose) @ pose
        distance = float(np.linalg.norm(motion[:3, 3]))
        turn = float(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1)))
        far = distance > self.config.max_speed_mps * step_s
        return far or turn > self.config.max_turn_radps * step_s

    def _split(self, points: Array, probabilities: Float32) -> tuple[Array, Array]:
        """Labeled points within the range of smoothing, and those beyond."""
        x, y, z = points
        with np.errstate(invalid="ignore", over="ignore"):
            near = x * x + y * y + z * z <= self.config.max_range_m**2  # false for NaN
        labeled = probabilities @ np.ones(self.classes, np.float32) > 0
        return np.flatnonzero(near & labeled), np.flatnonzero(~near & labeled)

    def _probabilities(self, observed: Observations, count: int) -> Float32:
        if isinstance(observed, tuple):
            observed = spread(*observed, self.classes)
        if observed.shape != (count, self.classes):
            raise InputError(
                f"temporal buffer: probabilities of shape {observed.shape}; expected "
                f"{(count, self.classes)}"
            )
        return np.asarray(observed, np.float32)


def spread(labels: Array, confidence: Array, classes: int) -> Float32:
    """(N, C) probabilities: the confidence for the label, the rest spread evenly."""
    p = np.repeat(((1 - confidence) / max(classes - 1, 1)).astype(np.float32)[:, None], classes, 1)
    known = np.flatnonzero(labels != IGNORE)
    p[known, labels[known]] = confidence[known]
    p[labels == IGNORE] = 0
    return p


def _checked_pose(pose: Array) -> Array:
    pose = np.asarray(pose, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise InputError(f"temporal buffer: a pose of 4 x 4 finite numbers is needed, got {pose}")
    return pose
