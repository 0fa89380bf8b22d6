# SPDX-License-Identifier: Apache-2.0
"""Labels that last: class evidence of the last seconds, kept in voxels of the odometry frame."""

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
from pcseg_core.online.free_space import FreeSpace
from pcseg_core.online.voxel_table import VoxelTable, voxel_keys

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Looks: TypeAlias = "Array | tuple[Array, Array]"

_FLOOR = np.float32(1e-3)  # of a probability: no single look rules a class out for good
_FORGOTTEN = 3.0  # memory times after which a voxel makes room: 5 % is left


class TemporalBufferConfig(Section):
    """How long past sweeps count, and when they do not."""

    voxel_m: float = Field(
        0.2, gt=0.01, le=2, description="Edge of the voxels that hold the evidence [m]"
    )
    memory_s: float = Field(2.0, gt=0, le=60, description="Evidence fades to 1/e in this time [s]")
    max_range_m: float = Field(
        60.0, gt=1, le=500, description="Farther points keep the label of their own sweep [m]"
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
        description="Points where the beams of the sweep before passed by more than this have "
        "just arrived, and what the place was is forgotten [m]; 0 turns the gate off",
    )
    capacity: int = Field(2**20, ge=2**10, le=2**26, description="Voxels that are kept at most")
    memory_mb: float = Field(
        256.0,
        ge=1,
        le=65536,
        description="Memory of these voxels at most [MB]; with many classes fewer of them fit",
    )
    max_gap_s: float = Field(
        1.0, gt=0, le=60, description="A longer time between sweeps is a new start [s]"
    )
    max_speed_mps: float = Field(
        70.0, gt=0, description="A faster motion between sweeps is a jump and a new start [m/s]"
    )
    max_turn_radps: float = Field(
        6.0, gt=0, description="A faster turn between sweeps is a jump and a new start [rad/s]"
    )


class TemporalBuffer:
    """Fuses the class probabilities of sweeps over time.

    A voxel keeps the sum of the log probabilities of its looks (one per sweep, the mean of its
    points), each faded by its age: Bayes' rule for looks that are given the class independent,
    with exponential forgetting. A point takes the class of its voxel. What has moved into a place
    that was seen to be free does not inherit what the place was, if the two disagree.

    Attributes:
        config: settings.
        classes: number of classes C.
        counters: `reset_time`, `reset_motion` (jumps of stamp and pose), `overflow` (points whose
            voxel there was no room for), `gated` (voxels forgotten by the gate).
    """

    def __init__(self, config: TemporalBufferConfig, classes: int) -> None:
        self.config = config
        self.classes = classes
        self.counters: Counter[str] = Counter()
        columns = classes + 2  # sum of the looks' logarithms; their number; class
        self._table = VoxelTable(
            min(config.capacity, VoxelTable.fitting(1e6 * config.memory_mb, columns)), columns
        )
        self.reset()

    def reset(self) -> None:
        """Forget all sweeps; the counters stay."""
        self._table.clear()
        self._start_ns: int | None = None
        self._last_ns = 0
        self._last_pose: Array = np.eye(4)
        self._free: FreeSpace | None = None

    def update(
        self, xyz: Array, looks: Looks, T_odom_lidar: Array, stamp_ns: int
    ) -> tuple[npt.NDArray[np.int32], Float32]:
        """Add a sweep and label its points by all that is known.

        Args:
            xyz: (N, 3) float32 points in the LiDAR frame at `stamp_ns`, corrected for the motion
                within the sweep [m].
            looks: (N, C) probabilities, rows of 0 for points without a label; or labels (N,), -1
                for none, with their confidences (N,).
            T_odom_lidar: (4, 4) pose in a frame without jumps.
            stamp_ns: of the sweep. Going back, or ahead by more than `max_gap_s`, starts anew.

        Returns:
            Labels (N,) int32, IGNORE where the sweep has none, and their probabilities (N,)
            float32.

        Raises:
            InputError: shapes that do not fit, or a pose that is not finite.
        """
        probabilities = self._probabilities(looks, len(xyz))
        pose = _checked_pose(T_odom_lidar)
        if xyz.shape != (len(probabilities), 3):
            raise InputError(
                f"temporal buffer: {len(probabilities)} looks for points of shape {xyz.shape}"
            )
        now = self._advance(pose, stamp_ns)
        columns = np.ascontiguousarray(xyz.T, np.float32)
        used, others = self._split(columns, probabilities)
        points = columns.take(used, axis=1)
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
            look = row_reductions.means(probabilities, used, voxel, len(hit))
            winner, share = self._fuse(hit, look, points[:, first], before, now)
            labels[used] = winner.take(voxel)
            confidence[used] = share.take(voxel)
        self._free = self._free_space(points)
        return labels, confidence

    def _fuse(
        self, hit: Array, look: Float32, points: Array, before: FreeSpace | None, now: float
    ) -> tuple[npt.NDArray[np.int32], Float32]:
        """Class (M,) and probability of each voxel that was hit, of which `look` (M, C) is the
        mean look and `points` (3, M) a point."""
        table = self._table
        np.log(np.maximum(look, _FLOOR, out=look), out=look)
        age = np.float32(now) - table.seen[hit]
        fade = np.exp(age / np.float32(-self.config.memory_s))
        if before is not None:
            fade[self._arrived(hit, look, points, before)] = 0
        table.seen[hit] = now
        # Observations of one place err alike: n of them count as 1 + (n - 1)(1 - correlation).
        winner, below = row_reductions.accumulate(
            table.rows, hit, fade, look, 1.0 - self.config.correlation
        )
        total = np.exp(below, out=below) @ np.ones(self.classes, np.float32)
        return winner, np.reciprocal(total, dtype=np.float32)

    def _arrived(self, hit: Array, look: Float32, points: Array, before: FreeSpace) -> Array:
        """Positions of voxels that were free and are now hit by something else than they were."""
        flat, end = self._table.rows.reshape(-1), (hit + 1) * (self.classes + 2)
        differs = flat.take(end - 1) != row_reductions.top(look)[0]
        suspects = np.flatnonzero(differs & (flat.take(end - 2) > 0))
        seen_from_before = transform(self._motion, points[:, suspects].T).T
        arrived = suspects[before.passed(seen_from_before, self.config.gate_m)]
        self.counters["gated"] += len(arrived)
        return arrived

    def _free_space(self, points: Array) -> FreeSpace | None:
        """Free space seen by this sweep, for the gate of the next."""
        if not self.config.gate_m or not points.shape[1]:
            return None
        return FreeSpace(points[:, ::2])  # half the points still cover every cell

    def _advance(self, pose: Array, stamp_ns: int) -> float:
        """Time since the start [s]; starts anew where time or place jumps."""
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
        self._motion = invert(self._last_pose) @ pose  # this LiDAR frame to that of the last sweep
        self._last_ns, self._last_pose = stamp_ns, pose
        return (stamp_ns - self._start_ns) * 1e-9

    def _jumped(self, pose: Array, step_s: float) -> bool:
        motion = invert(self._last_pose) @ pose
        distance = float(np.linalg.norm(motion[:3, 3]))
        turn = float(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1)))
        far = distance > self.config.max_speed_mps * step_s
        return far or turn > self.config.max_turn_radps * step_s

    def _split(self, points: Array, probabilities: Float32) -> tuple[Array, Array]:
        """Points with a label that are near enough to be remembered, and those that are not."""
        x, y, z = points
        with np.errstate(invalid="ignore", over="ignore"):
            near = x * x + y * y + z * z <= self.config.max_range_m**2  # false for NaN
        labeled = probabilities @ np.ones(self.classes, np.float32) > 0
        return np.flatnonzero(near & labeled), np.flatnonzero(~near & labeled)

    def _probabilities(self, looks: Looks, count: int) -> Float32:
        if isinstance(looks, tuple):
            looks = spread(*looks, self.classes)
        if looks.shape != (count, self.classes):
            raise InputError(
                f"temporal buffer: looks of shape {looks.shape}; expected {(count, self.classes)}"
            )
        return np.asarray(looks, np.float32)


def spread(labels: Array, confidence: Array, classes: int) -> Float32:
    """(N, C) probabilities: the confidence for the label, the rest for the others alike."""
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
